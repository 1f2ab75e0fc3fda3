//! Backends that are DNS names: what DNS says, put in the place of the names.

use std::collections::HashSet;
use std::sync::Arc;

use fairway_config::{
    BackendSpec, NamedBackends, Priority, Query, ServiceKey, ServiceSpec, Serving,
};
use fairway_core::{BackendAddr, Mode, Weight};

use super::{Answers, Control};
use crate::resolver::{NameAddress, NameEvent};

/// Backends that a pool can hold.
const MOST: usize = u16::MAX as usize;
/// The largest weight of a backend.
const HEAVIEST: u32 = 1000;

/// A name that services use.
#[derive(Default)]
pub(super) struct Named {
    answers: Vec<NameAddress>,
    /// Why the newest question failed; so too before the first answer.
    failing: Option<String>,
    /// Something was heard all the same.
    in_part: bool,
    users: Vec<ServiceKey>,
}

/// `spec` with the addresses that `answers` gives in the place of its names. An address that is
/// written, or comes from a name before, keeps what is said of it there.
pub(super) fn resolved<'a>(
    spec: &Arc<ServiceSpec>,
    answers: impl Fn(&Query) -> &'a [NameAddress],
) -> Arc<ServiceSpec> {
    if spec.named.is_empty() {
        return Arc::clone(spec);
    }
    let mut seen: HashSet<BackendAddr> = spec.backends.iter().map(|spec| spec.addr).collect();
    let mut backends = spec.backends.clone();
    for named in &spec.named {
        let answers = answers(&named.query);
        for answer in answers {
            let backend = backend(named, answer, heaviest(answers, answer));
            if can_serve(spec, &backend) && backends.len() < MOST && seen.insert(backend.addr) {
                backends.push(backend);
            }
        }
    }
    backends.sort_by_key(|backend| (backend.priority, backend.addr));
    Arc::new(ServiceSpec { backends, ..ServiceSpec::clone(spec) })
}

fn backend(named: &NamedBackends, answer: &NameAddress, heaviest: u16) -> BackendSpec {
    let port = answer.service.map(|service| service.port).or(named.port);
    let of_record = answer.service.map_or(0, |service| service.priority);
    BackendSpec {
        addr: BackendAddr::new(answer.ip.to_canonical(), port),
        weight: named.weight.unwrap_or_else(|| {
            answer.service.map_or(Weight::ONE, |service| scaled(service.weight, heaviest))
        }),
        priority: match named.backup {
            true => Priority::Backup(of_record),
            false => Priority::Given(named.priority.unwrap_or(of_record)),
        },
        serving: Serving::Yes,
        name: Some(named.name.clone()),
        zone: named.zone.clone(),
    }
}

/// The largest weight of the servers with the priority of `answer`.
fn heaviest(answers: &[NameAddress], answer: &NameAddress) -> u16 {
    let priority = |answer: &NameAddress| answer.service.map(|service| service.priority);
    let alike = answers.iter().filter(|other| priority(other) == priority(answer));
    alike.filter_map(|other| other.service).map(|service| service.weight).max().unwrap_or(0)
}

/// The weight of an SRV record, 0 to 65535, as one of ours; zero is the least (RFC 2782).
fn scaled(weight: u16, heaviest: u16) -> Weight {
    let (weight, heaviest) = (u32::from(weight), u32::from(heaviest));
    let weight = if heaviest > HEAVIEST { weight * HEAVIEST / heaviest } else { weight };
    Weight::new(weight.max(1)).unwrap_or(Weight::ONE)
}

/// Whether a backend that DNS names can be one of this service.
fn can_serve(spec: &ServiceSpec, backend: &BackendSpec) -> bool {
    let ip = backend.addr.ip();
    let (mode, port) = (spec.policy.mode, backend.addr.port().map(Into::into));
    // A client's own address only reaches backends of its family; with addresses of ours packets
    // change theirs.
    let sources = &spec.policy.source.addresses;
    let crosses = match mode {
        Mode::Proxy => !spec.policy.source.transparent,
        Mode::Nat | Mode::FullNat => sources.iter().any(|own| own.is_ipv4() == ip.is_ipv4()),
        Mode::Dsr => false,
        Mode::Tunnel(_) => true,
    };
    let families = || spec.frontends.iter().all(|f| f.ip().is_ipv4() == ip.is_ipv4());
    // Packets that are not rewritten keep their port.
    let ports = || spec.frontends.iter().all(|f| port.is_none_or(|port| f.ports.contains(port)));
    !ip.is_unspecified()
        && !ip.is_multicast()
        && (crosses || families())
        && (mode.is_two_way() || ports())
}

