//! DPDK's memory, its cards, and the kernel's end of each link.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fairway_config::document::KernelEndDoc;
use fairway_config::{self as config, PacketPath, Pages};
use fairway_core::packet::Toeplitz;
use fairway_dpdk::{
    Eal, EalOptions, Exchange, LogLevel, Memory, Mempool, Port, PortSetup, PortStats, Queues,
};
use fairway_uring::{Polled, keep_descriptors};

use super::Opened;
use crate::control::run;

/// Packets that a queue holds.
const DESCRIPTORS: u16 = 1024;
/// The largest IP packet of links whose MTU nobody has named.
const USUAL_MTU: u16 = 1500;
/// Bytes of a buffer besides: Ethernet's with two tags, and those that XDP keeps.
const BESIDES: u16 = 22 + 256;
/// The least that drivers want of a buffer.
const LEAST: u16 = 2048;
/// Queues that a tap has at most.
const MOST_WORKERS: usize = 16;
/// Packets under way beside those in queues: in bursts, and in the caches of threads.
const UNDER_WAY: u32 = 4096;
/// The address of no card.
const NO_CARD: &str = "0000:00:00.0";
/// Where the kernel tells of its cards.
const CARDS: &str = "/sys/bus/pci/devices";
/// Drivers that leave a card to DPDK, or share it (those of Mellanox).
const DRIVERS: [&str; 4] = ["vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_core"];
/// By what the kernel takes part in virtio.
const VHOST: &str = "/dev/vhost-net";
/// Where the kernel tells of its huge pages, a folder for each size.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// The cards, by the order of their interfaces: what they count, and whether they have a link.
pub(crate) struct Cards {
    ports: Vec<Port<'static>>,
    /// What each had counted when it was looked at last.
    counted: Vec<PortStats>,
    /// Devices that DPDK has.
    found: BTreeSet<String>,
    eal: &'static Eal,
    pool: &'static Mempool<'static>,
    config: config::Dpdk,
    interfaces: Vec<String>,
    workers: usize,
    hash_seed: u64,
}

impl Cards {
    /// Shows what they have counted; returns whether each has a link.
    pub(crate) fn look<'i>(&mut self, interfaces: impl Iterator<Item = &'i str>) -> Vec<bool> {
        self.counted.resize(self.ports.len(), PortStats::default());
        let look = |((port, before), interface): ((&Port<'static>, &mut PortStats), &str)| {
            let stats = port.stats().unwrap_or_default();
            let before = std::mem::replace(before, stats);
            let interface = || interface.to_owned();
            for (name, value) in [
                ("fairway_card_missed_packets_total", (stats.missed, before.missed)),
                (
                    "fairway_card_receive_errors_total",
                    (stats.receive_errors, before.receive_errors),
                ),
                ("fairway_card_send_errors_total", (stats.send_errors, before.send_errors)),
                (
                    "fairway_card_packets_without_memory_total",
                    (stats.without_memory, before.without_memory),
                ),
            ] {
                let (now, before) = value;
                // One that was opened again counts from nothing.
                let more = now.checked_sub(before).unwrap_or(now);
                metrics::counter!(name, "interface" => interface()).increment(more);
            }
            // Devices that say nothing of it have one.
            let up = port.link_is_up().unwrap_or(true);
            let shown = if up { 1.0 } else { 0.0 };
            metrics::gauge!("fairway_card_up", "interface" => interface()).set(shown);
            up
        };
        self.ports.iter().zip(&mut self.counted).zip(interfaces).map(look).collect()
    }

    /// Lets go of all cards, so that another process can have them. Workers have done so before.
    pub(crate) fn release(&mut self) -> Result<(), String> {
        self.ports.clear();
        self.counted.clear();
        // Those that stay are known, and not added when the cards are opened again.
        while let Some(name) = self.found.first().cloned() {
            let removed = self.eal.remove_device(bus_of(&name), &name);
            removed.map_err(|error| error.to_string())?;
            self.found.remove(&name);
        }
        Ok(())
    }
}

