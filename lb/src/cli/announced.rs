//! `fairway announce`: how announcements stand, as tables.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::table::table;
use crate::announce::{AddressView, AnnounceView, GroupView, PeerView};

/// Addresses, groups and peers, and what needs a person.
pub(super) fn announced(view: &AnnounceView) -> String {
    let mut out = String::new();
    let mut part = |head: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            out += if out.is_empty() { "" } else { "\n" };
            out += &table(head, &rows);
        }
    };
    part(
        &["address", "here", "interfaces", "group", "told peers", "backends#"],
        view.addresses.iter().map(address).collect(),
    );
    part(
        &["group", "family", "interface", "id#", "state", "priority#", "since", "cause", "heard"],
        view.groups.iter().map(group).collect(),
    );
    part(
        &["peer", "address", "AS#", "state", "since", "routes#", "BFD", "last went down because"],
        view.peers.iter().map(peer).collect(),
    );
    if out.is_empty() {
        out += "nothing is announced: the document has no `announce`, or no service\n";
    }
    // Writing into a String cannot fail.
    for it in &view.duplicates {
        let _ = writeln!(out, "{} is on {} of {}, too", it.address, it.station, it.interface);
    }
    view.troubles.iter().for_each(|trouble| _ = writeln!(out, "trouble: {trouble}"));
    out
}

fn address(view: &AddressView) -> Vec<String> {
    vec![
        view.address.clone(),
        if view.here { "yes" } else { "no" }.into(),
        dash(view.interfaces.join(" ")),
        dash(view.group.clone().unwrap_or_default()),
        dash(view.peers.join(" ")),
        view.able_backends.to_string(),
    ]
}

fn group(view: &GroupView) -> Vec<String> {
    vec![
        view.name.clone(),
        view.family.clone(),
        view.interface.clone(),
        view.virtual_router_id.to_string(),
        view.state.clone(),
        view.priority.to_string(),
        ago(view.last_change),
        dash(view.cause.clone().unwrap_or_default()),
        dash(view.heard.clone().unwrap_or_default()),
    ]
}

fn peer(view: &PeerView) -> Vec<String> {
    vec![
        view.name.clone(),
        view.address.clone(),
        view.peer_asn.map_or_else(|| "-".into(), |number| number.to_string()),
        view.state.clone(),
        view.up_seconds.map_or_else(|| ago(view.last_change), seconds),
        view.routes.to_string(),
        view.bfd.as_ref().map_or_else(|| "-".into(), |bfd| bfd.state.clone()),
        dash(view.cause.clone().unwrap_or_default()),
    ]
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn seconds(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}

/// How long ago a time in seconds since 1970 was.
fn ago(at: Option<f64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    at.map_or_else(|| "-".into(), |at| seconds((now - at).max(0.0)))
}
