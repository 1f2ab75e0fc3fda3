//! Who of several boxes has which shared address, by what Leases say. Pure.
//!
//! Each box has a Lease of its own, which it renews, and in which it says which addresses it could have and
//! with how many backends. Each address has a Lease that names its holder and changes with it alone. An
//! address goes to the box that is first for it by rendezvous hashing, weighted by backends that take flows
//! (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005), so that addresses are spread, and a box
//! that comes or goes moves few.

use std::collections::BTreeMap;
use std::time::Duration;

use fairway_core::IpPrefix;
use xxhash_rust::xxh3::xxh3_64;

/// How long another box must be better for an address before it is handed over, unless this one has no
/// backend for it, or is about to go: moving costs connections.
pub(crate) const BETTER_FOR: Duration = Duration::from_secs(10);

/// What this box shares: addresses, and the backends that take flows for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) able: BTreeMap<IpPrefix, usize>,
    /// It is about to go,
    pub(crate) drains: bool,
    /// or goes now.
    pub(crate) ends: bool,
}

/// A box that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Of its process.
    pub(crate) identity: String,
    /// Of the box, also after a restart.
    pub(crate) node: String,
    pub(crate) shares: Shares,
}

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it is another's, or will be.
    Leave,
    /// It is ours, and stays so.
    Keep,
    /// It is nobody's: make it ours.
    Take,
    /// It is ours, and is to be this one's.
    HandOver(String),
}

/// Decides about addresses, again and again, for one box.
#[derive(Debug, Default)]
pub(crate) struct Decider {
    /// Since when another box is better for an address of ours.
    better: BTreeMap<IpPrefix, (String, Duration)>,
}

impl Decider {
    /// What `own` is to do about an address whose Lease names `holder`; `now` is the time since any
    /// beginning.
    pub(crate) fn decide(
        &mut self,
        net: IpPrefix,
        own: &str,
        holder: Option<&str>,
        members: &[Member],
        now: Duration,
    ) -> Step {
        let first = first(net, members);
        let is_there = |who: &str| {
            members.iter().any(|it| it.identity == who && it.shares.able.contains_key(&net))
        };
        let holder = holder.filter(|holder| is_there(holder));
        match (holder, first) {
            (Some(holder), Some(first)) if holder == own && first.identity != own => {
                let mine = members.iter().find(|it| it.identity == own);
                let at_once = mine.is_none_or(|mine| {
                    mine.shares.drains || mine.shares.able.get(&net) == Some(&0)
                });
                let (who, since) =
                    self.better.entry(net).or_insert_with(|| (first.identity.clone(), now));
                if *who != first.identity {
                    (*who, *since) = (first.identity.clone(), now);
                }
                match at_once || now.saturating_sub(*since) >= BETTER_FOR {
                    true => {
                        self.better.remove(&net);
                        Step::HandOver(first.identity.clone())
                    }
                    false => Step::Keep,
                }
            }
            (Some(holder), _) => {
                self.better.remove(&net);
                if holder == own { Step::Keep } else { Step::Leave }
            }
            (None, Some(first)) if first.identity == own => Step::Take,
            (None, _) => Step::Leave,
        }
    }
}

/// The box that is first for an address: of those that are not about to go, and that have backends, unless
/// none has.
fn first(net: IpPrefix, members: &[Member]) -> Option<&Member> {
    let could = || members.iter().filter(move |it| it.shares.able.contains_key(&net));
    let stays = could().any(|it| !it.shares.drains);
    let candidates = could().filter(|it| !stays || !it.shares.drains);
    let able = |it: &Member| it.shares.able.get(&net).copied().unwrap_or(0);
    let has_able = candidates.clone().any(|it| able(it) > 0);
    let score = |it: &Member| {
        let hash = xxh3_64(format!("{} {net}", it.node).as_bytes());
        // In (0, 1): the top 53 bits, and a half.
        let chance = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -(able(it).max(1) as f64) / chance.ln()
    };
    candidates
        .filter(|it| !has_able || able(it) > 0)
        .max_by(|a, b| score(a).total_cmp(&score(b)).then_with(|| a.identity.cmp(&b.identity)))
}

/// Addresses that a Lease's annotation names, as `192.0.2.1=3 2001:db8::1=0`, and whether the box is about
/// to go (a last word `drains`). What makes no sense is passed over: another version may have written it.
pub(crate) fn read_shares(text: &str) -> Shares {
    let mut shares = Shares::default();
    for word in text.split_whitespace() {
        match word.split_once('=') {
            None => shares.drains |= word == "drains",
            Some((net, able)) => {
                if let (Ok(net), Ok(able)) = (net.parse(), able.parse()) {
                    shares.able.insert(net, able);
                }
            }
        }
    }
    shares
}

