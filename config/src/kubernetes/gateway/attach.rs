//! Which routes attach to which listeners, and what is said of it to their owners. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::objects::{BackendRef, GROUP, Gateway, Listener, ParentRef, ReferenceGrant, Route};
use super::objects::{RouteGroupKind, RouteKind};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::objects::{Name, ServicePort};
use crate::kubernetes::translate::Rules;

/// How an object stands in one respect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// In which, like `Accepted`.
    pub of: &'static str,
    /// Whether that is so.
    pub holds: bool,
    /// Why, for programs.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    /// It is so.
    #[must_use]
    pub fn yes(of: &'static str, reason: &'static str) -> Self {
        Self { of, holds: true, reason, message: String::new() }
    }

    /// It is not so.
    #[must_use]
    pub fn no(of: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { of, holds: false, reason, message: message.into() }
    }
}

/// What routes and Gateways of our classes come to.
#[derive(Debug, Default, PartialEq)]
pub struct Attachments {
    /// GatewayClasses that are ours.
    pub classes: BTreeSet<Name>,
    /// Their Gateways.
    pub gateways: BTreeMap<Name, GatewayState>,
    /// Routes that would attach to them.
    pub routes: BTreeMap<(RouteKind, Name), Vec<Parent>>,
    /// Gateways by the Services to which their routes lead, whether these are there or not.
    pub led_to: BTreeMap<Name, BTreeSet<Name>>,
}

/// A Gateway of ours.
#[derive(Debug, Default, PartialEq)]
pub struct GatewayState {
    /// Whether it can be served.
    pub accepted: Option<Verdict>,
    /// Its listeners, as they are written.
    pub listeners: Vec<ListenerState>,
}

/// A listener.
#[derive(Debug, PartialEq)]
pub struct ListenerState {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// The routes that may attach to it; none when none may.
    pub kind: Option<RouteKind>,
    /// Whether it is served; others may have routes attached, all the same.
    pub is_valid: bool,
    /// How it stands, but for its address.
    pub verdicts: Vec<Verdict>,
    /// Number of routes that have attached.
    pub attached: i32,
    /// The one that is served: the oldest.
    pub route: Option<Name>,
}

/// Where a route would attach, and how it stands there.
#[derive(Debug, PartialEq)]
pub struct Parent {
    /// Where.
    pub at: ParentRef,
    /// How.
    pub verdicts: Vec<Verdict>,
}

impl Attachments {
    /// What the objects of a cluster come to. Costs routes times the listeners that they name.
    #[must_use]
    pub fn of(cluster: &Cluster, rules: &Rules) -> Self {
        let objects = &cluster.gateways;
        let mut all = Self::default();
        let ours = objects.classes.iter();
        let ours = ours.filter(|(_, class)| *class.spec.controller_name == *rules.class);
        all.classes = ours.map(|(name, _)| name.clone()).collect();
        for (name, gateway) in &objects.gateways {
            let class = Name::new("", &gateway.spec.gateway_class_name);
            let goes = gateway.metadata.deletion_timestamp.is_some();
            if all.classes.contains(&class) && !goes {
                all.gateways.insert(name.clone(), GatewayState::of(gateway));
            }
        }
        for kind in RouteKind::ALL {
            // The oldest has a listener; by name where nobody is older.
            let mut routes: Vec<_> = objects.routes(kind).iter().collect();
            routes.sort_by_key(|(name, route)| (&route.metadata.creation_timestamp, *name));
            for (name, route) in routes {
                let parents = all.attach(cluster, kind, name, route);
                if !parents.is_empty() {
                    all.routes.insert((kind, name.clone()), parents);
                }
            }
        }
        all
    }

    fn attach(
        &mut self,
        cluster: &Cluster,
        kind: RouteKind,
        name: &Name,
        route: &Route,
    ) -> Vec<Parent> {
        let mut parents = Vec::new();
        // One listener may be meant by its name, and by its port.
        let mut attached = BTreeSet::new();
        let refs = route.spec.parent_refs.iter();
        for at in refs.filter(|at| is(&at.group, GROUP) && is(&at.kind, "Gateway")) {
            let namespace = at.namespace.as_deref().unwrap_or(&name.namespace);
            let gateway = Name::new(namespace, &at.name);
            let Some(state) = self.gateways.get_mut(&gateway) else { continue };
            let Some(object) = cluster.gateways.gateways.get(&gateway) else { continue };
            let accepted = match state.fits(cluster, object, at, (kind, name)) {
                Ok(listeners) => {
                    for n in listeners {
                        let listener = &mut state.listeners[n];
                        listener.attached += i32::from(attached.insert((gateway.clone(), n)));
                        listener.route.get_or_insert_with(|| name.clone());
                    }
                    Verdict::yes("Accepted", "Accepted")
                }
                Err(refused) => refused,
            };
            let mut verdicts = vec![accepted];
            if route.spec.rules.len() > 1 {
                let message = "it has several rules; the first is served, as nothing tells \
                               connections apart";
                verdicts.push(Verdict {
                    message: message.into(),
                    ..Verdict::yes("PartiallyInvalid", "UnsupportedValue")
                });
            }
            let mut resolved = Verdict::yes("ResolvedRefs", "ResolvedRefs");
            for to in backend_refs(route) {
                let service = service_of(name, to);
                let (led_to, gateway) = (&mut self.led_to, gateway.clone());
                led_to.entry(service).or_default().insert(gateway);
                if let Err(why) = resolve(cluster, kind, name, to)
                    && resolved.holds
                {
                    resolved = why;
                }
            }
            verdicts.push(resolved);
            parents.push(Parent { at: at.clone(), verdicts });
        }
        parents
    }
}

