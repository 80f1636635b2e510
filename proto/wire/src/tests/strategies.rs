//! Arbitrary and fixed values of the model.

use crate::outcome::Outcome;
use crate::session::{AgentMessage, Hello, LogKind, ServerMessage};
use ipnet::IpNet;
use model::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

fn text() -> impl Strategy<Value = String> {
    "[a-zé$.:/ ]{0,8}"
}

fn word() -> impl Strategy<Value = String> {
    "[a-z]{1,8}"
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(word(), text(), 0..3)
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn span() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0..=32u8).prop_map(|(ip, len)| IpNet::new(IpAddr::V4(ip.into()), len).expect("in range")),
        (any::<u128>(), 0..=128u8).prop_map(|(ip, len)| IpNet::new(IpAddr::V6(ip.into()), len).expect("in range")),
    ]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn operator() -> impl Strategy<Value = Operator> {
    let operators = Operator::ALL.map(|(operator, _)| operator);
    prop::sample::select(
        operators.into_iter().filter(|operator| *operator != Operator::DistinctProperty).collect::<Vec<_>>(),
    )
}

fn constraint() -> impl Strategy<Value = Constraint> {
    (word(), operator(), text()).prop_map(|(attribute, operator, text)| {
        let value = match operator {
            Operator::Regexp => "^a".to_owned(),
            Operator::Version | Operator::Semver => "1.2.3-a".to_owned(),
            _ => text,
        };
        Constraint { attribute, operator, value }
    })
}

fn check() -> impl Strategy<Value = Check> {
    let http = word().prop_map(|path| CheckKind::http(&format!("/{path}")));
    let kind = prop_oneof![Just(CheckKind::Tcp), http];
    (word(), kind, 1..1_000_000u64, 1..1_000_000u64).prop_map(|(name, kind, interval, timeout)| {
        Check::named(&name, kind, Duration::from_secs(interval), Duration::from_secs(timeout))
    })
}

/// A service of the port `http`, which [`network`] has.
fn service() -> impl Strategy<Value = Service> {
    (word(), vec("[a-z:= ]{0,6}", 0..3), option::of(check()), btree_map(word(), word(), 0..2)).prop_map(
        |(name, tags, check, meta)| Service {
            tags,
            checks: check.into_iter().collect(),
            meta,
            ..Service::named(&name, Some("http"))
        },
    )
}

fn network() -> impl Strategy<Value = Network> {
    let mode = prop_oneof![Just(NetworkMode::Host), Just(NetworkMode::Bridge)];
    (mode, option::of(1..=u16::MAX), option::of(1..=u16::MAX)).prop_map(|(mode, static_port, to)| {
        Network::of(mode, vec![PortRequest { label: "http".to_owned(), static_port, to }])
    })
}

fn task() -> impl Strategy<Value = Task> {
    let config =
        (word(), vec(text(), 0..3)).prop_map(|(command, args)| ExecConfig { command, args, ..ExecConfig::default() });
    let driver = (any::<bool>(), config)
        .prop_map(|(raw, config)| if raw { TaskDriver::RawExec(config) } else { TaskDriver::Exec(config) });
    let first = (driver, option::of(word()), texts(), vec(constraint(), 0..2), texts());
    let second = (1..1u64 << 40, 10..1u64 << 40, 1..1u64 << 30, any::<bool>(), vec(service(), 0..2), 1..1000u32);
    (first, second).prop_map(|((driver, user, env, constraints, meta), (cpu, memory, kill, signal, services, logs))| {
        Task {
            user,
            env,
            constraints,
            resources: Resources { cpu_mhz: cpu, memory_mb: memory, ..Resources::default() },
            kill_timeout: Duration::from_millis(kill),
            kill_signal: signal.then(|| "SIGTERM".to_owned()),
            services,
            logs: LogConfig { files_max: logs, file_size_mb_max: logs + 1 },
            meta,
            ..Task::named("task", driver)
        }
    })
}

fn group() -> impl Strategy<Value = TaskGroup> {
    let mode = prop_oneof![Just(RestartMode::Fail), Just(RestartMode::Delay)];
    let restart = (0..10u32, 100..1000u64, 0..10u64, mode).prop_map(|(attempts, interval, delay, mode)| {
        RestartPolicy { attempts, interval: Duration::from_secs(interval), delay: Duration::from_secs(delay), mode }
    });
    (0..50_000u32, vec(constraint(), 0..2), restart, network(), vec(service(), 0..2), task(), texts(), 10..1u64 << 40)
        .prop_map(|(count, constraints, restart, network, services, task, meta, disk_mb)| TaskGroup {
            count,
            constraints,
            restart,
            network: Some(network),
            services,
            tasks: vec![task],
            meta,
            disk_mb,
            update: count.is_multiple_of(2).then(|| policy(count)),
            migrate_max_parallel: 1 + count % 3,
            ..TaskGroup::named("group")
        })
}

/// A job as a front end accepts it, `distinct_hosts` with its value spelt out.
pub(super) fn valid_job() -> impl Strategy<Value = Job> {
    (word(), 1..=100u8, vec(constraint(), 0..2), texts(), group(), any::<(u64, bool)>(), time()).prop_map(
        |(id, priority, constraints, meta, group, (version, stopped), submitted_at)| {
            let mut job = Job {
                priority,
                constraints,
                meta,
                groups: vec![group],
                version,
                stopped,
                stable: version.is_multiple_of(2),
                submitted_at,
                ..Job::named(&id)
            };
            for constraint in &mut job.constraints {
                constraint.value.push('x');
            }
            job
        },
    )
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Health::Passing), Just(Health::Warning), Just(Health::Critical)]
}

fn client() -> impl Strategy<Value = ClientStatus> {
    use ClientStatus::*;
    prop_oneof![Just(Pending), Just(Running), Just(Complete), Just(Failed), Just(Lost)]
}

fn task_state() -> impl Strategy<Value = TaskState> {
    let phase = prop_oneof![Just(TaskPhase::Pending), Just(TaskPhase::Running), Just(TaskPhase::Dead)];
    let event = (time(), word(), text()).prop_map(|(at, kind, message)| TaskEvent { at, kind, message });
    (phase, any::<(bool, u32)>(), time(), time(), time(), vec(event, 0..3)).prop_map(
        |(phase, (failed, restarts), last_restart, started_at, finished_at, events)| TaskState {
            phase,
            failed,
            restarts,
            last_restart,
            started_at,
            finished_at,
            events,
        },
    )
}

