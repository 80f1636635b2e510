//! What can go wrong with an engine, in words for whoever reads an allocation's events.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "the container engine at {socket} cannot be reached; start it, or name its socket in the agent's configuration"
    )]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The engine's own words.
    #[error("the container engine refused to {action}: {message}")]
    Refused { action: &'static str, status: u16, message: String },
    #[error("cannot {action}")]
    Talk {
        action: &'static str,
        #[source]
        source: Box<bollard::errors::Error>,
    },
    #[error("image {image}: {problem}")]
    Image { image: String, problem: String },
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the sandbox of the allocation {problem}")]
    Sandbox { problem: String },
    #[error("{0}")]
    Broken(String),
}

impl EngineError {
    /// Whether nobody is there to ask, rather than somebody who says no.
    pub fn is_absence(&self) -> bool {
        match self {
            EngineError::Unreachable { .. } => true,
            EngineError::Talk { source, .. } => !matches!(**source, bollard::errors::Error::JsonDataError { .. }),
            EngineError::Io { source, .. } => {
                use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
                matches!(source.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
            }
            _ => false,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            EngineError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn from_engine(action: &'static str) -> impl Fn(bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        move |error| match error {
            Error::DockerResponseServerError { status_code, message } => {
                Self::Refused { action, status: status_code, message }
            }
            Error::DockerStreamError { error } => Self::Refused { action, status: 500, message: error },
            source => Self::Talk { action, source: Box::new(source) },
        }
    }

    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
