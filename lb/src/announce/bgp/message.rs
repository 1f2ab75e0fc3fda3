//! What a BGP session says and hears, in octets: netgauze's codec, and which of it we use.
//!
//! Source: RFC 4271; RFC 4760 (both families over one session), 6793 (four-octet numbers), 4724 (graceful
//! restart), 8950 (IPv4 behind next hops of IPv6), 1997 and 8092 (communities), 9003 (words of a shutdown).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairway_core::IpPrefix;
use ipnet::{Ipv4Net, Ipv6Net};
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::capabilities::{
    BgpCapability, ExtendedNextHopEncoding, ExtendedNextHopEncodingCapability,
    FourOctetAsCapability, GracefulRestartAddressFamily, GracefulRestartCapability,
    MultiProtocolExtensionsCapability,
};
use netgauze_bgp_pkt::community::{Community, LargeCommunity};
use netgauze_bgp_pkt::nlri::{Ipv4Unicast, Ipv4UnicastAddress, Ipv6Unicast, Ipv6UnicastAddress};
use netgauze_bgp_pkt::notification::{
    BgpNotificationMessage, CeaseError, FiniteStateMachineError, HoldTimerExpiredError,
    OpenMessageError,
};
use netgauze_bgp_pkt::open::{BgpOpenMessage, BgpOpenMessageParameter};
use netgauze_bgp_pkt::path_attribute::{
    As2PathSegment, As4Path, As4PathSegment, AsPath, AsPathSegmentType, Communities,
    LargeCommunities, LocalPreference, MpReach, MpUnreach, MultiExitDiscriminator, NextHop, Origin,
    PathAttribute, PathAttributeValue,
};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_iana::address_family::{AddressFamily, AddressType};
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use serde::{Deserialize, Serialize};

/// Octets of a header: marker, length, type.
const HEADER: usize = 19;
/// Octets of the longest message (RFC 4271, section 4.1).
const LONGEST: usize = 4096;
/// Stands for a number of four octets in a field of two (RFC 6793).
const AS_TRANS: u16 = 23456;
/// The type of an UPDATE.
const UPDATE: u8 = 2;

/// What a route is told with.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attributes {
    /// How much a router of our own system prefers it; told to such alone.
    pub local_pref: Option<u32>,
    /// How little a router of another system prefers it (MULTI_EXIT_DISC).
    pub med: Option<u32>,
    /// Communities (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Large communities (RFC 8092).
    pub large_communities: BTreeSet<[u32; 3]>,
}

/// Where routers are to send what is for our routes: to us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHops {
    /// For IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6, and for IPv4 where there is no other and the peer takes that.
    pub ipv6: Option<Ipv6Addr>,
}

/// What we say of ourselves at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Our number.
    pub own_as: u32,
    /// Our identifier.
    pub id: Ipv4Addr,
    /// Seconds of silence that end a session; zero is never.
    pub hold_seconds: u16,
    /// Seconds for which routes are to outlive a session.
    pub restart_seconds: Option<u16>,
    /// We have just started, and had a session before perhaps.
    pub restarts: bool,
}

/// What a peer says of itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its number.
    pub number: u32,
    /// Its identifier.
    pub id: Ipv4Addr,
    /// Seconds of silence that end a session; zero is never.
    pub hold_seconds: u16,
    /// It takes numbers of four octets.
    pub four_octets: bool,
    /// It takes routes of IPv4.
    pub ipv4: bool,
    /// It takes routes of IPv6.
    pub ipv6: bool,
    /// It takes next hops of IPv6 for IPv4.
    pub ipv4_over_ipv6: bool,
    /// It keeps routes while we start again.
    pub restarts: bool,
}

/// A message that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The beginning.
    Open(Opened),
    /// It is there.
    Keepalive,
    /// Routes, which are not looked at: none is ever imported.
    Update,
    /// It ends the session, and why.
    Notification(String),
    /// It wants our routes once more.
    Refresh,
}

/// Why a session ends at our wish, in words for both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For the peer.
    message: BgpNotificationMessage,
    /// For people here.
    pub why: String,
}

