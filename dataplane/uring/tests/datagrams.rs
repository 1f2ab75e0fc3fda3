//! Datagrams through a real ring, real sockets on both sides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fixture;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use fairway_core::{DatagramDrop, EndReason, FailureCause, Policy, Protocol, Standing};

use fixture::{Proxy, SECOND, policy};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn proxy(backends: &[SocketAddr], policy: Policy) -> Proxy {
    Proxy::start_with(Protocol::Udp, backends, policy, &[])
}

/// A server that answers each datagram with its own name and the datagram, until told to `stop`.
fn echo(ip: IpAddr, name: char) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        buffer[0] = name as u8;
        while let Ok((n, from)) = socket.recv_from(&mut buffer[1..]) {
            if &buffer[1..=n] == b"stop" {
                return;
            }
            // The largest datagram has no room for the name.
            let answer = if n == 65_507 { &buffer[1..=n] } else { &buffer[..=n] };
            socket.send_to(answer, from).unwrap();
        }
    });
    addr
}

/// A client that hears nobody but the VIP.
fn client(proxy: &Proxy) -> UdpSocket {
    let any: IpAddr = if proxy.vip.is_ipv6() { V6 } else { V4 };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(proxy.vip).unwrap();
    socket.set_read_timeout(Some(5 * SECOND)).unwrap();
    socket
}

fn ask(client: &UdpSocket, text: &[u8]) -> Vec<u8> {
    client.send(text).unwrap();
    receive(client)
}

fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let n = heard(client, &mut buffer).unwrap();
    buffer.truncate(n);
    buffer
}

/// As `recv`, which a signal to the process interrupts when the socket has a time-out.
fn heard(client: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match client.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + 10 * SECOND;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn datagrams_of_every_size_come_back_from_the_dialled_address() {
    for ip in [V4, V6] {
        let proxy = proxy(&[echo(ip, 'a')], policy());
        let client = client(&proxy);
        assert_eq!(ask(&client, b"hello"), b"ahello");
        assert_eq!(ask(&client, b""), b"a", "a datagram without bytes is a datagram");
        assert_eq!(ask(&client, b"again"), b"aagain", "and ends nothing");
        for size in [1, 1400, 9000, 65_000, 65_507] {
            let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let got = ask(&client, &sent);
            assert!(got.ends_with(&sent), "{size} bytes over {ip}: {} came back", got.len());
        }
        let totals = proxy.state.counters.totals();
        assert_eq!((totals.accepted, totals.rx_datagrams), (1, 8), "one session");
        wait_for("all are counted", || proxy.state.counters.totals().tx_datagrams == 8);
    }
}

#[test]
fn clients_keep_their_backend_and_spread_over_all() {
    let proxy = proxy(&[echo(V4, 'a'), echo(V4, 'b')], policy());
    let mut seen = Vec::new();
    for _ in 0..4 {
        let client = client(&proxy);
        let first = ask(&client, b"1")[0];
        for _ in 0..3 {
            assert_eq!(ask(&client, b"2")[0], first);
        }
        seen.push(first);
    }
    seen.sort_unstable();
    assert_eq!(seen, b"aabb", "round robin");
}

#[test]
fn sessions_end_when_idle_or_answered() {
    let mut idle = policy();
    idle.udp.idle = Duration::from_millis(50);
    let proxy = proxy(&[echo(V4, 'a')], idle);
    let client = client(&proxy);
    for _ in 0..3 {
        assert_eq!(ask(&client, b"x"), b"ax");
    }
    assert_eq!(proxy.end(), EndReason::IdleTimeout);
    assert_eq!(ask(&client, b"y"), b"ay", "the next datagram begins another");
    drop(proxy);

    let mut answered = policy();
    answered.udp.responses = Some(1);
    answered.udp.idle = 60 * SECOND;
    let proxy = self::proxy(&[echo(V4, 'a')], answered);
    let client = self::client(&proxy);
    client.send(b"1").unwrap();
    client.send(b"2").unwrap();
    let mut got = [receive(&client), receive(&client)];
    got.sort();
    assert_eq!(got, [b"a1", b"a2"], "each datagram may have its reply");
    assert_eq!(proxy.end(), EndReason::Answered);
}

#[test]
fn a_closed_port_moves_the_next_datagram() {
    // "Discard" is served nowhere, and no socket is given its port by chance.
    let gone = (V4, 9).into();
    let proxy = proxy(&[gone, echo(V4, 'b')], policy());
    // One of the two clients is given the closed port, and loses one datagram at most.
    for _ in 0..2 {
        let client = client(&proxy);
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 16];
        let answers = (0..4).filter(|_| {
            client.send(b"x").unwrap();
            heard(&client, &mut buffer).is_ok()
        });
        assert!(answers.count() >= 3);
    }
    let failures = proxy.members[0].counters.totals().failures;
    assert_eq!(failures[FailureCause::Refused as usize], 1, "counted once");
}