fn update() -> impl Strategy<Value = AllocUpdate> {
    let check =
        (health(), text(), time()).prop_map(|(health, output, changed_at)| CheckState { health, output, changed_at });
    let states = btree_map(word(), task_state(), 0..2);
    (uuid(), client(), text(), states, option::of(any::<IpAddr>()), btree_map(word(), check, 0..2)).prop_map(
        |(id, client, client_description, task_states, address, checks)| AllocUpdate {
            alloc_id: AllocId(id),
            client,
            client_description,
            task_states,
            address,
            checks,
        },
    )
}

fn alloc() -> impl Strategy<Value = Allocation> {
    let port =
        (word(), any::<(u16, u16)>()).prop_map(|(label, (host_port, to))| AllocatedPort { label, host_port, to });
    let desired = prop_oneof![Just(DesiredStatus::Run), Just(DesiredStatus::Stop)];
    let ids = (uuid(), uuid(), option::of(uuid()));
    (ids, update(), valid_job(), vec(port, 0..2), desired, any::<(u32, u32, u64, u64, u64, u64)>(), text()).prop_map(
        |((eval, node, previous), update, job, ports, desired, numbers, description)| Allocation {
            id: update.alloc_id,
            eval_id: EvalId(eval),
            node_id: NodeId(node),
            node_name: "n1".to_owned(),
            job: Arc::new(job),
            group: "group".to_owned(),
            slot: numbers.0,
            ports,
            previous: previous.map(AllocId),
            reschedules: numbers.1,
            desired,
            desired_description: description,
            client: update.client,
            client_description: update.client_description,
            task_states: update.task_states,
            address: update.address,
            checks: update.checks,
            deployment: (numbers.0 % 2 == 0).then(|| AllocDeployment {
                id: DeploymentId(node),
                healthy: [None, Some(true), Some(false)][(numbers.1 % 3) as usize],
                changed_at: Timestamp(numbers.3),
                canary: numbers.1 % 2 == 0,
            }),
            created_at: Timestamp(numbers.2),
            modified_at: Timestamp(numbers.3),
            created_at_index: Index(numbers.4),
            modified_at_index: Index(numbers.5),
        },
    )
}

fn failure() -> impl Strategy<Value = PlacementFailure> {
    (any::<(u32, u32, u32, u32)>(), btree_map(text(), any::<u32>(), 0..2), btree_map(text(), any::<u32>(), 0..2))
        .prop_map(|(numbers, constraints_filtered, dimensions_exhausted)| PlacementFailure {
            nodes_evaluated: numbers.0,
            nodes_filtered: numbers.1,
            nodes_exhausted: numbers.2,
            constraints_filtered,
            dimensions_exhausted,
            coalesced: numbers.3,
        })
}

fn eval_status() -> impl Strategy<Value = EvalStatus> {
    use EvalStatus::*;
    prop_oneof![Just(Pending), Just(Blocked), Just(Complete), Just(Failed), Just(Canceled)]
}

fn eval() -> impl Strategy<Value = Evaluation> {
    use EvalTrigger::*;
    let trigger = prop_oneof![Just(JobRegister), Just(AllocUpdate), Just(PeriodicJob), Just(FailedFollowUp)];
    let failures = (btree_map(word(), failure(), 0..2), btree_map(word(), any::<u32>(), 0..2));
    (uuid(), word(), any::<u8>(), trigger, eval_status(), text(), any::<[u64; 6]>(), failures).prop_map(
        |(id, job, priority, trigger, status, status_description, numbers, (failures, queued))| Evaluation {
            id: EvalId(id),
            job_id: JobId(job),
            priority,
            trigger,
            status,
            status_description,
            wait_until: Timestamp(numbers[0]),
            failures,
            queued,
            snapshot_index: Index(numbers[5]),
            created_at: Timestamp(numbers[1]),
            modified_at: Timestamp(numbers[2]),
            created_at_index: Index(numbers[3]),
            modified_at_index: Index(numbers[4]),
        },
    )
}

fn policy(number: u32) -> UpdatePolicy {
    let seconds = |n: u32| Duration::from_secs(u64::from(n % 100) + 1);
    UpdatePolicy {
        max_parallel: number % 5 + 1,
        health_check: HealthCheck::ALL[(number % 3) as usize],
        min_healthy_time: seconds(number),
        healthy_deadline: seconds(number) * 2,
        progress_deadline: seconds(number) * 3,
        canary: number % 4,
        auto_revert: number.is_multiple_of(3),
        auto_promote: !number.is_multiple_of(4),
        stagger: seconds(number),
        order: UpdateOrder::ALL[(number / 2 % 2) as usize],
    }
}

fn deployment(number: u64) -> Deployment {
    let group = DeploymentGroup {
        auto_revert: number.is_multiple_of(2),
        auto_promote: number.is_multiple_of(3),
        progress_deadline: Duration::from_secs(number % 1000),
        require_progress_by: Timestamp(number),
        promoted: number.is_multiple_of(5),
        desired_canaries: (number % 7) as u32,
        desired_total: (number % 11) as u32,
        placed_canaries: vec![AllocId(id(u128::from(number)))],
        placed: 1,
        healthy: 2,
        unhealthy: 3,
    };
    Deployment {
        id: DeploymentId(id(u128::from(number))),
        job_id: JobId("web".to_owned()),
        job_version: number,
        status: DeploymentStatus::Paused,
        status_description: "because".to_owned(),
        groups: BTreeMap::from([("web".to_owned(), group)]),
        created_at: Timestamp(number),
        modified_at: Timestamp(1),
        created_at_index: Index(2),
        modified_at_index: Index(3),
    }
}

fn eligibility(eligible: bool) -> Eligibility {
    if eligible { Eligibility::Eligible } else { Eligibility::Ineligible }
}

fn plan() -> impl Strategy<Value = Plan> {
    let stop = (uuid(), text(), option::of(client())).prop_map(|(id, reason, client)| PlannedStop {
        alloc_id: AllocId(id),
        reason,
        client,
    });
    let lists = (vec(stop, 0..2), vec(alloc(), 0..3), vec(uuid(), 0..2));
    (uuid(), word(), any::<u64>(), lists, btree_map(word(), failure(), 0..2), option::of(time())).prop_map(
        |(eval, job, index, (stops, placements, in_place), failures, follow_up_at)| Plan {
            eval_id: EvalId(eval),
            job_id: JobId(job),
            snapshot_index: Index(index),
            goes_on: index % 2 == 1,
            victims: Vec::new(),
            stops,
            placements,
            in_place: in_place.into_iter().map(AllocId).collect(),
            queued: failures.keys().map(|group| (group.clone(), 7)).collect(),
            failures,
            deployment: follow_up_at.map(|_| deployment(index)),
            follow_up_at,
        },
    )
}

