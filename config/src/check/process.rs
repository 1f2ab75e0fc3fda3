//! What applies to the process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::Findings;
use super::cluster::api;
use super::packet::packet;
use crate::announce::Secret;
use crate::document::{ConnectionsDoc, DataplaneDoc, Document, LogDoc, LogTargetDoc};
use crate::spec::{LogTarget, Process};
use crate::values::{At, Host, Size};

const DEFAULT_SOCKET: &str = "/run/fairway/admin.sock";
const STATE: &str = "/var/lib/fairway";
const DEFAULT_METRICS_PORT: u16 = 9180;

/// The cores of workers.
fn cpus(dataplane: &DataplaneDoc, workers: Option<u32>, findings: &mut Findings<'_>) -> Vec<u32> {
    let cpus = &dataplane.cpus;
    let Some(At { place, .. }) = cpus.first() else { return Vec::new() };
    if dataplane.pin_cpus == Some(false) {
        findings.add(*place, "`cpus` are for workers that are bound: remove `pinCpus: false`");
    }
    if let Some(workers) = workers.filter(|workers| *workers as usize != cpus.len()) {
        let count = cpus.len();
        findings.add(
            *place,
            format!("`workers` is {workers}, and {count} `cpus` are named: leave `workers` out"),
        );
    }
    for (n, At { place, value }) in cpus.iter().enumerate() {
        if cpus[..n].iter().any(|other| other.value == *value) {
            findings.add(*place, format!("core {value} is listed twice; remove one"));
        }
    }
    cpus.iter().map(|at| at.value).collect()
}

pub(crate) fn process(document: &Document, base: &Path, findings: &mut Findings<'_>) -> Process {
    let dataplane = &document.dataplane;
    let asked = dataplane.workers.as_ref().and_then(|at| at.value.0);
    let cpus = cpus(dataplane, asked, findings);
    let workers = asked.or(if cpus.is_empty() { None } else { Some(cpus.len() as u32) });
    if let Some(At { place, .. }) = dataplane.workers.as_ref().filter(|_| workers > Some(512)) {
        findings.add(*place, format!("{} workers are more than 512", workers.unwrap_or(0)));
    }
    let buffer_bytes =
        size(findings, "bufferSize", dataplane.buffer_size.as_ref(), 16 << 10, 4096, 1 << 20);
    let memory = size(
        findings,
        "bufferMemory",
        dataplane.buffer_memory.as_ref(),
        256 << 20,
        256 * buffer_bytes,
        // Buffers are numbered with 16 bits.
        u64::from(u16::MAX) * buffer_bytes,
    );
    let credit = size(
        findings,
        "connectionBuffer",
        dataplane.connection_buffer.as_ref(),
        64 << 10,
        buffer_bytes,
        16 << 20,
    );
    let client_table = dataplane.client_table.as_ref().map_or(262_144, |at| at.value);
    if let Some(at) = dataplane.client_table.as_ref().filter(|at| at.value < 64) {
        findings.add(at.place, format!("`clientTable` is {}; the least is 64", at.value));
    }
    let metrics = document.admin.metrics.as_ref();
    let metrics = metrics.map_or_else(
        || (IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_METRICS_PORT).into(),
        |at| at.value.0,
    );
    let token = (document.admin.token_file.as_ref(), document.admin.token_credential.as_ref());
    let socket = document.admin.socket.as_deref().unwrap_or(DEFAULT_SOCKET);
    let shutdown = document.shutdown.drain_timeout.as_ref();
    Process {
        workers,
        pin_cpus: dataplane.pin_cpus.unwrap_or(workers.is_none() || !cpus.is_empty()),
        cpus,
        zone: dataplane.zone.as_deref().map(Into::into),
        hash_seed: dataplane.hash_seed.unwrap_or(0),
        listen: dataplane.listen.unwrap_or_default(),
        vip_interface: dataplane.vip.interface.clone(),
        packet: packet(dataplane.packet.as_ref(), base, findings),
        buffer_bytes: buffer_bytes as u32,
        buffers: u16::try_from(memory / buffer_bytes).unwrap_or(u16::MAX),
        credit_bytes: credit as u32,
        max_connections: dataplane.max_connections.as_ref().and_then(|at| at.value.0),
        max_udp_sessions: dataplane.max_udp_sessions.as_ref().and_then(|at| at.value.0),
        client_table,
        disabled: dataplane.uring.disable.clone(),
        state_directory: absolute(base, document.state_directory.as_deref().unwrap_or(STATE)),
        api: api(&document.sources, base, findings),
        admin_socket: absolute(base, socket),
        admin_token: secret(["tokenFile", "tokenCredential"], token, base, findings),
        metrics,
        per_backend: document.metrics.per_backend.unwrap_or_default(),
        log_level: document.log.level.unwrap_or_default(),
        log_format: document.log.format.unwrap_or_default(),
        log_connections: document.log.connections.unwrap_or_default(),
        log_sample_percent: document.log.sample.map_or(1, |at| at.value.0.min(100)),
        log_target: log_target(&document.log, base, findings),
        resolvers: resolvers(document, findings),
        resolver_timeout: findings.time("timeout", document.resolver.timeout.as_ref(), "2s"),
        shutdown_drain: shutdown.map_or(std::time::Duration::from_secs(30), |at| at.value.0),
        hand_over_timeout: findings.time(
            "handOverTimeout",
            document.shutdown.hand_over_timeout.as_ref(),
            "24h",
        ),
    }
}

