//! Ports: cards and virtual devices, and their queues.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::Arc;

use dpdk_sys::{
    rte_eth_conf, rte_eth_dev_info, rte_eth_rss_conf, rte_eth_rss_reta_entry64, rte_eth_stats,
    rte_ether_addr,
};
use fairway_core::packet::{KEY, Toeplitz};

use super::batch::Batch;
use super::eal::{Eal, error_text};
use super::mempool::Mempool;

/// How a port is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSetup {
    /// Queues in each direction: one for each worker.
    pub queues: u16,
    /// Packets that a queue holds, in either direction; rounded to what the port can.
    pub descriptors: u16,
    /// The largest IP packet; none is the usual 1500, or what the port can.
    pub mtu: Option<u16>,
    /// It takes tags off, puts them on and checks headers, as far as it can.
    pub helps: bool,
    /// The key by which it is to divide packets among queues, if it can.
    pub key: Option<[u8; KEY]>,
}

/// Why a port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is none.
    #[error("DPDK has no port `{0}`; what it says above may tell why")]
    Missing(String),
    /// Fewer than are needed.
    #[error(
        "port `{name}` has {most} queues in a direction, and {wanted} workers need one each: name \
         fewer `dataplane.workers`, or more queues of a virtual device (`queue_count=` with XDP, `qpairs=` with af_packet)"
    )]
    Queues {
        /// Its name.
        name: String,
        /// What it has.
        most: u16,
        /// What is wanted.
        wanted: u16,
    },
    /// DPDK says no.
    #[error("port `{name}`: {step} failed: {error}")]
    Refused {
        /// Its name.
        name: String,
        /// What failed.
        step: &'static str,
        /// DPDK's reason.
        error: String,
    },
}

/// What packets are divided among queues by: all kinds of IPv4 and IPv6.
const SPREAD: u64 = {
    let (first, last) = (dpdk_sys::RTE_ETH_FLOW_IPV4, dpdk_sys::RTE_ETH_FLOW_NONFRAG_IPV6_OTHER);
    (1 << (last + 1)) - (1 << first)
};

/// Those of which we know ports.
const BY_PORTS: u64 = 1 << dpdk_sys::RTE_ETH_FLOW_NONFRAG_IPV4_TCP
    | 1 << dpdk_sys::RTE_ETH_FLOW_NONFRAG_IPV4_UDP
    | 1 << dpdk_sys::RTE_ETH_FLOW_NONFRAG_IPV6_TCP
    | 1 << dpdk_sys::RTE_ETH_FLOW_NONFRAG_IPV6_UDP;
/// Bytes of the longest key that cards have.
const LONGEST_KEY: usize = 64;
/// Entries of a table of queues that are written together.
const RETA_PART: u16 = dpdk_sys::RTE_ETH_RETA_GROUP_SIZE as u16;

fn no_key() -> Box<[u8; LONGEST_KEY]> {
    Box::new([0; LONGEST_KEY])
}

/// A port that is open; closed when its owner and its queues are gone.
#[derive(Debug)]
pub(super) struct Open<'p> {
    pub(super) id: u16,
    /// DPDK keeps a pointer to it.
    _key: Box<[u8; LONGEST_KEY]>,
    memory: PhantomData<&'p Mempool<'p>>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: an open port whose queues nobody has any more.
        let _ = unsafe { dpdk_sys::rte_eth_dev_stop(self.id) };
        // SAFETY: as above.
        let _ = unsafe { dpdk_sys::rte_eth_dev_close(self.id) };
    }
}

/// A port, for who watches over it.
#[derive(Debug)]
pub struct Port<'p> {
    open: Arc<Open<'p>>,
    divides: bool,
}

/// A queue of packets that come.
#[derive(Debug)]
pub struct RxQueue<'p> {
    open: Arc<Open<'p>>,
    queue: u16,
}

/// A queue of packets that go.
#[derive(Debug)]
pub struct TxQueue<'p> {
    open: Arc<Open<'p>>,
    queue: u16,
    inserts_tags: bool,
}

impl<'p> Port<'p> {
    /// Opens the port `name`, whose packets come into buffers of `pool`, and starts it.
    pub fn open(
        eal: &'p Eal,
        name: &str,
        pool: &'p Mempool<'p>,
        setup: PortSetup,
    ) -> Result<(Self, Vec<(RxQueue<'p>, TxQueue<'p>)>), PortError> {
        let missing = || PortError::Missing(name.into());
        let text = CString::new(name).map_err(|_| missing())?;
        let mut id = 0;
        // SAFETY: the name ends with zero; `id` is written.
        let found = unsafe { dpdk_sys::rte_eth_dev_get_port_by_name(text.as_ptr(), &mut id) };
        if found != 0 {
            return Err(missing());
        }
        Self::open_number(eal, (id, name), pool, setup)
    }

