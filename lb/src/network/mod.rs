//! What the kernel knows of this machine's networks: links, addresses, routes, neighbours.
//!
//! The packet path sends by the kernel's routes and neighbours. A task follows them by rtnetlink:
//! something changes, everything is read again soon after, and what is different is told. Stations
//! that packets wait for are looked for by the kernel, as if it had a packet for them itself.

mod addresses;
mod state;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairway_core::packet::{Routes, Unresolved};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{Stream, StreamExt};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, address::AddressMessage};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
};
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

pub(crate) use self::addresses::{Added, AllAddresses, InterfaceState, Interfaces, follow_changes};
pub(crate) use self::state::{Device, Network};

/// From the first word of a change to reading: changes come in flocks.
const GATHER: Duration = Duration::from_millis(5);
/// How often stations that must be known are used, so that the kernel looks whether they are there.
const USE: Duration = Duration::from_secs(5);
/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// From a failure to the next try.
const AGAIN: Duration = Duration::from_secs(1);
/// How often everything is read without a word of a change.
const READ: Duration = Duration::from_secs(30);

/// What the control loop wants of the networks.
enum Wish {
    Find(Unresolved),
    Keep(Vec<IpAddr>),
}

/// What the networks look like now.
pub(crate) struct News {
    pub(crate) routes: Arc<Routes>,
    /// The configured interfaces, in their order; none that are not there.
    pub(crate) devices: Vec<Option<Device>>,
    /// Every address of this machine.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// The control loop's end of the task.
pub(crate) struct Watch(mpsc::UnboundedSender<Wish>);

impl Watch {
    /// Reads the networks of `interfaces` and follows them; `tell` hears of changes.
    pub(crate) fn start(
        runtime: &Runtime,
        interfaces: Vec<String>,
        tell: impl Fn(Result<News, String>) + Send + Sync + 'static,
    ) -> Result<(Self, News), String> {
        let words = |why: &dyn std::fmt::Display| {
            format!("routes and neighbours cannot be read (rtnetlink): {why}")
        };
        let (sender, wishes) = mpsc::unbounded_channel();
        let first = runtime.block_on(Follower::start(interfaces, wishes));
        let follower = first.map_err(|why| words(&why))?;
        let news = follower.network.news();
        runtime.spawn(async move {
            let mut follower = follower;
            while let Err(why) = follower.follow(&tell).await {
                tell(Err(words(&why)));
                follower.connect_again().await;
                tell(Ok(follower.network.news()));
            }
        });
        Ok((Self(sender), news))
    }

    /// Has the kernel look for a station.
    pub(crate) fn find(&self, unresolved: Unresolved) {
        // A task that has ended has said why.
        let _ = self.0.send(Wish::Find(unresolved));
    }

    /// Has the kernel know the stations on the way to these addresses at all times.
    pub(crate) fn keep(&self, addresses: Vec<IpAddr>) {
        let _ = self.0.send(Wish::Keep(addresses));
    }
}

/// What changes. The connection lasts as long as somebody could ask by it.
struct Events {
    messages: Messages,
    _handle: Handle,
}

type Messages =
    UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>;

/// The task.
struct Follower {
    interfaces: Vec<String>,
    handle: Handle,
    events: Events,
    wishes: mpsc::UnboundedReceiver<Wish>,
    network: Network,
    /// Addresses whose stations are to be known.
    kept: Vec<IpAddr>,
}

impl Follower {
    async fn start(
        interfaces: Vec<String>,
        wishes: mpsc::UnboundedReceiver<Wish>,
    ) -> Result<Self, String> {
        let (handle, events) = connect()?;
        let network = read(&handle, &interfaces).await?;
        Ok(Self { interfaces, handle, events, wishes, network, kept: Vec::new() })
    }

    /// Connects until that works, and reads everything.
    async fn connect_again(&mut self) {
        loop {
            sleep(AGAIN).await;
            let Ok((handle, events)) = connect() else { continue };
            let Ok(network) = read(&handle, &self.interfaces).await else { continue };
            (self.handle, self.events, self.network) = (handle, events, network);
            return;
        }
    }