fn resolvers(document: &Document, findings: &mut Findings<'_>) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for At { place, value } in &document.resolver.servers {
        match &value.host {
            Host::Ip(ip) => servers.push((*ip, value.port.map_or(53, Into::into)).into()),
            Host::Name(name) => {
                findings.add(*place, format!("`{name}`: a DNS server is found by its address"));
            }
        }
    }
    servers
}

fn log_target(log: &LogDoc, base: &Path, findings: &mut Findings<'_>) -> Option<LogTarget> {
    let target = log.to.map(|at| at.value);
    if let Some(at) = log.sample.filter(|at| at.value.0 > 100) {
        findings.add(at.place, format!("`sample` is {}%; it is 0% to 100%", at.value.0));
    }
    if let Some(at) = log.to.filter(|_| log.connections.unwrap_or_default() == ConnectionsDoc::Off)
    {
        findings.add(at.place, "`to` says where connections go, and `connections` is `off`");
    }
    if let Some(at) = log.path.as_ref().filter(|_| target.is_none()) {
        findings.add(at.place, "`path` goes with `to: file`, `journal` or `syslog`");
    }
    if let Some(at) = log.address.filter(|_| target != Some(LogTargetDoc::Syslog)) {
        findings.add(at.place, "`address` goes with `to: syslog`");
    }
    let path =
        |default: &str| absolute(base, log.path.as_ref().map_or(default, |at| at.value.as_str()));
    Some(match (log.to?.value, log.address) {
        (LogTargetDoc::File, _) => {
            if log.path.is_none() {
                findings.add(log.to?.place, "which file? Set `path`");
            }
            LogTarget::File(path("connections.log"))
        }
        (LogTargetDoc::Journal, _) => LogTarget::Journal(path("/run/systemd/journal/socket")),
        (LogTargetDoc::Syslog, None) => LogTarget::Syslog(path("/dev/log")),
        (LogTargetDoc::Syslog, Some(address)) => LogTarget::SyslogUdp(address.value.0),
    })
}

/// `path` as seen from the folder of the document.
pub(crate) fn absolute(base: &Path, path: &str) -> PathBuf {
    base.join(path)
}

/// Where a secret is, by the two fields that may say so.
pub(crate) fn secret(
    [file_name, credential_name]: [&str; 2],
    (file, credential): (Option<&At<String>>, Option<&At<String>>),
    base: &Path,
    findings: &mut Findings<'_>,
) -> Option<Secret> {
    match (file, credential) {
        (Some(_), Some(at)) => {
            findings.add(at.place, format!("`{file_name}` or `{credential_name}`: remove one"));
            None
        }
        (Some(at), None) => Some(Secret::File(absolute(base, &at.value))),
        (None, Some(at)) => {
            if at.value.is_empty() || at.value.contains('/') {
                let words = format!("`{credential_name}` is a name, as in `LoadCredential=`");
                findings.add(at.place, words);
            }
            Some(Secret::Credential(at.value.clone()))
        }
        (None, None) => None,
    }
}

fn size(
    findings: &mut Findings<'_>,
    name: &str,
    written: Option<&At<Size>>,
    default: u64,
    least: u64,
    most: u64,
) -> u64 {
    let Some(At { place, value: Size(bytes) }) = written else {
        return default.max(least);
    };
    if !(least..=most).contains(bytes) {
        let kib = |bytes: u64| bytes >> 10;
        findings.add(
            *place,
            format!("`{name}` is out of range: {}KiB to {}KiB", kib(least), kib(most)),
        );
        return default.max(least);
    }
    *bytes
}
