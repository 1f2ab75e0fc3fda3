//! Shared addresses by Leases: what boxes tell each other through the API server.
//!
//! Writes are few: each box renews its own Lease, and that of an address changes with its holder alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fairway_config::kubernetes::client::chain;
use fairway_core::IpPrefix;
use futures_util::{FutureExt, StreamExt, stream};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, interval, timeout};

use super::controller::count_error;
use crate::announce::{
    AnnounceInput, Decider, Handle, Member, Shares, Step, read_shares, write_shares,
};

/// A box whose Lease has not changed for so long is gone.
const LASTS: Duration = Duration::from_secs(6);
/// Who had no answer for so long gives up what it shares; so nobody else has it yet.
const GIVES_UP: Duration = Duration::from_secs(4);
/// From one round to the next.
const EVERY: Duration = Duration::from_secs(1);
/// For renewing: a box that fails twice has given up before it counts as gone.
const PATIENCE: Duration = Duration::from_millis(1500);
/// For the rest of a round.
const ROUND: Duration = Duration::from_secs(4);
/// Writes that are under way at a time.
const AT_ONCE: usize = 16;
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
    /// Handed over: here until the next round, when the new holder has noticed.
    parting: BTreeSet<IpPrefix>,
    own: Option<Lease>,
    /// When this box's Lease was renewed last.
    renewed: Instant,
}

/// Shares addresses until the process ends.
pub(super) async fn run(
    client: Client,
    (namespace, class): (String, String),
    (identity, node): (String, String),
    handle: Handle,
) {
    let mut shares = handle.shares();
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
        renewed: Instant::now(),
    };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut trouble, mut has_read) = (None, false);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = shares.changed() => {
                let ends = shares.borrow_and_update().ends;
                if ends || changed.is_err() {
                    return sharer.leave().await;
                }
                continue;
            }
        }
        let now = shares.borrow().clone();
        let failed = match timeout(PATIENCE, sharer.renew(&now)).await {
            Ok(Ok(false)) => continue,
            Ok(Ok(true)) => match timeout(ROUND, sharer.settle(&now)).await {
                Ok(done) => done.err().map(|error| chain(&error)),
                Err(_) => Some(format!("no whole answer within {ROUND:?}")),
            },
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if let Some(why) = &failed {
            count_error("Lease");
            // What was handed over is another's by now.
            let parting = std::mem::take(&mut sharer.parting);
            sharer.held.retain(|net| !parting.contains(net));
            let addresses = sharer.held.len();
            if sharer.renewed.elapsed() >= GIVES_UP && addresses > 0 {
                tracing::warn!(addresses, "shared addresses are given up: {why}");
                sharer.held.clear();
            }
        }
        let words =
            failed.map(|why| format!("boxes cannot agree by Leases in `{namespace}`: {why}"));
        if let Some(words) = words.as_ref().filter(|_| trouble != words) {
            tracing::warn!("{words}");
        }
        trouble = words;
        // What the process before has held is held until it is known, or must be given up.
        has_read |= trouble.is_none() || sharer.begun.elapsed() >= GIVES_UP;
        let held = has_read.then(|| sharer.held.clone());
        sharer.handle.send(AnnounceInput::Leased(held, trouble.clone()));
    }
}

