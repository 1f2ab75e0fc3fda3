//! Listeners follow the services: opened for new addresses and ports, closed for those that are
//! gone, tried again when the kernel refuses. A service that does not change is not touched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use fairway_core::{Frontend, Protocol, Tick};
use fairway_uring::{Command, ListenError, ListenerKey, WorkerHandle, open_listener, probe};
use socket2::Socket;

use super::system::run;
use super::tproxy::Tproxy;
use crate::announce::Announced;
use crate::handover::{Inherited, listener_name};
use crate::manager::Manager;

/// From one try to the next.
const RETRY_MS: u64 = 250;
/// From one look for lost addresses to the next.
const VERIFY: Duration = Duration::from_secs(5);

/// A protocol, an address and a port.
type Place = (Protocol, SocketAddr);

/// How one address and port is listened on.
#[derive(Debug)]
enum Listening {
    /// Every worker accepts on its own of these sockets, and on more where there were more workers
    /// before. They are here, too, for the next process.
    Open(ListenerKey, Vec<Socket>),
    /// The kernel refused; the next try is soon.
    Failed(String),
}

/// A service's listeners change from some frontends to others.
pub(crate) struct Relisten {
    pub(crate) old: Vec<Frontend>,
    pub(crate) new: Vec<Frontend>,
    /// How long connections to the old ones may go on; none is for ever.
    pub(crate) linger: Option<Duration>,
}

/// How long an address stays for connections that may go on for ever.
const LONGEST_LINGER: Duration = Duration::from_secs(24 * 3600);

/// The listeners of all workers.
pub(crate) struct Listeners {
    per_address: BTreeMap<Place, Listening>,
    tproxy: Option<Tproxy>,
    /// What is known of addresses that are announced.
    announced: Announced,
    /// Addresses that came into use, or go at a time.
    moved: Vec<(IpAddr, Option<Tick>)>,
    next_key: u64,
    /// Sockets of a process before this one.
    inherited: Inherited,
    manager: Manager,
    /// Most listening sockets.
    budget: usize,
    retry_at: Tick,
    verify_at: Tick,
    /// Addresses in use, with the number of frontends on each.
    addresses: BTreeMap<IpAddr, usize>,
    missing: HashSet<IpAddr>,
    /// Those that were not looked for yet.
    unseen: HashSet<IpAddr>,
}

impl Listeners {
    /// Nothing is listened on yet; sockets that are `inherited` are taken before others are opened, and
    /// `manager` keeps all of them for the next process.
    pub(crate) fn new(
        tproxy: Option<Tproxy>,
        budget: usize,
        inherited: Inherited,
        manager: Manager,
    ) -> Self {
        Self {
            per_address: BTreeMap::new(),
            tproxy,
            inherited,
            manager,
            announced: Announced::default(),
            moved: Vec::new(),
            next_key: 0,
            budget,
            retry_at: Tick(0),
            verify_at: Tick(0),
            addresses: BTreeMap::new(),
            missing: HashSet::new(),
            unseen: HashSet::new(),
        }
    }

    /// Opens nothing: for measuring the control loop alone.
    pub(crate) fn detached() -> Self {
        Self::new(Some(Tproxy::detached()), 0, Inherited::default(), Manager::default())
    }

    /// Makes the changes, each from some frontends to others; what is in both stays as it is,
    /// also when it moves from one service to another.
    pub(crate) fn change(&mut self, changes: &[Relisten], now: Tick, workers: &[WorkerHandle]) {
        // Counted, because one batch may add and remove a frontend several times.
        let mut net: HashMap<Frontend, i32> = HashMap::new();
        for change in changes {
            change.old.iter().for_each(|frontend| *net.entry(*frontend).or_default() -= 1);
            change.new.iter().for_each(|frontend| *net.entry(*frontend).or_default() += 1);
        }
        let linger = changes.iter().filter_map(|change| change.linger).max();
        let gone_at = now.plus(linger.unwrap_or(LONGEST_LINGER));
        let of_sign = |sign: i32| -> Vec<Frontend> {
            net.iter().filter(|(_, n)| n.signum() == sign).map(|(f, _)| *f).collect()
        };
        let (removed, added) = (of_sign(-1), of_sign(1));
        for frontend in &added {
            self.use_address(frontend.ip());
        }
        if let Some(tproxy) = &mut self.tproxy {
            tproxy.serve(workers);
            tproxy.change(&removed, &added);
        } else {
            for place in removed.iter().flat_map(places) {
                self.close(place, workers);
            }
            for place in added.iter().flat_map(places) {
                self.open(place, workers);
            }
        }
        for frontend in &removed {
            self.leave_address(frontend.ip(), gone_at);
        }
    }

