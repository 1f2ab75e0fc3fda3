//! Asks DNS for the addresses of backends that are names, again and again: a task for each name.
//!
//! What failed leaves the last answer in force, by family and by SRV target: a dead DNS server, or
//! a zone that was emptied by mistake, takes no backend away. Health checks do that.

mod lookup;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use fairway_config::Query;
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::SRV;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use self::lookup::{Addresses, Machine, Servers};

/// Bounds of the time from one answer to the next question, whatever its TTL.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(300);
/// Longest time from a failure to the next question; the first is [`SOONEST`], and it doubles.
const LATEST_RETRY: Duration = Duration::from_secs(30);
/// How long a configuration waits for the names that it brings.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Names that are asked for at once.
const AT_ONCE: usize = 64;

/// One address behind a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameAddress {
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
    pub(crate) answers: Vec<NameAddress>,
    /// Why the newest question was not answered, or not in full.
    pub(crate) failing: Option<String>,
    /// Something was heard all the same.
    pub(crate) in_part: bool,
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
        let servers = Servers::new(servers, timeout);
        let at_once = Semaphore::new(AT_ONCE);
        let tools = Arc::new(Tools { servers, at_once, report: Box::new(report) });
        Self { runtime, running: HashMap::new(), tools }
    }

    /// One who asks the same servers.
    pub(crate) fn asker(&self) -> Asker {
        Asker(Arc::clone(&self.tools))
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

    /// Asks for nothing more: another process does.
    pub(crate) fn stop(&mut self) {
        self.running.drain().for_each(|(_, (abort, _))| abort.abort());
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

/// Asks once, for those who want to know before they follow.
#[derive(Clone)]
pub(crate) struct Asker(Arc<Tools>);

impl Asker {
    /// What DNS says now of each of `queries`, asked side by side; those that are not answered
    /// within `limit` are left out.
    pub(crate) async fn ask(
        &self,
        queries: Vec<Query>,
        limit: Duration,
    ) -> HashMap<Query, Vec<NameAddress>> {
        let mut questions = JoinSet::new();
        for query in queries {
            let tools = Arc::clone(&self.0);
            questions.spawn(timeout(limit, async move {
                // The semaphore is never closed.
                let _permit = tools.at_once.acquire().await;
                let found = Memory::default().ask(&query, &tools.servers).await;
                (query, found.answers)
            }));
        }
        let answered = questions.join_all().await.into_iter().filter_map(Result::ok);
        answered.filter(|(_, answers)| !answers.is_empty()).collect()
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
        let by_ttl = found.ttl.clamp(SOONEST, LATEST);
        let wait = if found.failing.is_some() {
            let next = (retry * 2).min(LATEST_RETRY);
            // What was heard of the rest is to be heard again in time, too.
            std::mem::replace(&mut retry, next).min(by_ttl)
        } else {
            retry = SOONEST;
            by_ttl
        };
        let news = NameEvent {
            query: query.clone(),
            answers: found.answers,
            failing: found.failing,
            in_part: found.ttl < Duration::MAX,
        };
        if told.as_ref() != Some(&news) {
            (tools.report)(news.clone());
            told = Some(news);
        }
        tokio::time::sleep(wait).await;
    }
}

/// What came of one question, with everything that is remembered.
#[derive(Debug)]
struct Found {
    answers: Vec<NameAddress>,
    failing: Option<String>,
    ttl: Duration,
}

/// The last good answers to the questions behind one name.
#[derive(Default)]
struct Memory {
    servers: Vec<SRV>,
    hosts: HashMap<Box<str>, Known>,
    answers: Vec<NameAddress>,
}

/// The last addresses of a name, by family.
#[derive(Default)]
struct Known {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl Memory {
    async fn ask(&mut self, query: &Query, servers: &Servers) -> Found {
        let mut found = Found { answers: Vec::new(), failing: None, ttl: Duration::MAX };
        match servers.current() {
            Ok(machine) => self.answer(query, &machine, &mut found).await,
            Err(error) => found.failing = Some(error),
        }
        found.answers.sort_unstable();
        found.answers.dedup();
        // Whatever it says, an answer without addresses takes none away.
        if found.answers.is_empty() {
            found.failing.get_or_insert_with(|| "it has no addresses".into());
            found.answers.clone_from(&self.answers);
        }
        self.answers.clone_from(&found.answers);
        found
    }

    async fn answer(&mut self, query: &Query, machine: &Arc<Machine>, found: &mut Found) {
        let (Query::Host(text) | Query::Srv(text)) = query;
        let names = match machine.candidates(text) {
            Ok(names) => names,
            Err(error) => return found.failing = Some(error),
        };
        match query {
            Query::Host(_) => {
                let heard = machine.addresses(&names).await;
                let ips = self.remember(text, heard, found);
                found.answers.extend(ips.into_iter().map(|ip| NameAddress { ip, service: None }));
            }
            Query::Srv(_) => {
                match machine.servers(&names).await {
                    Ok((servers, ttl)) => {
                        self.servers = servers;
                        found.ttl = found.ttl.min(ttl);
                    }
                    Err(error) => found.failing = Some(error),
                }
                self.service(machine, found).await;
            }
        }
    }

    /// Asks for the addresses of every server, side by side.
    async fn service(&mut self, machine: &Arc<Machine>, found: &mut Found) {
        let mut targets: Vec<Name> = self.servers.iter().map(|srv| srv.target.clone()).collect();
        targets.sort_unstable();
        targets.dedup();
        self.hosts.retain(|known, _| targets.iter().any(|name| *name.to_utf8() == **known));
        let mut questions = JoinSet::new();
        for mut name in targets {
            let machine = Arc::clone(machine);
            let text: Box<str> = name.to_utf8().into();
            name.set_fqdn(true);
            questions.spawn(async move { (text, machine.addresses(&[name]).await) });
        }
        let mut addresses: HashMap<Box<str>, Vec<IpAddr>> = HashMap::new();
        while let Some(question) = questions.join_next().await {
            // They neither panic nor are they aborted.
            let Ok((text, heard)) = question else { continue };
            let ips = self.remember(&text, heard, found);
            addresses.insert(text, ips);
        }
        for srv in &self.servers {
            let Some(port) = NonZeroU16::new(srv.port) else { continue };
            let service = Some(Server { priority: srv.priority, weight: srv.weight, port });
            let ips = addresses.get(&*srv.target.to_utf8()).into_iter().flatten();
            found.answers.extend(ips.map(|ip| NameAddress { ip: *ip, service }));
        }
    }

    /// The addresses of `name`: of each family what was heard now, or else what was heard last.
    fn remember(
        &mut self,
        name: &str,
        heard: Result<Addresses, String>,
        found: &mut Found,
    ) -> Vec<IpAddr> {
        let known = self.hosts.entry(name.into()).or_default();
        match heard {
            Ok(heard) => {
                found.ttl = found.ttl.min(heard.ttl);
                if let Some(why) = heard.failing {
                    found.failing = Some(why);
                }
                known.v4 = heard.v4.unwrap_or_else(|| std::mem::take(&mut known.v4));
                known.v6 = heard.v6.unwrap_or_else(|| std::mem::take(&mut known.v6));
            }
            Err(why) => found.failing = Some(why),
        }
        known.v4.iter().chain(&known.v6).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(v4: Option<&[&str]>, v6: Option<&[&str]>) -> Result<Addresses, String> {
        let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let failing = (v4.is_none() || v6.is_none()).then(|| "no answer".to_owned());
        let ttl = Duration::from_secs(5);
        Ok(Addresses { v4: v4.map(parse), v6: v6.map(parse), ttl, failing })
    }

    #[test]
    fn what_fails_leaves_its_family_as_it_was() {
        let mut memory = Memory::default();
        let mut ask = |heard| {
            let mut found = Found { answers: Vec::new(), failing: None, ttl: Duration::MAX };
            let ips = memory.remember("web.test", heard, &mut found);
            let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
            (ips.join(" "), found.failing.is_some())
        };
        let both = "10.0.0.1 2001:db8::1";
        assert_eq!(ask(heard(Some(&["10.0.0.1"]), Some(&["2001:db8::1"]))), (both.into(), false));
        assert_eq!(ask(heard(Some(&["10.0.0.2"]), None)), ("10.0.0.2 2001:db8::1".into(), true));
        assert_eq!(ask(Err("no such name".into())), ("10.0.0.2 2001:db8::1".into(), true));
        assert_eq!(ask(heard(Some(&["10.0.0.2"]), Some(&[]))), ("10.0.0.2".into(), false));
    }
}
