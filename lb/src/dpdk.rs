//! DPDK at the start of the process: its memory, its cards, and the kernel's end of each link.

use fairway_config::{PacketPath, Pages};
use fairway_core::packet::Ports;
use fairway_dpdk::{Eal, EalOptions, Exchange, Memory, Mempool, Port, PortSetup, Queues};

/// Packets that a queue holds.
const DESCRIPTORS: u16 = 1024;
/// Bytes of a packet, as it comes from a link of the usual MTU with two tags.
const PACKET: u16 = 2048;
/// Packets under way beside those in queues: in bursts, and in the caches of threads.
const UNDER_WAY: u32 = 4096;
/// Where the kernel tells of its huge pages, a folder for each size.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Starts DPDK and opens its cards; returns the queues of each of `workers`. Both stay as long as the
/// process.
pub(crate) fn start(packet: &PacketPath, workers: usize) -> Result<Vec<Box<dyn Ports>>, String> {
    let Some(dpdk) = &packet.dpdk else { return Ok(Vec::new()) };
    let (pci, virtual_devices): (Vec<_>, Vec<_>) =
        dpdk.devices.iter().cloned().partition(|device| is_pci(device));
    let memory = match &dpdk.pages {
        Pages::Huge => {
            check_huge_pages(dpdk.mebibytes)?;
            Memory::Private
        }
        Pages::Folder(path) => {
            check_huge_pages(dpdk.mebibytes)?;
            Memory::Folder(path.clone())
        }
        Pages::Ordinary => Memory::Ordinary,
    };
    let options = EalOptions {
        memory,
        mebibytes: dpdk.mebibytes,
        prefix: format!("fairway{}", std::process::id()),
        pci,
        devices: virtual_devices,
        // Errors alone; what is wanted otherwise comes later and counts.
        more: [vec!["--log-level=error".into()], dpdk.arguments.clone()].concat(),
    };
    // There is one a process, and workers use it until the end.
    let eal: &'static Eal =
        Box::leak(Box::new(Eal::start(&options).map_err(|error| error.to_string())?));
    // The card and the kernel's end, in both directions.
    let queues = 4 * (dpdk.devices.len() * workers) as u32;
    let count = UNDER_WAY * workers as u32 + queues * u32::from(DESCRIPTORS);
    let pool = Mempool::new(eal, "packets", count, PACKET).map_err(|error| error.to_string())?;
    let pool: &'static Mempool<'static> = Box::leak(Box::new(pool));
    let number = u16::try_from(workers).map_err(|_| "too many workers for DPDK".to_owned())?;
    let setup = PortSetup { queues: number, descriptors: DESCRIPTORS, mtu: None };
    let exchange = Exchange::between(eal, workers)?.into_iter();
    let mut queues: Vec<Queues<'static>> =
        exchange.map(|end| Queues::new(eal, pool, Some(end))).collect();
    for (number, (device, interface)) in dpdk.devices.iter().zip(&packet.interfaces).enumerate() {
        let name = device.split(',').next().unwrap_or(device);
        let open =
            |name: &str| Port::open(eal, name, pool, setup).map_err(|error| error.to_string());
        let (port, cards) = open(name)?;
        // Packets to VIPs are for a station of ours, and so are groups; a card may know neither.
        port.hear_all();
        port.hear_groups();
        // The driver has room for 22 bytes.
        let kernel = format!("net_tap_fairway{number}");
        let mac = port.mac().ok_or_else(|| format!("port `{name}` has no station"))?;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        eal.add_device(&kernel, &format!("iface={interface},mac={mac}"))
            .map_err(|error| format!("interface `{interface}`: {error}"))?;
        let (_, taps) = open(&kernel)?;
        for ((queues, card), tap) in queues.iter_mut().zip(cards).zip(taps) {
            queues.add(card, Some(tap));
        }
        tracing::info!(device = name, interface, mac, "carrying packets by DPDK");
    }
    let boxed = queues.into_iter().map(|queues| Box::new(queues) as Box<dyn Ports>);
    Ok(boxed.collect())
}

/// Whether a device is a card's address: `0000:3b:00.0`, or `3b:00.0`.
fn is_pci(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or(device);
    let words = address.split([':', '.']);
    let hex = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_hexdigit());
    address.contains(':') && words.clone().count() >= 3 && words.into_iter().all(hex)
}

/// DPDK says little when there are too few.
fn check_huge_pages(mebibytes: u32) -> Result<(), String> {
    let sizes = std::fs::read_dir(HUGE_PAGES).into_iter().flatten().flatten();
    let free: u64 = sizes
        .filter_map(|size| {
            let name = size.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let free = std::fs::read_to_string(size.path().join("free_hugepages")).ok()?;
            Some(free.trim().parse::<u64>().ok()? * kib / 1024)
        })
        .sum();
    if free >= u64::from(mebibytes) {
        return Ok(());
    }
    let pages = mebibytes.div_ceil(2);
    Err(format!(
        "DPDK needs {mebibytes} MiB of huge pages, and {free} MiB are free: `sysctl -w \
         vm.nr_hugepages={pages}`, at every start by a file in /etc/sysctl.d; or name less \
         `dataplane.packet.dpdk.memory`; without a card, `noHuge: true`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_from_virtual_devices() {
        for card in ["0000:3b:00.0", "3b:00.1", "0000:3b:00.0,txq_inline=128"] {
            assert!(is_pci(card), "{card}");
        }
        for device in ["net_tap0,iface=a", "net_af_packet0,iface=eth0", "net_ring0", "eth0"] {
            assert!(!is_pci(device), "{device}");
        }
    }
}
