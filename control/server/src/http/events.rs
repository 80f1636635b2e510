//! `GET /v1/event/stream`: one line of JSON for what each command changed, `{}` when nothing happens for a while, and a
//! line with an error, then the end, for a reader that cannot keep up.

use super::answer::HttpError;
use crate::events::{Batch, Reader};
use crate::member::Member;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::Response;
use catalog::{Change, Row};
use futures::{Stream, stream};
use model::{Allocation, Instance, Job, Node};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use wire::nomad;

const HEARTBEAT: Duration = Duration::from_secs(10);
const TOPICS: [&str; 6] = ["Job", "Evaluation", "Allocation", "Node", "Service", "Deployment"];

pub(super) async fn stream_events(
    State(member): State<Arc<Member>>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, HttpError> {
    let request = Request::read(&pairs)?;
    let reader = member.events.read_from(request.index);
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(lines(member, reader, request.filter)));
    response.map_err(|error| HttpError::internal(error.to_string()))
}

struct Request {
    index: u64,
    filter: Filter,
}

impl Request {
    fn read(pairs: &[(String, String)]) -> Result<Self, HttpError> {
        let mut request = Self { index: 0, filter: Filter::default() };
        for (name, value) in pairs {
            match (name.as_str(), value.as_str()) {
                ("topic", value) => request.filter.topics.push(topic(value)?),
                ("index", "") | ("region" | "namespace", "" | "default" | "global" | "*") => {}
                ("index", value) => {
                    request.index =
                        value.parse().map_err(|_| HttpError::bad_request(format!("Invalid index `{value}`")))?;
                }
                (name, value) => {
                    return Err(HttpError::bad_request(format!(
                        "`{name}={value}` is not known here; give topic=TOPIC or topic=TOPIC:KEY, and index"
                    )));
                }
            }
        }
        Ok(request)
    }
}

/// Topic and key; `*` is any.
fn topic(text: &str) -> Result<(String, String), HttpError> {
    let (topic, key) = text.split_once(':').unwrap_or((text, "*"));
    match topic == "*" || TOPICS.contains(&topic) {
        true => Ok((topic.to_owned(), key.to_owned())),
        false => Err(HttpError::bad_request(format!(
            "topic `{topic}` is not known or not built yet; there are {}",
            TOPICS.join(", ")
        ))),
    }
}

/// No topic asks for all.
#[derive(Default)]
struct Filter {
    topics: Vec<(String, String)>,
}

impl Filter {
    fn admits(&self, event: &Event) -> bool {
        let fits = |(topic, key): &(String, String)| {
            (topic == "*" || topic == event.topic)
                && (key == "*" || *key == event.key || event.filter_keys.contains(key))
        };
        self.topics.is_empty() || self.topics.iter().any(fits)
    }
}

fn lines(
    member: Arc<Member>,
    reader: Reader,
    filter: Filter,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    let stop = member.stop.clone();
    stream::unfold(Some((reader, filter, stop)), |state| async move {
        let (mut reader, filter, stop) = state?;
        loop {
            let next = tokio::select! {
                next = timeout(HEARTBEAT, reader.next()) => next,
                () = crate::rpc::until(stop.clone()) => return None,
            };
            match next {
                Ok(Ok(batch)) => {
                    if let Some(value) = render(&batch, &filter) {
                        return Some((Ok(line(&value)), Some((reader, filter, stop))));
                    }
                }
                Ok(Err(overtaken)) => return Some((Ok(line(&json!({ "Error": overtaken.to_string() }))), None)),
                Err(_) => return Some((Ok(line(&json!({}))), Some((reader, filter, stop)))),
            }
        }
    })
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

fn render(batch: &Batch, filter: &Filter) -> Option<Value> {
    let events: Vec<Value> = batch
        .changes
        .iter()
        .flat_map(events_of)
        .filter(|event| filter.admits(event))
        .map(|event| event.to_json(batch.index))
        .collect();
    (!events.is_empty()).then(|| json!({ "Index": batch.index, "Events": events }))
}

struct Event {
    topic: &'static str,
    kind: &'static str,
    key: String,
    filter_keys: Vec<String>,
    payload: Value,
}

impl Event {
    fn to_json(&self, index: u64) -> Value {
        json!({
            "Topic": self.topic,
            "Type": self.kind,
            "Key": self.key,
            "Namespace": "default",
            "FilterKeys": self.filter_keys,
            "Index": index,
            "Payload": self.payload,
        })
    }
}

fn events_of(change: &Change) -> Vec<Event> {
    match change {
        Change::Job(row) => one(row, |job| job_event(row, job)),
        Change::Evaluation(row) => one(row, |eval| Event {
            topic: "Evaluation",
            kind: "EvaluationUpdated",
            key: eval.id.to_string(),
            filter_keys: vec![eval.job_id.0.clone()],
            payload: json!({ "Evaluation": nomad::Evaluation::from(eval.as_ref()) }),
        }),
        Change::Deployment(row) => one(row, |deployment| Event {
            topic: "Deployment",
            kind: "DeploymentStatusUpdate",
            key: deployment.id.to_string(),
            filter_keys: vec![deployment.job_id.0.clone()],
            payload: json!({ "Deployment": nomad::Deployment::from(deployment.as_ref()) }),
        }),
        Change::Allocation(row) => one(row, |alloc| Event {
            topic: "Allocation",
            kind: alloc_kind(row),
            key: alloc.id.to_string(),
            filter_keys: vec![alloc.job_id().0.clone()],
            payload: json!({ "Allocation": nomad::AllocationListStub::from(alloc.as_ref()) }),
        }),
        Change::Node(row) => one(row, |node| Event {
            topic: "Node",
            kind: node_kind(row),
            key: node.id.to_string(),
            filter_keys: Vec::new(),
            payload: json!({ "Node": nomad::Node::from(node.as_ref()) }),
        }),
        Change::Instances(row) => service_events(row),
    }
}

fn one<T>(row: &Row<Arc<T>>, event: impl Fn(&Arc<T>) -> Event) -> Vec<Event> {
    row.after.as_ref().or(row.before.as_ref()).map(event).into_iter().collect()
}

fn job_event(row: &Row<Arc<Job>>, job: &Arc<Job>) -> Event {
    let gone = row.after.is_none() || job.stopped;
    Event {
        topic: "Job",
        kind: if gone { "JobDeregistered" } else { "JobRegistered" },
        key: job.id.0.clone(),
        filter_keys: Vec::new(),
        payload: json!({ "Job": nomad::Job::from(job.as_ref()) }),
    }
}

fn alloc_kind(row: &Row<Arc<Allocation>>) -> &'static str {
    match (&row.before, &row.after) {
        (None, _) => "PlanResult",
        (Some(before), Some(after)) if before.desired != after.desired => "AllocationUpdateDesiredStatus",
        _ => "AllocationUpdated",
    }
}

