//! The packet path, as the control loop tends it: interfaces, next hops, and what the kernel is not
//! to see.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::unbounded;
use fairway_config::PacketPath as Configured;
use fairway_core::packet::{Adopted, DropReason, Routes, Unresolved};
use fairway_core::{IpPrefix, Mode, Tick};
use fairway_uring::{Clock, Command, LeftFlows, PortControl, WorkerHandle, open_port};

use super::fence::{Fence, Hidden, forwards};
use super::id_log::{self, IdLog};
use super::shortage::Shortage;
use super::{Control, Stop};
use serde::{Deserialize, Serialize};

use crate::dpdk::{Cards, KernelEnds, Opened};
use crate::handover::Inherited;
use crate::network::{Device, News, Watch};

/// Begins the names of memory for flows; how long the machine ran when that was made ends them.
const FLOWS: &str = "flows-";
/// The name of the pipes of the fence's `nft`.
const FENCE: &str = "fence";
/// How long they may take to stand still.
const ENDS: Duration = Duration::from_secs(2);
/// How long workers may take over the flows that were left.
const ADOPTS: Duration = Duration::from_secs(30);
/// How often cards are looked at, and whether something has run out.
const LOOK: Duration = Duration::from_secs(1);
/// When cards are open again, how long checks may take to find out about backends.
const HEARS: Duration = Duration::from_secs(5);

/// An interface of the packet path.
struct Port {
    name: String,
    device: Option<Device>,
    open: Option<Open>,
    /// Its card, if it has one of its own, has no link.
    without_link: bool,
    trouble: Option<String>,
}

/// How an interface's packets come.
enum Open {
    /// By packet sockets.
    Shared(PortControl),
    /// By a card that is polled: the interface is the kernel's end of its link.
    Polled,
}

/// An interface of the packet path, for people.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InterfaceView {
    pub(crate) name: String,
    /// It is open, and up.
    pub(crate) carries: bool,
    /// Largest IP packet, in bytes.
    pub(crate) mtu: Option<u16>,
    pub(crate) trouble: Option<String>,
}

/// The packet path; there is none when the document names no interfaces.
pub(crate) struct PacketPath {
    watch: Watch,
    ports: Vec<Port>,
    /// Cards that packets come by and the kernel has no part in.
    cards: Option<Cards>,
    /// What the kernel's ends of the cards had, while these are another process's.
    released: Option<KernelEnds>,
    /// When is looked next.
    look_at: Tick,
    /// New flows for which no port of ours was free.
    without_port: Shortage,
    /// New flows for which the tables had no room.
    without_room: Shortage,
    fence: Fence,
    /// Memory of flows that a process before this one has left, its names, and until when it carried
    /// packets.
    left: Option<(Vec<OwnedFd>, Vec<String>, u64)>,
    /// Memory of the workers' flows.
    memory: Vec<OwnedFd>,
    /// Under which the service manager keeps that.
    kept: String,
    /// Addresses of this machine.
    local: BTreeSet<IpAddr>,
    /// Next hops that are not published yet.
    routes: Option<Arc<Routes>>,
    /// Services, interfaces or addresses have changed.
    changed: bool,
    trouble: Option<String>,
}

impl PacketPath {
    /// Opens the interfaces that are there; an error when none of them can be. The workers' flows are in
    /// `memory`.
    pub(crate) fn new(
        configured: &Configured,
        (watch, news): (Watch, News),
        cards: Option<Cards>,
        workers: &[WorkerHandle],
        memory: Vec<OwnedFd>,
    ) -> Result<Self, String> {
        let port = |name: &String| Port {
            name: name.clone(),
            device: None,
            open: None,
            without_link: false,
            trouble: None,
        };
        let mut packets = Self {
            watch,
            ports: configured.interfaces.iter().map(port).collect(),
            cards,
            released: None,
            look_at: Tick(0),
            without_port: Shortage::default(),
            without_room: Shortage::default(),
            fence: Fence::default(),
            left: None,
            memory,
            kept: format!("{FLOWS}{}", Clock.micros()),
            local: BTreeSet::new(),
            routes: None,
            changed: true,
            trouble: None,
        };
        packets.take(news, workers);
        let refused = packets.ports.iter().filter(|port| port.device.is_some());
        // One that is not there may come.
        let why = match refused.clone().all(|port| port.open.is_none()) {
            true => refused.filter_map(|port| port.trouble.clone()).next(),
            false => None,
        };
        why.map_or(Ok(packets), Err)
    }

