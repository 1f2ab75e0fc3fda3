//! Pools of addresses for Services, from the document, from our own objects and from MetalLB's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use fairway_core::IpPrefix;
use schemars::JsonSchema;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::objects::{Labels, Meta, or_default};

/// Consecutive addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// From the first to the last, both included; none when they are of two families, or the wrong way
    /// round.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether its addresses are of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_ipv4() == ip.is_ipv4() && self.first <= ip && ip <= self.last
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// Number of addresses; the largest number when there are more.
    #[must_use]
    pub fn count(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Its addresses, lowest first, without so many of the lowest.
    pub fn from(&self, behind: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let is_ipv4 = self.is_ipv4();
        let first = number(self.first).saturating_add(behind);
        (first..=number(self.last)).map(move |number| address(number, is_ipv4))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        false => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// A prefix, one address, or two with `-` between them.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((first, last)) = text.split_once('-') else {
            let prefix: IpPrefix = text.parse().map_err(|error| format!("{error}"))?;
            let first = prefix.address();
            let free = if prefix.is_ipv4() { 32 } else { 128 } - u32::from(prefix.length());
            let behind = u128::MAX.checked_shr(128 - free).unwrap_or(0);
            return Ok(Self { first, last: address(number(first) | behind, prefix.is_ipv4()) });
        };
        let end = |text: &str| {
            let text = text.trim();
            text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no IP address"))
        };
        let (first, last) = (end(first)?, end(last)?);
        Self::new(first, last).ok_or_else(|| match first.is_ipv4() == last.is_ipv4() {
            true => format!("it ends before it starts; did you mean {last}-{first}?"),
            false => "it starts in one family and ends in the other".into(),
        })
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Addresses that Services may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name, unique.
    pub name: Box<str>,
    /// The addresses.
    pub ranges: Vec<AddressRange>,
    /// Whether Services that ask for none may have one of them.
    pub auto_assign: bool,
    /// Leaves out IPv4 addresses that end in .0 and .255, which some equipment takes for broadcasts.
    pub avoid_buggy: bool,
    /// The lowest serves first; none is last.
    pub priority: Option<u32>,
    /// Who may have them.
    pub selection: Selection,
}

impl Pool {
    /// Whether it has an address and gives it away.
    #[must_use]
    pub fn offers(&self, ip: IpAddr) -> bool {
        !self.avoids(ip) && self.ranges.iter().any(|range| range.contains(ip))
    }

    /// Whether it keeps an address back although it is in a range.
    #[must_use]
    pub fn avoids(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        self.avoid_buggy && matches!(ip.octets()[3], 0 | 255)
    }
}

/// Which Services may have addresses of a pool. Empty lists choose everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Those of these namespaces,
    pub namespaces: Vec<String>,
    /// and those of namespaces with such labels;
    pub namespace_selectors: Vec<LabelSelector>,
    /// of these those with such labels.
    pub service_selectors: Vec<LabelSelector>,
}

impl Selection {
    /// Whether it chooses at all.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a Service is chosen: by its own metadata and the labels of its namespace.
    #[must_use]
    pub fn admits(&self, service: &Meta, namespace: &Labels) -> bool {
        let any = |selectors: &[LabelSelector], labels: &Labels| {
            selectors.iter().any(|selector| selector.admits(labels))
        };
        let everywhere = self.namespaces.is_empty() && self.namespace_selectors.is_empty();
        let there = everywhere
            || self.namespaces.contains(&service.namespace)
            || any(&self.namespace_selectors, namespace);
        there
            && (self.service_selectors.is_empty() || any(&self.service_selectors, &service.labels))
    }
}

/// Chooses objects by their labels; all of it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels with their values.
    pub match_labels: Labels,
    /// Further conditions.
    pub match_expressions: Vec<LabelCondition>,
}

/// A condition on a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelCondition {
    /// The label.
    pub key: String,
    /// What of it.
    pub operator: LabelOperator,
    /// With `In` and `NotIn`: its values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// Has one of the values.
    In,
    /// Has none of the values, or is not there.
    NotIn,
    /// Is there.
    Exists,
    /// Is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether an object with these labels is chosen.
    #[must_use]
    pub fn admits(&self, labels: &Labels) -> bool {
        let holds = |condition: &LabelCondition| {
            let value = labels.get(&condition.key);
            match condition.operator {
                LabelOperator::In => value.is_some_and(|value| condition.values.contains(value)),
                LabelOperator::NotIn => value.is_none_or(|value| !condition.values.contains(value)),
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(holds)
    }
}

/// A [`LabelSelector`] as objects have it: one that makes no sense must not keep others from being read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SelectorFields {
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub match_labels: Labels,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub match_expressions: Vec<SelectorExpression>,
}

/// A [`LabelCondition`] as objects have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelectorExpression {
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub operator: String,
    /// As there.
    #[serde(deserialize_with = "or_default")]
    pub values: Vec<String>,
}