#[test]
fn a_backend_that_dies_under_a_session_loses_it() {
    let (a, b) = (echo(V4, 'a'), echo(V4, 'b'));
    let proxy = proxy(&[a, b], policy());
    let client = client(&proxy);
    let first = ask(&client, b"x")[0];
    let victim = if first == b'a' { a } else { b };
    UdpSocket::bind((V4, 0)).unwrap().send_to(b"stop", victim).unwrap();
    wait_for("the port is closed", || UdpSocket::bind(victim).is_ok());
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 16];
    let answered = (0..5).position(|_| {
        client.send(b"y").unwrap();
        heard(&client, &mut buffer).is_ok()
    });
    assert!(answered.is_some_and(|lost| lost <= 1), "lost {answered:?} datagrams");
    assert_ne!(buffer[0], first);
}

#[test]
fn no_session_stays_on_a_backend_that_is_out_of_service() {
    for out in [
        Standing { failed: true, ..Standing::GOOD },
        Standing { draining: true, ..Standing::GOOD },
        Standing { ejected: true, ..Standing::GOOD },
    ] {
        let (a, b) = (echo(V4, 'a'), echo(V4, 'b'));
        let mut proxy = proxy(&[a, b], policy());
        let client = client(&proxy);
        let first = ask(&client, b"x")[0];
        let victim = if first == b'a' { a } else { b };
        proxy.admit(|backend| {
            if Some(victim.port()) == backend.addr.port().map(|port| port.get()) {
                out
            } else {
                Standing::GOOD
            }
        });
        assert_ne!(ask(&client, b"x")[0], first, "{out:?}");
        assert_eq!(proxy.state.counters.totals().accepted, 1, "it moved, and did not end");
        proxy.admit(|_| Standing::GOOD);
        assert_ne!(ask(&client, b"x")[0], first, "it stays where it went");
    }
}

#[test]
fn sessions_are_bounded_and_the_oldest_idle_makes_room() {
    let mut long = policy();
    long.udp.idle = 60 * SECOND;
    let proxy = proxy(&[echo(V4, 'a')], long);
    let clients: Vec<_> = (0..150).map(|_| client(&proxy)).collect();
    for client in &clients {
        assert_eq!(ask(client, b"x"), b"ax");
        // The first stays busy.
        assert_eq!(ask(&clients[0], b"y"), b"ay");
    }
    for _ in 0..50 {
        assert_eq!(proxy.end(), EndReason::Evicted);
    }
    assert_eq!(proxy.state.active(), 100);
    assert_eq!(proxy.state.counters.totals().accepted, 150, "the busy one began once");
    assert_eq!(ask(&clients[149], b"z"), b"az");
}

#[test]
fn bursts_pass_as_the_datagrams_that_they_are() {
    let proxy = proxy(&[echo(V4, 'a')], policy());
    let client = client(&proxy);
    assert_eq!(ask(&client, b"x"), b"ax");
    // Datagrams sent back to back may be joined by the kernel on the way (GRO).
    for round in 0..20u8 {
        for n in 0..16u8 {
            let mut datagram = [n; 1200];
            datagram[0] = round;
            client.send(&datagram).unwrap();
        }
        for n in 0..16u8 {
            let got = receive(&client);
            assert_eq!((got.len(), got[0], got[1], got[2]), (1201, b'a', round, n));
        }
    }
    let totals = proxy.state.counters.totals();
    assert_eq!(totals.rx_datagrams, 321);
    assert_eq!(totals.datagram_drops, [0; DatagramDrop::ALL.len()]);
}

#[test]
fn lists_and_limits_refuse_sessions() {
    let mut closed = policy();
    closed.deny = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
    let proxy = proxy(&[echo(V4, 'a')], closed);
    let client = client(&proxy);
    client.send(b"x").unwrap();
    assert_eq!(proxy.end(), EndReason::Denied);
    drop(proxy);

    let mut narrow = policy();
    narrow.limits.client_connections = Some(1);
    narrow.udp.idle = 60 * SECOND;
    let proxy = self::proxy(&[echo(V4, 'a')], narrow);
    let (first, second) = (self::client(&proxy), self::client(&proxy));
    assert_eq!(ask(&first, b"x"), b"ax");
    second.send(b"x").unwrap();
    assert_eq!(proxy.end(), EndReason::Limited);
    second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(heard(&second, &mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(ask(&first, b"y"), b"ay", "who is in stays in");
}

#[test]
fn without_a_backend_datagrams_are_counted_and_it_recovers() {
    let mut proxy = proxy(&[echo(V4, 'a')], policy());
    let client = client(&proxy);
    assert_eq!(ask(&client, b"x"), b"ax");
    proxy.admit(|_| Standing { failed: true, ..Standing::GOOD });
    client.send(b"y").unwrap();
    assert_eq!(proxy.end(), EndReason::NoBackend);
    proxy.admit(|_| Standing::GOOD);
    assert_eq!(ask(&client, b"z"), b"az");
}
