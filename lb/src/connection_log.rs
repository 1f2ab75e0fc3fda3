//! The connection log: a JSON object for each ended connection, written on a thread of its own.
//!
//! Workers never wait for it: what its queue has no room for is dropped and counted. A target that
//! fails is tried again; what could not be written meanwhile is said once, with its number.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use fairway_config::LogTarget;
use fairway_uring::{Carried, ConnectionRecord};
use serde::Serialize;

/// How often a file is looked at, whether it is still where it was.
const LOOK: Duration = Duration::from_secs(1);
/// Facility local0, severity informational: RFC 5424, section 6.2.1.
const PRIORITY: u8 = 16 * 8 + 6;

/// A line of the log. Times are milliseconds.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    service: &'a str,
    client: SocketAddr,
    vip: SocketAddr,
    backend: Option<String>,
    reason: &'static str,
    attempts: Option<u32>,
    /// Of payload, where that is known by direction.
    rx_bytes: Option<u64>,
    tx_bytes: Option<u64>,
    bytes: u64,
    connect_ms: Option<f64>,
    first_byte_ms: Option<f64>,
    duration_ms: f64,
}

impl<'a> Line<'a> {
    fn of(record: &'a ConnectionRecord) -> Self {
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let (rx_bytes, tx_bytes) = match record.carried {
            Carried::Payload { rx, tx } => (Some(rx), Some(tx)),
            Carried::Packets(_) => (None, None),
        };
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            service: &record.service,
            client: record.client,
            vip: record.vip,
            backend: record.backend.map(|addr| addr.to_string()),
            reason: record.reason.label(),
            attempts: record.attempts,
            rx_bytes,
            tx_bytes,
            bytes: record.carried.bytes(),
            connect_ms: record.connect.map(millis),
            first_byte_ms: record.first_byte.map(millis),
            duration_ms: millis(record.duration),
        }
    }
}

/// Writes the log.
pub(crate) struct ConnectionWriter {
    target: Target,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

enum Target {
    /// Among the other events.
    Events,
    File {
        path: PathBuf,
        file: BufWriter<File>,
        looked: Instant,
    },
    Journal {
        socket: UnixDatagram,
        path: PathBuf,
    },
    Syslog {
        socket: UnixDatagram,
        path: PathBuf,
        host: String,
    },
    SyslogUdp {
        socket: UdpSocket,
        host: String,
    },
}

impl ConnectionWriter {
    /// Opens the target. A file must be there or be made; a socket may come later.
    pub(crate) fn open(target: Option<&LogTarget>) -> Result<Self, String> {
        let unbound = || UnixDatagram::unbound().map_err(|error| error.to_string());
        let target = match target {
            None => Target::Events,
            Some(LogTarget::File(path)) => {
                let failed = |error| format!("connection log {}: {error}", path.display());
                let file = append(path).map_err(failed)?;
                Target::File { path: path.clone(), file, looked: Instant::now() }
            }
            Some(LogTarget::Journal(path)) => {
                Target::Journal { socket: unbound()?, path: path.clone() }
            }
            Some(LogTarget::Syslog(path)) => {
                Target::Syslog { socket: unbound()?, path: path.clone(), host: host() }
            }
            Some(LogTarget::SyslogUdp(addr)) => {
                let failed = |error| format!("connection log to {addr}: {error}");
                let socket = connected(*addr).map_err(failed)?;
                Target::SyslogUdp { socket, host: host() }
            }
        };
        Ok(Self { target, lost: 0 })
    }

    /// Writes what comes until nobody is left who could send.
    pub(crate) fn run(&mut self, records: &Receiver<Box<ConnectionRecord>>) {
        loop {
            let outcome = match records.recv_timeout(LOOK) {
                Ok(record) => {
                    let written = self.write(&record);
                    // A batch is flushed when it is over.
                    if records.is_empty() { written.and_then(|()| self.flush()) } else { written }
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.flush();
                    return;
                }
            };
            self.tell(outcome);
        }
    }

    fn write(&mut self, record: &ConnectionRecord) -> io::Result<()> {
        let line = Line::of(record);
        match &mut self.target {
            Target::Events => event(&line),
            Target::File { path, file, looked } => {
                if looked.elapsed() >= LOOK {
                    *looked = Instant::now();
                    if moved(path, file.get_ref()) {
                        file.flush()?;
                        *file = append(path)?;
                    }
                }
                serde_json::to_writer(&mut *file, &line)?;
                file.write_all(b"\n")?;
            }
            Target::Journal { socket, path } => {
                socket.send_to(&journal(&line)?, path)?;
            }
            Target::Syslog { socket, path, host } => {
                socket.send_to(&syslog(&line, host)?, path)?;
            }
            Target::SyslogUdp { socket, host } => {
                socket.send(&syslog(&line, host)?)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::File { file, .. } => file.flush(),
            _ => Ok(()),
        }
    }

    /// Says once that the target fails, and how many lines that has cost when it works again.
    fn tell(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) if self.lost > 0 => {
                tracing::warn!(
                    lines = self.lost,
                    "the connection log works again; lines were lost"
                );
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    tracing::error!("the connection log cannot be written: {error}");
                }
                self.lost += 1;
                metrics::counter!("fairway_connection_log_failed_lines_total").increment(1);
            }
        }
    }
}

