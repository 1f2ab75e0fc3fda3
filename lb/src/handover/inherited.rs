//! What this process has from the one before it: descriptors by their names, from the service manager
//! that kept them or from the process itself. What nobody takes is closed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use fairway_core::Protocol;
use socket2::{SockRef, Socket, Type};

/// Descriptors by name, each name's in the order of the workers that had them.
#[derive(Default)]
pub(crate) struct Inherited(HashMap<String, Vec<OwnedFd>>);

impl Inherited {
    /// Adds what came under these names.
    pub(crate) fn add(&mut self, named: impl IntoIterator<Item = (String, OwnedFd)>) {
        for (name, descriptor) in named {
            self.0.entry(name).or_default().push(descriptor);
        }
    }

    /// Whether there is something under a name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// What is there under a name.
    pub(crate) fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        self.0.remove(name).unwrap_or_default()
    }

    /// What is there under names that begin so.
    pub(crate) fn take_all(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let all = self.0.extract_if(|name, _| name.starts_with(prefix));
        all.flat_map(|(name, all)| all.into_iter().map(move |it| (name.clone(), it))).collect()
    }

    /// What is there under the last of the names that begin so, by the number that ends them; and all of
    /// these names.
    pub(crate) fn newest(&mut self, prefix: &str) -> (Vec<OwnedFd>, Vec<String>) {
        let number = |name: &String| name.strip_prefix(prefix)?.parse::<u64>().ok();
        let mut names: Vec<String> =
            self.0.keys().filter(|name| number(name).is_some()).cloned().collect();
        names.sort_by_key(number);
        let mut all: Vec<_> = names.iter().map(|name| self.take(name)).collect();
        (all.pop().unwrap_or_default(), names)
    }

    /// Sockets that receive what comes to `addr`, or to any address that nftables hands to them.
    pub(crate) fn sockets(&mut self, name: &str, addr: Option<SocketAddr>) -> Vec<Socket> {
        let fits = |socket: &Socket| {
            let local = socket.local_addr().ok().and_then(|addr| addr.as_socket());
            let listens = match socket.r#type() {
                Ok(Type::STREAM) => socket.is_listener().unwrap_or(false),
                Ok(Type::DGRAM) => true,
                _ => false,
            };
            listens && local.is_some() && (addr.is_none() || local == addr)
        };
        let sockets = self.take(name).into_iter().map(Socket::from).filter(fits);
        // A process that died while it closed one has left it so.
        sockets.filter(|socket| SockRef::from(socket).set_nonblocking(false).is_ok()).collect()
    }

    /// Names of what nobody has taken.
    pub(crate) fn left(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The name of the sockets that listen on `addr`; what service managers take for one.
pub(crate) fn listener_name(protocol: Protocol, addr: SocketAddr) -> String {
    let protocol = protocol.to_string().to_lowercase();
    format!("{protocol}-{}", addr.to_string().replace(':', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn sockets_are_taken_once_and_for_the_address_that_they_have() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = TcpStream::connect(addr).unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = datagrams.local_addr().unwrap();
        let named = [
            ("a", OwnedFd::from(listener)),
            ("a", OwnedFd::from(stream)),
            ("a", std::fs::File::open("/dev/null").unwrap().into()),
            ("b", datagrams.into()),
            ("c", TcpListener::bind("127.0.0.1:0").unwrap().into()),
        ];
        let mut inherited = Inherited::default();
        inherited.add(named.map(|(name, descriptor)| (name.to_owned(), descriptor)));
        assert_eq!(inherited.sockets("a", Some(addr)).len(), 1);
        assert_eq!(inherited.sockets("a", Some(addr)).len(), 0);
        assert_eq!(inherited.sockets("b", Some(other)).len(), 1);
        assert_eq!(inherited.sockets("c", Some(addr)).len(), 0, "it is bound elsewhere");
        assert_eq!(inherited.left().count(), 0);
    }

    #[test]
    fn names_are_what_managers_take() {
        let name = |addr: &str| listener_name(Protocol::Tcp, addr.parse().unwrap());
        assert_eq!(name("192.0.2.1:80"), "tcp-192.0.2.1-80");
        assert_eq!(name("[2001:db8::1]:80"), "tcp-[2001-db8--1]-80");
    }
}
