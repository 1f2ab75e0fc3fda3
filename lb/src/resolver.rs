//! Asks DNS for the addresses of backends that are names, again and again: a task for each name.
//!
//! What failed leaves the last answer in force, by family and by SRV target: a dead DNS server, or
//! a zone that was emptied by mistake, takes no backend away. Health checks do that.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fairway_config::Query;
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Bounds of the time from one answer to the next question, whatever its TTL.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(300);
/// Longest time from a failure to the next question; the first is [`SOONEST`], and it doubles.
const LATEST_RETRY: Duration = Duration::from_secs(30);
/// Names that are asked for at once.
const AT_ONCE: usize = 64;
/// Files that say who is asked, and what needs no asking.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// One address behind a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) ip: IpAddr,
    /// What an SRV record says.
    pub(crate) service: Option<Server>,
}

/// Port, weight and priority of an SRV record (RFC 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Server {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) port: NonZeroU16,
}

/// What is known of a name now, if that is news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameEvent {
    pub(crate) query: Query,
    /// In order, each once.
    pub(crate) answers: Vec<Answer>,
    /// Why the newest question was not answered, or not in full.
    pub(crate) failing: Option<String>,
}

/// The names that are asked for.
pub(crate) struct Resolver {
    runtime: Handle,
    running: HashMap<Query, (AbortHandle, usize)>,
    tools: Arc<Tools>,
}

struct Tools {
    servers: Servers,
    at_once: Semaphore,
    report: Box<dyn Fn(NameEvent) + Send + Sync>,
}

impl Resolver {
    /// Asks `servers`, or those of this machine when there are none; news go to `report`, which
    /// must not block.
    pub(crate) fn new(
        runtime: Handle,
        servers: Vec<SocketAddr>,
        timeout: Duration,
        report: impl Fn(NameEvent) + Send + Sync + 'static,
    ) -> Self {
        let servers = Servers { fixed: servers, timeout, made: Mutex::default() };
        let at_once = Semaphore::new(AT_ONCE);
        let tools = Arc::new(Tools { servers, at_once, report: Box::new(report) });
        Self { runtime, running: HashMap::new(), tools }
    }

    /// Adds a user of `query`; the first one starts asking.
    pub(crate) fn add(&mut self, query: &Query) {
        if let Some((_, users)) = self.running.get_mut(query) {
            *users += 1;
            return;
        }
        let task = self.runtime.spawn(follow(query.clone(), Arc::clone(&self.tools)));
        self.running.insert(query.clone(), (task.abort_handle(), 1));
    }

    /// Takes a user of `query` away; true when it was the last one, which ends the asking.
    pub(crate) fn remove(&mut self, query: &Query) -> bool {
        let Some((abort, users)) = self.running.get_mut(query) else { return false };
        *users -= 1;
        let last = *users == 0;
        if last {
            abort.abort();
            self.running.remove(query);
        }
        last
    }
}

async fn follow(query: Query, tools: Arc<Tools>) {
    let mut memory = Memory::default();
    let mut told = None;
    let mut retry = SOONEST;
    loop {
        let found = {
            // The semaphore is never closed.
            let _permit = tools.at_once.acquire().await;
            memory.ask(&query, &tools.servers).await
        };
        let result = if found.failing.is_some() { "failure" } else { "success" };
        metrics::counter!("fairway_dns_lookups_total", "result" => result).increment(1);
        let wait = if found.failing.is_some() {
            let next = (retry * 2).min(LATEST_RETRY);
            std::mem::replace(&mut retry, next)
        } else {
            retry = SOONEST;
            found.ttl.clamp(SOONEST, LATEST)
        };
        let news =
            NameEvent { query: query.clone(), answers: found.answers, failing: found.failing };
        if told.as_ref() != Some(&news) {
            (tools.report)(news.clone());
            told = Some(news);
        }
        tokio::time::sleep(wait).await;
    }
}

/// What came of one question, with everything that is remembered.
struct Found {
    answers: Vec<Answer>,
    failing: Option<String>,
    ttl: Duration,
}

/// The last good answers to the questions behind one name.
#[derive(Default)]
struct Memory {
    servers: Vec<SRV>,
    hosts: HashMap<Name, Addresses>,
}

#[derive(Default)]
struct Addresses {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl Memory {
    async fn ask(&mut self, query: &Query, servers: &Servers) -> Found {
        let (Query::Host(text) | Query::Srv(text)) = query;
        let mut found = Found { answers: Vec::new(), failing: None, ttl: Duration::MAX };
        let resolver = servers.current();
        let known = match (&resolver, Name::from_utf8(text)) {
            (Ok(resolver), Ok(name)) => Ok((resolver, name)),
            (Err(error), _) => Err(error.clone()),
            (_, Err(error)) => Err(error.to_string()),
        };
        // Without anybody to ask, memory alone answers.
        let (resolver, name) = match known {
            Ok((resolver, name)) => (Some(resolver), name),
            Err(error) => {
                found.failing = Some(error);
                (None, Name::root())
            }
        };
        match query {
            Query::Host(_) => {
                let ips = self.host(resolver, name, &mut found).await;
                found.answers.extend(ips.into_iter().map(|ip| Answer { ip, service: None }));
            }
            Query::Srv(_) => self.service(resolver, name, &mut found).await,
        }
        found.answers.sort_unstable();
        found.answers.dedup();
        if found.answers.is_empty() && found.failing.is_none() {
            found.failing = Some("it has no addresses".into());
        }
        found
    }

