//! Further commands inside a running task: the streams between whoever asked, the supervisor, and the command.
//!
//! After the supervisor's `Done` the connection carries packets instead of requests: a 32-bit big-endian length, a kind, and
//! as many bytes as the length says. Whoever asked hangs up to end the command.

use crate::handle::{HandleError, TaskHandle};
use crate::protocol::Request;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Larger packets are refused before any memory is taken.
const PACKET_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Found as the task's own command is.
    pub argv: Vec<String>,
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Over the task's own.
    pub env: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    Stdin(Vec<u8>),
    CloseStdin,
    Resize {
        width: u16,
        height: u16,
    },
    /// Such as `SIGTERM`, to the command.
    Signal(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// 128 and the signal's number for a signal; 126 and 127, as shells have it, when it cannot be executed. Nothing follows.
    Exited(i32),
}

/// A command that runs inside a task. Dropping both halves ends it.
#[derive(Debug)]
pub struct ExecStreams {
    sender: ExecSender,
    receiver: ExecReceiver,
}

#[derive(Debug)]
pub struct ExecSender(OwnedWriteHalf);

#[derive(Debug)]
pub struct ExecReceiver(OwnedReadHalf);

impl TaskHandle {
    /// Starts a command inside the running task.
    pub async fn exec(&self, wanted: &ExecRequest) -> Result<ExecStreams, HandleError> {
        let stream = self.hand_over(&Request::Exec(wanted.clone())).await?;
        let (from, to) = stream.into_split();
        Ok(ExecStreams { sender: ExecSender(to), receiver: ExecReceiver(from) })
    }
}

impl ExecStreams {
    pub fn split(self) -> (ExecSender, ExecReceiver) {
        (self.sender, self.receiver)
    }
}

impl ExecSender {
    pub async fn send(&mut self, input: ExecInput) -> io::Result<()> {
        self.0.write_all(&encode(&Packet::from(input))?).await
    }
}

impl ExecReceiver {
    /// `None` when the supervisor went away before it could say how the command ended.
    pub async fn next(&mut self) -> Option<ExecOutput> {
        let mut header = [0; 5];
        self.0.read_exact(&mut header).await.ok()?;
        let mut packet = Packet { kind: header[4], bytes: vec![0; length(header).ok()?] };
        self.0.read_exact(&mut packet.bytes).await.ok()?;
        packet.output().ok()
    }
}

/// What goes over the connection in either direction.
struct Packet {
    kind: u8,
    bytes: Vec<u8>,
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const CLOSE_STDIN: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const EXITED: u8 = 6;

impl From<ExecInput> for Packet {
    fn from(input: ExecInput) -> Self {
        match input {
            ExecInput::Stdin(bytes) => Self { kind: STDIN, bytes },
            ExecInput::CloseStdin => Self { kind: CLOSE_STDIN, bytes: Vec::new() },
            ExecInput::Resize { width, height } => {
                Self { kind: RESIZE, bytes: [width.to_be_bytes(), height.to_be_bytes()].concat() }
            }
            ExecInput::Signal(name) => Self { kind: SIGNAL, bytes: name.into_bytes() },
        }
    }
}

impl From<ExecOutput> for Packet {
    fn from(output: ExecOutput) -> Self {
        match output {
            ExecOutput::Stdout(bytes) => Self { kind: STDOUT, bytes },
            ExecOutput::Stderr(bytes) => Self { kind: STDERR, bytes },
            ExecOutput::Exited(code) => Self { kind: EXITED, bytes: code.to_be_bytes().to_vec() },
        }
    }
}

impl Packet {
    fn input(self) -> io::Result<ExecInput> {
        match (self.kind, self.bytes.as_slice()) {
            (STDIN, _) => Ok(ExecInput::Stdin(self.bytes)),
            (CLOSE_STDIN, _) => Ok(ExecInput::CloseStdin),
            (RESIZE, &[a, b, c, d]) => {
                Ok(ExecInput::Resize { width: u16::from_be_bytes([a, b]), height: u16::from_be_bytes([c, d]) })
            }
            (SIGNAL, name) => Ok(ExecInput::Signal(String::from_utf8_lossy(name).into_owned())),
            _ => Err(unknown(self.kind)),
        }
    }

    fn output(self) -> io::Result<ExecOutput> {
        match (self.kind, self.bytes.as_slice()) {
            (STDOUT, _) => Ok(ExecOutput::Stdout(self.bytes)),
            (STDERR, _) => Ok(ExecOutput::Stderr(self.bytes)),
            (EXITED, &[a, b, c, d]) => Ok(ExecOutput::Exited(i32::from_be_bytes([a, b, c, d]))),
            _ => Err(unknown(self.kind)),
        }
    }
}

pub(crate) fn read_input(mut from: impl Read) -> io::Result<ExecInput> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let mut packet = Packet { kind: header[4], bytes: vec![0; length(header)?] };
    from.read_exact(&mut packet.bytes)?;
    packet.input()
}

pub(crate) fn write_output(mut to: impl Write, output: ExecOutput) -> io::Result<()> {
    to.write_all(&encode(&Packet::from(output))?)
}

fn encode(packet: &Packet) -> io::Result<Vec<u8>> {
    let length = u32::try_from(packet.bytes.len()).ok().filter(|_| packet.bytes.len() <= PACKET_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more than 1 MiB at once"))?;
    Ok([&length.to_be_bytes()[..], &[packet.kind], &packet.bytes].concat())
}

fn length([a, b, c, d, _]: [u8; 5]) -> io::Result<usize> {
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, format!("a packet of {length} bytes is too large"));
    (length <= PACKET_BYTES_MAX).then_some(length).ok_or_else(too_large)
}

fn unknown(kind: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a packet of unknown kind {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_a_round_trip() {
        for input in [
            ExecInput::Stdin(b"x\0y".to_vec()),
            ExecInput::CloseStdin,
            ExecInput::Resize { width: 300, height: 2 },
            ExecInput::Signal("SIGHUP".into()),
        ] {
            let bytes = encode(&Packet::from(input.clone())).expect("encodes");
            assert_eq!(read_input(&bytes[..]).expect("decodes"), input);
        }
    }

    #[test]
    fn hostile_packets_are_errors() {
        for bytes in [&b"\0\0\0\x01\x09x"[..], b"\0\0\0\x01\x04x", b"\xff\xff\xff\xff\0", b"\0\0"] {
            assert!(read_input(bytes).is_err(), "{bytes:?}");
        }
    }
}