fn node_status() -> impl Strategy<Value = NodeStatus> {
    use NodeStatus::*;
    prop_oneof![Just(Initializing), Just(Ready), Just(Suspect), Just(Disconnected), Just(Down)]
}

fn node() -> impl Strategy<Value = Node> {
    let driver = (any::<(bool, bool)>(), text()).prop_map(|((detected, healthy), description)| DriverStatus {
        detected,
        healthy,
        description,
    });
    let places = (any::<IpAddr>(), vec(net(), 0..3));
    (uuid(), word(), places, texts(), btree_map(word(), driver, 0..2), node_status(), any::<(bool, [u64; 7])>())
        .prop_map(|(id, name, (address, blocks), attributes, drivers, status, (eligible, numbers))| Node {
            id: NodeId(id),
            datacenter: name.clone(),
            pool: "default".to_owned(),
            class: String::new(),
            version: name.clone(),
            name,
            address,
            meta: attributes.clone(),
            attributes,
            resources: NodeResources { cpu_mhz: numbers[0], memory_mb: numbers[1], disk_mb: numbers[2] },
            drivers,
            status,
            eligibility: eligibility(eligible),
            drain: eligible.then_some(Drain {
                started_at: Timestamp(numbers[0]),
                deadline: Timestamp(numbers[1]),
                ignore_system: eligible,
            }),
            epoch: Epoch(numbers[3]),
            blocks,
            status_changed_at: Timestamp(numbers[4]),
            created_at_index: Index(numbers[5]),
            modified_at_index: Index(numbers[6]),
        })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Agent)]
}

fn token() -> impl Strategy<Value = JoinToken> {
    (any::<[u8; 32]>(), role(), any::<u32>(), time()).prop_map(|(digest, role, uses_left, expires_at)| JoinToken {
        digest,
        role,
        uses_left,
        expires_at,
    })
}

fn server() -> impl Strategy<Value = ServerRecord> {
    (any::<u64>(), word(), address()).prop_map(|(id, name, rpc_address)| ServerRecord {
        id: ServerId(id),
        name,
        rpc_address,
    })
}

fn authority() -> impl Strategy<Value = Authority> {
    (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40))
        .prop_map(|(certificate_der, sealed_key)| Authority { certificate_der, sealed_key })
}

fn command() -> impl Strategy<Value = Command> {
    let evals = || vec(eval(), 0..2);
    prop_oneof![
        (authority(), net(), net()).prop_map(|(authority, alloc_range, vip_range)| Command::Bootstrap {
            authority,
            alloc_range,
            vip_range,
        }),
        server().prop_map(Command::UpsertServer),
        any::<u64>().prop_map(|id| Command::RemoveServer { id: ServerId(id) }),
        token().prop_map(Command::CreateToken),
        (any::<[u8; 32]>(), role(), text()).prop_map(|(digest, role, name)| Command::UseToken { digest, role, name }),
        node().prop_map(|node| Command::RegisterNode(Box::new(node))),
        (uuid(), any::<u64>(), node_status(), evals()).prop_map(|(id, epoch, status, evals)| Command::SetNodeStatus {
            node_id: NodeId(id),
            epoch: Epoch(epoch),
            status,
            evals,
        }),
        (valid_job(), eval(), option::of(any::<u64>())).prop_map(|(job, eval, index)| Command::RegisterJob {
            job: Box::new(job),
            eval,
            enforce_index: index.map(Index),
        }),
        (uuid(), any::<(bool, u64, bool)>(), evals()).prop_map(|(id, (eligible, deadline, ignore_system), evals)| {
            let (node_id, eligibility) = (NodeId(id), eligibility(eligible));
            match deadline {
                0 => Command::SetNodeEligibility { node_id, eligibility, evals },
                1 => Command::StopAllocs { alloc_ids: vec![AllocId(id)], evals },
                2 => Command::CollectGarbage(Box::new(garbage(id))),
                deadline => {
                    let deadline = Timestamp(deadline);
                    let drain = (!deadline.0.is_multiple_of(3)).then_some(Drain {
                        started_at: deadline,
                        deadline,
                        ignore_system,
                    });
                    Command::SetNodeDrain { node_id, drain, eligibility, evals }
                }
            }
        }),
        (uuid(), vec(uuid(), 0..3), option::of(text()), any::<bool>(), eval()).prop_map(
            |(id, ids, text, revert, eval)| {
                let update = DeploymentUpdate {
                    healthy: ids.iter().copied().map(AllocId).collect(),
                    promote: text.iter().cloned().collect(),
                    status: text.is_some().then_some(DeploymentStatus::Failed),
                    status_description: text.unwrap_or_default(),
                    revert,
                    ..DeploymentUpdate::of(DeploymentId(id))
                };
                Command::UpdateDeployment { update, eval }
            }
        ),
        (valid_job(), word(), any::<[u64; 2]>(), eval()).prop_map(|(job, id, [launch, version], eval)| {
            let (child, job_id) = (Box::new(job), JobId(id));
            match version % 4 {
                0 => Command::DispatchJob { child, eval },
                1 => {
                    let child = (launch % 2 == 0).then_some(child);
                    Command::LaunchPeriodic { parent: job_id, launch: Timestamp(launch), child, eval }
                }
                2 => Command::MarkStable { job_id, version, stable: launch % 2 == 0 },
                _ => Command::RestartJob { job_id, eval },
            }
        }),
        (word(), any::<bool>(), eval()).prop_map(|(id, purge, eval)| Command::DeregisterJob {
            job_id: JobId(id),
            purge,
            eval,
        }),
        (plan(), option::of(eval()))
            .prop_map(|(plan, follow_up)| Command::ApplyPlan { plan: Box::new(plan), follow_up }),
        (uuid(), any::<u64>(), vec(update(), 0..3), evals()).prop_map(|(id, epoch, updates, evals)| {
            Command::UpdateAllocs { node_id: NodeId(id), epoch: Epoch(epoch), updates, evals }
        }),
        evals().prop_map(Command::UpsertEvals),
        any::<u32>().prop_map(|level| Command::SetFeatureLevel { level }),
        (uuid(), any::<u64>(), node_status(), text(), evals()).prop_map(|(id, epoch, status, reason, evals)| {
            Command::JudgeNode { node_id: NodeId(id), epoch: Epoch(epoch), status, reason, evals }
        }),
        kv_change().prop_map(Command::ChangeKv),
        variable_change().prop_map(Command::ChangeVariable),
        (any::<[u64; 6]>(), option::of(any::<u64>()))
            .prop_map(|(numbers, cas)| Command::SetAutopilot { autopilot: autopilot(numbers), cas: cas.map(Index) }),
    ]
}

