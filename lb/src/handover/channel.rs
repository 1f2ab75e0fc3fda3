//! Messages between two processes on one machine, with descriptors: over a socket pair that keeps their
//! bounds. Long ones lie in memory that is shared, so that no message is too long for the socket.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::manager::MOST_DESCRIPTORS;

/// Most descriptors that a message may claim to bring.
const MOST: usize = 1 << 20;

/// Why a message did not come, or did not go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The other process has ended, or has closed its end.
    #[error("the other process has ended")]
    Gone,
    /// It says nothing.
    #[error("the other process did not answer in time")]
    Late,
    /// The kernel refuses.
    #[error("{0}")]
    Refused(#[from] rustix::io::Errno),
    /// As above.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It speaks another language.
    #[error("the other process said what is not understood: {0}")]
    Strange(String),
}

/// One end.
pub(crate) struct Channel(Socket);

/// What goes before the descriptors of a message. The text is the first of them.
#[derive(Serialize, Deserialize)]
struct Head {
    descriptors: usize,
}

/// How many descriptors a packet can bring.
macro_rules! space {
    () => {
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))]
    };
}

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        Ok((Self(ours), theirs.into()))
    }

    /// An end that came from elsewhere.
    pub(crate) fn of(end: OwnedFd) -> Self {
        Self(end.into())
    }

    /// The same end once more.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Says something and gives descriptors away.
    pub(crate) fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut text = File::from(memfd_create("fairway-handover", MemfdFlags::CLOEXEC)?);
        serde_json::to_writer(&mut text, message).map_err(std::io::Error::from)?;
        text.flush()?;
        let all: Vec<_> =
            std::iter::once(text.as_fd()).chain(descriptors.iter().copied()).collect();
        let head = Head { descriptors: all.len() };
        let head = serde_json::to_vec(&head).map_err(std::io::Error::from)?;
        self.packet(&head, &[])?;
        for some in all.chunks(MOST_DESCRIPTORS) {
            self.packet(b"+", some)?;
        }
        Ok(())
    }

    fn packet(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut space = space!();
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            // There is room for as many.
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        });
        match sent {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ChannelError::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message, within `patience`; for ever without one.
    pub(crate) fn receive<M: DeserializeOwned>(
        &self,
        patience: Option<Duration>,
    ) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.0.set_read_timeout(patience)?;
        let (head, _) = self.take()?;
        let strange = |error: serde_json::Error| ChannelError::Strange(error.to_string());
        let Head { descriptors: count } = serde_json::from_slice(&head).map_err(strange)?;
        let mut descriptors = Vec::new();
        while descriptors.len() < count.min(MOST) {
            let (_, some) = self.take()?;
            if some.is_empty() {
                return Err(ChannelError::Strange(
                    "descriptors are missing; is the limit of open files (LimitNOFILE=) reached?"
                        .into(),
                ));
            }
            descriptors.extend(some);
        }
        if descriptors.is_empty() {
            return Err(ChannelError::Strange("a message without its text".into()));
        }
        let mut file = File::from(descriptors.remove(0));
        file.rewind()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok((serde_json::from_slice(&text).map_err(strange)?, descriptors))
    }

    fn take(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        let mut bytes = [0; 256];
        let mut space = space!();
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        // A time-out of the socket makes waits that can be interrupted.
        let received = loop {
            match recvmsg(&self.0, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => break outcome,
            }
        };
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Err(ChannelError::Late),
            Err(rustix::io::Errno::CONNRESET) => return Err(ChannelError::Gone),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let why = "descriptors were lost; is the limit of open files (LimitNOFILE=) reached?";
            return Err(ChannelError::Strange(why.into()));
        }
        if received.bytes == 0 {
            return Err(ChannelError::Gone);
        }
        Ok((bytes[..received.bytes].to_vec(), descriptors))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_bring_as_many_descriptors_as_they_were_given() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        let (read, _write) = std::io::pipe().unwrap();
        let long = "x".repeat(1 << 20);
        let sent = std::thread::spawn(move || {
            for count in [0, 1, 252, 253, 600] {
                let descriptors: Vec<_> = (0..count).map(|_| read.as_fd()).collect();
                ours.send(&(count, &long), &descriptors).unwrap();
            }
        });
        for wanted in [0, 1, 252, 253, 600] {
            let (message, descriptors): ((usize, String), _) = theirs.receive(None).unwrap();
            assert_eq!((message.0, message.1.len()), (wanted, 1 << 20));
            assert_eq!(descriptors.len(), wanted);
        }
        sent.join().unwrap();
        let gone = theirs.receive::<()>(Some(Duration::from_secs(1)));
        assert!(matches!(gone, Err(ChannelError::Gone)));
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::of(theirs);
        let late = theirs.receive::<()>(Some(Duration::from_millis(10)));
        assert!(matches!(late, Err(ChannelError::Late)));
        ours.packet(b"nonsense", &[]).unwrap();
        let strange = theirs.receive::<()>(Some(Duration::from_secs(1)));
        assert!(matches!(strange, Err(ChannelError::Strange(_))));
        ours.send(&"a word", &[]).unwrap();
        let strange = theirs.receive::<u32>(Some(Duration::from_secs(1)));
        assert!(matches!(strange, Err(ChannelError::Strange(_))));
    }
}
