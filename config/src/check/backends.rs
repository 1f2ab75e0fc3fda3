//! The backends of a service: addresses, and names that stand for some.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use fairway_core::{BackendAddr, Weight};

use super::Findings;
use crate::Place;
use crate::document::{BackendDoc, PortDoc, ServiceDoc, TargetDoc};
use crate::spec::{BackendSpec, NamedBackends, Priority, Query, Serving};
use crate::values::{At, Endpoint, Host, dns_name};

/// Backends of a service: as many as a table can name.
const MOST: usize = u16::MAX as usize;

/// The address of a backend that is no name.
pub(super) fn literal(doc: &BackendDoc) -> Option<IpAddr> {
    match &doc.target {
        TargetDoc::Endpoint(At { value: Endpoint { host: Host::Ip(ip), .. }, .. }) => Some(*ip),
        _ => None,
    }
}

/// The port that is written at a backend.
pub(super) fn own_port(doc: &BackendDoc) -> Option<u16> {
    let inside = match &doc.target {
        TargetDoc::Endpoint(at) => at.value.port.map(NonZeroU16::get),
        TargetDoc::Srv(_) => None,
    };
    inside.or(doc.port.map(|at| at.value))
}

/// The backends behind `port` of a service.
pub(super) fn read(
    doc: &ServiceDoc,
    port: &PortDoc,
    findings: &mut Findings<'_>,
) -> (Vec<BackendSpec>, Vec<NamedBackends>) {
    for (name, list) in [("backends", &doc.backends), ("backupBackends", &doc.backup_backends)] {
        if let Some(one_more) = list.get(MOST) {
            let message = format!("`{name}` has {}; a pool holds at most {MOST}", list.len());
            findings.add(one_more.place, message);
        }
    }
    let mut reader = Reader {
        port,
        sole: doc.ports.value.len() == 1,
        seen: HashMap::new(),
        asked: HashMap::new(),
        specs: Vec::with_capacity(doc.backends.len() + doc.backup_backends.len()),
        named: Vec::new(),
    };
    for (list, backup) in [(&doc.backends, false), (&doc.backup_backends, true)] {
        for backend in list {
            reader.read(backend, backup, findings);
        }
    }
    reader.specs.sort_by_key(|spec| (spec.priority, spec.addr));
    (reader.specs, reader.named)
}

struct Reader<'d> {
    port: &'d PortDoc,
    /// The service has no other port.
    sole: bool,
    /// Lines of addresses.
    seen: HashMap<BackendAddr, u32>,
    /// Lines of names.
    asked: HashMap<(Query, Option<NonZeroU16>), u32>,
    specs: Vec<BackendSpec>,
    named: Vec<NamedBackends>,
}

impl Reader<'_> {
    fn read(&mut self, at: &At<BackendDoc>, backup: bool, findings: &mut Findings<'_>) {
        let At { place, value: doc } = at;
        let Some(own) = self.own_port(*place, doc, findings) else { return };
        let weight = doc.weight.map(|At { place, value }| {
            Weight::new(value).unwrap_or_else(|error| {
                let drain = if value == 0 { "; to take it out, use `fairway drain`" } else { "" };
                findings.add(place, format!("{error}{drain}"));
                Weight::ONE
            })
        });
        if let Some(at) = doc.priority.filter(|_| backup) {
            findings.add(at.place, "`backupBackends` are the last priority; remove `priority`");
        }
        let priority = doc.priority.map(|at| at.value);
        let name = doc.name.as_deref().map(Box::from);
        let zone = doc.zone.as_deref().map(Box::from);
        let query = match &doc.target {
            TargetDoc::Endpoint(At { value: Endpoint { host: Host::Ip(ip), .. }, .. }) => {
                let ip = ip.to_canonical();
                if ip.is_unspecified() || ip.is_multicast() {
                    let message = format!("`{ip}` cannot be dialled; name the backend's address");
                    return findings.add(*place, message);
                }
                let addr = BackendAddr::new(ip, own.or_else(|| self.target_port()));
                if let Some(line) = self.seen.insert(addr, place.line) {
                    return findings.add(
                        *place,
                        format!("backend {addr} is listed twice (first on line {line}); remove one, or sum the weights"),
                    );
                }
                let priority = match backup {
                    true => Priority::Backup(0),
                    false => Priority::Given(priority.unwrap_or(0)),
                };
                let weight = weight.unwrap_or(Weight::ONE);
                let serving = Serving::Yes;
                self.specs.push(BackendSpec { addr, weight, priority, serving, name, zone });
                return;
            }
            TargetDoc::Endpoint(At { value: Endpoint { host: Host::Name(name), .. }, .. }) => {
                Query::Host(name.clone())
            }
            TargetDoc::Srv(At { place, value: name }) => match dns_name(name) {
                Some(name) => Query::Srv(name),
                None => {
                    let message = format!("`{name}` is no name, like _http._tcp.example.com");
                    return findings.add(*place, message);
                }
            },
        };
        let port = match &query {
            Query::Host(_) => own.or_else(|| self.target_port()),
            Query::Srv(_) => None,
        };
        if let Some(line) = self.asked.insert((query.clone(), port), place.line) {
            let message = format!("{query} is listed twice (first on line {line}); remove one");
            return findings.add(*place, message);
        }
        let (Query::Host(dns) | Query::Srv(dns)) = &query;
        let name = name.unwrap_or_else(|| dns.clone());
        self.named.push(NamedBackends { query, port, weight, priority, backup, name, zone });
    }

    /// The port that is written at the backend itself, if any; none after a finding.
    fn own_port(
        &self,
        place: Place,
        doc: &BackendDoc,
        findings: &mut Findings<'_>,
    ) -> Option<Option<NonZeroU16>> {
        let inside = match &doc.target {
            TargetDoc::Endpoint(at) => at.value.port,
            TargetDoc::Srv(_) => None,
        };
        let own = match (inside, doc.port) {
            (Some(_), Some(port)) => {
                findings.add(port.place, "the port is in `address` already; remove one");
                return None;
            }
            (None, Some(port)) if matches!(doc.target, TargetDoc::Srv(_)) => {
                findings
                    .add(port.place, "SRV records say the port; remove `port`, or use `address`");
                return None;
            }
            (Some(port), None) => Some(port),
            (None, Some(At { place, value })) => {
                let port = NonZeroU16::new(value);
                if port.is_none() {
                    findings.add(place, "`port` is 0; ports are 1 to 65535");
                }
                port
            }
            (None, None) => None,
        };
        let says_ports = own.is_some() || matches!(doc.target, TargetDoc::Srv(_));
        if says_ports && !self.sole {
            findings.add(
                place,
                "a backend's own port is only clear when the service has one port; use `targetPort`",
            );
            return None;
        }
        Some(own)
    }

    /// The port of backends that have none of their own; none is the one that was dialled.
    fn target_port(&self) -> Option<NonZeroU16> {
        let target = self.port.target_port.as_ref().and_then(|at| NonZeroU16::new(at.value));
        let ports = self.port.port.value.0;
        let same = || (ports.len() == 1).then(|| NonZeroU16::new(ports.first())).flatten();
        target.or_else(same)
    }
}
