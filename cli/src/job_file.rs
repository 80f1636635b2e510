//! A job file on the command line, with the values of its variables.

use anyhow::{Context, Result, bail};
use clap::Args;
use jobspec::Inputs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files larger than this are refused before they are read whole.
const FILE_MAX: u64 = 1 << 20;

/// Environment variables that give values to variables, the later ones first.
const ENV_PREFIXES: [&str; 2] = ["NOMAD_VAR_", "MESHCTL_VAR_"];

#[derive(Args, Clone, Debug)]
pub struct JobFile {
    /// A value for a variable of the job file; may be repeated, and wins over files and MESHCTL_VAR_name
    #[arg(long = "var", value_name = "NAME=VALUE")]
    vars: Vec<String>,
    /// A file of `name = value` lines for variables of the job file; may be repeated
    #[arg(long = "var-file", value_name = "FILE")]
    var_files: Vec<PathBuf>,
    /// A job file in HCL, or `-` for standard input
    file: PathBuf,
}

impl JobFile {
    pub fn read(&self) -> Result<model::Job> {
        let (name, source) = read(&self.file)?;
        let job = jobspec::parse_hcl_with(&name, &source, &self.inputs(&source)?);
        job.map_err(|refusal| anyhow::anyhow!("the job file is refused:\n{refusal}"))
    }

    /// As it was written, for commands that people copy.
    pub fn arguments(&self) -> String {
        let vars = self.vars.iter().map(|var| format!("-var '{var}' "));
        let files = self.var_files.iter().map(|file| format!("-var-file {} ", file.display()));
        let flags: String = files.chain(vars).collect();
        format!("{flags}{}", self.file.display())
    }

    /// What the environment says, then the files, then the flags. The environment may hold values for other job files.
    fn inputs(&self, source: &str) -> Result<Inputs> {
        let mut inputs = Inputs::default();
        for prefix in ENV_PREFIXES {
            let given = std::env::vars().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value)));
            for (name, value) in given.filter(|(name, _)| source.contains(&format!("variable \"{name}\""))) {
                inputs.set(&format!("{name}={value}"))?;
            }
        }
        for file in &self.var_files {
            let (name, text) = read(file)?;
            inputs.read_file(&name, &text)?;
        }
        self.vars.iter().try_for_each(|assignment| inputs.set(assignment))?;
        Ok(inputs)
    }
}

/// The file's name as messages show it, and its text.
fn read(file: &Path) -> Result<(String, String)> {
    let (name, reader): (String, Box<dyn Read>) = match file.to_str() {
        Some("-") => ("<stdin>".to_owned(), Box::new(std::io::stdin())),
        _ => {
            let opened = std::fs::File::open(file).with_context(|| format!("could not open {}", file.display()))?;
            (file.display().to_string(), Box::new(opened))
        }
    };
    let mut text = String::new();
    reader.take(FILE_MAX + 1).read_to_string(&mut text).with_context(|| format!("{name} is not UTF-8 text"))?;
    if text.len() as u64 > FILE_MAX {
        bail!("{name} is larger than 1 MiB, which no job file may be");
    }
    Ok((name, text))
}
