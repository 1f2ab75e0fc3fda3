//! How flows are carried, and what does not go with that.

use std::net::IpAddr;

use fairway_core::packet::Tunnel;
use fairway_core::{Mode, MssClamp};

use super::service::Means;
use super::{Findings, backends};
use crate::document::{BackendDoc, EchoDoc, HeaderVersionDoc, ModeDoc, ServiceDoc};
use crate::values::{At, Auto};

/// The mode of a service, with findings about all that does not go with it.
pub(super) fn mode(doc: &ServiceDoc, means: Means, findings: &mut Findings<'_>) -> Mode {
    let Some(At { place, value: written }) = doc.mode else { return Mode::Proxy };
    let variant = doc.gue_variant.as_ref();
    if let Some(at) = variant.filter(|at| at.value > 1 || written != ModeDoc::Gue) {
        findings.add(at.place, "`gueVariant` is 0 or 1, and goes with `mode: gue`");
    }
    let mode = match written {
        ModeDoc::Proxy => return Mode::Proxy,
        ModeDoc::Nat => Mode::Nat,
        ModeDoc::FullNat => Mode::FullNat,
        ModeDoc::Dsr => Mode::Dsr,
        ModeDoc::Ipip => Mode::Tunnel(Tunnel::Ipip),
        ModeDoc::Gue if variant.is_some_and(|at| at.value == 0) => {
            Mode::Tunnel(Tunnel::GueWithHeader)
        }
        ModeDoc::Gue => Mode::Tunnel(Tunnel::Gue),
    };
    let word = &mode.to_string();
    if !means.packets {
        findings.add(
            place,
            format!(
                "mode `{word}` forwards packets: name the interfaces that they come and go by in \
                 `dataplane.packet.interfaces`"
            ),
        );
    }
    foreign(doc, word, findings);
    told(doc, mode, word, findings);
    source(doc, mode, word, findings);
    if !mode.is_two_way() {
        ports(doc, word, findings);
    }
    if mode == Mode::Dsr {
        families(doc, word, findings);
    }
    mode
}

/// The bound of segments.
pub(super) fn mss_clamp(
    doc: &ServiceDoc,
    mode: Mode,
    findings: &mut Findings<'_>,
) -> Option<MssClamp> {
    let At { place, value: Auto(most) } = doc.mss_clamp?;
    match mode {
        Mode::Nat | Mode::FullNat => {}
        Mode::Proxy => {
            findings.add(place, "`mssClamp` goes with `nat` and `fullNat`; remove it");
        }
        // The answer, which bounds what the client sends, does not come through here.
        Mode::Dsr | Mode::Tunnel(_) => findings.add(
            place,
            "`mssClamp` goes with `nat` and `fullNat`; here backends bound what clients send, by \
             `advmss` of their routes",
        ),
    }
    Some(match most {
        None => MssClamp::Auto,
        Some(most) => match u16::try_from(most).ok().filter(|most| *most >= 536) {
            Some(most) => MssClamp::To(most),
            None => {
                findings.add(place, format!("`mssClamp` is {most}; it is 536 to 65535, or `auto`"));
                MssClamp::Auto
            }
        },
    })
}

/// Whether echo requests are answered only while there are backends.
pub(super) fn echo(doc: &ServiceDoc, mode: Mode, findings: &mut Findings<'_>) -> bool {
    let Some(At { place, value: echo }) = doc.echo else { return false };
    if mode == Mode::Proxy {
        findings.add(place, "`echo` goes with packet modes; in mode `proxy` the kernel answers");
    }
    echo == EchoDoc::WhileHealthy
}

/// Fields of connections that are ended here.
fn foreign(doc: &ServiceDoc, word: &str, findings: &mut Findings<'_>) {
    let only_proxy = [
        ("hedgeAfter", doc.retry.hedge_after.as_ref().map(|at| at.place)),
        ("replayBuffer", doc.retry.replay_buffer.as_ref().map(|at| at.place)),
        ("responses", doc.udp.responses.as_ref().map(|at| at.place)),
    ];
    for (name, place) in only_proxy {
        if let Some(place) = place {
            findings.add(place, format!("`{name}` does not go with mode `{word}`; remove it"));
        }
    }
}

