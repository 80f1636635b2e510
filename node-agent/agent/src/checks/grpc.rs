//! gRPC probes: `grpc.health.v1.Health/Check`, as grpc/doc/health-checking.md has it. The two messages are written out
//! here: a generated service would be larger than both.

use super::Verdict;
use super::connect::{Io, connect};
use hyper_util::rt::TokioIo;
use model::CheckTls;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// An answer is one number.
const ANSWER_BYTES_MAX: usize = 1024;
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    /// 0 unknown, 1 serving, 2 not serving, 3 no such service (of watches only).
    #[prost(int32, tag = "1")]
    pub status: i32,
}

pub async fn check(target: SocketAddr, service: &str, tls: Option<&CheckTls>) -> Result<Verdict, String> {
    let endpoint = Endpoint::from_shared(format!("http://{target}")).map_err(|error| error.to_string())?;
    let connector = Connector { target, tls: tls.cloned() };
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| format!("no gRPC with {target}: {}", innermost(&error)))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    client.ready().await.map_err(|error| format!("no gRPC with {target}: {}", innermost(&error)))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    match client.unary(request, path, codec).await {
        Ok(answer) => Ok(judge(target, service, answer.into_inner().status)),
        Err(status) if status.code() == Code::NotFound => Err(format!("{target} knows no service {service:?}")),
        Err(status) => Err(format!("gRPC {target}: {:?}: {}", status.code(), status.message())),
    }
}

fn judge(target: SocketAddr, service: &str, status: i32) -> Verdict {
    let word = match status {
        SERVING => return Verdict::passing(format!("gRPC {target}: {service:?} is serving")),
        2 => "not serving",
        3 => "unknown to the server",
        _ => "of unknown state",
    };
    Verdict::critical(format!("gRPC {target}: {service:?} is {word}"))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

struct Connector {
    target: SocketAddr,
    tls: Option<CheckTls>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let (target, tls) = (self.target, self.tls.clone());
        Box::pin(async move {
            let stream = connect(target, tls.as_ref(), b"h2").await.map_err(io::Error::other)?;
            Ok(TokioIo::new(stream))
        })
    }
}