fn event(line: &Line<'_>) {
    tracing::info!(
        service = line.service,
        client = %line.client,
        vip = %line.vip,
        backend = line.backend.as_deref().unwrap_or("-"),
        reason = line.reason,
        attempts = line.attempts,
        rx_bytes = line.rx_bytes,
        tx_bytes = line.tx_bytes,
        bytes = line.bytes,
        connect_ms = line.connect_ms,
        first_byte_ms = line.first_byte_ms,
        duration_ms = line.duration_ms,
        "connection ended"
    );
}

fn append(path: &Path) -> io::Result<BufWriter<File>> {
    Ok(BufWriter::new(OpenOptions::new().append(true).create(true).open(path)?))
}

/// Whether `path` is another file than the open one, or none: somebody rotates logs.
fn moved(path: &Path, open: &File) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (std::fs::metadata(path).map(identity), open.metadata().map(identity)) {
        (Ok(there), Ok(here)) => there != here,
        (Err(_), _) => true,
        (_, Err(_)) => false,
    }
}

fn connected(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any = if addr.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(addr)?;
    Ok(socket)
}

fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // RFC 5424 wants printable ASCII, and `-` for nothing.
    let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { name } else { "-".into() }
}

/// RFC 5424: priority and version, time, host, application, process, message id, no structured
/// data, and the line.
fn syslog(line: &Line<'_>, host: &str) -> io::Result<Vec<u8>> {
    let (time, pid) = (&line.time, std::process::id());
    let mut message =
        format!("<{PRIORITY}>1 {time} {host} fairway {pid} connection - ").into_bytes();
    serde_json::to_writer(&mut message, line)?;
    Ok(message)
}

/// The journal's own protocol: a field a line. No value of ours holds a line end.
/// Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
fn journal(line: &Line<'_>) -> io::Result<Vec<u8>> {
    let mut message = b"PRIORITY=6\nSYSLOG_IDENTIFIER=fairway\nMESSAGE=".to_vec();
    serde_json::to_writer(&mut message, line)?;
    message.push(b'\n');
    let value = serde_json::to_value(line)?;
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        message.extend_from_slice(format!("FAIRWAY_{}={text}\n", name.to_uppercase()).as_bytes());
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairway_core::EndReason;

    fn record(rx_bytes: u64) -> ConnectionRecord {
        ConnectionRecord {
            service: "web/http".into(),
            client: "192.0.2.7:4711".parse().unwrap(),
            vip: "198.51.100.1:80".parse().unwrap(),
            backend: None,
            reason: EndReason::Client,
            attempts: Some(1),
            carried: Carried::Payload { rx: rx_bytes, tx: 7 },
            connect: Some(Duration::from_micros(1234)),
            first_byte: None,
            duration: Duration::from_millis(12),
        }
    }

    #[test]
    fn a_file_is_followed_when_it_is_moved_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("connections.log");
        let mut writer = ConnectionWriter::open(Some(&LogTarget::File(path.clone()))).unwrap();
        writer.write(&record(1)).unwrap();
        writer.flush().unwrap();
        let old = folder.path().join("connections.log.1");
        std::fs::rename(&path, &old).unwrap();
        let Target::File { looked, .. } = &mut writer.target else { panic!("a file") };
        *looked -= 2 * LOOK;
        writer.write(&record(2)).unwrap();
        writer.flush().unwrap();
        for (path, bytes) in [(old, 1), (path, 2)] {
            let text = std::fs::read_to_string(path).unwrap();
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(line["rx_bytes"], bytes);
            assert_eq!((&line["connect_ms"], &line["first_byte_ms"]), (&1.234.into(), &().into()));
        }
        let nowhere = LogTarget::File("/no/folder/log".into());
        assert!(ConnectionWriter::open(Some(&nowhere)).is_err());
    }

    #[test]
    fn journal_and_syslog_get_whole_messages() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 4096];
        let mut sent = |target: LogTarget| {
            let mut writer = ConnectionWriter::open(Some(&target)).unwrap();
            writer.write(&record(5)).unwrap();
            let n = server.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        let text = sent(LogTarget::Journal(path.clone()));
        for line in ["PRIORITY=6", "FAIRWAY_SERVICE=web/http", "FAIRWAY_RX_BYTES=5"] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        assert!(!text.contains("FAIRWAY_BACKEND"), "what is not there is left out");
        let text = sent(LogTarget::Syslog(path.clone()));
        assert!(text.starts_with("<134>1 2"), "{text}");
        let words: Vec<&str> = text.splitn(8, ' ').collect();
        let pid = std::process::id().to_string();
        assert_eq!((words[3], words[4], words[5], words[6]), ("fairway", &*pid, "connection", "-"));
        assert!(serde_json::from_str::<serde_json::Value>(words[7]).is_ok(), "{text}");

        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = LogTarget::SyslogUdp(udp.local_addr().unwrap());
        let mut writer = ConnectionWriter::open(Some(&target)).unwrap();
        writer.write(&record(5)).unwrap();
        let n = udp.recv(&mut buffer).unwrap();
        assert!(buffer[..n].starts_with(b"<134>1 "));

        drop(server);
        std::fs::remove_file(&path).unwrap();
        let mut writer = ConnectionWriter::open(Some(&LogTarget::Journal(path))).unwrap();
        let outcome = writer.write(&record(1));
        assert!(outcome.is_err(), "nobody is there");
        writer.tell(outcome);
        assert_eq!(writer.lost, 1);
    }
}
