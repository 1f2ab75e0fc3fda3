//! What is done later: segments that are sent again, packets that waited for their next hop, flows
//! whose time is over.

use core::time::Duration;

use super::{Context, Engine, TURN, Verdict, over};
use crate::Tick;
use crate::packet::frame::Frame;
use crate::packet::reason::DropReason;
use crate::packet::routes::NextHop;
use crate::packet::waiting::Unresolved;

/// How often what was counted is shown.
const SHOW: Duration = Duration::from_millis(100);
/// How soon an idle worker looks at flows whose time may be over.
const LOOK: Duration = Duration::from_secs(1);
/// The same when there were more than it may look at in one turn.
const AGAIN: Duration = Duration::from_millis(1);

impl Engine<'_> {
    /// Writes the next packet whose time has come into `frame`, whatever is in it; none when nothing
    /// is due. To be asked until then after each burst, and when [`Engine::sleep`] is over.
    pub fn due(&mut self, frame: &mut Frame<'_>, cx: &Context<'_>) -> Option<Verdict> {
        let verdict = match self.replay(frame, cx) {
            Some(verdict) => verdict,
            None => match self.gathered(frame, cx) {
                Some(verdict) => verdict,
                None => self.resolved(frame, cx)?,
            },
        };
        self.counters.count(verdict);
        Some(verdict)
    }

    /// Stations that somebody is to look for, since this was asked last.
    pub fn unresolved(&mut self) -> impl Iterator<Item = Unresolved> + '_ {
        self.waiting.asked()
    }

    /// How long nothing is to be done unless a packet comes; none is for ever.
    #[must_use]
    pub fn sleep(&self, now: Tick) -> Option<Duration> {
        let behind = self.behind || !self.cutting.is_empty();
        let flows = match (self.flows.is_empty() && !behind, behind) {
            (true, _) => None,
            (false, true) => Some(AGAIN),
            (false, false) => Some(LOOK),
        };
        let due = [self.pending.next(), self.waiting.due(), self.fragments.due()];
        let due = due.into_iter().flatten();
        due.map(|due| due.since(now)).chain(flows).min()
    }

    /// A packet whose next hop is known by now, or never will be.
    fn resolved(&mut self, frame: &mut Frame<'_>, cx: &Context<'_>) -> Option<Verdict> {
        let routes = cx.snapshot.routes();
        let parcel = self.waiting.take(routes, cx.now)?;
        let verdict = match parcel.station(routes) {
            Ok(Some((link, mac))) if frame.replace(parcel.packet()) => {
                self.depart(frame, NextHop::Known(link, mac), cx)
            }
            Ok(Some(_)) => Verdict::Drop(DropReason::NoRoom),
            Ok(None) | Err(_) => Verdict::Drop(DropReason::NoNeighbour),
        };
        self.waiting.recycle(parcel);
        Some(verdict)
    }

    /// Ends flows whose time is over, some at a time.
    pub(super) fn turn(&mut self, cx: &Context<'_>) {
        let (held, clients, worker) = (&mut self.held, cx.clients, self.worker);
        self.behind = !self.flows.turn(cx.now, TURN, |view, _| {
            held.end(view, over(view.state), clients, worker);
        });
        self.cut_some(cx);
        if cx.now >= self.show_at {
            self.show_at = cx.now.plus(SHOW);
            self.held.show(worker);
        }
    }
}
