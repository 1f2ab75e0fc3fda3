//! Pools of addresses for Services, from the document, from our own objects and from MetalLB's.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::objects::{Labels, Meta, or_default};
use super::ranges::AddressRange;
use super::selectors::{LabelSelector, SelectorFields, selectors};

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

    /// Number of a range's addresses that it does not keep back.
    #[must_use]
    pub fn usable(&self, range: &AddressRange) -> u128 {
        range.count() - if self.avoid_buggy { range.buggy() } else { 0 }
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