    async fn service(&mut self, resolver: Option<&TokioResolver>, name: Name, found: &mut Found) {
        if let Some(resolver) = resolver {
            match records(resolver, name, RecordType::SRV).await {
                Ok((records, ttl)) => {
                    let server = |data| match data {
                        // The root as a target says that there is no such service.
                        RData::SRV(srv) if !srv.target.is_root() => Some(srv),
                        _ => None,
                    };
                    self.servers = records.into_iter().filter_map(server).collect();
                    found.ttl = found.ttl.min(ttl);
                    let targets: Vec<_> = self.servers.iter().map(|s| s.target.clone()).collect();
                    self.hosts.retain(|name, _| targets.contains(name));
                }
                Err(error) => found.failing = Some(error),
            }
        }
        for srv in self.servers.clone() {
            let Some(port) = NonZeroU16::new(srv.port) else { continue };
            let service = Some(Server { priority: srv.priority, weight: srv.weight, port });
            let ips = self.host(resolver, srv.target, found).await;
            found.answers.extend(ips.into_iter().map(|ip| Answer { ip, service }));
        }
    }

    /// The addresses of `name`: of each family what is heard now, or else what was heard last.
    async fn host(
        &mut self,
        resolver: Option<&TokioResolver>,
        name: Name,
        found: &mut Found,
    ) -> Vec<IpAddr> {
        let known = self.hosts.entry(name.clone()).or_default();
        if let Some(resolver) = resolver {
            let (v4, v6) = tokio::join!(
                records(resolver, name.clone(), RecordType::A),
                records(resolver, name.clone(), RecordType::AAAA),
            );
            let nothing = |answer: &Result<(Vec<RData>, Duration), String>| {
                answer.as_ref().is_ok_and(|(records, _)| records.is_empty())
            };
            if nothing(&v4) && nothing(&v6) {
                found.failing = Some(format!("`{name}` has neither A nor AAAA records"));
            } else {
                for (answer, kept) in [(v4, &mut known.v4), (v6, &mut known.v6)] {
                    match answer {
                        Ok((records, ttl)) => {
                            *kept = records.iter().filter_map(RData::ip_addr).collect();
                            found.ttl = found.ttl.min(ttl);
                        }
                        Err(error) => found.failing = Some(error),
                    }
                }
            }
        }
        known.v4.iter().chain(&known.v6).copied().collect()
    }
}

/// The records of one kind, and how long they hold; none is an answer as well.
async fn records(
    resolver: &TokioResolver,
    name: Name,
    kind: RecordType,
) -> Result<(Vec<RData>, Duration), String> {
    let heard = |lookup: &Lookup| {
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
        let wanted = lookup.answers().iter().filter(|record| record.record_type() == kind);
        let data = wanted.map(|record| record.data.clone()).collect();
        (data, Duration::from_secs(ttl.into()))
    };
    let failed = |why: String| Err(format!("{kind} of `{name}`: {why}"));
    match resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => Ok(heard(&lookup)),
        Err(error) if error.is_nx_domain() => failed("there is no such name".into()),
        Err(error) if error.is_no_records_found() => Ok((Vec::new(), Duration::MAX)),
        Err(NetError::Timeout) => failed("the DNS server does not answer".into()),
        Err(error) => failed(error.to_string()),
    }
}

/// Who is asked.
struct Servers {
    /// As configured; empty is as the machine is set up, which may change at any time.
    fixed: Vec<SocketAddr>,
    timeout: Duration,
    made: Mutex<Option<(Stamp, TokioResolver)>>,
}

/// When the machine's files were written.
type Stamp = [Option<SystemTime>; SYSTEM_FILES.len()];

impl Servers {
    fn current(&self) -> Result<TokioResolver, String> {
        let written = |path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let stamp = SYSTEM_FILES.map(written);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, resolver)) = &*made
            && *of == stamp
        {
            return Ok(resolver.clone());
        }
        let resolver = self.make()?;
        *made = Some((stamp, resolver.clone()));
        Ok(resolver)
    }

    fn make(&self) -> Result<TokioResolver, String> {
        let provider = TokioRuntimeProvider::default();
        let builder = if self.fixed.is_empty() {
            TokioResolver::builder(provider)
                .map_err(|error| format!("{}: {error}", SYSTEM_FILES[0]))?
        } else {
            let mut config = ResolverConfig::default();
            for server in &self.fixed {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                let connections = connections.map(|mut way| {
                    way.port = server.port();
                    way
                });
                config.add_name_server(NameServerConfig::new(
                    server.ip(),
                    true,
                    connections.into(),
                ));
            }
            TokioResolver::builder_with_config(config, provider)
        };
        let mut builder = builder;
        let options: &mut ResolverOpts = builder.options_mut();
        // Answers are kept here, by their TTL.
        options.cache_size = 0;
        options.timeout = self.timeout;
        // In the order in which they are written, as people expect.
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        builder.build().map_err(|error| error.to_string())
    }
}
