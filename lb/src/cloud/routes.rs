//! Whether this machine knows the way to Pods: by its routes, as `ip route get` of iproute2 tells them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairway_core::IpPrefix;

use crate::control::run;

/// How long an answer holds.
pub(super) const HOLDS: Duration = Duration::from_secs(30);

/// What was found out, by the prefix of about a node's Pods.
#[derive(Default)]
pub(crate) struct Routes(Mutex<HashMap<IpPrefix, (Instant, Option<String>)>>);

impl Routes {
    /// What is wrong with the way to an address. Asks the kernel, and remembers the answer for a while.
    pub(super) fn trouble(&self, ip: IpAddr) -> Option<String> {
        let prefix = IpPrefix::containing(ip, if ip.is_ipv4() { 24 } else { 64 });
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, trouble)) = known.get(&prefix)
            && at.elapsed() < HOLDS
        {
            return trouble.clone();
        }
        let answer = run("ip", &["route", "get", "fibmatch", &ip.to_string()], "");
        let trouble = judge(ip, &answer);
        known.insert(prefix, (Instant::now(), trouble.clone()));
        trouble
    }
}

fn judge(ip: IpAddr, answer: &Result<String, String>) -> Option<String> {
    let remedy = "a static route by its node, or the CNI's BGP, or `fairway.dev/target: node`";
    match answer {
        Ok(route) => {
            let kind = route.split_whitespace().next().unwrap_or("");
            let what = match kind {
                "default" => "is reached by the default route alone",
                "unreachable" | "blackhole" | "prohibit" => "is routed nowhere",
                _ => return None,
            };
            Some(format!("Pod {ip} {what}: {remedy}"))
        }
        // Without the command nothing is known.
        Err(why) if why.contains("cannot be run") => None,
        Err(why) => Some(format!("Pod {ip} has no route from here ({why}): {remedy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_route_of_its_own_is_good() {
        let ip = IpAddr::from([10, 244, 0, 5]);
        let good = |text: &str| judge(ip, &Ok(text.into()));
        assert_eq!(good("10.244.0.0/24 via 10.0.0.1 dev eth0\n"), None);
        assert_eq!(good("10.244.0.0/16 dev cni0 proto kernel scope link\n"), None);
        assert!(
            good("default via 192.0.2.1 dev eth0\n").is_some_and(|why| why.contains("default"))
        );
        assert!(good("blackhole 10.244.0.0/16\n").is_some_and(|why| why.contains("nowhere")));
        let failed = |why: &str| judge(ip, &Err(why.into()));
        assert!(failed("RTNETLINK answers: Network is unreachable").is_some());
        assert_eq!(failed("`ip` cannot be run: No such file or directory"), None);
    }
}
