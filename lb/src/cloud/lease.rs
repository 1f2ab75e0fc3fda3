//! Which of several boxes leads: the one that holds a Lease.
//!
//! Timed as client-go has it, and by what is seen here: the clocks of boxes are never compared.

use std::time::Duration;

use fairway_config::kubernetes::client::chain;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, timeout};

use super::Work;
use super::controller::count_error;

/// A Lease that is not renewed for so long is free.
const LASTS: Duration = Duration::from_secs(15);
/// Who cannot renew for so long leads no longer; so nobody else does yet.
const GIVES_UP: Duration = Duration::from_secs(10);
/// From one try to the next.
const EVERY: Duration = Duration::from_secs(2);
/// For one try.
const PATIENCE: Duration = Duration::from_secs(4);

/// The Lease, and what was seen of it.
struct Contender {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// Who held it and since when it was as it is.
    seen: Option<(LeaseSpec, Instant)>,
}

/// Tries to lead for ever, and says to both when that changes.
pub(crate) async fn run(
    client: Client,
    (namespace, name): (String, String),
    identity: String,
    works: mpsc::UnboundedSender<Work>,
    leads: watch::Sender<bool>,
) {
    let api = Api::namespaced(client, &namespace);
    let mut contender = Contender { api, name, identity, seen: None };
    let mut ticks = interval(EVERY);
    let mut renewed = Instant::now();
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let holds = match timeout(PATIENCE, contender.contend()).await {
            Ok(Ok(true)) => {
                renewed = asked;
                true
            }
            Ok(Ok(false)) => false,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => chain(&error),
                    _ => format!("no answer within {PATIENCE:?}"),
                };
                count_error("Lease");
                tracing::debug!("the Lease cannot be renewed: {why}");
                *leads.borrow() && renewed.elapsed() < GIVES_UP
            }
        };
        metrics::gauge!("fairway_cluster_leader").set(if holds { 1.0 } else { 0.0 });
        if leads.send_if_modified(|leads| std::mem::replace(leads, holds) != holds) {
            tracing::info!("{}", if holds { "this box leads" } else { "this box leads no longer" });
            if works.send(Work::Lead(holds)).is_err() {
                return;
            }
        }
    }
}

impl Contender {
    /// Renews the Lease, or takes it if it is free; whether it is ours then.
    async fn contend(&mut self) -> Result<bool, kube::Error> {
        let now = || Some(MicroTime(Timestamp::now()));
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(LeaseSpec {
                    holder_identity: Some(self.identity.clone()),
                    lease_duration_seconds: Some(LASTS.as_secs() as i32),
                    acquire_time: now(),
                    renew_time: now(),
                    ..LeaseSpec::default()
                }),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let is_ours = spec.holder_identity.as_ref() == Some(&self.identity);
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => Instant::now(),
        };
        self.seen = Some((spec.clone(), since));
        let is_held = spec.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty());
        if !is_ours && is_held && since.elapsed() < LASTS {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!is_ours);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LASTS.as_secs() as i32),
            acquire_time: if is_ours { spec.acquire_time.clone() } else { now() },
            renew_time: now(),
            lease_transitions: Some(transitions),
            ..spec
        });
        // It carries the version that was read: somebody else's change makes it fail.
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }
}

/// Whether a write went through; that somebody else was quicker is no error.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
