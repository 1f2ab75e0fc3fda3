//! What watching a large cluster costs, beyond what the API server itself takes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use fairway_config::kubernetes::client::ClusterEvent;
use fairway_config::kubernetes::{EndpointSlice, Kind, Object, Service};
use fairway_config::load_text;
use serde::de::DeserializeOwned;

use super::{control, cpu};
use crate::cloud::{Cloud, CloudNews};
use crate::control::{Answers, Control, Input, Listeners};

/// What a cluster costs, in CPU time of one thread.
#[derive(Debug)]
pub struct ClusterScale {
    /// Reading the API server's lists.
    pub parse: Duration,
    /// From the lists to the published snapshot.
    pub sync: Duration,
    /// From the event of one changed endpoint to the published snapshot, each time.
    pub changes: Vec<Duration>,
    /// Memory of the process before and after, in bytes.
    pub memory: (u64, u64),
}

/// Takes `services` Services with `endpoints` endpoints each, and changes one endpoint `changes` times.
///
/// # Panics
/// When what it makes cannot be read.
#[must_use]
pub fn cluster_scale(services: usize, endpoints: usize, changes: usize) -> ClusterScale {
    let text = "dataplane: {listen: tproxy}\nservices: []\n\
                sources: {kubernetes: {kubeconfig: none, defaultClass: true, target: pod}}\n\
                addressPools: [{name: all, addresses: [10.100.0.0/16]}]\n";
    let config = load_text(&Path::new("scale.yaml").into(), text);
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let (service_list, slice_list) = (service_list(services), slice_list(services, endpoints));
    let before = resident();
    let start = cpu();
    let services_read: Vec<Service> = read(&service_list);
    let slices: Vec<EndpointSlice> = read(&slice_list);
    let parse = cpu().saturating_sub(start);
    let changed: Vec<EndpointSlice> = slices.iter().take(64).cloned().collect();
    let mut control = control(&config);
    let mut cloud = Cloud::new(&config, None);
    control.begin(Listeners::detached(), config.clone(), &Answers::new(), CloudNews::default());
    let take = |control: &mut Control, cloud: &mut Cloud, events: Vec<ClusterEvent>| {
        let change = cloud.events(events.into_iter()).change;
        let view = cloud.news();
        let news = CloudNews { change, view, ..CloudNews::default() };
        control.take(Input::Cluster(Box::new(news)));
        control.publish();
    };
    let start = cpu();
    cloud.document(&config);
    let object = |service: Service| Object::Service(Box::new(service));
    let slice = |slice: EndpointSlice| Object::EndpointSlice(Box::new(slice));
    let mut listed = BTreeMap::from([
        (Kind::EndpointSlice, slices.into_iter().map(slice).collect()),
        (Kind::Service, services_read.into_iter().map(object).collect()),
    ]);
    let mut list = |kind| ClusterEvent::All(kind, None, listed.remove(&kind).unwrap_or_default());
    let lists = Kind::ALL.into_iter().map(&mut list).collect();
    take(&mut control, &mut cloud, lists);
    let sync = cpu().saturating_sub(start);
    assert_eq!(control.services.len(), services, "all are served");
    let memory = (before, resident());
    let changes = (0..changes).map(|n| {
        let mut one = changed[n % changed.len()].clone();
        if let Some(last) = one.endpoints.as_mut().and_then(|endpoints| endpoints.last_mut()) {
            last.addresses = vec![Ipv4Addr::from(0x0afa_0000 + n as u32).to_string()];
        }
        let start = cpu();
        take(&mut control, &mut cloud, vec![ClusterEvent::Apply(slice(one))]);
        cpu().saturating_sub(start)
    });
    ClusterScale { parse, sync, changes: changes.collect(), memory }
}

fn read<T: DeserializeOwned>(list: &str) -> Vec<T> {
    serde_json::from_str(list).unwrap_or_else(|error| panic!("{error}"))
}

/// Held, and with the addresses that they had: as after a restart.
fn service_list(services: usize) -> String {
    list(services, |text, n| {
        let ip = Ipv4Addr::from(0x0a64_0000 + n as u32);
        write!(
            text,
            r#"{{"metadata":{{"name":"svc-{n}","namespace":"default","uid":"{n}","resourceVersion":"{n}",
            "finalizers":["service.kubernetes.io/load-balancer-cleanup"],"creationTimestamp":"2026-01-01T00:00:00Z",
            "managedFields":[{{"manager":"kubectl","operation":"Apply","fieldsV1":{{"f:spec":{{"f:ports":{{}}}}}}}}]}},
            "spec":{{"type":"LoadBalancer","clusterIP":"10.96.0.1","ipFamilies":["IPv4"],"selector":{{"app":"svc-{n}"}},
            "ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080,"nodePort":30080}}]}},
            "status":{{"loadBalancer":{{"ingress":[{{"ip":"{ip}"}}]}}}}}}"#
        )
    })
}

fn slice_list(services: usize, endpoints: usize) -> String {
    list(services, |text, n| {
        let endpoints = list(endpoints, |text, m| {
            let ip = Ipv4Addr::from(0x0ac8_0000 + (n * endpoints + m) as u32);
            write!(
                text,
                r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},
                "nodeName":"node-{m}","zone":"z{}","targetRef":{{"kind":"Pod","name":"svc-{n}-{m}","uid":"{n}-{m}"}}}}"#,
                m % 3
            )
        });
        write!(
            text,
            r#"{{"metadata":{{"name":"svc-{n}-1","namespace":"default","labels":{{"kubernetes.io/service-name":"svc-{n}"}}}},
            "addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":{endpoints}}}"#
        )
    })
}

fn list(count: usize, item: impl Fn(&mut String, usize) -> std::fmt::Result) -> String {
    let mut text = String::from("[");
    for n in 0..count {
        if n > 0 {
            text.push(',');
        }
        // Writing into a String cannot fail.
        let _ = item(&mut text, n);
    }
    text + "]"
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
