//! An interface as those who answer on it see it: whether it is up, its station, its addresses. Those that
//! are ours are marked as such, so that the next process knows what this one has left behind.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::time::timeout;

use super::PATIENCE;

/// Who has added an address (IFA_PROTO of rtnetlink, Linux 5.18): up to 3 are the kernel's own.
const OURS: AddressProtocol = AddressProtocol::Other(70);
/// What the kernel says of what is there already.
const EXISTS: i32 = -17;
/// The same of an address that is not there, and of an interface.
const ABSENT: i32 = -99;
const NO_DEVICE: i32 = -19;

/// Tells by `tell` whenever interfaces or addresses change, until it says that nobody hears. Must be called
/// within a runtime.
pub(crate) fn follow_changes(tell: impl Fn() -> bool + Send + 'static) -> Result<(), String> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) = new_multicast_connection(&groups)
        .map_err(|error| format!("rtnetlink cannot be used: {error}"))?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        // The connection lasts as long as somebody could ask by it.
        let _handle = handle;
        while messages.next().await.is_some() {
            // Changes come in flocks.
            while messages.try_recv().is_ok() {}
            if !tell() {
                return;
            }
        }
    });
    Ok(())
}

/// Asks the kernel of interfaces and their addresses.
#[derive(Clone)]
pub(crate) struct Interfaces(Handle);

/// What adding an address came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// It was not there.
    New,
    /// Somebody else has added it.
    There,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct InterfaceState {
    /// The kernel's number of it.
    pub(crate) number: u32,
    /// It is switched on and has a carrier.
    pub(crate) is_up: bool,
    /// Its station, if others can hear it there.
    pub(crate) station: Option<[u8; 6]>,
    /// Addresses that a Fairway has added.
    pub(crate) ours: BTreeSet<IpAddr>,
    /// Its first address of IPv4 that is not ours.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The same of IPv6, of use beyond the link.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Its address of IPv6 on the link.
    pub(crate) link_local: Option<Ipv6Addr>,
}

/// Every address of this machine but those that a Fairway has added, by its interface's number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllAddresses(Vec<(u32, IpAddr)>);

impl AllAddresses {
    /// Whether an address is on this machine.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|(_, at)| *at == ip)
    }

    /// An address of each family on the interface that has `ip`, of use beyond the link.
    pub(crate) fn beside(&self, ip: IpAddr) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let Some((number, _)) = self.0.iter().find(|(_, at)| *at == ip) else {
            return (None, None);
        };
        let there = || self.0.iter().filter(|(at, _)| at == number).map(|(_, ip)| *ip);
        let ipv4 = there().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let ipv6 = there().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(ip).filter(|ip| !ip.is_unicast_link_local()),
            IpAddr::V4(_) => None,
        });
        (ipv4, ipv6)
    }
}

impl Interfaces {
    /// Must be called within a runtime, where the connection to the kernel lives.
    pub(crate) fn connect() -> Result<Self, String> {
        let (connection, handle, _) =
            new_connection().map_err(|error| format!("rtnetlink cannot be used: {error}"))?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Every address of this machine but ours.
    pub(crate) async fn all(&self) -> Result<AllAddresses, String> {
        answered(async {
            let messages: Vec<AddressMessage> = self
                .0
                .address()
                .get()
                .execute()
                .try_collect()
                .await
                .map_err(|error| words(&error))?;
            let is_ours =
                |it: &&AddressMessage| it.attributes.contains(&AddressAttribute::Protocol(OURS));
            let others = messages.iter().filter(|it| !is_ours(it));
            let of = |it: &AddressMessage| Some((it.header.index, address(it)?));
            Ok(AllAddresses(others.filter_map(of).collect()))
        })
        .await
    }

    /// What there is of an interface; an error when there is none of that name.
    pub(crate) async fn look(&self, interface: &str) -> Result<InterfaceState, String> {
        answered(async {
            let link = self.link(interface).await?;
            let flags = link.header.flags;
            let mac = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
                _ => None,
            });
            let mut state = InterfaceState {
                number: link.header.index,
                is_up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
                station: mac.filter(|_| !flags.contains(LinkFlags::Loopback)),
                ..InterfaceState::default()
            };
            for message in self.messages(link.header.index).await? {
                let Some(ip) = address(&message) else { continue };
                if message.attributes.contains(&AddressAttribute::Protocol(OURS)) {
                    state.ours.insert(ip);
                    continue;
                }
                match ip {
                    IpAddr::V4(ip) => _ = state.ipv4.get_or_insert(ip),
                    IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                        state.link_local.get_or_insert(ip);
                    }
                    IpAddr::V6(ip) => _ = state.ipv6.get_or_insert(ip),
                }
            }
            Ok(state)
        })
        .await
    }

    /// Adds an address by itself, without a network, to an interface by its number.
    pub(crate) async fn add(&self, number: u32, ip: IpAddr) -> Result<Added, String> {
        answered(async {
            let mut request = self.0.address().add(number, ip, length(ip));
            let attributes = &mut request.message_mut().attributes;
            attributes.push(AddressAttribute::Protocol(OURS));
            if ip.is_ipv6() {
                // Duplicate address detection would hold the address back for seconds.
                attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            match request.execute().await {
                Ok(()) => Ok(Added::New),
                Err(error) if code(&error) == Some(EXISTS) => Ok(Added::There),
                Err(error) => Err(words(&error)),
            }
        })
        .await
    }

    /// Takes an address away; one that is not there is gone.
    pub(crate) async fn remove(&self, number: u32, ip: IpAddr) -> Result<(), String> {
        answered(async {
            let message = self.0.address().add(number, ip, length(ip)).message_mut().clone();
            match self.0.address().del(message).execute().await {
                Err(error) if code(&error) != Some(ABSENT) => Err(words(&error)),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn messages(&self, index: u32) -> Result<Vec<AddressMessage>, String> {
        let request = self.0.address().get().set_link_index_filter(index);
        request.execute().try_collect().await.map_err(|error| words(&error))
    }

    async fn link(&self, interface: &str) -> Result<LinkMessage, String> {
        let request = self.0.link().get().match_name(interface.to_owned()).execute();
        match std::pin::pin!(request).try_next().await {
            Ok(Some(link)) => Ok(link),
            Err(error) if code(&error) != Some(NO_DEVICE) => Err(words(&error)),
            _ => Err(format!("there is no interface `{interface}`")),
        }
    }
}

async fn answered<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let silence = || format!("the kernel has not answered within {PATIENCE:?}");
    timeout(PATIENCE, question).await.map_err(|_| silence())?
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    // On links with two ends `Address` is the other one's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(std::num::NonZeroI32::get),
        _ => None,
    }
}

/// The kernel's own words, without those of the library.
fn words(error: &rtnetlink::Error) -> String {
    match code(error) {
        Some(code) => std::io::Error::from_raw_os_error(-code).to_string(),
        None => error.to_string(),
    }
}
