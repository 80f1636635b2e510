//! A [`ContainerSpec`] as the engine's API wants it.

use crate::spec::*;
use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount as ApiMount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, PortBinding, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;

pub(crate) fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let ports: Vec<_> = published(&spec.network).iter().flat_map(|port| [tcp(port.to), udp(port.to)]).collect();
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        hostname: spec.hostname.clone(),
        user: spec.user.clone(),
        attach_stdin: Some(spec.interactive),
        open_stdin: Some(spec.interactive),
        tty: Some(spec.tty),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        cmd: some(&spec.command),
        entrypoint: some(&spec.entrypoint),
        working_dir: spec.work_dir.clone(),
        labels: Some(map(&spec.labels)),
        exposed_ports: some(&ports),
        host_config: Some(host(spec)),
        ..ContainerCreateBody::default()
    }
}

fn host(spec: &ContainerSpec) -> HostConfig {
    let limits = &spec.limits;
    HostConfig {
        cpu_shares: number(limits.cpu_shares),
        cpu_quota: limits.cpu_quota_us.map(signed),
        cpu_period: limits.cpu_period_us.map(signed),
        cpuset_cpus: limits.cpuset.clone(),
        memory: number(limits.memory_bytes),
        // The same as memory: none may be swapped out instead of being held to the limit.
        memory_swap: number(limits.memory_bytes),
        memory_reservation: limits.memory_reserved_bytes.map(signed),
        pids_limit: number(limits.pids_max),
        oom_score_adj: spec.oom_score_adj,
        devices: some(&spec.devices.iter().map(device).collect::<Vec<_>>()),
        ulimits: some(&spec.ulimits.iter().map(ulimit).collect::<Vec<_>>()),
        // Output goes to the supervisor, which keeps it; the engine would keep it a second time.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        network_mode: network_mode(&spec.network),
        port_bindings: port_bindings(&spec.network),
        // Whether a task is started again is the agent's to decide.
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        mounts: some(&spec.mounts.iter().map(mount).collect::<Vec<_>>()),
        cap_drop: (!spec.privileged).then(|| vec!["ALL".to_owned()]),
        cap_add: (!spec.privileged).then(|| spec.capabilities.clone()),
        cgroupns_mode: spec.cgroupns.as_deref().map(|mode| match mode {
            "host" => HostConfigCgroupnsModeEnum::HOST,
            _ => HostConfigCgroupnsModeEnum::PRIVATE,
        }),
        dns: some(&spec.dns.servers),
        dns_search: some(&spec.dns.searches),
        dns_options: some(&spec.dns.options),
        extra_hosts: some(&spec.extra_hosts),
        group_add: some(&spec.group_add),
        ipc_mode: spec.ipc_mode.clone(),
        pid_mode: spec.pid_mode.clone(),
        uts_mode: spec.uts_mode.clone(),
        userns_mode: spec.userns_mode.clone(),
        privileged: Some(spec.privileged),
        readonly_rootfs: Some(spec.readonly_rootfs),
        init: spec.init.then_some(true),
        security_opt: some(&spec.security_opt),
        storage_opt: (!spec.storage_opt.is_empty()).then(|| map(&spec.storage_opt)),
        shm_size: spec.shm_bytes.map(signed),
        sysctls: (!spec.sysctls.is_empty()).then(|| map(&spec.sysctls)),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    }
}

fn network_mode(network: &Network) -> Option<String> {
    match network {
        Network::None => Some("none".to_owned()),
        Network::Host => Some("host".to_owned()),
        Network::Engine(_) => None,
        Network::Named(name, _) => Some(name.clone()),
        Network::Namespace(path) => Some(format!("ns:{}", path.display())),
        Network::Sandbox(sandbox) => Some(format!("container:{}", sandbox.name)),
    }
}

fn published(network: &Network) -> &[Published] {
    match network {
        Network::Engine(ports) | Network::Named(_, ports) => ports,
        Network::None | Network::Host | Network::Namespace(_) | Network::Sandbox(_) => &[],
    }
}

