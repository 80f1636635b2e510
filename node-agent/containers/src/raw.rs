//! Connections that the engine hands over to a container's streams: an HTTP request, and after the answer raw bytes.
//!
//! Without a terminal both streams come in frames of 8 bytes of header (stream, three zeros, 32-bit big-endian length); with
//! one the bytes are as they are. Which of the two it is is told by the caller and not guessed from the bytes, which are the
//! task's to choose; and no more than one buffer is held whatever length a frame names.

use crate::error::EngineError;
use bytes::{Buf, BytesMut};
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const ANSWER_BYTES_MAX: usize = 64 << 10;
const BUFFER: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub from: Output,
    pub bytes: bytes::Bytes,
}

/// The streams of a container or of a command in it.
#[derive(Debug)]
pub struct Frames {
    from: OwnedReadHalf,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Frames {
    /// `None` when the streams have ended.
    pub async fn next(&mut self) -> io::Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.decoder.next(&mut self.buffer)? {
                return Ok(Some(chunk));
            }
            self.buffer.reserve(BUFFER);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Posts to the engine and takes the connection over. The path is our own and needs no escaping.
pub(crate) async fn upgrade(
    socket: &Path,
    action: &'static str,
    path: &str,
    body: &str,
    tty: bool,
) -> Result<(Frames, OwnedWriteHalf), EngineError> {
    let stream = UnixStream::connect(socket).await;
    let mut stream = stream.map_err(|source| EngineError::Unreachable { socket: socket.to_owned(), source })?;
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    let talk = EngineError::io(action);
    stream.write_all(request.as_bytes()).await.map_err(&talk)?;
    let (status, rest) = answer(&mut stream).await.map_err(&talk)?;
    if !matches!(status, 101 | 200) {
        let message = refusal(&mut stream, rest).await;
        return Err(EngineError::Refused { action, status, message });
    }
    let (from, to) = stream.into_split();
    Ok((Frames { from, buffer: rest, decoder: Decoder::new(tty) }, to))
}

/// The status, and what was read beyond the header.
async fn answer(stream: &mut UnixStream) -> io::Result<(u16, BytesMut)> {
    let mut text = BytesMut::with_capacity(4096);
    let end = loop {
        if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if text.len() > ANSWER_BYTES_MAX || stream.read_buf(&mut text).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the engine gave no answer"));
        }
    };
    let head = text.split_to(end);
    let status = head
        .as_ref()
        .split(|byte: &u8| *byte == b' ')
        .nth(1)
        .and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
    status.map(|status| (status, text)).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer"))
}

/// The engine's own words, out of `{"message": ".."}`, whatever surrounds them.
async fn refusal(stream: &mut UnixStream, mut text: BytesMut) -> String {
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), async {
        while text.len() < ANSWER_BYTES_MAX && stream.read_buf(&mut text).await.is_ok_and(|count| count > 0) {
            if text.contains(&b'}') {
                break;
            }
        }
    })
    .await;
    let text = String::from_utf8_lossy(&text);
    let json = text.find('{').and_then(|from| text.rfind('}').map(|to| &text[from..=to]));
    let value = json.and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
    let message = value.as_ref().and_then(|value| value.get("message")?.as_str());
    message.unwrap_or(text.trim()).to_owned()
}

#[derive(Debug)]
enum Decoder {
    Plain,
    Framed { from: Output, left: usize },
}

impl Decoder {
    fn new(tty: bool) -> Self {
        if tty { Self::Plain } else { Self::Framed { from: Output::Stdout, left: 0 } }
    }

    fn next(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Chunk>> {
        match self {
            Self::Plain if buffer.is_empty() => Ok(None),
            Self::Plain => Ok(Some(Chunk { from: Output::Stdout, bytes: buffer.split().freeze() })),
            Self::Framed { from, left } => {
                while *left == 0 {
                    if buffer.len() < 8 {
                        return Ok(None);
                    }
                    *from = stream_of(buffer[0])?;
                    *left = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]) as usize;
                    buffer.advance(8);
                }
                if buffer.is_empty() {
                    return Ok(None);
                }
                let bytes = buffer.split_to(buffer.len().min(*left)).freeze();
                *left -= bytes.len();
                Ok(Some(Chunk { from: *from, bytes }))
            }
        }
    }
}

fn stream_of(number: u8) -> io::Result<Output> {
    match number {
        0 | 1 => Ok(Output::Stdout),
        2 => Ok(Output::Stderr),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the engine sent a frame of stream {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(tty: bool, bytes: &[u8]) -> Vec<(Output, String)> {
        let mut buffer = BytesMut::from(bytes);
        let mut decoder = Decoder::new(tty);
        let next = || decoder.next(&mut buffer).ok().flatten();
        std::iter::from_fn(next).map(|chunk| (chunk.from, String::from_utf8_lossy(&chunk.bytes).into())).collect()
    }

    #[test]
    fn frames_are_taken_apart() {
        let bytes = b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\0";
        assert_eq!(decode(false, bytes), [(Output::Stdout, "out".into()), (Output::Stderr, "err".into())]);
    }

    #[test]
    fn a_frame_comes_as_far_as_it_is_there() {
        assert_eq!(decode(false, b"\x02\0\0\0\xff\xff\xff\xffpart"), [(Output::Stderr, "part".into())]);
        assert_eq!(decode(false, b"\x02\0\0\0"), []);
    }

    #[test]
    fn a_terminals_bytes_are_never_taken_for_frames() {
        let bytes = b"\x01\0\0\0\xff\xff\xff\xff";
        assert_eq!(decode(true, bytes)[0].0, Output::Stdout);
        assert!(Decoder::new(false).next(&mut BytesMut::from(&b"\x09\0\0\0\0\0\0\x01x"[..])).is_err());
    }
}
