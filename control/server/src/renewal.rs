//! Certificates are renewed at half life: an agent asks with the one it has, a server signs its own. A server holds what
//! unseals the CA, so asking another one would prove nothing, and a lone server has nobody to ask.

use crate::member::Member;
use crate::{clock, rpc};
use anyhow::{Context, anyhow, bail};
use identity::{Credentials, KeyAndRequest, Subject};
use model::NodeId;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tonic::Status;

/// Clocks jump and machines sleep: the wall clock is looked at this often at least.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How long a server whose certificate ran out waits for its own log to tell it the CA.
const REPLAY_FOR: Duration = Duration::from_secs(10);

/// Renews this server's certificate for as long as it runs.
pub(crate) async fn keep_fresh(member: Arc<Member>, stop: watch::Receiver<bool>) {
    let work = async {
        loop {
            wait_until_due(&member).await;
            if let Err(error) = renew_own(&member).await {
                let leaf = &member.credentials.current().leaf;
                tracing::warn!(error = format!("{error:#}"), "this server's certificate is not renewed yet");
                tokio::time::sleep(identity::retry_renewal_in(leaf, SystemTime::now())).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = rpc::until(stop) => {}
    }
}

/// A server that was away until its certificate ran out signs itself a new one, if its own state knows the CA.
pub(crate) async fn revive(member: &Member) -> anyhow::Result<()> {
    let leaf = member.credentials.current().leaf.clone();
    if identity::valid_until(&leaf)? >= SystemTime::now() {
        return Ok(());
    }
    let mut catalog = member.catalog.clone();
    let known = catalog.wait_for(|catalog| catalog.authority().is_some());
    if !matches!(tokio::time::timeout(REPLAY_FOR, known).await, Ok(Ok(_))) {
        bail!(
            "data_dir: this server's certificate has expired, and its own log does not hold the cluster's CA to sign a \
             new one with; join again under another name with an empty data directory and a token from \
             `meshctl token create -role server`"
        );
    }
    tracing::warn!("this server's certificate had expired; it signs itself a new one with the cluster's CA");
    renew_own(member).await
}

/// A new certificate for the node that the presented one names; any server can sign it.
pub(crate) async fn renew_agent(member: &Member, id: NodeId, request_pem: &str) -> Result<String, Status> {
    let authority = member.authority().await.map_err(|error| Status::unavailable(format!("{error:#}")))?;
    let signed = authority.sign(request_pem, Subject::Agent(id), member.certificate_validity);
    let certificate = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
    tracing::debug!(node = %id, "an agent's certificate was renewed");
    Ok(certificate)
}

async fn wait_until_due(member: &Member) {
    let credentials = member.credentials.current();
    // A certificate that cannot be read is due at once.
    let due = identity::renew_at(&credentials.leaf, clock::random_fraction()).unwrap_or(SystemTime::UNIX_EPOCH);
    while let Ok(wait) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(wait.clamp(Duration::from_millis(1), LOOK_EVERY)).await;
    }
}

async fn renew_own(member: &Member) -> anyhow::Result<()> {
    let authority = member.authority().await?;
    let key = KeyAndRequest::generate()?;
    let subject = Subject::Server(member.id);
    let certificate_pem = authority.sign(&key.request_pem, subject, member.certificate_validity)?;
    member.credentials.replace(Credentials::from_pem(&authority.certificate_pem(), &certificate_pem, &key.key_pem)?)?;
    member.peers.on_renewed();
    let disk = member.disk.clone();
    let written = tokio::task::spawn_blocking(move || disk.replace_certificate(&certificate_pem, &key.key_pem)).await;
    written.map_err(|error| anyhow!(error))?.context("the renewed certificate is in use, but not on disk")?;
    tracing::info!(server = member.id.0, "this server's certificate was renewed");
    Ok(())
}