    /// Sends what was gathered to nftables, and tries failed listeners again when it is time.
    pub(crate) fn tend(&mut self, now: Tick, workers: &[WorkerHandle]) {
        if let Some(tproxy) = &mut self.tproxy {
            tproxy.flush(now);
        }
        if now < self.retry_at {
            return;
        }
        self.retry_at = Tick(now.0 + RETRY_MS);
        let failed = |(place, state): (&Place, &Listening)| {
            matches!(state, Listening::Failed(_)).then_some(*place)
        };
        let failed: Vec<_> = self.per_address.iter().filter_map(failed).collect();
        for place in failed {
            self.open(place, workers);
        }
        // Before it is known who sees to addresses, none is missed.
        if self.tproxy.is_none() {
            let known = &self.announced.known;
            let seen: Vec<_> = self.unseen.extract_if(|ip| known.contains(ip)).collect();
            self.miss(seen.into_iter().filter(|ip| !is_local(*ip)).collect());
        }
        let missing: Vec<_> = self.missing.iter().copied().filter(|ip| is_local(*ip)).collect();
        for ip in missing {
            self.missing.remove(&ip);
            tracing::info!(%ip, "address has arrived on this machine");
        }
        if now >= self.verify_at {
            self.verify_at = now.plus(VERIFY);
            self.look_for_lost();
        }
        self.show();
    }

    /// Addresses may go while they are in use.
    fn look_for_lost(&mut self) {
        if self.tproxy.is_some() {
            return;
        }
        let seen = self.addresses.keys().filter(|ip| !self.unseen.contains(ip));
        let lost = seen.copied().filter(|ip| !is_local(*ip)).collect();
        self.miss(lost);
    }

    /// Says of addresses that are not here that they are missing, unless somebody else sees to that.
    fn miss(&mut self, lost: Vec<IpAddr>) {
        for ip in lost {
            if !self.announced.governed.contains(&ip) && self.missing.insert(ip) {
                tracing::warn!(%ip, "{}", missing_text(ip));
            }
        }
    }

    /// What is known of addresses that are announced.
    pub(crate) fn announced(&mut self, announced: Announced) {
        self.missing.retain(|ip| !announced.governed.contains(ip));
        self.announced = announced;
        self.show();
    }

    /// Addresses that came into use, or go at a time, since this was asked last.
    pub(crate) fn moved(&mut self) -> Vec<(IpAddr, Option<Tick>)> {
        std::mem::take(&mut self.moved)
    }

    fn show(&self) {
        let failed = |state: &&Listening| matches!(state, Listening::Failed(_));
        let failed = self.per_address.values().filter(failed).count();
        let unserved = self.tproxy.as_ref().is_some_and(|tproxy| tproxy.trouble().is_some());
        metrics::gauge!("fairway_listeners_failed").set((failed + usize::from(unserved)) as f64);
        let missing = self.missing.len() + self.announced.failed.len();
        metrics::gauge!("fairway_addresses_missing").set(missing as f64);
    }

    /// Whether something waits for the next try.
    pub(crate) fn is_waiting(&self) -> bool {
        let failed = |state: &Listening| matches!(state, Listening::Failed(_));
        !self.missing.is_empty()
            || !self.unseen.is_empty()
            || self.per_address.values().any(failed)
            || self.tproxy.as_ref().is_some_and(Tproxy::is_waiting)
    }