/// What the cards' metrics are.
fn describe_metrics() {
    for (name, help) in [
        ("fairway_card_missed_packets_total", "Packets that came while the card's queue was full."),
        ("fairway_card_receive_errors_total", "Packets that came damaged."),
        ("fairway_card_send_errors_total", "Packets that the card could not send."),
        (
            "fairway_card_packets_without_memory_total",
            "Packets that came while there was no memory for them.",
        ),
    ] {
        metrics::describe_counter!(name, help);
    }
    metrics::describe_gauge!("fairway_card_up", "Whether a card of DPDK has a link.");
}

/// Whether DPDK has what it needs.
pub(crate) fn check(packet: &PacketPath, workers: usize) -> Result<(), String> {
    let Some(dpdk) = &packet.dpdk else { return Ok(()) };
    if workers > MOST_WORKERS {
        return Err(format!(
            "{workers} workers are more than the {MOST_WORKERS} queues of the kernel's end of a \
             link: name `dataplane.workers`"
        ));
    }
    let cards = dpdk.devices.iter().map(|device| &*device.name).filter(|name| is_pci(name));
    cards.into_iter().try_for_each(|card| check_card(card, Path::new(CARDS)))?;
    if dpdk.pages != Pages::Ordinary {
        check_huge_pages(dpdk.mebibytes)?;
    }
    if dpdk.kernel_end == KernelEndDoc::Vhost && !Path::new(VHOST).exists() {
        return Err(format!(
            "`kernelEnd: vhost` needs {VHOST}: `modprobe vhost_net` makes it; `tap` needs nothing"
        ));
    }
    Ok(())
}

