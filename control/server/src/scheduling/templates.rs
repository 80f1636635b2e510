//! Jobs made from jobs: periodic ones when their time comes, parameterized ones when somebody dispatches them.

use super::calendar::{Calendar, counts_from};
use super::new_eval;
use crate::clock;
use crate::member::Member;
use catalog::Catalog;
use model::{Command, EvalTrigger, Job, JobId, Parameterized, PayloadRule, Timestamp, rules};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How late a launch may be.
const TICK: Duration = Duration::from_millis(500);

/// Launches periodic jobs for as long as this server leads.
pub(crate) async fn launch_in_time(member: Arc<Member>) {
    while member.read_barrier().await.is_err() {}
    let mut calendars = Calendars::default();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for command in calendars.launches(&member.snapshot(), clock::now()) {
            if let Err(error) = member.propose(command).await {
                tracing::warn!(%error, "a periodic job was not launched");
            }
        }
    }
}

/// Calendars of the jobs, read once per version, with the next time of each.
#[derive(Default)]
struct Calendars {
    known: HashMap<JobId, Known>,
}

struct Known {
    job: Arc<Job>,
    calendar: Option<Calendar>,
    counted_from: Timestamp,
    next: Option<Timestamp>,
}

impl Calendars {
    fn launches(&mut self, catalog: &Catalog, now: Timestamp) -> Vec<Command> {
        let jobs: Vec<(&Arc<Job>, Timestamp)> = catalog.periodic_jobs().collect();
        let ids: BTreeSet<&JobId> = jobs.iter().map(|(job, _)| &job.id).collect();
        self.known.retain(|id, _| ids.contains(id));
        jobs.into_iter().filter_map(|(job, launched_for)| self.launch(catalog, job, launched_for, now)).collect()
    }

    fn launch(
        &mut self,
        catalog: &Catalog,
        job: &Arc<Job>,
        launched_for: Timestamp,
        now: Timestamp,
    ) -> Option<Command> {
        let periodic = job.periodic.as_ref().filter(|periodic| periodic.enabled)?;
        let counted_from = counts_from(job, launched_for);
        let known = self
            .known
            .get(&job.id)
            .is_some_and(|known| Arc::ptr_eq(&known.job, job) && known.counted_from == counted_from);
        if !known {
            // What was registered was read before; should it not be readable any more, it does not run.
            let calendar = Calendar::read(periodic).ok();
            let next = calendar.as_ref().and_then(|calendar| calendar.next(counted_from));
            self.known.insert(job.id.clone(), Known { job: Arc::clone(job), calendar, counted_from, next });
        }
        let known = self.known.get(&job.id)?;
        let calendar = known.calendar.as_ref().filter(|_| known.next.is_some_and(|next| next <= now))?;
        let launch = calendar.due(counted_from, now)?;
        let overlaps = periodic.prohibit_overlap && catalog.children(&job.id).any(|child| !catalog.is_over(child));
        Some(periodic_launch(job, launch, overlaps))
    }
}

/// The command for a launch; one that would overlap is only noted.
fn periodic_launch(job: &Job, launch: Timestamp, overlaps: bool) -> Command {
    let child = periodic_child(job, launch);
    let eval = new_eval(child.id.clone(), child.priority, EvalTrigger::PeriodicJob);
    Command::LaunchPeriodic { parent: job.id.clone(), launch, child: (!overlaps).then(|| Box::new(child)), eval }
}

/// A launch at this very moment, whatever the calendar says.
pub(crate) fn forced_launch(job: &Job) -> Command {
    periodic_launch(job, clock::now(), false)
}

fn periodic_child(job: &Job, launch: Timestamp) -> Job {
    let id = format!("{}/periodic-{}", job.id, launch.0 / 1_000_000_000);
    Job { periodic: None, ..child(job, id) }
}

fn child(job: &Job, id: String) -> Job {
    Job {
        name: id.clone(),
        id: JobId(id),
        parent: Some(job.id.clone()),
        version: 0,
        stable: false,
        submitted_at: clock::now(),
        ..job.clone()
    }
}

/// What a dispatch hands over.
pub(crate) struct Dispatch {
    pub payload: Vec<u8>,
    pub meta: BTreeMap<String, String>,
    pub id_prefix: String,
    pub token: String,
}

/// The job that a dispatch makes, or why it makes none.
pub(crate) fn dispatched(job: &Job, dispatch: Dispatch) -> Result<Job, String> {
    let Some(rule) = &job.parameterized else {
        return Err(format!("Specified job {:?} is not a parameterized job", job.id.0));
    };
    if job.stopped {
        return Err(format!("Specified job {:?} is stopped", job.id.0));
    }
    check(rule, &dispatch)?;
    let suffix = format!("{:08x}", clock::random_bits() as u32);
    let prefix = if dispatch.id_prefix.is_empty() { String::new() } else { format!("{}-", dispatch.id_prefix) };
    let id = format!("{}/dispatch-{prefix}{}-{suffix}", job.id, clock::now().0 / 1_000_000_000);
    let mut meta = job.meta.clone();
    meta.extend(dispatch.meta);
    let (payload, dispatch_token) = (dispatch.payload, dispatch.token);
    Ok(Job { parameterized: None, meta, payload, dispatch_token, ..child(job, id) })
}