impl Fault {
    /// Nothing was heard for the hold time.
    #[must_use]
    pub fn silence() -> Self {
        let error = HoldTimerExpiredError::Unspecific { sub_code: 0, value: Box::default() };
        let why = "nothing was heard for the hold time".into();
        Self { message: BgpNotificationMessage::HoldTimerExpiredError(error), why }
    }

    /// A message came that has no place there.
    #[must_use]
    pub fn out_of_place(what: &str) -> Self {
        let error = FiniteStateMachineError::Unspecific { value: Box::default() };
        let message = BgpNotificationMessage::FiniteStateMachineError(error);
        Self { message, why: format!("{what} came out of place") }
    }

    /// The peer's number is not the configured one.
    #[must_use]
    pub fn wrong_number(number: u32, wanted: &str) -> Self {
        let value = u16::try_from(number).unwrap_or(AS_TRANS).to_be_bytes().into();
        let error = OpenMessageError::BadPeerAs { value };
        Self {
            message: BgpNotificationMessage::OpenMessageError(error),
            why: format!("its AS number is {number}, and not {wanted}"),
        }
    }

    /// The peer has our own identifier.
    #[must_use]
    pub fn same_id(id: Ipv4Addr) -> Self {
        let error = OpenMessageError::BadBgpIdentifier { value: id.octets().into() };
        Self {
            message: BgpNotificationMessage::OpenMessageError(error),
            why: format!("its router id is ours, {id}; set another `routerID`"),
        }
    }

    /// Of two connections another is kept.
    #[must_use]
    pub fn collision() -> Self {
        let error = CeaseError::ConnectionCollisionResolution { value: Box::default() };
        let why = "another connection is kept".into();
        Self { message: BgpNotificationMessage::CeaseError(error), why }
    }

    /// We stop; `words` is for the peer's operator.
    #[must_use]
    pub fn shutdown(words: &str) -> Self {
        // RFC 9003: a length, and UTF-8.
        let words = &words.as_bytes()[..words.len().min(128)];
        let value = std::iter::once(words.len() as u8).chain(words.iter().copied()).collect();
        let error = CeaseError::AdministrativeShutdown { value };
        let why = format!("it was ended here: {}", String::from_utf8_lossy(words));
        Self { message: BgpNotificationMessage::CeaseError(error), why }
    }

    /// What the peer was told last is not known here.
    #[must_use]
    pub fn reset() -> Self {
        let error = CeaseError::AdministrativeReset { value: Box::default() };
        let why = "another process of this box has had it, and has failed".into();
        Self { message: BgpNotificationMessage::CeaseError(error), why }
    }

    /// BFD says that the way is gone (RFC 9384).
    #[must_use]
    pub fn bfd() -> Self {
        let error = CeaseError::BfdDown { value: Box::default() };
        let why = "BFD says that the way is gone".into();
        Self { message: BgpNotificationMessage::CeaseError(error), why }
    }

    /// Its octets.
    #[must_use]
    pub fn octets(&self) -> Vec<u8> {
        octets(&BgpMessage::Notification(self.message.clone()))
    }
}

/// Octets of a KEEPALIVE.
#[must_use]
pub fn keepalive() -> Vec<u8> {
    octets(&BgpMessage::KeepAlive)
}

