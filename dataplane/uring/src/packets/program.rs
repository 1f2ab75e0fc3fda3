//! The filter by which the kernel divides an interface's frames among workers: the arithmetic of
//! [`fairway_core::packet::Steering`] as a classic BPF program.
//!
//! A frame's known end is its source when it goes to a VIP, else its destination; that of an ICMP
//! error is found in the packet that it quotes. Fragments and packets with extension headers go by
//! address alone, and ARP to the first worker.

use fairway_core::IpPrefix;
use fairway_core::packet::{FACTORS, ether, protocol};
use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JGE,
    BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MOD, BPF_MUL,
    BPF_RET, BPF_RSH, BPF_ST, BPF_TAX, BPF_TXA, BPF_W, BPF_X, BPF_XOR, sock_filter,
};

/// Instructions that the kernel takes.
const MOST: usize = 4096;
/// What the kernel knows of a frame beside its bytes starts here; its Ethernet type comes first.
const KIND: u32 = -0x1000_i32 as u32;

// Cells of the program's memory.
/// The address that may be a VIP, in up to four words.
const ASKED: u32 = 0;
/// Word and port of the known end if it is.
const WORD_IF: u32 = 4;
const PORT_IF: u32 = 5;
/// And if it is not.
const WORD_ELSE: u32 = 6;
const PORT_ELSE: u32 = 7;
const SCRATCH: u32 = 8;

/// A place in a program.
#[derive(Clone, Copy)]
struct Label(usize);

/// A program that is being written.
#[derive(Default)]
struct Program {
    code: Vec<sock_filter>,
    /// Where labels are, once they are set.
    labels: Vec<Option<usize>>,
    /// Jumps to them.
    jumps: Vec<(usize, Label)>,
}

impl Program {
    fn push(&mut self, code: u32, k: u32) {
        self.code.push(sock_filter { code: code as u16, jt: 0, jf: 0, k });
    }

    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn set(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(BPF_JMP | BPF_JA, 0);
    }

    /// Jumps when the accumulator passes a test: conditional jumps reach 255 instructions only, so
    /// they jump over a far one.
    fn jump_if(&mut self, test: u32, k: u32, to: Label) {
        let code = (BPF_JMP | test | BPF_K) as u16;
        self.code.push(sock_filter { code, jt: 0, jf: 1, k });
        self.jump(to);
    }

    fn load(&mut self, size: u32, at: u32) {
        self.push(BPF_LD | size | BPF_ABS, at);
    }

    /// Loads from behind the index register.
    fn load_behind(&mut self, size: u32, at: u32) {
        self.push(BPF_LD | size | BPF_IND, at);
    }

    fn store(&mut self, cell: u32) {
        self.push(BPF_ST, cell);
    }

    fn recall(&mut self, cell: u32) {
        self.push(BPF_LD | BPF_MEM, cell);
    }

    fn index_from(&mut self, cell: u32) {
        self.push(BPF_LDX | BPF_W | BPF_MEM, cell);
    }

    fn calculate(&mut self, operation: u32, k: u32) {
        self.push(BPF_ALU | operation | BPF_K, k);
    }

    /// With the index register as the second number.
    fn calculate_with_index(&mut self, operation: u32) {
        self.push(BPF_ALU | operation | BPF_X, 0);
    }

    fn set_index(&mut self) {
        self.push(BPF_MISC | BPF_TAX, 0);
    }

    /// The four words of an IPv6 address, summed into one; it starts at `at`.
    fn word6(&mut self, at: u32) {
        self.load(BPF_W, at);
        for n in 1..4 {
            self.set_index();
            self.load(BPF_W, at + 4 * n);
            self.calculate_with_index(BPF_XOR);
        }
    }

    fn finish(mut self) -> Option<Vec<sock_filter>> {
        for (from, label) in self.jumps {
            let to = self.labels[label.0]?;
            self.code[from].k = u32::try_from(to.checked_sub(from + 1)?).ok()?;
        }
        (self.code.len() <= MOST).then_some(self.code)
    }
}

