//! One question to DNS, as this machine would ask it: /etc/hosts first, search domains, A and AAAA
//! side by side.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};

/// Files that say who is asked, and what needs no asking.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// How long an entry of /etc/hosts holds; a change of the file is seen at the next question.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// None when that family could not be asked for.
    pub(super) v4: Option<Vec<IpAddr>>,
    pub(super) v6: Option<Vec<IpAddr>>,
    pub(super) ttl: Duration,
    /// Why one of them is not there.
    pub(super) failing: Option<String>,
}

/// Who is asked.
pub(super) struct Servers {
    /// As configured; empty is as the machine is set up, which may change at any time.
    fixed: Vec<SocketAddr>,
    timeout: Duration,
    made: Mutex<Option<(Stamp, Arc<Machine>)>>,
}

/// When the machine's files were written.
type Stamp = [Option<SystemTime>; SYSTEM_FILES.len()];

/// What the machine's files say.
pub(super) struct Machine {
    resolver: TokioResolver,
    hosts: Hosts,
    search: Vec<Name>,
    /// Names with so many dots are first tried as they are.
    ndots: usize,
}

impl Servers {
    pub(super) fn new(fixed: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self { fixed, timeout, made: Mutex::default() }
    }

    /// What to ask with; read again when the machine's files have changed.
    pub(super) fn current(&self) -> Result<Arc<Machine>, String> {
        let written = |path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let stamp = SYSTEM_FILES.map(written);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, machine)) = &*made
            && *of == stamp
        {
            return Ok(Arc::clone(machine));
        }
        let machine = Arc::new(self.make()?);
        *made = Some((stamp, Arc::clone(&machine)));
        Ok(machine)
    }

    fn make(&self) -> Result<Machine, String> {
        let (config, mut options) = if self.fixed.is_empty() {
            // Without a name server in the file it is the one on this machine (resolv.conf(5)).
            read_system_conf().unwrap_or_else(|_| {
                let local = [IpAddr::from([127, 0, 0, 1])].map(NameServerConfig::udp_and_tcp);
                let config = ResolverConfig::from_name_servers(local.into());
                (config, ResolverOpts::default())
            })
        } else {
            let server = |addr: &SocketAddr| {
                let ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut way| {
                    way.port = addr.port();
                    way
                });
                NameServerConfig::new(addr.ip(), true, ways.into())
            };
            let servers = self.fixed.iter().map(server).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        };
        let domain = config.domain().filter(|_| config.search().is_empty());
        let search = config.search().iter().chain(domain).cloned().collect();
        let ndots = options.ndots;
        // Answers are kept by us, by their TTL; so are /etc/hosts and the search domains.
        options.cache_size = 0;
        options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        options.timeout = self.timeout;
        // In the order in which they are written, as people expect.
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(config, provider)
            .with_options(options)
            .build()
            .map_err(|error| error.to_string())?;
        let hosts = Hosts::from_system().unwrap_or_default();
        Ok(Machine { resolver, hosts, search, ndots })
    }
}

/// What came of one question.
enum Heard {
    Records(Vec<RData>, Duration),
    /// There is nothing of that kind, and perhaps no such name.
    Nothing {
        name_exists: bool,
    },
    Failed(String),
}

