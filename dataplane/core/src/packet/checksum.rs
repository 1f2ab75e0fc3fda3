//! Internet checksums (RFC 1071), computed and updated (RFC 1624).
//!
//! A sum is kept as a number of up to 64 bits and folded once at the end. Words are read in network
//! order, so that no machine swaps them differently.

/// A ones' complement sum that is not folded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds a 16-bit word.
    #[must_use]
    #[inline]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Takes a 16-bit word away that was added before.
    #[must_use]
    #[inline]
    pub fn without(self, word: u16) -> Self {
        self.word(!word)
    }

    /// Adds bytes, the last one padded with zero. Only the last part of a sum may have an odd
    /// length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        let rest = words.remainder();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(sum + u64::from(u32::from_be_bytes(last)))
    }

    /// Adds bytes whose number is known: unrolled. A multiple of four.
    #[must_use]
    #[inline]
    pub fn array<const N: usize>(self, bytes: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4)) };
        let mut sum = self.0;
        let mut at = 0;
        while at < N {
            let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            sum += u64::from(u32::from_be_bytes(word));
            at += 4;
        }
        Self(sum)
    }

    /// The sum in 16 bits.
    #[must_use]
    #[inline]
    pub fn folded(self) -> u16 {
        let (sum, carry) = ((self.0 >> 32) as u32).overflowing_add(self.0 as u32);
        let sum = sum + u32::from(carry);
        // The upper half of this is the sum of both, and what the lower one carries is its carry.
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// What a checksum field holds.
    #[must_use]
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// A change of bytes that a checksum covers: what goes and what comes.
///
/// RFC 1624, equation 3: the new field is `~(~old + ~m + m')`, which unlike RFC 1141's never turns
/// a right checksum into the other zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change(Sum);

impl Change {
    /// Of nothing.
    pub const NONE: Self = Self(Sum::ZERO);

    /// `old` is replaced by `new`; both start at the same place of a word.
    #[must_use]
    #[inline]
    pub fn array<const N: usize>(self, old: &[u8; N], new: &[u8; N]) -> Self {
        Self(self.0.word(!Sum::ZERO.array(old).folded()).array(new))
    }

    /// A word is replaced.
    #[must_use]
    #[inline]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0.without(old).word(new))
    }

    /// Two words next to each other are replaced. Sums are modulo 2^16 - 1, of which 2^32 - 1 is a
    /// multiple: the complement in 32 bits takes away as that of each word does.
    #[must_use]
    #[inline]
    pub fn pair(self, old: u32, new: u32) -> Self {
        Self(Sum(self.0.0 + u64::from(!old) + u64::from(new)))
    }

    /// Both changes. Folds nothing: 64 bits have room for far more words than a packet has.
    #[must_use]
    #[inline]
    pub fn and(self, other: Self) -> Self {
        Self(Sum(self.0.0 + other.0.0))
    }

    /// Writes the field at `at` anew where a sender has left the rest to its port: it holds the
    /// pseudo-header's sum itself.
    #[inline(always)]
    pub fn write_partial(self, bytes: &mut [u8], at: usize) {
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&self.0.word(old).folded().to_be_bytes());
    }

    /// The field `old` after the change.
    #[must_use]
    #[inline]
    pub fn apply(self, old: u16) -> u16 {
        self.0.word(!old).checksum()
    }

    /// Writes the checksum field at `at` anew.
    #[inline(always)]
    pub fn write(self, bytes: &mut [u8], at: usize) {
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&self.apply(old).to_be_bytes());
    }

    /// The same for a UDP header's.
    #[inline(always)]
    pub fn write_udp(self, bytes: &mut [u8], at: usize) {
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&self.apply_udp(old).to_be_bytes());
    }

    /// The field `old` of a UDP header after the change: zero stands for "none" and stays, and a
    /// checksum of zero is written as all ones (RFC 768).
    #[must_use]
    #[inline]
    pub fn apply_udp(self, old: u16) -> u16 {
        match (old, self.apply(old)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, new) => new,
        }
    }
}

/// Writes `new` at `at`, and says what that changes.
///
/// # Panics
/// When that is no part of `bytes`.
#[inline]
pub fn replace<const N: usize>(bytes: &mut [u8], at: usize, new: &[u8; N]) -> Change {
    let mut old = [0; N];
    let field = &mut bytes[at..at + N];
    old.copy_from_slice(field);
    field.copy_from_slice(new);
    Change::NONE.array(&old, new)
}

