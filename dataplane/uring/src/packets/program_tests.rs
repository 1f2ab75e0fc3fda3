use super::*;
use fairway_core::packet::sample::{Sample, icmp, syn, tcp, udp};
use fairway_core::packet::{Steering, tcp_flags};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

/// Runs a program as the kernel does; a load behind the end gives zero.
fn run(program: &[sock_filter], packet: &[u8], kind: u16) -> u32 {
    let (mut a, mut x, mut cells, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
    let load = |at: usize, size: u32| {
        let length = match size {
            BPF_W => 4,
            BPF_H => 2,
            _ => 1,
        };
        let bytes = packet.get(at..at + length)?;
        Some(bytes.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let code = u32::from(code);
        let (class, size, mode) = (code & 7, code & 0x18, code & 0xe0);
        match class {
            BPF_LD if mode == BPF_ABS && k == KIND => a = kind.into(),
            BPF_LD if mode == BPF_ABS || mode == BPF_IND => {
                let from = if mode == BPF_IND { x + k } else { k };
                let Some(value) = load(from as usize, size) else { return 0 };
                a = value;
            }
            BPF_LD if mode == BPF_IMM => a = k,
            BPF_LD => a = cells[k as usize],
            BPF_LDX => x = cells[k as usize],
            BPF_ST => cells[k as usize] = a,
            BPF_MISC if code & 0xf8 == BPF_TXA => a = x,
            BPF_MISC => x = a,
            BPF_RET => return if code & 0x18 == BPF_A { a } else { k },
            BPF_ALU => {
                let by = if code & BPF_X != 0 { x } else { k };
                a = match code & 0xf0 {
                    libc::BPF_ADD => a.wrapping_add(by),
                    BPF_MUL => a.wrapping_mul(by),
                    BPF_AND => a & by,
                    BPF_XOR => a ^ by,
                    BPF_LSH => a << by,
                    BPF_RSH => a >> by,
                    BPF_MOD => a % by,
                    other => panic!("{other:#x}"),
                };
            }
            BPF_JMP => {
                let yes = match code & 0xf0 {
                    BPF_JA => {
                        at += k as usize;
                        continue;
                    }
                    BPF_JEQ => a == k,
                    BPF_JGE => a >= k,
                    BPF_JSET => a & k != 0,
                    other => panic!("{other:#x}"),
                };
                at += usize::from(if yes { jt } else { jf });
            }
            other => panic!("{other:#x}"),
        }
    }
}

fn vips() -> Vec<IpPrefix> {
    let single = (0..40).map(|n| format!("192.0.2.{}", n * 5));
    let others = ["203.0.113.0/28", "198.51.100.64/26", "2001:db8::10", "2001:db8:1::/48"];
    single.chain(others.map(Into::into)).map(|text| text.parse().unwrap()).collect()
}

fn worker_of(sample: &Sample) -> u16 {
    let program = program(&vips(), 4).unwrap();
    let packet = sample.packet();
    let kind = if packet[0] >> 4 == 4 { ether::IPV4 } else { ether::IPV6 };
    run(&program, &packet, kind) as u16
}

const FOUR: Steering = Steering::of(0, 4);

/// A client, a VIP and a backend of one family.
fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr, SocketAddr)> {
    let v4 = || any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c]));
    let v6 = || any::<[u16; 3]>().prop_map(|[a, b, c]| IpAddr::from([0xfd00, a, 0, 0, b, 0, 0, c]));
    let vip4 = prop_oneof![
        (0_u8..40).prop_map(|n| IpAddr::from([192, 0, 2, n * 5])),
        (0_u8..16).prop_map(|n| IpAddr::from([203, 0, 113, n])),
        (64_u8..128).prop_map(|n| IpAddr::from([198, 51, 100, n])),
    ];
    let vip6 = prop_oneof![
        Just(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10])),
        any::<u16>().prop_map(|n| IpAddr::from([0x2001, 0xdb8, 1, n, 0, 0, n, 1])),
    ];
    let ips = prop_oneof![(v4(), vip4, v4()), (v6(), vip6, v6())];
    (ips, any::<[u16; 3]>()).prop_map(|((client, vip, backend), [a, b, c])| {
        (SocketAddr::new(client, a), SocketAddr::new(vip, b), SocketAddr::new(backend, c))
    })
}

proptest! {
    #[test]
    fn both_directions_and_errors_about_them_come_to_the_worker_of_the_client(
        (client, vip, backend) in ends(), options in 0_usize..3,
    ) {
        let home = FOUR.home(client.ip(), client.port());
        let ack = tcp_flags::ACK;
        let mut cases = vec![
            ("first", syn(client, vip)),
            ("later", udp(client, vip).payload(b"x")),
            ("reply", tcp(backend, client, ack)),
        ];
        if client.is_ipv4() {
            cases.push(("with options", tcp(client, vip, ack).options(&[1; 8][..options * 4])));
        }
        let (kind, number) = if client.is_ipv4() { (3, 4) } else { (1, 0) };
        let router: IpAddr = if client.is_ipv4() {
            [172, 16, 0, 1].into()
        } else {
            [0xfd16, 0, 0, 0, 0, 0, 0, 1].into()
        };
        for (name, to, about) in [
            ("about a reply", vip.ip(), tcp(vip, client, ack)),
            ("about a request", client.ip(), tcp(client, backend, ack)),
        ] {
            cases.push((name, icmp(router, to, kind, number, [0; 4]).payload(&about.packet())));
        }
        for (name, sample) in cases {
            prop_assert_eq!(worker_of(&sample), home, "{}", name);
        }
        // Parts of packets go by address, all to one.
        let alone = FOUR.home(client.ip(), 0);
        for (offset, more) in [(0, true), (1480, true), (2960, false)] {
            prop_assert_eq!(worker_of(&udp(client, vip).part(offset, more)), alone);
            prop_assert_eq!(worker_of(&udp(backend, client).part(offset, more)), alone);
        }
    }
}

#[test]
fn programs_have_a_limit_that_is_told() {
    let many = |n: u32| -> Vec<IpPrefix> {
        (0..n).map(|n| IpPrefix::from(IpAddr::from((n * 2).to_be_bytes()))).collect()
    };
    assert!(program(&many(700), 2).is_some());
    assert!(program(&many(4000), 2).is_none());
    // Neighbours are one range.
    let near: Vec<IpPrefix> = (0..4000_u32).map(|n| IpAddr::from(n.to_be_bytes()).into()).collect();
    assert!(program(&near, 2).is_some());
    assert!(program(&[], 2).is_some());
}