impl Sharer {
    /// Renews this box's Lease, with what it shares; false when it shares nothing, and never did.
    async fn renew(&mut self, shares: &Shares) -> Result<bool, kube::Error> {
        if shares.able.is_empty() && self.own.is_none() {
            return Ok(false);
        }
        let name = format!("{OF_BOX}{}", plain(&self.identity));
        let annotations = [(NODE, self.node.clone()), (SHARES, write_shares(shares))];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value));
        let begun = Instant::now();
        let mut lease = self.own.take().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some([(LABEL.to_owned(), self.class.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        lease.metadata.annotations = Some(annotations.clone().into());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LASTS.as_secs() as i32),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        });
        let options = PostParams::default();
        let written = match lease.metadata.resource_version {
            None => self.api.create(&options, &lease).await,
            Some(_) => self.api.replace(&name, &options, &lease).await,
        };
        let written = match written {
            // An answer was lost: it is there, or of another version.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let there = self.api.get(&name).await?;
                lease.metadata.resource_version = there.metadata.resource_version;
                self.api.replace(&name, &options, &lease).await?
            }
            // Somebody has cleared it away: the next round makes it anew.
            written => written?,
        };
        (self.own, self.renewed) = (Some(written), begun);
        Ok(true)
    }

    /// Hears what boxes share, and settles what follows for this one.
    async fn settle(&mut self, shares: &Shares) -> Result<(), kube::Error> {
        let labels = ListParams::default().labels(&format!("{LABEL}={}", self.class));
        let leases = self.api.list(&labels).await?.items;
        let is_of = |lease: &&Lease, kind: &str| {
            let labels = lease.metadata.labels.as_ref();
            let ours = labels.and_then(|labels| labels.get(LABEL)) == Some(&self.class);
            ours && name(lease).starts_with(kind)
        };
        let boxes: Vec<&Lease> = leases.iter().filter(|lease| is_of(lease, OF_BOX)).collect();
        let members = members(&mut self.seen, &boxes);
        let mut holders: BTreeMap<&str, &Lease> = leases
            .iter()
            .filter(|lease| is_of(lease, OF_ADDRESS))
            .map(|lease| (name(lease), lease))
            .collect();
        let parting = std::mem::take(&mut self.parting);
        let mut writes = Vec::new();
        let mut kept = BTreeSet::new();
        for net in shares.able.keys() {
            let address = name_of(*net, &self.class);
            let lease = holders.remove(&*address);
            let holder = lease.and_then(holder);
            let now = self.begun.elapsed();
            match self.decider.decide(*net, &self.identity, holder, &members, now) {
                Step::Leave => {}
                Step::Keep => _ = kept.insert(*net),
                Step::Take => writes.push((*net, address, lease.cloned(), self.identity.clone())),
                Step::HandOver(other) => {
                    kept.insert(*net);
                    writes.push((*net, address, lease.cloned(), other));
                }
            }
        }
        for lost in self.held.difference(&kept).filter(|net| !parting.contains(net)) {
            tracing::info!(address = %lost, "given up: the Lease is another's");
        }
        self.held = kept;
        // Many at a time, and what is done counts, whatever becomes of the rest.
        let writes: Vec<_> = writes
            .into_iter()
            .map(|(net, address, lease, who)| {
                let (api, class) = (self.api.clone(), self.class.clone());
                async move { (net, write(api, class, address, lease, who.clone()).await, who) }
                    .boxed()
            })
            .collect();
        let done: Vec<_> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        let mut failed = Ok(());
        for (net, written, who) in done {
            match written {
                Ok(true) if who == self.identity => {
                    tracing::info!(address = %net, "taken over: the Lease is ours");
                    self.held.insert(net);
                }
                Ok(true) => {
                    tracing::info!(address = %net, to = who, "handed over");
                    self.parting.insert(net);
                }
                Ok(false) => {}
                Err(error) => failed = Err(error),
            }
        }
        let unused = holders.into_values().filter(|lease| holder(lease) == Some(&self.identity));
        self.clear_away(&boxes, unused.collect()).await;
        failed
    }

    /// Gives back what this box holds: its Lease goes, and others need not wait for its end.
    async fn leave(&self) {
        if let Some(own) = &self.own {
            let options = DeleteParams::default();
            let gone = self.api.delete(name(own), &options);
            // Otherwise it ends by itself.
            let _ = timeout(PATIENCE, gone).await;
        }
    }

    /// Clears away a Lease of a box that is long gone, and one of ours for an address that nobody shares.
    async fn clear_away(&self, boxes: &[&Lease], unused: Vec<&Lease>) {
        let is_old = |lease: &&&Lease| {
            self.seen.get(name(lease)).is_some_and(|(_, since)| since.elapsed() > CLEARED)
        };
        for lease in boxes.iter().find(is_old).into_iter().chain(unused.first()) {
            // Another box may do the same; one that is not allowed to leaves it.
            let _ = self.api.delete(name(lease), &DeleteParams::default()).await;
        }
    }
}

/// Writes who has an address; whether that went through. That somebody else was quicker is no error.
async fn write(
    api: Api<Lease>,
    class: String,
    address: String,
    lease: Option<Lease>,
    who: String,
) -> Result<bool, kube::Error> {
    let before = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or(0);
    let spec = Some(LeaseSpec {
        holder_identity: Some(who),
        acquire_time: Some(MicroTime(Timestamp::now())),
        lease_transitions: Some(transitions + i32::from(lease.is_some())),
        ..LeaseSpec::default()
    });
    let options = PostParams::default();
    let written = match lease {
        // It carries the version that was read: somebody else's change makes it fail.
        Some(Lease { metadata, .. }) => {
            api.replace(&address, &options, &Lease { metadata, spec }).await
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(address),
                labels: Some([(LABEL.to_owned(), class)].into()),
                ..ObjectMeta::default()
            };
            api.create(&options, &Lease { metadata, spec }).await
        }
    };
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
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