impl Cards {
    /// Starts DPDK, for so many workers; it stays as long as the process. Cards that another process has are
    /// looked for `later`.
    pub(crate) fn start(
        packet: &PacketPath,
        workers: usize,
        hash_seed: u64,
        later: bool,
    ) -> Result<Self, String> {
        check(packet, workers)?;
        let config = packet.dpdk.clone().ok_or("the document names no cards")?;
        describe_metrics();
        let names = config.devices.iter().map(|device| device.name.clone());
        let (mut pci, mut devices): (Vec<_>, Vec<_>) = names.partition(|name| is_pci(name));
        if later {
            devices.clear();
            // It looks at the bus, and takes nothing of it.
            pci = if pci.is_empty() { pci } else { vec![NO_CARD.into()] };
        }
        let options = EalOptions {
            memory: match &config.pages {
                Pages::Huge => Memory::Private,
                Pages::Folder(path) => Memory::Folder(path.clone()),
                Pages::Ordinary => Memory::Ordinary,
            },
            mebibytes: config.mebibytes,
            prefix: format!("fairway{}", std::process::id()),
            pci,
            devices,
            // Errors alone; what is wanted otherwise comes later and counts.
            more: [vec!["--log-level=error".into()], config.arguments.clone()].concat(),
        };
        Eal::log_to(log);
        // There is one a process, and workers use it until the end.
        let eal: &'static Eal =
            Box::leak(Box::new(Eal::start(&options).map_err(|error| error.to_string())?));
        if !options.pci.is_empty() && !eal.survive_removals() {
            tracing::warn!("a card that is pulled out ends the process");
        }
        // The card and the kernel's end, in both directions.
        let queues = 4 * (config.devices.len() * workers) as u32;
        let count = UNDER_WAY * workers as u32 + queues * u32::from(DESCRIPTORS);
        let mtu = config.devices.iter().filter_map(|device| device.mtu).max().unwrap_or(0);
        let bytes = (mtu + BESIDES).next_multiple_of(256).max(LEAST);
        let names = config.devices.iter().map(|device| words_of(device).0.to_owned());
        let found = names.filter(|_| !later).collect();
        let pool = Mempool::new(eal, "packets", count, bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            ports: Vec::new(),
            found,
            counted: Vec::new(),
            eal,
            pool: Box::leak(Box::new(pool)),
            config,
            interfaces: packet.interfaces.clone(),
            workers,
            hash_seed,
        })
    }

    /// Opens all cards, and the kernel's end of each link.
    pub(crate) fn open(&mut self) -> Result<Opened, String> {
        if !self.ports.is_empty() {
            return Err("a worker has not let go of the cards".into());
        }
        for device in &self.config.devices {
            let (name, arguments) = words_of(device);
            if self.found.insert(name.to_owned()) {
                let added = self.eal.add_device(bus_of(name), name, arguments);
                added.map_err(|error| error.to_string())?;
            }
        }
        let Self { eal, pool, config, workers, .. } = &*self;
        let (eal, pool, workers) = (*eal, *pool, *workers);
        let exchange = Exchange::between(eal, workers)?.into_iter();
        let (mut ports, mut ends) = (Vec::new(), Vec::new());
        let key = Toeplitz::key(self.hash_seed);
        let no_descriptors = |error| format!("no descriptor to sleep by: {error}");
        let mut queues = exchange
            .map(|end| Queues::new(eal, pool, Some(end)).map_err(no_descriptors))
            .collect::<Result<Vec<Queues<'static>>, _>>()?;
        for (number, (device, interface)) in config.devices.iter().zip(&self.interfaces).enumerate()
        {
            let (name, _) = words_of(device);
            let open = |name: &str, mtu, helps| {
                let queues = workers as u16;
                let key = Some(key).filter(|_| helps);
                let setup = PortSetup { queues, descriptors: DESCRIPTORS, mtu, helps, key };
                Port::open(eal, name, pool, setup).map_err(|error| error.to_string())
            };
            let (port, cards) = open(name, device.mtu, true)?;
            if !port.hear_groups() {
                tracing::warn!(
                    device = name,
                    "the card hears no groups: VIPs of IPv6 are not found"
                );
            }
            let mac = port.mac().ok_or_else(|| format!("port `{name}` has no station"))?;
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            let kernel = self.end_name(number);
            let more = match config.kernel_end {
                KernelEndDoc::Tap => String::new(),
                KernelEndDoc::Vhost => {
                    format!(",path={VHOST},queues={workers},queue_size={DESCRIPTORS}")
                }
            };
            if !self.found.contains(&kernel) {
                eal.add_device("vdev", &kernel, &format!("iface={interface},mac={mac}{more}"))
                    .map_err(|error| format!("interface `{interface}`: {error}"))?;
            }
            let (_, taps) = open(&kernel, None, false)?;
            ends.push(kernel);
            if device.mtu > Some(USUAL_MTU) && config.kernel_end == KernelEndDoc::Tap {
                tracing::warn!(
                    interface,
                    "packets to this machine itself that are larger than {USUAL_MTU} bytes are lost at the tap: \
                     give its routes `advmss 1460`, or set `kernelEnd: vhost`"
                );
            }
            // Drivers of the kernel's ends set no MTU.
            let mtu = port.mtu().unwrap_or(USUAL_MTU).to_string();
            run("ip", &["link", "set", "dev", interface, "mtu", &mtu, "up"], "")?;
            for ((queues, card), tap) in queues.iter_mut().zip(cards).zip(taps) {
                queues.add(card, Some(tap));
            }
            tracing::info!(device = name, interface, mac, "carrying packets by DPDK");
            ports.push(port);
        }
        let polled = queues.into_iter().map(|queues| {
            let waker = queues.waker().map(|waker| waker.try_clone_to_owned()).transpose();
            Ok(Polled { waker: waker.map_err(no_descriptors)?, ports: Box::new(queues) })
        });
        let polled = polled.collect::<Result<_, String>>()?;
        // One that divides packets otherwise would bring replies elsewhere.
        let divide = ports.iter().all(Port::divides);
        if workers > 1 && !divide {
            tracing::info!(
                "a card takes no key for its hash: packets may change workers by a ring"
            );
        }
        let toeplitz = divide.then(|| Arc::new(Toeplitz::new(&key, workers as u16)));
        self.ports = ports;
        self.found.extend(ends);
        // A child that has a queue of a card, or of a tap, would get its packets.
        keep_descriptors().map_err(|error| format!("descriptors of DPDK: {error}"))?;
        Ok(Opened { polled, toeplitz })
    }

    /// DPDK's name of the kernel's end of a link.
    fn end_name(&self, number: usize) -> String {
        match self.config.kernel_end {
            // The driver of taps has room for 22 bytes.
            KernelEndDoc::Tap => format!("net_tap_fairway{number}"),
            KernelEndDoc::Vhost => format!("net_virtio_user_fw{number}"),
        }
    }
}

