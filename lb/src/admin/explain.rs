//! Why a flow goes where it goes: from the live snapshot, as the workers would decide.

use std::net::SocketAddr;

use fairway_core::{FlowKey, Pool, Protocol, Scheduler, Service, Snapshot, VipAddr};
use fairway_uring::Shared;
use serde::{Deserialize, Serialize};

use super::views::BackendView;

/// A flow that somebody asks about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    client: String,
    vip: String,
    #[serde(default)]
    protocol: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub(crate) service: String,
    pub(crate) generation: u64,
    pub(crate) scheduler: String,
    /// Whether the lists of the service let the client in, and why.
    pub(crate) allowed: bool,
    pub(crate) lists: String,
    /// Flow hash, in hexadecimal.
    pub(crate) hash: String,
    /// Slots of the table; 0 where there is none.
    pub(crate) table_slots: usize,
    /// Slots that the flow looks at, in order, up to the one that takes it.
    pub(crate) slots: Vec<SlotView>,
    /// Backend that affinity remembers for this client.
    pub(crate) affinity: Option<String>,
    /// Backends in the order in which the connection and its retries would try them.
    pub(crate) candidates: Vec<CandidateView>,
    /// Backends that would not be tried.
    pub(crate) passed_over: Vec<PassedOver>,
    /// What an answer from here cannot say.
    pub(crate) note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlotView {
    pub(crate) slot: u64,
    pub(crate) backend: String,
    pub(crate) taken: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CandidateView {
    pub(crate) backend: String,
    /// 0 serves first, each other when those before it cannot.
    pub(crate) group: usize,
    pub(crate) active: u32,
    pub(crate) state: String,
    pub(crate) why: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PassedOver {
    pub(crate) backend: String,
    pub(crate) state: String,
    pub(crate) why: Option<String>,
}

/// Explains a flow by `snapshot`; an error says that nobody serves it.
pub(crate) fn explain_flow(
    snapshot: &Snapshot,
    shared: &Shared,
    question: &Question,
) -> Result<Explanation, String> {
    let protocol = match question.protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("sctp") => Protocol::Sctp,
        Some(other) => return Err(format!("`{other}` is none of tcp, udp and sctp")),
    };
    let addr = |what: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            format!("`{text}` is no {what}: write an address and a port, like 203.0.113.7:4711")
        })
    };
    let client = addr("client", &question.client)?;
    let vip = addr("service address", &question.vip)?;
    let service = snapshot
        .lookup(VipAddr(vip), protocol)
        .ok_or_else(|| format!("no service has {vip}/{protocol}; `fairway services` lists them"))?;
    let policy = &service.policy;
    let hash = FlowKey { source: client, destination: vip, protocol }
        .hash(&policy.hash, shared.settings.hash_seed);
    let (allowed, lists) = lists(service, client);
    let affinity = policy.affinity.and_then(|affinity| {
        let now = shared.clock.now();
        let id = shared.clients.affinity.find(service.id, client.ip(), affinity.timeout, now)?;
        let known = service.backends().find(|(member, _)| member.backend.id == id)?;
        Some(known.0.backend.addr.to_string())
    });
    let candidates: Vec<CandidateView> = service
        .candidates(hash)
        .iter()
        .map(|pick| CandidateView {
            backend: pick.backend.addr.to_string(),
            group: pick.group,
            active: pick.backend.active(),
            state: String::new(),
            why: None,
        })
        .collect();
    let tried = |addr: &str| candidates.iter().any(|candidate| candidate.backend == addr);
    let passed_over = service
        .backends()
        .map(|(member, _)| member.backend.addr.to_string())
        .filter(|addr| !tried(addr))
        .map(|backend| PassedOver { backend, state: String::new(), why: None })
        .collect();
    let (scheduler, note) = described(&policy.scheduler);
    let passed_on = candidates.first().and_then(|first| passed_on(service, first.group));
    let note = match (passed_on, note) {
        (Some(a), Some(b)) => Some(format!("{a}; {b}")),
        (passed_on, note) => passed_on.or_else(|| note.map(Into::into)),
    };
    Ok(Explanation {
        service: service.name.to_string(),
        generation: snapshot.generation,
        scheduler: scheduler.into(),
        allowed,
        lists,
        hash: format!("{hash:016x}"),
        table_slots: pool_of(service, candidates.first()).map_or(0, Pool::table_len),
        slots: slots(service, hash, candidates.first()),
        affinity,
        candidates,
        passed_over,
        note,
    })
}