    /// Lets go of the cards, for the next process.
    fn release_cards(&mut self, ends: KernelEnds, workers: &[WorkerHandle]) -> Result<(), String> {
        let Some(cards) = &mut self.cards else { return Ok(()) };
        ends.keep().inspect_err(|_| ends.keep_no_longer())?;
        self.released = Some(ends);
        let (reply, done) = unbounded();
        for worker in workers {
            worker.send(Command::ReleaseCards { reply: reply.clone() });
        }
        for _ in workers {
            done.recv_timeout(ENDS).map_err(|_| "a worker did not let go of cards".to_owned())?;
        }
        cards.release()
    }

    /// Opens the cards; `ends` is what the kernel's ends had before.
    fn open_cards(&mut self, ends: &KernelEnds, workers: &[WorkerHandle]) -> Result<(), String> {
        let Some(cards) = &mut self.cards else { return Ok(()) };
        let opened = cards.open()?;
        ends.restore();
        attach(opened, workers);
        Ok(())
    }

    /// The interfaces, for people.
    pub(super) fn views(&self) -> impl Iterator<Item = InterfaceView> + '_ {
        self.ports.iter().map(|port| InterfaceView {
            name: port.name.clone(),
            carries: port.carries(),
            mtu: port.device.as_ref().map(|device| device.mtu),
            trouble: port.trouble.clone(),
        })
    }

    /// Whether the kernel is kept from what is ours.
    pub(super) fn is_guarded(&self) -> bool {
        self.cards.is_some() || self.fence.stands()
    }

    /// Interfaces have come, gone or changed.
    fn take(&mut self, news: News, workers: &[WorkerHandle]) {
        for (number, (port, device)) in (0..).zip(self.ports.iter_mut().zip(news.devices)) {
            let same = |old: &Device, new: &Device| (old.index, old.mtu) == (new.index, new.mtu);
            let known = port.device.as_ref().zip(device.as_ref()).is_some_and(|(a, b)| same(a, b));
            port.device = device;
            match (self.cards.is_some(), &port.device) {
                (true, Some(_)) => port.open = Some(Open::Polled),
                (true, None) => port.open = None,
                (false, _) if !known || port.open.is_none() => port.open(number, workers),
                (false, _) => {}
            }
            port.judge();
        }
        self.changed = self.local != news.addresses || self.changed;
        self.local = news.addresses;
        self.routes = Some(news.routes);
        self.trouble = None;
    }

    /// Looks at the cards, and whether something has run out, now and then.
    fn look(&mut self, now: Tick, workers: &[WorkerHandle]) {
        if now < self.look_at {
            return;
        }
        self.look_at = now.plus(LOOK);
        let (mut ports, mut room) = (0, 0);
        for stats in workers.iter().filter_map(|worker| worker.packets.as_ref()) {
            let dropped = |reason| stats.counters.dropped[reason as usize].get();
            ports += dropped(DropReason::NoPort);
            room += dropped(DropReason::TableFull) + stats.counters.stateless.get();
        }
        let begins = (self.without_port.look(ports, now), self.without_room.look(room, now));
        if let Some(words) = self.port_trouble().filter(|_| begins.0) {
            tracing::warn!("{words}");
        }
        if let Some(words) = self.room_trouble().filter(|_| begins.1) {
            tracing::warn!("{words}");
        }
        self.look_at_cards();
    }

    fn port_trouble(&self) -> Option<String> {
        let count = self.without_port.told()?;
        Some(format!(
            "new flows find no port of ours free ({count} so far): name more `source.addresses`, \
             or a wider range of `source.ports`"
        ))
    }

    fn room_trouble(&self) -> Option<String> {
        let count = self.without_room.told()?;
        Some(format!(
            "a worker's table of flows is full: new flows of `nat` and `fullNat` are dropped, others go by \
             their hash ({count} packets so far): raise `dataplane.packet.flows` or `flowsIPv6` and \
             `fairway upgrade`; `fairway flows` shows what fills it"
        ))
    }

    fn look_at_cards(&mut self) {
        let Some(cards) = self.cards.as_mut().filter(|_| self.released.is_none()) else { return };
        let links = cards.look(self.ports.iter().map(|port| port.name.as_str()));
        for (port, up) in self.ports.iter_mut().zip(links) {
            if port.without_link == up {
                port.without_link = !up;
                port.judge();
            }
        }
    }

    /// Words of trouble for people.
    fn troubles(&self) -> impl Iterator<Item = String> + '_ {
        let ports = self.ports.iter().filter_map(|port| port.trouble.clone());
        let own = self.trouble.clone().into_iter().chain(self.port_trouble());
        let own = own.chain(self.room_trouble());
        ports.chain(own).chain(self.fence.troubles())
    }
}

