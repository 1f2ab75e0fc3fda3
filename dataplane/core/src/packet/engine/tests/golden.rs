//! Every mode on golden packets; ports are tried with the same ones.

use super::*;
use crate::packet::golden::{self, BACKEND, Golden, OWN_PORT, Step, V4, V6};

fn at_sides() -> Routes {
    let link = |side: usize| Link {
        port: side as u16,
        interface: side as u32,
        tag: None,
        mac: golden::US[side],
        mtu: 1500,
        ipv4: match V4.links[side] {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        },
        ipv6: match V6.links[side] {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        },
    };
    let route = |prefix: &str, via, link| Route { prefix: prefix.parse().unwrap(), via, link };
    let routes = [
        route("0.0.0.0/0", Some(V4.router), 0),
        route("::/0", Some(V6.router), 0),
        route("10.78.0.0/24", None, 1),
        route("fd78::/64", None, 1),
    ];
    let stations = [V4, V6]
        .into_iter()
        .flat_map(|at| [((0, at.router), golden::ROUTER), ((1, at.backend), BACKEND)]);
    Routes::new(alloc::vec![link(0), link(1)], routes, stations)
}

#[test]
fn every_mode_makes_of_packets_what_it_is_to_make() {
    for Golden { name, mode, protocol, vip, backend, steps } in golden::all() {
        with_engine(|world, engine| {
            world.route(at_sides());
            world.serve(protocol, &vip.to_string(), mode, &[&backend.to_string()], |policy| {
                policy.source.addresses = alloc::vec![V4.own, V6.own];
                policy.source.ports = Some((OWN_PORT, OWN_PORT));
            });
            for Step { name: step, side, sent, mut want, spread } in steps {
                let mut buffer = alloc::vec![0; 128];
                buffer.extend(&sent);
                let end = buffer.len();
                let mut frame = Frame::new(&mut buffer, 128, end);
                frame.port = side;
                let cx = context(&world.snapshot, &world.clients, world.now);
                let mut verdicts = [Verdict::Punt];
                engine.process(core::slice::from_mut(&mut frame), &mut verdicts, &cx);
                assert_eq!(verdicts[0], Verdict::Send(1 - side), "{name}: {step}");
                for bytes in spread {
                    want[bytes.clone()].copy_from_slice(&frame.bytes()[bytes]);
                }
                assert_eq!(frame.bytes(), want, "{name}: {step}");
            }
        });
    }
}
