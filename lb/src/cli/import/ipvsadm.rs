//! Rules of IPVS, as `ipvsadm-save -n` prints them and `ipvsadm-restore` reads them.

use super::{Backend, Document, Port, Service, by_weight, endpoint, scheduler_of_ipvs};

/// Reads the rules.
pub(super) fn read(text: &str) -> Document {
    let mut document = Document::default();
    // The service that real servers belong to, by how it is written.
    let mut places: Vec<(String, Option<usize>)> = Vec::new();
    let mut failover = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut words = words.as_slice();
        if words.first() == Some(&"ipvsadm") {
            words = &words[1..];
        }
        match words.first() {
            Some(&("-A" | "--add-service")) => {
                let (place, service) = service(&mut document, number, &words[1..]);
                let index = service.map(|(service, is_failover)| {
                    document.services.push(service);
                    let index = document.services.len() - 1;
                    failover.extend(is_failover.then_some(index));
                    index
                });
                places.push((place, index));
            }
            Some(&("-a" | "--add-server")) => server(&mut document, number, &words[1..], &places),
            Some(word) if !word.starts_with('#') => {
                document.note(number, format!("`{word}` is no rule of `ipvsadm-save`"));
            }
            _ => {}
        }
    }
    for index in failover {
        by_weight(&mut document.services[index]);
    }
    document
}

/// The options of a rule: each with what stands behind it.
fn options<'w>(words: &[&'w str], flags: &[&str]) -> Vec<(&'w str, Option<&'w str>)> {
    let mut options = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        // What begins with a dash is the next option.
        let has_value = !flags.contains(word)
            && !words.as_slice().first().is_some_and(|next| next.starts_with('-'));
        options.push((*word, if has_value { words.next().copied() } else { None }));
    }
    options
}

/// Options that nothing stands behind.
const FLAGS: &[&str] = &[
    "-g",
    "-i",
    "-m",
    "-6",
    "-o",
    "--tun-nocsum",
    "--tun-csum",
    "--tun-remcsum",
    "--gatewaying",
    "--ipip",
    "--masquerading",
    "--ops",
];

/// A service, and whether it is one of failover.
type Taken = (Service, bool);

fn service(document: &mut Document, line: usize, words: &[&str]) -> (String, Option<Taken>) {
    // Its own default.
    let scheduler = Some("leastConnections");
    let mut service = Service { mode: Some("nat"), scheduler, ..Service::default() };
    let (mut place, mut known, mut failover) = (String::new(), false, false);
    for (option, value) in options(words, FLAGS) {
        let value = value.unwrap_or_default();
        match option {
            "-t" | "--tcp-service" | "-u" | "--udp-service" | "--sctp-service" => {
                let protocol = match option {
                    "-t" | "--tcp-service" => "TCP",
                    "--sctp-service" => "SCTP",
                    _ => "UDP",
                };
                place = format!("{protocol} {value}");
                match endpoint(value) {
                    Some(at) if at.port() > 0 => {
                        known = true;
                        service.name =
                            format!("{}-{}-{protocol}", at.ip(), at.port()).to_lowercase();
                        service.addresses.push(at.ip());
                        service.ports.push(Port {
                            port: at.port(),
                            last: None,
                            protocol,
                            target: None,
                        });
                    }
                    Some(_) => document
                        .lost(line, "a service for every port is left out: write `port: 1-65535`"),
                    None => document.lost(
                        line,
                        format!("`{value}` is no address and port; use `ipvsadm-save -n`"),
                    ),
                }
            }
            "-f" | "--fwmark-service" => {
                place = format!("mark {value}");
                document.lost(
                    line,
                    "a service by firewall mark is left out: list its addresses and ports",
                );
            }
            "-s" | "--scheduler" => match scheduler_of_ipvs(value) {
                Some(scheduler) => service.scheduler = Some(scheduler),
                None if value == "fo" => (service.scheduler, failover) = (None, true),
                None => {
                    service.scheduler = None;
                    document.lost(
                        line,
                        format!("scheduler `{value}` has no counterpart; maglev is used"),
                    );
                }
            },
            "-p" | "--persistent" => service.affinity_seconds = Some(value.parse().unwrap_or(300)),
            "-M" | "--netmask" if value == "255.255.255.255" || value == "128" => {}
            "-6" => {}
            other => {
                let rule = format!("{other} {value}");
                document.lost(line, format!("`{}` is not carried over", rule.trim_end()));
            }
        }
    }
    (place, known.then_some((service, failover)))
}

