//! Whether an nftables table is there, asked of the kernel: of all that `nft` can be asked, even names alone, it
//! reads the elements of every set first, a tenth of a second for ten thousand (1.0.6).

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// NFNL_SUBSYS_NFTABLES and, in it, NFT_MSG_GETTABLE (linux/netfilter/nf_tables.h).
const GET_TABLE: u16 = 10 << 8 | 1;
/// NLM_F_REQUEST and NLMSG_ERROR (linux/netlink.h).
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// NFPROTO_INET and NFTA_TABLE_NAME.
const INET: u8 = 1;
const NAME: u16 = 1;

/// Whether the table `inet NAME` is there. Costs three system calls.
pub(super) fn is_there(name: &str) -> Result<bool, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let family = AddressFamily::NETLINK;
    let socket = socket_with(family, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    // An unconnected socket of netlink speaks to the kernel.
    send(&socket, &question(name), SendFlags::empty())?;
    // The kernel answers before it returns from that.
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    let answer = &answer[..length];
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(ERROR), Some(error)) => match Errno::from_raw_os_error(-error) {
            Errno::NOENT => Ok(false),
            other => Err(other),
        },
        (Some(_), Some(_)) => Ok(true),
        _ => Err(Errno::BADMSG),
    }
}

/// The question as the kernel reads it: a header of netlink, one of netfilter, and the name.
fn question(name: &str) -> Vec<u8> {
    let named = 4 + name.len() + 1;
    let length = 20 + named.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(GET_TABLE.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // A number and a sender, which a single question needs not.
    message.extend([0; 8]);
    message.extend([INET, 0, 0, 0]);
    message.extend((named as u16).to_ne_bytes());
    message.extend(NAME.to_ne_bytes());
    message.extend(name.as_bytes());
    message.resize(length, 0);
    message
}
