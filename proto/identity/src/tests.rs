use super::*;
use model::{NodeId, Role};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

fn authority() -> CertificateAuthority {
    CertificateAuthority::create().unwrap()
}

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn credentials(ca: &CertificateAuthority, subject: Subject, validity: Duration) -> Credentials {
    let request = KeyAndRequest::generate().unwrap();
    let leaf = ca.sign(&request.request_pem, subject, validity).unwrap();
    Credentials::from_pem(&ca.certificate_pem(), &leaf, &request.key_pem).unwrap()
}

fn server(ca: &CertificateAuthority, id: u64) -> Credentials {
    credentials(ca, Subject::Server(ServerId(id)), VALIDITY_DEFAULT)
}

/// Accepts TLS connections for as long as the test runs; the handshake's outcome is what counts.
async fn listen(config: Arc<rustls::ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let accept = tokio_rustls::TlsAcceptor::from(Arc::clone(&config)).accept(tcp);
            tokio::spawn(async move {
                if let Ok(mut tls) = accept.await {
                    drop(tls.read(&mut [0; 1]).await);
                }
            });
        }
    });
    address
}

/// Dials and reads once: with TLS 1.3 a server's refusal of the client arrives after the client's own handshake is over.
async fn dial(address: SocketAddr, name: &str, config: Arc<rustls::ClientConfig>) -> Result<(), String> {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let connecting = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
    let mut tls = connecting.await.map_err(|error| error.to_string())?;
    match tokio::time::timeout(Duration::from_millis(200), tls.read(&mut [0; 1])).await {
        Ok(Err(error)) => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[test]
fn token_survives_the_trip_and_keeps_its_secret_out_of_debug() {
    let token = Token::create([7; 32], Role::Agent).unwrap();
    let text = token.reveal();
    assert!(text.starts_with("mesh1."));
    let parsed = Token::parse(&format!(" {text}\n")).unwrap();
    assert_eq!(parsed, token);
    assert_eq!(parsed.digest(), token.digest());
    assert!(!format!("{token:?}").contains(&text[20..]));
}

#[test]
fn damaged_tokens_are_refused_by_kind() {
    let text = Token::create([7; 32], Role::Server).unwrap().reveal();
    let check = |text: &str, expected: TokenError| assert_eq!(Token::parse(text), Err(expected), "{text}");
    check("", TokenError::NoToken);
    check("hello", TokenError::NoToken);
    check("hello.world", TokenError::NoToken);
    check(&text.replace("mesh1.", "mesh2."), TokenError::Version("mesh2".to_owned()));
    check("mesh1.", TokenError::Length { found: 0 });
    check(&text[..text.len() - 2], TokenError::Length { found: 48 });
    check(&format!("{text}AAAA"), TokenError::Length { found: 52 });
    check(&text.replacen("mesh1.", "mesh1.*", 1), TokenError::Garbled);
    check(&format!("mesh1.{}", "A".repeat(66)), TokenError::Role(0));
    assert!(matches!(Token::parse(&format!("mesh1.{}", "A".repeat(1 << 20))), Err(TokenError::Length { .. })));
}

#[test]
fn two_tokens_never_share_a_digest() {
    let make = || Token::create([7; 32], Role::Agent).unwrap().digest();
    assert_ne!(make(), make());
}

#[test]
fn certificates_carry_role_and_id_of_the_signers_choice() {
    let ca = authority();
    assert_eq!(server(&ca, 3).identity(), Ok((Role::Server, "3".to_owned())));
    let agent = credentials(&ca, Subject::Agent(node(9)), VALIDITY_DEFAULT);
    assert_eq!(agent.identity(), Ok((Role::Agent, node(9).to_string())));
}

#[test]
fn a_requests_own_names_and_ca_flag_are_ignored() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["server.mesh".to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI("mesh://server/1".try_into().unwrap()));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let ca = authority();
    let leaf = ca.sign(&request, Subject::Agent(node(1)), VALIDITY_DEFAULT).unwrap();
    let credentials = Credentials::from_pem(&ca.certificate_pem(), &leaf, &key.serialize_pem()).unwrap();
    assert_eq!(credentials.identity(), Ok((Role::Agent, node(1).to_string())));
    let (_, parsed) = x509_parser::parse_x509_certificate(&credentials.leaf).unwrap();
    assert!(!parsed.is_ca());
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 1);
}

