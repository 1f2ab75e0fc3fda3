//! Headers of the PROXY protocol: who the client is, said by the proxy before us or to the
//! backend behind us.
//!
//! Versions 1 and 2, with the TLVs for a unique id and for a CRC32c.
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy Technologies, 2020.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";
/// Longest header of version 1, its line end included.
const V1_MOST: usize = 107;
/// Bytes of version 2 before the addresses.
const V2_FIXED: usize = 16;
/// Longest header that is read: addresses and generous TLVs.
pub const MOST_BYTES: usize = 4096;
const CRC32C: u8 = 0x03;
const UNIQUE_ID: u8 = 0x05;
/// Longest unique id that the protocol allows.
const UNIQUE_ID_MOST: usize = 128;
/// Longest header of version 2 that is written: IPv6 addresses, a unique id and a checksum.
pub(crate) const V2_MOST: usize = v2_length(false, true) + 3 + UNIQUE_ID_MOST;

/// Bytes of a header of version 2 with addresses and no unique id.
pub(crate) const fn v2_length(is_v4: bool, crc32c: bool) -> usize {
    let addresses = if is_v4 { 12 } else { 36 };
    V2_FIXED + addresses + if crc32c { 7 } else { 0 }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client and what it dialled; none when the proxy speaks for itself, as in a health
    /// check, or does not know.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The id that the proxy gave the connection.
    pub unique_id: Option<Box<[u8]>>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The start of a header, perhaps: more bytes will tell.
    Partial,
    /// No header.
    Plain,
    /// A header of this many bytes; the client's own bytes follow.
    Header(ProxyHeader, usize),
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A version or command that nobody knows.
    #[error("a version or command of the PROXY protocol that is not known")]
    Version,
    /// An address, port, family or length that is none.
    #[error("an address in a PROXY header that is none")]
    Address,
    /// No line end where one must be, or more bytes than we read.
    #[error("a PROXY header that does not end")]
    TooLong,
    /// TLVs that do not fill their room.
    #[error("a TLV in a PROXY header that does not fit")]
    Tlv,
    /// The checksum says that bytes were changed.
    #[error("a PROXY header with a wrong CRC32c")]
    Checksum,
}

/// Reads the first bytes of a connection.
pub fn read(bytes: &[u8]) -> Result<Opening, HeaderError> {
    let starts = |word: &[u8]| {
        let n = bytes.len().min(word.len());
        bytes[..n] == word[..n]
    };
    if starts(&SIGNATURE) {
        return if bytes.len() < SIGNATURE.len() { Ok(Opening::Partial) } else { read_v2(bytes) };
    }
    if starts(WORD) {
        return if bytes.len() < WORD.len() { Ok(Opening::Partial) } else { read_v1(bytes) };
    }
    Ok(Opening::Plain)
}

fn read_v1(bytes: &[u8]) -> Result<Opening, HeaderError> {
    let line = &bytes[..bytes.len().min(V1_MOST)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < V1_MOST {
            Ok(Opening::Partial)
        } else {
            Err(HeaderError::TooLong)
        };
    };
    let text = core::str::from_utf8(&line[WORD.len()..end]).map_err(|_| HeaderError::Address)?;
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    let addresses = match family {
        // What follows is to be ignored.
        "UNKNOWN" => None,
        "TCP4" | "TCP6" => {
            let mut ip = || {
                let ip: IpAddr = words.next()?.parse().ok()?;
                (ip.is_ipv4() == (family == "TCP4")).then_some(ip)
            };
            let ips = (ip(), ip());
            let mut port = || {
                let word = words.next()?;
                // `+1` and `01` are numbers to Rust and none to the protocol.
                let plain = word.bytes().all(|c| c.is_ascii_digit())
                    && (word.len() == 1 || !word.starts_with('0'));
                plain.then(|| word.parse::<u16>().ok()).flatten()
            };
            let ports = (port(), port());
            let ((Some(source), Some(target)), (Some(from), Some(to)), None) =
                (ips, ports, words.next())
            else {
                return Err(HeaderError::Address);
            };
            Some((SocketAddr::new(source, from), SocketAddr::new(target, to)))
        }
        _ => return Err(HeaderError::Address),
    };
    Ok(Opening::Header(ProxyHeader { addresses, unique_id: None }, end + 2))
}

