//! A frame in a buffer with room before it, so that headers can grow.

use super::parse::ether;

/// Bytes of the two stations before a tag.
const STATIONS: usize = 12;

/// A VLAN tag that the port has taken off, or is to put on: 802.1Q's tag control information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VlanTag(pub u16);

impl VlanTag {
    /// Bytes that it takes in a frame.
    pub const LENGTH: usize = 4;

    /// What stands behind a frame's two stations: 802.1Q's type, and it.
    #[must_use]
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let ([a, b], [c, d]) = (ether::VLAN.to_be_bytes(), self.0.to_be_bytes());
        [a, b, c, d]
    }
}

/// What is known of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChecksum {
    /// It is in the frame.
    #[default]
    Present,
    /// The frame has the pseudo-header's sum in its place: a sender on this machine left the rest
    /// to its port.
    Partial,
}

/// An Ethernet frame.
pub struct Frame<'b> {
    buffer: &'b mut [u8],
    start: usize,
    end: usize,
    /// Number of the port that it came by.
    pub port: u16,
    /// Outer tag, if the port took one off; the port puts it on again.
    pub tag: Option<VlanTag>,
    /// The transport checksum on arrival.
    pub checksum: TransportChecksum,
    /// The port has found the checksum of its IPv4 header right.
    pub header_checked: bool,
}

impl<'b> Frame<'b> {
    /// The frame in `buffer[start..end]`. What lies before it and behind it may be used.
    ///
    /// # Panics
    /// When that is no part of the buffer.
    #[must_use]
    pub fn new(buffer: &'b mut [u8], start: usize, end: usize) -> Self {
        assert!(start <= end && end <= buffer.len(), "a frame lies in its buffer");
        let checksum = TransportChecksum::Present;
        Self { buffer, start, end, port: 0, tag: None, checksum, header_checked: false }
    }

    /// No frame: what stands in a place where one may come.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(&mut [], 0, 0)
    }

    /// Its bytes, from the Ethernet header on.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Its bytes, to be changed.
    #[must_use]
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// Number of bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty frame is none")]
    #[inline]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Where it lies in its buffer.
    #[must_use]
    #[inline]
    pub fn place(&self) -> core::ops::Range<usize> {
        self.start..self.end
    }

    /// Puts its tag, if it has one, into its bytes, for ports that do not; false when there is no
    /// room.
    #[must_use]
    #[inline]
    pub fn insert_tag(&mut self) -> bool {
        let Some(tag) = self.tag else { return true };
        if self.len() < STATIONS || !self.grow_front(VlanTag::LENGTH) {
            return false;
        }
        let bytes = self.bytes_mut();
        bytes.copy_within(VlanTag::LENGTH..VlanTag::LENGTH + STATIONS, 0);
        bytes[STATIONS..STATIONS + VlanTag::LENGTH].copy_from_slice(&tag.bytes());
        self.tag = None;
        true
    }

    /// Takes a tag of 802.1Q that its bytes begin with off them, for ports that do not. What it had
    /// before is there again after [`Frame::insert_tag`].
    #[inline]
    pub fn strip_tag(&mut self) {
        const TYPE: [u8; 2] = ether::VLAN.to_be_bytes();
        let bytes = self.bytes_mut();
        if let [.., a, b] = bytes.get(STATIONS..STATIONS + VlanTag::LENGTH).unwrap_or_default()
            && bytes[STATIONS..STATIONS + 2] == TYPE
        {
            let tag = VlanTag(u16::from_be_bytes([*a, *b]));
            bytes.copy_within(..STATIONS, VlanTag::LENGTH);
            self.shrink_front(VlanTag::LENGTH);
            self.tag = Some(tag);
        }
    }

    /// Makes `n` bytes of room at its front, of any content; false when there is none.
    #[must_use]
    pub fn grow_front(&mut self, n: usize) -> bool {
        let fits = n <= self.start;
        if fits {
            self.start -= n;
        }
        fits
    }

    /// Takes `n` bytes off its front, or all that there are.
    pub fn shrink_front(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Makes `n` bytes of room at its end, of any content; false when there is none.
    #[must_use]
    pub fn grow_back(&mut self, n: usize) -> bool {
        let fits = n <= self.buffer.len() - self.end;
        if fits {
            self.end += n;
        }
        fits
    }

    /// Puts `bytes` in its place, from where it starts; false when there is no room.
    #[must_use]
    pub fn replace(&mut self, bytes: &[u8]) -> bool {
        let end = self.start + bytes.len();
        let Some(place) = self.buffer.get_mut(self.start..end) else { return false };
        place.copy_from_slice(bytes);
        self.end = end;
        (self.tag, self.checksum) = (None, TransportChecksum::Present);
        self.header_checked = false;
        true
    }

    /// Keeps its bytes from `from` to `to` alone.
    pub fn narrow(&mut self, from: u16, to: u16) {
        self.truncate(usize::from(to));
        self.shrink_front(usize::from(from));
    }

    /// Cuts it to `n` bytes.
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        self.end = self.end.min(self.start + n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_behind_the_stations() {
        let mut buffer = [7; 24];
        buffer[8..20].fill(1);
        let mut frame = Frame::new(&mut buffer, 8, 24);
        assert!(frame.insert_tag() && frame.place() == (8..24), "there is none");
        frame.tag = Some(VlanTag(0x600a));
        assert!(frame.insert_tag() && frame.tag.is_none());
        assert_eq!(frame.place(), 4..24);
        assert_eq!(frame.bytes()[..12], [1; 12]);
        assert_eq!(frame.bytes()[12..], [0x81, 0, 0x60, 10, 7, 7, 7, 7]);
        frame.strip_tag();
        assert_eq!((frame.tag, frame.place()), (Some(VlanTag(0x600a)), 8..24));
        assert_eq!(frame.bytes()[..13], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7]);
        frame.tag = None;
        frame.strip_tag();
        assert_eq!((frame.tag, frame.place()), (None, 8..24), "no tag");
        let mut tight = [1; 20];
        let mut frame = Frame::new(&mut tight, 3, 20);
        frame.tag = Some(VlanTag(1));
        assert!(!frame.insert_tag(), "no room");
    }

    #[test]
    fn frames_grow_within_their_buffers() {
        let mut buffer = [0, 1, 2, 3, 4, 5, 6, 7];
        let mut frame = Frame::new(&mut buffer, 2, 6);
        assert_eq!(frame.bytes(), [2, 3, 4, 5]);
        assert!(!frame.grow_front(3) && frame.grow_front(2));
        assert_eq!(frame.bytes(), [0, 1, 2, 3, 4, 5]);
        frame.shrink_front(1);
        assert!(!frame.grow_back(3) && frame.grow_back(1));
        assert_eq!(frame.bytes(), [1, 2, 3, 4, 5, 6]);
        frame.truncate(2);
        assert_eq!(frame.bytes(), [1, 2]);
        assert!(!frame.replace(&[9; 8]) && frame.replace(&[9; 3]));
        assert_eq!(frame.bytes(), [9; 3]);
        frame.truncate(9);
        frame.shrink_front(9);
        assert_eq!(frame.len(), 0);
    }
}