/// Writes the checksum field at `at` of `bytes`, which all count, beside `pseudo`.
pub fn fill(bytes: &mut [u8], at: usize, pseudo: Sum) {
    bytes[at..at + 2].fill(0);
    let checksum = pseudo.bytes(bytes).checksum().to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&checksum);
}

/// The pseudo-header's sum of an upper layer of `length` bytes (RFC 9293, RFC 8200 section 8.1).
/// Both addresses are of one family.
#[must_use]
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length: u32) -> Sum {
    let sum = Sum::ZERO.bytes(source).bytes(destination);
    sum.word(protocol.into()).bytes(&length.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
        text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    #[test]
    fn published_vectors() {
        let sum = Sum::ZERO.bytes(&hex("0001f203f4f5f6f7"));
        assert_eq!((sum.folded(), sum.checksum()), (0xddf2, 0x220d), "RFC 1071, section 3");
        let change = Change::NONE.word(0x5555, 0x3285);
        assert_eq!(change.apply(0xdd2f), 0, "RFC 1624, section 4: no negative zero");
        assert_eq!(change.apply_udp(0xdd2f), 0xffff);
        assert_eq!(change.apply_udp(0), 0, "no checksum stays none");
    }

    #[test]
    fn frames_of_dpdks_own_tests_are_right() {
        // Generated by scapy for DPDK's app/test/test_cksum.c, without their Ethernet headers.
        for (name, l4, protocol, packet) in [
            (
                "IPv4 TCP",
                20,
                6,
                "450000280001000040067ccd7f0000017f00000100140050000000000000000050022000917c0000",
            ),
            ("IPv4 UDP", 20, 17, "4500001d0001000040117ccd7f0000017f000001003500350009896f78"),
            (
                "IPv4 options UDP",
                24,
                17,
                "460000210001000040117bc97f0000017f00000100000000003500350009896f78",
            ),
            (
                "IPv6 TCP",
                40,
                6,
                "60000000001406400000000000000000000000000000000100000000000000000000000000000001001400500000000000000000500220008f7d0000",
            ),
            (
                "IPv6 UDP",
                40,
                17,
                "60000000000911400000000000000000000000000000000100000000000000000000000000000001003500350009877078",
            ),
        ] {
            let packet = hex(packet);
            let (header, payload) = packet.split_at(l4);
            let (source, destination) = match packet[0] >> 4 {
                4 => {
                    assert_eq!(Sum::ZERO.bytes(header).folded(), 0xffff, "{name}: header");
                    (&header[12..16], &header[16..20])
                }
                _ => (&header[8..24], &header[24..40]),
            };
            let sum = pseudo_header(source, destination, protocol, payload.len() as u32);
            assert_eq!(sum.bytes(payload).folded(), 0xffff, "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_update_is_what_computing_anew_gives(
            mut data in prop::collection::vec(any::<u8>(), 8..64),
            at in 0usize..32, new in any::<[u8; 4]>(),
        ) {
            let at = (at * 2 % (data.len() - 4)) & !1;
            let before = Sum::ZERO.bytes(&data).checksum();
            let mut old = [0; 4];
            old.copy_from_slice(&data[at..at + 4]);
            let change = replace(&mut data, at, &new);
            let (updated, anew) = (change.apply(before), Sum::ZERO.bytes(&data).checksum());
            prop_assert_eq!(Sum::ZERO.array(&new), Sum::ZERO.bytes(&new));
            let old = u32::from_be_bytes(old);
            let pair = Change::NONE.pair(old, u32::from_be_bytes(new)).apply(before);
            prop_assert_eq!(pair, updated);
            let mut partial = (!before).to_be_bytes();
            change.write_partial(&mut partial, 0);
            // Of nothing but zeros the sum may be either zero.
            let same = partial == (!anew).to_be_bytes();
            prop_assert!(same || data.iter().all(|byte| *byte == 0), "{:?} {:x}", partial, !anew);
            // With all data zero both zeros are right; otherwise they are the same.
            prop_assert!(updated == anew || data.iter().all(|byte| *byte == 0));
        }
    }
}