    /// The same for the port with DPDK's number `id`, called `name`.
    pub fn open_number(
        _eal: &'p Eal,
        at: (u16, &str),
        pool: &'p Mempool<'p>,
        setup: PortSetup,
    ) -> Result<(Self, Vec<(RxQueue<'p>, TxQueue<'p>)>), PortError> {
        // Some have none, and say so late.
        Self::configure(at, pool, setup, true)
            .or_else(|_| Self::configure(at, pool, setup, false))
            .inspect_err(|_| drop(Open { id: at.0, _key: no_key(), memory: PhantomData }))
    }

    fn configure(
        (id, name): (u16, &str),
        pool: &'p Mempool<'p>,
        setup: PortSetup,
        interrupts: bool,
    ) -> Result<(Self, Vec<(RxQueue<'p>, TxQueue<'p>)>), PortError> {
        let done = |step: &'static str, code: i32| match code {
            0.. => Ok(()),
            _ => Err(PortError::Refused { name: name.into(), step, error: error_text(code) }),
        };
        let mut info = rte_eth_dev_info::default();
        // SAFETY: `info` is written.
        done("asking what it can", unsafe { dpdk_sys::rte_eth_dev_info_get(id, &mut info) })?;
        let (most, wanted) = (info.max_rx_queues.min(info.max_tx_queues), setup.queues);
        if most < wanted {
            return Err(PortError::Queues { name: name.into(), most, wanted });
        }
        let mut conf = rte_eth_conf::default();
        conf.intr_conf.set_rxq(interrupts.into());
        conf.rxmode.mtu = setup.mtu.unwrap_or_default().into();
        if setup.helps {
            conf.rxmode.offloads = info.rx_offload_capa & dpdk_sys::FAIRWAY_RECEIVE_HELP;
            conf.txmode.offloads = info.tx_offload_capa & dpdk_sys::FAIRWAY_SEND_HELP;
        }
        let inserts_tags = conf.txmode.offloads & dpdk_sys::FAIRWAY_SEND_HELP != 0;
        let spreads = info.flow_type_rss_offloads & SPREAD;
        let mut key = no_key();
        // Some say no size: they take a key later, or none.
        let length = usize::from(info.hash_key_size);
        let takes_key = length == 0 || (KEY..=LONGEST_KEY).contains(&length);
        let mut divides = false;
        if wanted > 1 && spreads != 0 {
            conf.rxmode.mq_mode = dpdk_sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = spreads;
            let by_ports = takes_key && spreads & BY_PORTS == BY_PORTS;
            if let Some(wanted) = setup.key.filter(|_| by_ports) {
                // Longer keys than are needed end with zeros.
                key[..KEY].copy_from_slice(&wanted);
                divides = true;
                if length != 0 {
                    conf.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
                    conf.rx_adv_conf.rss_conf.rss_key_len = length as u8;
                }
            }
        }
        // SAFETY: `conf` is copied, and the key that it points to stays as long as the port is open;
        // the port is not started.
        let code = unsafe { dpdk_sys::rte_eth_dev_configure(id, wanted, wanted, &conf) };
        done("configuring", code)?;
        if let Some(mtu) = setup.mtu {
            // SAFETY: a number.
            done("setting the MTU", unsafe { dpdk_sys::rte_eth_dev_set_mtu(id, mtu) })?;
        }
        let (mut receive, mut send) = (setup.descriptors, setup.descriptors);
        // SAFETY: both are read and written.
        let code =
            unsafe { dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut receive, &mut send) };
        done("asking for descriptors", code)?;
        let (anywhere, memory) = (u32::MAX, pool.as_ptr());
        for queue in 0..wanted {
            let usual = std::ptr::null();
            // SAFETY: a queue of those configured; the pool lives as long as the port.
            let code = unsafe {
                dpdk_sys::rte_eth_rx_queue_setup(id, queue, receive, anywhere, usual, memory)
            };
            done("setting a receive queue up", code)?;
            // SAFETY: a queue of those configured.
            let code = unsafe {
                dpdk_sys::rte_eth_tx_queue_setup(id, queue, send, anywhere, std::ptr::null())
            };
            done("setting a send queue up", code)?;
        }
        // SAFETY: a configured port.
        done("starting", unsafe { dpdk_sys::rte_eth_dev_start(id) })?;
        let told = if length == 0 { KEY } else { length.min(LONGEST_KEY) };
        divides =
            divides && Self::divide(id, (info.reta_size, wanted), (&mut key[..told], spreads));
        let open = Arc::new(Open { id, _key: key, memory: PhantomData });
        let queues = (0..wanted).map(|queue| {
            let (rx, tx) = (Arc::clone(&open), Arc::clone(&open));
            (RxQueue { open: rx, queue }, TxQueue { open: tx, queue, inserts_tags })
        });
        let queues = queues.collect();
        Ok((Self { open, divides }, queues))
    }

    /// Fills a port's table of queues; whether it divides packets by that and the key from now on.
    fn divide(id: u16, (entries, queues): (u16, u16), (key, kinds): (&mut [u8], u64)) -> bool {
        let mut table = Vec::new();
        for part in 0..entries / RETA_PART {
            let mut reta = [0; RETA_PART as usize];
            for (queue, n) in reta.iter_mut().zip(part * RETA_PART..) {
                *queue = Toeplitz::entry(n, queues);
            }
            table.push(rte_eth_rss_reta_entry64 { mask: u64::MAX, reta });
        }
        if table.is_empty() || !entries.is_power_of_two() {
            return false;
        }
        // SAFETY: a started port, and as many entries as said.
        let code =
            unsafe { dpdk_sys::rte_eth_dev_rss_reta_update(id, table.as_mut_ptr(), entries) };
        #[allow(clippy::needless_update, reason = "later releases of DPDK have more fields")]
        // Some take the key now, some took it when they were configured: what they have decides.
        let mut conf = rte_eth_rss_conf {
            rss_key: key.as_mut_ptr(),
            rss_key_len: key.len() as u8,
            rss_hf: kinds,
            ..rte_eth_rss_conf::default()
        };
        // SAFETY: a started port; the key is as long as said.
        let _ = unsafe { dpdk_sys::rte_eth_dev_rss_hash_update(id, &mut conf) };
        let mut got = [0; LONGEST_KEY];
        conf.rss_key = got.as_mut_ptr();
        // SAFETY: a started port; there is room for the longest key.
        let told = unsafe { dpdk_sys::rte_eth_dev_rss_hash_conf_get(id, &mut conf) };
        code == 0 && told == 0 && conf.rss_hf & BY_PORTS == BY_PORTS && got.starts_with(key)
    }

    /// Whether it divides packets among its queues by the key that it was given, as
    /// [`Toeplitz::queue`] does.
    #[must_use]
    pub fn divides(&self) -> bool {
        self.divides
    }

    /// Takes packets to groups: solicitations of neighbours.
    pub fn hear_groups(&self) -> bool {
        // SAFETY: an open port.
        unsafe { dpdk_sys::rte_eth_allmulticast_enable(self.open.id) == 0 }
    }

    /// Its station.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        let mut mac = rte_ether_addr::default();
        // SAFETY: `mac` is written.
        let done = unsafe { dpdk_sys::rte_eth_macaddr_get(self.open.id, &mut mac) };
        (done == 0).then_some(mac.addr_bytes)
    }

    /// The largest IP packet.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        let mut mtu = 0;
        // SAFETY: `mtu` is written.
        let done = unsafe { dpdk_sys::rte_eth_dev_get_mtu(self.open.id, &mut mtu) };
        (done == 0).then_some(mtu)
    }

    /// What it has lost.
    #[must_use]
    pub fn stats(&self) -> Option<PortStats> {
        let mut stats = rte_eth_stats::default();
        // SAFETY: `stats` is written.
        let done = unsafe { dpdk_sys::rte_eth_stats_get(self.open.id, &mut stats) };
        (done == 0).then_some(PortStats {
            missed: stats.imissed,
            receive_errors: stats.ierrors,
            send_errors: stats.oerrors,
            without_memory: stats.rx_nombuf,
        })
    }

    /// Whether its link is up; none when it does not say.
    #[must_use]
    pub fn link_is_up(&self) -> Option<bool> {
        // SAFETY: an open port.
        match unsafe { dpdk_sys::fairway_link_is_up(self.open.id) } {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// What a port has lost since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets that came while their queue was full.
    pub missed: u64,
    /// Packets that came damaged.
    pub receive_errors: u64,
    /// Packets that could not be sent.
    pub send_errors: u64,
    /// Packets that came while there was no memory for them.
    pub without_memory: u64,
}

impl<'p> RxQueue<'p> {
    /// Its port and its number there.
    pub(super) fn place(&self) -> (&Arc<Open<'p>>, u16) {
        (&self.open, self.queue)
    }

    /// Adds packets that have come to `batch`, `most` of them, and as far as it has room.
    #[inline]
    pub fn receive(&mut self, batch: &mut Batch<'p>, most: usize) {
        let (id, queue) = (self.open.id, self.queue);
        // SAFETY: an open port's queue that nobody else has; there is room for so many.
        batch.fill(most, |place, room| unsafe {
            dpdk_sys::rte_eth_rx_burst(id, queue, place, room)
        });
    }
}

impl<'p> TxQueue<'p> {
    /// Whether the card puts tags on.
    pub(crate) fn inserts_tags(&self) -> bool {
        self.inserts_tags
    }

    /// Sends packets of `batch`, from the first on; those that the queue has no room for stay.
    #[inline]
    pub fn send(&mut self, batch: &mut Batch<'p>) {
        let (id, queue, inserts_tags) = (self.open.id, self.queue, self.inserts_tags);
        batch.hand_over(|first, mut count| {
            if inserts_tags {
                // Some do it here.
                // SAFETY: an open port's queue that nobody else has; so many packets of ours.
                count = unsafe { dpdk_sys::rte_eth_tx_prepare(id, queue, first, count) };
            }
            // SAFETY: as above, and it takes the packets over.
            unsafe { dpdk_sys::rte_eth_tx_burst(id, queue, first, count) }
        });
    }
}
