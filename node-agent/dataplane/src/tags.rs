//! Routes that services ask for with fabio's tags: `urlprefix-:80 proto=tcp` opens port 80 on every node. fabio knows no UDP;
//! `proto=udp` in the same place opens a UDP port, and as a tag of its own says that the service's VIP takes datagrams too.
//!
//! A tag is a stranger's text. What is not a route of this build is a typed problem on its service and touches no other
//! route.

use std::fmt;
use thiserror::Error;

/// A layer 4 route: flows to this port of a node's own address go to the instances with the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgePort {
    pub port: u16,
    pub proto: Proto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    /// As it stands in keys.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => abi::PROTO_TCP,
            Self::Udp => abi::PROTO_UDP,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Whether a tag says that its instance takes datagrams.
pub fn asks_for_udp(tag: &str) -> bool {
    tag.trim() == "proto=udp" || matches!(parse(tag), Some(Ok(EdgePort { proto: Proto::Udp, .. })))
}

/// Why a `urlprefix-` tag makes no route.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TagProblem {
    #[error("L7 routes are not built yet; `urlprefix-:<port> proto=tcp` opens a TCP port")]
    Http,
    #[error("`{0}` is not a port; write `urlprefix-:<port> proto=tcp` with a port from 1 to 65535")]
    Port(Excerpt),
    #[error(
        "a route on a chosen address (`{0}`) is not built yet; leave the address out to listen on every node's own"
    )]
    Address(Excerpt),
    #[error("`proto={0}` is not built yet; only proto=tcp and proto=udp are")]
    Proto(Excerpt),
    #[error("the option `{0}` is not built yet for TCP routes; without it the route would not do what the tag says")]
    Option(Excerpt),
}

/// The start of a stranger's text, safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(String);

const EXCERPT_CHARS_MAX: usize = 60;
const PREFIX: &str = "urlprefix-";

/// The route a tag asks for; `None` for a tag that is not about routes.
pub fn parse(tag: &str) -> Option<Result<EdgePort, TagProblem>> {
    tag.trim().strip_prefix(PREFIX).map(parse_route)
}

fn parse_route(route: &str) -> Result<EdgePort, TagProblem> {
    let mut words = route.split_whitespace();
    let target = words.next().unwrap_or_default();
    let options: Vec<&str> = words.collect();
    let proto = parse_proto(&options)?;
    let port = parse_target(target)?;
    options.iter().try_for_each(|option| check_option(option))?;
    Ok(EdgePort { port, proto })
}

fn parse_proto(options: &[&str]) -> Result<Proto, TagProblem> {
    match options.iter().rev().find_map(|option| option.strip_prefix("proto=")) {
        Some("tcp") => Ok(Proto::Tcp),
        Some("udp") => Ok(Proto::Udp),
        None | Some("http" | "https" | "grpc" | "grpcs") => Err(TagProblem::Http),
        Some(other) => Err(TagProblem::Proto(Excerpt::of(other))),
    }
}

fn parse_target(target: &str) -> Result<u16, TagProblem> {
    let Some((address, port)) = target.rsplit_once(':') else { return Err(TagProblem::Port(Excerpt::of(target))) };
    let number = port.parse().ok().filter(|number| *number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()));
    match number {
        None => Err(TagProblem::Port(Excerpt::of(port))),
        Some(_) if !address.is_empty() => Err(TagProblem::Address(Excerpt::of(address))),
        Some(number) => Ok(number),
    }
}

/// fabio ignores what it does not know. Here a misspelt `allow=` must not open a port to everybody.
fn check_option(option: &str) -> Result<(), TagProblem> {
    match option {
        "proto=tcp" | "proto=udp" | "pxyproto=false" => Ok(()),
        other => Err(TagProblem::Option(Excerpt::of(other))),
    }
}