fn check(rule: &Parameterized, dispatch: &Dispatch) -> Result<(), String> {
    match rule.payload {
        PayloadRule::Required if dispatch.payload.is_empty() => {
            return Err("Payload is not provided but required by parameterized job".to_owned());
        }
        PayloadRule::Forbidden if !dispatch.payload.is_empty() => {
            return Err("Payload provided but forbidden by parameterized job".to_owned());
        }
        _ => {}
    }
    if dispatch.payload.len() > rules::PAYLOAD_BYTES_MAX {
        let (bytes, most) = (dispatch.payload.len(), rules::PAYLOAD_BYTES_MAX);
        return Err(format!("Payload exceeds maximum size; {bytes} > {most}"));
    }
    if !dispatch.id_prefix.is_empty() {
        rules::name(&dispatch.id_prefix).map_err(|reason| format!("id prefix: {reason}"))?;
    }
    let missing: Vec<&str> =
        rule.meta_required.iter().filter(|key| !dispatch.meta.contains_key(*key)).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(format!("Dispatch did not provide required meta keys: {missing:?}"));
    }
    let allowed = |key: &&String| rule.meta_required.contains(*key) || rule.meta_optional.contains(*key);
    let unknown: Vec<&str> = dispatch.meta.keys().filter(|key| !allowed(key)).map(String::as_str).collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(format!("Dispatch request included unpermitted metadata keys: {unknown:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Periodic;

    fn parameterized() -> Job {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let rule = Parameterized {
            payload: PayloadRule::Required,
            meta_required: keys(&["day"]),
            meta_optional: keys(&["who"]),
        };
        let meta = BTreeMap::from([("who".to_owned(), "nobody".to_owned())]);
        Job { parameterized: Some(rule), meta, ..Job::named("etl") }
    }

    fn dispatch(payload: &str, meta: &[(&str, &str)]) -> Result<Job, String> {
        let meta = meta.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (id_prefix, token) = (String::new(), "t".to_owned());
        dispatched(&parameterized(), Dispatch { payload: payload.into(), meta, id_prefix, token })
    }

    #[test]
    fn a_dispatch_is_checked_and_makes_a_job_of_its_own() {
        let child = dispatch("data", &[("day", "monday")]).unwrap();
        assert!(child.id.0.starts_with("etl/dispatch-") && !child.is_template(), "{}", child.id);
        let (_, suffix) = child.id.0.rsplit_once('-').unwrap();
        assert_eq!((suffix.len(), child.parent.unwrap().0.as_str()), (8, "etl"));
        assert_eq!((child.meta["day"].as_str(), child.meta["who"].as_str()), ("monday", "nobody"));
        assert_eq!((child.payload.as_slice(), child.dispatch_token.as_str()), (&b"data"[..], "t"));
        let refused = |payload, meta| dispatch(payload, meta).unwrap_err();
        assert!(refused("", &[("day", "x")]).contains("required"));
        assert!(refused("x", &[]).contains("day"));
        assert!(refused("x", &[("day", "x"), ("color", "red")]).contains("color"));
        assert!(refused(&"x".repeat(17_000), &[("day", "x")]).contains("16384"));
        let plain =
            Dispatch { payload: Vec::new(), meta: BTreeMap::new(), id_prefix: String::new(), token: String::new() };
        assert!(dispatched(&Job::named("web"), plain).unwrap_err().contains("not a parameterized job"));
    }

    #[test]
    fn a_periodic_job_is_launched_for_its_newest_missed_time_unless_it_would_overlap() {
        let crons = vec!["0 * * * *".to_owned()];
        let periodic = |prohibit_overlap| Job {
            periodic: Some(Periodic {
                enabled: true,
                crons: crons.clone(),
                prohibit_overlap,
                time_zone: "UTC".to_owned(),
            }),
            submitted_at: Timestamp::from_secs(3600 * 10),
            ..Job::named("cron")
        };
        let catalog = |job: Job, running: bool| {
            let record = |job: Job| model::JobRecord {
                versions: vec![job],
                purge: false,
                created_at_index: model::Index(1),
                modified_at_index: model::Index(1),
                job_modified_at_index: model::Index(1),
                launched_for: Timestamp::NEVER,
            };
            let child = periodic_child(&job, Timestamp::from_secs(3600 * 9));
            let eval = new_eval(child.id.clone(), 50, EvalTrigger::PeriodicJob);
            let evals = if running { vec![eval] } else { Vec::new() };
            let jobs = vec![record(job), record(child)];
            Catalog::from_image(model::CatalogImage { jobs, evals, ..Default::default() })
        };
        let launched = |overlap, running, secs| {
            let commands =
                Calendars::default().launches(&catalog(periodic(overlap), running), Timestamp::from_secs(secs));
            commands
                .into_iter()
                .map(|command| match command {
                    Command::LaunchPeriodic { launch, child, .. } => {
                        (launch.0 / 3_600_000_000_000, child.map(|child| child.id.0))
                    }
                    other => unreachable!("{other:?}"),
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(launched(false, true, 3600 * 10 + 1), []);
        assert_eq!(launched(false, true, 3600 * 13 + 5), [(13, Some("cron/periodic-46800".to_owned()))]);
        assert_eq!(launched(true, true, 3600 * 13 + 5), [(13, None)]);
        assert_eq!(launched(true, false, 3600 * 13 + 5), [(13, Some("cron/periodic-46800".to_owned()))]);
    }
}
