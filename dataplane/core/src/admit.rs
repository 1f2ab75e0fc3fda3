//! Letting a flow in: lists, limits, affinity, selection, in this order. The same for connections,
//! datagrams and packets.

use core::net::SocketAddr;

use crate::{
    AffinityTable, ClientTable, EndReason, FlowKey, LimitKind, Pick, Refusal, Service, Tick, Tried,
};

/// What workers remember of clients, together.
pub struct Clients {
    /// What each has open.
    pub table: ClientTable,
    /// Which backend each had.
    pub affinity: AffinityTable,
}

impl Clients {
    /// Room for at least so many clients in each table; four random numbers key who had which backend.
    #[must_use]
    pub fn new(clients: usize, seeds: [u64; 4]) -> Self {
        Self { table: ClientTable::new(clients), affinity: AffinityTable::new(clients, seeds) }
    }
}

/// A flow that asks to be let in.
#[derive(Debug, Clone, Copy)]
pub struct Entrant {
    /// Who comes.
    pub client: SocketAddr,
    /// What was dialled.
    pub dialled: SocketAddr,
    /// Seed of the flow hash.
    pub seed: u64,
    /// A number without pattern, for random schedulers.
    pub random: u64,
    /// Who asks.
    pub worker: usize,
    /// When.
    pub now: Tick,
    /// It begins now; else it has been let in before, and its state is not here.
    pub begins: bool,
}

/// A flow that was let in. A place on its service and one on its backend are taken.
#[derive(Debug)]
pub struct Admitted<'s> {
    /// Where it goes.
    pub pick: Pick<'s>,
    /// Where its sequence of candidates starts.
    pub start: u64,
    /// Whether its client's place in the table of clients is to be paid back.
    pub tracked: bool,
}

/// Lets a flow in to `service`, or says why not; counts limits that it met, and its backup.
pub fn admit<'s>(
    service: &'s Service,
    entrant: &Entrant,
    clients: &Clients,
) -> Result<Admitted<'s>, EndReason> {
    let Entrant { client, random, worker, now, begins, .. } = *entrant;
    let (policy, ip) = (&service.policy, client.ip());
    let counters = service.state.counters.of(worker);
    if policy.deny.contains(ip) || !(policy.allow.is_empty() || policy.allow.contains(ip)) {
        return Err(EndReason::Denied);
    }
    let limited = |kind: LimitKind| {
        counters.limits[kind as usize].inc();
        EndReason::Limited
    };
    if !begins && let Some(admitted) = admit_existing(service, entrant, clients) {
        return Ok(admitted);
    }
    if !service.state.try_open(policy.limits.service_connections) {
        return Err(limited(LimitKind::Service));
    }
    let limits_client =
        policy.limits.client_connections.is_some() || policy.limits.client_rate.is_some();
    let tracked = match limits_client {
        true => clients.table.open(service.id, ip, &policy.limits, now),
        false => Ok(false),
    };
    let tracked = tracked.map_err(|Refusal(kind)| {
        service.state.close();
        limited(kind)
    })?;
    let start = service.start(hash_of(service, entrant), random, worker);
    let known = policy.affinity.and_then(|affinity| {
        let id = clients.affinity.find(service.id, ip, affinity.timeout, now)?;
        service.select_known(id)
    });
    let pick = match known.map_or_else(|| service.select(start, &Tried::NONE, worker), Ok) {
        Ok(pick) => pick,
        Err(reason) => {
            service.state.close();
            if tracked {
                clients.table.close(service.id, ip);
            }
            return Err(match reason {
                EndReason::Limited => limited(LimitKind::Backend),
                reason => reason,
            });
        }
    };
    if pick.group > 0 {
        counters.backup.inc();
    }
    if policy.affinity.is_some() {
        clients.affinity.keep(service.id, ip, pick.backend.id, now);
    }
    Ok(Admitted { pick, start, tracked })
}

fn hash_of(service: &Service, entrant: &Entrant) -> u64 {
    let Entrant { client, dialled, seed, .. } = *entrant;
    FlowKey { source: client, destination: dialled, protocol: service.protocol }
        .hash(&service.policy.hash, seed)
}

/// Lets a flow go on that was let in before, if it can be told where it was. Limits were met then.
fn admit_existing<'s>(
    service: &'s Service,
    entrant: &Entrant,
    clients: &Clients,
) -> Option<Admitted<'s>> {
    let Entrant { client, now, .. } = *entrant;
    let start = hash_of(service, entrant);
    let known = service.policy.affinity.and_then(|affinity| {
        let id = clients.affinity.find(service.id, client.ip(), affinity.timeout, now)?;
        service.select_known(id)
    });
    let pick = known.or_else(|| service.select_existing(start, now))?;
    let _ = service.state.try_open(None);
    Some(Admitted { pick, start, tracked: false })
}