impl SelectorFields {
    /// What they say; an error says what to mend.
    pub fn selector(&self) -> Result<LabelSelector, String> {
        let condition = |written: &SelectorExpression| {
            let operator = match written.operator.as_str() {
                "In" => LabelOperator::In,
                "NotIn" => LabelOperator::NotIn,
                "Exists" => LabelOperator::Exists,
                "DoesNotExist" => LabelOperator::DoesNotExist,
                other => {
                    return Err(format!(
                        "operator `{other}` of a selector is none of In, NotIn, Exists, DoesNotExist"
                    ));
                }
            };
            let (key, values) = (written.key.clone(), written.values.clone());
            Ok(LabelCondition { key, operator, values })
        };
        Ok(LabelSelector {
            match_labels: self.match_labels.clone(),
            match_expressions: self
                .match_expressions
                .iter()
                .map(condition)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn selectors(written: &[SelectorFields]) -> Result<Vec<LabelSelector>, String> {
    written.iter().map(SelectorFields::selector).collect()
}

/// A pool as an object, fairway.dev/v1alpha1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressPool {
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: AddressPoolFields,
    /// What is.
    #[serde(deserialize_with = "or_default")]
    pub status: AddressPoolStatus,
}

/// How many addresses of a pool are given away and free.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressPoolStatus {
    /// Addresses of IPv4 that somebody has.
    #[serde(rename = "assignedIPv4")]
    pub assigned_ipv4: Option<i64>,
    /// Addresses of IPv6 that somebody has.
    #[serde(rename = "assignedIPv6")]
    pub assigned_ipv6: Option<i64>,
    /// Addresses of IPv4 that nobody has.
    #[serde(rename = "availableIPv4")]
    pub available_ipv4: Option<i64>,
    /// Addresses of IPv6 that nobody has; the largest number when there are more.
    #[serde(rename = "availableIPv6")]
    pub available_ipv6: Option<i64>,
}

/// What is wanted of a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPoolFields {
    /// Prefixes, and ranges like `192.0.2.10-192.0.2.20`.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// As [`Pool::auto_assign`]; default: true.
    pub auto_assign: Option<bool>,
    /// As [`Pool::avoid_buggy`]; default: false.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: Option<bool>,
    /// As [`Pool::priority`].
    pub priority: Option<i64>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<String>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub namespace_selectors: Vec<SelectorFields>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub service_selectors: Vec<SelectorFields>,
}

impl AddressPool {
    /// The pool; an error says what to mend.
    pub fn pool(&self) -> Result<Pool, String> {
        let spec = &self.spec;
        let priority = spec.priority.map(|priority| {
            u32::try_from(priority)
                .map_err(|_| format!("`priority` is {priority}; it is 0 or more"))
        });
        Ok(Pool {
            name: self.metadata.name.as_str().into(),
            ranges: ranges(&spec.addresses)?,
            auto_assign: spec.auto_assign.unwrap_or(true),
            avoid_buggy: spec.avoid_buggy_ips.unwrap_or(false),
            priority: priority.transpose()?,
            selection: Selection {
                namespaces: spec.namespaces.clone(),
                namespace_selectors: selectors(&spec.namespace_selectors)?,
                service_selectors: selectors(&spec.service_selectors)?,
            },
        })
    }
}

/// MetalLB's IPAddressPool, metallb.io/v1beta1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MetallbPool {
    /// What every object has.
    pub metadata: Meta,
    /// What is wanted.
    #[serde(deserialize_with = "or_default")]
    pub spec: MetallbPoolFields,
}

/// What is wanted of MetalLB's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetallbPoolFields {
    /// Prefixes and ranges.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// As [`Pool::auto_assign`]; default: true.
    pub auto_assign: Option<bool>,
    /// As [`Pool::avoid_buggy`]; default: false.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: Option<bool>,
    /// Who may have them.
    pub service_allocation: Option<MetallbAllocation>,
}

/// Who may have addresses of MetalLB's pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetallbAllocation {
    /// As [`Pool::priority`]; zero and less is none.
    pub priority: Option<i64>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub namespaces: Vec<String>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub namespace_selectors: Vec<SelectorFields>,
    /// As [`Selection`].
    #[serde(deserialize_with = "or_default")]
    pub service_selectors: Vec<SelectorFields>,
}

impl MetallbPool {
    /// The pool; an error says what to mend.
    pub fn pool(&self) -> Result<Pool, String> {
        let allocation = self.spec.service_allocation.clone().unwrap_or_default();
        let priority = allocation.priority.and_then(|priority| u32::try_from(priority).ok());
        Ok(Pool {
            name: self.metadata.name.as_str().into(),
            ranges: ranges(&self.spec.addresses)?,
            auto_assign: self.spec.auto_assign.unwrap_or(true),
            avoid_buggy: self.spec.avoid_buggy_ips.unwrap_or(false),
            priority: priority.filter(|priority| *priority > 0),
            selection: Selection {
                namespaces: allocation.namespaces,
                namespace_selectors: selectors(&allocation.namespace_selectors)?,
                service_selectors: selectors(&allocation.service_selectors)?,
            },
        })
    }
}