fn read_v2(bytes: &[u8]) -> Result<Opening, HeaderError> {
    let Some(fixed) = bytes.get(SIGNATURE.len()..V2_FIXED) else {
        return Ok(Opening::Partial);
    };
    let len = V2_FIXED + usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if len > MOST_BYTES {
        return Err(HeaderError::TooLong);
    }
    let is_proxy = match fixed[0] {
        0x20 => false,
        0x21 => true,
        _ => return Err(HeaderError::Version),
    };
    let Some(header) = bytes.get(..len) else {
        return Ok(Opening::Partial);
    };
    if !is_proxy {
        // LOCAL: what follows is to be skipped, whatever it is.
        return Ok(Opening::Header(ProxyHeader { addresses: None, unique_id: None }, len));
    }
    let body = &header[V2_FIXED..];
    let (addresses, tlvs) = match fixed[1] >> 4 {
        // Without a family, what follows may be anything.
        0 => (None, &[][..]),
        1 => {
            let (block, rest) = body.split_first_chunk::<12>().ok_or(HeaderError::Address)?;
            let [a, b, c, d, e, f, g, h, ports @ ..] = *block;
            let ips = (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into());
            (Some(with_ports(ips, ports)), rest)
        }
        2 => {
            let (block, rest) = body.split_first_chunk::<36>().ok_or(HeaderError::Address)?;
            let ip = |from: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&block[from..from + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            (Some(with_ports((ip(0), ip(16)), [block[32], block[33], block[34], block[35]])), rest)
        }
        // Unix sockets: 216 bytes of paths, which say nothing to us.
        3 => (None, body.get(216..).ok_or(HeaderError::Address)?),
        _ => return Err(HeaderError::Address),
    };
    if fixed[1] & 0x0f > 2 {
        return Err(HeaderError::Address);
    }
    let unique_id = read_tlvs(header, tlvs)?;
    Ok(Opening::Header(ProxyHeader { addresses, unique_id }, len))
}

fn with_ports(ips: (IpAddr, IpAddr), [a, b, c, d]: [u8; 4]) -> (SocketAddr, SocketAddr) {
    let port = |high, low| u16::from_be_bytes([high, low]);
    (SocketAddr::new(ips.0, port(a, b)), SocketAddr::new(ips.1, port(c, d)))
}

/// Walks the TLVs at the end of `header`; checks the checksum and returns the unique id.
fn read_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<Option<Box<[u8]>>, HeaderError> {
    let mut unique_id = None;
    while let [kind, high, low, rest @ ..] = tlvs {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..len).ok_or(HeaderError::Tlv)?;
        match *kind {
            CRC32C => {
                let said = value.first_chunk().filter(|_| len == 4).ok_or(HeaderError::Tlv)?;
                let at = header.len() - rest.len();
                let sum = [&header[..at], &[0; 4], &header[at + 4..]];
                if crc32c(sum.into_iter().flatten()) != u32::from_be_bytes(*said) {
                    return Err(HeaderError::Checksum);
                }
            }
            UNIQUE_ID if len <= UNIQUE_ID_MOST => unique_id = Some(value.into()),
            UNIQUE_ID => return Err(HeaderError::Tlv),
            _ => {}
        }
        tlvs = &rest[len..];
    }
    if tlvs.is_empty() { Ok(unique_id) } else { Err(HeaderError::Tlv) }
}

/// Which version of the header is written, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderFormat {
    /// A line of text.
    V1,
    /// Bytes.
    V2 {
        /// With a checksum.
        crc32c: bool,
    },
}

/// Writes a header for a client and what it dialled, or one that says that we speak for ourselves.
///
/// A unique id of up to 128 bytes goes into version 2 only; version 1 has no room for it.
#[must_use]
pub fn write(
    format: HeaderFormat,
    addresses: Option<(SocketAddr, SocketAddr)>,
    unique_id: Option<&[u8]>,
) -> Vec<u8> {
    let addresses = addresses.map(|(source, target)| one_family(source, target));
    // Who speaks for himself has no connection to name.
    let unique_id = unique_id.filter(|_| addresses.is_some());
    match format {
        HeaderFormat::V1 => write_v1(addresses),
        HeaderFormat::V2 { crc32c } => {
            let mut out = [0; V2_MOST];
            let len = write_v2(&mut out, addresses, unique_id, crc32c);
            out[..len].to_vec()
        }
    }
}

/// Both addresses in one family: a header has room for no other pair.
fn one_family(source: SocketAddr, target: SocketAddr) -> (SocketAddr, SocketAddr) {
    let with_ip = |addr: SocketAddr, ip: IpAddr| SocketAddr::new(ip, addr.port());
    let plain = |addr: SocketAddr| with_ip(addr, addr.ip().to_canonical());
    let (source, target) = (plain(source), plain(target));
    if source.is_ipv4() == target.is_ipv4() {
        return (source, target);
    }
    let mapped = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => with_ip(addr, ip.to_ipv6_mapped().into()),
        IpAddr::V6(_) => addr,
    };
    (mapped(source), mapped(target))
}

fn write_v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((source, target)) = addresses else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let mut text = alloc::string::String::with_capacity(V1_MOST);
    let (from, to) = (source.port(), target.port());
    // Writing into a String cannot fail.
    let _ = write!(text, "PROXY {family} {} {} {from} {to}\r\n", source.ip(), target.ip());
    text.into_bytes()
}

/// Writes a header of version 2 into `out`; its length.
pub(crate) fn write_v2(
    out: &mut [u8; V2_MOST],
    addresses: Option<(SocketAddr, SocketAddr)>,
    unique_id: Option<&[u8]>,
    with_crc32c: bool,
) -> usize {
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        out[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    put(&SIGNATURE);
    let (command, family) = match addresses {
        None => (0x20, 0x00),
        Some((source, _)) if source.is_ipv4() => (0x21, 0x11),
        Some(_) => (0x21, 0x21),
    };
    put(&[command, family, 0, 0]);
    if let Some((source, target)) = addresses {
        for ip in [source.ip(), target.ip()] {
            match ip {
                IpAddr::V4(ip) => put(&ip.octets()),
                IpAddr::V6(ip) => put(&ip.octets()),
            }
        }
        put(&source.port().to_be_bytes());
        put(&target.port().to_be_bytes());
    }
    if let Some(id) = unique_id.filter(|id| !id.is_empty() && id.len() <= UNIQUE_ID_MOST) {
        put(&[UNIQUE_ID, 0, id.len() as u8]);
        put(id);
    }
    if with_crc32c {
        put(&[CRC32C, 0, 4, 0, 0, 0, 0]);
    }
    let body = (len - V2_FIXED) as u16;
    out[V2_FIXED - 2..V2_FIXED].copy_from_slice(&body.to_be_bytes());
    if with_crc32c {
        let sum = crc32c(out[..len].iter());
        out[len - 4..len].copy_from_slice(&sum.to_be_bytes());
    }
    len
}

/// CRC-32C (Castagnoli), RFC 3720 section 12.1. Bit by bit: headers are short and rare.
pub(crate) fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

#[cfg(test)]
#[path = "proxy_header_tests.rs"]
mod tests;