fn node_kind(row: &Row<Arc<Node>>) -> &'static str {
    match (&row.before, &row.after) {
        (Some(_), None) => "NodeDeregistration",
        (Some(before), Some(after)) if before.epoch == after.epoch && before.eligibility != after.eligibility => {
            "NodeEligibility"
        }
        (Some(before), Some(after)) if before.epoch == after.epoch => "NodeEvent",
        _ => "NodeRegistration",
    }
}

/// An instance that changed is registered anew; one of which only the index moved did not change.
fn service_events(row: &Row<Arc<[Instance]>>) -> Vec<Event> {
    let of = |side: &Option<Arc<[Instance]>>| side.as_deref().unwrap_or_default().to_vec();
    let (before, after) = (of(&row.before), of(&row.after));
    let same = |a: &Instance, b: &Instance| *a == Instance { modified_at_index: a.modified_at_index, ..b.clone() };
    let id = |instance: &Instance| nomad::ServiceRegistration::from(instance).id;
    let gone = before.iter().filter(|old| !after.iter().any(|new| id(new) == id(old)));
    let fresh = after.iter().filter(|new| !before.iter().any(|old| same(old, new)));
    gone.map(|instance| service_event("ServiceDeregistration", instance))
        .chain(fresh.map(|instance| service_event("ServiceRegistration", instance)))
        .collect()
}

fn service_event(kind: &'static str, instance: &Instance) -> Event {
    let registration = nomad::ServiceRegistration::from(instance);
    Event {
        topic: "Service",
        kind,
        key: registration.id.clone(),
        filter_keys: vec![instance.job_id.0.clone(), instance.service.clone()],
        payload: json!({ "Service": registration }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Request, HttpError> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Request::read(&pairs)
    }

    #[test]
    fn topics_choose_by_kind_key_and_what_belongs_to_it() {
        let event = Event {
            topic: "Allocation",
            kind: "PlanResult",
            key: "a1".to_owned(),
            filter_keys: vec!["web".to_owned()],
            payload: Value::Null,
        };
        let admits = |topics: &[&str]| {
            let pairs: Vec<_> = topics.iter().map(|topic| ("topic", *topic)).collect();
            read(&pairs).unwrap().filter.admits(&event)
        };
        for topics in [&[][..], &["*"], &["Allocation"], &["Allocation:*"], &["Allocation:a1"], &["Allocation:web"]] {
            assert!(admits(topics), "{topics:?}");
        }
        assert!(admits(&["Job", "Allocation:web"]));
        for topics in [&["Job"][..], &["Allocation:a2"], &["Job:web", "Node"]] {
            assert!(!admits(topics), "{topics:?}");
        }
        for wrong in [&[("topic", "Jobs")][..], &[("index", "-1")], &[("namespace", "prod")], &[("filter", "x")]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(read(&[("index", "7"), ("namespace", "*")]).unwrap().index, 7);
    }
}
