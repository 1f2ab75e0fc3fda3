//! Bindings to the system's libdpdk, 22.11 or later, made at build time; inline functions are called
//! through shims. Safe owners are in `fairway-dpdk`: nothing else is to use this crate.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::pedantic,
    reason = "generated from DPDK's headers, whose names and documentation are theirs"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