fn kv_change() -> impl Strategy<Value = KvChange> {
    (text(), vec(any::<u8>(), 0..40), any::<u64>(), option::of(any::<u64>()), 0..3).prop_map(
        |(key, value, flags, cas, kind)| {
            let cas = cas.map(Index);
            match kind {
                0 => KvChange::Set { key, value, flags, cas },
                1 => KvChange::Delete { key, cas },
                _ => KvChange::DeletePrefix { prefix: key },
            }
        },
    )
}

fn variable_change() -> impl Strategy<Value = VariableChange> {
    (word(), text(), option::of(vec(any::<u8>(), 0..40)), option::of(any::<u64>())).prop_map(
        |(namespace, path, sealed, cas)| {
            let cas = cas.map(Index);
            match sealed {
                Some(sealed) => VariableChange::Set { namespace, path, sealed, cas },
                None => VariableChange::Delete { namespace, path, cas },
            }
        },
    )
}

fn autopilot(numbers: [u64; 6]) -> Autopilot {
    Autopilot {
        cleanup_dead_servers: numbers[0].is_multiple_of(2),
        last_contact_ms_max: numbers[0],
        trailing_logs_max: numbers[1],
        quorum_min: numbers[2] as u32,
        stabilization_ms: numbers[3],
        dead_server_after_ms: numbers[4],
        modified_at_index: Index(numbers[5]),
    }
}

fn kv_entry(number: u64) -> KvEntry {
    KvEntry {
        key: format!("key/{number}"),
        value: number.to_be_bytes().to_vec(),
        flags: number,
        created_at_index: Index(number),
        modified_at_index: Index(number + 1),
    }
}

fn variable(number: u64) -> Variable {
    Variable {
        namespace: "default".to_owned(),
        path: format!("app/{number}"),
        sealed: vec![7; 20],
        created_at: Timestamp(number),
        modified_at: Timestamp(number + 1),
        created_at_index: Index(number),
        modified_at_index: Index(number + 2),
    }
}

pub(super) fn envelope() -> impl Strategy<Value = Envelope> {
    (time(), 0..=FEATURE_LEVEL, command()).prop_map(|(proposed_at, feature_level, command)| Envelope {
        proposed_at,
        feature_level,
        command,
    })
}

pub(super) fn image() -> impl Strategy<Value = CatalogImage> {
    let founding = (authority(), net(), net()).prop_map(|(authority, alloc_range, vip_range)| Founding {
        authority,
        alloc_range,
        vip_range,
    });
    let record = (vec(valid_job(), 1..3), any::<(bool, [u64; 3])>()).prop_map(|(versions, (purge, at))| JobRecord {
        versions,
        purge,
        created_at_index: Index(at[0]),
        modified_at_index: Index(at[1]),
        job_modified_at_index: Index(at[2]),
        launched_for: Timestamp(at[0]),
    });
    let members = (vec(server(), 0..2), vec(token(), 0..2), vec(node(), 0..2));
    let work = (vec(record, 0..2), vec(alloc(), 0..3), vec(eval(), 0..2));
    let derived = (vec((word(), any::<IpAddr>()), 0..2), vec((uuid(), any::<u64>()), 0..2));
    (any::<(u64, u32, u64)>(), option::of(founding), members, work, derived).prop_map(
        |(numbers, founding, (servers, tokens, nodes), (jobs, allocs, evals), (vips, instances))| CatalogImage {
            index: Index(numbers.0),
            feature_level: numbers.1,
            founding,
            servers,
            tokens,
            nodes,
            jobs,
            allocs,
            evals,
            deployments: (0..numbers.0 % 3).map(deployment).collect(),
            vips,
            tables: Table::ALL.iter().map(|table| (*table, Index(numbers.2))).collect(),
            instances_modified: instances.into_iter().map(|(id, at)| (AllocId(id), Index(at))).collect(),
            routing_modified: Index(numbers.2),
            kv: (0..numbers.0 % 4).map(kv_entry).collect(),
            kv_deleted: Index(numbers.0 % 9),
            variables: (0..numbers.2 % 3).map(variable).collect(),
            autopilot: autopilot([numbers.0; 6]),
            node_reasons: vec![(NodeId(uuid::Uuid::from_u128(7)), "why".to_owned())],
        },
    )
}