    /// Follows what changes until nobody wants to know; an error says what went wrong.
    async fn follow(&mut self, tell: &impl Fn(Result<News, String>)) -> Result<(), String> {
        let (mut uses, mut reads) = (interval(USE), interval(READ));
        let mut due = None;
        loop {
            let read_at = due.unwrap_or_else(|| Instant::now() + READ);
            tokio::select! {
                message = self.events.messages.next() => {
                    if message.is_none() {
                        return Err("the connection has ended".into());
                    }
                    due.get_or_insert_with(|| Instant::now() + GATHER);
                }
                _ = reads.tick() => due = Some(Instant::now()),
                () = sleep_until(read_at), if due.is_some() => {
                    due = None;
                    let next = read(&self.handle, &self.interfaces).await?;
                    if next != self.network {
                        self.network = next;
                        tell(Ok(self.network.news()));
                        self.find_kept().await;
                    }
                }
                _ = uses.tick() => self.find_kept().await,
                wish = self.wishes.recv() => match wish {
                    None => return Ok(()),
                    Some(Wish::Find(Unresolved { interface, station })) if self.network.is_fixed(interface, station) => {}
                    Some(Wish::Find(Unresolved { interface, station })) => {
                        find(&self.handle, interface, station).await;
                    }
                    Some(Wish::Keep(addresses)) => {
                        self.kept = addresses;
                        self.find_kept().await;
                    }
                },
            }
        }
    }

    /// Has the kernel use the stations on the way to the addresses that are kept.
    async fn find_kept(&self) {
        for (interface, station) in self.network.stations(&self.kept) {
            find(&self.handle, interface, station).await;
        }
    }
}

/// A connection for requests, and one for what changes: a flood of one loses nothing of the other.
fn connect() -> Result<(Handle, Events), String> {
    let words = |error: std::io::Error| error.to_string();
    let (connection, handle, _) = new_connection().map_err(words)?;
    tokio::spawn(connection);
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
    ];
    let (connection, _handle, messages) = new_multicast_connection(&groups).map_err(words)?;
    tokio::spawn(connection);
    Ok((handle, Events { messages, _handle }))
}

/// As a packet would: a known neighbour that is not sure is asked, an unknown one is looked for.
async fn find(handle: &Handle, interface: u32, station: IpAddr) {
    let request = handle.neighbours().add(interface, station);
    let used = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
    // The interface may have gone meanwhile; it is asked for again.
    match timeout(PATIENCE, used.execute()).await {
        Ok(Err(error)) => tracing::debug!(%station, "the kernel does not look for it: {error}"),
        Err(_) => tracing::debug!(%station, "the kernel does not answer"),
        Ok(Ok(())) => {}
    }
}

async fn read(handle: &Handle, interfaces: &[String]) -> Result<Network, String> {
    match timeout(PATIENCE, dump(handle, interfaces)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no whole answer within {PATIENCE:?}")),
    }
}

async fn dump(handle: &Handle, interfaces: &[String]) -> Result<Network, rtnetlink::Error> {
    let links: Vec<LinkMessage> = all(handle.link().get().execute()).await?;
    let addresses: Vec<AddressMessage> = all(handle.address().get().execute()).await?;
    let mut routes: Vec<RouteMessage> = Vec::new();
    let mut neighbours: Vec<NeighbourMessage> = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let wanted = match family {
            AddressFamily::Inet => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            _ => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        routes.extend(all(handle.route().get(wanted).execute()).await?);
        let known = handle.neighbours().get().set_address_family(family);
        neighbours.extend(all(known.execute()).await?);
    }
    Ok(Network::of(interfaces, &links, &addresses, &routes, &neighbours))
}

async fn all<T>(
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, rtnetlink::Error> {
    let answers: Vec<_> = answers.collect().await;
    answers.into_iter().collect()
}
