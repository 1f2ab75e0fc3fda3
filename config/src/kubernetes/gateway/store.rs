//! Objects of the Gateway API as they are known.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::objects::{Gateway, GatewayClass, ReferenceGrant, Route, RouteKind};
use crate::kubernetes::cluster::{Kind, replaced};
use crate::kubernetes::objects::{Name, Object};

/// What is new of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    /// Its status, or its version alone.
    Status,
    /// What is wanted of it.
    Object,
}

/// Puts an object into a map; `same` says whether it wants what the known one wants.
fn news<V: PartialEq>(
    map: &mut BTreeMap<Name, V>,
    name: Name,
    value: V,
    same: impl Fn(&V, &V) -> bool,
) -> News {
    let means_the_same = map.get(&name).is_some_and(|known| same(known, &value));
    match (replaced(map, name, value), means_the_same) {
        (false, _) => News::Nothing,
        (true, true) => News::Status,
        (true, false) => News::Object,
    }
}

/// Objects of the Gateway API, by name.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Gateways {
    pub(crate) classes: BTreeMap<Name, GatewayClass>,
    pub(crate) gateways: BTreeMap<Name, Arc<Gateway>>,
    pub(crate) tcp_routes: BTreeMap<Name, Arc<Route>>,
    pub(crate) udp_routes: BTreeMap<Name, Arc<Route>>,
    pub(crate) grants: BTreeMap<Name, ReferenceGrant>,
}

impl Gateways {
    /// Takes an object in the place of what it was. Others are none of ours.
    pub(crate) fn apply(&mut self, object: Object) -> News {
        let name = object.name();
        match object {
            Object::GatewayClass(class) => news(&mut self.classes, name, *class, |known, new| {
                known.spec == new.spec && known.metadata.means(&new.metadata)
            }),
            Object::Gateway(gateway) => {
                news(&mut self.gateways, name, Arc::new(*gateway), |known, new| {
                    known.spec == new.spec && known.metadata.means(&new.metadata)
                })
            }
            Object::Route(kind, route) => {
                news(self.routes_mut(kind), name, Arc::new(*route), |known, new| {
                    known.spec == new.spec && known.metadata.means(&new.metadata)
                })
            }
            Object::ReferenceGrant(grant) => news(&mut self.grants, name, *grant, |known, new| {
                known.spec == new.spec && known.metadata.means(&new.metadata)
            }),
            _ => News::Nothing,
        }
    }

    /// Forgets an object; whether it was known.
    pub(crate) fn delete(&mut self, kind: Kind, name: &Name) -> bool {
        match kind {
            Kind::GatewayClass => self.classes.remove(name).is_some(),
            Kind::Gateway => self.gateways.remove(name).is_some(),
            Kind::TcpRoute => self.tcp_routes.remove(name).is_some(),
            Kind::UdpRoute => self.udp_routes.remove(name).is_some(),
            Kind::ReferenceGrant => self.grants.remove(name).is_some(),
            _ => false,
        }
    }

    /// The names of a kind's objects.
    pub(crate) fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::GatewayClass => self.classes.keys().cloned().collect(),
            Kind::Gateway => self.gateways.keys().cloned().collect(),
            Kind::TcpRoute => self.tcp_routes.keys().cloned().collect(),
            Kind::UdpRoute => self.udp_routes.keys().cloned().collect(),
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// The routes of a kind.
    pub(crate) fn routes(&self, kind: RouteKind) -> &BTreeMap<Name, Arc<Route>> {
        match kind {
            RouteKind::Tcp => &self.tcp_routes,
            RouteKind::Udp => &self.udp_routes,
        }
    }

    fn routes_mut(&mut self, kind: RouteKind) -> &mut BTreeMap<Name, Arc<Route>> {
        match kind {
            RouteKind::Tcp => &mut self.tcp_routes,
            RouteKind::Udp => &mut self.udp_routes,
        }
    }
}