impl Machine {
    /// The names that `text` may stand for, in the order in which they are tried.
    pub(super) fn candidates(&self, text: &str) -> Result<Vec<Name>, String> {
        let mut name = Name::from_utf8(text).map_err(|error| error.to_string())?;
        if name.is_fqdn() {
            return Ok(vec![name]);
        }
        // Too long a name with a search domain is none.
        let found = self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok());
        let mut names: Vec<Name> = found.collect();
        let first = text.bytes().filter(|byte| *byte == b'.').count() >= self.ndots;
        name.set_fqdn(true);
        names.insert(if first { 0 } else { names.len() }, name);
        names.iter_mut().for_each(|name| name.set_fqdn(true));
        Ok(names)
    }

    /// The addresses of the first of `names` that has some.
    ///
    /// An error when none has, or when it cannot be known: a later name might belong to others.
    pub(super) async fn addresses(&self, names: &[Name]) -> Result<Addresses, String> {
        if let Some(addresses) = names.iter().find_map(|name| self.of_hosts(name)) {
            return Ok(addresses);
        }
        let mut name_exists = false;
        for name in names {
            let (v4, v6) =
                tokio::join!(self.ask(name, RecordType::A), self.ask(name, RecordType::AAAA));
            let mut addresses = Addresses { v4: None, v6: None, ttl: Duration::MAX, failing: None };
            let mut any = false;
            let sides = [(v4, &mut addresses.v4), (v6, &mut addresses.v6)];
            for (heard, side) in sides {
                match heard {
                    Heard::Records(records, ttl) => {
                        any = true;
                        *side = Some(records.iter().filter_map(RData::ip_addr).collect());
                        addresses.ttl = addresses.ttl.min(ttl);
                    }
                    Heard::Nothing { name_exists: exists } => {
                        name_exists |= exists;
                        *side = Some(Vec::new());
                    }
                    Heard::Failed(why) => addresses.failing = Some(why),
                }
            }
            match (any, &addresses.failing) {
                (true, _) => return Ok(addresses),
                (false, Some(why)) => return Err(why.clone()),
                (false, None) => {}
            }
        }
        Err(nothing(names, "neither A nor AAAA", name_exists))
    }

    /// The SRV records of the first of `names` that has some, and how long they hold.
    pub(super) async fn servers(&self, names: &[Name]) -> Result<(Vec<SRV>, Duration), String> {
        let mut name_exists = false;
        for name in names {
            match self.ask(name, RecordType::SRV).await {
                Heard::Records(records, ttl) => {
                    let server = |data| match data {
                        // The root as a target says that there is no such service.
                        RData::SRV(srv) if !srv.target.is_root() => Some(srv),
                        _ => None,
                    };
                    let servers: Vec<_> = records.into_iter().filter_map(server).collect();
                    if servers.is_empty() {
                        return Err(format!("`{name}` says that there is no such service"));
                    }
                    return Ok((servers, ttl));
                }
                Heard::Nothing { name_exists: exists } => name_exists |= exists,
                Heard::Failed(why) => return Err(why),
            }
        }
        Err(nothing(names, "no SRV", name_exists))
    }

    fn of_hosts(&self, name: &Name) -> Option<Addresses> {
        let find = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let (v4, v6) = (find(RecordType::A), find(RecordType::AAAA));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let [v4, v6] = [v4, v6].map(|found| {
            let records = found.iter().flat_map(|lookup| lookup.answers());
            Some(records.filter_map(|record| record.data.ip_addr()).collect())
        });
        Some(Addresses { v4, v6, ttl: HOSTS_TTL, failing: None })
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Heard {
        let failed = |why: String| Heard::Failed(format!("{kind} of `{name}`: {why}"));
        match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
                let wanted = lookup.answers().iter().filter(|record| record.record_type() == kind);
                let records: Vec<_> = wanted.map(|record| record.data.clone()).collect();
                match records.is_empty() {
                    // A chain of CNAMEs that ends in nothing.
                    true => Heard::Nothing { name_exists: true },
                    false => Heard::Records(records, Duration::from_secs(ttl.into())),
                }
            }
            Err(error) if error.is_nx_domain() => Heard::Nothing { name_exists: false },
            Err(error) if error.is_no_records_found() => Heard::Nothing { name_exists: true },
            Err(NetError::Timeout) => failed("the DNS server does not answer".into()),
            Err(error) => failed(error.to_string()),
        }
    }
}

fn nothing(names: &[Name], records: &str, name_exists: bool) -> String {
    let name = names.first().map(|name| name.to_utf8()).unwrap_or_default();
    let name = name.trim_end_matches('.');
    match name_exists {
        true => format!("`{name}` has {records} records"),
        false => format!("there is no such name as `{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_as_the_machine_would() {
        let servers = Servers::new(vec![([127, 0, 0, 1], 53).into()], Duration::from_secs(1));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let mut machine = servers.make().unwrap();
        let search = ["corp.test.", "test."].map(|name| Name::from_utf8(name).unwrap());
        (machine.search, machine.ndots) = (search.into(), 1);
        for (text, want) in [
            ("db1", &["db1.corp.test.", "db1.test.", "db1."][..]),
            ("web.example", &["web.example.", "web.example.corp.test.", "web.example.test."]),
            ("web.example.", &["web.example."]),
        ] {
            let names = machine.candidates(text).unwrap();
            let names: Vec<_> = names.iter().map(|name| name.to_utf8()).collect();
            assert_eq!(names, want, "{text}");
        }
    }
}
