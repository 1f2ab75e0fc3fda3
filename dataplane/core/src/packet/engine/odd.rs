//! Packets whose ports are not where the kernel's filters and other fragments look for them:
//! fragments, and IPv6 packets with extension headers. They may have come to another worker than
//! the one that has their flow, and are passed on to that.

use super::{Context, Engine, Verdict};
use crate::packet::flow::Tuple;
use crate::packet::fragments::{Common, First};
use crate::packet::frame::Frame;
use crate::packet::parse::{Addresses, Packet, protocol};
use crate::packet::reason::DropReason;

/// Bytes of an IPv6 header.
const IPV6: u16 = 40;

/// Whether a packet is one of those.
pub(super) fn is_odd(packet: &Packet) -> bool {
    packet.fragment.is_some()
        || (matches!(packet.addresses, Addresses::V6(..)) && packet.l4 - packet.l3 > IPV6)
}

impl Engine<'_> {
    pub(super) fn odd(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        cx: &Context<'_>,
    ) -> Verdict {
        // Services have no others.
        if !matches!(packet.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
            return self.icmp(frame, packet, cx);
        }
        let common = Common::of(packet);
        let later = packet.fragment.is_some_and(|fragment| !fragment.is_first());
        let ports = match common.filter(|_| later) {
            Some(common) => match self.fragments.find(&common, cx.now) {
                Some(First::Ports(ports)) => ports,
                Some(First::Elsewhere(worker)) => return Verdict::Pass(worker),
                None => {
                    return match self.fragments.keep(common, frame, cx.now) {
                        true => Verdict::Wait,
                        false => Verdict::Drop(DropReason::Fragment),
                    };
                }
            },
            None => {
                let Some(ports) = packet.transport.ports() else { return Verdict::Punt };
                let tuple = Tuple { addresses: packet.addresses, ports, protocol: packet.protocol };
                let here = self.flows.find(&tuple, self.flows.hash(&tuple)).is_some();
                let elsewhere = if here { None } else { self.elsewhere(&tuple, cx) };
                if let Some(common) = common {
                    let first = elsewhere.map_or(First::Ports(ports), First::Elsewhere);
                    self.fragments.begin(common, first, cx.now);
                }
                if let Some(home) = elsewhere {
                    return Verdict::Pass(home);
                }
                ports
            }
        };
        let tuple = Tuple { addresses: packet.addresses, ports, protocol: packet.protocol };
        let hash = self.flows.hash(&tuple);
        match self.flows.find(&tuple, hash) {
            // What follows a packet that was none of ours is none of ours either.
            None if later => Verdict::Punt,
            found => self.flow(frame, packet, (&tuple, hash), found, cx),
        }
    }

    /// A fragment that has waited, as if it had come now.
    pub(super) fn gathered(&mut self, frame: &mut Frame<'_>, cx: &Context<'_>) -> Option<Verdict> {
        let (parcel, known) = self.fragments.take(cx.now)?;
        let fits = parcel.write(frame);
        self.fragments.recycle(parcel);
        Some(match (known, fits) {
            (false, _) => Verdict::Drop(DropReason::Fragment),
            (true, false) => Verdict::Drop(DropReason::NoRoom),
            (true, true) => self.one(frame, cx),
        })
    }
}