impl GatewayState {
    fn of(gateway: &Gateway) -> Self {
        let mut listeners: Vec<ListenerState> =
            gateway.spec.listeners.iter().map(ListenerState::of).collect();
        // Nobody wins: the owner says which is meant.
        for n in 0..listeners.len() {
            let own = &listeners[n];
            let alike = |(other, at): &(usize, &ListenerState)| {
                let same_port = at.port == own.port && at.kind == own.kind && at.kind.is_some();
                *other != n && (at.name == own.name || same_port)
            };
            let verdict = match listeners.iter().enumerate().find(alike) {
                Some((_, other)) => {
                    let message = format!(
                        "listener `{}` has the same name, or port and protocol",
                        other.name
                    );
                    let conflicted = Verdict::yes("Conflicted", "ProtocolConflict");
                    Verdict { message, ..conflicted }
                }
                None => Verdict::no("Conflicted", "NoConflicts", ""),
            };
            let listener = &mut listeners[n];
            if verdict.holds {
                listener.is_valid = false;
                let message = "it is in conflict with another";
                listener.verdicts[0] = Verdict::no("Accepted", "PortUnavailable", message);
            }
            listener.verdicts.push(verdict);
        }
        let unusable = gateway.spec.addresses.iter().find(|at| !at.is_ip()).map(|at| {
            let kind = at.kind.as_deref().unwrap_or_default();
            format!("addresses of type `{kind}` are not served")
        });
        let accepted = match unusable {
            Some(why) => Verdict::no("Accepted", "UnsupportedAddress", why),
            None if listeners.iter().all(|listener| listener.is_valid) => {
                Verdict::yes("Accepted", "Accepted")
            }
            None => Verdict {
                holds: listeners.iter().any(|listener| listener.is_valid),
                ..Verdict::no("Accepted", "ListenersNotValid", "not every listener can be served")
            },
        };
        Self { accepted: Some(accepted), listeners }
    }

    /// The listeners to which a route attaches; else what is said of that.
    fn fits(
        &self,
        cluster: &Cluster,
        gateway: &Gateway,
        at: &ParentRef,
        (kind, route): (RouteKind, &Name),
    ) -> Result<Vec<usize>, Verdict> {
        let meant: Vec<usize> = (0..self.listeners.len())
            .filter(|n| {
                let listener = &self.listeners[*n];
                at.section_name.as_ref().is_none_or(|name| *name == listener.name)
                    && at.port.is_none_or(|port| port == i32::from(listener.port))
            })
            .collect();
        if meant.is_empty() {
            let message = "the Gateway has no listener of that name and port";
            return Err(Verdict::no("Accepted", "NoMatchingParent", message));
        }
        let allowed = |n: &usize| {
            let allowed = &gateway.spec.listeners[*n].allowed_routes.namespaces;
            match allowed.from.as_str() {
                "" | "Same" => *gateway.metadata.namespace == *route.namespace,
                "All" => true,
                "Selector" => {
                    let labels = cluster.namespace(&route.namespace);
                    let selector = allowed.selector.selector();
                    selector.is_ok_and(|selector| labels.is_some_and(|of| selector.admits(of)))
                }
                _ => false,
            }
        };
        let of_kind: Vec<usize> =
            meant.into_iter().filter(|n| self.listeners[*n].kind == Some(kind)).collect();
        let refuse = |message: String| Verdict::no("Accepted", "NotAllowedByListeners", message);
        if of_kind.is_empty() {
            return Err(refuse(format!("no listener there takes a {}", kind.word())));
        }
        let fit: Vec<usize> = of_kind.into_iter().filter(allowed).collect();
        match fit.is_empty() {
            true => Err(refuse(format!(
                "no listener there lets routes of namespace `{}` attach",
                route.namespace
            ))),
            false => Ok(fit),
        }
    }
}

