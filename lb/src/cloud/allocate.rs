//! Who has which address: pure, and the same for the same demands.
//!
//! Who has addresses keeps them while they fit. Then come those who ask for certain ones, then the
//! rest, the oldest first. Everything is settled anew at each change, so a freed address goes to who
//! waits for one, and nothing is remembered that is not in the demands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fairway_config::kubernetes::{AddressRange, Finding, Labels, Meta, Name, Pool, Wish};
use fairway_core::IpPrefix;

/// A Service that is to have addresses.
#[derive(Debug)]
pub(crate) struct Demand<'a> {
    /// What it is served as.
    pub(crate) name: Name,
    pub(crate) meta: &'a Meta,
    /// The labels of its namespace.
    pub(crate) namespace: &'a Labels,
    /// What it asks for; what cannot be understood is an answer already.
    pub(crate) wish: Result<Wish, Finding>,
    /// The addresses that it has.
    pub(crate) current: Vec<IpAddr>,
    /// It is no load balancer, has no status, and names its addresses itself.
    pub(crate) is_exposed: bool,
}

/// The addresses of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) addresses: Vec<IpAddr>,
    /// The pool that has them.
    pub(crate) pool: Box<str>,
}

/// What became of each demand, and why there is no address.
pub(crate) type Assignments = BTreeMap<Name, Result<Assigned, Finding>>;

/// Addresses that nobody is given, each with the words for who has it.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Reserved {
    hosts: BTreeMap<IpAddr, String>,
    networks: Vec<(AddressRange, String)>,
}

impl Reserved {
    pub(crate) fn add(&mut self, net: IpPrefix, who: &str) {
        if net.is_host() {
            self.hosts.entry(net.address()).or_insert_with(|| who.into());
        } else {
            let range = AddressRange::from(net);
            // Each address is counted once.
            if self.networks.iter().any(|(known, _)| known.covers(&range)) {
                return;
            }
            self.networks.retain(|(known, _)| !range.covers(known));
            self.networks.push((range, who.into()));
        }
    }

    /// Number of a pool's addresses among them.
    pub(crate) fn count_of(&self, pool: &Pool, is_ipv4: bool) -> u128 {
        let ranges = || pool.ranges.iter().filter(|range| range.is_ipv4() == is_ipv4);
        let usable = |range: AddressRange| pool.usable(&range);
        let of_networks = self.networks.iter().flat_map(|(net, _)| {
            ranges().filter_map(|range| range.common(net)).map(usable).collect::<Vec<_>>()
        });
        let alone = |ip: &&IpAddr| ip.is_ipv4() == is_ipv4 && self.network(**ip).is_none();
        let hosts = self.hosts.keys().filter(alone).filter(|ip| pool.offers(**ip));
        of_networks.fold(hosts.count() as u128, u128::saturating_add)
    }

    fn network(&self, ip: IpAddr) -> Option<&(AddressRange, String)> {
        self.networks.iter().find(|(net, _)| net.contains(ip))
    }

    /// Who has an address.
    pub(crate) fn holder(&self, ip: IpAddr) -> Option<&str> {
        let network = || self.network(ip).map(|(_, who)| who);
        self.hosts.get(&ip).or_else(network).map(String::as_str)
    }
}

