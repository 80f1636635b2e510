//! What an artifact's source and options mean, in the forms of go-getter that job files use.

use model::{Artifact, ArtifactMode};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("source {source_text:?}: {reason}")]
pub struct SourceError {
    pub source_text: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub getter: Getter,
    /// Of what was fetched only this is taken.
    pub subdirectory: Option<String>,
    pub checksum: Option<Checksum>,
    /// `None` takes the file as it is.
    pub archive: Option<Archive>,
    /// What the file is called, without the archive's ending for one of a single file.
    pub file_name: String,
    /// The destination is the file and not its directory.
    pub is_one_file: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Getter {
    /// http or https, without the parameters that are for the getter.
    Http(String),
    File(PathBuf),
    Git {
        url: String,
        reference: Option<String>,
        depth: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    Tar,
    TarGz,
    Zip,
    /// One file, compressed.
    Gz,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    pub kind: Digest,
    pub hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

const ENDINGS: [(&str, Archive); 5] = [
    (".tar.gz", Archive::TarGz),
    (".tgz", Archive::TarGz),
    (".tar", Archive::Tar),
    (".zip", Archive::Zip),
    (".gz", Archive::Gz),
];

/// Archives of go-getter's that are not unpacked here.
const FOREIGN: [&str; 9] = [".tar.bz2", ".tbz2", ".bz2", ".tar.xz", ".txz", ".xz", ".tar.zst", ".tzst", ".zst"];

const FOREIGN_GETTERS: [&str; 6] = ["s3", "gcs", "hg", "smb", "oci", "sftp"];

impl Plan {
    pub fn of(artifact: &Artifact) -> Result<Self, SourceError> {
        let fail = |reason: String| SourceError { source_text: artifact.source.clone(), reason };
        plan(artifact).map_err(fail)
    }
}

fn plan(artifact: &Artifact) -> Result<Plan, String> {
    let text = artifact.source.trim();
    let (forced, address) = match text.split_once("::") {
        Some((getter, rest)) if !getter.contains(['/', '?']) => (Some(getter), rest.to_owned()),
        _ => (None, shorthand(text)),
    };
    if let Some(foreign) = forced.filter(|getter| FOREIGN_GETTERS.contains(getter)) {
        return Err(format!("{foreign}:: is not built; serve it by https, or put it on an https address of the store"));
    }
    let is_git = forced == Some("git") || address.starts_with("git::");
    let address = address.trim_start_matches("git::").to_owned();
    if let Some(unknown) = forced.filter(|getter| !["git", "http", "https", "file"].contains(getter)) {
        return Err(format!("{unknown}:: is no way to fetch that is known; use http, https, git or file"));
    }
    let (plain, query) = address.split_once('?').unwrap_or((&address, ""));
    let (plain, subdirectory) = split_subdirectory(plain);
    let (parameters, left) = parameters(query, &artifact.options, is_git);
    let subdirectory = subdirectory.map(|inner| inside(&inner)).transpose()?;
    let file_name = match parameters.get("filename") {
        Some(name) => name.clone(),
        None => last_part(&plain),
    };
    let checksum = parameters.get("checksum").map(|text| checksum(text)).transpose()?;
    let getter = getter(&plain, &left, &parameters, is_git)?;
    if matches!(getter, Getter::Git { .. }) && checksum.is_some() {
        return Err("a git repository has no checksum; name the commit with ref".to_owned());
    }
    let archive = match getter {
        Getter::Git { .. } => None,
        _ => archive(&file_name, parameters.get("archive").map(String::as_str))?,
    };
    inside(&artifact.destination).map_err(|reason| format!("destination: {reason}"))?;
    if !is_git && file_name.is_empty() && archive.is_none() && artifact.mode != ArtifactMode::File {
        return Err("does not end in a file's name; set options { filename = \"…\" }".to_owned());
    }
    let is_one_file = artifact.mode == ArtifactMode::File;
    Ok(Plan { getter, subdirectory, checksum, archive, file_name, is_one_file })
}

/// `github.com/a/b` and `git@host:path` as go-getter detects them.
fn shorthand(text: &str) -> String {
    for host in ["github.com/", "gitlab.com/", "bitbucket.org/"] {
        if text.starts_with(host) {
            let (path, query) =
                text.split_once('?').map_or((text, String::new()), |(path, query)| (path, format!("?{query}")));
            let parts: Vec<&str> = path.splitn(4, '/').collect();
            if let [host, owner, name, rest @ ..] = parts.as_slice() {
                let name = name.trim_end_matches(".git");
                let inner =
                    rest.first().map(|inner| format!("//{}", inner.trim_start_matches('/'))).unwrap_or_default();
                return format!("git::https://{host}/{owner}/{name}.git{inner}{query}");
            }
        }
    }
    if let Some((user_host, path)) = text.split_once(':')
        && user_host.contains('@')
        && !user_host.contains('/')
        && !path.starts_with("//")
    {
        return format!("git::ssh://{user_host}/{path}");
    }
    text.to_owned()
}

/// `//inner` after the host.
fn split_subdirectory(address: &str) -> (String, Option<String>) {
    let start = address.find("://").map_or(0, |at| at + 3);
    match address[start..].find("//") {
        Some(at) => {
            let (whole, inner) = address.split_at(start + at);
            (whole.to_owned(), Some(inner.trim_start_matches('/').to_owned()).filter(|inner| !inner.is_empty()))
        }
        None => (address.to_owned(), None),
    }
}

/// The parameters that are for the getter, from the options over the query; and what is left of the query.
fn parameters(query: &str, options: &BTreeMap<String, String>, is_git: bool) -> (BTreeMap<String, String>, String) {
    let known = |name: &str| {
        matches!(name, "checksum" | "archive" | "filename") || (is_git && matches!(name, "ref" | "depth" | "sshkey"))
    };
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    let name_of = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut parameters: BTreeMap<String, String> = pairs
        .iter()
        .filter(|pair| known(&name_of(pair)))
        .map(|pair| (name_of(pair), decoded(pair.split_once('=').map_or("", |(_, value)| value))))
        .collect();
    let mut left: Vec<String> =
        pairs.iter().filter(|pair| !known(&name_of(pair))).map(|pair| (*pair).to_owned()).collect();
    for (name, value) in options {
        if known(name) {
            parameters.insert(name.clone(), value.clone());
        } else {
            let escape = |text: &str| {
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
            };
            left.push(format!("{}={}", escape(name), escape(value)));
        }
    }
    (parameters, left.join("&"))
}

fn getter(plain: &str, query: &str, parameters: &BTreeMap<String, String>, is_git: bool) -> Result<Getter, String> {
    let with_query = || if query.is_empty() { plain.to_owned() } else { format!("{plain}?{query}") };
    let scheme = plain.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match (is_git, scheme.as_deref()) {
        (true, Some("https" | "http" | "ssh")) => {
            if parameters.contains_key("sshkey") {
                return Err("sshkey is not built; give the node's root a key, or use https".to_owned());
            }
            let reference = parameters.get("ref").filter(|text| !text.is_empty()).cloned();
            if reference.as_ref().is_some_and(|text| text.starts_with('-')) {
                return Err("ref must not begin with a dash".to_owned());
            }
            let depth =
                parameters.get("depth").map(|text| text.parse().map_err(|_| format!("depth {text:?} is not a number")));
            Ok(Getter::Git { url: with_query(), reference, depth: depth.transpose()? })
        }
        (true, _) => Err("git repositories are fetched by https, http or ssh".to_owned()),
        (false, Some("http" | "https")) => Ok(Getter::Http(with_query())),
        (false, Some("file")) => Ok(Getter::File(PathBuf::from(
            percent_decode_str(plain.split_once("://").map_or("", |(_, path)| path)).decode_utf8_lossy().into_owned(),
        ))),
        (false, Some(other)) => Err(format!("{other}:// is not built; use https, http, git:: or file")),
        (false, None) => Err("is no address; begin it with https://".to_owned()),
    }
}

fn archive(file_name: &str, option: Option<&str>) -> Result<Option<Archive>, String> {
    let lower = file_name.to_ascii_lowercase();
    match option {
        Some("false" | "0") => Ok(None),
        None | Some("true" | "1" | "") => {
            if let Some(ending) = FOREIGN.iter().find(|ending| lower.ends_with(**ending)) {
                return Err(format!(
                    "{ending} archives are not unpacked; use tar.gz or zip, or set archive = \"false\""
                ));
            }
            Ok(ENDINGS.iter().find(|(ending, _)| lower.ends_with(ending)).map(|(_, archive)| *archive))
        }
        Some(named) => {
            let ending = format!(".{}", named.trim_start_matches('.'));
            let known = ENDINGS.iter().find(|(known, _)| **known == ending).map(|(_, archive)| *archive);
            known
                .map(Some)
                .ok_or_else(|| format!("archive = {named:?} is not built; use tar, tar.gz, tgz, zip, gz or false"))
        }
    }
}

fn checksum(text: &str) -> Result<Checksum, String> {
    let (kind, hex) = match text.split_once(':') {
        Some(("file", _)) => return Err("checksum files are not built; write the checksum itself".to_owned()),
        Some((kind, hex)) => (kind.to_ascii_lowercase(), hex),
        None => (
            match text.len() {
                32 => "md5",
                40 => "sha1",
                64 => "sha256",
                _ => "sha512",
            }
            .to_owned(),
            text,
        ),
    };
    let kinds = [
        ("md5", Digest::Md5, 32),
        ("sha1", Digest::Sha1, 40),
        ("sha256", Digest::Sha256, 64),
        ("sha512", Digest::Sha512, 128),
    ];
    let found = kinds.into_iter().find(|(name, ..)| *name == kind);
    let (name, kind, length) =
        found.ok_or_else(|| format!("checksum kind {kind:?} is not known; use md5, sha1, sha256 or sha512"))?;
    if hex.len() != length || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(format!("a {name} checksum has {length} hexadecimal digits"));
    }
    Ok(Checksum { kind, hex: hex.to_ascii_lowercase() })
}

/// A path that stays below where it starts.
pub fn inside(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    if path.is_absolute() {
        return Err(format!("{text:?} is absolute; write it relative to the task's directory"));
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(format!("{text:?} leads out of the task's directory; leave `..` out"));
    }
    if text.contains('\0') {
        return Err("a path has no zero byte".to_owned());
    }
    Ok(text.to_owned())
}

fn last_part(plain: &str) -> String {
    let path = plain.split_once("://").map_or(plain, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    let name = path.rsplit('/').next().unwrap_or_default();
    let decoded = percent_decode_str(name).decode_utf8_lossy().into_owned();
    if decoded.contains('/') || decoded == ".." || decoded == "." { String::new() } else { decoded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn artifact(source: &str, options: &[(&str, &str)]) -> Artifact {
        let _ = Duration::ZERO;
        Artifact {
            source: source.to_owned(),
            destination: "local/".to_owned(),
            mode: ArtifactMode::Any,
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            headers: BTreeMap::new(),
            insecure: false,
            chown: false,
        }
    }

    fn check(source: &str, options: &[(&str, &str)]) -> Plan {
        Plan::of(&artifact(source, options)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn check_refused(source: &str, options: &[(&str, &str)], reason: &str) {
        let error = Plan::of(&artifact(source, options)).expect_err(source).to_string();
        assert!(error.contains(reason), "{source}: {error}");
    }

    #[test]
    fn addresses_are_read_as_job_files_write_them() {
        let sum = "a".repeat(64);
        let plan = check(&format!("https://h/x/app-1.2.tar.gz?checksum=sha256:{sum}&token=t"), &[]);
        assert_eq!(plan.getter, Getter::Http("https://h/x/app-1.2.tar.gz?token=t".to_owned()));
        assert_eq!((plan.archive, plan.file_name.as_str()), (Some(Archive::TarGz), "app-1.2.tar.gz"));
        assert_eq!(plan.checksum, Some(Checksum { kind: Digest::Sha256, hex: sum }));
        assert_eq!(check("https://h/x.zip", &[("archive", "false")]).archive, None);
        assert_eq!(check("https://h/x", &[("archive", "zip")]).archive, Some(Archive::Zip));
        assert_eq!(check("https://h/x.tgz//sub/dir", &[]).subdirectory, Some("sub/dir".to_owned()));
        assert_eq!(check("https://h/", &[("filename", "a.bin")]).file_name, "a.bin");
        let git = |url: &str, reference: Option<&str>| Getter::Git {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
            depth: None,
        };
        assert_eq!(check("git::https://h/r.git?ref=v1", &[]).getter, git("https://h/r.git", Some("v1")));
        assert_eq!(check("github.com/a/b//c", &[]).getter, git("https://github.com/a/b.git", None));
        assert_eq!(check("github.com/a/b//c", &[]).subdirectory, Some("c".to_owned()));
        assert_eq!(check("git@h:a/b.git", &[]).getter, git("ssh://git@h/a/b.git", None));
        assert_eq!(check("file:///srv/x.bin", &[]).getter, Getter::File(PathBuf::from("/srv/x.bin")));
    }

    #[test]
    fn what_is_not_built_or_wrong_is_named() {
        check_refused("s3::https://h/x", &[], "s3:: is not built");
        check_refused("ftp://h/x", &[], "ftp:// is not built");
        check_refused("app.tar.gz", &[], "begin it with https://");
        check_refused("https://h/x.tar.xz", &[], ".tar.xz archives are not unpacked");
        check_refused("https://h/x", &[("checksum", "sha256:12")], "64 hexadecimal digits");
        check_refused("https://h/x", &[("checksum", "crc:12")], "is not known");
        check_refused("https://h/x.zip//../..", &[], "leave `..` out");
        check_refused("https://h/", &[], "filename");
        check_refused("git::https://h/r?ref=--upload-pack=x", &[], "dash");
        check_refused("git::file:///r", &[], "https, http or ssh");
        let mut wrong = artifact("https://h/x", &[]);
        wrong.destination = "../x".to_owned();
        assert!(Plan::of(&wrong).unwrap_err().to_string().contains("destination"));
        wrong.destination = "/etc".to_owned();
        assert!(Plan::of(&wrong).unwrap_err().to_string().contains("absolute"));
    }
}