/// Octets of an OPEN.
#[must_use]
pub fn open(opening: &Opening) -> Vec<u8> {
    let families = [AddressType::Ipv4Unicast, AddressType::Ipv6Unicast];
    let mut capabilities: Vec<BgpCapability> = families
        .map(MultiProtocolExtensionsCapability::new)
        .map(BgpCapability::MultiProtocolExtensions)
        .into();
    capabilities.push(BgpCapability::RouteRefresh);
    capabilities.push(BgpCapability::FourOctetAs(FourOctetAsCapability::new(opening.own_as)));
    let over = ExtendedNextHopEncoding::new(AddressType::Ipv4Unicast, AddressFamily::IPv6);
    let over = ExtendedNextHopEncodingCapability::new([over]);
    capabilities.push(BgpCapability::ExtendedNextHopEncoding(over));
    if let Some(seconds) = opening.restart_seconds {
        // What forwards packets here outlives no session, but flows find their backends again.
        let kept = families.map(|family| GracefulRestartAddressFamily::new(true, family));
        let restart = GracefulRestartCapability::new(opening.restarts, false, seconds, kept);
        capabilities.push(BgpCapability::GracefulRestartCapability(restart));
    }
    // One parameter for each: the oldest peers know no other form.
    let parameter = |capability| BgpOpenMessageParameter::new_capabilities([capability]);
    let parameters: Vec<_> = capabilities.into_iter().map(parameter).collect();
    let number = u16::try_from(opening.own_as).unwrap_or(AS_TRANS);
    let open = BgpOpenMessage::new(number, opening.hold_seconds, opening.id, parameters);
    octets(&BgpMessage::Open(open))
}

/// How routes are told to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Our number.
    pub own_as: u32,
    /// The peer is of our own system.
    pub internal: bool,
    /// It takes numbers of four octets.
    pub four_octets: bool,
    /// It takes next hops of IPv6 for IPv4.
    pub ipv4_over_ipv6: bool,
    /// Where it is to send to.
    pub hops: NextHops,
}

impl Manner {
    /// Whether a route of this family can be told: there is a next hop for it.
    #[must_use]
    pub fn reaches(&self, ipv4: bool) -> bool {
        match ipv4 {
            true => self.hops.ipv4.is_some() || (self.ipv4_over_ipv6 && self.hops.ipv6.is_some()),
            false => self.hops.ipv6.is_some(),
        }
    }
}

/// Octets of an UPDATE that tells of prefixes of one family, with the same attributes. None when there is
/// no next hop for them.
#[must_use]
pub fn update(prefixes: &[IpPrefix], attributes: &Attributes, manner: &Manner) -> Option<Vec<u8>> {
    let path = match (manner.internal, manner.four_octets) {
        (true, true) => AsPath::as4_path_segments([]),
        (true, false) => AsPath::as2_path_segments([]),
        (false, true) => AsPath::as4_path_segments([sequence(manner.own_as)]),
        (false, false) => {
            let number = u16::try_from(manner.own_as).unwrap_or(AS_TRANS);
            let segment = As2PathSegment::new(AsPathSegmentType::AsSequence, [number]);
            AsPath::as2_path_segments([segment])
        }
    };
    let mut all = vec![
        (false, true, PathAttributeValue::Origin(Origin::IGP)),
        (false, true, PathAttributeValue::AsPath(path)),
    ];
    let mut nlri = Vec::new();
    let is_ipv4 = prefixes.first()?.is_ipv4();
    let reach = match (is_ipv4, manner.hops.ipv4, manner.hops.ipv6) {
        (true, Some(hop), _) => {
            all.push((false, true, PathAttributeValue::NextHop(NextHop::new(hop))));
            nlri = of_ipv4(prefixes);
            None
        }
        (true, None, Some(hop)) if manner.ipv4_over_ipv6 => Some(MpReach::Ipv4Unicast {
            next_hop: hop.into(),
            next_hop_local: None,
            nlri: of_ipv4(prefixes).into(),
        }),
        (false, _, Some(next_hop_global)) => Some(MpReach::Ipv6Unicast {
            next_hop_global,
            next_hop_local: None,
            nlri: of_ipv6(prefixes).into(),
        }),
        _ => return None,
    };
    if let Some(med) = attributes.med {
        all.push((
            true,
            false,
            PathAttributeValue::MultiExitDiscriminator(MultiExitDiscriminator::new(med)),
        ));
    }
    if manner.internal {
        let preference = LocalPreference::new(attributes.local_pref.unwrap_or(100));
        all.push((false, true, PathAttributeValue::LocalPreference(preference)));
    }
    if !attributes.communities.is_empty() {
        let communities: Vec<_> =
            attributes.communities.iter().map(|value| Community::new(*value)).collect();
        let value = PathAttributeValue::Communities(Communities::new(communities));
        all.push((true, true, value));
    }
    if let Some(reach) = reach {
        all.push((true, false, PathAttributeValue::MpReach(reach)));
    }
    if !manner.internal && !manner.four_octets && manner.own_as > u16::MAX.into() {
        let path = As4Path::new([sequence(manner.own_as)]);
        all.push((true, true, PathAttributeValue::As4Path(path)));
    }
    if !attributes.large_communities.is_empty() {
        let large = attributes.large_communities.iter();
        let large: Vec<_> = large.map(|[a, b, c]| LargeCommunity::new(*a, *b, *c)).collect();
        let value = PathAttributeValue::LargeCommunities(LargeCommunities::new(large));
        all.push((true, true, value));
    }
    Some(octets(&BgpMessage::Update(BgpUpdateMessage::new([], attributes_of(all), nlri))))
}

