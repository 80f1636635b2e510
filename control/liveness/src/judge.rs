//! The leader's part: what links and probes together say of each node.
//!
//! A lost link alone makes a node suspect, for its agent may be down while the node forwards and serves. Probes that its peers
//! get no answer to make it disconnected: off every map. If it stays so, and its agent is silent as well, it is down, and its
//! work is replaced; unless so many are lost at once that the fault is rather ours than theirs.

use crate::prober::Report;
use crate::ring::Ring;
use model::{Epoch, NodeId, NodeStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Fewer lost nodes are no storm, whatever their share.
const STORM_NODES_MIN: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// From the loss of the link of a node that answers probes until it is suspect: an agent that restarts is back sooner.
    pub suspect_after: Duration,
    /// From an election: agents take this long to find the new leader.
    pub settle_for: Duration,
    /// From the loss of the link until a node that nobody probes is down.
    pub down_after: Duration,
    /// From disconnected to down.
    pub disconnected_for: Duration,
    /// More lost at once than this share of all nodes is a storm.
    pub storm_share: f64,
    /// Whether every server knows of [`NodeStatus::Disconnected`]; else only time makes a node down.
    pub knows_disconnected: bool,
    /// How long a storm holds replacement.
    pub storm_hold: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            suspect_after: Duration::from_secs(1),
            settle_for: Duration::from_secs(5),
            down_after: Duration::from_secs(30),
            disconnected_for: Duration::from_millis(2500),
            storm_share: 0.35,
            knows_disconnected: true,
            storm_hold: Duration::from_secs(60),
        }
    }
}

/// The stream between a node's agent and whichever server holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    Live,
    /// There, but nothing came for longer than heartbeats allow.
    Silent,
}

/// What is known of a node at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub id: NodeId,
    pub epoch: Epoch,
    /// As it is in the catalog.
    pub status: NodeStatus,
    /// As the catalog has it.
    pub reason: String,
    /// `None`: no server has a session of this epoch.
    pub link: Option<LinkState>,
    /// What it says of its own targets.
    pub report: Option<Report>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub id: NodeId,
    pub epoch: Epoch,
    pub status: NodeStatus,
    pub reason: String,
}

/// Replacement is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storm {
    pub lost: usize,
    pub nodes: usize,
    pub ends_at: Duration,
}

/// One leader's view; a new leader starts with a new one.
#[derive(Clone, Debug)]
pub struct Judge {
    rules: Rules,
    started: Duration,
    ring: Ring,
    members: BTreeMap<NodeId, NodeStatus>,
    /// Since when a node of this epoch has had no link, and since when it is disconnected.
    gone_since: BTreeMap<(NodeId, Epoch), Duration>,
    disconnected_since: BTreeMap<(NodeId, Epoch), Duration>,
    storm_since: Option<Duration>,
}

/// What a node's probers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Evidence {
    asked: usize,
    unanswered: usize,
    /// Probers that have never had an answer: theirs may be a new task, or the node may not know probes.
    strangers: usize,
}

impl Judge {
    pub fn new(rules: Rules, now: Duration) -> Judge {
        Judge {
            rules,
            started: now,
            ring: Ring::default(),
            members: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            disconnected_since: BTreeMap::new(),
            storm_since: None,
        }
    }

    /// The cluster has come to know of [`NodeStatus::Disconnected`].
    pub fn learn_disconnected(&mut self, knows: bool) {
        self.rules.knows_disconnected = knows;
    }

    /// What is to be changed in the catalog.
    pub fn judge(&mut self, now: Duration, nodes: &[Seen]) -> Vec<Verdict> {
        self.follow_members(nodes);
        self.follow_links(now, nodes);
        let reports: BTreeMap<NodeId, &Report> = nodes.iter().filter_map(trusted_report).collect();
        let evidence: Vec<Evidence> = nodes.iter().map(|node| self.evidence(node.id, &reports)).collect();
        self.follow_storm(now, nodes, &evidence);
        let unreachable = nodes.iter().zip(&evidence).filter(|(node, found)| is_cut_off_alone(node, found)).count();
        let blames_probes = self.is_large(unreachable, self.members.len());
        let mut verdicts = Vec::new();
        for (node, found) in nodes.iter().zip(&evidence) {
            let (status, reason) = self.verdict(now, node, *found, blames_probes);
            if status != node.status || (reason != node.reason && status != NodeStatus::Down) {
                verdicts.push(Verdict { id: node.id, epoch: node.epoch, status, reason });
            }
        }
        verdicts
    }

