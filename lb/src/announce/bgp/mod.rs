//! BGP, to announce and never to import: what a session says and hears, when, and with which routes. Pure:
//! octets in, octets out, time as an argument; sockets stand in [`super::speakers`].
//!
//! Source: RFC 4271, with the extensions that [`message`] names; RFC 8326 (graceful shutdown).

pub mod message;
pub mod routes;
pub mod session;

#[cfg(test)]
mod tests;
