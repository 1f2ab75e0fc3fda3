//! The Gateway API: Gateways of our class have addresses as Services have them, and what comes to their
//! listeners goes where TCPRoutes and UDPRoutes lead.
//!
//! ```text
//! GatewayClass, Gateway, routes, ReferenceGrant ──▶ attach ──▶ Attachments ──▶ statuses (`lb`)
//!                                                                  │
//!                          addresses, Services, their endpoints ───┴─▶ translate_gateway
//! ```
//!
//! Source: Gateway API 1.6, <https://gateway-api.sigs.k8s.io/reference/spec/>, GEP-2644 and GEP-2645.

mod attach;
mod objects;
mod store;
mod translate;

#[cfg(feature = "kubernetes")]
pub(super) use self::objects::GROUP;
pub(super) use self::store::{Gateways, News};

pub use self::attach::{Attachments, GatewayState, ListenerState, Parent, Verdict};
pub use self::objects::{
    Condition, Gateway, GatewayAddress, GatewayClass, GatewayStatus, ListenerStatus, ParentRef,
    ParentStatus, ReferenceGrant, Route, RouteGroupKind, RouteKind,
};
pub use self::translate::{gateway_wish, translate_gateway};
