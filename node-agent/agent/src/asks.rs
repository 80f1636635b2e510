//! What servers ask of this node's allocations in the course of one session, and programs that run inside tasks for it.

use crate::allocs::Allocs;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wire::actions::{AllocRefusal, AllocRequest, ExecOutput, ExecRequest};
use wire::pb;
use wire::session::AgentMessage;

/// Ends with the session, and what it runs with it.
pub struct SessionAsks {
    allocs: Allocs,
    outbound: mpsc::Sender<pb::AgentMessage>,
    work: JoinSet<()>,
}

impl SessionAsks {
    pub fn new(allocs: Allocs, outbound: mpsc::Sender<pb::AgentMessage>) -> Self {
        Self { allocs, outbound, work: JoinSet::new() }
    }

    pub fn ask(&mut self, request_id: u64, request: AllocRequest) {
        self.collect();
        let (allocs, outbound) = (self.allocs.clone(), self.outbound.clone());
        self.work.spawn(async move {
            let answer = allocs.ask(request).await;
            let _ = outbound.send(AgentMessage::Answer { request_id, answer }.into()).await;
        });
    }

    pub fn exec(&mut self, request_id: u64, request: ExecRequest) {
        self.collect();
        let outbound = self.outbound.clone();
        self.work.spawn(async move {
            let reason = format!("allocation {}: programs inside tasks are not built yet", request.alloc_id);
            let output = ExecOutput::Failed(AllocRefusal::bad_request(reason));
            let _ = outbound.send(AgentMessage::ExecOutput { request_id, output }.into()).await;
        });
    }

    fn collect(&mut self) {
        while self.work.try_join_next().is_some() {}
    }
}