    /// What holds replacement at the moment.
    pub fn storm(&self, now: Duration) -> Option<Storm> {
        let ends_at = self.storm_since? + self.rules.storm_hold;
        let lost = self.disconnected_since.len();
        (now < ends_at).then_some(Storm { lost, nodes: self.members.len(), ends_at })
    }

    fn follow_members(&mut self, nodes: &[Seen]) {
        let is_member = |node: &&Seen| !matches!(node.status, NodeStatus::Down | NodeStatus::Initializing);
        let members: BTreeMap<NodeId, NodeStatus> =
            nodes.iter().filter(is_member).map(|node| (node.id, node.status)).collect();
        if members != self.members {
            self.ring = Ring::new(members.iter().map(|(id, status)| (*id, *status)));
            self.members = members;
        }
    }

    fn follow_links(&mut self, now: Duration, nodes: &[Seen]) {
        let gone = |node: &&Seen| node.link.is_none() && node.status != NodeStatus::Down;
        follow(&mut self.gone_since, now, nodes.iter().filter(gone));
        let disconnected = |node: &&Seen| node.status == NodeStatus::Disconnected;
        follow(&mut self.disconnected_since, now, nodes.iter().filter(disconnected));
    }

    fn evidence(&self, node: NodeId, reports: &BTreeMap<NodeId, &Report>) -> Evidence {
        let probers = self.ring.probers(node);
        let told = probers.iter().filter_map(|prober| reports.get(prober));
        let said: Vec<Option<bool>> = told.map(|report| opinion(report, node)).collect();
        let count = |opinion: Option<bool>| said.iter().filter(|said| **said == opinion).count();
        let (answered, unanswered, strangers) = (count(Some(true)), count(Some(false)), count(None));
        Evidence { asked: answered + unanswered, unanswered, strangers }
    }

    /// A storm begins when a large share is lost, and ends when it is not large any more.
    fn follow_storm(&mut self, now: Duration, nodes: &[Seen], evidence: &[Evidence]) {
        let is_lost = |(node, found): &(&Seen, &Evidence)| {
            // Sessions fall silent one after the other; what peers say of all of them comes first.
            let member = self.members.contains_key(&node.id);
            let settling = now.saturating_sub(self.started) < self.rules.settle_for;
            let unvouched = node.link != Some(LinkState::Live) && found.asked == 0 && !settling;
            member
                && (unvouched
                    || found.says_gone()
                    || node.status == NodeStatus::Disconnected
                    || self.is_overdue(now, node))
        };
        let lost = nodes.iter().zip(evidence).filter(is_lost).count();
        let large = self.is_large(lost, self.members.len());
        self.storm_since = large.then(|| self.storm_since.unwrap_or(now));
    }

    /// Gone for so long, and probed by nobody, that only time speaks: as after an election that most agents cannot reach.
    fn is_overdue(&self, now: Duration, node: &Seen) -> bool {
        self.gone_for(now, node).is_some_and(|gone| gone >= self.rules.down_after)
    }

    fn is_large(&self, part: usize, of: usize) -> bool {
        part >= STORM_NODES_MIN && part as f64 > self.rules.storm_share * of as f64
    }

    fn gone_for(&self, now: Duration, node: &Seen) -> Option<Duration> {
        self.gone_since.get(&(node.id, node.epoch)).map(|since| now.saturating_sub(*since))
    }

    fn verdict(&self, now: Duration, node: &Seen, found: Evidence, blames_probes: bool) -> (NodeStatus, String) {
        let stays = || (node.status, node.reason.clone());
        if matches!(node.status, NodeStatus::Down) {
            return stays();
        }
        match node.link {
            Some(LinkState::Live)
                if is_cut_off_alone(node, &found) && !blames_probes && self.rules.knows_disconnected =>
            {
                match node.status == NodeStatus::Disconnected && node.reason.starts_with(SPEAKS) {
                    true => stays(),
                    false => (NodeStatus::Disconnected, format!("{SPEAKS}, but {found}")),
                }
            }
            Some(LinkState::Live) if node.status == NodeStatus::Initializing => stays(),
            Some(LinkState::Live) => (NodeStatus::Ready, String::new()),
            _ if found.says_gone() => self.unanswered(now, node, found),
            Some(LinkState::Silent) if node.status == NodeStatus::Disconnected && found.asked > 0 => {
                (NodeStatus::Suspect, "its agent is late; its peers get answers".to_owned())
            }
            Some(LinkState::Silent) => stays(),
            None if found.asked == 0 && found.strangers > 0 && self.is_long_gone(now, node) => {
                self.unanswered(now, node, found)
            }
            None => self.without_link(now, node, found),
        }
    }