/// The program for frames to these VIPs among `workers`; none when the VIPs are too many for one
/// (about seven hundred IPv4 addresses or two hundred IPv6 addresses that lie apart).
pub(crate) fn program(vips: &[IpPrefix], workers: u16) -> Option<Vec<sock_filter>> {
    let mut p = Program::default();
    let [v4, v6, test4, test6, is_vip, is_none, end] = std::array::from_fn(|_| p.label());
    p.load(BPF_W, KIND);
    p.jump_if(BPF_JEQ, ether::IPV4.into(), v4);
    p.jump_if(BPF_JEQ, ether::IPV6.into(), v6);
    p.push(BPF_RET | BPF_K, 0);

    p.set(v4);
    ends4(&mut p, test4);
    p.set(test4);
    let ranges = ranges4(vips);
    p.recall(ASKED);
    find4(&mut p, &ranges, is_vip, is_none);

    p.set(v6);
    ends6(&mut p, test6);
    p.set(test6);
    for prefix in vips.iter().filter(|prefix| !prefix.is_ipv4()) {
        find6(&mut p, prefix, is_vip);
    }
    p.jump(is_none);

    // The hash of an end: its port in the accumulator's company, its word in the index register.
    for (label, word, port) in [(is_vip, WORD_IF, PORT_IF), (is_none, WORD_ELSE, PORT_ELSE)] {
        p.set(label);
        p.index_from(word);
        p.recall(port);
        p.jump(end);
    }
    p.set(end);
    p.calculate(BPF_MUL, FACTORS[0]);
    p.calculate_with_index(libc::BPF_ADD);
    for (shift, factor) in [(15, FACTORS[1]), (13, FACTORS[2])] {
        p.set_index();
        p.calculate(BPF_RSH, shift);
        p.calculate_with_index(BPF_XOR);
        p.calculate(BPF_MUL, factor);
    }
    p.calculate(BPF_RSH, 16);
    p.calculate(BPF_MOD, workers.max(1).into());
    p.push(BPF_RET | BPF_A, 0);
    p.finish()
}

/// Whether packets of a protocol begin with ports.
fn has_ports(p: &mut Program, yes: Label) {
    for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        p.jump_if(BPF_JEQ, number.into(), yes);
    }
}

/// Stores both possible ends of an IPv4 packet and the address that decides.
fn ends4(p: &mut Program, done: Label) {
    let [alone, icmp, ports] = std::array::from_fn(|_| p.label());
    let ends = |p: &mut Program| {
        p.load(BPF_W, 16);
        p.store(ASKED);
        p.store(WORD_ELSE);
        p.load(BPF_W, 12);
        p.store(WORD_IF);
    };
    ends(p);
    p.push(BPF_LD | BPF_IMM, 0);
    p.store(PORT_IF);
    p.store(PORT_ELSE);
    p.load(BPF_H, 6);
    p.jump_if(BPF_JSET, 0x3fff, alone);
    // Behind the header, whose length is in words.
    p.load(BPF_B, 0);
    p.calculate(BPF_AND, 0xf);
    p.calculate(BPF_LSH, 2);
    p.set_index();
    p.load(BPF_B, 9);
    p.jump_if(BPF_JEQ, protocol::ICMP.into(), icmp);
    has_ports(p, ports);
    p.jump(alone);

    p.set(icmp);
    let error = p.label();
    p.load_behind(BPF_B, 0);
    for kind in [3, 4, 5, 11, 12] {
        p.jump_if(BPF_JEQ, kind, error);
    }
    p.jump(alone);
    p.set(error);
    // Addresses of the quoted packet, seen from where it was to arrive.
    p.load_behind(BPF_W, 8 + 12);
    p.store(ASKED);
    p.store(WORD_ELSE);
    p.load_behind(BPF_W, 8 + 16);
    p.store(WORD_IF);
    p.push(BPF_MISC | BPF_TXA, 0);
    p.store(SCRATCH);
    p.load_behind(BPF_B, 8);
    p.calculate(BPF_AND, 0xf);
    p.calculate(BPF_LSH, 2);
    p.index_from(SCRATCH);
    p.calculate_with_index(libc::BPF_ADD);
    p.set_index();
    p.load_behind(BPF_H, 8);
    p.store(PORT_ELSE);
    p.load_behind(BPF_H, 8 + 2);
    p.store(PORT_IF);
    p.jump(alone);

    p.set(ports);
    p.load_behind(BPF_H, 0);
    p.store(PORT_IF);
    p.load_behind(BPF_H, 2);
    p.store(PORT_ELSE);
    p.set(alone);
    p.jump(done);
}

