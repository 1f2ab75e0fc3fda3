//! Tokens: what a completion belongs to, in 64 bits.
//!
//! | bits | field |
//! | --- | --- |
//! | 0..32 | index of the session or listener |
//! | 32..56 | generation of the index, so that a late completion finds nobody |
//! | 56..64 | what was asked; of these, 62 is the ring's own |

use crate::sys::DATAGRAM_TOKEN;

/// What was asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Accept,
    Wake,
    /// Bytes from the client.
    ClientReceive,
    /// Bytes to the client.
    ClientSend,
    /// The client has bytes for a splice.
    ClientReadable,
    /// The client has room again.
    ClientWritable,
    Connect(Leg),
    /// Bytes from a backend.
    LegReceive(Leg),
    /// Bytes to a backend.
    LegSend(Leg),
    /// A backend has bytes for a splice.
    LegReadable(Leg),
    /// A backend has room again.
    LegWritable(Leg),
    /// Datagrams from clients.
    DatagramIn,
    /// Datagrams from a backend.
    DatagramReply,
    /// A datagram is out; the index is that of its parcel.
    DatagramSent,
    /// An interface has frames.
    FramesReady,
    /// A polled port has frames for a worker that slept.
    PortsReady,
    /// The kernel was told of frames to send.
    FramesSent,
    /// Another worker has passed frames on.
    FramesPassed,
}

/// One of the two connections to backends that a session may have at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leg {
    A,
    B,
}

impl Leg {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) op: Op,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// From here on requests receive datagrams: the ring's [`DATAGRAM_TOKEN`].
const RECEIVES_DATAGRAMS: u64 = DATAGRAM_TOKEN >> 56;

/// Generations wrap here.
pub(crate) const GENERATIONS: u32 = 1 << 24;

impl Token {
    pub(crate) fn pack(self) -> u64 {
        let leg = |base: u64, leg: Leg| base + leg.index() as u64;
        let op = match self.op {
            Op::Accept => 0,
            Op::Wake => 1,
            Op::ClientReceive => 2,
            Op::ClientSend => 3,
            Op::ClientReadable => 4,
            Op::ClientWritable => 5,
            Op::Connect(which) => leg(6, which),
            Op::LegReceive(which) => leg(8, which),
            Op::LegSend(which) => leg(10, which),
            Op::LegReadable(which) => leg(12, which),
            Op::LegWritable(which) => leg(14, which),
            Op::DatagramSent => 16,
            Op::FramesReady => 17,
            Op::FramesSent => 18,
            Op::FramesPassed => 19,
            Op::PortsReady => 20,
            Op::DatagramIn => RECEIVES_DATAGRAMS,
            Op::DatagramReply => RECEIVES_DATAGRAMS + 1,
        };
        op << 56 | u64::from(self.generation % GENERATIONS) << 32 | u64::from(self.index)
    }

    pub(crate) fn unpack(packed: u64) -> Option<Self> {
        let number = packed >> 56;
        let leg = if number & 1 == 0 { Leg::A } else { Leg::B };
        let op = match number {
            0 => Op::Accept,
            1 => Op::Wake,
            2 => Op::ClientReceive,
            3 => Op::ClientSend,
            4 => Op::ClientReadable,
            5 => Op::ClientWritable,
            6 | 7 => Op::Connect(leg),
            8 | 9 => Op::LegReceive(leg),
            10 | 11 => Op::LegSend(leg),
            12 | 13 => Op::LegReadable(leg),
            14 | 15 => Op::LegWritable(leg),
            16 => Op::DatagramSent,
            17 => Op::FramesReady,
            18 => Op::FramesSent,
            19 => Op::FramesPassed,
            20 => Op::PortsReady,
            RECEIVES_DATAGRAMS => Op::DatagramIn,
            129 => Op::DatagramReply,
            _ => return None,
        };
        let generation = (packed >> 32) as u32 % GENERATIONS;
        Some(Self { op, index: packed as u32, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let legs = Leg::BOTH.into_iter().flat_map(|leg| {
            [
                Op::Connect(leg),
                Op::LegReceive(leg),
                Op::LegSend(leg),
                Op::LegReadable(leg),
                Op::LegWritable(leg),
            ]
        });
        let plain = [Op::Accept, Op::Wake, Op::ClientReceive, Op::ClientSend, Op::ClientReadable];
        let datagrams = [Op::DatagramIn, Op::DatagramReply, Op::DatagramSent];
        let frames = [Op::ClientWritable, Op::FramesReady, Op::FramesSent, Op::FramesPassed];
        let ports = [Op::PortsReady];
        for op in legs.chain(plain).chain(frames).chain(ports).chain(datagrams) {
            let token = Token { op, index: u32::MAX - 1, generation: GENERATIONS - 1 };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
