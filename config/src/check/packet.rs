//! What applies to the packet path of the process.

use std::path::Path;

use super::Findings;
use crate::document::{DpdkDoc, DriverDoc, PacketDoc};
use crate::spec::{Device, Dpdk, PacketPath, Pages};
use crate::values::{At, Count};

/// Flows of a worker: less is no table, more than this no cell has a number for.
const FLOWS: std::ops::RangeInclusive<u32> = 64..=1 << 29;
/// Memory for packets on DPDK, in MiB: less has no room for the queues of a card.
const MEBIBYTES: std::ops::RangeInclusive<u32> = 64..=1 << 20;
/// Bytes of an IP packet: every link of IPv6 carries the least (RFC 8200).
const MTU: std::ops::RangeInclusive<u16> = 1280..=9216;

pub(super) fn packet(
    doc: Option<&At<PacketDoc>>,
    base: &Path,
    findings: &mut Findings<'_>,
) -> Option<PacketPath> {
    let At { place, value: doc } = doc?;
    let driver = doc.driver.unwrap_or_default();
    let mut interfaces: Vec<&At<String>> = doc.interfaces.iter().collect();
    match driver {
        DriverDoc::Raw => {
            if doc.interfaces.is_empty() {
                findings
                    .absent(*place, "`interfaces` is empty; packets come and go by at least one");
            }
            if let Some(port) = doc.ports.first() {
                findings.add(
                    port.place,
                    "`ports` go with `driver: dpdk`: add it, or name `interfaces`",
                );
            }
            if let Some(dpdk) = &doc.dpdk {
                findings
                    .add(dpdk.place, "`dpdk` goes with `driver: dpdk`: add that, or remove this");
            }
        }
        DriverDoc::Dpdk => {
            if doc.ports.is_empty() {
                findings.absent(*place, "`ports` is empty; packets come and go by at least one");
            }
            if let Some(At { place, .. }) = interfaces.first() {
                findings.add(
                    *place,
                    "`interfaces` go with `driver: raw`; with DPDK each of `ports` names its \
                     `interface`",
                );
            }
            interfaces = doc.ports.iter().map(|port| &port.value.interface).collect();
        }
    }
    for (n, At { place, value: name }) in interfaces.iter().enumerate() {
        if name.is_empty() || name.len() > 15 {
            findings.add(*place, "an interface has a name of 1 to 15 bytes");
        }
        if interfaces[..n].iter().any(|other| other.value == *name) {
            findings.add(*place, format!("`{name}` is listed twice; remove one"));
        }
    }
    let mut count = |name: &str, written: Option<At<Count>>, default: u32| {
        let Some(At { place, value: Count(count) }) = written else { return default };
        if !FLOWS.contains(&count) {
            let (least, most) = (FLOWS.start(), FLOWS.end());
            findings.add(place, format!("`{name}` is {count}; it is {least} to {most}"));
        }
        count
    };
    let flows = count("flows", doc.flows, 1 << 18);
    let flows_ipv6 = count("flowsIPv6", doc.flows_ipv6, (flows / 4).max(*FLOWS.start()));
    let interfaces = interfaces.into_iter().map(|at| at.value.clone()).collect();
    let dpdk = (driver == DriverDoc::Dpdk).then(|| dpdk(doc, base, findings));
    Some(PacketPath { interfaces, flows, flows_ipv6, dpdk })
}

fn dpdk(doc: &PacketDoc, base: &Path, findings: &mut Findings<'_>) -> Dpdk {
    let devices: Vec<&At<String>> = doc.ports.iter().map(|port| &port.value.device).collect();
    for (n, At { place, value }) in devices.iter().enumerate() {
        if value.is_empty() || value.contains(char::is_whitespace) {
            findings.add(
                *place,
                "a device is a PCI address like `0000:3b:00.0`, or a virtual device like \
                 `net_af_packet0,iface=eth0`",
            );
        }
        if devices[..n].iter().any(|other| other.value == *value) {
            findings.add(*place, format!("`{value}` is listed twice; remove one"));
        }
    }
    for At { place, value } in doc.ports.iter().filter_map(|port| port.value.mtu.as_ref()) {
        if !MTU.contains(value) {
            let (least, most) = (MTU.start(), MTU.end());
            findings.add(*place, format!("`mtu` is {value}; it is {least} to {most}"));
        }
    }
    let devices = doc.ports.iter().map(|At { value: port, .. }| Device {
        name: port.device.value.clone(),
        mtu: port.mtu.as_ref().map(|at| at.value),
    });
    let devices = devices.collect();
    let usual = DpdkDoc::default();
    let more = doc.dpdk.as_ref().map_or(&usual, |at| &at.value);
    let mebibytes = more.memory.as_ref().map_or(256, |at| {
        let mebibytes = u32::try_from(at.value.0 >> 20).unwrap_or(u32::MAX);
        if !MEBIBYTES.contains(&mebibytes) {
            let (least, most) = (MEBIBYTES.start(), MEBIBYTES.end());
            findings.add(at.place, format!("`memory` is {mebibytes} MiB; it is {least} to {most}"));
        }
        mebibytes
    });
    let pages = match (&more.huge_dir, &more.no_huge) {
        (Some(_), Some(At { place, value: true })) => {
            findings.add(*place, "`noHuge` or `hugeDir`: one of them says where memory comes from");
            Pages::Ordinary
        }
        (_, Some(At { value: true, .. })) => Pages::Ordinary,
        (Some(At { value, .. }), _) => Pages::Folder(base.join(value)),
        (None, _) => Pages::Huge,
    };
    let kernel_end = more.kernel_end.unwrap_or_default();
    Dpdk { devices, mebibytes, pages, kernel_end, arguments: more.eal_arguments.clone() }
}
