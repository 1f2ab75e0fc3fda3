//! Agents on backends: asked for a line again and again, and what of it holds.

use std::net::SocketAddr;

use fairway_core::agent_line::{Admin, AgentError, AgentReport, parse};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest line that is read.
const MOST_BYTES: usize = 1024;

/// Asks the agent at `addr`.
pub(crate) async fn ask(addr: SocketAddr, send: &[u8]) -> Result<AgentReport, String> {
    let failed = |what: &dyn std::fmt::Display| format!("agent {addr}: {what}");
    let mut stream = TcpStream::connect(addr).await.map_err(|error| failed(&error))?;
    stream.write_all(send).await.map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    while !bytes.contains(&b'\n') {
        if bytes.len() >= MOST_BYTES {
            return Err(failed(&AgentError::TooLong));
        }
        if stream.read_buf(&mut bytes).await.map_err(|error| failed(&error))? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    parse(text.lines().next().unwrap_or_default()).map_err(|error| failed(&error))
}

/// What an agent's lines have come to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AgentState {
    /// Part of the weight, in hundredths.
    pub(crate) percent: Option<u32>,
    pub(crate) drain: bool,
    pub(crate) maintenance: bool,
    /// Why the service is down.
    pub(crate) down: Option<Box<str>>,
}

impl AgentState {
    /// Takes a line in.
    pub(crate) fn take(&mut self, report: &AgentReport) {
        self.percent = report.percent.or(self.percent);
        if let Some(admin) = report.admin {
            self.drain = admin == Admin::Drain;
            self.maintenance = admin == Admin::Maintenance;
        }
        match &report.up {
            None => {}
            Some(Ok(())) => self.down = None,
            Some(Err(why)) => self.down = Some(why.clone()),
        }
    }

    /// What it asks for, in words; none when it asks for nothing.
    pub(crate) fn words(&self) -> Option<String> {
        let mut words = Vec::new();
        if let Some(why) = &self.down {
            words.push(why.to_string());
        }
        if self.maintenance {
            words.push("maintenance".into());
        }
        if self.drain {
            words.push("drain".into());
        }
        if let Some(percent) = self.percent.filter(|percent| *percent < 100) {
            words.push(format!("{percent}% of its weight"));
        }
        (!words.is_empty()).then(|| format!("its agent says {}", words.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let mut state = AgentState::default();
        for (line, words) in [
            ("30%", Some("its agent says 30% of its weight")),
            ("drain", Some("its agent says drain, 30% of its weight")),
            ("down #tired", Some("its agent says down: tired, drain, 30% of its weight")),
            ("ready", Some("its agent says down: tired, 30% of its weight")),
            ("up 100%", None),
        ] {
            state.take(&parse(line).unwrap());
            assert_eq!(state.words().as_deref(), words, "{line}");
        }
    }
}
