//! Active checks: addresses that are checked alike are checked once, whatever uses them.

pub(crate) mod agent;
mod checker;
mod probe;
mod state;

pub(crate) use checker::{CheckTarget, Checker, HealthEvent, News};
pub(crate) use state::Transition;
