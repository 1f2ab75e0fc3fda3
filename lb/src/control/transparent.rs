//! What `source: transparent` needs of the machine: replies to clients' addresses must come to us.
//!
//! With `listen: tproxy` our own nftables table sees to it. Otherwise it is the operator's, and
//! looked at when a service with that source comes: what is missing is said, with the commands.

use super::Control;
use super::system::run;

/// What makes replies come to our sockets; 26231 is the routing table of transparent listening.
const REMEDY: &str = "nft add table inet fairway_replies; \
    nft 'add chain inet fairway_replies prerouting { type filter hook prerouting priority mangle; }'; \
    nft add rule inet fairway_replies prerouting socket transparent 1 meta mark set 0x6677 accept; \
    ip rule add fwmark 0x6677 lookup 26231; \
    ip route add local 0.0.0.0/0 dev lo table 26231 (and both with -6 for IPv6)";

impl Control {
    /// Looks again whether replies come to us; only when a service needs it.
    pub(super) fn look_at_routing(&mut self) {
        let wanted = self.services.values().any(|live| live.spec.policy.source.transparent);
        let before = self.routing.take();
        self.routing = match wanted && !self.listeners.is_transparent() {
            true => missing(),
            false => None,
        };
        if let Some(why) = self.routing.as_ref().filter(|_| self.routing != before) {
            tracing::warn!("{why}");
        }
    }

    /// What keeps backends' replies from coming to us, in words.
    pub(crate) fn routing_trouble(&self) -> Option<String> {
        self.routing.clone()
    }
}

fn missing() -> Option<String> {
    let rules = run("nft", &["-s", "list", "ruleset"], "").unwrap_or_default();
    let marks = rules.contains("socket transparent");
    let routed = run("ip", &["rule", "list"], "").unwrap_or_default().contains("fwmark");
    if marks && routed {
        return None;
    }
    Some(format!(
        "`source: transparent` needs replies to clients' addresses to be brought to this process: \
         {REMEDY}; and backends must route their clients through this machine"
    ))
}
