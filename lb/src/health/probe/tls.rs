//! TLS to a backend: with its certificate checked against this machine's or its own authority, or
//! without a check.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairway_config::Tls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::health::state::ProbeError;

/// How long a configuration serves: certificates are renewed on disk.
const FRESH: Duration = Duration::from_secs(60);

/// Configurations by what they are for: reading certificates costs more than a handshake.
#[derive(Default)]
pub(crate) struct TlsConfigs(Mutex<HashMap<Purpose, Made>>);

/// The settings, and whether protocols are offered (there is one set of them).
type Purpose = (Tls, bool);
type Made = (Instant, Arc<ClientConfig>);

impl TlsConfigs {
    fn of(&self, tls: &Tls, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, String> {
        let key = (tls.clone(), !protocols.is_empty());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = known.get(&key).filter(|(made, _)| made.elapsed() < FRESH) {
            return Ok(Arc::clone(config));
        }
        known.retain(|_, (made, _)| made.elapsed() < FRESH);
        let mut config = make(tls)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let config = Arc::new(config);
        known.insert(key, (Instant::now(), Arc::clone(&config)));
        Ok(config)
    }
}

fn make(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    if !tls.verify {
        let verifier = Arc::new(Unverified(provider.signature_verification_algorithms));
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(builder.with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
            if roots.is_empty() {
                return Err(failed(&"no certificate (PEM) in it"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this machine has no certificates of authorities; install \
                            ca-certificates, or name a `caFile`"
                    .into());
            }
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Makes the handshake over `stream`.
pub(super) async fn handshake(
    stream: TcpStream,
    addr: SocketAddr,
    tls: &Tls,
    protocols: &[&[u8]],
    configs: &TlsConfigs,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    let failed = |why: String| ProbeError(format!("TLS to {addr}: {why}"));
    let config = configs.of(tls, protocols).map_err(failed)?;
    let name = match &tls.server_name {
        Some(name) => ServerName::try_from(String::from(&**name))
            .map_err(|_| failed(format!("`{name}` is no host name")))?,
        None => ServerName::IpAddress(addr.ip().into()),
    };
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| failed(error.to_string()))
}

/// Takes any certificate, but not a broken handshake.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