pub(super) fn outcome() -> impl Strategy<Value = Outcome> {
    let applied = (any::<u64>(), vec(uuid(), 0..3)).prop_map(|(index, dropped)| Applied {
        index: Index(index),
        dropped: dropped.into_iter().map(AllocId).collect(),
    });
    let plain = prop::sample::select(vec![
        Refusal::NotBootstrapped,
        Refusal::AlreadyBootstrapped,
        Refusal::TokenUnknown,
        Refusal::TokenSpent,
        Refusal::TokenExpired,
        Refusal::TokenExists,
    ]);
    let refusal = prop_oneof![
        plain,
        any::<u64>().prop_map(|at| Refusal::OldIndex { applied: Index(at) }),
        (text(), text()).prop_map(|(range, reason)| Refusal::RangeInvalid { range, reason }),
        any::<(u32, u32)>().prop_map(|(cluster, needed)| Refusal::FeatureLevelTooLow { cluster, needed }),
        any::<(u32, u32)>().prop_map(|(cluster, asked)| Refusal::FeatureLevelLowered { cluster, asked }),
        any::<u64>().prop_map(|id| Refusal::ServerUnknown { id: ServerId(id) }),
        role().prop_map(|asked| Refusal::TokenRole { asked }),
        any::<u32>().prop_map(|max| Refusal::TooManyTokens { max }),
        text().prop_map(|name| Refusal::NameTaken { name }),
        any::<IpAddr>().prop_map(|address| Refusal::AddressTaken { address }),
        text().prop_map(|name| Refusal::NameInvalid { name }),
        uuid().prop_map(|id| Refusal::NodeUnknown { id: NodeId(id) }),
        any::<(u64, u64)>().prop_map(|(known, got)| Refusal::EpochNotNewer { known: Epoch(known), got: Epoch(got) }),
        any::<(u64, u64)>().prop_map(|(known, got)| Refusal::EpochStale { known: Epoch(known), got: Epoch(got) }),
        text().prop_map(|range| Refusal::AddressesExhausted { range }),
        word().prop_map(|id| Refusal::JobUnknown { id: JobId(id) }),
        (word(), any::<(u64, u64)>()).prop_map(|(id, (expected, current))| Refusal::JobIndexConflict {
            id: JobId(id),
            expected: Index(expected),
            current: Index(current),
        }),
        uuid().prop_map(|id| Refusal::DeploymentUnknown { id: DeploymentId(id) }),
        uuid().prop_map(|id| Refusal::DeploymentEnded { id: DeploymentId(id), status: DeploymentStatus::Cancelled }),
        uuid().prop_map(|id| Refusal::NodeDrains { id: NodeId(id) }),
        text().prop_map(|reason| Refusal::NotPromotable { reason }),
        (text(), text()).prop_map(|(name, reason)| Refusal::StoreInvalid { name, reason }),
        (text(), any::<(u64, u64)>()).prop_map(|(name, (expected, current))| Refusal::CasMismatch {
            name,
            expected: Index(expected),
            current: Index(current),
        }),
        (word(), text()).prop_map(|(id, reason)| Refusal::JobInvalid { id: JobId(id), reason }),
        (uuid(), word()).prop_map(|(id, job)| Refusal::EvalMismatch { id: EvalId(id), job_id: JobId(job) }),
        uuid().prop_map(|id| Refusal::EvalUnknown { id: EvalId(id) }),
        (uuid(), eval_status()).prop_map(|(id, status)| Refusal::EvalNotPending { id: EvalId(id), status }),
    ];
    prop_oneof![applied.prop_map(Ok), refusal.prop_map(Err)]
}

fn garbage(id: Uuid) -> Garbage {
    Garbage {
        retention: Retention::DEFAULT,
        evals: vec![EvalId(id)],
        allocs: vec![AllocId(id), AllocId(id)],
        deployments: vec![DeploymentId(id)],
        jobs: vec![JobId("old".to_owned())],
        nodes: vec![NodeId(id)],
    }
}

pub(super) fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let hello =
        (word(), any::<u32>(), node(), vec(update(), 0..2)).prop_map(|(version, feature_level, node, allocs)| {
            AgentMessage::Hello(Box::new(Hello { version, feature_level, node, allocs }))
        });
    let chunk = (any::<(u64, bool)>(), vec(any::<u8>(), 0..20), option::of(text()))
        .prop_map(|((request_id, eof), data, error)| AgentMessage::LogChunk { request_id, data, eof, error });
    let nodes = || vec(uuid(), 0..3).prop_map(|ids| ids.into_iter().map(NodeId).collect::<Vec<_>>());
    let probes =
        (nodes(), nodes()).prop_map(|(answering, unreachable)| AgentMessage::Probes { answering, unreachable });
    let allocs = vec(update(), 0..3).prop_map(AgentMessage::Allocs);
    prop_oneof![hello, Just(AgentMessage::Heartbeat), allocs, chunk, probes]
}

fn instance() -> impl Strategy<Value = Instance> {
    let network = prop_oneof![Just(InstanceNetwork::Bridge), Just(InstanceNetwork::Host)];
    (word(), uuid(), uuid(), any::<(IpAddr, u16, Option<u16>, u16, bool, u64)>(), network, health()).prop_map(
        |(name, alloc, node, numbers, network, health)| Instance {
            service: name.clone(),
            job_id: JobId(name.clone()),
            alloc_id: AllocId(alloc),
            node_id: NodeId(node),
            node_name: name.clone(),
            datacenter: name.clone(),
            address: numbers.0,
            port: numbers.1,
            vip_port: numbers.2,
            tags: vec![name],
            weight: numbers.3,
            network,
            health,
            draining: numbers.4,
            modified_at_index: Index(numbers.5),
            steering: Steering {
                zone_spill: numbers.4.then_some(20),
                slow_start: Duration::from_millis(u64::from(numbers.1)),
            },
        },
    )
}

fn routing() -> impl Strategy<Value = RoutingSnapshot> {
    let node = (uuid(), word(), any::<IpAddr>(), vec(net(), 0..2), node_status()).prop_map(
        |(id, name, address, blocks, status)| RoutedNode {
            id: NodeId(id),
            datacenter: name.clone(),
            zone: name.clone(),
            name,
            address,
            blocks,
            status,
        },
    );
    let service = (word(), any::<IpAddr>(), vec(instance(), 0..3)).prop_map(|(name, vip, instances)| RoutedService {
        name,
        vip,
        instances,
    });
    (any::<u64>(), vec(node, 0..2), vec(service, 0..2)).prop_map(|(generation, nodes, services)| RoutingSnapshot {
        generation: Generation(generation),
        nodes,
        services,
    })
}

pub(super) fn server_message() -> impl Strategy<Value = ServerMessage> {
    let kind = prop_oneof![Just(LogKind::Stdout), Just(LogKind::Stderr)];
    prop_oneof![
        (any::<u32>(), 1..9u32, span(), vec(address(), 0..3)).prop_map(
            |(feature_level, server_level, heartbeat_interval, servers)| ServerMessage::Welcome {
                feature_level,
                heartbeat_interval,
                servers,
                server_level,
            }
        ),
        option::of(address()).prop_map(|leader| ServerMessage::NotLeader { leader }),
        text().prop_map(|reason| ServerMessage::Refused { reason }),
        (any::<u64>(), vec(alloc(), 0..3))
            .prop_map(|(generation, allocs)| ServerMessage::Allocations { generation: Generation(generation), allocs }),
        routing().prop_map(ServerMessage::Routing),
        (any::<(u64, u64, u64, bool)>(), uuid(), word(), kind).prop_map(|(numbers, alloc, task, kind)| {
            ServerMessage::ReadLogs {
                request_id: numbers.0,
                alloc_id: AllocId(alloc),
                task,
                kind,
                offset: numbers.1,
                limit: numbers.2,
                follow: numbers.3,
            }
        }),
        any::<u64>().prop_map(|request_id| ServerMessage::CancelLogs { request_id }),
        (routing(), any::<u64>(), vec(uuid(), 0..3), vec(word(), 0..3)).prop_map(|(state, base, nodes, services)| {
            ServerMessage::RoutingDelta(RoutingDelta {
                base: Generation(base),
                generation: state.generation,
                nodes: state.nodes,
                nodes_gone: nodes.into_iter().map(NodeId).collect(),
                services: state.services,
                services_gone: services,
            })
        }),
        (any::<(u64, u64)>(), vec(alloc(), 0..3), vec(uuid(), 0..3)).prop_map(|((base, generation), allocs, gone)| {
            ServerMessage::AllocationsDelta {
                base: Generation(base),
                generation: Generation(generation),
                allocs,
                gone: gone.into_iter().map(AllocId).collect(),
            }
        }),
    ]
}