impl Control {
    /// `spec` with what is known of its names.
    pub(super) fn resolved(&self, spec: &Arc<ServiceSpec>) -> Arc<ServiceSpec> {
        self.resolved_with(spec, &Answers::new())
    }

    /// The same, with what `more` knows of names that nobody follows.
    pub(crate) fn resolved_with(
        &self,
        spec: &Arc<ServiceSpec>,
        more: &Answers,
    ) -> Arc<ServiceSpec> {
        resolved(spec, |query| match self.names.get(query) {
            Some(named) => &named.answers,
            None => more.get(query).map_or(&[], Vec::as_slice),
        })
    }

    /// The names of `services` that nobody follows.
    pub(crate) fn unknown_names<'s>(
        &self,
        services: impl IntoIterator<Item = &'s Arc<ServiceSpec>>,
    ) -> Vec<Query> {
        let all = services.into_iter().flat_map(|spec| &spec.named).map(|named| &named.query);
        let mut unknown: Vec<_> = all.filter(|q| !self.names.contains_key(q)).cloned().collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// Follows the names of a service, beside those that it had. New ones begin with what
    /// `answers` says.
    pub(super) fn follow_names(&mut self, spec: &ServiceSpec, answers: &Answers) {
        for NamedBackends { query, .. } in &spec.named {
            self.resolver.add(query);
            let named = self.names.entry(query.clone()).or_insert_with(|| {
                let answers = answers.get(query).cloned().unwrap_or_default();
                let failing = answers.is_empty().then(|| "it was not resolved yet".to_owned());
                Named { answers, failing, ..Named::default() }
            });
            named.users.push(spec.key.clone());
        }
    }

    /// Ends that for the names that a service had.
    pub(super) fn release_names(&mut self, spec: &ServiceSpec) {
        for NamedBackends { query, .. } in &spec.named {
            if self.resolver.remove(query) {
                self.names.remove(query);
            } else if let Some(named) = self.names.get_mut(query)
                && let Some(place) = named.users.iter().position(|user| *user == spec.key)
            {
                named.users.swap_remove(place);
            }
        }
    }

    pub(super) fn take_names(&mut self, event: NameEvent) {
        let NameEvent { query, answers, failing, in_part } = event;
        // The asking may have ended while this was on its way.
        let Some(named) = self.names.get_mut(&query) else { return };
        let count = answers.len();
        let changed = named.answers != answers;
        named.in_part = in_part;
        match (&named.failing, &failing) {
            (_, Some(why)) => tracing::warn!("{}", trouble(&query, why, in_part, count)),
            (Some(_), None) => tracing::info!("{query} is resolved: {count} addresses"),
            (None, None) if changed => tracing::info!("{query} has changed: {count} addresses"),
            (None, None) => {}
        }
        named.failing = failing;
        named.answers = answers;
        let mut users = if changed { named.users.clone() } else { Vec::new() };
        users.sort_unstable();
        users.dedup();
        for key in users {
            let Some(spec) = self.desired.get(&key).cloned() else { continue };
            self.upsert(&spec);
        }
        self.count_failing();
    }

    pub(super) fn count_failing(&self) {
        let failing = self.names.values().filter(|named| named.failing.is_some()).count();
        metrics::gauge!("fairway_dns_names_failing").set(failing as f64);
    }

    /// Names that cannot be resolved, in words.
    pub(crate) fn name_troubles(&self) -> Vec<String> {
        let trouble = |(query, named): (&Query, &Named)| {
            let why = named.failing.as_ref()?;
            let trouble = trouble(query, why, named.in_part, named.answers.len());
            let mut users: Vec<_> = named.users.iter().map(ToString::to_string).collect();
            users.sort_unstable();
            users.dedup();
            Some(format!("{trouble} (service {})", users.join(", ")))
        };
        let mut troubles: Vec<String> = self.names.iter().filter_map(trouble).collect();
        troubles.sort_unstable();
        troubles
    }
}