/// A device's name, and what else is said of it.
fn words_of(device: &config::Device) -> (&str, &str) {
    device.name.split_once(',').unwrap_or((&device.name, ""))
}

fn bus_of(name: &str) -> &'static str {
    if is_pci(name) { "pci" } else { "vdev" }
}

/// A line of DPDK's log. What it calls an error ends nothing by itself.
fn log(level: LogLevel, line: &str) {
    match level {
        LogLevel::Error | LogLevel::Warning => tracing::warn!("DPDK: {line}"),
        LogLevel::Notice => tracing::debug!("DPDK: {line}"),
    }
}

/// Whether a device is a card's address: `0000:3b:00.0`, or `3b:00.0`.
fn is_pci(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or(device);
    let words = address.split([':', '.']);
    let hex = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_hexdigit());
    address.contains(':') && words.clone().count() >= 3 && words.into_iter().all(hex)
}

/// Whether DPDK can have a card; `cards` is where the kernel tells of them.
fn check_card(device: &str, cards: &Path) -> Result<(), String> {
    let address = device.split(',').next().unwrap_or(device);
    let whole = match address.matches(':').count() {
        1 => format!("0000:{address}"),
        _ => address.to_owned(),
    };
    let card = cards.join(&whole);
    if !card.exists() {
        return Err(format!("there is no card {whole}; `lspci -D` lists them"));
    }
    let driver = std::fs::read_link(card.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        Some(driver) if DRIVERS.contains(&driver) => Ok(()),
        other => Err(format!(
            "card {whole} is {}: `modprobe vfio-pci; dpdk-devbind.py --bind=vfio-pci {whole}` gives it \
             to DPDK, and takes it from the kernel with all its addresses",
            other
                .map_or("bound to no driver".into(), |driver| format!("the kernel's (`{driver}`)"))
        )),
    }
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
    let path = Path::new(HUGE_PAGES).join("hugepages-2048kB/nr_hugepages");
    let present = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let pages = present.unwrap_or(0) + u64::from(mebibytes).saturating_sub(free).div_ceil(2);
    Err(format!(
        "DPDK needs {mebibytes} MiB of huge pages, and {free} MiB are free: `sysctl -w \
         vm.nr_hugepages={pages}` (pages of 2 MiB), at every start by a file in /etc/sysctl.d; or name less \
         `dataplane.packet.dpdk.memory`; without a card, `noHuge: true`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_there_and_left_to_dpdk() {
        let folder = tempfile::tempdir().unwrap();
        for (card, driver) in [("0000:3b:00.0", "vfio-pci"), ("0000:3b:00.1", "ixgbe")] {
            let path = folder.path().join(card);
            std::fs::create_dir(&path).unwrap();
            std::os::unix::fs::symlink(format!("/drivers/{driver}"), path.join("driver")).unwrap();
        }
        let check = |card: &str| check_card(card, folder.path());
        assert_eq!(check("3b:00.0,mprq_en=1"), Ok(()));
        let why = check("3b:00.1").unwrap_err();
        assert!(why.contains("card 0000:3b:00.1 is the kernel's (`ixgbe`): `modprobe"), "{why}");
        assert!(check("0000:00:00.0").unwrap_err().contains("there is no card 0000:00:00.0"));
    }

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
