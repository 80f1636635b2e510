//! What can go wrong with programs and maps.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

use crate::config::PreflightError;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error("the kernel refused the object: rebuild it with `cargo xtask ebpf` for this version of the agent")]
    Object(#[source] Box<EbpfError>),
    #[error("the object has no {what} `{name}`: rebuild it with `cargo xtask ebpf`")]
    Missing { what: &'static str, name: &'static str },
    #[error("the kernel refused program `{name}`; its verifier's log follows")]
    Load {
        name: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("cannot attach `{name}` to {to}: look for another program there (`bpftool net`)")]
    Attach {
        name: &'static str,
        to: String,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("the link of `{0}` cannot be pinned: this kernel gave no link for it")]
    NoLink(&'static str),
    #[error("cannot pin {path}: check that the bpffs is writable")]
    Pin {
        path: PathBuf,
        #[source]
        source: PinError,
    },
    #[error("cannot use {path}: check the bpffs, or remove the node's pins with `detach`")]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot exchange the program behind {path}")]
    Replace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("map `{map}`")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error("cannot map `{map}` into memory")]
    Mmap {
        map: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("`{map}` has no entries {first}..{end}: it holds {len}")]
    OutOfRange { map: &'static str, first: u64, end: u64, len: u32 },
    #[error("no interface has index {0}")]
    NoInterface(u32),
    #[error("the kernel would not run the program on the frame")]
    Trace(#[source] Box<ProgramError>),
}

impl From<EbpfError> for KernelError {
    fn from(error: EbpfError) -> Self {
        Self::Object(Box::new(error))
    }
}

pub(crate) fn on_map(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { map, source: Box::new(source) }
}

pub(crate) fn load(name: &'static str, source: ProgramError) -> KernelError {
    KernelError::Load { name, source: Box::new(source) }
}

pub(crate) fn attach(name: &'static str, to: &str, source: ProgramError) -> KernelError {
    KernelError::Attach { name, to: to.to_owned(), source: Box::new(source) }
}
