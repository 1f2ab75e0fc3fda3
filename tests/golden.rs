//! Golden packets through a real port: byte for byte what the engine alone makes of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use fairway_core::Mode;
use fairway_core::packet::golden::{self, BACKEND, Golden, OWN_PORT, ROUTER, Step, US, V4, V6};
use fairway_core::packet::{Packet, Parsed, Transport, Tunnel, parse, protocol};
use fairway_tests::wire::Wire;
use fairway_tests::{Fairway, Host, Net};

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Everything has the stations and neighbours of the golden packets, and the hosts at the ends say
/// nothing by themselves.
fn set_stage(net: &Net) {
    for (host, device, address) in [
        (Host::Client, "lb", ROUTER),
        (Host::Servers, "lb", BACKEND),
        (Host::Lb, "clients", US[0]),
        (Host::Lb, "servers", US[1]),
    ] {
        net.exec(host, &format!("ip link set {device} address {}", mac(address)));
    }
    for host in [Host::Client, Host::Servers] {
        net.exec(host, "ip address flush dev lb");
        net.exec(host, "sysctl -qw net.ipv6.conf.lb.disable_ipv6=1");
    }
    for at in [V4, V6] {
        let (router, backend) = (at.router, at.backend);
        for (ip, station, device) in [(router, ROUTER, "clients"), (backend, BACKEND, "servers")] {
            let station = mac(station);
            net.exec(
                Host::Lb,
                &format!("ip neigh replace {ip} lladdr {station} nud permanent dev {device}"),
            );
        }
        let default = if at.router.is_ipv4() { "-4" } else { "-6" };
        net.exec(Host::Lb, &format!("ip {default} route add default via {router} dev clients"));
    }
}

fn document(all: &[Golden], workers: u8) -> String {
    let mut text = format!(
        "dataplane: {{workers: {workers}, pinCpus: false, packet: {{interfaces: [clients, \
         servers]}}}}\nservices:\n"
    );
    for Golden { mode, protocol, vip, backend, .. } in all {
        let (ip, port, target) = (vip.ip(), vip.port(), backend.port());
        let more = match mode {
            Mode::FullNat => format!(
                "\n    source: {{addresses: [\"{}\", \"{}\"], ports: {OWN_PORT}}}",
                V4.own, V6.own
            ),
            Mode::Tunnel(Tunnel::GueWithHeader) => "\n    gueVariant: 0".into(),
            _ => String::new(),
        };
        text += &format!(
            "  - name: s{port}\n    mode: {mode}\n    addresses: [\"{ip}\"]\n    ports: [{{port: \
             {port}, protocol: {protocol}, targetPort: {target}}}]\n    backends: [\"{}\"]\n    \
             healthCheck: {{type: none}}{more}\n",
            backend.ip()
        );
    }
    text
}

/// What the kernel says by itself on a link.
fn is_chatter(frame: &[u8]) -> bool {
    match parse(frame) {
        Ok(Parsed::Ip(Packet { transport: Transport::Icmp { kind, .. }, protocol, .. })) => {
            protocol == protocol::ICMPV6 && (130..=143).contains(&kind)
        }
        Ok(Parsed::Ip(Packet { protocol, .. })) => protocol == 0,
        _ => true,
    }
}

#[test]
fn a_port_makes_of_packets_what_the_engine_does() {
    let Some(net) = Net::new() else { return };
    set_stage(&net);
    let all = golden::all();
    for workers in [1, 2] {
        let fairway = Fairway::start(&net, &document(&all, workers));
        let mut wires = [Host::Client, Host::Servers].map(|host| Wire::open(&net, host, "lb"));
        let mut number = 0;
        for Golden { name, mode, steps, .. } in &all {
            // The one port is of one worker, which flows come to by chance.
            if *mode == Mode::FullNat && workers > 1 {
                continue;
            }
            for Step { name: step, side, sent, want, spread } in steps {
                wires[usize::from(*side)].send(sent);
                let out = &wires[usize::from(1 - side)];
                let end = Instant::now() + Duration::from_secs(5);
                let got = loop {
                    match out.receive(end) {
                        Some(frame) if is_chatter(&frame) => {}
                        Some(frame) => break frame,
                        None => panic!(
                            "{workers} workers, {name}: {step} is lost\n{}\n{}",
                            fairway.log(),
                            fairway.status().unwrap()["workers"],
                        ),
                    }
                };
                let mut want = want.clone();
                for bytes in spread {
                    want[bytes.clone()].copy_from_slice(&got[bytes.clone()]);
                }
                assert_eq!(got, want, "{workers} workers, {name}: {step}");
                number += 1;
            }
        }
        println!("{number} packets by {workers} workers");
        drop(fairway);
    }
}

#[test]
fn the_tag_of_the_link_that_a_packet_came_by_stays_there() {
    let Some(net) = Net::new() else { return };
    set_stage(&net);
    let all: Vec<Golden> = golden::all().into_iter().take(1).collect();
    let _fairway = Fairway::start(&net, &document(&all, 1));
    let mut wires = [Host::Client, Host::Servers].map(|host| Wire::open(&net, host, "lb"));
    let Step { sent, want, .. } = &all[0].steps[0];
    wires[0].send(&[&sent[..12], &[0x81, 0, 0x60, 10], &sent[12..]].concat());
    let end = Instant::now() + Duration::from_secs(5);
    let mut frames = std::iter::from_fn(|| wires[1].receive(end));
    assert_eq!(frames.find(|frame| !is_chatter(frame)).as_ref(), Some(want));
}
