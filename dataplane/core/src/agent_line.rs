//! Lines of agents on backends, as HAProxy's agent-check has them. Pure.
//!
//! A line has words between spaces, tabs and commas, up to its end or `#`, behind which is a
//! reason: `75%` is a part of the weight, `drain`, `maint` and `ready` are the administrator's,
//! `up`, `down`, `failed` and `stopped` the state of the service. A word replaces what an earlier
//! one of its kind said; other kinds stay.
//! Source: HAProxy configuration manual, `agent-check`.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

/// What a line says, by kind; none is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentReport {
    /// Part of the weight, in hundredths, 0 to 100.
    pub percent: Option<u32>,
    /// What the administrator wants.
    pub admin: Option<Admin>,
    /// Whether the service is up, and why not.
    pub up: Option<Result<(), Box<str>>>,
}

/// What the administrator of a backend wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admin {
    /// As usual.
    Ready,
    /// No new flows.
    Drain,
    /// Nothing.
    Maintenance,
}

/// Why a line says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// A word that no agent says.
    #[error("`{0}` is no word of an agent")]
    Word(String),
    /// A line without words.
    #[error("an empty line")]
    Empty,
    /// More bytes than a line has.
    #[error("a line without an end")]
    TooLong,
}

/// Reads a line. One word that is not known spoils it: half of what was meant may be the wrong
/// half.
pub fn parse(line: &str) -> Result<AgentReport, AgentError> {
    let (words, reason) = match line.split_once('#') {
        Some((words, reason)) => (words, reason.trim()),
        None => (line, ""),
    };
    let mut report = AgentReport::default();
    let separator = |c: char| c == ',' || c.is_whitespace();
    for word in words.split(separator).filter(|word| !word.is_empty()) {
        let lower = word.to_ascii_lowercase();
        match lower.as_str() {
            "ready" => report.admin = Some(Admin::Ready),
            "drain" => report.admin = Some(Admin::Drain),
            "maint" => report.admin = Some(Admin::Maintenance),
            "up" => report.up = Some(Ok(())),
            "down" | "failed" | "fail" | "stopped" => {
                let why =
                    if reason.is_empty() { lower.clone() } else { format!("{lower}: {reason}") };
                report.up = Some(Err(why.into()));
            }
            // Limits of connections are the balancer's own here.
            _ if lower.strip_prefix("maxconn:").is_some_and(|n| n.parse::<u32>().is_ok()) => {}
            _ => {
                let percent = lower.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
                let percent = percent.filter(|_| lower.starts_with(|c: char| c.is_ascii_digit()));
                // More than all is all: weights are those of the configuration.
                let percent =
                    percent.ok_or_else(|| AgentError::Word(word.chars().take(40).collect()))?;
                report.percent = Some(percent.min(100));
            }
        }
    }
    if report == AgentReport::default() && words.trim().is_empty() {
        return Err(AgentError::Empty);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_agents() {
        let down = |why: &str| Some(Err(why.into()));
        for (line, percent, admin, up) in [
            ("75%", Some(75), None, None),
            ("0%", Some(0), None, None),
            ("250%", Some(100), None, None),
            ("up ready 50%", Some(50), Some(Admin::Ready), Some(Ok(()))),
            ("UP,drain", None, Some(Admin::Drain), Some(Ok(()))),
            ("maint\t10%", Some(10), Some(Admin::Maintenance), None),
            ("down #disk full", None, None, down("down: disk full")),
            ("stopped", None, None, down("stopped")),
            ("maxconn:30 up", None, None, Some(Ok(()))),
        ] {
            assert_eq!(parse(line), Ok(AgentReport { percent, admin, up }), "{line}");
        }
        for line in ["maybe", "75", "-5%", "+5%", "%", "up sideways", "5 %", "maxconn:many"] {
            assert!(matches!(parse(line), Err(AgentError::Word(_))), "{line}: {:?}", parse(line));
        }
        for line in ["", " \t ", "# all is well"] {
            assert_eq!(parse(line), Err(AgentError::Empty), "{line:?}");
        }
    }
}
