//! Letting a client in, as `core` decides; who is not let in is counted and logged.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairway_core as core;
use fairway_core::{EndReason, Entrant, Service, ServiceCounters};

use crate::held::HeldBackend;
use crate::report::{Carried, ConnectionRecord};
use crate::session::{Admitted, Cx};

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
    admitted(service, peer, dialled, cx)
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
        attempts: Some(0),
        carried: Carried::Payload { rx: 0, tx: 0 },
        connect: None,
        first_byte: None,
        duration: Duration::ZERO,
    });
}

fn admitted(
    service: &Service,
    peer: SocketAddr,
    dialled: SocketAddr,
    cx: &mut Cx<'_>,
) -> Result<(Admitted, Rc<HeldBackend>), EndReason> {
    let entrant = Entrant {
        begins: true,
        client: peer,
        dialled,
        seed: cx.shared.settings.hash_seed,
        random: random(cx),
        worker: cx.worker,
        now: cx.now,
    };
    let core::Admitted { pick, start, tracked } =
        core::admit(service, &entrant, &cx.shared.clients)?;
    let service = cx.held.service(service);
    let admitted =
        Admitted { peer, dialled, service, start, tracked, destination: None, unique_id: None };
    Ok((admitted, cx.held.backend(pick.backend)))
}

/// A number without pattern for random schedulers; not for secrets.
pub(crate) fn random(cx: &Cx<'_>) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local!(static KEY: RandomState = RandomState::new());
    KEY.with(|key| key.hash_one((cx.shared.clock.micros(), cx.index, cx.worker)))
}
