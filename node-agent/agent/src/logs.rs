//! Task output for whoever asks through the session: reads `alloc/logs/<task>.<stream>.<number>` in order, from an offset,
//! up to a limit, and on as it grows.
//!
//! A reader holds one chunk at a time and waits for the session's queue, so a slow asker costs no memory.

use crate::datadir::DataDir;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use wire::pb;
use wire::session::{AgentMessage, LogRange};

const CHUNK_BYTES: usize = 32 * 1024;
const READERS_MAX: usize = 64;
/// How soon a follower sees new output.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct LogReader {
    data: DataDir,
}

/// The readers of one session; they end with it.
pub struct SessionLogs {
    data: DataDir,
    outbound: mpsc::Sender<pb::AgentMessage>,
    readers: BTreeMap<u64, JoinHandle<()>>,
}

impl LogReader {
    pub fn new(data: DataDir) -> Self {
        Self { data }
    }

    pub fn for_session(&self, outbound: mpsc::Sender<pb::AgentMessage>) -> SessionLogs {
        SessionLogs { data: self.data.clone(), outbound, readers: BTreeMap::new() }
    }
}

impl SessionLogs {
    pub fn open(&mut self, request_id: u64, range: LogRange) {
        self.readers.retain(|_, reader| !reader.is_finished());
        let (outbound, dir) = (self.outbound.clone(), self.data.logs(range.alloc_id));
        let room = self.readers.len() < READERS_MAX;
        let reader = tokio::spawn(async move {
            let served = match room {
                true => serve(request_id, &dir, &range, &outbound).await,
                false => Err(format!("this node already serves {READERS_MAX} logs; try again when some are closed")),
            };
            let last = AgentMessage::LogChunk { request_id, data: Vec::new(), eof: true, error: served.err() };
            let _ = outbound.send(last.into()).await;
        });
        if let Some(replaced) = self.readers.insert(request_id, reader) {
            replaced.abort();
        }
    }

    pub fn cancel(&mut self, request_id: u64) {
        if let Some(reader) = self.readers.remove(&request_id) {
            reader.abort();
        }
    }
}

impl Drop for SessionLogs {
    fn drop(&mut self) {
        self.readers.values().for_each(JoinHandle::abort);
    }
}

async fn serve(id: u64, dir: &Path, range: &LogRange, outbound: &mpsc::Sender<pb::AgentMessage>) -> Result<(), String> {
    let mut cursor = Cursor::open(dir, range).map_err(|error| format!("the log cannot be read: {error}"))?;
    // No limit is written as 0.
    let mut left = if range.limit == 0 { u64::MAX } else { range.limit };
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let (back, read) = tokio::task::spawn_blocking(move || {
            let read = cursor.read(most);
            (cursor, read)
        })
        .await
        .map_err(|error| error.to_string())?;
        cursor = back;
        let data = read.map_err(|error| format!("the log cannot be read: {error}"))?;
        match (data.is_empty(), range.follow) {
            (true, false) => return Ok(()),
            (true, true) => sleep(FOLLOW_EVERY).await,
            (false, _) => {
                left -= data.len() as u64;
                let chunk = AgentMessage::LogChunk { request_id: id, data, eof: false, error: None };
                outbound.send(chunk.into()).await.map_err(|_| "the session ended".to_owned())?;
            }
        }
    }
    Ok(())
}

/// A place in a task's output, over the borders of its files.
struct Cursor {
    dir: PathBuf,
    /// `<task>.<stream>.`
    prefix: String,
    file: Option<(u64, File)>,
}