fn ranges(texts: &[String]) -> Result<Vec<AddressRange>, String> {
    let range = |text: &String| {
        text.parse().map_err(|why| format!("`{text}` is neither a prefix nor a range: {why}"))
    };
    texts.iter().map(range).collect()
}

/// Every pool that shares an address with an earlier one, beside that one and its range.
#[must_use]
pub fn overlaps(pools: &[Pool]) -> Vec<(&Pool, &Pool, AddressRange)> {
    let mut found = Vec::new();
    for (n, pool) in pools.iter().enumerate() {
        let earlier = pools[..n].iter().find_map(|earlier| {
            let meets = |range: &&AddressRange| earlier.ranges.iter().any(|r| r.overlaps(range));
            Some((earlier, *pool.ranges.iter().find(meets)?))
        });
        if let Some((earlier, range)) = earlier {
            found.push((pool, earlier, range));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for (text, first, count) in [
            ("192.0.2.0/30", "192.0.2.0", 4),
            ("192.0.2.7", "192.0.2.7", 1),
            ("192.0.2.10-192.0.2.20", "192.0.2.10", 11),
            ("192.0.2.10 - 192.0.2.20", "192.0.2.10", 11),
            ("2001:db8::/126", "2001:db8::", 4),
            ("2001:db8::5-2001:db8::6", "2001:db8::5", 2),
            ("::/0", "::", u128::MAX),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!(
                (range.first().to_string().as_str(), range.count()),
                (first, count),
                "{text}"
            );
            assert_eq!(range.from(0).next(), Some(range.first()));
            assert_eq!(range.from(0).take(100).count() as u128, count.min(100), "{text}");
        }
        for (text, why) in [
            ("192.0.2.20-192.0.2.10", "did you mean 192.0.2.10-192.0.2.20?"),
            ("192.0.2.1-2001:db8::", "starts in one family"),
            ("192.0.2.1-there", "`there` is no IP address"),
            ("192.0.2.1/24", "did you mean 192.0.2.0/24?"),
            ("somewhere", "not an IP address"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn labels_choose() {
        let labels = |text: &str| -> Labels {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(key, value)| (key.into(), value.into())).collect()
        };
        let condition = |key: &str, operator, values: &[&str]| LabelSelector {
            match_labels: Labels::new(),
            match_expressions: vec![LabelCondition {
                key: key.into(),
                operator,
                values: values.iter().map(|value| (*value).into()).collect(),
            }],
        };
        let equal = LabelSelector { match_labels: labels("tier=edge"), ..LabelSelector::default() };
        for (selector, has, lacks) in [
            (LabelSelector::default(), "", None),
            (equal, "tier=edge,a=b", Some("tier=core")),
            (condition("tier", LabelOperator::In, &["a", "b"]), "tier=b", Some("tier=c")),
            (condition("tier", LabelOperator::In, &["a"]), "tier=a", Some("")),
            (condition("tier", LabelOperator::NotIn, &["a"]), "", Some("tier=a")),
            (condition("tier", LabelOperator::Exists, &[]), "tier=", Some("")),
            (condition("tier", LabelOperator::DoesNotExist, &[]), "", Some("tier=")),
        ] {
            assert!(selector.admits(&labels(has)), "{selector:?}");
            assert!(lacks.is_none_or(|lacks| !selector.admits(&labels(lacks))), "{selector:?}");
        }
        let selection = |namespaces: &[&str], by_namespace: &[&str], by_service: &[&str]| {
            let selectors = |texts: &[&str]| {
                let selector = |text: &&str| LabelSelector {
                    match_labels: labels(text),
                    ..LabelSelector::default()
                };
                texts.iter().map(selector).collect()
            };
            Selection {
                namespaces: namespaces.iter().map(|name| (*name).into()).collect(),
                namespace_selectors: selectors(by_namespace),
                service_selectors: selectors(by_service),
            }
        };
        let service =
            Meta { namespace: "shop".into(), labels: labels("app=web"), ..Meta::default() };
        for (selection, admitted) in [
            (Selection::default(), true),
            (selection(&["shop"], &[], &[]), true),
            (selection(&["other"], &[], &[]), false),
            (selection(&["other"], &["team=a"], &[]), true),
            (selection(&[], &["team=b"], &[]), false),
            (selection(&[], &[], &["app=web"]), true),
            (selection(&["shop"], &[], &["app=db"]), false),
            (selection(&["other"], &[], &["app=web"]), false),
        ] {
            assert_eq!(selection.admits(&service, &labels("team=a")), admitted, "{selection:?}");
        }
    }
}
