//! What the agent and a supervisor say to each other: frames of a 32-bit big-endian length and JSON over a unix socket.
//!
//! The first request of a connection is `Hello`; the answer carries the supervisor's version, and an agent refuses a
//! supervisor whose version it does not speak. A supervisor may be older than the agent by as many upgrades as the task is.

use crate::exec::ExecRequest;
use crate::state::{ExitStatus, State};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

pub const VERSION: u32 = 1;

/// Larger frames are refused before any memory is taken; the largest honest one is a task's environment.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

pub(crate) const SOCKET: &str = "sock";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Hello {
        version: u32,
    },
    Status,
    /// Answers once the task runs or has failed to start.
    AwaitStart,
    Signal {
        signal: String,
    },
    /// The signal at once, SIGKILL to everything in the cgroup after the timeout. Answered when it is under way.
    Kill {
        signal: String,
        timeout_ms: u64,
    },
    /// Answers with `Exited`, or with `StillRunning` after half a minute so that the supervisor notices a vanished agent.
    Wait,
    /// The exit status was taken notice of: the supervisor exits. Refused while the task runs.
    Forget,
    /// A further command inside the running task. After `Done` the connection carries its streams.
    Exec(ExecRequest),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Hello { version: u32 },
    Status(State),
    Done,
    StillRunning,
    Exited(ExitStatus),
    Refused { reason: String },
}

pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too large"))?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(crate) fn frame_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    match length <= FRAME_BYTES_MAX {
        true => Ok(length),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too large"))),
    }
}

pub(crate) fn write_frame<T: Serialize>(mut to: impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// `UnexpectedEof` when the other side has closed.
pub(crate) fn read_frame<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; frame_length(header)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

/// A path for the socket that fits sockaddr_un however deep the directory lies; valid while the file is held.
pub(crate) fn socket_path(control: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(control)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET);
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_a_round_trip() {
        let request = Request::Kill { signal: "SIGTERM".into(), timeout_ms: 5 };
        let bytes = encode(&request).expect("encodes");
        assert_eq!(read_frame::<Request>(&bytes[..]).expect("decodes"), request);
    }

    #[test]
    fn hostile_frames_are_errors() {
        assert_eq!(read_frame::<Request>(&[][..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_frame::<Request>(&[0, 0, 0, 9, b'x'][..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_frame::<Request>(&[0xff; 64][..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_frame::<Request>(&b"\0\0\0\x04nope"[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