impl ListenerState {
    fn of(listener: &Listener) -> Self {
        let mut kind =
            RouteKind::ALL.into_iter().find(|kind| kind.protocol() == listener.protocol.as_str());
        let mut verdicts = Vec::new();
        verdicts.push(match kind {
            _ if listener.port == 0 => {
                kind = None;
                Verdict::no("Accepted", "PortUnavailable", "the listener has no `port`")
            }
            Some(_) => Verdict::yes("Accepted", "Accepted"),
            None => {
                let message =
                    format!("protocol `{}` is not served; TCP and UDP are", listener.protocol);
                Verdict::no("Accepted", "UnsupportedProtocol", message)
            }
        });
        let foreign = |allowed: &&RouteGroupKind| {
            !is(&allowed.group, GROUP) || kind.is_none_or(|kind| *allowed.kind != *kind.word())
        };
        let allowed = &listener.allowed_routes.kinds;
        verdicts.push(match allowed.iter().find(foreign) {
            Some(other) if kind.is_some() => {
                if allowed.iter().all(|allowed| foreign(&allowed)) {
                    kind = None;
                }
                let message = format!("routes of kind `{}` cannot attach here", other.kind);
                Verdict::no("ResolvedRefs", "InvalidRouteKinds", message)
            }
            _ => Verdict::yes("ResolvedRefs", "ResolvedRefs"),
        });
        let (name, port) = (listener.name.clone(), listener.port);
        let is_valid = kind.is_some();
        Self { name, port, kind, is_valid, verdicts, attached: 0, route: None }
    }
}

/// Whether an optional word is what it is when nobody writes it.
fn is(word: &Option<String>, usual: &str) -> bool {
    word.as_ref().is_none_or(|word| word == usual)
}

/// Where a route leads.
pub(super) fn backend_refs(route: &Route) -> &[BackendRef] {
    route.spec.rules.first().map_or(&[], |rule| &rule.backend_refs)
}

/// The Service that is meant.
pub(super) fn service_of(route: &Name, to: &BackendRef) -> Name {
    Name::new(to.namespace.as_deref().unwrap_or(&route.namespace), &to.name)
}

/// The port of a Service to which a route leads; else what is said of that.
pub(super) fn resolve<'c>(
    cluster: &'c Cluster,
    kind: RouteKind,
    route: &Name,
    to: &BackendRef,
) -> Result<&'c ServicePort, Verdict> {
    let refuse = |reason, message: String| Verdict::no("ResolvedRefs", reason, message);
    if !to.group.as_deref().is_none_or(str::is_empty) || !is(&to.kind, "Service") {
        let what = to.kind.as_deref().unwrap_or("Service");
        return Err(refuse("InvalidKind", format!("backends are Services, and not {what}")));
    }
    let name = service_of(route, to);
    let is_granted = |grant: &ReferenceGrant| {
        grant.metadata.namespace == *name.namespace
            && grant.spec.from.iter().any(|from| {
                *from.group == *GROUP
                    && *from.kind == *kind.word()
                    && *from.namespace == *route.namespace
            })
            && grant.spec.to.iter().any(|of| {
                of.group.is_empty()
                    && of.kind == "Service"
                    && of.name.as_ref().is_none_or(|of| **of == *name.name)
            })
    };
    if name.namespace != route.namespace && !cluster.gateways.grants.values().any(is_granted) {
        return Err(refuse(
            "RefNotPermitted",
            format!(
                "no ReferenceGrant of namespace `{}` lets a {} of `{}` lead to Service `{name}`",
                name.namespace,
                kind.word(),
                route.namespace
            ),
        ));
    }
    let Some(service) = cluster.service(&name) else {
        return Err(refuse("BackendNotFound", format!("there is no Service `{name}`")));
    };
    if service.spec.kind == "ExternalName" {
        let why = format!("Service `{name}` is an ExternalName, to which routes do not lead");
        return Err(refuse("InvalidKind", why));
    }
    let of_protocol = |port: &&ServicePort| match port.protocol.as_str() {
        "" => kind == RouteKind::Tcp,
        word => word == kind.protocol(),
    };
    let mut ports = service.spec.ports.iter().filter(of_protocol);
    let port = ports.find(|port| to.port == Some(port.port));
    port.ok_or_else(|| {
        let protocol = kind.protocol();
        refuse(
            "BackendNotFound",
            match to.port {
                Some(port) => format!("Service `{name}` has no {protocol} port {port}"),
                None => format!("`port` of Service `{name}` is missing"),
            },
        )
    })
}
