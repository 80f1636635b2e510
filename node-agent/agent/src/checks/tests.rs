use super::*;
use model::{Check, CheckTls};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn plan(kind: CheckKind, target: Option<SocketAddr>) -> CheckPlan {
    let check = Check::named("alive", kind, Duration::from_secs(10), Duration::from_millis(300));
    CheckPlan { id: "web/alive".into(), check, target, task: None }
}

/// A server that answers each connection with these bytes, keeps it open, and tells what it was asked.
async fn serve(answer: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 2048];
            let count = stream.read(&mut head).await.unwrap_or(0);
            head.truncate(count);
            let _ = heard.send(head);
            let _ = stream.write_all(answer).await;
            open.push(stream);
        }
    });
    (address, hears)
}

async fn health(answer: &'static [u8]) -> (Health, String) {
    let (address, _hears) = serve(answer).await;
    let verdict = probe(&plan(CheckKind::http("/health"), Some(address)), None).await;
    (verdict.health, verdict.output)
}

#[tokio::test]
async fn status_decides_and_the_body_is_not_waited_for() {
    let endless = health(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\nx").await;
    assert_eq!(endless.0, Health::Passing, "{}", endless.1);
    assert_eq!(health(b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n").await.0, Health::Warning);
    assert_eq!(health(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await.0, Health::Critical);
    let moved = health(b"HTTP/1.1 302 Away\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(moved.0, Health::Critical, "redirects are not followed: {}", moved.1);
}

#[tokio::test]
async fn silence_garbage_and_huge_heads_are_critical_in_time() {
    let silent = health(b"").await;
    assert_eq!(silent.0, Health::Critical);
    assert!(silent.1.contains("within 300ms"), "{}", silent.1);
    assert_eq!(health(b"SSH-2.0-OpenSSH_9\r\n\r\n").await.0, Health::Critical);
    let huge: &'static [u8] =
        Box::leak([b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'y'; 100_000]].concat().into_boxed_slice());
    assert_eq!(health(huge).await.0, Health::Critical);
}

#[tokio::test]
async fn method_headers_and_body_are_sent() {
    let (address, mut hears) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let kind = CheckKind::Http {
        method: "POST".into(),
        path: "/ready?deep=1".into(),
        headers: BTreeMap::from([
            ("Host".to_owned(), vec!["shop.example".to_owned()]),
            ("X-Key".to_owned(), vec!["a".to_owned(), "b".to_owned()]),
        ]),
        body: "ping".into(),
        tls: None,
    };
    assert_eq!(probe(&plan(kind, Some(address)), None).await.health, Health::Passing);
    let heard = String::from_utf8(hears.recv().await.unwrap()).unwrap().to_ascii_lowercase();
    for part in ["post /ready?deep=1 http/1.1", "host: shop.example", "x-key: a", "x-key: b", "content-length: 4"] {
        assert!(heard.contains(part), "{part}: {heard}");
    }
    assert!(heard.ends_with("\r\n\r\nping"), "{heard}");
    assert_eq!(heard.matches("host:").count(), 1, "{heard}");
}

#[tokio::test]
async fn tcp_needs_a_listener() {
    let (address, _hears) = serve(b"").await;
    assert_eq!(probe(&plan(CheckKind::Tcp, Some(address)), None).await.health, Health::Passing);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let verdict = probe(&plan(CheckKind::Tcp, Some(closed)), None).await;
    assert_eq!(verdict.health, Health::Critical);
    assert!(verdict.output.contains("cannot connect"), "{}", verdict.output);
}

/// A TLS server with a certificate that nobody signed.
async fn serve_tls(answer: &'static [u8]) -> SocketAddr {
    let own = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 512];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn tls_verifies_unless_told_not_to() {
    let address = serve_tls(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let over_tls = |skip_verify| {
        let CheckKind::Http { method, path, headers, body, .. } = CheckKind::http("/") else { unreachable!() };
        let tls = Some(CheckTls { server_name: "shop.example".into(), skip_verify });
        let mut plan = plan(CheckKind::Http { method, path, headers, body, tls }, Some(address));
        plan.check.timeout = Duration::from_secs(5);
        plan
    };
    let strict = probe(&over_tls(false), None).await;
    assert_eq!(strict.health, Health::Critical);
    assert!(strict.output.contains("TLS") || strict.output.contains("authority"), "{}", strict.output);
    let lenient = probe(&over_tls(true), None).await;
    assert_eq!(lenient.health, Health::Passing, "{}", lenient.output);
    assert!(lenient.output.contains("https://"), "{}", lenient.output);
}

#[test]
fn what_does_not_pass_is_asked_again_soon() {
    let minute = Duration::from_secs(60);
    assert_eq!(pause(Health::Passing, minute), minute);
    assert_eq!(pause(Health::Critical, minute), UNTIL_PASSING);
}

#[tokio::test]
async fn thousands_of_checks_share_one_pool_and_stop_when_dropped() {
    let (address, _hears) = serve(b"").await;
    let pool = CheckPool::start();
    let (results, mut told) = mpsc::channel(4096);
    let watch = |number: usize| {
        let plan = CheckPlan { id: format!("web/{number}"), ..plan(CheckKind::Tcp, Some(address)) };
        pool.watch(plan, None, number as f64 / 2000.0, results.clone())
    };
    let running: Vec<RunningCheck> = (0..2000).map(watch).collect();
    let mut seen = std::collections::BTreeSet::new();
    let all = async {
        while seen.len() < running.len() {
            seen.insert(told.recv().await.unwrap().id);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    drop(running);
    drop(results);
    let quiet = async { while told.recv().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), quiet).await.expect("nothing is watched any more");
}

#[tokio::test(start_paused = true)]
async fn a_ttl_check_holds_for_an_interval_and_fails_then() {
    let pool = CheckPool::start();
    let (results, mut told) = mpsc::channel(16);
    let check = pool.watch(plan(CheckKind::Ttl, None), None, 0.0, results);
    let began = Instant::now();
    check.set(Health::Passing, "fine".into());
    assert_eq!(told.recv().await.unwrap().verdict, Verdict::passing("fine"));
    let silent = told.recv().await.unwrap().verdict;
    assert_eq!((silent.health, began.elapsed()), (Health::Critical, Duration::from_secs(10)), "{}", silent.output);
    check.set(Health::Warning, "slow".into());
    assert_eq!(told.recv().await.unwrap().verdict.health, Health::Warning);
}

/// Knows the service `web`, which is as healthy as the number says.
#[derive(Clone)]
struct Serving(i32);

impl tonic::server::NamedService for Serving {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl tonic::codegen::Service<tonic::Request<grpc::HealthCheckRequest>> for Serving {
    type Response = tonic::Response<grpc::HealthCheckResponse>;
    type Error = tonic::Status;
    type Future = std::future::Ready<Result<Self::Response, tonic::Status>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), tonic::Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<grpc::HealthCheckRequest>) -> Self::Future {
        let known = request.into_inner().service == "web";
        let answer = grpc::HealthCheckResponse { status: self.0 };
        std::future::ready(if known { Ok(tonic::Response::new(answer)) } else { Err(tonic::Status::not_found("no")) })
    }
}

impl tonic::codegen::Service<tonic::codegen::http::Request<tonic::body::Body>> for Serving {
    type Response = tonic::codegen::http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::codegen::http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<grpc::HealthCheckResponse, grpc::HealthCheckRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
        })
    }
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let ask = |status: i32, service: &'static str| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(Serving(status)).serve_with_incoming(incoming);
        let server = tokio::spawn(server);
        let mut plan = plan(CheckKind::Grpc { service: service.into(), tls: None }, Some(address));
        plan.check.timeout = Duration::from_secs(5);
        let verdict = probe(&plan, None).await;
        server.abort();
        (verdict.health, verdict.output)
    };
    let serving = ask(1, "web").await;
    assert_eq!(serving.0, Health::Passing, "{}", serving.1);
    let not_serving = ask(2, "web").await;
    assert!(not_serving.0 == Health::Critical && not_serving.1.contains("not serving"), "{}", not_serving.1);
    let unknown = ask(1, "other").await;
    assert!(unknown.0 == Health::Critical && unknown.1.contains("knows no service"), "{}", unknown.1);
    let (plain, _hears) = serve(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let mut wrong = self::plan(CheckKind::Grpc { service: String::new(), tls: None }, Some(plain));
    wrong.check.timeout = Duration::from_secs(2);
    assert_eq!(probe(&wrong, None).await.health, Health::Critical);
}