/// Octets of an UPDATE that takes back prefixes of one family; without any it ends the first telling of all
/// routes (End-of-RIB, RFC 4724).
#[must_use]
pub fn withdrawal(ipv4: bool, prefixes: &[IpPrefix]) -> Vec<u8> {
    let update = match ipv4 {
        true => BgpUpdateMessage::new(of_ipv4(prefixes), [], []),
        false => {
            let gone = MpUnreach::Ipv6Unicast { nlri: of_ipv6(prefixes).into() };
            let all = vec![(true, false, PathAttributeValue::MpUnreach(gone))];
            BgpUpdateMessage::new([], attributes_of(all), [])
        }
    };
    octets(&BgpMessage::Update(update))
}

/// Length of the first message of `bytes`, when its header is there; an error when it is none.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    if header[..16] == [0xff; 16] && (HEADER..=LONGEST).contains(&length) {
        return Ok(Some(length));
    }
    // The codec has the words for it.
    Err(read(header).err().unwrap_or_else(|| Fault::out_of_place("a message")))
}

/// Reads one whole message.
pub fn read(message: &[u8]) -> Result<Heard, Fault> {
    // Whatever it says of routes is not for us.
    if message.get(HEADER - 1) == Some(&UPDATE) && message.starts_with(&[0xff; 16]) {
        return Ok(Heard::Update);
    }
    let mut context = BgpParsingContext::default();
    let read = BgpMessage::parse(&mut SliceReader::new(message), &mut context);
    let read = read.map_err(|error| Fault { why: error.to_string(), message: error.into() })?;
    Ok(match read {
        BgpMessage::Open(open) => Heard::Open(opened(&open)),
        BgpMessage::KeepAlive => Heard::Keepalive,
        BgpMessage::Update(_) => Heard::Update,
        BgpMessage::RouteRefresh(_) => Heard::Refresh,
        BgpMessage::Notification(notification) => Heard::Notification(words(&notification)),
    })
}

fn opened(open: &BgpOpenMessage) -> Opened {
    let capabilities = open.capabilities();
    let mut opened = Opened {
        number: open.my_asn4(),
        id: open.bgp_id(),
        hold_seconds: open.hold_time(),
        four_octets: false,
        // Who says nothing of families takes this one.
        ipv4: !capabilities.iter().any(|c| matches!(c, BgpCapability::MultiProtocolExtensions(_))),
        ipv6: false,
        ipv4_over_ipv6: false,
        restarts: false,
    };
    for capability in capabilities {
        match capability {
            BgpCapability::MultiProtocolExtensions(family) => match family.address_type() {
                AddressType::Ipv4Unicast => opened.ipv4 = true,
                AddressType::Ipv6Unicast => opened.ipv6 = true,
                _ => {}
            },
            BgpCapability::FourOctetAs(_) => opened.four_octets = true,
            BgpCapability::GracefulRestartCapability(_) => opened.restarts = true,
            BgpCapability::ExtendedNextHopEncoding(encodings) => {
                opened.ipv4_over_ipv6 = encodings.encodings().iter().any(|encoding| {
                    (encoding.address_type(), encoding.next_hop_afi())
                        == (AddressType::Ipv4Unicast, AddressFamily::IPv6)
                });
            }
            _ => {}
        }
    }
    opened
}