    /// What keeps `frontends` from being served, for people.
    pub(crate) fn troubles(&self, frontends: &[Frontend]) -> Vec<String> {
        let mut troubles = Vec::new();
        for frontend in frontends {
            if self.missing.contains(&frontend.ip()) {
                troubles.push(missing_text(frontend.ip()));
            }
            if let Some(why) = self.announced.failed.get(&frontend.ip()) {
                troubles.push(format!("{} cannot be added: {why}", frontend.ip()));
            }
            for place in places(frontend) {
                if let Some(Listening::Failed(why)) = self.per_address.get(&place) {
                    troubles.push(why.clone());
                }
            }
        }
        if let Some(tproxy) = &self.tproxy {
            troubles.extend(tproxy.trouble().map(ToOwned::to_owned));
            let unserved = frontends.iter().find(|frontend| !tproxy.serves(frontend.ip()));
            troubles.extend(unserved.map(|frontend| {
                format!("{} is not served: this kernel has no transparent IPv6", frontend.ip())
            }));
        }
        troubles
    }

    /// Descriptors of listening sockets: each is open in a worker and here.
    pub(crate) fn descriptors(&self) -> usize {
        let open = |state: &Listening| match state {
            Listening::Open(_, sockets) => 2 * sockets.len(),
            Listening::Failed(_) => 0,
        };
        let transparent = self.tproxy.as_ref().map_or(0, Tproxy::descriptors);
        self.per_address.values().map(open).sum::<usize>() + transparent
    }

    /// All sockets, by the names under which the next process finds them.
    pub(crate) fn to_hand_over(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut all = Vec::new();
        for ((protocol, addr), state) in &self.per_address {
            if let Listening::Open(_, sockets) = state {
                let name = listener_name(*protocol, *addr);
                all.extend(sockets.iter().map(|socket| (name.clone(), socket.as_fd())));
            }
        }
        all.extend(self.tproxy.iter().flat_map(Tproxy::to_hand_over));
        all
    }

    /// What transparent listening has nftables hold, for the next process.
    pub(crate) fn held_by_nftables(&self) -> Vec<String> {
        self.tproxy.iter().flat_map(Tproxy::held).collect()
    }

    /// The first services are served: what a process before this one listened on besides is closed.
    pub(crate) fn begun(&mut self, workers: &[WorkerHandle]) {
        self.tproxy.iter_mut().for_each(|tproxy| tproxy.serve(workers));
        let left = std::mem::take(&mut self.inherited);
        for name in left.left() {
            self.manager.forget(name);
        }
    }

    /// Whether connections arrive at transparent sockets.
    pub(crate) fn is_transparent(&self) -> bool {
        self.tproxy.is_some()
    }

    /// Workers are about to close all sockets: nobody keeps them open any longer.
    pub(crate) fn stop(&mut self) {
        for ((protocol, addr), state) in &mut self.per_address {
            if let Listening::Open(_, sockets) = state {
                self.manager.forget(&listener_name(*protocol, *addr));
                sockets.clear();
            }
        }
        for name in self.tproxy.iter_mut().flat_map(Tproxy::close) {
            self.manager.forget(name);
        }
        self.manager.flush();
    }

    /// Has nftables brought to what is wanted: another process may have changed it in vain.
    pub(crate) fn restore(&mut self) {
        self.tproxy.iter_mut().for_each(Tproxy::restore);
    }

    /// Another process has all sockets: nothing is opened or closed any more.
    pub(crate) fn leave(&mut self) {
        self.per_address.clear();
        self.tproxy.iter_mut().for_each(Tproxy::leave);
    }

    /// Takes away what the process leaves in the kernel.
    pub(crate) fn clean_up(&mut self) {
        if let Some(tproxy) = &mut self.tproxy {
            tproxy.clean_up();
        }
    }

    fn use_address(&mut self, ip: IpAddr) {
        let users = self.addresses.entry(ip).or_insert(0);
        *users += 1;
        if *users > 1 {
            return;
        }
        self.moved.push((ip, None));
        self.unseen.insert(ip);
    }

    fn leave_address(&mut self, ip: IpAddr, gone_at: Tick) {
        let Some(users) = self.addresses.get_mut(&ip) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.addresses.remove(&ip);
        self.missing.remove(&ip);
        self.unseen.remove(&ip);
        self.moved.push((ip, Some(gone_at)));
    }

