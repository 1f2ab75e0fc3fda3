//! One worker's queues of all ports: bursts come in, are decided about, and leave in the memory that
//! they came in.

use std::io;
use std::os::fd::BorrowedFd;

use fairway_core::packet::{BURST, Frame, PortCounts, Ports, Verdict};

use crate::owners::{
    Batch, Eal, Exchange, Leaving, Membership, Mempool, Place, RxQueue, TxQueue, Waker,
};

/// A pair of queues of one port.
#[derive(Debug)]
struct Pair<'p> {
    rx: RxQueue<'p>,
    tx: TxQueue<'p>,
    /// What is to leave by it.
    out: Leaving<'p>,
    counts: PortCounts,
}

/// A port, as a worker has it.
#[derive(Debug)]
struct Wire<'p> {
    card: Pair<'p>,
    /// The kernel's end of the same link: what is not ours goes there, and its own packets come from
    /// there.
    kernel: Option<Pair<'p>>,
}

/// One worker's queues of all ports.
#[derive(Debug)]
pub struct Queues<'p> {
    /// By their numbers.
    wires: Vec<Wire<'p>>,
    pool: &'p Mempool<'p>,
    /// The way to other workers, and what is to go there, by their numbers.
    exchange: Option<Exchange<'p>>,
    others: Vec<Batch<'p>>,
    /// By what an idle worker sleeps; none when a port has no interrupts.
    waker: Option<Waker<'p>>,
    /// After the queues: their packets go back through the thread's cache.
    membership: Membership<'p>,
}

/// A pair of queues as a port gives them.
pub type QueuePair<'p> = (RxQueue<'p>, TxQueue<'p>);

impl<'p> Queues<'p> {
    /// No ports yet; packets of our own come from `pool`, and those of other workers go by
    /// `exchange`. Fails for want of descriptors.
    pub fn new(
        eal: &'p Eal,
        pool: &'p Mempool<'p>,
        exchange: Option<Exchange<'p>>,
    ) -> io::Result<Self> {
        let workers = exchange.as_ref().map_or(0, Exchange::workers);
        let others = (0..workers).map(|_| Batch::new()).collect();
        let waker = Some(Waker::new(exchange.as_ref().map(Exchange::bell))?);
        let membership = Membership::new(eal);
        Ok(Self { wires: Vec::new(), pool, exchange, others, waker, membership })
    }

