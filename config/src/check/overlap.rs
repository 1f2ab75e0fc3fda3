//! Two services cannot have one address, port and protocol, wherever they are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairway_core::{IpPrefix, Mode, PortRange, Protocol};

use crate::Problems;
use crate::announce::{Announce, pool_of};
use crate::kubernetes::Pool;
use crate::spec::{Origin, ServiceSpec};

/// Ports on one address by first port, and who has them.
type Taken<'a> = BTreeMap<u16, (PortRange, &'a ServiceSpec, &'a Origin)>;

/// Adds a problem for each frontend that collides with an earlier one, at its port.
pub(crate) fn check_frontends(services: &[(Arc<ServiceSpec>, Origin)], problems: &mut Problems) {
    let mut taken: BTreeMap<(IpPrefix, Protocol), Taken<'_>> = BTreeMap::new();
    for (spec, origin) in services {
        for frontend in &spec.frontends {
            let here = taken.entry((frontend.net, frontend.protocol)).or_default();
            let before = here.range(..=frontend.ports.last()).next_back();
            if let Some((_, (ports, owner, at))) =
                before.filter(|(_, t)| t.0.overlaps(&frontend.ports))
            {
                if owner.key == spec.key {
                    // That its port is there twice has been said.
                    continue;
                }
                let (net, protocol) = (frontend.net, frontend.protocol);
                let file = if Arc::ptr_eq(&at.file, &origin.file) {
                    "line".into()
                } else {
                    format!("{} line", at.file.display())
                };
                let message = format!(
                    "{protocol} {net} port {} is taken by service `{}` (port {ports}, {file} {}); \
                     give one of them another address or port",
                    frontend.ports, owner.key, at.place.line,
                );
                problems.push(&origin.file, origin.place, message);
                continue;
            }
            here.insert(frontend.ports.first(), (frontend.ports, spec, origin));
        }
    }
}

/// Adds a problem for each service of a packet mode that comes from an address which clients dial:
/// replies to it could not be told from requests.
pub(crate) fn check_sources(services: &[(Arc<ServiceSpec>, Origin)], problems: &mut Problems) {
    let packets = || services.iter().filter(|(spec, _)| spec.policy.mode != Mode::Proxy);
    for (spec, origin) in packets() {
        for ip in &spec.policy.source.addresses {
            let dialled = |other: &ServiceSpec| other.frontends.iter().any(|f| f.net.contains(*ip));
            if let Some((other, _)) = packets().find(|(other, _)| dialled(other)) {
                let message = format!(
                    "`source` has {ip}, which clients of service `{}` dial; name another address",
                    other.key
                );
                problems.push(&origin.file, origin.place, message);
                break;
            }
        }
    }
}

/// Adds a problem for each service with an address that two groups of boxes claim: both would answer.
pub(crate) fn check_groups(
    announce: &Announce,
    services: &[(Arc<ServiceSpec>, Origin)],
    pools: &[Pool],
    problems: &mut Problems,
) {
    for (spec, origin) in services {
        for frontend in &spec.frontends {
            let (net, name) = (frontend.net, spec.key.service());
            let pool = pool_of(pools, net);
            let mut groups = announce.groups(net, name, &spec.labels, pool);
            if let (Some(first), Some(second)) = (groups.next(), groups.next()) {
                let message = format!(
                    "groups `{}` and `{}` of `announce.vrrp` both claim {net} of service `{name}`; have \
                     one of them choose others",
                    first.name, second.name,
                );
                problems.push(&origin.file, origin.place, message);
                break;
            }
        }
    }
}
