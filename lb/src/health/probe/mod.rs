//! One check of one address, of whatever kind.

mod dns;
mod exec;
mod grpc;
mod http;
mod icmp;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairway_config::{CheckSpec, Exchange, Probe, Tls};
use fairway_core::proxy_header;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::state::{ProbeError, ProbeResult};

pub(crate) use tls::TlsConfigs;

/// Bytes of an answer that are looked at.
const MOST_ANSWER: usize = 4096;

/// Checks `addr` once as `spec` says. Never takes longer than the spec's timeout.
pub(crate) async fn probe(addr: SocketAddr, spec: &CheckSpec, tls: &TlsConfigs) -> ProbeResult {
    timeout(spec.timeout, run(addr, spec, tls))
        .await
        .unwrap_or_else(|_| fail(format!("no answer from {addr} in {:?}", spec.timeout)))
}

async fn run(addr: SocketAddr, spec: &CheckSpec, configs: &TlsConfigs) -> ProbeResult {
    match &spec.probe {
        Probe::Tcp(exchange) => {
            let mut stream = connect(addr, spec).await?;
            talk(&mut stream, addr, exchange).await?;
            close(&stream);
            Ok(())
        }
        Probe::Http(request, None) => http::get(connect(addr, spec).await?, addr, request).await,
        Probe::Http(request, Some(tls)) => {
            http::get(secured(addr, spec, tls, &[], configs).await?, addr, request).await
        }
        Probe::Tls(tls) => {
            let mut stream = secured(addr, spec, tls, &[], configs).await?;
            // The handshake is what was asked for; how the farewell goes says nothing.
            let _ = stream.shutdown().await;
            Ok(())
        }
        Probe::Grpc(service, None) => grpc::check(connect(addr, spec).await?, addr, service).await,
        Probe::Grpc(service, Some(tls)) => {
            let stream = secured(addr, spec, tls, &[b"h2"], configs).await?;
            grpc::check(stream, addr, service).await
        }
        Probe::Dns { query, record } => {
            dns::ask(&socket(addr, spec.source).await?, addr, query, *record).await
        }
        Probe::Udp(exchange) => datagram(&socket(addr, spec.source).await?, addr, exchange).await,
        Probe::Icmp => icmp::echo(addr.ip(), spec.source).await,
        Probe::Exec(command) => exec::run(addr, command).await,
        // Agents are followed, not judged.
        Probe::Agent(_) => Ok(()),
    }
}

fn fail<T>(why: String) -> Result<T, ProbeError> {
    Err(ProbeError(why))
}

/// The kernel's words without their number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// A connection to `addr`, begun with a header where backends want one.
async fn connect(addr: SocketAddr, spec: &CheckSpec) -> Result<TcpStream, ProbeError> {
    let open = async {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = spec.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(addr).await
    };
    let mut stream =
        open.await.map_err(|error| ProbeError(format!("connect to {addr}: {}", plain(&error))))?;
    if let Some(format) = spec.header {
        // A backend that wants a header wants it of a check, too; we speak for ourselves.
        let header = proxy_header::write(format, None, None);
        stream
            .write_all(&header)
            .await
            .map_err(|error| ProbeError(format!("PROXY header to {addr}: {}", plain(&error))))?;
    }
    Ok(stream)
}

