//! Shared addresses by Leases: what boxes tell each other through the API server.
//!
//! Writes are few: each box renews its own Lease, and that of an address changes with its holder alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fairway_config::kubernetes::client::chain;
use fairway_core::IpPrefix;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, interval, timeout};

use super::controller::count_error;
use crate::announce::{AnnounceInput, Decider, Handle, Member, Step, read_shares, write_shares};

/// A box whose Lease has not changed for so long is gone.
const LASTS: Duration = Duration::from_secs(6);
/// Who had no answer for so long gives up what it shares; so nobody else has it yet.
const GIVES_UP: Duration = Duration::from_secs(4);
/// From one round to the next.
const EVERY: Duration = Duration::from_secs(1);
/// For one round.
const PATIENCE: Duration = Duration::from_secs(2);
/// Leases of boxes that are gone for so long are cleared away.
const CLEARED: Duration = Duration::from_secs(300);
/// Names of the Leases of boxes, and of addresses.
const OF_BOX: &str = "fairway-box.";
const OF_ADDRESS: &str = "fairway-address.";
/// Marks all of them, by class.
const LABEL: &str = "fairway.dev/shares";
/// The box's name, and what it shares.
const NODE: &str = "fairway.dev/node";
const SHARES: &str = "fairway.dev/shares";

/// One of those that share.
pub(super) struct Sharer {
    api: Api<Lease>,
    class: String,
    identity: String,
    node: String,
    handle: Handle,
    decider: Decider,
    begun: Instant,
    /// Leases of boxes as they were seen, and since when they are so.
    seen: BTreeMap<String, (LeaseSpec, Instant)>,
    held: BTreeSet<IpPrefix>,
    /// Handed over in the last round: the new holder has noticed by the next.
    parting: BTreeSet<IpPrefix>,
    own: Option<Lease>,
}

/// Shares addresses for ever.
pub(super) async fn run(
    client: Client,
    (namespace, class): (String, String),
    (identity, node): (String, String),
    handle: Handle,
) {
    let mut sharer = Sharer {
        api: Api::namespaced(client, &namespace),
        class,
        identity,
        node,
        handle,
        decider: Decider::default(),
        begun: Instant::now(),
        seen: BTreeMap::new(),
        held: BTreeSet::new(),
        parting: BTreeSet::new(),
        own: None,
    };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let before = sharer.held.clone();
        match timeout(PATIENCE, sharer.round()).await {
            Ok(Ok(())) => answered = asked,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => chain(&error),
                    _ => format!("no answer within {PATIENCE:?}"),
                };
                count_error("Lease");
                tracing::debug!("addresses cannot be shared: {why}");
                if answered.elapsed() >= GIVES_UP && !sharer.held.is_empty() {
                    let addresses = sharer.held.len();
                    tracing::warn!(addresses, "shared addresses are given up: {why}");
                    sharer.held.clear();
                    sharer.parting.clear();
                }
            }
        }
        if sharer.held != before {
            sharer.handle.send(AnnounceInput::Leased(sharer.held.clone()));
        }
    }
}

impl Sharer {
    /// Tells what this box shares, hears what others do, and settles what follows.
    async fn round(&mut self) -> Result<(), kube::Error> {
        let shares = self.handle.shares();
        // Nobody is to know of a box that shares nothing, and never did.
        if shares.able.is_empty() && self.own.is_none() {
            return Ok(());
        }
        self.renew(&write_shares(&shares)).await?;
        let labels = ListParams::default().labels(&format!("{LABEL}={}", self.class));
        let leases = self.api.list(&labels).await?.items;
        let is_of = |lease: &&Lease, kind: &str| {
            let labels = lease.metadata.labels.as_ref();
            let ours = labels.and_then(|labels| labels.get(LABEL)) == Some(&self.class);
            ours && name(lease).starts_with(kind)
        };
        let boxes: Vec<&Lease> = leases.iter().filter(|lease| is_of(lease, OF_BOX)).collect();
        let members = members(&mut self.seen, &boxes);
        let holders: BTreeMap<&str, &Lease> = leases
            .iter()
            .filter(|lease| is_of(lease, OF_ADDRESS))
            .map(|lease| (name(lease), lease))
            .collect();
        let mut held = std::mem::take(&mut self.parting);
        held.clear();
        for net in shares.able.keys() {
            let address = name_of(*net, &self.class);
            let lease = holders.get(&*address).copied();
            let holder = lease.and_then(holder);
            let now = self.begun.elapsed();
            match self.decider.decide(*net, &self.identity, holder, &members, now) {
                Step::Leave => {}
                Step::Keep => _ = held.insert(*net),
                Step::Take => {
                    let who = &self.identity;
                    if self.write(&address, lease, who).await? {
                        tracing::info!(address = %net, "taken over: the Lease is ours");
                        held.insert(*net);
                    }
                }
                Step::HandOver(other) => {
                    if self.write(&address, lease, &other).await? {
                        tracing::info!(address = %net, to = other, "handed over");
                    }
                    // It is here until the other one has noticed.
                    held.insert(*net);
                    self.parting.insert(*net);
                }
            }
        }
        for lost in self.held.difference(&held) {
            tracing::info!(address = %lost, "given up: the Lease is another's");
        }
        self.held = held;
        self.clear_away(&boxes).await;
        Ok(())
    }

