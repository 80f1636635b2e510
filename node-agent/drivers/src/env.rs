//! The environment of a task under Nomad's names, and `${…}` in what job files say.

use model::{Allocation, Node, Task};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// What the variables are made of. The directories are as the task sees them.
#[derive(Clone, Copy, Debug)]
pub struct EnvInputs<'a> {
    pub node: &'a Node,
    pub alloc: &'a Allocation,
    pub task: &'a Task,
    pub alloc_dir: &'a Path,
    pub task_dir: &'a Path,
    pub secrets_dir: &'a Path,
    /// The allocation's own address, in network mode bridge.
    pub address: Option<IpAddr>,
}

type Values = BTreeMap<String, String>;

/// Nomad's variables and over them the task's own `env`, interpolated.
pub fn task_env(inputs: &EnvInputs<'_>) -> Values {
    let mut env = identity_env(inputs);
    env.extend(meta_env(inputs));
    env.extend(port_env(inputs));
    let node = node_values(inputs.node);
    let own: Values = inputs.task.env.iter().map(|(key, text)| (clean(key), interpolate(text, &env, &node))).collect();
    env.extend(own);
    env
}

/// Replaces `${NAME}` and `${env["NAME"]}` by the environment and `${attr.…}`, `${node.…}`, `${meta.…}` by the node's values.
/// A reference to something unknown stays as it is written, as with Nomad, so that shell text survives.
pub fn interpolate(text: &str, env: &Values, node: &Values) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = from.find('}') else {
            rest = from;
            break;
        };
        let (reference, after) = from.split_at(end + 1);
        let value = look_up(&reference[2..end], env, node);
        out.push_str(value.map_or(reference, String::as_str));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The node's side of interpolation, keyed as job files write it.
pub fn node_values(node: &Node) -> Values {
    let attributes = node.attributes.iter().map(|(key, value)| (format!("attr.{key}"), value.clone()));
    let meta = node.meta.iter().map(|(key, value)| (format!("meta.{key}"), value.clone()));
    let own = [
        ("node.unique.id", node.id.to_string()),
        ("node.unique.name", node.name.clone()),
        ("node.datacenter", node.datacenter.clone()),
        ("node.class", node.class.clone()),
        ("node.pool", node.pool.clone()),
    ];
    attributes.chain(meta).chain(own.map(|(key, value)| (key.to_owned(), value))).collect()
}

fn look_up<'a>(name: &str, env: &'a Values, node: &'a Values) -> Option<&'a String> {
    let name = name.trim();
    let quoted = name.strip_prefix("env[\"").and_then(|name| name.strip_suffix("\"]"));
    match quoted {
        Some(name) => env.get(name).or_else(|| node.get(name)),
        None => env.get(name).or_else(|| node.get(name)),
    }
}

fn identity_env(inputs: &EnvInputs<'_>) -> Values {
    let EnvInputs { node, alloc, task, .. } = inputs;
    let job = &alloc.job;
    [
        ("NOMAD_ALLOC_DIR", inputs.alloc_dir.display().to_string()),
        ("NOMAD_TASK_DIR", inputs.task_dir.display().to_string()),
        ("NOMAD_SECRETS_DIR", inputs.secrets_dir.display().to_string()),
        ("NOMAD_ALLOC_ID", alloc.id.to_string()),
        ("NOMAD_SHORT_ALLOC_ID", alloc.id.short()),
        ("NOMAD_ALLOC_NAME", alloc.name()),
        ("NOMAD_ALLOC_INDEX", alloc.slot.to_string()),
        ("NOMAD_TASK_NAME", task.name.clone()),
        ("NOMAD_GROUP_NAME", alloc.group.clone()),
        ("NOMAD_JOB_ID", job.id.to_string()),
        ("NOMAD_JOB_NAME", job.name.clone()),
        ("NOMAD_DC", node.datacenter.clone()),
        ("NOMAD_REGION", job.region.clone()),
        ("NOMAD_NAMESPACE", job.namespace.clone()),
        ("NOMAD_CPU_LIMIT", task.resources.cpu_mhz.to_string()),
        ("NOMAD_MEMORY_LIMIT", task.resources.memory_mb.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The task's meta over the group's over the job's, each key as written and in capitals.
fn meta_env(inputs: &EnvInputs<'_>) -> Values {
    let group = inputs.alloc.task_group().map(|group| &group.meta);
    let layers = [Some(&inputs.alloc.job.meta), group, Some(&inputs.task.meta)];
    let merged: BTreeMap<_, _> = layers.into_iter().flatten().flatten().collect();
    let both = |(key, value): (&String, &String)| {
        let key = clean(key);
        [(format!("NOMAD_META_{}", key.to_uppercase()), value.clone()), (format!("NOMAD_META_{key}"), value.clone())]
    };
    merged.into_iter().flat_map(both).collect()
}

/// `PORT` is what the task binds; `IP`, `ADDR` and `HOST_…` are where others reach it on the node; `ALLOC_…` the mesh address.
fn port_env(inputs: &EnvInputs<'_>) -> Values {
    let host = inputs.node.address;
    let mut env = Values::new();
    for port in &inputs.alloc.ports {
        let label = clean(&port.label);
        let mut put = |name: &str, value: String| drop(env.insert(format!("NOMAD_{name}_{label}"), value));
        put("IP", host.to_string());
        put("PORT", port.to.to_string());
        put("ADDR", address(host, port.host_port));
        put("HOST_IP", host.to_string());
        put("HOST_PORT", port.host_port.to_string());
        put("HOST_ADDR", address(host, port.host_port));
        put("ALLOC_PORT", port.to.to_string());
        if let Some(own) = inputs.address {
            put("ALLOC_IP", own.to_string());
            put("ALLOC_ADDR", address(own, port.to));
        }
    }
    env
}

fn address(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// Variable names as shells accept them: everything else becomes an underscore.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn check(text: &str, expect: &str) {
        let env = values(&[("NOMAD_PORT_http", "8080"), ("A", "x")]);
        let node = values(&[("attr.kernel.name", "linux"), ("node.unique.name", "n1"), ("meta.rack", "r7")]);
        assert_eq!(interpolate(text, &env, &node), expect, "{text}");
    }

    #[test]
    fn known_references_are_replaced() {
        check("-p ${NOMAD_PORT_http}${A}", "-p 8080x");
        check("${env[\"NOMAD_PORT_http\"]}", "8080");
        check("${attr.kernel.name}/${node.unique.name}/${meta.rack}", "linux/n1/r7");
    }

    #[test]
    fn everything_else_stays_as_written() {
        for text in ["", "$", "${", "${}", "a ${NOPE} b", "$A", "${attr.nope", "}${"] {
            check(text, text);
        }
        check("${NOPE ${A}", "${NOPE ${A}");
        check("${é}${A}", "${é}x");
    }

    #[test]
    fn replaced_text_is_not_read_again() {
        let env = values(&[("A", "${B}"), ("B", "no")]);
        assert_eq!(interpolate("${A}", &env, &Values::new()), "${B}");
    }
}
