//! A task's output, as Nomad's `client/fs/logs` streams it.

use super::answer::{Answer, HttpError};
use super::options::Options;
use super::state::find_alloc;
use crate::logs::{Chunk, LogError, LogReader};
use crate::member::Member;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use model::Allocation;
use serde_json::json;
use std::io;
use std::sync::Arc;
use wire::session::{LogKind, LogRange};

/// The most that `origin=end` looks back.
const TAIL_BYTES_MAX: u64 = 16 * 1024 * 1024;

pub(super) async fn read(State(member): State<Arc<Member>>, Path(id): Path<String>, options: Options) -> Answer {
    let catalog = options.settle(&member, &[]).await?;
    let mut range = range_of(find_alloc(&catalog, &id)?, &options)?;
    let held = match options.get("origin") {
        Some("end") => Some(tail(&member, &mut range).await?),
        None | Some("start") => None,
        Some(other) => return Err(HttpError::bad_request(format!("origin: `{other}` is neither start nor end"))),
    };
    let reader = match held.is_some() && !range.follow {
        true => None,
        false => Some(member.read_logs(range.clone()).await?),
    };
    let plain = options.is_true("plain");
    let frames = Frames { file: file_of(&range), offset: range.offset, plain };
    Ok(respond(frames, held, reader))
}

fn range_of(alloc: &Allocation, options: &Options) -> Result<LogRange, HttpError> {
    let kind = match options.get("type").unwrap_or("stdout") {
        "stdout" => LogKind::Stdout,
        "stderr" => LogKind::Stderr,
        other => return Err(HttpError::bad_request(format!("type: `{other}` is neither stdout nor stderr"))),
    };
    let task = task_of(alloc, options.get("task"))?;
    let offset = match options.get("offset") {
        Some(text) => text.parse().map_err(|_| HttpError::bad_request(format!("offset: `{text}` is no number")))?,
        None => 0,
    };
    Ok(LogRange { alloc_id: alloc.id, task, kind, offset, limit: 0, follow: options.is_true("follow") })
}

fn task_of(alloc: &Allocation, asked: Option<&str>) -> Result<String, HttpError> {
    let tasks = alloc.task_group().map(|group| group.tasks.as_slice()).unwrap_or_default();
    match (asked, tasks) {
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err(HttpError::bad_request("task: the group has several tasks, name one")),
        (Some(name), tasks) if tasks.iter().any(|task| task.name == name) => Ok(name.to_owned()),
        (Some(name), _) => Err(HttpError::not_found(format!("task `{name}` is not in group `{}`", alloc.group))),
    }
}

/// Reads to the end, keeps the last `offset` bytes and moves the range behind them.
async fn tail(member: &Member, range: &mut LogRange) -> Result<Chunk, HttpError> {
    let keep = range.offset.min(TAIL_BYTES_MAX);
    let whole = LogRange { offset: 0, follow: false, ..range.clone() };
    let mut reader = member.read_logs(whole).await?;
    let (mut kept, mut length) = (Vec::new(), 0u64);
    while let Some(chunk) = reader.next().await {
        if let Some(error) = chunk.error {
            return Err(HttpError::internal(error));
        }
        length += chunk.data.len() as u64;
        kept.extend_from_slice(&chunk.data);
        let surplus = kept.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        kept.drain(..surplus);
        if chunk.eof {
            range.offset = length;
            return Ok(Chunk { data: kept, eof: !range.follow, error: None });
        }
    }
    Err(cut_off())
}

fn cut_off() -> HttpError {
    HttpError::internal("the node's agent stopped answering before the end of the output; try again")
}

fn file_of(range: &LogRange) -> String {
    format!("alloc/logs/{}.{}.0", range.task, range.kind.as_str())
}

/// How bytes are written: as they are, or as Nomad's JSON frames.
struct Frames {
    file: String,
    offset: u64,
    plain: bool,
}

impl Frames {
    fn write(&mut self, data: Vec<u8>) -> Bytes {
        if self.plain || data.is_empty() {
            return Bytes::from(data);
        }
        self.offset += data.len() as u64;
        let frame = json!({ "Data": STANDARD.encode(&data), "File": self.file, "Offset": self.offset });
        Bytes::from(frame.to_string())
    }
}

fn respond(frames: Frames, held: Option<Chunk>, reader: Option<LogReader>) -> Response {
    let content_type = if frames.plain { "text/plain; charset=utf-8" } else { "application/json" };
    let body = stream::unfold((frames, held, reader, false), |(mut frames, held, mut reader, over)| async move {
        if over {
            return None;
        }
        let chunk = match (held, &mut reader) {
            (Some(chunk), _) => Some(chunk),
            (None, Some(reader)) => reader.next().await,
            (None, None) => return None,
        };
        // An error breaks the connection off, so that nobody takes the part for the whole.
        let (item, over) = match chunk {
            Some(Chunk { error: Some(error), .. }) => (Err(io::Error::other(error)), true),
            Some(Chunk { data, eof, .. }) => (Ok(frames.write(data)), eof),
            None => (Err(io::Error::other("cut off")), true),
        };
        Some((item, (frames, None, reader, over)))
    });
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}

impl From<LogError> for HttpError {
    fn from(error: LogError) -> Self {
        let text = error.to_string();
        match error {
            LogError::UnknownAlloc(_) => Self::not_found("alloc not found"),
            LogError::NoSession(_) => Self::new(StatusCode::NOT_FOUND, text),
            LogError::NoLeader | LogError::Leader(_) => Self::internal(text),
        }
    }
}