/// What is wrong with a name of which `addresses` are known.
fn trouble(query: &Query, why: &str, in_part: bool, addresses: usize) -> String {
    if in_part {
        return format!("{query} is resolved in part: {why}");
    }
    let known = match addresses {
        0 => "no address of it is known".into(),
        1 => "its last known address holds".into(),
        n => format!("its last {n} known addresses hold"),
    };
    format!("{query} cannot be resolved: {why}; {known}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::Server;
    use fairway_config::load_text;
    use std::num::NonZeroU16;
    use std::path::Path;

    fn spec(backends: &str) -> Arc<ServiceSpec> {
        let text = format!(
            "services:\n  - name: web\n    addresses: [192.0.2.1]\n    ports: [{{port: 80}}]\n{backends}"
        );
        let config = load_text(&Path::new("test.yaml").into(), &text).unwrap();
        Arc::clone(config.services.values().next().unwrap())
    }

    fn answer(ip: &str, service: Option<(u16, u16, u16)>) -> NameAddress {
        let service = service.map(|(priority, weight, port)| Server {
            priority,
            weight,
            port: NonZeroU16::new(port).unwrap(),
        });
        NameAddress { ip: ip.parse().unwrap(), service }
    }

    fn listed(spec: &ServiceSpec) -> Vec<String> {
        let backends = spec.backends.iter();
        backends.map(|b| format!("{} {} {:?}", b.addr, b.weight.get(), b.priority)).collect()
    }

    #[test]
    fn names_give_backends_and_written_addresses_come_first() {
        let spec = spec(
            "    backends:\n      - {address: 10.0.0.2, weight: 5}\n      - {address: web.test, weight: 3, zone: a}\n    \
             backupBackends: [\"old.test:81\"]\n",
        );
        let (web, old) = (
            [
                answer("10.0.0.1", None),
                answer("10.0.0.2", None),
                answer("::", None),
                answer("2001:db8::1", None),
            ],
            [answer("10.0.0.1", None)],
        );
        let resolved = resolved(&spec, |query| match query {
            Query::Host(name) if &**name == "web.test" => &web,
            _ => &old,
        });
        assert_eq!(
            listed(&resolved),
            [
                "10.0.0.1:80 3 Given(0)",
                "10.0.0.2:80 5 Given(0)",
                "[2001:db8::1]:80 3 Given(0)",
                "10.0.0.1:81 1 Backup(0)",
            ]
        );
        assert_eq!(resolved.backends[0].name.as_deref(), Some("web.test"));
        assert_eq!(resolved.backends[0].zone.as_deref(), Some("a"));
        assert_eq!(resolved.backends[1].name, None);
    }

    #[test]
    fn srv_records_say_port_weight_and_priority() {
        let records = [
            answer("10.0.0.1", Some((10, 60_000, 8080))),
            answer("10.0.0.2", Some((10, 30_000, 8081))),
            answer("10.0.0.3", Some((20, 0, 8082))),
            answer("10.0.0.4", Some((20, 300, 8083))),
        ];
        let taken = |fields: &str| {
            let spec = spec(&format!("    backends: [{{srv: _http._tcp.test{fields}}}]\n"));
            listed(&resolved(&spec, |_| &records))
        };
        assert_eq!(
            taken(""),
            [
                "10.0.0.1:8080 1000 Given(10)",
                "10.0.0.2:8081 500 Given(10)",
                "10.0.0.3:8082 1 Given(20)",
                "10.0.0.4:8083 300 Given(20)",
            ]
        );
        let set = taken(", weight: 2, priority: 0");
        assert!(set.iter().all(|backend| backend.ends_with(" 2 Given(0)")), "{set:?}");
    }

    #[test]
    fn a_transparent_source_takes_addresses_of_its_family() {
        let spec = spec("    backends: [web.test]\n    source: transparent\n");
        let answers = [answer("2001:db8::1", None), answer("10.0.0.1", None)];
        assert_eq!(listed(&resolved(&spec, |_| &answers)), ["10.0.0.1:80 1 Given(0)"]);
    }
}