/// Why a flow goes to the backups of number `group`, in words.
fn passed_on(service: &Service, group: usize) -> Option<String> {
    let first = service.groups.first().filter(|_| group > 0)?;
    if first.admission.admitted() == 0 {
        return Some("no backend of the first priority takes connections".into());
    }
    let percent = (first.share.part() * 100.0).round();
    Some(match percent < 100.0 {
        true => format!(
            "the first priority has too few backends: it takes {percent}% of the flows, and this \
             one is of the others"
        ),
        false => "every backend of the first priority is at its limit".into(),
    })
}

fn lists(service: &Service, client: SocketAddr) -> (bool, String) {
    let policy = &service.policy;
    if policy.deny.contains(client.ip()) {
        (false, "in `denySourceRanges`".into())
    } else if policy.allow.is_empty() {
        (true, "no list keeps it out".into())
    } else if policy.allow.contains(client.ip()) {
        (true, "in `loadBalancerSourceRanges`".into())
    } else {
        (false, "not in `loadBalancerSourceRanges`".into())
    }
}

/// The pool of the backend that takes the flow; the first one when nobody does.
fn pool_of<'s>(service: &'s Service, first: Option<&CandidateView>) -> Option<&'s Pool> {
    let group = service.groups.get(first.map_or(0, |first| first.group))?;
    Some(&group.pool)
}

/// The slots up to the one that takes the flow; all that are looked at when none does.
fn slots(service: &Service, hash: u64, first: Option<&CandidateView>) -> Vec<SlotView> {
    let mut views = Vec::new();
    let Some(pool) = pool_of(service, first) else { return views };
    for (slot, owner) in service.slots(hash, first.map_or(0, |first| first.group)) {
        let backend = pool.members()[usize::from(owner)].backend.addr.to_string();
        let taken = first.is_some_and(|first| first.backend == backend);
        views.push(SlotView { slot, backend, taken });
        if taken {
            break;
        }
    }
    views
}

fn described(scheduler: &Scheduler) -> (&'static str, Option<&'static str>) {
    let turns = Some("each worker has its own round: the order is that of one of its turns");
    let loads = Some("loads change by the moment: the order is that of now");
    match scheduler {
        Scheduler::Maglev { bounded_load_percent: None, .. } => ("maglev", None),
        Scheduler::Maglev { .. } => ("maglev with bounded load", loads),
        Scheduler::RoundRobin => ("roundRobin", turns),
        Scheduler::Random => ("random", Some("each connection draws anew: the order is one draw")),
        Scheduler::PowerOfTwo => {
            ("powerOfTwo", Some("each connection draws anew, and loads change"))
        }
        Scheduler::LeastConnections => ("leastConnections", loads),
        Scheduler::ShortestExpectedDelay => ("shortestExpectedDelay", loads),
        Scheduler::NeverQueue => ("neverQueue", loads),
    }
}

impl Explanation {
    /// Adds how each backend stands, and why.
    pub(crate) fn say_why(&mut self, views: &[BackendView]) {
        let of = |addr: &str| views.iter().find(|view| view.address == addr);
        for candidate in &mut self.candidates {
            if let Some(view) = of(&candidate.backend) {
                candidate.state.clone_from(&view.state);
                candidate.why.clone_from(&view.cause);
            }
        }
        for passed in &mut self.passed_over {
            let Some(view) = of(&passed.backend) else { continue };
            passed.state.clone_from(&view.state);
            let full = || format!("at its limit with {} connections", view.active);
            let at_limit = matches!(&*view.state, "up" | "starting");
            passed.why = view.cause.clone().or_else(|| at_limit.then(full));
        }
    }
}
