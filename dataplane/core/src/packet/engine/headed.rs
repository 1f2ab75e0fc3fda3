//! Connections whose backend is told who its client is (see [`crate::packet::head`]).
//!
//! What is told goes with each segment that has the client's first byte, or none yet, until the
//! backend acknowledges it; so the client's own repetitions repeat it.

use super::Engine;
use crate::packet::flow::{Brief, Direction, Expected, Handle, State};
use crate::packet::frame::Frame;
use crate::packet::head::{
    self, Head, acknowledgement, change_acknowledged, change_mss, move_sequence, sequence,
    take_payload,
};
use crate::packet::icmp::Quoted;
use crate::packet::parse::{Packet, Transport, tcp_flags};
use crate::packet::reason::DropReason;

impl Engine<'_> {
    /// Tells the backend in a packet of a flow who the client is, if it is to be told; the packet
    /// as it is then, none when nothing that others look at has changed.
    #[inline]
    pub(super) fn headed(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (handle, direction): (Handle, Direction),
        brief: &Brief,
    ) -> Result<Option<Packet>, DropReason> {
        let Transport::Tcp { flags, .. } = packet.transport else { return Ok(None) };
        let begins = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
        let may_begin = begins && brief.mode.is_two_way();
        if !brief.headed && !may_begin {
            return Ok(None);
        }
        if direction == Direction::Forward && begins && brief.state == State::Opening {
            let wanted = self.held.service(brief.service).and_then(|held| held.policy.head());
            let Some(head) = wanted else { return Ok(None) };
            self.flows.expect(handle, head, sequence(frame, packet).wrapping_add(1));
        }
        let Some(expected) = self.flows.expected(handle) else { return Ok(None) };
        if packet.fragment.is_some() {
            return Err(DropReason::Untranslatable);
        }
        match direction {
            Direction::Forward => self.tell_backend(frame, packet, (handle, expected), flags),
            Direction::Reply => {
                self.heard(frame, packet, (handle, expected), flags);
                Ok(None)
            }
        }
    }

    fn tell_backend(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (handle, Expected { head, first }): (Handle, Expected),
        flags: u8,
    ) -> Result<Option<Packet>, DropReason> {
        let flow = self.flows.flow(handle);
        let ends = (flow.client, flow.vip);
        let moves = head.moves(flow.client.ip());
        let Some(first) = first else {
            move_sequence(frame, packet, moves);
            return Ok(None);
        };
        if flags & tcp_flags::SYN != 0 {
            let bare = take_payload(frame, packet).ok_or(DropReason::BadTransport)?;
            return match head {
                Head::Proxy { .. } => Ok(Some(bare)),
                Head::Toa => put(head, frame, &bare, ends),
            };
        }
        if sequence(frame, packet) != first {
            move_sequence(frame, packet, moves);
            return Ok(None);
        }
        // Who resets the connection has nothing to say before it.
        match flags & tcp_flags::RST {
            0 => put(head, frame, packet, ends),
            _ => Ok(None),
        }
    }

    fn heard(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        (handle, Expected { head, first }): (Handle, Expected),
        flags: u8,
    ) {
        let client = self.flows.flow(handle).client.ip();
        if flags & tcp_flags::SYN != 0 {
            // What the client sends first has room for it.
            let length = head.length(client) as u16;
            change_mss(frame, packet, |offered| offered.saturating_sub(length));
        }
        if flags & tcp_flags::ACK == 0 {
            return;
        }
        let moves = head.moves(client);
        let Some(first) = first else {
            return change_acknowledged(frame, packet, |number| number.wrapping_sub(moves));
        };
        let beyond = acknowledgement(frame, packet).wrapping_sub(first) as i32;
        change_acknowledged(frame, packet, |number| {
            // Of the head itself the client knows nothing.
            match number.wrapping_sub(first) as i32 {
                ..=0 => number,
                beyond => first.wrapping_add((beyond as u32).saturating_sub(moves)),
            }
        });
        // Of an option nothing is acknowledged, but what comes with it.
        if beyond > 0 && beyond as u32 >= moves {
            self.flows.head_taken(handle);
        }
    }

    /// Turns the sequence number that an error quotes of a client's segment into the one that the
    /// client knows.
    pub(super) fn quote_client(&self, frame: &mut Frame<'_>, quoted: &Quoted, handle: Handle) {
        let Some(Expected { head, first }) = self.flows.expected(handle) else { return };
        let moves = head.moves(self.flows.flow(handle).client.ip());
        let at = quoted.l4 + head::SEQUENCE;
        let Some(number) = frame.bytes_mut().get_mut(at..).and_then(|rest| rest.first_chunk_mut())
        else {
            return;
        };
        let sent = u32::from_be_bytes(*number);
        if first.is_none_or(|first| first != sent && first.wrapping_sub(1) != sent) {
            *number = sent.wrapping_sub(moves).to_be_bytes();
        }
    }
}

fn put(
    head: Head,
    frame: &mut Frame<'_>,
    packet: &Packet,
    ends: (core::net::SocketAddr, core::net::SocketAddr),
) -> Result<Option<Packet>, DropReason> {
    head.put(frame, packet, ends).map(Some).ok_or(DropReason::BadTransport)
}
