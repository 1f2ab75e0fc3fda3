//! Values that are more than a word or a number: durations, sizes, percentages, ports, addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use fairway_core::{IpPrefix, PortRange};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::Place;
use crate::announce::{Community, PeerAs};
use crate::de::AT;
use crate::kubernetes::AddressRange;

/// A value with its place in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At<T> {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub value: T,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for AtVisitor<T> {
            type Value = At<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value of a document")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<At<T>, A::Error> {
                let (mut line, mut column, mut value) = (0, 0, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "line" => line = map.next_value()?,
                        "column" => column = map.next_value()?,
                        _ => value = Some(map.next_value()?),
                    }
                }
                let value = value.ok_or_else(|| de::Error::missing_field("value"))?;
                Ok(At { place: Place { line, column }, value })
            }
        }
        let visitor = AtVisitor(std::marker::PhantomData);
        deserializer.deserialize_struct(AT, &["line", "column", "value"], visitor)
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A type that is written as one word, with its schema.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident($inner:ty), $what:literal, $pattern:literal, $types:expr, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map(Self).map_err(|why| {
                    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                    de::Error::custom(format_args!("`{text}` is not {}{why}", $what))
                })
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": $types, "description": concat!("Is ", $what), "pattern": $pattern })
            }
        }
    };
}

word! {
    /// A span of time.
    Time(Duration), "a duration (250ms, 3s, 10m, 1h)", "^[0-9]+(ns|us|ms|s|m|h|d)( ?[0-9]+(ns|us|ms|s|m|h|d))*$", "string",
    |text| humantime::parse_duration(text).map_err(|_| match text.parse::<u64>() {
        Ok(_) => "it needs a unit".into(),
        Err(_) => String::new(),
    })
}

word! {
    /// A number of bytes.
    Size(u64), "a size (512, 64KiB, 16MiB, 1GiB)", "^[0-9]+(B|KiB|MiB|GiB)?$", serde_json::json!(["string", "integer"]),
    parse_size
}

word! {
    /// Hundredths of a whole.
    Percent(u32), "a percentage (10%, 125%)", "^[0-9]+%$", "string",
    |text| text.strip_suffix('%').and_then(|n| n.parse().ok()).ok_or_else(String::new)
}

word! {
    /// One port or consecutive ones.
    Ports(PortRange), "a port (443) or a range of ports (8000-8099)", "^[0-9]{1,5}(-[0-9]{1,5})?$", serde_json::json!(["string", "integer"]),
    |text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<NonZeroU16>().map_err(|_| String::new());
        PortRange::new(port(first)?, port(last)?).map_err(|error| error.to_string())
    }
}

word! {
    /// An IP address.
    Address(IpAddr), "an IP address", "^[0-9a-fA-F:.]+$", "string",
    |text| text.parse().map_err(|_| String::new())
}

word! {
    /// An address or a network of them, for clients to dial.
    Dialled(IpPrefix), "an IP address or a network of them", "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$", "string",
    |text| text.parse().map_err(|error| match error {
        fairway_core::PrefixError::NotAnAddress => String::new(),
        error => error.to_string(),
    })
}

word! {
    /// An address prefix.
    Prefix(IpPrefix), "a prefix", "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$", "string",
    |text| text.parse().map_err(|error: fairway_core::PrefixError| error.to_string())
}

word! {
    /// Consecutive addresses.
    Range(AddressRange), "a prefix or a range of addresses (192.0.2.0/24, 192.0.2.10-192.0.2.20)", "^[0-9a-fA-F:.]+(/[0-9]{1,3}| *- *[0-9a-fA-F:.]+)?$", "string",
    str::parse
}

word! {
    /// Where to listen.
    Socket(SocketAddr), "an address and port (127.0.0.1:9180, [::1]:9180)", "^.+:[0-9]{1,5}$", "string",
    |text| text.parse().map_err(|_| String::new())
}

word! {
    /// A community of BGP.
    CommunityText(Community), "a community (64512:100, 64512:1:2, no-export)", "^[0-9a-z:-]+$", "string",
    |text| {
        let known = WELL_KNOWN.iter().find(|(name, _)| *name == text);
        if let Some((_, value)) = known {
            return Ok(Community::Plain(*value));
        }
        let parts: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
        match parts.map_err(|_| String::new())?[..] {
            [high, low] if high <= 0xffff && low <= 0xffff => Ok(Community::Plain(high << 16 | low)),
            [_, _] => Err("each half is at most 65535; a large community has three parts".into()),
            [global, one, two] => Ok(Community::Large([global, one, two])),
            _ => Err(String::new()),
        }
    }
}