impl Cursor {
    /// At the range's offset, counted from the oldest byte that is kept.
    fn open(dir: &Path, range: &LogRange) -> io::Result<Self> {
        if range.task.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a task's name holds no `/`"));
        }
        let prefix = format!("{}.{}.", range.task, range.kind.as_str());
        let mut cursor = Self { dir: dir.to_owned(), prefix, file: None };
        let numbers = cursor.numbers()?;
        if numbers.is_empty() && !range.follow {
            return Err(io::Error::new(io::ErrorKind::NotFound, "this task has written no such output here"));
        }
        cursor.seek(&numbers, range.offset)?;
        Ok(cursor)
    }

    fn seek(&mut self, numbers: &[u64], mut offset: u64) -> io::Result<()> {
        for number in numbers {
            let Some(mut file) = self.open_file(*number)? else { continue };
            let length = file.metadata()?.len();
            let is_last = numbers.last() == Some(number);
            if offset < length || is_last {
                file.seek(SeekFrom::Start(offset.min(length)))?;
                self.file = Some((*number, file));
                return Ok(());
            }
            offset -= length;
        }
        Ok(())
    }

    /// At most `most` bytes; none when there are no more for now.
    fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        loop {
            // Looked up before reading: what the old file got before the new one appeared is then not missed.
            let next = self.next_number()?;
            let mut data = vec![0; most];
            let count = match &mut self.file {
                Some((_, file)) => file.read(&mut data)?,
                None => 0,
            };
            if count > 0 {
                data.truncate(count);
                return Ok(data);
            }
            match next {
                Some(number) => self.file = self.open_file(number)?.map(|file| (number, file)),
                None => return Ok(Vec::new()),
            }
        }
    }

    fn next_number(&self) -> io::Result<Option<u64>> {
        let here = self.file.as_ref().map(|(number, _)| *number);
        Ok(self.numbers()?.into_iter().find(|number| here.is_none_or(|here| *number > here)))
    }

    /// Of the files there are, ascending; none while the directory does not exist.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let number = |name: &str| name.strip_prefix(&self.prefix)?.parse().ok();
        let mut numbers: Vec<u64> =
            entries.flatten().filter_map(|entry| number(&entry.file_name().to_string_lossy())).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// `None` when rotation was faster. A link or a pipe is not what a supervisor wrote.
    fn open_file(&self, number: u64) -> io::Result<Option<File>> {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let path = self.dir.join(format!("{}{number}", self.prefix));
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a plain file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::AllocId;
    use std::io::Write;
    use wire::session::LogKind;

    struct Bench {
        _dir: tempfile::TempDir,
        logs: PathBuf,
        session: SessionLogs,
        inbox: mpsc::Receiver<pb::AgentMessage>,
    }

    fn id() -> AllocId {
        AllocId::from_random(1)
    }

    fn range(task: &str, offset: u64, limit: u64, follow: bool) -> LogRange {
        LogRange { alloc_id: id(), task: task.to_owned(), kind: LogKind::Stdout, offset, limit, follow }
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let data = DataDir::open(&dir.path().join("data")).unwrap();
            let logs = data.logs(id());
            fs::create_dir_all(&logs).unwrap();
            let (outbound, inbox) = mpsc::channel(4);
            Self { _dir: dir, logs, session: LogReader::new(data).for_session(outbound), inbox }
        }

        fn write(&self, number: u64, text: &str) {
            let path = self.logs.join(format!("server.stdout.{number}"));
            OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
        }

        async fn next(&mut self) -> (String, bool, Option<String>) {
            let message = self.inbox.recv().await.unwrap().try_into().unwrap();
            let AgentMessage::LogChunk { request_id: 7, data, eof, error } = message else { panic!("{message:?}") };
            (String::from_utf8(data).unwrap(), eof, error)
        }

        async fn read(&mut self, range: LogRange) -> Result<String, String> {
            self.session.open(7, range);
            let mut all = String::new();
            loop {
                match self.next().await {
                    (_, true, Some(error)) => return Err(error),
                    (text, true, None) => return Ok(all + &text),
                    (text, false, _) => all += &text,
                }
            }
        }
    }

    #[tokio::test]
    async fn offset_and_limit_cross_the_borders_of_files() {
        let mut bench = Bench::new();
        for (number, text) in [(3, "abc"), (4, "def"), (11, "ghi")] {
            bench.write(number, text);
        }
        fs::write(bench.logs.join("server.stdout.x"), "no").unwrap();
        fs::write(bench.logs.join("server.stderr.0"), "no").unwrap();
        assert_eq!(bench.read(range("server", 0, 0, false)).await.unwrap(), "abcdefghi");
        assert_eq!(bench.read(range("server", 2, 5, false)).await.unwrap(), "cdefg");
        assert_eq!(bench.read(range("server", 9, 0, false)).await.unwrap(), "");
        assert_eq!(bench.read(range("server", 1 << 60, 0, false)).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_follower_sees_growth_and_rotation_until_cancelled() {
        let mut bench = Bench::new();
        bench.write(0, "one");
        bench.session.open(7, range("server", 0, 0, true));
        assert_eq!(bench.next().await.0, "one");
        bench.write(0, "two");
        assert_eq!(bench.next().await.0, "two");
        bench.write(1, "three");
        assert_eq!(bench.next().await.0, "three");
        bench.session.cancel(7);
        bench.write(1, "four");
        assert!(tokio::time::timeout(FOLLOW_EVERY * 3, bench.inbox.recv()).await.is_err());
    }

    #[tokio::test]
    async fn nothing_outside_the_logs_can_be_read() {
        let mut bench = Bench::new();
        std::os::unix::fs::symlink("/etc/passwd", bench.logs.join("link.stdout.0")).unwrap();
        for task in ["../../secrets/x", "/etc/passwd", "link", "nosuch"] {
            let refused = bench.read(range(task, 0, 0, false)).await;
            assert!(refused.is_err(), "{task}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_large_log_comes_in_bounded_chunks() {
        let mut bench = Bench::new();
        bench.write(0, &"x".repeat(CHUNK_BYTES * 3 + 5));
        bench.session.open(7, range("server", 0, 0, false));
        let mut sizes = Vec::new();
        loop {
            let (text, eof, _) = bench.next().await;
            if eof {
                break;
            }
            sizes.push(text.len());
        }
        assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 5]);
    }
}
