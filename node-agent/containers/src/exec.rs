//! Further commands in a running container.

use crate::engine::Engine;
use crate::error::EngineError;
use crate::raw::{Frames, upgrade};
use bollard::exec::{CreateExecOptions, ResizeExecOptions};
use tokio::net::unix::OwnedWriteHalf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecWanted {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub tty: bool,
}

/// A command that runs. Dropping its streams does not end it.
#[derive(Debug)]
pub struct ExecSession {
    pub id: String,
    pub output: Frames,
    pub input: OwnedWriteHalf,
}

impl Engine {
    pub async fn exec(&self, container: &str, wanted: &ExecWanted) -> Result<ExecSession, EngineError> {
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(wanted.tty),
            env: (!wanted.env.is_empty()).then(|| wanted.env.clone()),
            cmd: Some(wanted.argv.clone()),
            user: wanted.user.clone(),
            ..CreateExecOptions::default()
        };
        let made = self.docker.create_exec(container, options).await;
        let id = made.map_err(EngineError::from_engine("prepare the command"))?.id;
        let (path, body) = (format!("/exec/{id}/start"), format!("{{\"Detach\":false,\"Tty\":{}}}", wanted.tty));
        let (output, input) = upgrade(&self.socket, "run the command", &path, &body, wanted.tty).await?;
        Ok(ExecSession { id, output, input })
    }

    /// `None` while it runs.
    pub async fn exec_code(&self, id: &str) -> Result<Option<i64>, EngineError> {
        let told = self.docker.inspect_exec(id).await.map_err(EngineError::from_engine("look at the command"))?;
        Ok(if told.running.unwrap_or(false) { None } else { Some(told.exit_code.unwrap_or(-1)) })
    }

    /// The command's process as the node numbers it, while it runs.
    pub async fn exec_pid(&self, id: &str) -> Result<Option<i32>, EngineError> {
        let told = self.docker.inspect_exec(id).await.map_err(EngineError::from_engine("look at the command"))?;
        let pid = told.pid.filter(|pid| *pid > 0 && told.running.unwrap_or(false));
        Ok(pid.and_then(|pid| i32::try_from(pid).ok()))
    }

    pub async fn exec_resize(&self, id: &str, width: u16, height: u16) -> Result<(), EngineError> {
        let resized = self.docker.resize_exec(id, ResizeExecOptions { height, width }).await;
        resized.map_err(EngineError::from_engine("resize the terminal"))
    }
}