#[test]
fn requests_of_another_key_kind_or_no_request_are_refused() {
    let ca = authority();
    let sign = |pem: &str| ca.sign(pem, Subject::Agent(node(1)), VALIDITY_DEFAULT).unwrap_err();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    assert!(matches!(sign(&request), SignError::KeyKind));
    assert!(matches!(sign("garbage"), SignError::Request(_)));
    assert!(matches!(sign(&ca.certificate_pem()), SignError::Request(_)));
    assert!(matches!(sign(&"x".repeat(1 << 20)), SignError::RequestSize(_)));
    let mut tampered = KeyAndRequest::generate().unwrap().request_pem;
    let middle = tampered.len() - 60;
    let flipped = if &tampered[middle..=middle] == "A" { "B" } else { "A" };
    tampered.replace_range(middle..=middle, flipped);
    assert!(matches!(sign(&tampered), SignError::Request(_)));
}

#[test]
fn identities_that_are_not_ours_are_refused() {
    let check = |uris: &[&str], expected: PeerError| {
        let mut params = rcgen::CertificateParams::default();
        let names = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names = names.collect();
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(peer_role(certificate.der()), Err(expected));
    };
    check(&[], PeerError::NoIdentity);
    check(&["https://server/1"], PeerError::NoIdentity);
    check(&["mesh://server/1", "mesh://server/2"], PeerError::ManyIdentities);
    for uri in ["mesh://server/0", "mesh://server/x", "mesh://agent/1", "mesh://root/1", "mesh://server"] {
        check(&[uri], PeerError::Identity(uri.to_owned()));
    }
    assert_eq!(peer_role(b"no certificate"), Err(PeerError::Certificate));
}

#[test]
fn the_ca_comes_back_from_its_sealed_key_and_only_with_the_right_seal() {
    let ca = authority();
    let seal = SealKey::generate().unwrap();
    let sealed = seal.seal(ca.key_der()).unwrap();
    assert!(!sealed.windows(16).any(|window| ca.key_der().windows(16).any(|key| key == window)));
    let loaded = CertificateAuthority::load(ca.certificate_der(), &seal.open(&sealed).unwrap()).unwrap();
    assert_eq!(loaded.digest(), ca.digest());
    server(&loaded, 1).client_config().unwrap();
    assert!(matches!(SealKey::generate().unwrap().open(&sealed), Err(SealError::Open)));
    let mut damaged = sealed.clone();
    damaged[20] ^= 1;
    assert!(matches!(seal.open(&damaged), Err(SealError::Open)));
    assert!(matches!(seal.open(&sealed[..5]), Err(SealError::Open)));
    assert!(matches!(SealKey::from_bytes(&[0; 31]), Err(SealError::KeyLength(31))));
}

#[test]
fn a_key_of_another_certificate_and_truncated_pem_are_refused() {
    let ca = authority();
    let request = KeyAndRequest::generate().unwrap();
    let leaf = ca.sign(&request.request_pem, Subject::Server(ServerId(1)), VALIDITY_DEFAULT).unwrap();
    let other = KeyAndRequest::generate().unwrap().key_pem;
    let mixed = Credentials::from_pem(&ca.certificate_pem(), &leaf, &other).unwrap();
    assert!(matches!(mixed.client_config(), Err(CredentialsError::KeyPair(_))));
    let truncated = Credentials::from_pem(&ca.certificate_pem(), &leaf[..leaf.len() / 2], &request.key_pem);
    assert!(matches!(truncated, Err(CredentialsError::Pem("certificate", _))));
    let wrong_label = Credentials::from_pem(&ca.certificate_pem(), &request.key_pem, &request.key_pem);
    assert!(matches!(wrong_label, Err(CredentialsError::Pem("certificate", _))));
}

#[tokio::test]
async fn first_contact_brings_the_ca_that_the_token_names() {
    let ca = authority();
    let address = listen(server(&ca, 1).server_config().unwrap()).await;
    assert_eq!(&fetch_ca(address, ca.digest()).await.unwrap(), ca.certificate_der());
}

#[tokio::test]
async fn first_contact_refuses_another_ca() {
    let address = listen(server(&authority(), 1).server_config().unwrap()).await;
    let error = fetch_ca(address, authority().digest()).await.unwrap_err();
    assert!(matches!(error, FirstContactError::OtherAuthority { .. }), "{error:?}");
}

