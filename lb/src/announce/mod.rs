//! Announcing: which of the services' addresses are here, and who is told of it.
//!
//! ```text
//! document, cluster ─▶ Said ─┐
//! control loop ─▶ Standing ──┴▶ Plan ─▶ segments: addresses, ARP, NDP
//!                                  │  ─▶ groups (VRRP), Leases: who has shared addresses
//!                                  └──▶ routes ─▶ speakers (BGP), watched by BFD
//!                                             └─▶ Announced ─▶ control loop
//! ```
//!
//! One thread of its own does all of it: whoever plans ten thousand services for a while must not be taken
//! for dead meanwhile. The protocols are pure: [`bgp`] here, VRRP, BFD and neighbours' frames in
//! `fairway_core::announce`; sockets and the kernel's interfaces stand beside them.

mod announcer;
mod bfd;
pub mod bgp;
mod ear;
mod guard;
mod handing;
mod peers;
mod placing;
mod plan;
mod run;
mod segment;
mod sharing;
mod speakers;
mod status;
mod vrrp;

pub(crate) use self::guard::guard;
pub(crate) use self::handing::Handed as HandedAnnouncements;
pub(crate) use self::plan::{Said, Standing, troubles};
pub(crate) use self::run::{Announced, Handle, Input as AnnounceInput, start};
pub(crate) use self::sharing::{Decider, Member, Shares, Step, read_shares, write_shares};
pub(crate) use self::status::{AddressView, AnnounceView, GroupView, PeerView};
