//! Routes of Nomad's API that are known and not built: they answer 501 and say so, so that nobody takes them for a typing
//! error or, worse, for done.

use super::answer::HttpError;
use axum::http::Method;

/// `*` is one segment, a trailing `**` any number of them.
const KNOWN: [&str; 46] = [
    "jobs/statuses",
    "job/*/submission",
    "job/*/services",
    "job/*/actions",
    "allocation/*/services",
    "client/allocation/**",
    "client/fs/ls/**",
    "client/fs/stat/**",
    "client/fs/cat/**",
    "client/fs/readat/**",
    "client/fs/stream/**",
    "client/stats",
    "client/gc",
    "client/metadata",
    "node/*/evaluate",
    "node/*/purge",
    "node/pools",
    "node/pool/**",
    "evaluations/count",
    "deployment/unblock/*",
    "service/*/*",
    "operator/scheduler/configuration",
    "operator/keyring/**",
    "agent/servers",
    "agent/join",
    "agent/force-leave",
    "agent/health",
    "agent/host",
    "agent/monitor",
    "agent/keyring/**",
    "agent/schedulers",
    "agent/schedulers/config",
    "search",
    "search/fuzzy",
    "system/reconcile/summaries",
    "namespaces",
    "namespace",
    "namespace/**",
    "acl/**",
    "scaling/policies",
    "scaling/policy/**",
    "volumes",
    "volume/**",
    "plugins",
    "plugin/**",
    "quotas",
];

pub(crate) fn is_known(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "/.well-known/jwks.json"
        || path.strip_prefix("/v1/").is_some_and(|path| KNOWN.iter().any(|pattern| matches(pattern, path)))
}

pub(crate) fn refusal(method: &Method, path: &str) -> HttpError {
    HttpError::not_built(format!("{method} {path} is known but not built yet in meshctl {}", model::VERSION))
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, segments.next()) {
            ("**", _) => return true,
            ("*", Some(found)) if !found.is_empty() => {}
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_routes_are_told_from_unknown_ones() {
        for path in
            ["/v1/job/web/actions", "/v1/volumes", "/v1/acl/a/b/c", "/v1/client/allocation/x/stats", "/v1/namespaces/"]
        {
            assert!(is_known(path), "{path}");
        }
        for path in ["/", "/v1", "/v1/job/web/plans", "/v2/volumes", "/v1/volumesx", "/v1/job//actions"] {
            assert!(!is_known(path), "{path}");
        }
    }
}
