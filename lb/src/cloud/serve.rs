//! Who is ours, which addresses they have, and what they come to.

use std::net::IpAddr;
use std::sync::Arc;

use fairway_config::kubernetes::{
    Draft, Finding, Gateway, Labels, Meta, Name, PREFIX, Pool, Role, Service, Translation, Wish,
    gateway_wish, translate_gateway, wish,
};
use fairway_core::Frontend;

use super::allocate::{Assigned, Assignments, Demand, Reserved, settle};
use super::status::is_held;
use super::{Cloud, NO_ROUTE, Served};

/// Whatever has addresses, and is served.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    Service(&'a Arc<Service>),
    Gateway(&'a Gateway),
}

impl<'a> Subject<'a> {
    fn meta(self) -> &'a Meta {
        match self {
            Self::Service(service) => &service.metadata,
            Self::Gateway(gateway) => &gateway.metadata,
        }
    }

    /// The addresses that its status has.
    fn status(self) -> Vec<IpAddr> {
        match self {
            Self::Service(service) => {
                let ingress = service.status.load_balancer.ingress.iter();
                ingress.filter_map(|at| at.ip.parse().ok()).collect()
            }
            Self::Gateway(gateway) => {
                let addresses = gateway.status.addresses.iter();
                addresses.filter_map(|at| at.value.parse().ok()).collect()
            }
        }
    }
}