/// Gives addresses of `pools`, without those that are reserved.
///
/// Costs the demands times their pools; looking for a free address goes on where it ended last.
pub(crate) fn settle(pools: &[Pool], reserved: &Reserved, demands: &[Demand<'_>]) -> Assignments {
    let mut desk = Desk {
        pools: in_order(pools),
        reserved,
        taken: HashMap::new(),
        shared: HashMap::new(),
        cursors: HashMap::new(),
    };
    let mut assignments = Assignments::new();
    let mut later = Vec::new();
    let mut order: Vec<&Demand<'_>> = demands.iter().collect();
    order.sort_by_key(|demand| (&demand.meta.creation_timestamp, &demand.name));
    for demand in order {
        let wish = match &demand.wish {
            Ok(wish) => wish,
            Err(finding) => {
                assignments.insert(demand.name.clone(), Err(finding.clone()));
                continue;
            }
        };
        match desk.kept(demand, wish) {
            Some(kept) => {
                let all = kept.addresses.len() == wish.families.len().max(1);
                desk.take(demand, wish, &kept.addresses);
                // What is still missing comes after those who have something.
                if !all && wish.addresses.is_empty() {
                    later.push((demand, wish));
                }
                assignments.insert(demand.name.clone(), Ok(kept));
            }
            None => later.push((demand, wish)),
        }
    }
    let (certain, any): (Vec<_>, Vec<_>) =
        later.into_iter().partition(|(_, wish)| !wish.addresses.is_empty());
    for (demand, wish) in certain.into_iter().chain(any) {
        let name = demand.name.clone();
        if let Some(Ok(has)) = assignments.get_mut(&name) {
            if let Some(ip) = desk.completed(wish, has) {
                desk.take(demand, wish, &[ip]);
                has.addresses.push(ip);
            }
            continue;
        }
        let assigned = desk.assign(demand, wish);
        if let Ok(assigned) = &assigned {
            desk.take(demand, wish, &assigned.addresses);
        }
        assignments.insert(name, assigned);
    }
    assignments
}

/// Pools that are there for some come first, then the lowest priority.
fn in_order(pools: &[Pool]) -> Vec<&Pool> {
    let mut pools: Vec<&Pool> = pools.iter().collect();
    pools.sort_by_key(|pool| {
        (pool.selection.is_open(), pool.priority.unwrap_or(u32::MAX), &pool.name)
    });
    pools
}

struct Desk<'a> {
    pools: Vec<&'a Pool>,
    reserved: &'a Reserved,
    taken: HashMap<IpAddr, Vec<(Name, &'a Wish)>>,
    /// Addresses by the key with which they are shared.
    shared: HashMap<&'a str, BTreeSet<IpAddr>>,
    /// Of each pool and family the first address that may be free.
    cursors: HashMap<(&'a str, bool), (usize, u128)>,
}

impl<'a> Desk<'a> {
    fn take(&mut self, demand: &Demand<'_>, wish: &'a Wish, addresses: &[IpAddr]) {
        for ip in addresses {
            self.taken.entry(*ip).or_default().push((demand.name.clone(), wish));
            if let Some(sharing) = &wish.sharing {
                self.shared.entry(&sharing.key).or_default().insert(*ip);
            }
        }
    }

    /// What a Service keeps of what it has.
    fn kept(&self, demand: &Demand<'_>, wish: &Wish) -> Option<Assigned> {
        let mut current: Vec<IpAddr> = demand.current.clone();
        if !wish.families.is_empty() {
            current.retain(|ip| wish.families.contains(&ip.is_ipv4()));
        }
        let offers = |pool: &&&Pool| current.iter().any(|ip| pool.offers(*ip));
        let pool = self.pools.iter().find(offers)?;
        let fits = |ip: &IpAddr| pool.offers(*ip) && self.why_not(*ip, wish).is_none();
        // Who can do with one family keeps what is left of two.
        if wish.addresses.is_empty() && !wish.needs_all {
            current.retain(fits);
        }
        if current.is_empty() {
            return None;
        }
        let wanted = wish.addresses.is_empty()
            || (wish.addresses.iter().all(|ip| current.contains(ip))
                && current.len() == wish.addresses.len());
        let of_pool = wish.pool.as_ref().is_none_or(|wanted| **wanted == *pool.name);
        let admitted = pool.selection.admits(demand.meta, demand.namespace);
        let complete = !wish.needs_all
            || wish.families.iter().all(|f| current.iter().any(|ip| ip.is_ipv4() == *f));
        let keeps = wanted && of_pool && admitted && complete && current.iter().all(fits);
        keeps.then(|| Assigned { addresses: current, pool: pool.name.clone() })
    }

    /// An address of the family that a Service lacks, if its pool has one.
    fn completed(&mut self, wish: &Wish, has: &Assigned) -> Option<IpAddr> {
        let lacks = |family: &&bool| !has.addresses.iter().any(|ip| ip.is_ipv4() == **family);
        let family = *wish.families.iter().find(lacks)?;
        let pool = *self.pools.iter().find(|pool| pool.name == has.pool)?;
        self.pick(pool, family, wish)
    }

    fn assign(&mut self, demand: &Demand<'_>, wish: &Wish) -> Result<Assigned, Finding> {
        let admits = |pool: &&Pool| pool.selection.admits(demand.meta, demand.namespace);
        if let Some(name) = &wish.pool
            && !self.pools.iter().any(|pool| pool.name == *name)
        {
            let names: Vec<_> = self.pools.iter().map(|pool| &*pool.name).collect();
            return refuse(format!("there is no pool `{name}`; there are: {}", names.join(", ")));
        }
        let of_name = |pool: &&&Pool| wish.pool.as_ref().is_none_or(|name| pool.name == *name);
        let named: Vec<&'a Pool> = self.pools.iter().filter(of_name).copied().collect();
        let open: Vec<&'a Pool> = named.into_iter().filter(admits).collect();
        if !wish.addresses.is_empty() {
            return self.certain(&open, wish);
        }
        let asked = wish.pool.is_some();
        let pools: Vec<&'a Pool> =
            open.into_iter().filter(|pool| asked || pool.auto_assign).collect();
        if pools.is_empty() {
            return refuse(match &wish.pool {
                Some(name) => format!("pool `{name}` is not for this Service, by its selectors"),
                None if self.pools.is_empty() => {
                    "there are no address pools: `addressPools` of the document, or AddressPools"
                        .into()
                }
                None => {
                    "no pool is for this Service: none that gives addresses to whoever asks for \
                         none in particular admits it by its selectors"
                        .into()
                }
            });
        }
        // Who names no family has IPv4 where there is any, as clusters have it.
        let usual = pools.iter().any(|pool| pool.ranges.iter().any(AddressRange::is_ipv4));
        for pool in &pools {
            let addresses: Vec<IpAddr> = if wish.families.is_empty() {
                self.pick(pool, usual, wish).into_iter().collect()
            } else {
                let each = wish.families.iter().filter_map(|f| self.pick(pool, *f, wish));
                each.collect()
            };
            let enough = if wish.needs_all { wish.families.len() } else { 1 };
            if addresses.len() >= enough.max(1) {
                return Ok(Assigned { addresses, pool: pool.name.clone() });
            }
        }
        let names: Vec<_> = pools.iter().map(|pool| format!("`{}`", pool.name)).collect();
        let word = |is_ipv4: &bool| if *is_ipv4 { "IPv4" } else { "IPv6" };
        let families = if wish.families.is_empty() { &[usual][..] } else { &wish.families };
        let what = families.iter().map(word).collect::<Vec<_>>().join(" and ");
        Err(Finding {
            reason: "PoolExhausted",
            message: format!("no free {what} address in {}", names.join(", ")),
        })
    }

    /// The addresses that a Service asks for, all of one pool.
    fn certain(&self, pools: &[&Pool], wish: &Wish) -> Result<Assigned, Finding> {
        let offers = |pool: &&&Pool| wish.addresses.iter().all(|ip| pool.offers(*ip));
        let Some(pool) = pools.iter().find(offers) else {
            let list: Vec<_> = wish.addresses.iter().map(ToString::to_string).collect();
            return refuse(format!("no pool for this Service has {}", list.join(" and ")));
        };
        for ip in &wish.addresses {
            if let Some(why) = self.why_not(*ip, wish) {
                return refuse(format!("{ip} is taken by {why}"));
            }
        }
        Ok(Assigned { addresses: wish.addresses.clone(), pool: pool.name.clone() })
    }

    /// The lowest free address of a family, or one that is shared with the same key.
    fn pick(&mut self, pool: &'a Pool, is_ipv4: bool, wish: &Wish) -> Option<IpAddr> {
        if let Some(sharing) = &wish.sharing {
            let shared = self.shared.get(&*sharing.key).into_iter().flatten();
            let fits = |ip: &&IpAddr| {
                ip.is_ipv4() == is_ipv4 && pool.offers(**ip) && self.why_not(**ip, wish).is_none()
            };
            if let Some(ip) = shared.copied().find(|ip| fits(&ip)) {
                return Some(ip);
            }
        }
        let cursor = self.cursors.entry((&pool.name, is_ipv4)).or_default();
        let ranges = pool.ranges.iter().enumerate().skip(cursor.0);
        for (n, range) in ranges.filter(|(_, range)| range.is_ipv4() == is_ipv4) {
            let mut behind = if n == cursor.0 { cursor.1 } else { 0 };
            while let Some(ip) = range.at(behind) {
                // What is given away here is never given back, so nobody looks at it again.
                *cursor = (n, behind);
                if let Some((net, _)) = self.reserved.network(ip) {
                    let Some(next) = range.behind(net) else { break };
                    behind = next;
                    continue;
                }
                let free = !self.taken.contains_key(&ip) && self.reserved.holder(ip).is_none();
                if free && !pool.avoids(ip) {
                    return Some(ip);
                }
                behind += 1;
            }
            *cursor = (n + 1, 0);
        }
        None
    }

    /// Who keeps a Service from an address.
    fn why_not(&self, ip: IpAddr, wish: &Wish) -> Option<String> {
        if let Some(who) = self.reserved.holder(ip) {
            return Some(who.into());
        }
        let holders = self.taken.get(&ip)?;
        let disagrees = |(_, other): &&(Name, &Wish)| {
            let alike = wish.sharing.is_some() && wish.sharing == other.sharing;
            !alike || wish.ports.iter().any(|port| other.ports.contains(port))
        };
        let (name, other) = holders.iter().find(disagrees)?;
        let why = match (&wish.sharing, &other.sharing) {
            (Some(ours), Some(theirs)) if ours == theirs => " for the same port",
            (Some(ours), Some(theirs)) if ours.key == theirs.key => {
                ", and with `externalTrafficPolicy: Local` only Services of the same Pods share one"
            }
            (Some(_), _) => " with another sharing key",
            (None, _) => "",
        };
        Some(format!("Service `{name}`{why}"))
    }
}

fn refuse(message: String) -> Result<Assigned, Finding> {
    Err(Finding { reason: "AddressUnavailable", message })
}
