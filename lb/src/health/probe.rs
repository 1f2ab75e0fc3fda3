//! One check of one address.

use std::net::SocketAddr;

use fairway_config::{CheckSpec, Probe};
use fairway_core::proxy_header;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::state::{ProbeError, ProbeResult};

/// Checks `addr` once as `spec` says. Never takes longer than the spec's timeout.
pub(crate) async fn probe(addr: SocketAddr, spec: &CheckSpec) -> ProbeResult {
    let check = async {
        let stream = TcpStream::connect(addr)
            .await
            .map_err(|error| ProbeError(format!("connect to {addr}: {}", plain(&error))))?;
        let mut stream = stream;
        if let Some(format) = spec.header {
            // A backend that wants a header wants it of a check, too; we speak for ourselves.
            let header = proxy_header::write(format, None, None);
            stream.write_all(&header).await.map_err(|error| {
                ProbeError(format!("PROXY header to {addr}: {}", plain(&error)))
            })?;
        }
        match &spec.probe {
            Probe::Tcp => close(stream),
            Probe::Http { path, host, headers, statuses } => {
                let status = get(stream, addr, path, host.as_deref(), headers).await?;
                let good = statuses.iter().any(|(first, last)| (*first..=*last).contains(&status));
                if !good {
                    let wanted = wanted(statuses);
                    return Err(ProbeError(format!(
                        "HTTP {status} from {addr}, expected {wanted}"
                    )));
                }
            }
        }
        Ok(())
    };
    timeout(spec.timeout, check)
        .await
        .unwrap_or_else(|_| Err(ProbeError(format!("no answer from {addr} in {:?}", spec.timeout))))
}

/// A check leaves no TIME-WAIT behind and costs the backend no FIN handshake.
fn close(stream: TcpStream) {
    // Without the option it is closed in order.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
}

async fn get(
    stream: TcpStream,
    addr: SocketAddr,
    path: &str,
    host: Option<&str>,
    headers: &[(Box<str>, Box<str>)],
) -> Result<u16, ProbeError> {
    let failed = |what: &str| ProbeError(format!("HTTP to {addr}: {what}"));
    let host = host.map_or_else(|| addr.to_string(), Into::into);
    let mut request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("fairway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    for (name, value) in headers {
        request = request.header(&**name, &**value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&format!("the request cannot be made: {error}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error.to_string()))?;
    // The connection ends with the timeout around the check, or when this returns.
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    driver.abort();
    match answer {
        Ok(response) => Ok(response.status().as_u16()),
        Err(error) => Err(failed(&error.to_string())),
    }
}

fn wanted(statuses: &[(u16, u16)]) -> String {
    let one = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    statuses.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The kernel's words without their number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        }
    }

    fn http() -> CheckSpec {
        spec(Probe::Http {
            path: "/healthz".into(),
            host: Some("web.example".into()),
            headers: vec![("x-check".into(), "1".into())],
            statuses: vec![(200, 399), (404, 404)],
        })
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
        assert_eq!(probe(addr, &spec(Probe::Tcp)).await, Ok(()));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = probe(gone, &spec(Probe::Tcp)).await.unwrap_err().to_string();
        assert_eq!(error, format!("connect to {gone}: connection refused"));
    }
}
