//! Cells: free ones, those that can go, and the wheel that finds flows whose time is over.

use super::cells::NONE;
use super::table::{Ended, FlowTable, Handle, WIDE};
use super::{FlowView, State, mode_of, step};
use crate::Tick;

/// Slots of the wheel: 64 seconds.
pub(super) const SLOTS: usize = 512;
/// Cells that are looked at for one that can go.
const LOOKS: u32 = 16;

impl FlowTable<'_> {
    /// Turns the wheel up to `now`, looking at `budget` cells at most; `ended` is told of the flows
    /// that go. True when it came all the way.
    pub fn turn(
        &mut self,
        now: Tick,
        budget: usize,
        mut ended: impl FnMut(&FlowView, Ended),
    ) -> bool {
        let now = step(now);
        // After a long rest a whole turn is enough.
        self.header.turned = self.header.turned.max(now.saturating_sub(SLOTS as u32));
        let mut left = budget;
        while self.header.turned < now {
            let slot = (self.header.turned + 1) as usize % SLOTS;
            let place = self.wheel[slot];
            if place == NONE {
                self.header.turned += 1;
                continue;
            }
            if left == 0 {
                return false;
            }
            left -= 1;
            let common = self.common(place);
            let (next, state, expires) = (common.next, common.state, common.expires);
            self.wheel[slot] = next;
            if state == State::Free as u8 {
                self.give_back(place);
            } else if expires > now {
                self.link(place, expires);
            } else {
                ended(&self.view(Handle(place)), Ended::Expired);
                self.forget(place);
                self.give_back(place);
            }
        }
        true
    }

    /// A cell for a new flow, and whether the wheel has it already.
    pub(super) fn take_cell(
        &mut self,
        wide: bool,
        ended: impl FnOnce(&FlowView, Ended),
    ) -> Option<(u32, bool)> {
        let free = if wide { self.header.free6 } else { self.header.free4 };
        let flag = if wide { WIDE } else { 0 };
        if free != NONE {
            let next = self.common(free | flag).next;
            *if wide { &mut self.header.free6 } else { &mut self.header.free4 } = next;
            self.prefetch_cell(next | flag);
            return Some((free, false));
        }
        let victim = self.victim(wide)?;
        if self.common(victim).state != State::Free as u8 {
            ended(&self.view(Handle(victim)), Ended::Evicted);
            self.forget(victim);
        }
        Some((victim & !WIDE, true))
    }

    /// Among the next few cells, one whose flow is over or never came about. Established flows
    /// that are rewritten are no victims: a flood of half-open ones replaces itself.
    pub(super) fn victim(&mut self, wide: bool) -> Option<u32> {
        let count = if wide { self.cells6.len() } else { self.cells4.len() } as u32;
        let hand = self.hands[usize::from(wide)];
        let flag = if wide { WIDE } else { 0 };
        let looks = (0..LOOKS.min(count)).map(|n| ((hand + n) % count) | flag);
        let rank = |place: u32| match State::from_byte(self.common(place).state) {
            State::Free => Some(0),
            State::Closed | State::Cut | State::Reset => Some(1),
            State::Opening | State::Answered => Some(2),
            // Who answers past us needs no state to go on: the choice of a backend is the same.
            State::Established | State::ClientDone | State::BackendDone => {
                let one_way = !mode_of(self.common(place).flags).is_two_way();
                one_way.then_some(3)
            }
        };
        let victim = looks.filter_map(|place| Some((rank(place)?, place))).min();
        // On from where this ended, or from behind all that were looked at in vain.
        let end = victim.map_or(hand + LOOKS, |(_, place)| (place & !WIDE) + 1);
        self.hands[usize::from(wide)] = end % count.max(1);
        victim.map(|(_, place)| place)
    }

    pub(super) fn give_back(&mut self, place: u32) {
        let wide = place & WIDE != 0;
        let free = if wide { self.header.free6 } else { self.header.free4 };
        let common = self.common_mut(place);
        common.next = free;
        common.state = State::Free as u8;
        *if wide { &mut self.header.free6 } else { &mut self.header.free4 } = place & !WIDE;
    }

    /// Puts a cell into the wheel where it is to be looked at next: when it expires, or after most
    /// of a turn.
    pub(super) fn link(&mut self, place: u32, expires: u32) {
        let turned = self.header.turned;
        let at = expires.clamp(turned + 1, turned + SLOTS as u32 - 1);
        let slot = at as usize % SLOTS;
        let head = core::mem::replace(&mut self.wheel[slot], place);
        self.common_mut(place).next = head;
    }
}
