//! What people ask of a running allocation: restarts, signals, figures, the health of ttl checks.

use super::machine::{Event, RestartWish};
use super::runner::{Runner, now, report, task_of};
use super::usage::Usage;
use drivers::{Phase, TaskHandle, parse_signal};
use model::{CheckKind, Health, Resources};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use wire::actions::{AllocAction, AllocAnswer, AllocRefusal};

/// A question to one allocation's runner, and where its answer goes.
pub enum Asked {
    Action {
        action: AllocAction,
        reply: oneshot::Sender<AllocAnswer>,
    },
    /// The only task, or the one named, to run a program in.
    Handle {
        task: Option<String>,
        reply: oneshot::Sender<Result<TaskHandle, AllocRefusal>>,
    },
}

impl Runner {
    pub(super) async fn on_asked(&mut self, asked: Asked) {
        // Who asked may have gone away meanwhile.
        match asked {
            Asked::Handle { task, reply } => drop(reply.send(self.one_handle(task.as_deref()))),
            Asked::Action { action, reply } => match action {
                AllocAction::Restart { task, whole } => drop(reply.send(self.restart(task, whole).await)),
                AllocAction::Signal { task, signal } => self.signal(task.as_deref(), &signal, reply).await,
                AllocAction::Stats { task } => drop(reply.send(self.stats(task.as_deref()).await)),
                AllocAction::SetCheck { check, health, output } => {
                    drop(reply.send(self.set_check(&check, health, output)));
                }
                AllocAction::CollectGarbage => {
                    let reason = "the allocation has not ended; stop it first";
                    drop(reply.send(Err(AllocRefusal::bad_request(reason))));
                }
            },
        }
    }

    async fn restart(&mut self, task: Option<String>, whole: bool) -> AllocAnswer {
        let wish = match (task, whole) {
            (None, true) => RestartWish::All,
            (None, false) => RestartWish::Running,
            (Some(task), false) => RestartWish::Task(task),
            (Some(_), true) => {
                return Err(AllocRefusal::bad_request("name a task or restart all of them, not both"));
            }
        };
        if let RestartWish::Task(name) = &wish {
            self.known(name)?;
        }
        let actions = self.machine.request_restart(now(), &wish).map_err(AllocRefusal::bad_request)?;
        self.follow(actions).await;
        Ok(Vec::new())
    }

    async fn signal(&mut self, task: Option<&str>, signal: &str, reply: oneshot::Sender<AllocAnswer>) {
        let chosen = match self.chosen(task, signal) {
            Ok(chosen) => chosen,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        for (task, _) in &chosen {
            let message = format!("Task being sent the signal {signal}");
            self.apply(Event::Note { task: task.clone(), kind: "Signaling", message }).await;
        }
        let signal = signal.to_owned();
        self.work.spawn(async move {
            let mut refused = Vec::new();
            for (task, handle) in chosen {
                if let Err(error) = handle.signal(&signal).await {
                    refused.push(format!("task {task}: {}", report(&error)));
                }
            }
            let answer =
                if refused.is_empty() { Ok(Vec::new()) } else { Err(AllocRefusal::failed(refused.join("; "))) };
            let _ = reply.send(answer);
        });
    }

    fn chosen(&self, task: Option<&str>, signal: &str) -> Result<Vec<(String, TaskHandle)>, AllocRefusal> {
        if parse_signal(signal).is_none() {
            let reason = format!("{signal:?} is no signal; write for example SIGHUP");
            return Err(AllocRefusal::bad_request(reason));
        }
        self.handles_of(task)
    }

    /// The tasks that run, or the named one.
    fn handles_of(&self, task: Option<&str>) -> Result<Vec<(String, TaskHandle)>, AllocRefusal> {
        if let Some(task) = task {
            self.known(task)?;
        }
        let wanted = self.handles.iter().filter(|(name, _)| task.is_none_or(|task| task == name.as_str()));
        let found: Vec<_> = wanted.map(|(name, handle)| (name.clone(), handle.clone())).collect();
        match (found.is_empty(), task) {
            (false, _) => Ok(found),
            (true, Some(task)) => Err(AllocRefusal::bad_request(format!("task {task} does not run"))),
            (true, None) => Err(AllocRefusal::bad_request("no task of the allocation runs")),
        }
    }

    fn one_handle(&self, task: Option<&str>) -> Result<TaskHandle, AllocRefusal> {
        let mut found = self.handles_of(task)?;
        match found.len() {
            1 => Ok(found.remove(0).1),
            _ => {
                let names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
                Err(AllocRefusal::bad_request(format!("name one of the tasks: {}", names.join(", "))))
            }
        }
    }

    fn known(&self, task: &str) -> Result<(), AllocRefusal> {
        let unknown = || AllocRefusal::not_found(format!("the allocation has no task {task}"));
        task_of(self.machine.told(), task).map(drop).ok_or_else(unknown)
    }

    /// Nomad's `AllocResourceUsage`.
    async fn stats(&mut self, task: Option<&str>) -> AllocAnswer {
        let mut tasks = Map::new();
        let mut total = Usage::default();
        let mut percent = 0.0;
        if let Some(task) = task {
            self.known(task)?;
        }
        let wanted: Vec<_> =
            self.handles.iter().filter(|(name, _)| task.is_none_or(|task| task == name.as_str())).collect();
        let wanted: Vec<(String, TaskHandle)> =
            wanted.into_iter().map(|(name, handle)| (name.clone(), handle.clone())).collect();
        for (name, handle) in wanted {
            // One that is just about to end uses nothing any more.
            let Ok(state) = handle.status().await else { continue };
            let started_at_ns =
                if let Phase::Running { started_at_ns, .. } = state.phase { started_at_ns } else { continue };
            let usage = Usage::read(&state.cgroup);
            let at = now();
            let used = self.meters.entry(name.clone()).or_default().percent(at.0, started_at_ns, &usage);
            percent += used;
            total.add(&usage);
            let resources = task_of(self.machine.told(), &name).map(|task| task.resources);
            tasks.insert(
                name,
                json!({
                    "ResourceUsage": usage.to_json(used, self.core_mhz()),
                    "Timestamp": at.0,
                    "Pids": { "Count": usage.pids },
                    "Allowed": resources.map(allowed),
                }),
            );
        }
        let body = json!({
            "ResourceUsage": total.to_json(percent, self.core_mhz()),
            "Tasks": Value::Object(tasks),
            "Timestamp": now().0,
        });
        serde_json::to_vec(&body).map_err(|error| AllocRefusal::failed(error.to_string()))
    }

    /// What one core of this node counts as.
    fn core_mhz(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.shell.node.resources.cpu_mhz as f64 / cores as f64
    }

    fn set_check(&mut self, id: &str, health: Health, output: String) -> AllocAnswer {
        let Some(check) = self.checks.get(id) else {
            return Err(AllocRefusal::not_found(format!("the allocation runs no check {id}")));
        };
        match check.plan.check.kind {
            CheckKind::Ttl => {
                check.set(health, output);
                Ok(Vec::new())
            }
            _ => Err(AllocRefusal::bad_request(format!("check {id} is not of type ttl: the node finds out by itself"))),
        }
    }
}

fn allowed(resources: Resources) -> Value {
    json!({ "CpuMhz": resources.cpu_mhz, "MemoryMB": resources.memory_mb, "MemoryMaxMB": resources.memory_ceiling_mb() })
}
