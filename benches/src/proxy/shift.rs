//! What a segment of a connection that was handed over would cost beyond `nat`: both sides' numbers, timestamps,
//! selective acknowledgments and windows are another's ("TCP splicing", Maltz and Bhagwat, 1998).
//!
//! This is the prototype of that one step, over frames in memory; what takes frames in and out is in the table above.

use std::hint::black_box;
use std::time::Instant;

use fairway_core::packet::checksum::{Change, Sum, pseudo_header};

use crate::spread;

/// Where TCP's header begins in a frame without a tag.
const TCP: usize = 34;
/// Bytes of a frame with timestamps and no data.
const PLAIN: usize = TCP + 32;
/// The same with two blocks of a selective acknowledgment.
const SACK: usize = PLAIN + 20;
/// Frames that are in use at a time: a burst's, many times over.
const FRAMES: usize = 1024;

/// What is added to a direction's numbers, modulo 2^32.
#[derive(Clone, Copy)]
struct Shift {
    sequence: u32,
    acknowledgment: u32,
    stamp: u32,
    echo: u32,
    /// Of the window, to the right: what the peer's scale is less than the one that was announced for it.
    window: u8,
}

fn read(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Adds to a number, and says what that changes. An odd place swaps the bytes of each word of the sum.
fn add(frame: &mut [u8], at: usize, more: u32, change: Change) -> Change {
    let old = read(frame, at);
    let new = old.wrapping_add(more);
    frame[at..at + 4].copy_from_slice(&new.to_be_bytes());
    match at % 2 {
        0 => change.pair(old, new),
        _ => change.pair(old.rotate_left(8), new.rotate_left(8)),
    }
}

impl Shift {
    fn of(n: u32) -> Self {
        let mixed = |by: u32| n.wrapping_mul(by);
        Self {
            sequence: mixed(0x9e37_79b1),
            acknowledgment: mixed(0x85eb_ca6b),
            stamp: mixed(0xc2b2_ae35),
            echo: mixed(0x27d4_eb2f),
            window: 1,
        }
    }

    /// Moves a segment's numbers to those of the other connection. A list of options that is cut short is left as
    /// it is, like the peer's stack would.
    fn apply(&self, frame: &mut [u8]) {
        let mut change = add(frame, TCP + 4, self.sequence, Change::NONE);
        change = add(frame, TCP + 8, self.acknowledgment, change);
        let old = u16::from_be_bytes([frame[TCP + 14], frame[TCP + 15]]);
        let new = old >> self.window;
        frame[TCP + 14..TCP + 16].copy_from_slice(&new.to_be_bytes());
        change = change.word(old, new);
        let end = (TCP + usize::from(frame[TCP + 12] >> 4) * 4).min(frame.len());
        let mut at = TCP + 20;
        while at + 1 < end {
            let (kind, length) = (frame[at], usize::from(frame[at + 1]));
            match kind {
                0 => break,
                1 => {
                    at += 1;
                    continue;
                }
                _ if length < 2 || at + length > end => break,
                8 if length == 10 => {
                    change = add(frame, at + 2, self.stamp, change);
                    change = add(frame, at + 6, self.echo, change);
                }
                5 => {
                    for edge in (at + 2..at + length).step_by(4).filter(|edge| edge + 4 <= end) {
                        change = add(frame, edge, self.acknowledgment, change);
                    }
                }
                _ => {}
            }
            at += length;
        }
        change.write(frame, TCP + 16);
    }
}

/// A segment with timestamps and, if it is long enough, two blocks.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; length];
    frame[TCP + 12] = (((length - TCP) / 4) as u8) << 4;
    frame[TCP + 20..TCP + 24].copy_from_slice(&[1, 1, 8, 10]);
    if length == SACK {
        frame[PLAIN..PLAIN + 4].copy_from_slice(&[1, 1, 5, 18]);
    }
    frame[TCP + 16..TCP + 18].fill(0);
    let sum = sum(&frame).checksum().to_be_bytes();
    frame[TCP + 16..TCP + 18].copy_from_slice(&sum);
    frame
}

fn sum(frame: &[u8]) -> Sum {
    pseudo_header(&frame[26..30], &frame[30..34], 6, (frame.len() - TCP) as u32)
        .bytes(&frame[TCP..])
}

pub(super) fn run(quick: bool) {
    let (rounds, packets) = if quick { (1, 1 << 20) } else { (5, 1 << 24) };
    println!(
        "\nMoving a segment's numbers to another connection's, in memory, {rounds} rounds: ns a segment\n"
    );
    println!("| | 1 k flows | 1 M flows |\n| --- | --- | --- |");
    for (name, length) in
        [("numbers, window, timestamps", PLAIN), ("and two selective blocks", SACK)]
    {
        let mut frames = vec![frame(length); FRAMES];
        for frame in &mut frames {
            Shift::of(7).apply(frame);
            assert_eq!(sum(frame).folded(), 0xffff, "the checksum is right afterwards");
        }
        let cells = [1_000_u32, 1_000_000].map(|flows| {
            let shifts: Vec<Shift> = (0..flows).map(Shift::of).collect();
            let times: Vec<f64> =
                (0..rounds).map(|_| time(&mut frames, &shifts, packets)).collect();
            let (median, least, most) = spread(&times);
            format!("{median:.1} ({least:.1}–{most:.1})")
        });
        println!("| {name} | {} | {} |", cells[0], cells[1]);
    }
}

/// Nanoseconds a segment, of flows at random.
fn time(frames: &mut [Vec<u8>], shifts: &[Shift], packets: usize) -> f64 {
    let start = Instant::now();
    let mut random = 1_u32;
    for n in 0..packets {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let flow = (u64::from(random) * shifts.len() as u64) >> 32;
        shifts[flow as usize].apply(black_box(&mut frames[n % FRAMES]));
    }
    start.elapsed().as_nanos() as f64 / packets as f64
}
