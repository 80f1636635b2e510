//! Commands of the old stack that are known and not built yet: refused by name, so that a script fails with a reason.

/// Nomad's and Consul's command names without those that work here.
const UNBUILT: [&str; 42] = [
    "acl",
    "alloc exec",
    "alloc fs",
    "catalog",
    "compat",
    "dns",
    "eval delete",
    "event",
    "fmt",
    "intention",
    "job init",
    "job scaling-events",
    "lock",
    "maint",
    "monitor",
    "namespace",
    "node config",
    "node meta",
    "node pool",
    "operator debug",
    "operator keyring",
    "operator metrics",
    "operator scheduler",
    "quota",
    "recommendation",
    "route flows",
    "scaling",
    "secrets",
    "sentinel",
    "server force-leave",
    "server join-peer",
    "service delete",
    "setup",
    "system reconcile",
    "tls",
    "top",
    "ui",
    "volume",
    "watch",
    "agent-info",
    "config",
    "plugin",
];

/// What to say when the arguments name one of them.
pub fn refusal(arguments: &[String]) -> Option<String> {
    let words: Vec<&str> =
        arguments.iter().skip(1).map(String::as_str).filter(|word| !word.starts_with('-')).take(3).collect();
    let named = (1..=words.len()).rev().map(|count| words[..count].join(" "));
    let known = named.into_iter().find(|name| UNBUILT.contains(&name.as_str()))?;
    Some(format!("`meshctl {known}` is not built yet; `meshctl --help` lists what is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<&str>) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let expected =
            expected.map(|name| format!("`meshctl {name}` is not built yet; `meshctl --help` lists what is"));
        assert_eq!(refusal(&words), expected);
    }

    #[test]
    fn known_commands_are_refused_by_their_whole_name() {
        check("meshctl job init x", Some("job init"));
        check("meshctl acl token list", Some("acl"));
        check("meshctl operator debug now", Some("operator debug"));
    }

    #[test]
    fn built_commands_pass() {
        check("meshctl job run x.hcl", None);
        check("meshctl operator raft list-peers", None);
        check("meshctl kv get a", None);
        check("meshctl route show web", None);
        check("meshctl", None);
    }
}
