//! Bursts of packets from ports through the engine and out again, to completion.

use std::ops::Range;

use fairway_core::packet::{BURST, Context, Engine, Frame, Verdict};

use crate::owners::{Batch, Mempool, RxQueue, TxQueue};

/// What a worker has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Packets that came.
    pub received: u64,
    /// Packets that a port has taken.
    pub sent: u64,
    /// Packets whose port's queue was full.
    pub full: u64,
    /// Packets that came in more segments than fit into one buffer.
    pub cut: u64,
    /// Packets that could not be made, as there was no memory.
    pub without_memory: u64,
}

/// A worker's queues of one port.
#[derive(Debug)]
struct Wire<'p> {
    rx: RxQueue<'p>,
    tx: TxQueue<'p>,
    /// What is to leave by it.
    out: Batch<'p>,
}

/// The engine of one worker, between its queues of all ports.
pub struct Worker<'p, 'r> {
    engine: Engine<'r>,
    /// By the numbers that the engine knows ports by.
    wires: Vec<Wire<'p>>,
    pool: &'p Mempool<'p>,
    stats: WorkerStats,
}

impl<'p, 'r> Worker<'p, 'r> {
    /// A worker with one pair of queues of each port; packets of its own come from `pool`.
    #[must_use]
    pub fn new(
        engine: Engine<'r>,
        queues: impl IntoIterator<Item = (RxQueue<'p>, TxQueue<'p>)>,
        pool: &'p Mempool<'p>,
    ) -> Self {
        let wire = |(rx, tx)| Wire { rx, tx, out: Batch::new() };
        let wires = queues.into_iter().map(wire).collect();
        Self { engine, wires, pool, stats: WorkerStats::default() }
    }

    /// A burst of each port through the engine, and what is due without one. Returns whether any
    /// packet has come.
    pub fn turn(&mut self, cx: &Context<'_>) -> bool {
        let mut any = false;
        for port in 0..self.wires.len() {
            any |= self.burst(port, BURST, cx) > 0;
        }
        if !any {
            self.engine.process(&mut [], &mut [], cx);
        }
        self.tend(cx);
        any
    }

    /// At most `most` packets that have come by a port, through the engine and out. Returns how many
    /// there were.
    pub fn burst(&mut self, port: usize, most: usize, cx: &Context<'_>) -> usize {
        let mut batch = Batch::new();
        self.stats.cut += self.wires[port].rx.receive(&mut batch, most);
        let count = batch.len();
        if count > 0 {
            self.stats.received += count as u64;
            let mut verdicts = [Verdict::Punt; BURST];
            let mut frames = batch.frames(port as u16);
            self.engine.process(&mut frames[..count], &mut verdicts[..count], cx);
            let places = frames.map(|mut frame| leave(&mut frame));
            for (n, (verdict, place)) in verdicts.iter().zip(places).enumerate().take(count) {
                self.carry_out(*verdict, &mut batch, n, place);
            }
            self.flush();
        }
        count
    }

    /// What is due though no packet came.
    fn tend(&mut self, cx: &Context<'_>) {
        while self.engine.may_be_due(cx.now) {
            let mut batch = self.pool.take(1);
            if batch.is_empty() {
                self.stats.without_memory += 1;
                break;
            }
            let [frame, ..] = &mut batch.frames(0);
            let Some(verdict) = self.engine.due(frame, cx) else { break };
            let place = leave(frame);
            self.carry_out(verdict, &mut batch, 0, place);
        }
        self.flush();
    }

    fn carry_out(
        &mut self,
        verdict: Verdict,
        batch: &mut Batch<'p>,
        n: usize,
        place: Option<Range<usize>>,
    ) {
        let Verdict::Send(port) = verdict else { return };
        let Some((wire, place)) = self.wires.get_mut(usize::from(port)).zip(place) else {
            return;
        };
        if wire.out.is_full() {
            wire.flush(&mut self.stats);
        }
        batch.send(n, place, &mut wire.out);
    }

    fn flush(&mut self) {
        self.wires.iter_mut().for_each(|wire| wire.flush(&mut self.stats));
    }

    /// Its engine.
    #[must_use]
    pub fn engine(&mut self) -> &mut Engine<'r> {
        &mut self.engine
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.stats
    }
}

impl Wire<'_> {
    /// Sends what is to leave; what the queue has no room for is gone.
    fn flush(&mut self, stats: &mut WorkerStats) {
        let count = self.out.len() as u64;
        if count > 0 {
            self.tx.send(&mut self.out);
            let left = self.out.len() as u64;
            stats.sent += count - left;
            stats.full += left;
            self.out.clear();
        }
    }
}

/// Where a frame lies that is to leave, with its tag in it; none when there is no room for that.
fn leave(frame: &mut Frame<'_>) -> Option<Range<usize>> {
    frame.insert_tag().then(|| frame.place())
}