    /// Renews this box's Lease, with what it shares.
    async fn renew(&mut self, shares: &str) -> Result<(), kube::Error> {
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LASTS.as_secs() as i32),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let annotations = [(NODE, &*self.node), (SHARES, shares)];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut lease = self.own.take().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(format!("{OF_BOX}{}", plain(&self.identity))),
                labels: Some([(LABEL.to_owned(), self.class.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        lease.metadata.annotations = Some(annotations.into());
        lease.spec = Some(spec);
        let options = PostParams::default();
        let written = match lease.metadata.resource_version {
            None => self.api.create(&options, &lease).await,
            Some(_) => self.api.replace(name(&lease), &options, &lease).await,
        };
        self.own = match written {
            // An answer was lost: it is there, or of another version.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Some(self.api.get(name(&lease)).await?)
            }
            // Somebody has cleared it away: the next round makes it anew.
            written => Some(written?),
        };
        Ok(())
    }

    /// Writes who has an address; whether that went through. That somebody else was quicker is no error.
    async fn write(
        &self,
        address: &str,
        lease: Option<&Lease>,
        who: &str,
    ) -> Result<bool, kube::Error> {
        let before = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(who.to_owned()),
            acquire_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: Some(transitions + i32::from(lease.is_some())),
            ..LeaseSpec::default()
        };
        let options = PostParams::default();
        let written = match lease {
            // It carries the version that was read: somebody else's change makes it fail.
            Some(lease) => {
                let lease = Lease { metadata: lease.metadata.clone(), spec: Some(spec) };
                self.api.replace(address, &options, &lease).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(address.to_owned()),
                    labels: Some([(LABEL.to_owned(), self.class.clone())].into()),
                    ..ObjectMeta::default()
                };
                self.api.create(&options, &Lease { metadata, spec: Some(spec) }).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Clears away one Lease of a box that is long gone.
    async fn clear_away(&self, boxes: &[&Lease]) {
        let is_old = |lease: &&&Lease| {
            self.seen.get(name(lease)).is_some_and(|(_, since)| since.elapsed() > CLEARED)
        };
        if let Some(lease) = boxes.iter().find(is_old) {
            // Another box may do the same; one that is not allowed to leaves it.
            let _ = self.api.delete(name(lease), &DeleteParams::default()).await;
        }
    }
}

/// Boxes that are there: their Leases have changed within the time that these last, as seen from here.
fn members(seen: &mut BTreeMap<String, (LeaseSpec, Instant)>, boxes: &[&Lease]) -> Vec<Member> {
    seen.retain(|known, _| boxes.iter().any(|lease| name(lease) == known));
    let mut members = Vec::new();
    for lease in boxes {
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match seen.get(name(lease)) {
            Some((before, since)) if *before == spec => *since,
            _ => {
                let now = Instant::now();
                seen.insert(name(lease).into(), (spec.clone(), now));
                now
            }
        };
        if since.elapsed() >= LASTS {
            continue;
        }
        let annotations = lease.metadata.annotations.clone().unwrap_or_default();
        let text = |key: &str| annotations.get(key).cloned().unwrap_or_default();
        members.push(Member {
            identity: spec.holder_identity.unwrap_or_default(),
            node: text(NODE),
            shares: read_shares(&text(SHARES)),
        });
    }
    members
}

fn name(lease: &Lease) -> &str {
    lease.metadata.name.as_deref().unwrap_or_default()
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn name_of(net: IpPrefix, class: &str) -> String {
    format!("{OF_ADDRESS}{}.{class}", plain(&net.to_string()))
}

/// As names of objects are written.
fn plain(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let text = text.to_ascii_lowercase();
    let text: String = text.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    // An address of IPv6 may begin or end without a number.
    format!("a{text}a").replace("..", ".")
}