/// Has workers poll cards that are open.
pub(crate) fn attach(opened: Opened, workers: &[WorkerHandle]) {
    for (worker, polled) in workers.iter().zip(opened.polled) {
        worker.send(Command::AttachCards(polled, opened.toeplitz.clone()));
    }
}

impl Port {
    fn open(&mut self, number: u16, workers: &[WorkerHandle]) {
        if self.open.take().is_some() {
            workers.iter().for_each(|worker| worker.send(Command::Detach(number)));
        }
        let Some(device) = &self.device else { return };
        match open_port(&self.name, number, device.mtu, workers.len()) {
            Ok((control, ports)) => {
                for (worker, port) in workers.iter().zip(ports) {
                    worker.send(Command::Attach(port));
                }
                tracing::info!(interface = self.name, mtu = device.mtu, "carrying packets");
                self.open = Some(Open::Shared(control));
            }
            Err(error) => self.say(Some(error.to_string())),
        }
    }

    fn judge(&mut self) {
        let trouble = match (&self.device, &self.open) {
            (None, _) => Some(format!("interface `{}` is not there", self.name)),
            (Some(device), Some(_)) if !device.up => {
                Some(format!("interface `{}` is down", self.name))
            }
            (Some(_), Some(_)) if self.without_link => {
                Some(format!("the card of interface `{}` has no link", self.name))
            }
            (Some(_), Some(_)) => None,
            // Opening it has said why.
            (Some(_), None) => return,
        };
        self.say(trouble);
    }

    fn carries(&self) -> bool {
        let up = self.device.as_ref().is_some_and(|device| device.up);
        up && self.open.is_some() && !self.without_link
    }

    fn say(&mut self, trouble: Option<String>) {
        if trouble.is_none() && self.trouble.is_some() {
            tracing::info!(interface = self.name, "carrying packets again");
        }
        if let Some(why) = trouble.as_ref().filter(|_| self.trouble != trouble) {
            tracing::warn!("{why}");
        }
        self.trouble = trouble;
    }
}

impl Control {
    /// The networks of this machine have changed.
    pub(super) fn take_network(&mut self, news: Result<News, String>) {
        let Some(packets) = &mut self.packets else { return };
        match news {
            Ok(news) => {
                packets.take(news, &self.workers);
                packets.changed = true;
            }
            Err(why) => {
                tracing::error!("{why}");
                packets.trouble = Some(why);
            }
        }
    }

    /// Workers have packets for a station that nobody knows.
    pub(super) fn find_station(&self, unresolved: Unresolved) {
        if let Some(packets) = &self.packets {
            packets.watch.find(unresolved);
        }
    }

    /// Services have changed.
    pub(super) fn packets_changed(&mut self) {
        self.tend_id_log();
        if let Some(packets) = &mut self.packets {
            packets.changed = true;
        }
    }

    /// Next hops that are to be published.
    pub(super) fn new_routes(&mut self) -> Option<Arc<Routes>> {
        self.packets.as_mut()?.routes.take()
    }

    pub(super) fn has_new_routes(&self) -> bool {
        self.packets.as_ref().is_some_and(|packets| packets.routes.is_some())
    }

