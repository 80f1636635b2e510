//! What is asked of one running allocation, through whichever server, and what its node answers.

use crate::convert::{At, ConvertError, Result, ToModel, ToPb, enum_pairs, enumeration, present, to_uuid, uuid};
use crate::pb;
use crate::pb::alloc_request::Action as PbAction;
use model::{AllocId, Health};

/// An answer that is longer is cut off by nobody: the node refuses to give it.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocRequest {
    pub alloc_id: AllocId,
    pub action: AllocAction,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocAction {
    /// Without a task: all that run; `whole` starts over with the prestart tasks.
    Restart { task: Option<String>, whole: bool },
    /// Without a task: all that run.
    Signal { task: Option<String>, signal: String },
    /// Answered with Nomad's JSON of what the tasks use.
    Stats { task: Option<String> },
    /// The directory of an allocation that has ended goes now.
    CollectGarbage,
    /// What a task says of its own ttl check, by check id.
    SetCheck { check: String, health: Health, output: String },
}

/// The body of the answer, often empty.
pub type AllocAnswer = std::result::Result<Vec<u8>, AllocRefusal>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocRefusal {
    pub kind: RefusalKind,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// No such allocation, task or check.
    NotFound,
    /// It cannot be done as things are.
    BadRequest,
    /// It was tried and failed.
    Failed,
}

/// A program to run inside a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    pub alloc_id: AllocId,
    pub task: Option<String>,
    pub argv: Vec<String>,
    pub tty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    Stdin(Vec<u8>),
    CloseStdin,
    Resize {
        width: u32,
        height: u32,
    },
    /// Nobody waits for it any more: it is ended.
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exited(i32),
    /// It did not start, or what became of it is not known.
    Failed(AllocRefusal),
}

impl AllocRefusal {
    pub fn not_found(reason: impl Into<String>) -> Self {
        Self { kind: RefusalKind::NotFound, reason: reason.into() }
    }

    pub fn bad_request(reason: impl Into<String>) -> Self {
        Self { kind: RefusalKind::BadRequest, reason: reason.into() }
    }

    pub fn failed(reason: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Failed, reason: reason.into() }
    }
}

enum_pairs!(RefusalKind, pb::RefusalKind, NotFound, BadRequest, Failed);

impl From<&AllocRequest> for pb::AllocRequest {
    fn from(request: &AllocRequest) -> Self {
        let action = match request.action.clone() {
            AllocAction::Restart { task, whole } => PbAction::Restart(pb::AllocRestart { task, whole }),
            AllocAction::Signal { task, signal } => PbAction::Signal(pb::AllocSignal { task, signal }),
            AllocAction::Stats { task } => PbAction::Stats(pb::AllocStats { task }),
            AllocAction::CollectGarbage => PbAction::CollectGarbage(pb::AllocCollectGarbage {}),
            AllocAction::SetCheck { check, health, output } => {
                PbAction::SetCheck(pb::AllocSetCheck { check, health: health.to_pb().into(), output })
            }
        };
        Self { alloc_id: to_uuid(request.alloc_id.0), action: Some(action) }
    }
}

impl TryFrom<pb::AllocRequest> for AllocRequest {
    type Error = ConvertError;

    fn try_from(request: pb::AllocRequest) -> Result<Self> {
        let action = match present(request.action, "action")? {
            PbAction::Restart(pb::AllocRestart { task, whole }) => AllocAction::Restart { task, whole },
            PbAction::Signal(pb::AllocSignal { task, signal }) => AllocAction::Signal { task, signal },
            PbAction::Stats(pb::AllocStats { task }) => AllocAction::Stats { task },
            PbAction::CollectGarbage(_) => AllocAction::CollectGarbage,
            PbAction::SetCheck(pb::AllocSetCheck { check, health, output }) => {
                let health = enumeration::<pb::Health, _>(health, "health").at("set_check")?;
                AllocAction::SetCheck { check, health, output }
            }
        };
        Ok(Self { alloc_id: uuid(&request.alloc_id, "alloc_id")?, action })
    }
}

impl ToPb<pb::AllocRefusal> for AllocRefusal {
    fn to_pb(&self) -> pb::AllocRefusal {
        pb::AllocRefusal { kind: self.kind.to_pb().into(), reason: self.reason.clone() }
    }
}

impl ToModel<AllocRefusal> for pb::AllocRefusal {
    fn to_model(self) -> Result<AllocRefusal> {
        Ok(AllocRefusal { kind: enumeration::<pb::RefusalKind, _>(self.kind, "kind")?, reason: self.reason })
    }
}

/// Into protobuf and back, as functions because the answer is a plain `Result`.
pub fn answer_to_pb(answer: &AllocAnswer) -> pb::AllocAnswer {
    match answer {
        Ok(body) => pb::AllocAnswer { body: body.clone(), refusal: None },
        Err(refusal) => pb::AllocAnswer { body: Vec::new(), refusal: Some(refusal.to_pb()) },
    }
}