// Fixed values: what the fixtures hold. Changing them makes the fixtures useless.

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn pair(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

pub(super) fn fixed_job() -> Job {
    let constraint =
        Constraint { attribute: "${attr.cpu.arch}".to_owned(), operator: Operator::Equal, value: "amd64".to_owned() };
    let http = CheckKind::http("/");
    let check = |name: &str, kind| Check::named(name, kind, Duration::from_secs(2), Duration::from_millis(1500));
    let service = Service {
        tags: vec!["urlprefix-:80 proto=tcp".to_owned()],
        checks: vec![check("http", http), check("tcp", CheckKind::Tcp)],
        meta: pair("vip_port", "80"),
        ..Service::named("web", Some("http"))
    };
    let args = vec!["httpd".to_owned()];
    let config = ExecConfig { command: "/bin/busybox".to_owned(), args, ..ExecConfig::default() };
    let task = Task {
        user: Some("nobody".to_owned()),
        env: pair("A", "B"),
        constraints: vec![constraint.clone()],
        resources: Resources { cpu_mhz: 50, memory_mb: 32, ..Resources::default() },
        kill_signal: Some("SIGTERM".to_owned()),
        ..Task::named("httpd", TaskDriver::Exec(config))
    };
    let port = PortRequest { label: "http".to_owned(), static_port: None, to: Some(80) };
    let group = TaskGroup {
        count: 2,
        network: Some(Network::of(NetworkMode::Bridge, vec![port])),
        services: vec![service],
        tasks: vec![task],
        ..TaskGroup::named("web")
    };
    Job {
        constraints: vec![constraint],
        meta: pair("team", "mesh"),
        groups: vec![group],
        version: 3,
        submitted_at: Timestamp::from_secs(1_000_000_000),
        ..Job::named("web")
    }
}

pub(super) fn fixed_alloc(slot: u32, job: Arc<Job>) -> Allocation {
    let event = TaskEvent { at: Timestamp(9), kind: "Started".to_owned(), message: "Task started".to_owned() };
    let state = TaskState {
        phase: TaskPhase::Running,
        started_at: Timestamp(1_000_000_000_500_000_000),
        events: vec![event],
        ..TaskState::default()
    };
    let check = CheckState { health: Health::Passing, output: "200 OK".to_owned(), changed_at: Timestamp(8) };
    Allocation {
        id: AllocId(id(100 + u128::from(slot))),
        eval_id: EvalId(id(2)),
        node_id: NodeId(id(3)),
        node_name: "n1".to_owned(),
        job,
        group: "web".to_owned(),
        slot,
        ports: vec![AllocatedPort { label: "http".to_owned(), host_port: 20_001, to: 80 }],
        previous: None,
        reschedules: 0,
        desired: DesiredStatus::Run,
        desired_description: String::new(),
        client: ClientStatus::Running,
        client_description: String::new(),
        task_states: BTreeMap::from([("httpd".to_owned(), state)]),
        address: Some(IpAddr::from([10, 64, 0, 2])),
        checks: BTreeMap::from([("web/http".to_owned(), check)]),
        deployment: None,
        created_at: Timestamp(5),
        modified_at: Timestamp(6),
        created_at_index: Index(7),
        modified_at_index: Index(8),
    }
}

pub(super) fn fixed_eval() -> Evaluation {
    let failure = PlacementFailure {
        nodes_evaluated: 3,
        nodes_exhausted: 3,
        dimensions_exhausted: BTreeMap::from([("memory".to_owned(), 3)]),
        ..PlacementFailure::default()
    };
    Evaluation {
        id: EvalId(id(2)),
        job_id: JobId("web".to_owned()),
        priority: 50,
        trigger: EvalTrigger::JobRegister,
        status: EvalStatus::Blocked,
        status_description: "no room".to_owned(),
        wait_until: Timestamp::NEVER,
        failures: BTreeMap::from([("web".to_owned(), failure)]),
        queued: BTreeMap::from([("web".to_owned(), 1)]),
        snapshot_index: Index(0),
        created_at: Timestamp(1),
        modified_at: Timestamp(2),
        created_at_index: Index(3),
        modified_at_index: Index(4),
    }
}

pub(super) fn fixed_node() -> Node {
    let exec = DriverStatus { detected: true, healthy: true, description: String::new() };
    Node {
        id: NodeId(id(3)),
        name: "n1".to_owned(),
        datacenter: "dc1".to_owned(),
        pool: "default".to_owned(),
        class: String::new(),
        address: IpAddr::from([10, 77, 0, 11]),
        attributes: pair("kernel.name", "linux"),
        meta: pair("rack", "r1"),
        resources: NodeResources { cpu_mhz: 4000, memory_mb: 4096, disk_mb: 10_000 },
        drivers: BTreeMap::from([("exec".to_owned(), exec)]),
        status: NodeStatus::Suspect,
        eligibility: Eligibility::Eligible,
        drain: None,
        epoch: Epoch(2),
        blocks: vec!["10.64.0.0/26".parse().expect("a prefix")],
        version: "0.1.0".to_owned(),
        status_changed_at: Timestamp(5),
        created_at_index: Index(6),
        modified_at_index: Index(7),
    }
}

pub(super) fn fixed_instance() -> Instance {
    Instance {
        service: "web".to_owned(),
        job_id: JobId("web".to_owned()),
        alloc_id: AllocId(id(100)),
        node_id: NodeId(id(3)),
        node_name: "n1".to_owned(),
        datacenter: "dc1".to_owned(),
        address: IpAddr::from([10, 64, 0, 2]),
        port: 80,
        vip_port: Some(80),
        tags: vec!["demo".to_owned()],
        weight: 1,
        network: InstanceNetwork::Bridge,
        health: Health::Passing,
        draining: false,
        modified_at_index: Index(9),
        steering: Steering::default(),
    }
}

fn fixed_founding() -> Founding {
    Founding {
        authority: Authority { certificate_der: vec![1, 2, 3], sealed_key: vec![4, 5] },
        alloc_range: "10.64.0.0/11".parse().expect("a prefix"),
        vip_range: "fd00::/64".parse().expect("a prefix"),
    }
}

fn fixed_server() -> ServerRecord {
    let rpc_address = SocketAddr::new(IpAddr::from([10, 77, 0, 21]), 4647);
    ServerRecord { id: ServerId(1), name: "s1".to_owned(), rpc_address }
}

fn fixed_token() -> JoinToken {
    JoinToken { digest: [7; 32], role: Role::Agent, uses_left: 3, expires_at: Timestamp(99) }
}

/// One of every command.
pub(super) fn fixed_commands() -> Vec<(&'static str, Envelope)> {
    let Founding { authority, alloc_range, vip_range } = fixed_founding();
    let job = Arc::new(fixed_job());
    let alloc = fixed_alloc(0, job.clone());
    let update = AllocUpdate {
        alloc_id: alloc.id,
        client: alloc.client,
        client_description: "fine".to_owned(),
        task_states: alloc.task_states.clone(),
        address: alloc.address,
        checks: alloc.checks.clone(),
    };
    let stop = PlannedStop { alloc_id: AllocId(id(9)), reason: "lost".to_owned(), client: Some(ClientStatus::Lost) };
    let plan = Plan {
        eval_id: EvalId(id(2)),
        job_id: JobId("web".to_owned()),
        snapshot_index: Index(4),
        goes_on: false,
        victims: Vec::new(),
        stops: vec![stop],
        placements: vec![alloc, fixed_alloc(1, job.clone())],
        in_place: vec![AllocId(id(8))],
        failures: fixed_eval().failures,
        queued: fixed_eval().queued,
        follow_up_at: Some(Timestamp(77)),
        deployment: None,
    };
    let (node_id, epoch, evals) = (NodeId(id(3)), Epoch(2), vec![fixed_eval()]);
    let (job_id, status) = (JobId("web".to_owned()), NodeStatus::Down);
    let commands = [
        ("bootstrap", Command::Bootstrap { authority, alloc_range, vip_range }),
        ("upsert-server", Command::UpsertServer(fixed_server())),
        ("remove-server", Command::RemoveServer { id: ServerId(1) }),
        ("create-token", Command::CreateToken(fixed_token())),
        ("use-token", Command::UseToken { digest: [7; 32], role: Role::Server, name: "s2".to_owned() }),
        ("register-node", Command::RegisterNode(Box::new(fixed_node()))),
        ("set-node-status", Command::SetNodeStatus { node_id, epoch, status, evals: evals.clone() }),
        ("register-job", Command::RegisterJob { job: Box::new(fixed_job()), eval: fixed_eval(), enforce_index: None }),
        ("deregister-job", Command::DeregisterJob { job_id, purge: true, eval: fixed_eval() }),
        ("apply-plan", Command::ApplyPlan { plan: Box::new(plan), follow_up: Some(fixed_eval()) }),
        ("update-allocs", Command::UpdateAllocs { node_id, epoch, updates: vec![update], evals: evals.clone() }),
        ("upsert-evals", Command::UpsertEvals(evals)),
        ("set-feature-level", Command::SetFeatureLevel { level: 1 }),
    ];
    let envelope = |command| Envelope { proposed_at: Timestamp(1234), feature_level: 1, command };
    commands.into_iter().map(|(name, command)| (name, envelope(command))).collect()
}

pub(super) fn fixed_image() -> CatalogImage {
    let job = Arc::new(fixed_job());
    let record = JobRecord {
        versions: vec![fixed_job(), Job { version: 2, ..fixed_job() }],
        purge: false,
        created_at_index: Index(1),
        modified_at_index: Index(2),
        job_modified_at_index: Index(3),
        launched_for: Timestamp::NEVER,
    };
    CatalogImage {
        index: Index(42),
        feature_level: 1,
        founding: Some(fixed_founding()),
        servers: vec![fixed_server()],
        tokens: vec![fixed_token()],
        nodes: vec![fixed_node()],
        jobs: vec![record],
        allocs: vec![fixed_alloc(0, job.clone()), fixed_alloc(1, job)],
        evals: vec![fixed_eval()],
        vips: vec![("web".to_owned(), IpAddr::from([10, 43, 0, 1]))],
        deployments: Vec::new(),
        // Those of the first release.
        tables: Table::ALL[..8].iter().map(|table| (*table, Index(40))).collect(),
        instances_modified: vec![(AllocId(id(100)), Index(41))],
        routing_modified: Index(41),
        // Of later releases, and absent in the first.
        kv: Vec::new(),
        kv_deleted: Index(0),
        variables: Vec::new(),
        autopilot: Autopilot::default(),
        node_reasons: Vec::new(),
    }
}

/// A job that says something in every block; batch, so that all of them may stand.
pub(super) fn full_job() -> Job {
    let affinity = Affinity {
        attribute: "${meta.rack}".to_owned(),
        operator: Operator::Equal,
        value: "r1".to_owned(),
        weight: -20,
    };
    let spread = Spread {
        attribute: "${node.datacenter}".to_owned(),
        weight: 70,
        targets: BTreeMap::from([("dc1".to_owned(), 60), ("dc2".to_owned(), 40)]),
    };
    Job {
        kind: JobKind::Batch,
        affinities: vec![affinity.clone()],
        spreads: vec![spread.clone()],
        groups: vec![full_group(affinity, spread)],
        periodic: Some(Periodic {
            enabled: true,
            crons: vec!["*/5 * * * *".to_owned()],
            prohibit_overlap: true,
            time_zone: "Europe/Berlin".to_owned(),
        }),
        depends_on: vec![Dependency { job: "db".to_owned(), group: Some("main".to_owned()) }],
        disruption: Some(DisruptionBudget { max_unavailable: 3 }),
        ..fixed_job()
    }
}

fn full_group(affinity: Affinity, spread: Spread) -> TaskGroup {
    let dns = DnsConfig { servers: vec!["10.0.0.2".to_owned()], searches: vec!["a".to_owned()], options: Vec::new() };
    let network = Network {
        hostname: Some("web".to_owned()),
        dns: Some(dns),
        ..Network::of(
            NetworkMode::Bridge,
            vec![PortRequest { label: "http".to_owned(), static_port: None, to: Some(80) }],
        )
    };
    let volume = VolumeRequest {
        name: "data".to_owned(),
        kind: VolumeKind::Host,
        source: "ssd".to_owned(),
        read_only: true,
        per_alloc: true,
    };
    TaskGroup {
        affinities: vec![affinity.clone()],
        spreads: vec![spread],
        reschedule: ReschedulePolicy { unlimited: true, attempts: 0, ..ReschedulePolicy::SERVICE },
        disconnect: DisconnectPolicy {
            lost_after: Duration::from_secs(60),
            stop_on_client_after: Some(Duration::from_secs(120)),
            replace: false,
            reconcile: Reconcile::LongestRunning,
        },
        network: Some(network),
        volumes: vec![volume],
        disk_sticky: true,
        disk_migrate: true,
        shutdown_delay: Duration::from_secs(3),
        max_run_duration: Some(Duration::from_secs(3600)),
        services: vec![full_service()],
        tasks: vec![full_task(affinity), full_plugin_task()],
        ..TaskGroup::named("web")
    }
}

fn full_service() -> Service {
    let tls = Some(CheckTls { server_name: "web.example".to_owned(), skip_verify: true });
    let kinds = [
        CheckKind::Http {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            headers: BTreeMap::from([("A".to_owned(), vec!["1".to_owned(), "2".to_owned()])]),
            body: "hello".to_owned(),
            tls: tls.clone(),
        },
        CheckKind::Grpc { service: "web".to_owned(), tls },
        CheckKind::Script { command: "/bin/true".to_owned(), args: vec!["-a".to_owned()] },
    ];
    let restart = CheckRestart { limit: 3, grace: Duration::from_secs(9), ignore_warnings: true };
    let check = |(number, kind): (usize, CheckKind)| Check {
        initial: Some(Health::Warning),
        successes_before_passing: 2,
        failures_before_critical: 3,
        on_update: OnUpdate::IgnoreWarnings,
        restart: Some(restart),
        task: Some("httpd".to_owned()),
        ..Check::named(&format!("check-{number}"), kind, Duration::from_secs(5), Duration::from_secs(2))
    };
    Service {
        checks: kinds.into_iter().enumerate().map(check).collect(),
        canary_tags: Some(vec!["canary".to_owned()]),
        canary_meta: pair("a", "b"),
        weights: Weights { passing: 10, warning: 2 },
        ..Service::named("web", Some("http"))
    }
}

fn full_task(affinity: Affinity) -> Task {
    let config = ExecConfig {
        command: "/bin/busybox".to_owned(),
        args: vec!["httpd".to_owned()],
        work_dir: Some("/local".to_owned()),
        cap_add: vec!["net_raw".to_owned()],
        cap_drop: vec!["chown".to_owned()],
    };
    let device = DeviceRequest {
        name: "nvidia/gpu".to_owned(),
        count: 2,
        constraints: Vec::new(),
        affinities: vec![affinity.clone()],
    };
    Task {
        affinities: vec![affinity],
        resources: Resources { cpu_mhz: 50, memory_mb: 32, memory_max_mb: 64, cores: 1 },
        devices: vec![device],
        restart: Some(RestartPolicy { attempts: 7, ..RestartPolicy::BATCH }),
        leader: true,
        shutdown_delay: Duration::from_secs(2),
        artifacts: vec![full_artifact()],
        templates: vec![full_template(ChangeMode::Signal("SIGHUP".to_owned()))],
        volume_mounts: vec![VolumeMount {
            volume: "data".to_owned(),
            destination: "/data".to_owned(),
            read_only: true,
        }],
        payload_file: Some("input.json".to_owned()),
        ..Task::named("httpd", TaskDriver::Exec(config))
    }
}

fn full_artifact() -> Artifact {
    Artifact {
        source: "https://example.com/a.tar.gz".to_owned(),
        destination: "local/a".to_owned(),
        mode: ArtifactMode::Dir,
        options: pair("checksum", "sha256:00"),
        headers: pair("X", "y"),
        insecure: true,
        chown: true,
    }
}

fn full_template(on_change: ChangeMode) -> Template {
    Template {
        source: TemplateSource::Inline("{{ env \"A\" }}".to_owned()),
        destination: "local/a.conf".to_owned(),
        on_change,
        splay: Duration::from_secs(1),
        perms: 0o600,
        uid: Some(1000),
        gid: Some(0),
        left_delimiter: "[[".to_owned(),
        right_delimiter: "]]".to_owned(),
        env: true,
        once: true,
        error_on_missing_key: true,
        wait: Some((Duration::from_secs(1), Duration::from_secs(4))),
    }
}

fn full_plugin_task() -> Task {
    let script = ChangeScript {
        command: "/bin/reload".to_owned(),
        args: vec!["now".to_owned()],
        timeout: Duration::from_secs(7),
        fail_on_error: true,
    };
    let text = |text: &str| ConfigValue::Text(text.to_owned());
    let mount = BTreeMap::from([("target".to_owned(), text("/a")), ("readonly".to_owned(), ConfigValue::Bool(true))]);
    let config = BTreeMap::from([
        ("image".to_owned(), text("busybox:1")),
        ("args".to_owned(), ConfigValue::List(vec![text("httpd"), text("-f")])),
        ("labels".to_owned(), ConfigValue::Map(BTreeMap::from([("a".to_owned(), text("b"))]))),
        ("mount".to_owned(), ConfigValue::List(vec![ConfigValue::Map(mount)])),
        ("shm_size".to_owned(), ConfigValue::Integer(65_536)),
    ]);
    let driver = TaskDriver::Plugin(PluginConfig { driver: Plugin::Docker, config });
    Task {
        lifecycle: Some(Lifecycle { hook: LifecycleHook::Poststart, sidecar: true }),
        templates: vec![full_template(ChangeMode::Script(script)), full_template(ChangeMode::Noop)],
        ..Task::named("helper", driver)
    }
}
