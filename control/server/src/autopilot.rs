//! The leader looks after the servers: who is healthy, which learner may vote, and which dead server is removed. What is
//! decided is decided here as values; [`crate::house`] does it.

use consensus::PeerState;
use model::Autopilot;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Raft's tick.
const TICK_MS: u64 = 50;
/// With fewer voters the cluster only begins, and waiting would leave it without a spare.
const VOTERS_SOON: usize = 3;

/// How one server is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ServerHealth {
    pub id: u64,
    pub is_voter: bool,
    pub is_leader: bool,
    pub is_healthy: bool,
    /// Entries that it lacks.
    pub behind: u64,
    /// `None`: not heard of since this server leads.
    pub last_contact_ms: Option<u64>,
    pub stable_ms: u64,
}

/// What is to be done about the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Care {
    pub promote: Vec<u64>,
    pub remove: Option<u64>,
}

/// Since when each server has been healthy, and since when it has been silent; of one leadership.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caretaker {
    healthy_since: BTreeMap<u64, Duration>,
    silent_since: BTreeMap<u64, Duration>,
}

impl Caretaker {
    pub fn look(
        &mut self,
        now: Duration,
        own: u64,
        peers: &[PeerState],
        settings: &Autopilot,
    ) -> (Vec<ServerHealth>, Care) {
        let last = peers.iter().find(|peer| peer.id == own).map_or(0, |peer| peer.matched);
        for peer in peers {
            let healthy = is_healthy(peer, own, last, settings);
            keep(&mut self.healthy_since, peer.id, now, healthy);
            keep(&mut self.silent_since, peer.id, now, !peer.is_active && peer.id != own);
        }
        let known = |id: &u64, _: &mut Duration| peers.iter().any(|peer| peer.id == *id);
        self.healthy_since.retain(known);
        self.silent_since.retain(known);
        let health = peers.iter().map(|peer| self.health(now, own, last, peer)).collect();
        (health, Care { promote: self.promotions(now, peers, settings), remove: self.removal(now, peers, settings) })
    }

    fn health(&self, now: Duration, own: u64, last: u64, peer: &PeerState) -> ServerHealth {
        let stable = self.healthy_since.get(&peer.id).map(|since| now.saturating_sub(*since));
        ServerHealth {
            id: peer.id,
            is_voter: peer.is_voter,
            is_leader: peer.id == own,
            is_healthy: stable.is_some(),
            behind: last.saturating_sub(peer.matched),
            last_contact_ms: peer.silent_ticks.map(|ticks| ticks * TICK_MS),
            stable_ms: stable.map_or(0, |stable| u64::try_from(stable.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn promotions(&self, now: Duration, peers: &[PeerState], settings: &Autopilot) -> Vec<u64> {
        let voters = peers.iter().filter(|peer| peer.is_voter).count();
        let patience = Duration::from_millis(if voters < VOTERS_SOON { 0 } else { settings.stabilization_ms });
        let stable = |peer: &&PeerState| {
            let since = self.healthy_since.get(&peer.id);
            // In a cluster that only begins, whoever answers may vote as soon as it has the log.
            (voters < VOTERS_SOON && peer.is_active)
                || since.is_some_and(|since| now.saturating_sub(*since) >= patience)
        };
        peers.iter().filter(|peer| !peer.is_voter).filter(stable).map(|peer| peer.id).collect()
    }

    /// One at a time, and only if the voters that are left are mostly alive.
    fn removal(&self, now: Duration, peers: &[PeerState], settings: &Autopilot) -> Option<u64> {
        let patience = Duration::from_millis(settings.dead_server_after_ms);
        let is_dead = |peer: &&PeerState| {
            self.silent_since.get(&peer.id).is_some_and(|since| now.saturating_sub(*since) >= patience)
        };
        let dead = peers.iter().filter(|_| settings.cleanup_dead_servers).find(is_dead)?;
        let left: Vec<&PeerState> = peers.iter().filter(|peer| peer.is_voter && peer.id != dead.id).collect();
        let alive = left.iter().filter(|peer| peer.is_active || !self.silent_since.contains_key(&peer.id)).count();
        let enough = alive > left.len() / 2 && (!dead.is_voter || left.len() >= settings.quorum_min as usize);
        enough.then_some(dead.id)
    }
}

fn keep(since: &mut BTreeMap<u64, Duration>, id: u64, now: Duration, holds: bool) {
    if holds {
        since.entry(id).or_insert(now);
    } else {
        since.remove(&id);
    }
}

fn is_healthy(peer: &PeerState, own: u64, last: u64, settings: &Autopilot) -> bool {
    let heard = peer.silent_ticks.is_some_and(|ticks| ticks * TICK_MS <= settings.last_contact_ms_max);
    peer.id == own || (heard && last.saturating_sub(peer.matched) <= settings.trailing_logs_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64, is_voter: bool, silent: u64) -> PeerState {
        PeerState { id, is_voter, matched: 100, is_active: silent < 20, silent_ticks: Some(silent) }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_learner_votes_once_it_was_healthy_for_a_while() {
        let (mut caretaker, settings) = (Caretaker::default(), Autopilot::default());
        let voters = [peer(1, true, 0), peer(2, true, 2), peer(3, true, 2)];
        let mut look = |at, learner: PeerState| {
            let peers = [&voters[..], &[learner]].concat();
            caretaker.look(secs(at), 1, &peers, &settings).1.promote
        };
        assert!(look(0, peer(4, false, 2)).is_empty());
        assert!(look(9, peer(4, false, 2)).is_empty());
        assert!(look(10, peer(4, false, 9)).is_empty(), "late: it begins anew");
        assert!(look(11, peer(4, false, 2)).is_empty());
        assert!(look(20, peer(4, false, 2)).is_empty());
        assert_eq!(look(21, peer(4, false, 2)), [4]);
    }

    #[test]
    fn a_cluster_that_begins_does_not_wait() {
        let peers = [peer(1, true, 0), peer(2, false, 2)];
        assert_eq!(Caretaker::default().look(secs(0), 1, &peers, &Autopilot::default()).1.promote, [2]);
    }

    #[test]
    fn the_dead_are_removed_if_the_rest_can_agree() {
        let settings = Autopilot { dead_server_after_ms: 3000, ..Autopilot::default() };
        let removed = |peers: &[PeerState], settings: &Autopilot| {
            let mut caretaker = Caretaker::default();
            caretaker.look(secs(0), 1, peers, settings);
            assert_eq!(caretaker.look(secs(2), 1, peers, settings).1.remove, None);
            caretaker.look(secs(3), 1, peers, settings).1.remove
        };
        let three = [peer(1, true, 0), peer(2, true, 2), peer(3, true, 99)];
        assert_eq!(removed(&three, &settings), Some(3));
        assert_eq!(removed(&three, &Autopilot { cleanup_dead_servers: false, ..settings.clone() }), None);
        assert_eq!(removed(&three, &Autopilot { quorum_min: 3, ..settings.clone() }), None);
        let two_of_three = [peer(1, true, 0), peer(2, true, 99), peer(3, true, 99)];
        assert_eq!(removed(&two_of_three, &settings), None, "one of two that are left is no majority");
        let five = [peer(1, true, 0), peer(2, true, 2), peer(3, true, 2), peer(4, true, 99), peer(5, true, 99)];
        assert_eq!(removed(&five, &settings), Some(4));
    }
}