/// The same of an IPv6 packet.
fn ends6(p: &mut Program, done: Label) {
    let [alone, icmp, ports] = std::array::from_fn(|_| p.label());
    let ends = |p: &mut Program, from: u32, asked: u32, to: u32| {
        for n in 0..4 {
            p.load(BPF_W, asked + 4 * n);
            p.store(ASKED + n);
        }
        p.word6(from);
        p.store(WORD_IF);
        p.word6(to);
        p.store(WORD_ELSE);
    };
    ends(p, 8, 24, 24);
    p.push(BPF_LD | BPF_IMM, 0);
    p.store(PORT_IF);
    p.store(PORT_ELSE);
    p.load(BPF_B, 6);
    p.jump_if(BPF_JEQ, protocol::ICMPV6.into(), icmp);
    has_ports(p, ports);
    p.jump(alone);

    p.set(icmp);
    p.load(BPF_B, 40);
    p.jump_if(BPF_JGE, 128, alone);
    ends(p, 48 + 24, 48 + 8, 48 + 8);
    p.load(BPF_B, 48 + 6);
    let quoted = p.label();
    has_ports(p, quoted);
    p.jump(alone);
    p.set(quoted);
    p.load(BPF_H, 88);
    p.store(PORT_ELSE);
    p.load(BPF_H, 90);
    p.store(PORT_IF);
    p.jump(alone);

    p.set(ports);
    p.load(BPF_H, 40);
    p.store(PORT_IF);
    p.load(BPF_H, 42);
    p.store(PORT_ELSE);
    p.set(alone);
    p.jump(done);
}

/// IPv4 prefixes as ranges, first and last address, in order, joined where they touch.
fn ranges4(vips: &[IpPrefix]) -> Vec<(u32, u32)> {
    let range = |prefix: &IpPrefix| match prefix.address() {
        std::net::IpAddr::V4(ip) => {
            let rest = u32::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
            Some((u32::from(ip) & !rest, u32::from(ip) | rest))
        }
        std::net::IpAddr::V6(_) => None,
    };
    let mut ranges: Vec<_> = vips.iter().filter_map(range).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Whether the address in the accumulator is in one of `ranges`, by halving.
fn find4(p: &mut Program, ranges: &[(u32, u32)], yes: Label, no: Label) {
    match ranges {
        [] => p.jump(no),
        [(first, last)] if first == last => {
            p.jump_if(BPF_JEQ, *first, yes);
            p.jump(no);
        }
        [(first, last)] => {
            let from = p.label();
            p.jump_if(BPF_JGE, *first, from);
            p.jump(no);
            p.set(from);
            if let Some(after) = last.checked_add(1) {
                p.jump_if(BPF_JGE, after, no);
            }
            p.jump(yes);
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let upper = p.label();
            p.jump_if(BPF_JGE, high[0].0, upper);
            find4(p, low, yes, no);
            p.set(upper);
            find4(p, high, yes, no);
        }
    }
}

/// Jumps when the address is in an IPv6 prefix.
fn find6(p: &mut Program, prefix: &IpPrefix, yes: Label) {
    let std::net::IpAddr::V6(ip) = prefix.address() else { return };
    let (bits, next) = (u128::from(ip), p.label());
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.length())).unwrap_or(0);
    for n in 0..4 {
        let shift = 96 - 32 * n;
        let (word, mask) = ((bits >> shift) as u32, (mask >> shift) as u32);
        if mask == 0 {
            break;
        }
        p.recall(ASKED + n);
        if mask != u32::MAX {
            p.calculate(BPF_AND, mask);
        }
        let equal = p.label();
        p.jump_if(BPF_JEQ, word & mask, equal);
        p.jump(next);
        p.set(equal);
    }
    p.jump(yes);
    p.set(next);
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
