//! http and https: bounded redirects, sizes and waits, the machine's own certificate roots.

use crate::{ArtifactError, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, LOCATION, USER_AGENT};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const REDIRECTS_MAX: usize = 10;
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Until the answer begins, and between two parts of it.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Where Debian, Fedora and Alpine keep the roots they trust.
const ROOT_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub async fn get(url: &str, request: &Request<'_>, download: &Path) -> Result<(), ArtifactError> {
    let fail = |reason: String| ArtifactError::Get { url: shown(url), reason };
    let first: Uri = url.parse().map_err(|error| fail(format!("is no address: {error}")))?;
    let mut uri = first.clone();
    for _ in 0..=REDIRECTS_MAX {
        // Only the host that the job names gets its secrets.
        let with_headers = uri.authority() == first.authority();
        let response = ask(&uri, request, with_headers).await.map_err(&fail)?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| fail(format!("{status} without a new address")))?;
            let next =
                resolved(&uri, location).ok_or_else(|| fail(format!("is sent on to {location:?}, no address")))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(fail(format!("is sent on from https to {next}; name an address that stays with https")));
            }
            uri = next;
            continue;
        }
        if !status.is_success() {
            return Err(ArtifactError::Status { url: shown(url), status: status.as_u16() });
        }
        return save(response, request.policy.bytes_max, download).await.map_err(|error| match error {
            ArtifactError::Get { reason, .. } => fail(reason),
            other => other,
        });
    }
    Err(fail(format!("is sent on more than {REDIRECTS_MAX} times")))
}

/// Without what is secret in it.
fn shown(url: &str) -> String {
    let plain = url.split('?').next().unwrap_or(url);
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or(host))
        }
        None => plain.to_owned(),
    }
}

fn resolved(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") {
        return location.parse().ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let path = match location.starts_with('/') {
        true => location.to_owned(),
        false => format!("{}/{location}", base.path().rsplit_once('/').map_or("", |(dir, _)| dir)),
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

async fn ask(uri: &Uri, request: &Request<'_>, with_headers: bool) -> Result<Response<Incoming>, String> {
    let host = uri.host().ok_or("has no host")?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let connecting = timeout(CONNECT_TIME_MAX, TcpStream::connect((host.as_str(), port))).await;
    let stream = connecting
        .map_err(|_| format!("no connection within {CONNECT_TIME_MAX:?}"))?
        .map_err(|error| format!("cannot be reached: {error}"))?;
    let message = message(uri, request, with_headers)?;
    let answer = async {
        if is_tls {
            let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
            let connector = TlsConnector::from(Arc::new(tls(request.artifact.insecure)?));
            let stream = connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
            send(TokioIo::new(stream), message).await
        } else {
            send(TokioIo::new(stream), message).await
        }
    };
    timeout(SILENCE_MAX, answer).await.map_err(|_| format!("no answer within {SILENCE_MAX:?}"))?
}

fn message(uri: &Uri, request: &Request<'_>, with_headers: bool) -> Result<hyper::Request<Empty<Bytes>>, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let mut message = hyper::Request::get(path).header(HOST, host).header(USER_AGENT, "meshctl");
    if let Some(user) = user {
        let plain: Vec<u8> = percent_decode_str(user).collect();
        message = message.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(plain)));
    }
    if with_headers {
        for (name, value) in &request.artifact.headers {
            message = message.header(name.as_str(), value.as_str());
        }
    }
    message.body(Empty::new()).map_err(|error| format!("its headers cannot be sent: {error}"))
}

async fn send<S>(stream: S, message: hyper::Request<Empty<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| error.to_string())?;
    // Ends with the answer's body.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(message).await.map_err(|error| error.to_string())
}

async fn save(response: Response<Incoming>, bytes_max: u64, download: &Path) -> Result<(), ArtifactError> {
    let io = |source| ArtifactError::Io { action: "writing", path: download.to_owned(), source };
    let too_large = || ArtifactError::TooLarge { what: "the download", bytes: bytes_max };
    let broken = |reason: String| ArtifactError::Get { url: String::new(), reason };
    let mut body = response.into_body();
    if hyper::body::Body::size_hint(&body).lower() > bytes_max {
        return Err(too_large());
    }
    let mut file = std::fs::File::create(download).map_err(io)?;
    let mut total = 0u64;
    loop {
        let frame = timeout(SILENCE_MAX, body.frame()).await;
        let frame = frame.map_err(|_| broken(format!("nothing came for {SILENCE_MAX:?}")))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken(format!("broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len() as u64);
        if total > bytes_max {
            return Err(too_large());
        }
        file.write_all(&data).map_err(io)?;
    }
    Ok(())
}

fn tls(insecure: bool) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = match insecure {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        false => builder.with_root_certificates(roots()?),
    };
    Ok(config.with_no_client_auth())
}

fn roots() -> Result<RootCertStore, String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let files = named.as_deref().into_iter().chain(ROOT_FILES);
    let file = files.map(Path::new).find(|path| path.is_file());
    let file = file.ok_or("this node has no certificate roots; install ca-certificates, or set SSL_CERT_FILE")?;
    let mut store = RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(file).map_err(|error| format!("{}: {error}", file.display()))?;
    store.add_parsable_certificates(read.flatten());
    if store.is_empty() {
        return Err(format!("{} has no certificate roots", file.display()));
    }
    Ok(store)
}

/// The job says that any certificate will do.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