word! {
    /// The AS number of a peer.
    PeerAsText(PeerAs), "an AS number (1 to 4294967295), `external` or `internal`", "^([0-9]+|external|internal)$", serde_json::json!(["string", "integer"]),
    |text| match text {
        "external" => Ok(PeerAs::External),
        "internal" => Ok(PeerAs::Internal),
        _ => text.parse().ok().filter(|n| *n > 0).map(PeerAs::Number).ok_or_else(String::new),
    }
}

word! {
    /// HTTP status codes.
    Statuses((u16, u16)), "a status (200) or a range of them (200-399)", "^[1-5][0-9][0-9](-[1-5][0-9][0-9])?$", serde_json::json!(["string", "integer"]),
    |text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let code = |text: &str| {
            text.parse::<u16>().ok().filter(|code| (100..600).contains(code)).ok_or_else(String::new)
        };
        let (first, last) = (code(first)?, code(last)?);
        if first <= last { Ok((first, last)) } else { Err("it ends before it starts".into()) }
    }
}

word! {
    /// A number, or `auto` for Fairway's own choice.
    Auto(Option<u32>), "a number above zero, or `auto`", "^(auto|[1-9][0-9]*)$", serde_json::json!(["string", "integer"]),
    |text| match text {
        "auto" => Ok(None),
        _ => text.parse().ok().filter(|n| *n > 0).map(Some).ok_or_else(String::new),
    }
}

word! {
    /// A number of things.
    Count(u32), "a number (5000, 256k, 4M)", "^[0-9]+(k|M)?$", serde_json::json!(["string", "integer"]),
    |text| {
        let (digits, factor) = match text.as_bytes().last() {
            Some(b'k') => (&text[..text.len() - 1], 1 << 10),
            Some(b'M') => (&text[..text.len() - 1], 1 << 20),
            _ => (text, 1),
        };
        let number: u32 = digits.parse().map_err(|_| String::new())?;
        number.checked_mul(factor).ok_or_else(|| "too large".into())
    }
}

/// Communities that have names (RFC 1997, 3765, 7999, 8326).
const WELL_KNOWN: [(&str, u32); 6] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" | "K" | "k" => return Err("did you mean KiB?".into()),
        "MB" | "M" => return Err("did you mean MiB?".into()),
        "GB" | "G" => return Err("did you mean GiB?".into()),
        _ => return Err(String::new()),
    };
    let number: u64 = digits.parse().map_err(|_| String::new())?;
    number.checked_mul(unit).ok_or_else(|| "too large".into())
}

/// A backend's address or name with or without its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub host: Host,
    /// The port, when it is written here.
    pub port: Option<NonZeroU16>,
}

/// An address, or a name that stands for some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name, in lower case.
    Name(Box<str>),
}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self { host: Host::Ip(ip), port: None });
        }
        let error = || {
            format!(
                "`{text}` is neither an address (10.0.0.1, 2001:db8::1) nor a name (web.example.com), with or without a port (10.0.0.1:8080, [2001:db8::1]:8080, web.example.com:8080)"
            )
        };
        if let Ok(at) = text.parse::<SocketAddr>() {
            let port = NonZeroU16::new(at.port()).ok_or_else(error)?;
            return Ok(Self { host: Host::Ip(at.ip()), port: Some(port) });
        }
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let number = port.parse();
                let is_place = dns_name(name).is_some() || name.parse::<IpAddr>().is_ok();
                if number.is_err() && is_place && !port.contains(':') {
                    return Err(format!("`{port}` in `{text}` is no port; ports are 1 to 65535"));
                }
                (name, Some(number.map_err(|_| error())?))
            }
        };
        let name = dns_name(name).ok_or_else(error)?;
        Ok(Self { host: Host::Name(name), port })
    }
}

/// `text` in lower case, if it is a DNS name: RFC 1035's lengths, and letters, digits, `-`, `_`.
/// What has three numbers or ends in one is an address gone wrong.
pub(crate) fn dns_name(text: &str) -> Option<Box<str>> {
    let labels = text.strip_suffix('.').unwrap_or(text);
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let number = |label: &&str| label.bytes().all(|b| b.is_ascii_digit());
    let numbers = labels.split('.').filter(number).count();
    let ends_in_one = labels.rsplit('.').next().is_some_and(|last| number(&last));
    let good = labels.len() <= 253 && labels.split('.').all(fits) && numbers < 3 && !ends_in_one;
    good.then(|| text.to_ascii_lowercase().into())
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl JsonSchema for Endpoint {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Endpoint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An address or a DNS name, with or without a port: 10.0.0.1, 10.0.0.1:8080, [2001:db8::1]:8080, web.example.com:8080",
            "pattern": "^[0-9a-zA-Z:._\\[\\]-]+$",
        })
    }
}