fn server(
    document: &mut Document,
    line: usize,
    words: &[&str],
    places: &[(String, Option<usize>)],
) {
    let mut backend = Backend { weight: 1, ..Backend::default() };
    let (mut place, mut mode, mut notes) = (String::new(), None, Vec::new());
    for (option, value) in options(words, FLAGS) {
        let value = value.unwrap_or_default();
        match option {
            "-t" | "--tcp-service" => place = format!("TCP {value}"),
            "-u" | "--udp-service" => place = format!("UDP {value}"),
            "--sctp-service" => place = format!("SCTP {value}"),
            "-f" | "--fwmark-service" => place = format!("mark {value}"),
            "-r" | "--real-server" => backend.address = value.into(),
            "-g" | "--gatewaying" => mode = Some("dsr"),
            "-i" | "--ipip" => mode = Some("ipip"),
            "-m" | "--masquerading" => mode = Some("nat"),
            "--tun-type" if value == "gue" => mode = Some("gue"),
            "--tun-type" if value == "ipip" => {}
            "-w" | "--weight" => backend.weight = value.parse().unwrap_or(1),
            "-x" | "--u-threshold" if value != "0" => {
                notes.push(format!("at most {value} connections: `limits: {{backendConnections: {value}}}` holds for all backends of a service"));
            }
            "-x" | "--u-threshold" | "-6" => {}
            "-y" | "--l-threshold" if value != "0" => {
                document.note(line, "`-y`: a full backend takes new connections again at once");
            }
            "-y" | "--l-threshold" => {}
            other => {
                let rule = format!("{other} {value}");
                notes.push(format!("`{}` is not carried over", rule.trim_end()));
            }
        }
    }
    notes.into_iter().for_each(|note| document.lost(line, note));
    let found = places.iter().rev().find(|(at, _)| *at == place);
    let Some((_, index)) = found else {
        return document.lost(line, "a real server of no service");
    };
    // What was left out has been told of.
    let Some(index) = *index else { return };
    if endpoint(&backend.address).is_none() {
        let address = backend.address;
        return document
            .lost(line, format!("`{address}` is no address and port; use `ipvsadm-save -n`"));
    }
    if backend.weight == 0 {
        let address = backend.address;
        return document.note(
            line,
            format!("{address} has weight 0 and is left out; `fairway drain` takes one out of use"),
        );
    }
    let mode = mode.unwrap_or("dsr");
    let service = &mut document.services[index];
    if !service.backends.is_empty() && service.mode != Some(mode) {
        let name = service.name.clone();
        return document
            .lost(line, format!("{name} has backends of several modes; this one is left out"));
    }
    if let Some(addr) = endpoint(&backend.address) {
        let listens = document.services[index].ports.first().map(|port| port.port);
        if addr.ip().is_loopback() {
            let text = format!(
                "packets cannot be forwarded to {addr}: write an address that others reach"
            );
            document.lost(line, text);
        }
        if mode != "nat" && listens.is_some_and(|port| port != addr.port()) {
            let text = format!("{addr}: mode `{mode}` keeps the port that was dialled");
            document.lost(line, text);
        }
    }
    let service = &mut document.services[index];
    service.mode = Some(mode);
    service.backends.push(backend);
}

#[cfg(test)]
mod tests {
    use super::super::tests::settled;
    use super::*;

    #[test]
    fn rules_become_services() {
        let (text, notes) = settled(read(
            "-A -t 192.0.2.1:80 -s wlc -p 600\n\
             -a -t 192.0.2.1:80 -r 10.0.0.1:8080 -m -w 2\n\
             -a -t 192.0.2.1:80 -r 10.0.0.2:8080 -m -w 0\n\
             -a -t 192.0.2.1:80 -r 10.0.0.3:8080 -g -w 1\n\
             -A -u [2001:db8::1]:53 -s lblc\n\
             -a -u [2001:db8::1]:53 -r [fd00::1]:53 -g -w 5000\n\
             -a -u [2001:db8::1]:53 -r [fd00::2]:53 -g -w 1\n\
             -A -f 7 -s rr\n\
             -a -f 7 -r 10.0.0.9:0 -g -w 1\n",
        ));
        for part in [
            "name: \"192.0.2.1-80-tcp\"",
            "mode: nat\n    scheduler: leastConnections\n    sessionAffinity: ClientIP\n    sessionAffinityTimeout: 600s",
            "- {address: \"10.0.0.1:8080\", weight: 2}",
            "- {port: 53, protocol: UDP}\n    mode: dsr\n    backends:",
            "- {address: \"fd00::1\", weight: 1000}\n      - \"fd00::2\"",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(notes.len(), 4, "{notes:#?}");
        assert!(notes[3].starts_with("3: ") && notes[3].contains("weight 0"), "{notes:#?}");
        assert!(
            notes[0].starts_with("4: lost: ") && notes[0].contains("several modes"),
            "{notes:#?}"
        );
        assert!(notes[1].starts_with("5: lost: scheduler `lblc`"), "{notes:#?}");
        assert!(notes[2].starts_with("8: lost: a service by firewall mark"), "{notes:#?}");
    }

    #[test]
    fn failover_is_by_priority() {
        let (text, notes) = settled(read(
            "-A -t 192.0.2.1:80 -s fo\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 1\n\
             -a -t 192.0.2.1:80 -r 10.0.0.2:80 -m -w 9\n",
        ));
        assert!(text.contains("- {address: \"10.0.0.1:80\", priority: 1}"), "{text}");
        assert!(text.contains("- {address: \"10.0.0.2:80\", priority: 0}"), "{text}");
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn what_is_no_rule_is_told_of() {
        let document = read("# saved\n\n-t what\n-A -t name:80\n-a -t 192.0.2.9:80 -r 10.0.0.1:80");
        let notes: Vec<_> = document.notes.iter().flat_map(|note| note.lines.clone()).collect();
        assert_eq!(notes, [3, 4, 5]);
        assert!(document.services.is_empty());
    }
}
