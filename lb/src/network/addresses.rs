//! The addresses of an interface that are ours: marked as such, so that the next process knows what this
//! one has left behind.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, new_connection};
use tokio::runtime::Handle as Runtime;
use tokio::time::timeout;

use super::PATIENCE;

/// Who has added an address (IFA_PROTO of rtnetlink, Linux 5.18): up to 3 are the kernel's own.
const OURS: AddressProtocol = AddressProtocol::Other(70);
/// What the kernel says of what is there already.
const EXISTS: i32 = -17;

/// The addresses of an interface.
pub(crate) struct Addresses {
    interface: String,
    runtime: Runtime,
    handle: Handle,
}

/// What adding an address came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// It was not there.
    New,
    /// Somebody else has added it.
    There,
}

impl Addresses {
    /// The addresses of `interface`, which need not be there yet.
    pub(crate) fn new(runtime: &Runtime, interface: &str) -> Result<Self, String> {
        let _inside = runtime.enter();
        let (connection, handle, _) =
            new_connection().map_err(|error| format!("rtnetlink cannot be used: {error}"))?;
        runtime.spawn(connection);
        Ok(Self { interface: interface.into(), runtime: runtime.clone(), handle })
    }

    /// Its name.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// Adds an address by itself, without a network. Waits for the kernel.
    pub(crate) fn add(&self, ip: IpAddr) -> Result<Added, String> {
        self.ask(async {
            let index = self.index().await?;
            let length = if ip.is_ipv4() { 32 } else { 128 };
            let mut request = self.handle.address().add(index, ip, length);
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
    }

    /// Takes an address away. Waits for the kernel.
    pub(crate) fn remove(&self, ip: IpAddr) -> Result<(), String> {
        self.ask(async {
            for message in self.messages().await? {
                if host(&message) == Some(ip) {
                    let removal = self.handle.address().del(message).execute().await;
                    removal.map_err(|error| words(&error))?;
                }
            }
            Ok(())
        })
    }

    /// Addresses that a Fairway has added. Waits for the kernel.
    pub(crate) fn ours(&self) -> Result<BTreeSet<IpAddr>, String> {
        let is_ours = |message: &&AddressMessage| {
            message.attributes.contains(&AddressAttribute::Protocol(OURS))
        };
        let messages = self.ask(self.messages())?;
        Ok(messages.iter().filter(is_ours).filter_map(host).collect())
    }

    /// The station's address on the interface, if others can hear it there. Waits for the kernel.
    pub(crate) fn station(&self) -> Result<Option<[u8; 6]>, String> {
        let link = self.ask(self.link())?;
        let hears = !link.header.flags.contains(LinkFlags::Loopback);
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        Ok(mac.filter(|_| hears))
    }

    async fn messages(&self) -> Result<Vec<AddressMessage>, String> {
        let index = self.index().await?;
        let request = self.handle.address().get().set_link_index_filter(index);
        request.execute().try_collect().await.map_err(|error| words(&error))
    }

    async fn index(&self) -> Result<u32, String> {
        Ok(self.link().await?.header.index)
    }

    async fn link(&self) -> Result<LinkMessage, String> {
        let request = self.handle.link().get().match_name(self.interface.clone()).execute();
        let link = std::pin::pin!(request).try_next().await.map_err(|error| words(&error))?;
        link.ok_or_else(|| format!("there is no interface `{}`", self.interface))
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let silence = || format!("the kernel has not answered within {PATIENCE:?}");
        self.runtime.block_on(async { timeout(PATIENCE, question).await }).map_err(|_| silence())?
    }
}

/// The address of a message, if it stands by itself.
fn host(message: &AddressMessage) -> Option<IpAddr> {
    let find = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    };
    let ip = message.attributes.iter().find_map(find)?;
    let length = if ip.is_ipv4() { 32 } else { 128 };
    (message.header.prefix_len == length).then_some(ip)
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