    /// Adds the port with the next number, and the kernel's end of its link, if it has one.
    pub fn add(&mut self, card: QueuePair<'p>, kernel: Option<QueuePair<'p>>) {
        let (card, kernel) = (Pair::new(card), kernel.map(Pair::new));
        let added = |waker: &mut Waker<'p>| {
            waker.add(&card.rx) && kernel.as_ref().is_none_or(|pair| waker.add(&pair.rx))
        };
        let waker = self.waker.take();
        self.waker = waker.and_then(|mut waker| added(&mut waker).then_some(waker));
        self.wires.push(Wire { card, kernel });
    }

    /// What is readable when a packet has come after [`Ports::arm`]; none when a port has no
    /// interrupts.
    #[must_use]
    pub fn waker(&self) -> Option<BorrowedFd<'_>> {
        self.waker.as_ref().map(Waker::fd)
    }

    /// As [`Ports::burst`], with at most `most` packets.
    pub fn burst_of(
        &mut self,
        port: u16,
        most: usize,
        work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict]),
    ) -> usize {
        let Some(wire) = self.wires.get_mut(usize::from(port)) else { return 0 };
        let mut batch = Batch::new();
        wire.card.rx.receive(&mut batch, most);
        wire.card.counts.cut += batch.arrive();
        self.decide(&mut batch, Some(port), work)
    }

    /// A batch goes where `work` says; `port` is that of all its packets, unless they tell their own.
    fn decide(
        &mut self,
        batch: &mut Batch<'p>,
        port: Option<u16>,
        work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict]),
    ) -> usize {
        let count = batch.len();
        if count == 0 {
            return 0;
        }
        let mut verdicts = [Verdict::Punt; BURST];
        let mut frames = batch.frames(port);
        work(&mut frames[..count], &mut verdicts[..count]);
        let (mut places, mut ports, mut all_alike) = ([None; BURST], [0; BURST], true);
        for (n, frame) in frames[..count].iter_mut().enumerate() {
            places[n] = leave(frame, verdicts[n], &self.wires);
            ports[n] = frame.port;
            all_alike &= verdicts[n] == verdicts[0] && places[n].is_some();
        }
        let one_way = match verdicts[0] {
            Verdict::Send(to) if all_alike => self.wires.get_mut(usize::from(to)),
            _ => None,
        };
        if let Some(wire) = one_way {
            wire.card.push_all(batch, &places);
        } else {
            for n in 0..count {
                self.carry_out(verdicts[n], ports[n], (batch, n, places[n]));
            }
        }
        count
    }

    /// Packet `n` of a batch goes where its verdict says, if it goes anywhere.
    #[inline]
    fn carry_out(
        &mut self,
        verdict: Verdict,
        port: u16,
        (batch, n, place): (&mut Batch<'p>, usize, Option<Place>),
    ) {
        let pair = match verdict {
            Verdict::Send(to) => self.wires.get_mut(usize::from(to)).map(|wire| &mut wire.card),
            Verdict::Punt => {
                self.wires.get_mut(usize::from(port)).and_then(|wire| wire.kernel.as_mut())
            }
            Verdict::Pass(worker) => return self.pass(worker.into(), port, (batch, n, place)),
            Verdict::Drop(_) | Verdict::Wait => return,
        };
        match (pair, place) {
            (Some(pair), Some(place)) => pair.push(batch, n, place),
            // No room for its tag.
            (Some(pair), None) => pair.counts.full += 1,
            (None, _) => {}
        }
    }

    #[cold]
    fn pass(
        &mut self,
        worker: usize,
        port: u16,
        (batch, n, place): (&mut Batch<'p>, usize, Option<Place>),
    ) {
        if self.others.get(worker).is_some_and(Batch::is_full) {
            self.hand_over(worker);
        }
        match (self.others.get_mut(worker), place) {
            (Some(out), Some(place)) => batch.pass(n, (place, port), out),
            // No room for its tag.
            _ => self.wires.iter_mut().take(1).for_each(|wire| wire.card.counts.unpassed += 1),
        }
    }

    /// Gives a worker what is to go there; what its ring has no room for is gone.
    fn hand_over(&mut self, worker: usize) {
        let out = &mut self.others[worker];
        if let Some(exchange) = self.exchange.as_mut().filter(|_| !out.is_empty()) {
            exchange.send(worker, out);
            if let Some(first) = self.wires.first_mut() {
                first.card.counts.unpassed += out.len() as u64;
            }
            out.clear();
        }
    }
}

impl Ports for Queues<'_> {
    fn enter(&mut self) {
        self.membership.enter();
    }

    fn burst(
        &mut self,
        port: u16,
        work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict]),
    ) -> usize {
        self.burst_of(port, BURST, work)
    }

    fn passed(&mut self, work: &mut dyn FnMut(&mut [Frame<'_>], &mut [Verdict])) -> usize {
        let Some(exchange) = &mut self.exchange else { return 0 };
        let mut batch = Batch::new();
        exchange.receive(&mut batch);
        self.decide(&mut batch, None, work)
    }

    fn emit(&mut self, fill: &mut dyn FnMut(&mut Frame<'_>) -> Option<Verdict>) {
        let mut batch = self.pool.take(1);
        if batch.is_empty() {
            if let Some(wire) = self.wires.first_mut() {
                wire.card.counts.without_memory += 1;
            }
            return;
        }
        let Some(mut frame) = batch.frame(0) else { return };
        let Some(verdict) = fill(&mut frame) else { return };
        let (port, place) = (frame.port, leave(&mut frame, verdict, &self.wires));
        self.carry_out(verdict, port, (&mut batch, 0, place));
    }

    fn relay(&mut self) -> usize {
        let mut count = 0;
        for Wire { card, kernel } in &mut self.wires {
            let Some(kernel) = kernel else { continue };
            // What waits for the card goes first, and makes room.
            card.flush();
            let mut batch = Batch::new();
            kernel.rx.receive(&mut batch, BURST);
            card.counts.cut += batch.arrive();
            count += batch.len();
            send(&mut card.tx, &mut batch, &mut card.counts);
        }
        count
    }

    fn flush(&mut self) {
        for Wire { card, kernel } in &mut self.wires {
            card.flush();
            kernel.iter_mut().for_each(Pair::flush);
        }
        (0..self.others.len()).for_each(|worker| self.hand_over(worker));
    }

    fn arm(&mut self) -> bool {
        self.exchange.iter_mut().for_each(Exchange::sleep);
        self.waker.as_mut().is_some_and(Waker::arm)
    }

    fn disarm(&mut self) {
        self.exchange.iter_mut().for_each(Exchange::rise);
        self.waker.iter_mut().for_each(Waker::disarm);
    }

    fn counts(&mut self, port: u16) -> PortCounts {
        let Some(wire) = self.wires.get_mut(usize::from(port)) else {
            return PortCounts::default();
        };
        let kernel = wire.kernel.as_mut().map(|pair| std::mem::take(&mut pair.counts));
        let mut counts = std::mem::take(&mut wire.card.counts);
        counts.full += kernel.unwrap_or_default().full;
        counts
    }
}

impl<'p> Pair<'p> {
    fn new((rx, tx): QueuePair<'p>) -> Self {
        Self { rx, tx, out: Leaving::new(), counts: PortCounts::default() }
    }

    fn push(&mut self, from: &mut Batch<'p>, n: usize, place: Place) {
        if self.out.is_full() {
            self.flush();
        }
        self.out.push(from, n, place);
    }

    /// The same for all packets of a batch, which have places and are not more than a burst.
    #[inline]
    fn push_all(&mut self, from: &mut Batch<'p>, places: &[Option<Place>; BURST]) {
        if self.out.len() + from.len() > BURST {
            self.flush();
        }
        self.out.push_all(from, places);
    }

    /// Sends what is to leave; what the queue has no room for is gone.
    fn flush(&mut self) {
        if self.out.len() > 0 {
            send(&mut self.tx, self.out.ready(), &mut self.counts);
        }
    }
}

/// Sends packets; what the queue has no room for is gone, and so is a packet that it does not take.
fn send<'p>(tx: &mut TxQueue<'p>, batch: &mut Batch<'p>, counts: &mut PortCounts) {
    loop {
        let count = batch.len();
        tx.send(batch);
        let left = batch.len();
        counts.sent += (count - left) as u64;
        if left == 0 {
            return;
        }
        // Nothing went: there is no room. Else the first one left may be one that never goes.
        if left == count {
            counts.full += left as u64;
            return batch.clear();
        }
        counts.full += 1;
        batch.drop_first();
    }
}

/// The place of a frame that goes somewhere, with its tag in it unless the card puts it on; none when it
/// goes nowhere, or there is no room for that.
#[inline]
fn leave(frame: &mut Frame<'_>, verdict: Verdict, wires: &[Wire<'_>]) -> Option<Place> {
    let inserts = match verdict {
        Verdict::Send(to) => wires.get(usize::from(to)).is_some_and(|w| w.card.tx.inserts_tags()),
        Verdict::Punt | Verdict::Pass(_) => false,
        Verdict::Drop(_) | Verdict::Wait => return None,
    };
    let ready = inserts || frame.insert_tag();
    ready.then(|| Place::of(frame.place(), frame.tag))
}
