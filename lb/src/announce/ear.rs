//! Where BGP peers connect to us.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fairway_uring::sign;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::run::Event;
use super::speakers::{PeerEvent, Speaker, key};

/// Takes connections of peers at a port, for as long as it lives.
pub(crate) struct Ear {
    port: u16,
    peers: Arc<RwLock<BTreeMap<IpAddr, String>>>,
    sockets: Vec<Socket>,
    tasks: Vec<JoinHandle<()>>,
    /// Peers whose segments are signed.
    signed: BTreeSet<IpAddr>,
}

impl Ear {
    /// Listens at a port, for nobody yet; by sockets of another process where there are some, by family
    /// (IPv4?).
    pub(crate) fn open(
        port: u16,
        (inherited, signed): (Vec<(bool, OwnedFd)>, BTreeSet<IpAddr>),
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<Self, String> {
        let mut ear =
            Self { port, peers: Arc::default(), sockets: Vec::new(), tasks: Vec::new(), signed };
        let mut inherited: BTreeMap<bool, OwnedFd> = inherited.into_iter().collect();
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            if let Some(socket) = inherited.remove(&any.is_ipv4()) {
                ear.sockets.push(socket.into());
                continue;
            }
            let at = SocketAddr::new(any, port);
            let words = |error: io::Error| format!("BGP cannot be taken at {at}: {error}");
            let socket =
                match Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)) {
                    // A kernel without IPv6 has no peers of it.
                    Err(_) if any.is_ipv6() => continue,
                    socket => socket.map_err(words)?,
                };
            socket.set_nonblocking(true).map_err(words)?;
            socket.set_reuse_address(true).map_err(words)?;
            if any.is_ipv6() {
                socket.set_only_v6(true).map_err(words)?;
            }
            socket.bind(&at.into()).map_err(words)?;
            socket.listen(16).map_err(words)?;
            ear.sockets.push(socket);
        }
        ear.resume(events);
        Ok(ear)
    }

    /// Takes nobody, so that another process can.
    pub(crate) fn pause(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
    }

    /// Takes connections from now on.
    pub(crate) fn resume(&mut self, events: &mpsc::UnboundedSender<Event>) {
        for socket in &self.sockets {
            let copy = socket.try_clone().and_then(|copy| TcpListener::from_std(copy.into()));
            match copy {
                Ok(listener) => {
                    let accepting = accept(listener, Arc::clone(&self.peers), events.clone());
                    self.tasks.push(tokio::spawn(accepting));
                }
                Err(error) => tracing::error!(port = self.port, "BGP cannot be taken: {error}"),
            }
        }
    }

    /// Its sockets, for another process, by family (IPv4?).
    pub(crate) fn copies(&self) -> impl Iterator<Item = (bool, OwnedFd)> + '_ {
        let copy = |socket: &Socket| {
            let ipv4 = socket.domain().ok()? == Domain::IPV4;
            Some((ipv4, socket.try_clone().ok()?.into()))
        };
        self.sockets.iter().filter_map(copy)
    }

    /// Peers whose segments are signed.
    pub(crate) fn signed(&self) -> &BTreeSet<IpAddr> {
        &self.signed
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Takes connections of these peers from now on, and of no others; returns why some cannot be taken.
    pub(crate) fn hear(&mut self, speakers: &BTreeMap<String, Speaker>) -> Vec<String> {
        let (mut by_address, mut troubles) = (BTreeMap::new(), Vec::new());
        let mut keys: BTreeMap<IpAddr, Vec<u8>> =
            self.signed.iter().map(|address| (*address, Vec::new())).collect();
        for (name, speaker) in speakers {
            let address = speaker.spec.address;
            match speaker.spec.password.as_ref().map(key).transpose() {
                Ok(key) => {
                    if let Some(key) = key {
                        keys.insert(address, key);
                    }
                    by_address.insert(address, name.clone());
                }
                Err(why) => troubles.push(format!("BGP peer `{name}` cannot connect: {why}")),
            }
        }
        self.signed.clear();
        for (address, key) in keys {
            let of_family = |socket: &&Socket| {
                socket.local_addr().is_ok_and(|at| at.is_ipv4() == address.is_ipv4())
            };
            for socket in self.sockets.iter().filter(of_family) {
                match sign(socket, address, &key) {
                    // One that is to go may have gone.
                    Err(error) if !key.is_empty() => {
                        by_address.remove(&address);
                        troubles.push(format!("sessions with {address} cannot be signed: {error}"));
                    }
                    _ => {}
                }
            }
            if !key.is_empty() {
                self.signed.insert(address);
            }
        }
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = by_address;
        troubles
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(
    listener: TcpListener,
    peers: Arc<RwLock<BTreeMap<IpAddr, String>>>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let from = from.ip().to_canonical();
        let name = peers.read().unwrap_or_else(PoisonError::into_inner).get(&from).cloned();
        // Strangers are closed at once.
        let Some(name) = name else { continue };
        let _ = stream.set_nodelay(true);
        if events.send(Event::Bgp(name, PeerEvent::Accepted(stream))).is_err() {
            return;
        }
    }
}
