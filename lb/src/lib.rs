//! Fairway's control plane: decides, with `fairway-config` declaring and the workers moving.
//!
//! ```text
//! files ─▶ reload ─▶ control loop ─▶ snapshot ─▶ workers
//! checks ──────────────▲  ▲ ▲                      │
//! operator (admin) ───────┘ └──── failures ────────┘
//! ```

mod admin;
pub mod announce;
mod cli;
mod cloud;
mod connection_log;
mod control;
mod demo;
mod dpdk;
mod handover;
mod health;
mod manager;
pub mod measure;
mod network;
mod reload;
mod resolver;
mod run;
mod secret;

/// Runs the command line of this process.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
