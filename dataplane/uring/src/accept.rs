//! Letting a client in: lists, limits, affinity, selection, in this order.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::{EndReason, FlowKey, LimitKind, Refusal, Service, ServiceCounters, Tried};

use crate::held::HeldBackend;
use crate::report::ConnectionRecord;
use crate::session::{Admitted, Cx, keep_affinity, known_backend};

/// Lets the client at `peer` in to `service`, which it dialled, or counts why not.
///
/// On success, a place on the service and on the backend is taken.
pub(crate) fn admit(
    service: &Service,
    peer: SocketAddr,
    dialled: SocketAddr,
    cx: &mut Cx<'_>,
) -> Option<(Admitted, Rc<HeldBackend>)> {
    let counters = service.state.counters.of(cx.worker);
    counters.accepted.inc();
    admitted(service, peer, dialled, counters, cx)
        .map_err(|reason| not_admitted(&service.name, counters, (peer, dialled), reason, cx))
        .ok()
}

/// Counts the end of a connection from `client` to `vip` that was not let in.
pub(crate) fn not_admitted(
    service: &Arc<str>,
    counters: &ServiceCounters,
    (client, vip): (SocketAddr, SocketAddr),
    reason: EndReason,
    cx: &Cx<'_>,
) {
    counters.ends[reason as usize].inc();
    // Who connects and goes without a word ends in order.
    cx.shared.connection_ended(reason == EndReason::Client, 0, || ConnectionRecord {
        service: Arc::clone(service),
        client,
        vip,
        backend: None,
        reason,
        attempts: 0,
        rx_bytes: 0,
        tx_bytes: 0,
        connect: None,
        first_byte: None,
        duration: Duration::ZERO,
    });
}

fn admitted(
    service: &Service,
    peer: SocketAddr,
    dialled: SocketAddr,
    counters: &ServiceCounters,
    cx: &mut Cx<'_>,
) -> Result<(Admitted, Rc<HeldBackend>), EndReason> {
    let policy = &service.policy;
    let client = peer.ip();
    if policy.deny.contains(client) || !(policy.allow.is_empty() || policy.allow.contains(client)) {
        return Err(EndReason::Denied);
    }
    let limited = |kind: LimitKind| {
        counters.limits[kind as usize].inc();
        EndReason::Limited
    };
    if !service.state.try_open(policy.limits.service_connections) {
        return Err(limited(LimitKind::Service));
    }
    let limits_client =
        policy.limits.client_connections.is_some() || policy.limits.client_rate.is_some();
    let tracked = match limits_client {
        true => cx.shared.clients.open(service.id, client, &policy.limits, cx.now),
        false => Ok(false),
    };
    let tracked = tracked.map_err(|Refusal(kind)| {
        service.state.close();
        limited(kind)
    })?;
    let hash = FlowKey { source: peer, destination: dialled, protocol: service.protocol }
        .hash(&policy.hash, cx.shared.settings.hash_seed);
    let start = service.start(hash, random(cx), cx.worker);
    let known = known_backend(cx, service, peer);
    let pick = match known.map_or_else(|| service.select(start, &Tried::NONE, cx.worker), Ok) {
        Ok(pick) => pick,
        Err(reason) => {
            service.state.close();
            if tracked {
                cx.shared.clients.close(service.id, client);
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
    let service = cx.held.service(service);
    let admitted =
        Admitted { peer, dialled, service, start, tracked, destination: None, unique_id: None };
    keep_affinity(cx, &admitted, pick.backend.id);
    Ok((admitted, cx.held.backend(pick.backend)))
}

/// A number without pattern for random schedulers; not for secrets.
pub(crate) fn random(cx: &Cx<'_>) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local!(static KEY: RandomState = RandomState::new());
    KEY.with(|key| key.hash_one((cx.shared.clock.micros(), cx.index, cx.worker)))
}
