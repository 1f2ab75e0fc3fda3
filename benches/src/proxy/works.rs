//! What is measured, and what was wanted of it.

use crate::load::{Burst, Exchange, Plan, ShortPlan};

/// One kind of work.
pub(crate) struct Work {
    /// By which it is chosen.
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    /// Least ratio to HAProxy, or for datagrams to nginx stream, that was wanted: inline, and with RPS.
    pub(crate) wanted: Option<(f64, f64)>,
}

/// How the work is done.
pub(crate) enum Load {
    /// Over kept connections.
    Kept(Plan),
    /// Over connections of one request.
    Short { plan: ShortPlan, headed: bool },
    /// As datagrams.
    Datagrams { clients: usize, size: usize, burst: Burst },
}

const SMALL: Exchange = Exchange::new(64, 128);
const DOWN: Exchange = Exchange::new(64, 64 << 20);
const UP: Exchange = Exchange::new(64 << 20, 64);

const fn kept(clients: usize, exchange: Exchange, rate: Option<u32>) -> Load {
    Load::Kept(Plan { clients, exchange, rate })
}

const fn short(headed: bool) -> Load {
    Load::Short { plan: ShortPlan { clients: 32, exchange: SMALL }, headed }
}

const fn work(
    key: &'static str,
    name: &'static str,
    load: Load,
    wanted: Option<(f64, f64)>,
) -> Work {
    Work { key, name, load, wanted }
}

pub(crate) const WORKS: [Work; 22] = [
    work("kept-1", "64 B → 128 B, 1 connection", kept(1, SMALL, None), Some((1.0, 1.0))),
    work("kept-64", "64 B → 128 B, 64 connections", kept(64, SMALL, None), Some((1.25, 1.30))),
    work("kept-500", "64 B → 128 B, 500 connections", kept(500, SMALL, None), Some((1.25, 1.30))),
    work("kept-4000", "64 B → 128 B, 4,000 connections", kept(4000, SMALL, None), None),
    work("rate", "64 B → 128 B, 8,000/s over 64", kept(64, SMALL, Some(8000)), Some((1.0, 1.0))),
    work("rate-1", "64 B → 128 B, 2,000/s over 1", kept(1, SMALL, Some(2000)), None),
    work("rate-500", "64 B → 128 B, 8,000/s over 500", kept(500, SMALL, Some(8000)), None),
    work("rate-4000", "64 B → 128 B, 8,000/s over 4,000", kept(4000, SMALL, Some(8000)), None),
    work(
        "reply-4k",
        "64 B → 4 KiB, 64 connections",
        kept(64, Exchange::new(64, 4 << 10), None),
        None,
    ),
    work(
        "reply-16k",
        "64 B → 16 KiB, 64 connections",
        kept(64, Exchange::new(64, 16 << 10), None),
        Some((1.25, 1.25)),
    ),
    work("short", "short connections, 32 at a time", short(false), Some((1.25, 1.20))),
    work("short-proxy", "the same, PROXY v2 to backends", short(true), None),
    work("down-1", "bulk down, 1 flow", kept(1, DOWN, None), None),
    work("down-8", "bulk down, 8 flows", kept(8, DOWN, None), Some((3.0, 1.4))),
    work("down-100", "bulk down, 100 flows", kept(100, DOWN, None), None),
    work("up-1", "bulk up, 1 flow", kept(1, UP, None), None),
    work("up-8", "bulk up, 8 flows", kept(8, UP, None), Some((3.0, 1.4))),
    work("up-100", "bulk up, 100 flows", kept(100, UP, None), None),
    work(
        "udp-64",
        "UDP 64 B, 32 clients",
        Load::Datagrams { clients: 32, size: 64, burst: Burst::Single(1) },
        Some((1.2, 1.2)),
    ),
    work(
        "udp-1200",
        "UDP 1200 B, 32 clients",
        Load::Datagrams { clients: 32, size: 1200, burst: Burst::Single(1) },
        Some((1.2, 1.2)),
    ),
    work(
        "udp-burst",
        "UDP bursts of 16 × 1200 B",
        Load::Datagrams { clients: 32, size: 1200, burst: Burst::Segmented(16) },
        Some((9.0, 9.0)),
    ),
    work(
        "udp-burst-one",
        "UDP bursts of 16 × 1200 B, 1 client",
        Load::Datagrams { clients: 1, size: 1200, burst: Burst::Segmented(16) },
        None,
    ),
];
