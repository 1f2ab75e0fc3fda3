//! Several workers behind cards that divide packets by all of their addresses and ports.

use super::*;
use crate::packet::Toeplitz;
use crate::packet::flow::Tuple;

const WORKERS: u16 = 4;

/// The tuple of a frame that was sent, turned round.
fn reply_to(frame: &[u8]) -> Tuple {
    let Parsed::Ip(packet) = parse(frame).unwrap() else { panic!("no IP packet") };
    Tuple::of(&packet).unwrap().reversed()
}

#[test]
fn replies_come_by_the_queue_of_the_worker_that_has_the_flow() {
    let cards = Arc::new(Toeplitz::new(&Toeplitz::key(3), WORKERS));
    let shape = Shape { ipv4: 512, ipv6: 512 };
    let mut regions: Vec<_> = (0..WORKERS).map(|_| HeapRegion::new(shape.bytes())).collect();
    let mut engines: Vec<_> = (0..)
        .zip(&mut regions)
        .map(|(worker, region)| {
            let flows = FlowTable::open(region.bytes(), shape, [1, 2], false).unwrap();
            let steering = Steering::of(worker, WORKERS).with_cards(Arc::clone(&cards));
            Engine::new(flows, Arc::default(), steering, 0)
        })
        .collect();
    let mut world = World::new();
    let cases = [
        ("192.0.2.10:53", Mode::Nat, "10.78.0.11:53"),
        ("192.0.2.11:53", Mode::FullNat, "10.78.0.11:53"),
        ("[2001:db8::10]:53", Mode::Nat, "[fd78::11]:53"),
        ("[2001:db8::11]:53", Mode::FullNat, "[fd78::11]:53"),
        // To the other family.
        ("[2001:db8::12]:53", Mode::Nat, "10.78.0.12:53"),
    ];
    for (vip, mode, backend) in cases {
        world.serve(Protocol::Udp, vip, mode, &[backend], |_| {});
    }
    for (vip, mode, _) in cases {
        let vip = addr(vip);
        let from = if vip.is_ipv4() { "203.0.113.7" } else { "2001:db8:7::7" };
        let (mut by_queue, mut kept) = ([0_u32; WORKERS as usize], 0);
        for port in 4000..4200 {
            let client = SocketAddr::new(ip(from), port);
            let request = udp(client, vip).payload(b"question").frame();
            let tuple = Tuple::new(client, vip, protocol::UDP).unwrap();
            let home = usize::from(cards.queue(&tuple).unwrap());
            // By whichever queue it comes, and it is passed on once.
            let other = (home + 1) % usize::from(WORKERS);
            let (verdict, _) = world.pass(&mut engines[other], &request);
            assert_eq!(verdict, Verdict::Pass(home as u16), "{vip} {mode:?}");
            let (verdict, sent) = world.pass(&mut engines[home], &request);
            assert_eq!(verdict, Verdict::Send(1), "{vip} {mode:?}");
            let reply = reply_to(&sent);
            assert_eq!(cards.queue(&reply), Some(home as u16), "{vip} {mode:?} {reply:?}");
            let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
            let source = at(reply.addresses.source(), reply.ports.0);
            let destination = at(reply.addresses.destination(), reply.ports.1);
            let answer = udp(source, destination).payload(b"answer").macs([9; 6], OUR_MAC).frame();
            let (verdict, told) = world.pass(&mut engines[home], &answer);
            assert_eq!((verdict, destination_of(&told)), (Verdict::Send(0), client));
            by_queue[home] += 1;
            kept += u32::from(reply.ports.1 == port);
        }
        assert!(by_queue.iter().all(|count| (25..80).contains(count)), "{by_queue:?}");
        // A client keeps its port where that comes home by itself.
        let usual = if mode == Mode::Nat && destination_is_kept(vip) { 20..100 } else { 0..10 };
        assert!(usual.contains(&kept), "{vip} {mode:?}: {kept}");
    }
}

fn destination_of(frame: &[u8]) -> SocketAddr {
    let tuple = reply_to(frame);
    SocketAddr::new(tuple.addresses.source(), tuple.ports.0)
}

/// Whether clients of that VIP stay in their family.
fn destination_is_kept(vip: SocketAddr) -> bool {
    vip != addr("[2001:db8::12]:53")
}
