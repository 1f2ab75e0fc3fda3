//! What is made of files of keepalived's.

use super::super::tests::{settled, told};
use super::*;

const CONFIG: &str = "! a comment
global_defs { router_id a }
vrrp_instance VI_1 {
  state MASTER
  interface eth0
  virtual_router_id 51
  priority 150
  advert_int 1
  authentication { auth_type PASS
    auth_pass secret }
  virtual_ipaddress {
    192.0.2.1/24 dev eth0
    192.0.2.2
  }
  track_interface { eth1 }
}
virtual_server 192.0.2.1 80 {
  delay_loop 6
  retry 2
  delay_before_retry 1
  lb_algo wrr
  lb_kind DR
  persistence_timeout 50
  protocol TCP
  sorry_server 10.0.0.9 80
  real_server 10.0.0.1 80 {
    weight 2
    HTTP_GET {
      url { path /up
        status_code 200 }
      connect_timeout 3
    }
  }
  real_server 10.0.0.2 80 { weight 1 }
  quorum 1
}
virtual_server_group DNS {
  192.0.2.2 53
}
virtual_server group DNS {
  protocol UDP
  lb_kind NAT
  real_server 10.0.0.5 5353 { TCP_CHECK { connect_port 53 } }
}
virtual_server fwmark 3 { lb_algo rr }
";

#[test]
fn virtual_servers_and_groups_are_carried_over() {
    let (text, notes) = settled(read(CONFIG));
    for part in [
        "vrrp:\n    - name: VI_1\n      interface: eth0\n      virtualRouterId: 51\n      priority: 150\n      \
             advertInterval: 1000ms\n      addresses: [\"192.0.2.1\", \"192.0.2.2\"]\n      track: {interfaces: [eth1]}",
        "mode: dsr\n    scheduler: roundRobin\n    sessionAffinity: ClientIP\n    sessionAffinityTimeout: 50s",
        "healthCheck: {type: http, path: \"/up\", expectStatus: [200], timeout: 3000ms, interval: 6000ms, fastInterval: 1000ms, fall: 3, rise: 1}",
        "backupBackends:\n      - \"10.0.0.9\"",
        "name: DNS\n    addresses: [\"192.0.2.2\"]\n    ports:\n      - {port: 53, protocol: UDP}\n    mode: nat",
        "healthCheck: {type: tcp, port: 53, timeout: 5000ms, interval: 60000ms, fastInterval: 1000ms, fall: 2, rise: 1}",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let wanted = [
        "3: lost: keepalived speaks VRRP 2 here",
        "9: lost: VRRP 3 has no authentication",
        "25: lost: keepalived does not check its `sorry_server`",
        "34: lost: 10.0.0.2:80 is checked in another way than the real server of line 26",
        "35: lost: `quorum 1`",
        "45: lost: a virtual server by firewall mark",
        "2: of keepalived's process: `router_id`",
        "4: `state MASTER` is not carried over",
        "12: addresses are added without",
    ];
    told(&notes, &wanted);
}

#[test]
fn nothing_is_dropped_without_a_word() {
    let text = "global_defs {\n vrrp_version 3\n}\nvrrp_instance A {\n interface eth0\n virtual_router_id 5\n \
                    virtual_ipaddress {\n 192.0.2.1 dev eth1\n }\n virtual_ipaddress_excluded {\n 192.0.2.2\n }\n \
                    track_interface {\n eth1 weight -10\n }\n track_script {\n chk\n }\n}\n\
                    virtual_server 192.0.2.1 443 {\n lb_algo fo\n alpha\n real_server 10.0.0.1 443 {\n weight 5\n \
                    SSL_GET {\n url {\n path /a\n virtualhost www.example.com\n }\n connect_ip 10.9.9.9\n \
                    bindto 10.0.0.9\n warmup 3\n }\n }\n real_server 10.0.0.2 443 {\n weight 9\n SSL_GET {\n url {\n \
                    path /a\n virtualhost www.example.com\n }\n bindto 10.0.0.9\n }\n uthreshold 9\n }\n \
                    sorry_server 127.0.0.1 80\n}\nvirtual_server 192.0.2.1 0 {\n lb_algo rr\n}\n";
    let (text, notes) = settled(read(text));
    for part in [
        "advertInterval: 1000ms",
        "addresses: [\"192.0.2.1\", \"192.0.2.2\"]",
        "track: {interfaces: [eth1], weight: 10}",
        "healthCheck: {type: https, tls: {verify: false}, path: \"/a\", expectStatus: [200-299], host: \"www.example.com\", source: \
             \"10.0.0.9\", timeout: 5000ms, interval: 60000ms, fastInterval: 3000ms, fall: 4, rise: 1, initialState: down}",
        "- {address: \"10.0.0.1:443\", priority: 1}",
        "- {address: \"10.0.0.2:443\", priority: 0}",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let wanted = [
        "8: lost: 192.0.2.1 is to be on `eth1`",
        "16: lost: `track_script` is not carried over",
        "30: lost: `connect_ip 10.9.9.9` is not carried over",
        "44: lost: `uthreshold 9` is not carried over",
        "46: lost: packets cannot be forwarded to 127.0.0.1:80",
        "46: lost: keepalived does not check its `sorry_server`",
        "48: lost: a virtual server for every port",
        "10: excluded addresses are in what is advertised, too",
        "32: `warmup 3` is not carried over",
    ];
    told(&notes, &wanted);
}

#[test]
fn braces_that_do_not_match_are_told_of() {
    let document = read("virtual_server 192.0.2.1 80 {\n  real_server 10.0.0.1 80 {\n");
    assert_eq!(document.services.len(), 1);
    assert_eq!(document.notes[0].lines, [1, 2].into());
    assert_eq!(read("}\n").notes[0].text, "a brace closes nothing");
}
