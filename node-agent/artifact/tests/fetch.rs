//! Artifacts from a server on loopback, into a directory that stands for a task's.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test, with helpers outside of its test functions")]

use artifact::{ArtifactError, Placed, Policy, Request, fetch};
use model::{Artifact, ArtifactMode};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

struct Bench {
    dir: tempfile::TempDir,
    address: String,
    policy: Policy,
}

/// Answers by path until the test's process ends; `/hop<n>` sends on, `/secret` wants a header, `/slow` stays silent.
fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = address.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (files, own) = (files.clone(), own.clone());
            std::thread::spawn(move || answer(stream, &files, &own));
        }
    });
    address
}

fn answer(mut stream: std::net::TcpStream, files: &BTreeMap<String, Vec<u8>>, own: &str) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0) {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
    let hop = path.strip_prefix("/hop").and_then(|number| number.parse::<u32>().ok());
    let reply = match (hop, files.get(&path)) {
        (Some(0), _) => {
            format!("HTTP/1.1 302 Found\r\nLocation: http://{own}/app\r\nContent-Length: 0\r\n\r\n").into_bytes()
        }
        (Some(left), _) => {
            format!("HTTP/1.1 302 Found\r\nLocation: /hop{}\r\nContent-Length: 0\r\n\r\n", left - 1).into_bytes()
        }
        (None, _) if path == "/secret" && !head.contains("x-token: t") => {
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec()
        }
        (None, _) if path == "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec(),
        (None, Some(body)) => {
            let mut reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            reply.extend_from_slice(body);
            reply
        }
        (None, None) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    };
    let _ = stream.write_all(&reply);
}

impl Bench {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("task/local")).unwrap();
        let address = serve(files.iter().map(|(path, body)| ((*path).to_owned(), body.clone())).collect());
        Self { dir, address, policy: Policy::default() }
    }

    fn artifact(&self, path: &str) -> Artifact {
        let source = if path.contains("://") { path.to_owned() } else { format!("http://{}{path}", self.address) };
        Artifact {
            source,
            destination: "local/".to_owned(),
            mode: ArtifactMode::Any,
            options: BTreeMap::new(),
            headers: BTreeMap::new(),
            insecure: false,
            chown: false,
        }
    }

    async fn fetch(&self, artifact: &Artifact) -> Result<Placed, ArtifactError> {
        let (task_dir, staging) = (self.dir.path().join("task"), self.dir.path().join("staging"));
        let request = Request { artifact, task_dir: &task_dir, staging: &staging, owner: None, policy: &self.policy };
        let placed = fetch(request).await;
        assert!(!staging.exists(), "staging is left behind");
        placed
    }

    async fn check_refused(&self, artifact: &Artifact, reason: &str) {
        let error = self.fetch(artifact).await.expect_err(reason);
        let text = std::iter::successors(std::error::Error::source(&error), |cause| cause.source())
            .fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        assert!(text.contains(reason), "{text}");
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("task").join(path))
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(self.dir.path().join("task/local")).unwrap().next().is_none()
    }
}

enum Entry<'a> {
    File(&'a str, &'a str, u32),
    Link(&'a str, &'a str),
    Other(&'a str, tar::EntryType),
}

fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let (name, content) = match entry {
            Entry::File(name, content, mode) => {
                header.set_mode(*mode);
                (*name, *content)
            }
            Entry::Link(name, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
                (*name, "")
            }
            Entry::Other(name, kind) => {
                header.set_entry_type(*kind);
                header.set_mode(0o644);
                header.as_gnu_mut().unwrap().linkname[..5].copy_from_slice(b"plain");
                (*name, "")
            }
        };
        header.set_size(content.len() as u64);
        // The builder refuses names like `../x` itself.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(plain).unwrap();
    out.finish().unwrap()
}

