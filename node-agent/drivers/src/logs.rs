//! A task's output in files `<task>.stdout.0`, `.1`, … as Nomad names them: a full file is followed by the next number, and
//! the lowest numbers go.

use crate::spec::LogLimits;
use nix::libc::O_NOFOLLOW;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

pub struct Rotator {
    dir: PathBuf,
    /// `<task>.stdout`
    name: String,
    limits: LogLimits,
    index: u64,
    file: File,
    written: u64,
}

impl Rotator {
    /// Goes on in the newest file there is.
    pub fn open(dir: &Path, name: &str, limits: LogLimits) -> io::Result<Self> {
        let index = indices(dir, name)?.into_iter().max().unwrap_or(0);
        let file = open(dir, name, index)?;
        let written = file.metadata()?.len();
        Ok(Self { dir: dir.to_owned(), name: name.to_owned(), limits, index, file, written })
    }

    /// Whole lines stay together only where they fit; a file never exceeds its size.
    pub fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if self.written >= self.limits.file_bytes_max {
                self.rotate()?;
            }
            let room = usize::try_from(self.limits.file_bytes_max - self.written).unwrap_or(usize::MAX);
            let (now, later) = data.split_at(room.min(data.len()));
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let next = self.index + 1;
        self.file = open(&self.dir, &self.name, next)?;
        (self.index, self.written) = (next, self.file.metadata()?.len());
        let keep = u64::from(self.limits.files_max.max(1));
        for old in indices(&self.dir, &self.name)?.into_iter().filter(|index| index + keep <= next) {
            fs::remove_file(self.dir.join(format!("{}.{old}", self.name)))?;
        }
        Ok(())
    }
}

/// Copies until every writer has closed the pipe. A full disk costs log lines, never the task's progress.
pub fn pump(mut from: impl Read + Send + 'static, mut to: Rotator) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        let mut losing = false;
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                return;
            }
            let failed = to.write(&buffer[..count]).err();
            if let Some(error) = failed.as_ref().filter(|_| !losing) {
                eprintln!("{}: output is being lost: {error}; make room on the disk", to.name);
            }
            losing = failed.is_some();
        }
    })
}

fn open(dir: &Path, name: &str, index: u64) -> io::Result<File> {
    let path = dir.join(format!("{name}.{index}"));
    OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(O_NOFOLLOW).open(path)
}

fn indices(dir: &Path, name: &str) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        let rest = file.to_str().and_then(|file| file.strip_prefix(name)).and_then(|rest| rest.strip_prefix('.'));
        found.extend(rest.and_then(|index| index.parse::<u64>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LogLimits = LogLimits { files_max: 2, file_bytes_max: 4 };

    fn contents(dir: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .expect("lists")
            .map(|entry| entry.expect("entry"))
            .map(|entry| {
                (entry.file_name().into_string().expect("utf-8"), fs::read_to_string(entry.path()).expect("reads"))
            })
            .collect();
        all.sort();
        all
    }

    fn file(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn full_files_are_followed_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = Rotator::open(dir.path(), "t.stdout", LIMITS).expect("opens");
        log.write(b"abcdefghij").expect("writes");
        assert_eq!(contents(dir.path()), [file("t.stdout.1", "efgh"), file("t.stdout.2", "ij")]);
    }

    #[test]
    fn a_restart_goes_on_in_the_newest_file() {
        let dir = tempfile::tempdir().expect("dir");
        Rotator::open(dir.path(), "t.stdout", LIMITS).and_then(|mut log| log.write(b"abcde")).expect("writes");
        fs::write(dir.path().join("t.stdout.x"), "").expect("writes");
        Rotator::open(dir.path(), "t.stdout", LIMITS).and_then(|mut log| log.write(b"f")).expect("writes");
        let expect = [file("t.stdout.0", "abcd"), file("t.stdout.1", "ef"), file("t.stdout.x", "")];
        assert_eq!(contents(dir.path()), expect);
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("dir");
        std::os::unix::fs::symlink("/dev/null", dir.path().join("t.stdout.0")).expect("links");
        assert!(Rotator::open(dir.path(), "t.stdout", LIMITS).is_err());
    }
}