    /// Long enough for what cannot be told from a node that never knew probes.
    fn is_long_gone(&self, now: Duration, node: &Seen) -> bool {
        self.gone_for(now, node).is_some_and(|gone| gone >= self.rules.settle_for)
    }

    /// Neither agent nor kernel speaks.
    fn unanswered(&self, now: Duration, node: &Seen, found: Evidence) -> (NodeStatus, String) {
        if !self.rules.knows_disconnected {
            let overdue = self.is_overdue(now, node) && self.storm(now).is_none();
            let status = if overdue { NodeStatus::Down } else { NodeStatus::Suspect };
            return (status, String::new());
        }
        let since = self.disconnected_since.get(&(node.id, node.epoch));
        let waited = since.is_some_and(|since| now.saturating_sub(*since) >= self.rules.disconnected_for)
            && (found.asked > 0 || self.is_overdue(now, node));
        let mut reason = match node.status {
            // The words of the first verdict stay: the numbers behind them change as peers go and come.
            NodeStatus::Disconnected if node.reason.starts_with(SILENT) => untold(&node.reason).to_owned(),
            _ => format!("{SILENT} and {found}"),
        };
        match self.storm(now) {
            Some(storm) => {
                let hold = self.rules.storm_hold.as_secs();
                let told = node.reason.split_once(HELD).map(|(_, told)| told.to_owned());
                let news = || format!("{hold} s: {} of {} nodes were lost at once", storm.lost.max(1), storm.nodes);
                let _ = write!(reason, "{HELD}{}", told.unwrap_or_else(news));
                (NodeStatus::Disconnected, reason)
            }
            None if waited => (NodeStatus::Down, reason),
            None => (NodeStatus::Disconnected, reason),
        }
    }

    fn without_link(&self, now: Duration, node: &Seen, found: Evidence) -> (NodeStatus, String) {
        let stays = (node.status, node.reason.clone());
        let Some(gone) = self.gone_for(now, node) else { return stays };
        let settling = now.saturating_sub(self.started) < self.rules.settle_for;
        let patience = match found.asked {
            // Nobody can say whether it answers: an agent that finds its way back slowly must not count for lost.
            0 => self.rules.settle_for.min(self.rules.down_after / 2),
            _ if settling => self.rules.settle_for,
            _ => self.rules.suspect_after,
        };
        match node.status {
            _ if found.asked == 0 && gone >= self.rules.down_after => self.unanswered(now, node, found),
            NodeStatus::Ready if gone >= patience => (NodeStatus::Suspect, "its agent has no session".to_owned()),
            NodeStatus::Disconnected if found.asked > 0 => {
                (NodeStatus::Suspect, "its agent has no session; its peers get answers again".to_owned())
            }
            _ => stays,
        }
    }
}

const SPEAKS: &str = "its agent speaks";
const SILENT: &str = "its agent is silent";
const HELD: &str = "; replacement is held for ";

fn untold(reason: &str) -> &str {
    reason.split_once(HELD).map_or(reason, |(before, _)| before)
}

/// A prober that is cut off itself reports the world as gone; its word counts only while its own link is live.
fn trusted_report(node: &Seen) -> Option<(NodeId, &Report)> {
    let report = node.report.as_ref().filter(|_| node.link == Some(LinkState::Live))?;
    Some((node.id, report))
}

fn opinion(report: &Report, node: NodeId) -> Option<bool> {
    match (report.answering.contains(&node), report.unreachable.contains(&node)) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

/// Most peers, and more than one, get no answer while the session seems to live: either nothing was heard of it yet that
/// should have been, or the way for its peers' packets alone is broken.
fn is_cut_off_alone(node: &Seen, found: &Evidence) -> bool {
    node.link == Some(LinkState::Live) && found.unanswered >= 2 && found.says_gone()
}

fn follow<'a>(since: &mut BTreeMap<(NodeId, Epoch), Duration>, now: Duration, nodes: impl Iterator<Item = &'a Seen>) {
    let keys: BTreeSet<(NodeId, Epoch)> = nodes.map(|node| (node.id, node.epoch)).collect();
    since.retain(|key, _| keys.contains(key));
    for key in keys {
        since.entry(key).or_insert(now);
    }
}

impl Evidence {
    /// Most of those who can tell get no answer.
    fn says_gone(self) -> bool {
        self.unanswered * 2 > self.asked
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.asked, self.strangers) {
            (0, 0) => f.write_str("no peer can tell whether it answers"),
            (0, strangers) => write!(f, "none of {strangers} peers that began to probe it has had an answer"),
            (asked, _) => write!(f, "{} of {asked} peers that probe it get no answer", self.unanswered),
        }
    }
}