fn zip_of(entries: &[(&str, &str, u32)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content, mode) in entries {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        zip.start_file(*name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The writer leaves the bit out by itself.
fn with_setuid(mut zip: Vec<u8>) -> Vec<u8> {
    let plain = (0o100_755u32 << 16).to_le_bytes();
    let at = zip.windows(4).rposition(|window| window == plain).expect("the central directory has the mode");
    zip[at..at + 4].copy_from_slice(&(0o104_755u32 << 16).to_le_bytes());
    zip
}

#[tokio::test]
async fn files_and_archives_arrive_whole() {
    let tree = [
        Entry::File("pkg/bin/app", "run", 0o755),
        Entry::File("pkg/etc/conf", "c", 0o640),
        Entry::Link("pkg/app", "bin/app"),
    ];
    let tar = tar_of(&tree);
    let bench = Bench::new(&[
        ("/app", b"#!/bin/sh\n".to_vec()),
        ("/a.tar", tar.clone()),
        ("/a.tgz", gzip(&tar)),
        ("/a.zip", zip_of(&[("z/app", "zipped", 0o755), ("z/plain", "p", 0o600)])),
        ("/one.txt.gz", gzip(b"one")),
        ("/secret", b"s".to_vec()),
    ]);
    let placed = bench.fetch(&bench.artifact("/hop3")).await.unwrap();
    assert_eq!(placed, Placed { files: 1, bytes: 10 });
    let mode =
        |path: &str| std::fs::metadata(bench.dir.path().join("task").join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((bench.read("local/hop3").as_str(), mode("local/hop3")), ("#!/bin/sh\n", 0o755));
    for path in ["/a.tar", "/a.tgz"] {
        assert_eq!(bench.fetch(&bench.artifact(path)).await.unwrap().files, 3, "{path}");
        assert_eq!(
            (bench.read("local/pkg/app").as_str(), mode("local/pkg/bin/app"), mode("local/pkg/etc/conf")),
            ("run", 0o755, 0o640)
        );
    }
    bench.fetch(&bench.artifact("/a.tgz//pkg/etc")).await.unwrap();
    assert_eq!(bench.read("local/conf"), "c");
    bench.fetch(&bench.artifact("/a.zip")).await.unwrap();
    assert_eq!((bench.read("local/z/app").as_str(), mode("local/z/plain")), ("zipped", 0o600));
    let one = Artifact {
        destination: "local/deep/er/name".to_owned(),
        mode: ArtifactMode::File,
        ..bench.artifact("/one.txt.gz")
    };
    bench.fetch(&one).await.unwrap();
    assert_eq!(bench.read("local/deep/er/name"), "one");
    bench.check_refused(&bench.artifact("/secret"), "answered 403").await;
    let headers = BTreeMap::from([("x-token".to_owned(), "t".to_owned())]);
    bench.fetch(&Artifact { headers, ..bench.artifact("/secret") }).await.unwrap();
    assert_eq!(bench.read("local/secret"), "s");
}

#[tokio::test]
async fn a_checksum_decides_before_anything_is_placed() {
    let bench = Bench::new(&[("/app", b"abc".to_vec())]);
    let with =
        |sum: &str| Artifact { options: [("checksum".to_owned(), sum.to_owned())].into(), ..bench.artifact("/app") };
    bench
        .check_refused(
            &with("md5:00000000000000000000000000000000"),
            "the checksum is 900150983cd24fb0d6963f7d28e17f72",
        )
        .await;
    assert!(bench.is_empty());
    for sum in [
        "md5:900150983cd24fb0d6963f7d28e17f72",
        "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ] {
        bench.fetch(&with(sum)).await.unwrap();
    }
}

#[tokio::test]
async fn what_would_reach_out_of_the_archive_is_refused_by_name() {
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("/up.tar", tar_of(&[Entry::File("../evil", "x", 0o644)]), "\"../evil\" of the archive leads out"),
        ("/abs.tar", tar_of(&[Entry::File("/etc/evil", "x", 0o644)]), "absolute"),
        ("/link-abs.tar", tar_of(&[Entry::Link("l", "/etc")]), "link to an absolute path"),
        ("/link-up.tar", tar_of(&[Entry::Link("a/l", "../../x")]), "leads out of the archive"),
        ("/link-mid.tar", tar_of(&[Entry::Link("a/b/l", "c/../../../x")]), "`..` after a name"),
        ("/through.tar", tar_of(&[Entry::Link("l", "d"), Entry::File("l/x", "x", 0o644)]), "File exists"),
        (
            "/hard.tar",
            tar_of(&[Entry::File("plain", "x", 0o644), Entry::Other("h", tar::EntryType::Link)]),
            "\"h\" of the archive is a hard link",
        ),
        ("/dev.tar", tar_of(&[Entry::Other("d", tar::EntryType::Block)]), "is a device"),
        ("/fifo.tar", tar_of(&[Entry::Other("f", tar::EntryType::Fifo)]), "is a pipe"),
        ("/suid.tar", tar_of(&[Entry::File("s", "x", 0o4755)]), "setuid"),
        ("/up.zip", zip_of(&[("../evil", "x", 0o644)]), "leads out"),
        ("/suid.zip", with_setuid(zip_of(&[("s", "x", 0o755)])), "setuid"),
        ("/broken.tgz", b"not gzip".to_vec(), "cannot be read"),
        ("/broken.zip", b"not zip".to_vec(), "cannot be read"),
    ];
    let files: Vec<(&str, Vec<u8>)> = cases.iter().map(|(path, body, _)| (*path, body.clone())).collect();
    let bench = Bench::new(&files);
    for (path, _, reason) in &cases {
        bench.check_refused(&bench.artifact(path), reason).await;
        assert!(bench.is_empty(), "{path} left something");
    }
}

#[tokio::test]
async fn bombs_and_endless_answers_are_bounded() {
    let many: Vec<String> = (0..50).map(|number| format!("f{number}")).collect();
    let entries: Vec<Entry<'_>> = many.iter().map(|name| Entry::File(name, "", 0o644)).collect();
    let mut bench = Bench::new(&[
        ("/bomb.gz", gzip(&vec![0; 4 << 20])),
        ("/bomb.zip", zip_of(&[("big", &"0".repeat(4 << 20), 0o644)])),
        ("/many.tar", tar_of(&entries)),
        ("/large", vec![0; 2 << 20]),
    ]);
    bench.policy =
        Policy { bytes_max: 1 << 20, files_max: 20, time_max: Duration::from_secs(20), file_roots: Vec::new() };
    bench.check_refused(&bench.artifact("/bomb.gz"), "what was unpacked is larger than 1048576").await;
    bench.check_refused(&bench.artifact("/bomb.zip"), "what was unpacked is larger than 1048576").await;
    bench.check_refused(&bench.artifact("/many.tar"), "more than 20 entries").await;
    bench.check_refused(&bench.artifact("/large"), "the download is larger than 1048576").await;
    bench.check_refused(&bench.artifact("/hop20"), "more than 10 times").await;
    bench.check_refused(&bench.artifact("/none"), "answered 404").await;
    bench.check_refused(&bench.artifact("/cut"), "broke off").await;
    bench.check_refused(&bench.artifact("http://127.0.0.1:1/x"), "cannot be reached").await;
    assert!(bench.is_empty());
}

#[tokio::test]
async fn what_a_task_planted_leads_nowhere() {
    let bench = Bench::new(&[("/app", b"new".to_vec()), ("/a.tar", tar_of(&[Entry::File("d/x", "new", 0o644)]))]);
    let outside = bench.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("app"), "old").unwrap();
    let local = bench.dir.path().join("task/local");
    symlink(&outside, local.join("out")).unwrap();
    symlink(&outside, local.join("d")).unwrap();
    symlink(outside.join("app"), local.join("app")).unwrap();
    let out = Artifact { destination: "local/out".to_owned(), ..bench.artifact("/app") };
    bench.check_refused(&out, "is a link, which is not followed").await;
    bench.check_refused(&bench.artifact("/a.tar"), "is a link, which is not followed").await;
    // A link in the place of a file is replaced, not followed.
    bench.fetch(&bench.artifact("/app")).await.unwrap();
    assert_eq!(bench.read("local/app"), "new");
    assert_eq!(std::fs::read_to_string(outside.join("app")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn files_of_the_node_only_from_where_its_owner_allows() {
    let mut bench = Bench::new(&[]);
    let store = bench.dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("x"), "mine").unwrap();
    symlink("/etc/passwd", store.join("link")).unwrap();
    let source = |name: &str| format!("file://{}", store.join(name).display());
    bench.check_refused(&bench.artifact(&source("x")), "gives out no files from there").await;
    bench.policy.file_roots = vec![store.clone()];
    bench.check_refused(&bench.artifact(&source("link")), "gives out no files from there").await;
    bench.check_refused(&bench.artifact(&source("../task/none")), "cannot be read").await;
    bench.fetch(&bench.artifact(&source("x"))).await.unwrap();
    assert_eq!(bench.read("local/x"), "mine");
}

#[tokio::test]
async fn a_repository_that_is_not_there_says_what_git_says() {
    let bench = Bench::new(&[]);
    let artifact = bench.artifact(&format!("git::http://{}/none.git", bench.address));
    bench.check_refused(&artifact, "git").await;
    assert!(Path::new(&bench.dir.path().join("task/local")).exists() && bench.is_empty());
}