#[tokio::test]
async fn first_contact_refuses_a_stranger_that_only_shows_the_right_ca() {
    let (ca, stranger) = (authority(), authority());
    let mut posing = server(&stranger, 1);
    posing.ca = ca.certificate_der().clone();
    let address = listen(posing.server_config().unwrap()).await;
    let error = fetch_ca(address, ca.digest()).await.unwrap_err();
    assert!(!matches!(error, FirstContactError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn first_contact_refuses_an_agent_that_answers_as_a_server() {
    let ca = authority();
    let agent = credentials(&ca, Subject::Agent(node(1)), VALIDITY_DEFAULT);
    let address = listen(agent.server_config().unwrap()).await;
    let error = fetch_ca(address, ca.digest()).await.unwrap_err();
    assert!(matches!(error, FirstContactError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_is_refused_when_ca_id_or_time_is_wrong() {
    let ca = authority();
    let address = listen(server(&ca, 1).server_config().unwrap()).await;
    let client = server(&ca, 2).client_config().unwrap();
    dial(address, SERVER_NAME, Arc::clone(&client)).await.unwrap();
    dial(address, &server_name(ServerId(1)), Arc::clone(&client)).await.unwrap();
    let wrong_id = dial(address, &server_name(ServerId(2)), client).await.unwrap_err();
    assert!(wrong_id.contains("not valid for name"), "{wrong_id}");

    let foreign = authority();
    let error = dial(address, SERVER_NAME, server(&foreign, 2).client_config().unwrap()).await.unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let mut posing = server(&foreign, 2);
    posing.ca = ca.certificate_der().clone();
    dial(address, SERVER_NAME, posing.client_config().unwrap()).await.unwrap_err();

    let expired = credentials(&ca, Subject::Server(ServerId(3)), Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let error = dial(address, SERVER_NAME, expired.client_config().unwrap()).await.unwrap_err();
    assert!(error.contains("Expired"), "{error}");
    let stale = listen(expired.server_config().unwrap()).await;
    let error = dial(stale, SERVER_NAME, server(&ca, 2).client_config().unwrap()).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = authority();
    let address = listen(server(&ca, 1).server_config().unwrap()).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate_der().clone()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let error = dial(address, SERVER_NAME, Arc::new(old)).await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn handshakes_present_the_newest_certificate_and_no_other_machines() {
    let ca = authority();
    let brief = credentials(&ca, Subject::Server(ServerId(1)), Duration::ZERO);
    let (listening, dialling) = (LiveCredentials::new(brief).unwrap(), LiveCredentials::new(server(&ca, 2)).unwrap());
    let address = listen(listening.mtls().unwrap().server).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let client = dialling.mtls().unwrap().client;
    let error = dial(address, SERVER_NAME, Arc::clone(&client)).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
    // The same configurations, after the listener's certificate was replaced.
    listening.replace(server(&ca, 1)).unwrap();
    dial(address, SERVER_NAME, Arc::clone(&client)).await.unwrap();
    dialling.replace(credentials(&ca, Subject::Server(ServerId(2)), Duration::ZERO)).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let error = dial(address, SERVER_NAME, client).await.unwrap_err();
    assert!(error.contains("Expired"), "{error}");

    assert!(matches!(listening.replace(server(&ca, 3)), Err(ReplaceError::OtherIdentity { .. })));
    assert!(matches!(listening.replace(server(&authority(), 1)), Err(ReplaceError::OtherAuthority)));
    assert_eq!(listening.current().identity().unwrap().1, "1");
}

#[test]
fn renewal_is_due_at_half_life_with_a_little_spread() {
    let now = std::time::SystemTime::now();
    let leaf = credentials(&authority(), Subject::Server(ServerId(1)), Duration::from_secs(1000)).leaf;
    let due = |jitter| renew_at(&leaf, jitter).unwrap().duration_since(now).unwrap().as_secs_f64();
    assert!((due(0.0) - 500.0).abs() < 2.0 && (due(1.0) - 600.0).abs() < 2.0, "{} {}", due(0.0), due(1.0));
    let retry = |after: u64| retry_renewal_in(&leaf, now + Duration::from_secs(after));
    assert!((retry(500).as_secs_f64() - 100.0).abs() < 2.0);
    assert_eq!((retry(999), retry(2000)), (Duration::from_millis(200), Duration::from_secs(60)));
}
