//! Health checks: one task per check, http and tcp, from the node to the allocation's address.
//!
//! The body of an answer is never read, a probe never outlives its timeout, and what the other side sends is bounded.

use crate::allocs::CheckPlan;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use model::{CheckKind, Health};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// An answer whose head is larger is no answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Until a check passes it is repeated at least this often, so that a service is taken in when it is up, not an interval later.
const UNTIL_PASSING: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    pub output: String,
}

/// A result, and the run of the check it is of: one of an earlier run says nothing of the task that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    pub id: String,
    pub run: u64,
    pub verdict: Verdict,
}

/// Ends with this value.
pub struct RunningCheck {
    pub plan: CheckPlan,
    pub run: u64,
    task: JoinHandle<()>,
}

impl RunningCheck {
    /// `stagger` in 0.0..1.0 spreads the checks of a node over their first interval, or second if that is shorter.
    pub fn spawn(plan: CheckPlan, run: u64, stagger: f64, results: mpsc::Sender<CheckResult>) -> Self {
        let first = plan.check.interval.min(UNTIL_PASSING).mul_f64(stagger.clamp(0.0, 1.0) / 2.0);
        let task = tokio::spawn(repeat(plan.clone(), run, first, results));
        Self { plan, run, task }
    }
}

impl Drop for RunningCheck {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn repeat(plan: CheckPlan, run: u64, first: Duration, results: mpsc::Sender<CheckResult>) {
    sleep(first).await;
    loop {
        let verdict = probe(&plan).await;
        let pause = pause(verdict.health, plan.check.interval);
        if results.send(CheckResult { id: plan.id.clone(), run, verdict }).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn pause(health: Health, interval: Duration) -> Duration {
    if health == Health::Passing { interval } else { interval.min(UNTIL_PASSING) }
}

/// One try, over after the check's timeout at the latest.
pub async fn probe(plan: &CheckPlan) -> Verdict {
    let attempt = async {
        match &plan.check.kind {
            CheckKind::Tcp => tcp(plan.target).await,
            CheckKind::Http { method, path, .. } => http(plan.target, method, path).await,
            // Jobs with these are refused.
            CheckKind::Grpc { .. } | CheckKind::Script { .. } | CheckKind::Ttl => {
                Err("this type of check is not built yet".to_owned())
            }
        }
    };
    match timeout(plan.check.timeout, attempt).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(output)) => Verdict { health: Health::Critical, output },
        Err(_) => {
            let output = format!("no answer from {} within {:?}", plan.target, plan.check.timeout);
            Verdict { health: Health::Critical, output }
        }
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(target).await.map_err(|error| format!("cannot connect to {target}: {error}"))
}

async fn tcp(target: SocketAddr) -> Result<Verdict, String> {
    connect(target).await?;
    Ok(Verdict { health: Health::Passing, output: format!("connected to {target}") })
}

async fn http(target: SocketAddr, method: &str, path: &str) -> Result<Verdict, String> {
    let request = request(target, method, path)?;
    let stream = TokioIo::new(connect(target).await?);
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(stream).await;
    let (mut sender, connection) = handshake.map_err(|error| format!("no HTTP from {target}: {error}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The answer may have come with the end of the connection.
        _ = connection => answer.await,
    };
    let answer = answer.map_err(|error| format!("no HTTP answer from {target}: {error}"))?;
    Ok(judge(answer.status(), method, target, path))
}

fn request(target: SocketAddr, method: &str, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is not an HTTP method"))?;
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, target.to_string())
        .header(header::USER_AGENT, concat!("meshctl-check/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| format!("`{path}` cannot be asked for: {error}"))
}

/// 2xx passes, 429 warns.
fn judge(status: StatusCode, method: &str, target: SocketAddr, path: &str) -> Verdict {
    let health = match status {
        status if status.is_success() => Health::Passing,
        StatusCode::TOO_MANY_REQUESTS => Health::Warning,
        _ => Health::Critical,
    };
    Verdict { health, output: format!("HTTP {method} http://{target}{path}: {status}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Check;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn plan(kind: CheckKind, target: SocketAddr) -> CheckPlan {
        let timeout = Duration::from_millis(300);
        let check = Check::named("alive", kind, Duration::from_secs(10), timeout);
        CheckPlan { id: "web/alive".into(), check, target }
    }

    fn get() -> CheckKind {
        CheckKind::http("/health")
    }

    /// A server that answers each connection with these bytes and keeps it open.
    async fn serve(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 512];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer).await;
                open.push(stream);
            }
        });
        address
    }

    async fn health(answer: &'static [u8]) -> (Health, String) {
        let verdict = probe(&plan(get(), serve(answer).await)).await;
        (verdict.health, verdict.output)
    }

    #[tokio::test]
    async fn status_decides_and_the_body_is_not_waited_for() {
        let endless = health(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\nx").await;
        assert_eq!(endless.0, Health::Passing, "{}", endless.1);
        assert_eq!(health(b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n").await.0, Health::Warning);
        assert_eq!(health(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await.0, Health::Critical);
        assert_eq!(health(b"HTTP/1.1 302 Away\r\ncontent-length: 0\r\n\r\n").await.0, Health::Critical);
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
    async fn tcp_needs_a_listener() {
        let address = serve(b"").await;
        assert_eq!(probe(&plan(CheckKind::Tcp, address)).await.health, Health::Passing);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let verdict = probe(&plan(CheckKind::Tcp, closed)).await;
        assert_eq!(verdict.health, Health::Critical);
        assert!(verdict.output.contains("cannot connect"), "{}", verdict.output);
    }

    #[test]
    fn what_does_not_pass_is_asked_again_soon() {
        let minute = Duration::from_secs(60);
        assert_eq!(pause(Health::Passing, minute), minute);
        assert_eq!(pause(Health::Critical, minute), UNTIL_PASSING);
    }
}