/// The same as text.
pub(crate) fn write_shares(shares: &Shares) -> String {
    let words = shares.able.iter().map(|(net, able)| format!("{net}={able}"));
    let last = shares.drains.then(|| "drains".to_owned());
    words.chain(last).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, able: &[(&str, usize)]) -> Member {
        let able = able.iter().map(|(net, able)| (net.parse().unwrap(), *able)).collect();
        let shares = Shares { able, ..Shares::default() };
        Member { identity: format!("{name}_1"), node: name.into(), shares }
    }

    fn many(count: u32, able: usize) -> Vec<(String, usize)> {
        (0..count).map(|n| (std::net::Ipv4Addr::from(0xc000_0200 + n).to_string(), able)).collect()
    }

    fn spread(members: &[Member], nets: &[(String, usize)]) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for (net, _) in nets {
            let first = first(net.parse().unwrap(), members).unwrap();
            *spread.entry(first.node.clone()).or_insert(0) += 1;
        }
        spread
    }

    fn of(nets: &[(String, usize)]) -> Vec<(&str, usize)> {
        nets.iter().map(|(net, able)| (&**net, *able)).collect()
    }

    #[test]
    fn addresses_are_spread_by_backends() {
        let (even, less) = (many(1000, 4), many(1000, 2));
        let equal = ["a", "b", "c"].map(|name| member(name, &of(&even)));
        let shares = spread(&equal, &even);
        assert!(shares.values().all(|count| (270..400).contains(count)), "{shares:?}");
        // One with half the backends has half as many.
        let weighted = [member("a", &of(&even)), member("b", &of(&even)), member("c", &of(&less))];
        let by_weight = spread(&weighted, &even);
        assert!((150..260).contains(&by_weight["c"]), "{by_weight:?}");
        // Who has none has none, unless nobody has.
        let none = many(1000, 0);
        let dead = [member("a", &of(&even)), member("b", &of(&none))];
        assert_eq!(spread(&dead, &even), [("a".into(), 1000)].into());
        let all_dead = [member("a", &of(&none)), member("b", &of(&none))];
        assert_eq!(spread(&all_dead, &even).len(), 2);
        // One that goes moves its own alone.
        let moved = even.iter().filter(|(net, _)| {
            let net = net.parse().unwrap();
            let before = first(net, &equal).unwrap();
            before.node != "c" && first(net, &equal[..2]).unwrap().node != before.node
        });
        assert_eq!(moved.count(), 0);
    }

    #[test]
    fn an_address_has_one_holder_and_moves_with_care() {
        let net: IpPrefix = "192.0.2.1".parse().unwrap();
        let at = Duration::from_secs;
        let both = [member("a", &[("192.0.2.1", 4)]), member("b", &[("192.0.2.1", 4)])];
        let (one, other) = match first(net, &both).unwrap().node.as_str() {
            "a" => ("a_1", "b_1"),
            _ => ("b_1", "a_1"),
        };
        let mut decider = Decider::default();
        let mut decide = |own: &str, holder: Option<&str>, members: &[Member], now| {
            decider.decide(net, own, holder, members, at(now))
        };
        assert_eq!(decide(one, None, &both, 0), Step::Take);
        assert_eq!(decide(other, None, &both, 0), Step::Leave);
        assert_eq!(decide(one, Some(one), &both, 0), Step::Keep);
        // Who is not there holds nothing; who holds it is left alone.
        assert_eq!(decide(one, Some("c_9"), &both, 0), Step::Take);
        assert_eq!(decide(one, Some(other), &both, 0), Step::Leave);
        // The better one gets it after a while,
        assert_eq!(decide(other, Some(other), &both, 5), Step::Keep);
        assert_eq!(decide(other, Some(other), &both, 14), Step::Keep);
        assert_eq!(decide(other, Some(other), &both, 15), Step::HandOver(one.into()));
        // or at once, from who has no backend, or goes.
        for drains in [false, true] {
            let mut worse = both.to_vec();
            let mine = worse.iter_mut().find(|it| it.identity == one).unwrap();
            mine.shares.drains = drains;
            if !drains {
                mine.shares.able.insert(net, 0);
            }
            assert_eq!(decide(one, Some(one), &worse, 20), Step::HandOver(other.into()));
            // Alone it keeps it all the same.
            worse.retain(|it| it.identity == one);
            assert_eq!(decide(one, Some(one), &worse, 20), Step::Keep);
        }
    }

    #[test]
    fn shares_are_read_as_they_are_written() {
        let mut shares = member("a", &[("192.0.2.1", 4), ("2001:db8::/64", 0)]).shares;
        shares.drains = true;
        assert_eq!(write_shares(&shares), "192.0.2.1=4 2001:db8::/64=0 drains");
        assert_eq!(read_shares(&write_shares(&shares)), shares);
        assert_eq!(read_shares("x=1 192.0.2.1=y new 192.0.2.2=2").able.len(), 1);
    }
}