/// A notification for people: its name, and what the peer's operator has said.
fn words(notification: &BgpNotificationMessage) -> String {
    use CeaseError::{AdministrativeReset, AdministrativeShutdown};
    let (name, said) = match notification {
        BgpNotificationMessage::CeaseError(AdministrativeShutdown { value }) => {
            ("administrative shutdown".into(), Some(value))
        }
        BgpNotificationMessage::CeaseError(AdministrativeReset { value }) => {
            ("administrative reset".into(), Some(value))
        }
        BgpNotificationMessage::CeaseError(cease) => (name_of(cease), None),
        BgpNotificationMessage::MessageHeaderError(error) => (name_of(error), None),
        BgpNotificationMessage::OpenMessageError(error) => (name_of(error), None),
        BgpNotificationMessage::UpdateMessageError(error) => (name_of(error), None),
        BgpNotificationMessage::HoldTimerExpiredError(_) => {
            ("its hold time is over: it has not heard us".into(), None)
        }
        other => (name_of(other), None),
    };
    let said = said.and_then(|value| {
        let (length, words) = value.split_first()?;
        let words = String::from_utf8_lossy(words.get(..usize::from(*length))?).into_owned();
        // Its operator's words go into our log.
        Some(words.chars().filter(|c| !c.is_control()).collect::<String>())
    });
    match said.filter(|words| !words.is_empty()) {
        Some(said) => format!("{name}: {said}"),
        None => name,
    }
}

/// The name of a kind of error, in small words: `BadPeerAs { .. }` is "bad peer as".
fn name_of(error: &impl std::fmt::Debug) -> String {
    let text = format!("{error:?}");
    let mut words = String::new();
    for c in text.chars().take_while(|c| c.is_ascii_alphanumeric()) {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

fn sequence(number: u32) -> As4PathSegment {
    As4PathSegment::new(AsPathSegmentType::AsSequence, [number])
}

fn attributes_of(all: Vec<(bool, bool, PathAttributeValue)>) -> Vec<PathAttribute> {
    let of = |(optional, transitive, value)| {
        let is_long = matches!(
            value,
            PathAttributeValue::MpReach(_)
                | PathAttributeValue::MpUnreach(_)
                | PathAttributeValue::Communities(_)
                | PathAttributeValue::LargeCommunities(_)
        );
        // The flags above are those of the RFCs; one that the codec refuses would be left out.
        PathAttribute::from(optional, transitive, false, is_long, value).ok()
    };
    all.into_iter().filter_map(of).collect()
}

fn of_ipv4(prefixes: &[IpPrefix]) -> Vec<Ipv4UnicastAddress> {
    let of = |prefix: &IpPrefix| {
        let IpAddr::V4(ip) = prefix.address() else { return None };
        let net = Ipv4Net::new(ip, prefix.length()).ok()?;
        Some(Ipv4UnicastAddress::new_no_path_id(Ipv4Unicast::from_net(net).ok()?))
    };
    prefixes.iter().filter_map(of).collect()
}

fn of_ipv6(prefixes: &[IpPrefix]) -> Vec<Ipv6UnicastAddress> {
    let of = |prefix: &IpPrefix| {
        let IpAddr::V6(ip) = prefix.address() else { return None };
        let net = Ipv6Net::new(ip, prefix.length()).ok()?;
        Some(Ipv6UnicastAddress::new(None, Ipv6Unicast::from_net(net).ok()?))
    };
    prefixes.iter().filter_map(of).collect()
}

fn octets(message: &BgpMessage) -> Vec<u8> {
    let mut octets = Vec::with_capacity(message.len());
    // Memory takes all that is written; what has no form is shorter than a message, and is not sent.
    match message.write(&mut octets) {
        Ok(()) => octets,
        Err(_) => Vec::new(),
    }
}
