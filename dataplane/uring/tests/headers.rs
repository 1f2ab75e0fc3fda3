//! The PROXY protocol through a real ring: read from clients, written to backends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fixture;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use fairway_core::proxy_header::{HeaderFormat, Opening, read, write};
use fairway_core::{AcceptHeader, EndReason, Policy, SendHeader};

use fixture::{Proxy, SECOND, policy, read_error};

/// A server that tells what each connection brings until its end, and answers `ok` to it.
fn listener() -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = sender.send(bytes);
                    let _ = stream.write_all(b"ok");
                }
            });
        }
    });
    (addr, receiver)
}

fn accepting(required: bool, trusted: &str) -> Policy {
    let mut policy = policy();
    policy.proxy_protocol.accept = Some(AcceptHeader {
        required,
        trusted: [trusted.parse().unwrap()].into_iter().collect(),
        timeout: SECOND / 5,
    });
    policy
}

fn sending(policy: Policy, format: HeaderFormat) -> Policy {
    let mut policy = policy;
    policy.proxy_protocol.send = Some(SendHeader { format, unique_id: true });
    policy
}

/// Sends `pieces` one by one, then ends; what comes back.
fn exchange(proxy: &Proxy, pieces: &[&[u8]]) -> std::io::Result<String> {
    let mut client = proxy.connect();
    client.set_nodelay(true)?;
    for piece in pieces {
        client.write_all(piece)?;
        if pieces.len() > 1 {
            // Pieces of their own for the other side, which need not see them apart.
            thread::sleep(Duration::from_millis(1));
        }
    }
    client.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    Ok(text)
}

const CLIENT: &str = "192.0.2.7:56324";
const DIALLED: &str = "198.51.100.1:443";

fn header(format: HeaderFormat) -> Vec<u8> {
    write(format, Some((CLIENT.parse().unwrap(), DIALLED.parse().unwrap())), Some(b"from before"))
}

const FORMATS: [HeaderFormat; 3] =
    [HeaderFormat::V1, HeaderFormat::V2 { crc32c: false }, HeaderFormat::V2 { crc32c: true }];

#[test]
fn headers_are_read_whole_or_in_pieces_and_passed_on() {
    let (addr, received) = listener();
    for format in FORMATS {
        let send = HeaderFormat::V2 { crc32c: true };
        let proxy = Proxy::start(&[addr], sending(accepting(true, "127.0.0.0/8"), send), &[]);
        let header = header(format);
        let whole = [&header[..], b"hello"].concat();
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        let large = [&header[..], &[b'x'; 40_000]].concat();
        for pieces in [&[&whole[..]][..], &bytes, &[&header, b"hello"], &[&large[..9], &large[9..]]]
        {
            assert_eq!(exchange(&proxy, pieces).unwrap(), "ok");
            let got = received.recv_timeout(5 * SECOND).unwrap();
            let Ok(Opening::Header(passed_on, len)) = read(&got) else { panic!("{got:?}") };
            let (client, dialled) = passed_on.addresses.unwrap();
            let named = (client.to_string(), dialled.to_string());
            assert_eq!((&*named.0, &*named.1), (CLIENT, DIALLED), "{format:?}");
            let sent = pieces.concat();
            assert_eq!(got[len..], sent[header.len()..], "what follows is untouched");
            let id = passed_on.unique_id.unwrap();
            let kept = *id == *b"from before";
            assert!(kept == (format != HeaderFormat::V1) && (kept || id.len() == 32), "{id:?}");
            assert_eq!(proxy.end(), EndReason::Client);
        }
    }
}

#[test]
fn malformed_late_and_missing_headers_are_closed_and_counted() {
    let (addr, received) = listener();
    let proxy = Proxy::start(&[addr], accepting(true, "127.0.0.0/8"), &[]);
    let good = header(HeaderFormat::V2 { crc32c: true });
    let mut changed = good.clone();
    changed[20] ^= 1;
    let endless = [&b"PROXY "[..], &[b'x'; 200]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &changed, &endless, b"PROXY TCP4 a b c d\r\n"] {
        let error = exchange(&proxy, &[bytes]).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected),
            "{error}"
        );
        assert_eq!(proxy.end(), EndReason::ProxyHeader, "{bytes:?}");
    }
    // Half a header, and then nothing; or nothing at all.
    for bytes in [&good[..20], b""] {
        let mut client = proxy.connect();
        client.write_all(bytes).unwrap();
        let start = Instant::now();
        assert_eq!(read_error(&mut client).kind(), ErrorKind::ConnectionReset);
        assert!(start.elapsed() < 5 * SECOND, "the timeout is a fifth of a second");
        assert_eq!(proxy.end(), EndReason::ProxyHeader);
    }
    // A port scan is nobody's mistake.
    drop(proxy.connect());
    assert_eq!(proxy.end(), EndReason::Client);
    assert!(received.try_recv().is_err(), "nothing reached the backend");
}

#[test]
fn only_trusted_sources_may_name_clients() {
    let (addr, received) = listener();
    let header = header(HeaderFormat::V1);
    let strangers = Proxy::start(&[addr], accepting(true, "10.0.0.0/8"), &[]);
    let error = exchange(&strangers, &[&header]).unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::NotConnected | ErrorKind::BrokenPipe
    ));
    drop(strangers);
    let optional = Proxy::start(&[addr], accepting(false, "10.0.0.0/8"), &[]);
    assert_eq!(exchange(&optional, &[&header]).unwrap(), "ok");
    assert_eq!(received.recv_timeout(5 * SECOND).unwrap(), header, "a stranger's header is data");
}

#[test]
fn an_optional_header_may_be_missing() {
    let (addr, received) = listener();
    let send = HeaderFormat::V2 { crc32c: false };
    let proxy = Proxy::start(&[addr], sending(accepting(false, "127.0.0.0/8"), send), &[]);
    assert_eq!(exchange(&proxy, &[b"GET / HTTP/1.1\r\n\r\n"]).unwrap(), "ok");
    let got = received.recv_timeout(5 * SECOND).unwrap();
    let Ok(Opening::Header(header, len)) = read(&got) else { panic!("{got:?}") };
    assert!(header.addresses.unwrap().0.ip().is_loopback());
    assert_eq!(got[len..], *b"GET / HTTP/1.1\r\n\r\n");

    // The server speaks first: the client says nothing, and is let in when its time is over.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let greeter = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"220 hello");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    });
    let proxy = Proxy::start(&[greeter], accepting(false, "127.0.0.0/8"), &[]);
    let mut client: TcpStream = proxy.connect();
    let mut text = [0; 9];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"220 hello");
}

#[test]
fn lists_go_by_the_client_that_a_header_names() {
    let (addr, _received) = listener();
    let mut policy = accepting(true, "127.0.0.0/8");
    policy.deny = ["192.0.2.0/24".parse().unwrap()].into_iter().collect();
    let proxy = Proxy::start(&[addr], policy, &[]);
    assert!(exchange(&proxy, &[&header(HeaderFormat::V1)]).is_err());
    assert_eq!(proxy.end(), EndReason::Denied);
    let local = write(HeaderFormat::V2 { crc32c: true }, None, None);
    assert_eq!(exchange(&proxy, &[&local]).unwrap(), "ok", "a proxy's own check");
}