    /// Brings fence, division among workers and known stations to what services want.
    pub(super) fn tend_packets(&mut self, now: Tick) {
        let Some(packets) = &mut self.packets else { return };
        packets.look(now, &self.workers);
        if !std::mem::take(&mut packets.changed) {
            packets.fence.tend(now);
            return self.show_packets();
        }
        let specs = self.services.values().map(|live| &*live.spec);
        let there = packets.ports.iter();
        let there = there.filter_map(|port| Some((port.name.clone(), port.device.as_ref()?.index)));
        if packets.cards.is_none() {
            let hidden = Hidden::of(specs.clone(), &packets.local, there.collect(), forwards());
            packets.fence.hide(hidden, now);
        }
        let ours = specs.filter(|spec| spec.policy.mode != Mode::Proxy);
        let vips: BTreeSet<IpPrefix> =
            ours.clone().flat_map(|spec| spec.frontends.iter().map(|f| f.net)).collect();
        let vips: Vec<IpPrefix> = vips.into_iter().collect();
        for port in &mut packets.ports {
            let Some(Open::Shared(open)) = &mut port.open else { continue };
            if let Err(error) = open.serve(&vips) {
                port.say(Some(error.to_string()));
            }
        }
        let backends = ours.flat_map(|spec| spec.backends.iter().map(|backend| backend.addr.ip()));
        let backends: BTreeSet<IpAddr> = backends.collect();
        packets.watch.keep(backends.into_iter().collect());
        self.show_packets();
    }

    /// Has packets that come wait: the process before this one is to stand still, and then they are ours.
    pub(crate) fn hold_packets(&self) {
        for worker in &self.workers {
            worker.send(Command::HoldPackets);
        }
    }

    /// Takes what a process before this one had of the packet path; what came before `until` was carried
    /// there.
    pub(crate) fn inherit_packets(&mut self, inherited: &mut Inherited, until: u64) {
        let Some(packets) = &mut self.packets else { return };
        packets.fence.inherit(inherited.take(FENCE));
        let (memory, mut names) = inherited.newest(FLOWS);
        let (mut ids, more) = inherited.newest(id_log::prefix());
        names.extend(more);
        packets.left = Some((memory, names, until));
        match IdLog::begin() {
            Ok(log) => self.id_log = Some(log),
            Err(why) => tracing::error!("{why}"),
        }
        // One that has given everything away has said more.
        if until == 0
            && let Some(ids) = ids.pop()
        {
            self.remember(IdLog::read(ids), 0);
        }
    }

    /// Numbers that are given no more are not written down for ever.
    fn tend_id_log(&mut self) {
        if !self.id_log.as_ref().is_some_and(IdLog::may_be_long) {
            return;
        }
        let given = self.services.values().map(|live| 1 + live.all().count()).sum();
        let Some(log) = self.id_log.as_mut().filter(|log| log.is_long(given)) else { return };
        log.clear();
        for (key, live) in &self.services {
            log.note(key, live.id, live.all().map(|it| (it.backend.addr, it.backend.id)));
        }
    }

    /// Carries packets, and goes on with flows that were left. What is served is published.
    pub(super) fn carry_packets(&mut self) {
        let Some(packets) = &mut self.packets else { return };
        let (memory, names, until) = packets.left.take().unwrap_or_default();
        let had = !memory.is_empty();
        let snapshot = self.publisher.current();
        let left = had.then(|| LeftFlows { memory: Arc::new(memory), until, snapshot });
        let (reply, adopted) = unbounded();
        for worker in &self.workers {
            worker.send(Command::CarryPackets { left: left.clone(), reply: reply.clone() });
        }
        drop(reply);
        self.manager.keep(&packets.kept, &packets.memory);
        if let Some(log) = &self.id_log {
            self.manager.keep(log.name(), &[log.file()]);
        }
        names.iter().for_each(|name| self.manager.forget(name));
        if had {
            let end = Instant::now() + ADOPTS;
            let mut all = Adopted::default();
            while let Ok(Adopted { taken, dropped }) = adopted.recv_deadline(end) {
                all.taken += taken;
                all.dropped += dropped;
            }
            let Adopted { taken, dropped } = all;
            tracing::info!(flows = taken, dropped, "flows of the process before go on");
        }
    }