impl Excerpt {
    pub fn of(text: &str) -> Self {
        let printable = |c: char| if c.is_control() || c == '`' { '?' } else { c };
        let mut excerpt: String = text.chars().take(EXCERPT_CHARS_MAX).map(printable).collect();
        if text.chars().nth(EXCERPT_CHARS_MAX).is_some() {
            excerpt.push('…');
        }
        Self(excerpt)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn excerpt(text: &str) -> Excerpt {
        Excerpt(text.to_owned())
    }

    #[test]
    fn tcp_port_tags_are_routes() {
        for tag in ["urlprefix-:80 proto=tcp", "  urlprefix-:80   proto=tcp ", "urlprefix-:80 pxyproto=false proto=tcp"]
        {
            assert_eq!(parse(tag), Some(Ok(EdgePort { port: 80, proto: Proto::Tcp })), "{tag}");
        }
        assert_eq!(parse("urlprefix-:65535 proto=tcp"), Some(Ok(EdgePort { port: 65_535, proto: Proto::Tcp })));
    }

    #[test]
    fn other_tags_are_no_business_of_ours() {
        for tag in ["", "v1", "url-prefix-:80", "proto=tcp", "URLPREFIX-:80 proto=tcp"] {
            assert_eq!(parse(tag), None, "{tag}");
        }
    }

    #[test]
    fn routes_that_are_not_built_are_named() {
        let problem = |tag: &str| parse(tag).and_then(Result::err);
        assert_eq!(problem("urlprefix-/api"), Some(TagProblem::Http));
        assert_eq!(problem("urlprefix-example.com/ strip=/x"), Some(TagProblem::Http));
        assert_eq!(problem("urlprefix-:80"), Some(TagProblem::Http));
        assert_eq!(problem("urlprefix-"), Some(TagProblem::Http));
        assert_eq!(problem("urlprefix-:80 proto=sctp"), Some(TagProblem::Proto(excerpt("sctp"))));
        assert_eq!(problem("urlprefix-10.0.0.1:80 proto=tcp"), Some(TagProblem::Address(excerpt("10.0.0.1"))));
        assert_eq!(problem("urlprefix-:80 proto=tcp allow=ip:10.0.0.0/8"), Some(option("allow=ip:10.0.0.0/8")));
        assert_eq!(problem("urlprefix-:80 proto=tcp pxyproto=true"), Some(option("pxyproto=true")));
    }

    fn option(text: &str) -> TagProblem {
        TagProblem::Option(excerpt(text))
    }

    #[test]
    fn udp_is_asked_for_by_route_or_by_word() {
        let route = EdgePort { port: 53, proto: Proto::Udp };
        assert_eq!(parse("urlprefix-:53 proto=udp"), Some(Ok(route)));
        assert!(asks_for_udp("urlprefix-:53 proto=udp") && asks_for_udp(" proto=udp "));
        assert!(!asks_for_udp("urlprefix-:53 proto=tcp") && !asks_for_udp("udp"));
    }

    #[test]
    fn ports_that_are_none_are_refused() {
        for port in ["0", "65536", "-1", "+80", "http", "", "８０", "99999999999999999999"] {
            let tag = format!("urlprefix-:{port} proto=tcp");
            assert!(matches!(parse(&tag), Some(Err(TagProblem::Port(_)))), "{tag}");
        }
    }

    #[test]
    fn a_problem_quotes_little_and_nothing_that_moves_the_cursor() {
        let tag = format!("urlprefix-:80 proto=\u{1b}[2J{}", "x".repeat(10_000));
        let message = parse(&tag).and_then(Result::err).map(|problem| problem.to_string()).unwrap_or_default();
        assert!(message.len() < 200 && !message.contains('\u{1b}'), "{message}");
    }

    proptest! {
        #[test]
        fn hostile_tags_never_panic(text in "\\PC{0,80}", junk in any::<String>()) {
            parse(&text);
            parse(&junk);
            parse(&format!("urlprefix-{junk}"));
            parse(&format!("urlprefix-:{text} proto=tcp"));
            parse(&format!("urlprefix-:80 {junk} proto=tcp"));
        }
    }
}
