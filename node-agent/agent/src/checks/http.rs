//! HTTP probes: one request on a connection of its own; redirects are answers like others, and bodies are not read.

use super::Verdict;
use super::connect::connect;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use model::{CheckTls, Health};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// An answer whose head is larger is no answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;

pub struct Question<'a> {
    pub target: SocketAddr,
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a BTreeMap<String, Vec<String>>,
    pub body: &'a str,
    pub tls: Option<&'a CheckTls>,
}

impl Question<'_> {
    pub async fn ask(self) -> Result<Verdict, String> {
        let (target, request) = (self.target, self.request()?);
        let stream = TokioIo::new(connect(target, self.tls, b"http/1.1").await?);
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
        Ok(self.judge(answer.status()))
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, String> {
        let method = Method::from_bytes(self.method.as_bytes());
        let method = method.map_err(|_| format!("`{}` is not an HTTP method", self.method))?;
        let mut request = Request::builder().method(method).uri(self.path);
        let own = |name: &header::HeaderName| !self.headers.keys().any(|key| key.eq_ignore_ascii_case(name.as_str()));
        for (name, values) in self.headers {
            request = values.iter().fold(request, |request, value| request.header(name, value));
        }
        if own(&header::HOST) {
            request = request.header(header::HOST, self.target.to_string());
        }
        if own(&header::USER_AGENT) {
            request = request.header(header::USER_AGENT, concat!("meshctl-check/", env!("CARGO_PKG_VERSION")));
        }
        let request = request.header(header::CONNECTION, "close").body(Full::from(self.body.to_owned()));
        request.map_err(|error| format!("`{}` cannot be asked for: {error}", self.path))
    }

    /// 2xx passes, 429 warns.
    fn judge(&self, status: StatusCode) -> Verdict {
        let health = match status {
            status if status.is_success() => Health::Passing,
            StatusCode::TOO_MANY_REQUESTS => Health::Warning,
            _ => Health::Critical,
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let Self { target, method, path, .. } = self;
        Verdict { health, output: format!("HTTP {method} {scheme}://{target}{path}: {status}") }
    }
}