    /// Has workers end what came before now, and carry nothing from then on; returns when that is.
    pub(super) fn end_packets(&self) -> Result<u64, String> {
        if self.packets.is_none() {
            return Ok(0);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // Once more when all have ended: what they have passed to each other by then.
        for last in [false, true] {
            let (reply, done) = unbounded();
            for worker in &self.workers {
                worker.send(Command::EndPackets { until, last, reply: reply.clone() });
            }
            drop(reply);
            for _ in &self.workers {
                done.recv_timeout(ENDS).map_err(|_| "a worker did not stand still".to_owned())?;
            }
        }
        Ok(until)
    }

    /// Lets go of cards that one process alone can have, for the next one; the kernel's ends have `ends`.
    pub(super) fn release_cards(&mut self, ends: Option<KernelEnds>) -> Result<(), String> {
        match (&mut self.packets, ends) {
            (Some(packets), Some(ends)) => packets.release_cards(ends, &self.workers),
            _ => Ok(()),
        }
    }

    /// What the kernel's ends of cards have, if there are cards.
    pub(crate) fn kernel_ends(&self) -> Result<Option<KernelEnds>, String> {
        let packets = self.packets.iter().filter(|packets| packets.cards.is_some());
        let names =
            packets.map(|packets| packets.ports.iter().map(|port| port.name.clone()).collect());
        names.map(KernelEnds::look).next().transpose()
    }

    /// Opens cards that the process before this one has let go of; the kernel's ends had `ends`.
    pub(crate) fn take_cards(&mut self, ends: Option<&KernelEnds>) -> Result<(), String> {
        match (&mut self.packets, ends) {
            (Some(packets), Some(ends)) => packets.open_cards(ends, &self.workers),
            _ => Ok(()),
        }
    }

    /// Whether nothing comes and goes by the interfaces, for another process is to have their cards.
    pub(super) fn is_cut_off(&self) -> bool {
        self.packets.as_ref().is_some_and(|packets| packets.released.is_some())
    }

    /// Descriptors of the packet path, for the next process.
    pub(super) fn packets_to_hand_over(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let Some(packets) = &self.packets else { return Vec::new() };
        let memory = packets.memory.iter().map(|it| (packets.kept.clone(), it.as_fd()));
        let pipes = packets.fence.pipes().map(|pipe| (FENCE.to_owned(), pipe));
        let ids = self.id_log.iter().map(|log| (log.name().to_owned(), log.file()));
        memory.chain(pipes).chain(ids).collect()
    }

    /// Another process was to carry packets, and does not.
    pub(super) fn restore_packets(&mut self, now: Tick) {
        let Some(packets) = &mut self.packets else { return };
        if packets.cards.is_none() {
            return packets.fence.restore(now);
        }
        let Some(ends) = packets.released.take() else { return };
        let opened = packets.open_cards(&ends, &self.workers);
        ends.keep_no_longer();
        self.unheard.1 = self.clock.now().plus(HEARS);
        if let Err(why) = opened {
            // Another start may have more luck.
            self.failure = Some(format!("its cards cannot be opened again: {why}"));
            self.stop = Stop::Done;
        }
    }

    /// Another process carries packets.
    pub(super) fn leave_packets(&mut self) {
        let Some(mut packets) = self.packets.take() else { return };
        packets.fence.leave();
        for number in 0..packets.ports.len() {
            for worker in &self.workers {
                worker.send(Command::Detach(number as u16));
            }
        }
    }

    /// Whether any interface carries packets.
    pub(super) fn carries_packets(&self) -> bool {
        self.packets.iter().flat_map(|packets| &packets.ports).any(Port::carries)
    }

    /// The interfaces of the packet path, for people.
    pub(crate) fn interface_views(&self) -> Vec<InterfaceView> {
        self.packets.iter().flat_map(PacketPath::views).collect()
    }

    /// What is wrong with the packet path, in words.
    pub(crate) fn packet_troubles(&self) -> Vec<String> {
        self.packets.iter().flat_map(PacketPath::troubles).collect()
    }

    /// Takes away what the packet path leaves in the kernel.
    pub(super) fn clean_up_packets(&mut self) {
        if let Some(packets) = &mut self.packets {
            packets.fence.clean_up();
        }
    }
}