impl Cloud {
    /// Who is served by a name, if it is one of ours.
    pub(super) fn subject(&self, name: &Name) -> Option<Subject<'_>> {
        match name.of_gateway() {
            Some(gateway) => {
                let ours = self.attachments.gateways.contains_key(&gateway);
                let gateway = self.cluster.gateway(&gateway).filter(|_| ours)?;
                Some(Subject::Gateway(gateway))
            }
            None => {
                let service = self.cluster.service(name);
                service.filter(|service| self.is_ours(service)).map(Subject::Service)
            }
        }
    }

    pub(super) fn subjects(&self) -> impl Iterator<Item = (Name, Subject<'_>)> {
        let services = self.cluster.services().filter(|(_, service)| self.is_ours(service));
        let services = services.map(|(name, service)| (name.clone(), Subject::Service(service)));
        let gateways = self.attachments.gateways.keys().filter_map(|name| {
            let gateway = self.cluster.gateway(name)?;
            Some((Name::gateway(name), Subject::Gateway(gateway)))
        });
        services.chain(gateways)
    }

    /// Gives addresses; returns whose have changed.
    pub(super) fn settle(&mut self) -> Vec<Name> {
        let (pools, _) = self.all_pools();
        let nobody = Labels::new();
        let demands: Vec<Demand<'_>> = self
            .subjects()
            .map(|(name, subject)| Demand {
                meta: subject.meta(),
                namespace: self.cluster.namespace(&name.namespace).unwrap_or(&nobody),
                wish: self.wish(subject),
                current: self.current(&name, subject),
                is_exposed: self.is_exposed(subject),
                name,
            })
            .collect();
        let assignments: Assignments = match self.leads {
            true => settle(&pools, &self.reserved, &demands),
            false => {
                let followed = |demand| followed(&pools, &self.reserved, demand);
                demands.iter().map(followed).collect()
            }
        };
        let mut changed = Vec::new();
        for (name, assigned) in assignments {
            let served = self.served.entry(name.clone()).or_default();
            if assigned.is_ok() {
                self.remembered.remove(&name);
            }
            if served.assigned.as_ref() != Some(&assigned) {
                served.assigned = Some(assigned);
                changed.push(name);
            }
        }
        changed
    }

    /// What somebody asks for. A Service without a status must name its addresses: nobody could be told
    /// of others.
    fn wish(&self, subject: Subject<'_>) -> Result<Wish, Finding> {
        let wish = match subject {
            Subject::Service(service) => wish(service)?,
            Subject::Gateway(gateway) => gateway_wish(gateway)?,
        };
        if self.is_exposed(subject) && wish.addresses.is_empty() {
            let message =
                format!("`{PREFIX}expose` needs an address: name it by `{PREFIX}addresses`");
            return Err(Finding { reason: "AddressPending", message });
        }
        Ok(wish)
    }

    fn is_exposed(&self, subject: Subject<'_>) -> bool {
        matches!(subject, Subject::Service(service) if self.rules.role(service) == Role::Exposed)
    }

    pub(super) fn is_load_balancer(&self, service: &Service) -> bool {
        self.is_ours(service) && self.rules.role(service) == Role::LoadBalancer
    }

    fn is_ours(&self, service: &Service) -> bool {
        service.metadata.deletion_timestamp.is_none() && self.rules.role(service) != Role::Foreign
    }

    /// The addresses that somebody has: by what is known here, by the status, by the state file.
    pub(super) fn current(&self, name: &Name, subject: Subject<'_>) -> Vec<IpAddr> {
        if self.leads
            && let Some(Some(Ok(assigned))) = self.served.get(name).map(|served| &served.assigned)
        {
            return assigned.addresses.clone();
        }
        let status = subject.status();
        if !status.is_empty() || !self.leads {
            return status;
        }
        self.remembered.get(name).cloned().unwrap_or_default()
    }

    /// What a name comes to that was `before`; none when it is not one of ours.
    pub(super) fn serve(&self, name: &Name, before: &Served) -> Option<Served> {
        let subject = self.subject(name)?;
        let mut served = Served { assigned: before.assigned.clone(), ..Served::default() };
        if self.names.contains(name) {
            served.findings.push(Finding {
                reason: "NameTaken",
                message: "the document has a service of this name, which is served in its place"
                    .into(),
            });
            return Some(served);
        }
        // Whoever is to clean up after it has said so first.
        if let Subject::Service(service) = subject
            && self.api.is_some()
            && self.is_load_balancer(service)
            && !is_held(service)
        {
            return Some(served);
        }
        let addresses: &[IpAddr] = match &before.assigned {
            Some(Ok(assigned)) => &assigned.addresses,
            Some(Err(finding)) => {
                served.findings.push(finding.clone());
                return Some(served);
            }
            None => &[],
        };
        let origin = self.origins.get(name).unwrap_or(&self.source);
        let mut done = match subject {
            Subject::Service(service) => {
                let known = before.draft.as_ref();
                let known = known.filter(|it| it.is_of(service, &self.rules, addresses, origin));
                let draft = known.map_or_else(
                    || Arc::new(Draft::new(service, &self.rules, addresses, origin)),
                    Arc::clone,
                );
                let mut done = draft.served_in(&self.cluster);
                served.draft = Some(draft);
                if !service.spec.external_ips.is_empty() {
                    self.leave_to_others(name, addresses, &mut done);
                }
                done
            }
            Subject::Gateway(gateway) => {
                let state = self.attachments.gateways.get(&gateway.metadata.name())?;
                translate_gateway(&self.cluster, gateway, state, &self.rules, addresses, origin)
            }
        };
        if let Some(why) = done.pod.and_then(|pod| self.routes.as_ref()?.trouble(pod)) {
            done.findings.push(Finding { reason: NO_ROUTE, message: why });
        }
        served.specs = done.specs.into_iter().map(|spec| (spec.key.clone(), spec)).collect();
        served.findings.extend(done.findings);
        // Without an API server, whatever is to come is there.
        served.findings.extend(done.idle.into_iter().filter(|_| self.api.is_none()));
        (served.ports, served.keeps_address) = (done.ports, done.keeps_address);
        Some(served)
    }

    /// Takes out of a Service's external addresses those that others have: by the document, by a pool,
    /// or because their names come first.
    fn leave_to_others(&self, name: &Name, own: &[IpAddr], done: &mut Translation) {
        let who = |frontend: &Frontend| -> Option<String> {
            let ip = frontend.ip();
            if own.contains(&ip) {
                return None;
            }
            if let Some(who) = self.reserved.holder(ip) {
                return Some(who.into());
            }
            let has = |(other, served): &(&Name, &Served)| {
                let assigned = served.assigned.as_ref().and_then(|assigned| assigned.as_ref().ok());
                let by_pool = assigned.is_some_and(|assigned| assigned.addresses.contains(&ip));
                let mut frontends = served.specs.values().flat_map(|spec| &spec.frontends);
                *other != name && (by_pool || (*other < name && frontends.any(|f| f == frontend)))
            };
            let (other, _) = self.served.iter().find(has)?;
            Some(format!("Service `{other}`"))
        };
        let mut taken = Vec::new();
        for spec in &mut done.specs {
            Arc::make_mut(spec).frontends.retain(|frontend| match who(frontend) {
                Some(who) => {
                    taken.push(format!("`externalIPs`: {frontend} is taken by {who}"));
                    false
                }
                None => true,
            });
        }
        done.specs.retain(|spec| !spec.frontends.is_empty());
        let finding = |message| Finding { reason: "AddressTaken", message };
        done.findings.extend(taken.into_iter().map(finding));
    }

    /// What Services have that were given addresses of no choice of theirs: another box would give
    /// others.
    pub(crate) fn local_addresses(&self) -> Option<String> {
        let given = |(name, served): &(&Name, &Served)| {
            let wish = self.subject(name).map(|subject| self.wish(subject));
            matches!((&served.assigned, wish), (Some(Ok(_)), Some(Ok(wish))) if wish.addresses.is_empty())
        };
        let (first, _) = self.served.iter().find(given)?;
        let count = self.served.iter().filter(given).count();
        let who = match count {
            1 => format!("{first} names no address"),
            _ => format!("{count} Services name no address, like {first}"),
        };
        Some(format!(
            "{who}: this box chooses, and another would choose by itself; with several boxes, name \
             addresses by the annotation `{PREFIX}addresses`"
        ))
    }
}

/// What a box that does not lead serves a Service at: what the leader has written, or what the Service
/// names when it has no status.
fn followed(
    pools: &[Pool],
    reserved: &Reserved,
    demand: &Demand<'_>,
) -> (Name, Result<Assigned, Finding>) {
    let refuse = |reason, message: &str| Err(Finding { reason, message: message.into() });
    let addresses = match &demand.wish {
        Ok(wish) if demand.is_exposed => &wish.addresses,
        Err(finding) if demand.is_exposed => return (demand.name.clone(), Err(finding.clone())),
        _ => &demand.current,
    };
    let pool = pools.iter().find(|pool| addresses.iter().any(|ip| pool.offers(*ip)));
    let taken =
        addresses.iter().find_map(|ip| Some(format!("{ip} is taken by {}", reserved.holder(*ip)?)));
    let assigned = match (addresses.as_slice(), pool, taken) {
        ([], ..) => refuse("AddressPending", "the box that leads has given it no address yet"),
        (_, _, Some(taken)) => refuse("AddressUnavailable", &taken),
        (_, None, _) => refuse("AddressUnavailable", "no pool has the addresses that it was given"),
        (addresses, Some(pool), None) => {
            Ok(Assigned { addresses: addresses.to_vec(), pool: pool.name.clone() })
        }
    };
    (demand.name.clone(), assigned)
}
