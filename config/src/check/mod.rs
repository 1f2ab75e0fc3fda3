//! From what is written to what is meant, with everything that cannot be meant.
//!
//! Every check goes on after a finding, so that one run shows all of them.

mod announce;
mod backends;
mod cluster;
mod health;
mod mode;
mod overlap;
mod packet;
mod process;
mod service;

use crate::values::{At, Time};
use crate::{File, Place, Problems};

pub(crate) use announce::{Around, advertisement, announce, bgp_peer, layer2, profile, vrrp_group};
pub(crate) use cluster::{pools, rules};
pub(crate) use overlap::{check_frontends, check_groups, check_sources};
pub(crate) use process::process;
pub(crate) use service::{Means, service};

/// Where findings about one file go.
pub(crate) struct Findings<'a> {
    pub(crate) file: &'a File,
    /// Nothing was left out for being malformed: what is not there was not written.
    pub(crate) complete: bool,
    pub(crate) problems: &'a mut Problems,
}

impl Findings<'_> {
    fn add(&mut self, place: Place, message: impl Into<String>) {
        self.problems.push(self.file, place, message);
    }

    /// Adds a finding about something that is not there.
    fn absent(&mut self, place: Place, message: &str) {
        if self.complete {
            self.add(place, message);
        }
    }

    /// The time that is written, if it is above zero, else the default.
    fn time(
        &mut self,
        name: &str,
        written: Option<&At<Time>>,
        default: &str,
    ) -> std::time::Duration {
        let default = humantime::parse_duration(default).unwrap_or_default();
        let Some(At { place, value: Time(time) }) = written else {
            return default;
        };
        if time.is_zero() {
            self.add(*place, format!("`{name}` is 0; it must be longer, like {default:?}"));
            return default;
        }
        *time
    }
}
