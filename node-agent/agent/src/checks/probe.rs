//! One try of one check.

use super::http::Question;
use super::{Verdict, connect, grpc};
use crate::allocs::CheckPlan;
use drivers::TaskHandle;
use model::{CheckKind, Health};
use std::net::SocketAddr;
use tokio::time::timeout;

/// One try, over after the check's timeout at the latest.
pub async fn probe(plan: &CheckPlan, _task: Option<&TaskHandle>) -> Verdict {
    let attempt = async {
        match (&plan.check.kind, plan.target) {
            (CheckKind::Tcp, Some(target)) => tcp(target).await,
            (CheckKind::Http { method, path, headers, body, tls }, Some(target)) => {
                Question { target, method, path, headers, body, tls: tls.as_ref() }.ask().await
            }
            (CheckKind::Grpc { service, tls }, Some(target)) => grpc::check(target, service, tls.as_ref()).await,
            // Jobs with these are refused.
            (CheckKind::Script { .. }, _) => Err("checks of type script are not built yet".to_owned()),
            (CheckKind::Ttl, _) | (_, None) => Err("nothing to ask".to_owned()),
        }
    };
    match timeout(plan.check.timeout, attempt).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(output)) => Verdict { health: Health::Critical, output },
        Err(_) => {
            let whom = plan.target.map_or_else(|| "the script".to_owned(), |target| target.to_string());
            Verdict::critical(format!("no answer from {whom} within {:?}", plan.check.timeout))
        }
    }
}

async fn tcp(target: SocketAddr) -> Result<Verdict, String> {
    connect::tcp(target).await?;
    Ok(Verdict::passing(format!("connected to {target}")))
}
