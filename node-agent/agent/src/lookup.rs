//! Looks up keys and variables at the servers, for templates: each call waits until what it asks for is newer than what the
//! caller has.

use crate::enrol::Enrolment;
use crate::session::LinkStatus;
use model::AllocId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Request;
use wire::pb;
use wire::pb::watch_request::What;

/// Beyond the wait itself, for the way there and back.
const SLACK: Duration = Duration::from_secs(10);

/// What to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Key(String),
    Prefix(String),
    /// Only of the jobs that this node runs: the allocation says for which.
    Variable {
        path: String,
        alloc_id: AllocId,
    },
}

/// What was found, and the index to ask with next time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub index: u64,
    /// `None`: there is no such key or variable.
    pub entries: Option<BTreeMap<String, Vec<u8>>>,
}

/// A clone asks the same servers.
#[derive(Clone, Debug)]
pub struct ClusterData {
    credentials: Enrolment,
    link: watch::Receiver<LinkStatus>,
}

impl ClusterData {
    pub fn new(credentials: Enrolment, link: watch::Receiver<LinkStatus>) -> Self {
        Self { credentials, link }
    }

    /// Answers at once with `index` 0, else when there is something newer or `wait` is over. The error is a sentence.
    pub async fn look_up(&self, what: &Lookup, index: u64, wait: Duration) -> Result<Found, String> {
        let server = self.server().ok_or("no server is known")?;
        let channel = self.credentials.channel(server).map_err(|error| error.to_string())?;
        let mut client = pb::agents_client::AgentsClient::new(channel);
        let mut request = Request::new(request_of(what, index, wait));
        request.set_timeout(wait + SLACK);
        let reply = client.watch(request).await.map_err(|status| format!("{server}: {}", status.message()))?;
        Ok(found(reply.into_inner()))
    }

    /// The one that holds the session, else any.
    fn server(&self) -> Option<SocketAddr> {
        let link = self.link.borrow();
        link.connected_to.or_else(|| link.servers.first().copied())
    }
}

fn request_of(what: &Lookup, index: u64, wait: Duration) -> pb::WatchRequest {
    let what = match what.clone() {
        Lookup::Key(key) => What::Key(key),
        Lookup::Prefix(prefix) => What::Prefix(prefix),
        Lookup::Variable { path, alloc_id } => {
            What::Variable(pb::VariablePath { path, alloc_id: alloc_id.0.as_bytes().to_vec() })
        }
    };
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    pb::WatchRequest { index, wait_ms, what: Some(what) }
}

fn found(reply: pb::WatchReply) -> Found {
    let entries = reply.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    Found { index: reply.index, entries: reply.found.then_some(entries) }
}