pub fn answer_from_pb(answer: pb::AllocAnswer) -> Result<AllocAnswer> {
    match answer.refusal {
        Some(refusal) => Ok(Err(refusal.to_model().at("refusal")?)),
        None => Ok(Ok(answer.body)),
    }
}

impl From<&ExecRequest> for pb::ExecRequest {
    fn from(request: &ExecRequest) -> Self {
        let ExecRequest { alloc_id, task, argv, tty } = request.clone();
        Self { alloc_id: to_uuid(alloc_id.0), task, argv, tty }
    }
}

impl TryFrom<pb::ExecRequest> for ExecRequest {
    type Error = ConvertError;

    fn try_from(request: pb::ExecRequest) -> Result<Self> {
        let pb::ExecRequest { alloc_id, task, argv, tty } = request;
        Ok(Self { alloc_id: uuid(&alloc_id, "alloc_id")?, task, argv, tty })
    }
}

impl From<ExecInput> for pb::ExecInput {
    fn from(input: ExecInput) -> Self {
        use pb::exec_input::Input;
        let input = match input {
            ExecInput::Stdin(data) => Input::Stdin(data),
            ExecInput::CloseStdin => Input::CloseStdin(pb::ExecCloseStdin {}),
            ExecInput::Resize { width, height } => Input::Resize(pb::ExecResize { width, height }),
            ExecInput::Cancel => Input::Cancel(pb::ExecCancel {}),
        };
        Self { input: Some(input) }
    }
}

impl TryFrom<pb::ExecInput> for ExecInput {
    type Error = ConvertError;

    fn try_from(input: pb::ExecInput) -> Result<Self> {
        use pb::exec_input::Input;
        Ok(match present(input.input, "input")? {
            Input::Stdin(data) => ExecInput::Stdin(data),
            Input::CloseStdin(_) => ExecInput::CloseStdin,
            Input::Resize(pb::ExecResize { width, height }) => ExecInput::Resize { width, height },
            Input::Cancel(_) => ExecInput::Cancel,
        })
    }
}

impl From<ExecOutput> for pb::ExecOutput {
    fn from(output: ExecOutput) -> Self {
        use pb::exec_output::Output;
        let output = match output {
            ExecOutput::Stdout(data) => Output::Stdout(data),
            ExecOutput::Stderr(data) => Output::Stderr(data),
            ExecOutput::Exited(code) => Output::Exited(code),
            ExecOutput::Failed(refusal) => Output::Failed(refusal.to_pb()),
        };
        Self { output: Some(output) }
    }
}

impl TryFrom<pb::ExecOutput> for ExecOutput {
    type Error = ConvertError;

    fn try_from(output: pb::ExecOutput) -> Result<Self> {
        use pb::exec_output::Output;
        Ok(match present(output.output, "output")? {
            Output::Stdout(data) => ExecOutput::Stdout(data),
            Output::Stderr(data) => ExecOutput::Stderr(data),
            Output::Exited(code) => ExecOutput::Exited(code),
            Output::Failed(refusal) => ExecOutput::Failed(refusal.to_model().at("failed")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_answers_and_streams_survive_the_wire() {
        let alloc_id = AllocId::from_random(7);
        let task = Some("web".to_owned());
        for action in [
            AllocAction::Restart { task: task.clone(), whole: true },
            AllocAction::Signal { task: None, signal: "SIGHUP".to_owned() },
            AllocAction::Stats { task: task.clone() },
            AllocAction::CollectGarbage,
            AllocAction::SetCheck { check: "web/a".to_owned(), health: Health::Warning, output: "slow".to_owned() },
        ] {
            let request = AllocRequest { alloc_id, action };
            assert_eq!(AllocRequest::try_from(pb::AllocRequest::from(&request)), Ok(request));
        }
        for answer in [Ok(b"{}".to_vec()), Err(AllocRefusal::not_found("gone"))] {
            assert_eq!(answer_from_pb(answer_to_pb(&answer)), Ok(answer));
        }
        let exec = ExecRequest { alloc_id, task, argv: vec!["ls".to_owned()], tty: true };
        assert_eq!(ExecRequest::try_from(pb::ExecRequest::from(&exec)), Ok(exec));
        let resize = ExecInput::Resize { width: 80, height: 24 };
        for input in [ExecInput::Stdin(vec![1]), ExecInput::CloseStdin, resize, ExecInput::Cancel] {
            assert_eq!(ExecInput::try_from(pb::ExecInput::from(input.clone())), Ok(input));
        }
        let failed = ExecOutput::Failed(AllocRefusal::failed("no"));
        for output in [ExecOutput::Stdout(vec![1]), ExecOutput::Stderr(vec![]), ExecOutput::Exited(3), failed] {
            assert_eq!(ExecOutput::try_from(pb::ExecOutput::from(output.clone())), Ok(output));
        }
    }

    #[test]
    fn nothing_asked_is_an_error_with_its_place() {
        let empty = pb::AllocRequest { alloc_id: vec![0; 16], action: None };
        assert_eq!(AllocRequest::try_from(empty).unwrap_err().path, "action");
    }
}
