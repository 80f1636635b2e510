//! Forgetting what has ended: looked for from time to time on the leader, at once when somebody asks.

use crate::clock;
use crate::member::{Member, ProposeError};
use model::{Command, Garbage, Retention};
use std::sync::Arc;
use std::time::Duration;

/// Nomad's interval.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// Rows of each kind that one command forgets.
const ROWS_MAX: usize = 4096;

/// For as long as this server leads.
pub(crate) async fn collect_in_time(member: Arc<Member>) {
    loop {
        tokio::time::sleep(EVERY).await;
        match collect(&member, Retention::DEFAULT).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "forgot what has ended"),
            Err(error) => tracing::warn!(%error, "could not forget what has ended"),
        }
    }
}

/// How many rows went, on whichever server this is asked.
pub(crate) async fn collect(member: &Member, retention: Retention) -> Result<usize, ProposeError> {
    let mut rows = 0;
    loop {
        let garbage = look(member, retention).await;
        if garbage.is_empty() {
            return Ok(rows);
        }
        rows += garbage.len();
        let index = member.propose(Command::CollectGarbage(Box::new(garbage))).await?.index;
        // A follower's own state may lag behind the leader that it asked.
        let mut catalog = member.catalog.clone();
        let caught_up = catalog.wait_for(|catalog| catalog.index() >= index);
        if tokio::time::timeout(Duration::from_secs(5), caught_up).await.is_err() {
            return Ok(rows);
        }
    }
}

/// Every row is looked at, which takes its time.
async fn look(member: &Member, retention: Retention) -> Garbage {
    let (catalog, now) = (member.snapshot(), clock::now());
    let found = tokio::task::spawn_blocking(move || catalog.garbage(now, retention, ROWS_MAX)).await;
    found.unwrap_or_else(|_| Garbage::none(retention))
}