async fn secured(
    addr: SocketAddr,
    spec: &CheckSpec,
    tls: &Tls,
    protocols: &[&[u8]],
    configs: &TlsConfigs,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, ProbeError> {
    let stream = connect(addr, spec).await?;
    tls::handshake(stream, addr, tls, protocols, configs).await
}

/// A check leaves no TIME-WAIT behind and costs the backend no FIN handshake.
fn close(stream: &TcpStream) {
    // Without the option it is closed in order.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn talk(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    addr: SocketAddr,
    Exchange { send, expect }: &Exchange,
) -> ProbeResult {
    let failed = |error: io::Error| ProbeError(format!("TCP to {addr}: {}", plain(&error)));
    if !send.is_empty() {
        stream.write_all(send).await.map_err(failed)?;
    }
    if expect.is_empty() {
        return Ok(());
    }
    let mut answer = Vec::new();
    while !contains(&answer, expect) {
        let ended = stream.read_buf(&mut answer).await.map_err(failed)? == 0;
        if ended || answer.len() >= MOST_ANSWER {
            return unexpected(addr, &answer, expect);
        }
    }
    Ok(())
}

fn contains(answer: &[u8], expect: &[u8]) -> bool {
    expect.is_empty() || answer.windows(expect.len()).any(|part| part == expect)
}

fn unexpected(addr: SocketAddr, answer: &[u8], expect: &[u8]) -> ProbeResult {
    let shown = |bytes: &[u8]| bytes[..bytes.len().min(60)].escape_ascii().to_string();
    fail(format!("{addr} answered `{}`, expected `{}` in it", shown(answer), shown(expect)))
}

/// A socket that talks with `addr` alone.
async fn socket(addr: SocketAddr, source: Option<IpAddr>) -> Result<UdpSocket, ProbeError> {
    let any = match addr {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let open = async {
        let socket = UdpSocket::bind((source.unwrap_or(any), 0)).await?;
        socket.connect(addr).await?;
        Ok(socket)
    };
    open.await.map_err(|error: io::Error| ProbeError(format!("UDP to {addr}: {}", plain(&error))))
}

async fn datagram(socket: &UdpSocket, addr: SocketAddr, exchange: &Exchange) -> ProbeResult {
    let failed = |error: io::Error| ProbeError(format!("UDP to {addr}: {}", plain(&error)));
    socket.send(&exchange.send).await.map_err(failed)?;
    let mut answer = [0; MOST_ANSWER];
    let n = socket.recv(&mut answer).await.map_err(failed)?;
    if contains(&answer[..n], &exchange.expect) {
        return Ok(());
    }
    unexpected(addr, &answer[..n], &exchange.expect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_config::Http;
    use std::time::Instant;
    use tokio::net::TcpListener;

    fn spec(probe: Probe) -> CheckSpec {
        CheckSpec {
            probe,
            port: None,
            interval: Duration::from_secs(1),
            jitter_percent: 0,
            timeout: Duration::from_millis(300),
            rise: 1,
            fall: 1,
            initially_up: true,
            header: None,
            fast_interval: Duration::from_secs(1),
            source: None,
        }
    }

    fn http() -> CheckSpec {
        let request = Http {
            path: "/healthz".into(),
            host: Some("web.example".into()),
            headers: vec![("x-check".into(), "1".into())],
            statuses: vec![(200, 399), (404, 404)],
        };
        spec(Probe::Http(request, None))
    }

    async fn probe(addr: SocketAddr, spec: &CheckSpec) -> ProbeResult {
        super::probe(addr, spec, &TlsConfigs::default()).await
    }

    fn exchange(send: &str, expect: &str) -> Exchange {
        Exchange { send: send.as_bytes().into(), expect: expect.as_bytes().into() }
    }

    /// A server that answers every connection with `answer` and returns what it was asked.
    async fn server(answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = vec![0; 4096];
                let n = stream.read(&mut asked).await.unwrap_or(0);
                let _ = sender.send(String::from_utf8_lossy(&asked[..n]).into_owned()).await;
                if answer != "silence" {
                    let _ = stream.write_all(answer.as_bytes()).await;
                } else {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
        });
        (addr, receiver)
    }

    #[tokio::test]
    async fn http_statuses_decide() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", None),
            ("HTTP/1.0 302 Found\r\n\r\n", None),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some("HTTP 503 from ADDR, expected 200-399, 404")),
            ("", Some("HTTP to ADDR: ")),
            ("SSH-2.0\r\n", Some("HTTP to ADDR: ")),
            ("silence", Some("no answer from ADDR in 300ms")),
        ] {
            let (addr, mut asked) = server(answer).await;
            let result = probe(addr, &http()).await;
            match (result, want) {
                (Ok(()), None) => {}
                (Err(error), Some(want)) => {
                    let text = error.to_string().replace(&addr.to_string(), "ADDR");
                    assert!(text.starts_with(want), "{answer:?}: {text}");
                }
                (result, _) => panic!("{answer:?}: {result:?}"),
            }
            let asked = asked.recv().await.unwrap();
            assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains("host: web.example\r\n") && asked.contains("x-check: 1\r\n"));
        }
    }

    #[tokio::test]
    async fn tcp_needs_a_listener() {
        let (addr, _asked) = server("silence").await;
        assert_eq!(probe(addr, &spec(Probe::Tcp(Exchange::default()))).await, Ok(()));
        // Nobody else gets its port as long as it is bound.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let gone = silent.local_addr().unwrap();
        let error =
            probe(gone, &spec(Probe::Tcp(Exchange::default()))).await.unwrap_err().to_string();
        assert_eq!(error, format!("connect to {gone}: connection refused"));
    }

    #[tokio::test]
    async fn tcp_sends_and_expects() {
        let (addr, mut asked) = server("220 ready\r\n").await;
        let ask = |send: &str, expect: &str| spec(Probe::Tcp(exchange(send, expect)));
        assert_eq!(probe(addr, &ask("EHLO\r\n", "220 ")).await, Ok(()));
        assert_eq!(asked.recv().await.unwrap(), "EHLO\r\n");
        let error = probe(addr, &ask("x", "250")).await.unwrap_err().to_string();
        assert_eq!(error, format!("{addr} answered `220 ready\\r\\n`, expected `250` in it"));
    }

    #[tokio::test]
    async fn udp_wants_an_answer() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((n, from)) = server.recv_from(&mut buffer).await {
                server.send_to(&[b"echo ", &buffer[..n]].concat(), from).await.unwrap();
            }
        });
        let ask = |send: &str, expect: &str| spec(Probe::Udp(exchange(send, expect)));
        assert_eq!(probe(addr, &ask("ping", "")).await, Ok(()));
        assert_eq!(probe(addr, &ask("ping", "echo ping")).await, Ok(()));
        assert!(probe(addr, &ask("ping", "pong")).await.is_err());
        task.abort();
        let _ = task.await;
        let error = probe(addr, &ask("ping", "")).await.unwrap_err().to_string();
        assert_eq!(error, format!("UDP to {addr}: connection refused"));
    }

    #[tokio::test]
    async fn programs_decide_and_leave_nothing_behind() {
        let addr = "127.0.0.1:80".parse().unwrap();
        let run = |script: &str| {
            let words = ["/bin/sh", "-c", script];
            spec(Probe::Exec(words.map(Into::into).into()))
        };
        let told = "test $FAIRWAY_ADDRESS:$FAIRWAY_PORT = 127.0.0.1:80";
        assert_eq!(probe(addr, &run(told)).await, Ok(()));
        let error = probe(addr, &run("echo it is broken >&2; exit 3")).await.unwrap_err();
        let want = "/bin/sh for 127.0.0.1:80: exit status: 3: it is broken";
        assert_eq!(error.to_string(), want);
        // It ignores being told to end, and so does what it has started.
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("trap '' TERM; sleep 60 & echo $! > {}; wait", pid.display());
        let start = Instant::now();
        let error = probe(addr, &run(&script)).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer from 127.0.0.1:80 in 300ms");
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid = std::fs::read_to_string(pid).unwrap();
        let state = format!("/proc/{}/stat", pid.trim());
        let gone = || {
            let stat = std::fs::read_to_string(&state);
            stat.map_or(true, |stat| stat.contains(") Z"))
        };
        while !gone() {
            assert!(start.elapsed() < Duration::from_secs(5), "the child lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let missing = spec(Probe::Exec(vec!["/no/such/program".into()]));
        let error = probe(addr, &missing).await.unwrap_err();
        assert_eq!(error.to_string(), "/no/such/program: no such file or directory");
    }

    #[tokio::test]
    async fn garbage_is_no_tls() {
        let (addr, _asked) = server("this is no handshake, whatever was asked").await;
        let tls = Tls { verify: false, server_name: None, ca_file: None };
        for probe_kind in [
            Probe::Tls(tls.clone()),
            Probe::Grpc("".into(), Some(tls.clone())),
            Probe::Grpc("".into(), None),
        ] {
            let error = probe(addr, &spec(probe_kind)).await.unwrap_err().to_string();
            assert!(error.contains(&addr.to_string()), "{error}");
        }
        let missing = Tls { verify: true, server_name: None, ca_file: Some("/no/file".into()) };
        let error = probe(addr, &spec(Probe::Tls(missing))).await.unwrap_err().to_string();
        assert!(error.contains("/no/file"), "{error}");
    }
}
