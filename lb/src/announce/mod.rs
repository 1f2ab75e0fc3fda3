//! Announcing.
pub mod bgp;
