//! A DNS query over UDP: any answer without an error is good.

use std::io;
use std::net::SocketAddr;

use fairway_config::document::RecordDoc;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

use super::{MOST_ANSWER, fail, plain};
use crate::health::state::{ProbeError, ProbeResult};

/// Asks for `query`.
pub(super) async fn ask(
    socket: &UdpSocket,
    addr: SocketAddr,
    query: &str,
    record: RecordDoc,
) -> ProbeResult {
    let failed = |what: String| ProbeError(format!("DNS to {addr}: {what}"));
    let name = Name::from_utf8(query).map_err(|_| failed(format!("`{query}` is no name")))?;
    let kind = match record {
        RecordDoc::A => RecordType::A,
        RecordDoc::Aaaa => RecordType::AAAA,
        RecordDoc::Ns => RecordType::NS,
        RecordDoc::Soa => RecordType::SOA,
        RecordDoc::Srv => RecordType::SRV,
        RecordDoc::Txt => RecordType::TXT,
    };
    // Answers are matched by it; the socket hears nobody but the server.
    let id = socket.local_addr().map_or(1, |local| local.port());
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let bytes = message.to_vec().map_err(|error| failed(error.to_string()))?;
    let lost = |error: io::Error| failed(plain(&error));
    socket.send(&bytes).await.map_err(lost)?;
    let mut buffer = [0; MOST_ANSWER];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(lost)?;
        let answer = Message::from_vec(&buffer[..n])
            .map_err(|error| failed(format!("the answer is no DNS message: {error}")))?;
        if answer.metadata.id != id || answer.metadata.message_type != MessageType::Response {
            continue;
        }
        return match answer.metadata.response_code {
            ResponseCode::NoError => Ok(()),
            code => fail(format!("DNS {code} from {addr} for `{query}`")),
        };
    }
}