    fn open(&mut self, place: Place, workers: &[WorkerHandle]) {
        let (protocol, addr) = place;
        let again = self.per_address.contains_key(&place);
        let name = listener_name(protocol, addr);
        let inherited = self.inherited.sockets(&name, Some(addr));
        let wanted = workers.len().max(inherited.len());
        let state = if self.descriptors() + 2 * wanted > self.budget {
            Err(format!(
                "no descriptors left to listen on {addr}: {} are for listeners; raise \
                 LimitNOFILE= of the service, or use `dataplane.listen: tproxy`",
                self.budget
            ))
        } else {
            let next = ListenerKey(self.next_key + 1);
            listen(next, place, inherited, workers).map_err(|error| error.to_string())
        };
        let state = match state {
            Ok(sockets) => {
                self.next_key += 1;
                self.manager.keep(&name, &sockets);
                if again {
                    tracing::info!(%addr, "listening after all");
                }
                Listening::Open(ListenerKey(self.next_key), sockets)
            }
            Err(why) => {
                if !again {
                    tracing::error!(%addr, "{why}; trying again");
                }
                Listening::Failed(why)
            }
        };
        self.per_address.insert(place, state);
    }

    fn close(&mut self, place: Place, workers: &[WorkerHandle]) {
        if let Some(Listening::Open(key, _)) = self.per_address.remove(&place) {
            self.manager.forget(&listener_name(place.0, place.1));
            for worker in workers {
                worker.send(Command::Unlisten { key });
            }
        }
    }
}

/// Has every worker listen in a place, on the sockets that are there already and on new ones; returns
/// copies of all.
fn listen(
    key: ListenerKey,
    (protocol, addr): Place,
    mut sockets: Vec<Socket>,
    workers: &[WorkerHandle],
) -> Result<Vec<Socket>, ListenError> {
    if sockets.is_empty() {
        // With SO_REUSEPORT alone, a second Fairway would quietly share the port.
        probe(addr, protocol)?;
    }
    while sockets.len() < workers.len() {
        sockets.push(open_listener(addr, protocol)?);
    }
    give(key, protocol, Some(addr), &sockets, workers)
        .map_err(|error| ListenError::Resources { addr, error })?;
    Ok(sockets)
}

/// Gives each worker its copies of sockets: the same workers the same sockets, in each process.
pub(super) fn give(
    key: ListenerKey,
    protocol: Protocol,
    vip: Option<SocketAddr>,
    sockets: &[Socket],
    workers: &[WorkerHandle],
) -> std::io::Result<()> {
    let copies: Vec<Socket> =
        sockets.iter().map(Socket::try_clone).collect::<std::io::Result<_>>()?;
    for (worker, socket) in workers.iter().cycle().zip(copies) {
        worker.send(Command::Listen { key, socket, protocol, vip });
    }
    Ok(())
}

fn places(frontend: &Frontend) -> impl Iterator<Item = Place> + use<> {
    let (ip, protocol) = (frontend.ip(), frontend.protocol);
    frontend.ports.iter().map(move |port| (protocol, SocketAddr::new(ip, port)))
}

fn missing_text(ip: IpAddr) -> String {
    let len = if ip.is_ipv4() { 32 } else { 128 };
    format!(
        "{ip} is not an address of this machine; add it with `ip address add {ip}/{len} dev lo`, \
         or name an interface in `dataplane.vip.interface`"
    )
}

/// Whether `ip` is an address of this machine: only those can be bound without IP_FREEBIND, but
/// where the kernel is told to let any address be bound; then its routes are asked.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok() && (!binds_anything(ip) || routes_here(ip))
}

fn binds_anything(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let switch = format!("/proc/sys/net/{family}/ip_nonlocal_bind");
    std::fs::read_to_string(switch).is_ok_and(|text| text.trim() != "0")
}

fn routes_here(ip: IpAddr) -> bool {
    // Without the command, the bind is all that is known.
    run("ip", &["-o", "route", "get", &ip.to_string()], "")
        .map_or(true, |route| route.starts_with("local "))
}