/// What backends can be told of the client within the client's own packets.
fn told(doc: &ServiceDoc, mode: Mode, word: &str, findings: &mut Findings<'_>) {
    let Some(At { place, value: header }) = &doc.proxy_protocol else { return };
    if !mode.is_two_way() {
        let why = format!(
            "`proxyProtocol` does not go with mode `{word}`, which adds nothing to connections; \
             remove it"
        );
        return findings.add(*place, why);
    }
    if let Some(accept) = header.accept {
        let what = "`accept` needs mode `proxy`, which ends connections; remove it";
        findings.add(accept.place, what);
    }
    if let Some(send) = header.send.filter(|send| send.value != HeaderVersionDoc::V2) {
        findings.add(send.place, format!("mode `{word}` sends headers of version 2: `send: v2`"));
    }
    if let Some(id) = header.unique_id.filter(|id| id.value) {
        findings.add(id.place, format!("`uniqueId` does not go with mode `{word}`; remove it"));
    }
}

fn source(doc: &ServiceDoc, mode: Mode, word: &str, findings: &mut Findings<'_>) {
    let backends = || doc.backends.iter().chain(&doc.backup_backends);
    let named = backends().any(|backend| backends::literal(&backend.value).is_none());
    // Of another family than a VIP: there the client's address is not to be had.
    let crosses = |backend: &At<BackendDoc>| {
        let ip = backends::literal(&backend.value);
        ip.is_some_and(|ip| {
            doc.addresses.value.iter().any(|vip| vip.value.0.is_ipv4() != is_v4(ip))
        })
    };
    let written = doc.source.as_ref();
    let sources = written.map_or(&[][..], |at| &at.value.addresses);
    if let Some(At { place, value: source }) = written {
        let needed =
            mode == Mode::FullNat || (mode == Mode::Nat && (named || backends().any(crosses)));
        if !needed {
            let why = "keeps the client's address; remove `source`, or use `fullNat`";
            return findings.add(*place, format!("mode `{word}` {why}"));
        }
        if source.transparent || source.interface.is_some() || sources.is_empty() {
            let what = "comes from addresses of its own, on no interface";
            return findings
                .add(*place, format!("mode `{word}` {what}: name some in `source.addresses`"));
        }
    } else if mode == Mode::FullNat {
        return findings.absent(
            doc.name.place,
            "mode `fullNat` needs addresses to come from; name some in `source.addresses`",
        );
    }
    for backend in backends() {
        let Some(ip) = backends::literal(&backend.value) else { continue };
        let has = sources.iter().any(|own| is_v4(own.value.0) == is_v4(ip));
        if mode == Mode::FullNat && !has {
            findings.add(
                backend.place,
                "`source.addresses` has no address of this backend's family to come from",
            );
        } else if mode == Mode::Nat && crosses(backend) && !has {
            findings.add(
                backend.place,
                format!(
                    "mode `{word}` reaches a backend of another family than its clients by an \
                     address of ours: name one of this family in `source.addresses`"
                ),
            );
        }
    }
}

/// Backends get the packets as they are, and listen on the VIP's port.
fn ports(doc: &ServiceDoc, word: &str, findings: &mut Findings<'_>) {
    for port in &doc.ports.value {
        let ports = port.value.port.value.0;
        let Some(target) = port.value.target_port else { continue };
        if ports.len() > 1 || ports.first() != target.value {
            findings.add(
                target.place,
                format!(
                    "mode `{word}` keeps the port: `targetPort` {} must be `port` {ports}, or be left out",
                    target.value
                ),
            );
        }
    }
    let kept = doc.ports.value.first().map(|port| port.value.port.value.0);
    for backend in doc.backends.iter().chain(&doc.backup_backends) {
        let own = backends::own_port(&backend.value);
        if let Some(own) = own.filter(|own| kept.is_none_or(|kept| !kept.contains(*own))) {
            findings.add(
                backend.place,
                format!("mode `{word}` keeps the port: remove port {own} of this backend"),
            );
        }
    }
}

fn families(doc: &ServiceDoc, word: &str, findings: &mut Findings<'_>) {
    for backend in doc.backends.iter().chain(&doc.backup_backends) {
        // Of a name's addresses only those of the right family are taken.
        let Some(ip) = backends::literal(&backend.value) else { continue };
        if doc.addresses.value.iter().any(|vip| vip.value.0.is_ipv4() != is_v4(ip)) {
            findings.add(
                backend.place,
                format!(
                    "mode `{word}` leaves packets in their family: a backend is of the family of \
                     every address of its service"
                ),
            );
        }
    }
}

fn is_v4(ip: IpAddr) -> bool {
    ip.to_canonical().is_ipv4()
}
