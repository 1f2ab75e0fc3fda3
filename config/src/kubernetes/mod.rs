//! Kubernetes: its objects, and what Services come to.
//!
//! ```text
//! manifests, API server ──▶ objects ──▶ Cluster ──▶ Draft ──▶ ServiceSpec
//!                                          │          ▲
//!                                          └─▶ Wish ──▶ addresses (given by `lb`)
//! ```
//!
//! All of it is pure: a change of an object says which Services it touches, and these are translated
//! anew, each by itself.

mod addresses;
mod announcements;
mod backends;
#[cfg(feature = "kubernetes")]
pub mod client;
mod cluster;
mod draft;
mod fields;
mod gateway;
mod manifests;
mod objects;
mod pools;
mod ranges;
mod reduced;
mod selectors;
mod settings;
mod translate;

pub(crate) use self::settings::{Setting, Sketch, is_of_service, specs};

pub use self::addresses::{Sharing, Wish, wish};
pub use self::announcements::Announcement;
pub use self::cluster::{Cluster, Kind, Touched};
pub use self::draft::Draft;
pub use self::gateway::{
    Attachments, Condition, Gateway, GatewayAddress, GatewayClass, GatewayState, GatewayStatus,
    ListenerState, ListenerStatus, Parent, ParentRef, ParentStatus, ReferenceGrant, Route,
    RouteGroupKind, RouteKind, Verdict, gateway_wish, translate_gateway,
};
pub use self::manifests::Manifests;
pub use self::objects::{
    EndpointSlice, Endpoints, Ingress, IngressPort, Labels, LoadBalancerStatus, Meta, Name,
    Namespace, Node, Object, Service, ServiceFields, ServicePort, ServiceStatus,
};
pub use self::pools::{AddressPool, AddressPoolStatus, MetallbPool, Pool, Selection, overlaps};
pub use self::ranges::AddressRange;
pub use self::selectors::LabelSelector;
pub use self::settings::{PREFIX, SERVED_BY};
pub use self::translate::{Finding, PortOutcome, Role, Rules, Target, Translation};