fn port_bindings(network: &Network) -> Option<HashMap<String, Option<Vec<PortBinding>>>> {
    let bound = |port: &Published| {
        let to = PortBinding { host_ip: Some(port.address.clone()), host_port: Some(port.host_port.to_string()) };
        [(tcp(port.to), Some(vec![to.clone()])), (udp(port.to), Some(vec![to]))]
    };
    let ports = published(network);
    (!ports.is_empty()).then(|| ports.iter().flat_map(bound).collect())
}

fn mount(mount: &Mount) -> ApiMount {
    let plain =
        ApiMount { target: Some(mount.target.clone()), read_only: Some(mount.read_only), ..ApiMount::default() };
    match &mount.kind {
        MountKind::Bind { source, propagation } => ApiMount {
            typ: Some(MountType::BIND),
            source: Some(source.display().to_string()),
            bind_options: propagation.as_deref().map(|name| MountBindOptions {
                propagation: name.parse::<MountBindOptionsPropagationEnum>().ok(),
                ..MountBindOptions::default()
            }),
            ..plain
        },
        MountKind::Volume { name } => {
            ApiMount { typ: Some(MountType::VOLUME), source: (!name.is_empty()).then(|| name.clone()), ..plain }
        }
        MountKind::Tmpfs { bytes, mode } => ApiMount {
            typ: Some(MountType::TMPFS),
            tmpfs_options: Some(MountTmpfsOptions {
                size_bytes: bytes.map(signed),
                mode: mode.map(i64::from),
                ..MountTmpfsOptions::default()
            }),
            ..plain
        },
    }
}

fn device(device: &Device) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(device.host.clone()),
        path_in_container: Some(device.container.clone()),
        cgroup_permissions: Some(device.permissions.clone()),
    }
}

fn ulimit(ulimit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(ulimit.name.clone()), soft: Some(ulimit.soft), hard: Some(ulimit.hard) }
}

fn tcp(port: u16) -> String {
    format!("{port}/tcp")
}

fn udp(port: u16) -> String {
    format!("{port}/udp")
}

fn some<T: Clone>(items: &[T]) -> Option<Vec<T>> {
    (!items.is_empty()).then(|| items.to_vec())
}

fn map(pairs: &std::collections::BTreeMap<String, String>) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn number(value: u64) -> Option<i64> {
    (value > 0).then(|| signed(value))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_listed_and_no_others() {
        let spec = ContainerSpec { capabilities: vec!["CHOWN".into()], ..ContainerSpec::default() };
        let host = body(&spec).host_config.expect("has one");
        assert_eq!((host.cap_drop, host.cap_add), (Some(vec!["ALL".into()]), Some(vec!["CHOWN".into()])));
        assert_eq!((host.privileged, host.network_mode.as_deref()), (Some(false), Some("none")));
    }

    #[test]
    fn published_ports_lead_from_the_nodes_address() {
        let port = Published { address: "10.0.0.1".into(), host_port: 20_001, to: 80 };
        let body = body(&ContainerSpec { network: Network::Engine(vec![port]), ..ContainerSpec::default() });
        assert_eq!(body.exposed_ports, Some(vec!["80/tcp".to_owned(), "80/udp".to_owned()]));
        let bound = body.host_config.and_then(|host| host.port_bindings).expect("binds");
        assert_eq!(bound["80/tcp"].as_ref().map(|all| all[0].host_port.clone()), Some(Some("20001".to_owned())));
    }

    #[test]
    fn a_limit_of_memory_is_one_of_swap_too() {
        let limits = Limits { memory_bytes: 64 << 20, ..Limits::default() };
        let host = body(&ContainerSpec { limits, ..ContainerSpec::default() }).host_config.expect("has one");
        assert_eq!((host.memory, host.memory_swap, host.pids_limit), (Some(64 << 20), Some(64 << 20), None));
    }
}
