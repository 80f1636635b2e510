//! What the node's stack does with allocations' packets: those that leave the mesh get the node's address, and from outside
//! none comes in that does not answer one. A table of nf_tables of the node's own holds it, and no other table is touched.
//!
//! ```text
//! allocation ─ veth mc… ─ forward: invalid? drop ─ postrouting: leaves by no mc… ─> masquerade ─> uplink
//! uplink ─ forward: known? accept : drop ─> veth mc… ─ allocation
//! ```
//!
//! What the programs forward (services, tunnels, replies) passes none of these hooks. Declared ports are the programs', so
//! what arrives here for an allocation without being asked for was not declared.

mod netlink;
mod rules;

use crate::error::Error;
use crate::node::{forward_from, forwarding_path, is_forwarding, sysctl};
use crate::{Network, node};
use netlink::{Batch, Chain, FORWARD, Hook, POSTROUTING, chains};
use rules::{Action, Match, Rule, State};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

const OUTGOING: &str = "outgoing";
const PASSING: &str = "passing";
/// A chain so named remembers, for as long as the kernel does, that forwarding from an interface was off before.
const OPENED: &str = "opened-";

const FILTER_PRIORITY: i32 = 0;
const SOURCE_NAT_PRIORITY: i32 = 100;

const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The kernel's own default.
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

// linux/netfilter.h
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

impl Network {
    /// Puts the rules in place, whatever of them was there, and lets what comes in by the uplink go on to allocations. The
    /// machine forwards nothing else that it did not before. Must be called in the node's namespace.
    pub fn guard(&self, uplink: Option<&str>) -> Result<(), Error> {
        let before = self.opened()?;
        let mut opened: BTreeSet<String> =
            before.iter().filter(|link| Some(link.as_str()) == uplink).cloned().collect();
        opened.extend(uplink.filter(|link| !is_forwarding(link)).map(str::to_owned));
        self.write_rules(&opened)?;
        before.difference(&opened).try_for_each(|link| close(link))?;
        uplink.map_or(Ok(()), forward_from)
    }

    /// For a kernel that takes no rules: services need the uplink's packets forwarded all the same.
    pub fn forward_unguarded(&self, uplink: &str) -> Result<(), Error> {
        forward_from(uplink)
    }

    /// Whether the rules are there; others may flush all there are.
    pub fn is_guarded(&self) -> Result<bool, Error> {
        let own: Vec<Chain> = self.own_chains()?;
        Ok([OUTGOING, PASSING].iter().all(|name| own.iter().any(|chain| chain.name == *name)))
    }

    /// Takes the rules away and switches forwarding off again where they had it switched on.
    pub fn unguard(&self) -> Result<(), Error> {
        // A kernel that has no rules to list has none of ours.
        let Ok(opened) = self.opened() else { return Ok(()) };
        opened.iter().try_for_each(|link| close(link))?;
        let table = self.table();
        let mut batch = Batch::begin();
        batch.add_table(&table);
        batch.remove_table(&table);
        batch.commit().map_err(Error::firewall("remove the node's rules"))
    }

    /// Tables of others that drop what is forwarded unless they are told otherwise: no rule of ours can undo that.
    pub fn forwarding_refused_by(&self) -> Result<Vec<String>, Error> {
        let own = self.table();
        let refuses = |chain: &Chain| {
            let family = [NFPROTO_INET, NFPROTO_IPV4].contains(&chain.family);
            family && chain.hook == Some(FORWARD) && chain.drops && chain.table != own
        };
        let name = |chain: Chain| format!("chain {} of table {}", chain.name, chain.table);
        Ok(list()?.into_iter().filter(refuses).map(name).collect())
    }

    fn write_rules(&self, opened: &BTreeSet<String>) -> Result<(), Error> {
        let (table, prefix) = (self.table(), self.link_prefix());
        let mut batch = Batch::begin();
        // A table must be there to be removed; all of it happens at once, and connections live on.
        batch.add_table(&table);
        batch.remove_table(&table);
        batch.add_table(&table);
        let hook = |number, priority, kind| Some(Hook { number, priority, kind });
        batch.add_chain(&table, OUTGOING, hook(POSTROUTING, SOURCE_NAT_PRIORITY, "nat"));
        batch.add_chain(&table, PASSING, hook(FORWARD, FILTER_PRIORITY, "filter"));
        opened.iter().for_each(|link| batch.add_chain(&table, &format!("{OPENED}{link}"), None));
        batch.add_rule(&table, OUTGOING, outgoing(&prefix, node::port_range(LOCAL_PORT_RANGE)).steps());
        for rule in passing(&prefix, opened) {
            batch.add_rule(&table, PASSING, rule.steps());
        }
        batch.commit().map_err(Error::firewall("write the node's rules"))
    }

    /// The interfaces whose forwarding the rules have switched on.
    fn opened(&self) -> Result<BTreeSet<String>, Error> {
        let own = self.own_chains()?;
        Ok(own.iter().filter_map(|chain| chain.name.strip_prefix(OPENED)).map(str::to_owned).collect())
    }

    fn own_chains(&self) -> Result<Vec<Chain>, Error> {
        let table = self.table();
        Ok(list()?.into_iter().filter(|chain| chain.table == table).collect())
    }

    fn table(&self) -> String {
        format!("meshctl-{}", self.node)
    }
}

fn list() -> Result<Vec<Chain>, Error> {
    chains().map_err(Error::firewall("list the chains of nf_tables"))
}

/// Replies come to the node's address, where services are found first: their ports must not be theirs.
fn outgoing(prefix: &str, ports: Option<RangeInclusive<u16>>) -> Rule {
    Rule {
        matches: vec![from(prefix, true), to(prefix, false)],
        action: Action::Masquerade(ports.unwrap_or(LOCAL_PORTS)),
    }
}

fn passing(prefix: &str, opened: &BTreeSet<String>) -> Vec<Rule> {
    let rule = |matches: Vec<Match>, action| Rule { matches, action };
    let inwards = || vec![from(prefix, false), to(prefix, true)];
    let mut rules = vec![
        rule([inwards(), vec![Match::State(State::Known)]].concat(), Action::Accept),
        rule(inwards(), Action::Drop),
        // It would leave with an address that nobody outside knows.
        rule(vec![from(prefix, true), to(prefix, false), Match::State(State::Invalid)], Action::Drop),
    ];
    let elsewhere = |link: &String| rule(vec![Match::FromLink(link.clone()), to(prefix, false)], Action::Drop);
    rules.extend(opened.iter().map(elsewhere));
    rules
}

fn from(prefix: &str, holds: bool) -> Match {
    Match::From { prefix: prefix.to_owned(), holds }
}

fn to(prefix: &str, holds: bool) -> Match {
    Match::To { prefix: prefix.to_owned(), holds }
}

/// An interface that is gone has nothing to close.
fn close(link: &str) -> Result<(), Error> {
    let path = forwarding_path(link);
    if Path::new(&path).exists() { sysctl(&path, "0") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_the_steps_that_the_kernel_knows() {
        let names = |rule: &Rule| rule.steps().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let masquerade = outgoing("mc12", None);
        assert_eq!(
            names(&masquerade),
            ["meta", "cmp", "meta", "cmp", "counter", "immediate", "immediate", "masq"],
            "{masquerade:?}"
        );
        let rules = passing("mc12", &BTreeSet::from(["eth0".to_owned()]));
        assert_eq!(names(&rules[0])[4..7], ["ct", "bitwise", "cmp"]);
        assert_eq!(names(&rules[3]), ["meta", "cmp", "meta", "cmp", "counter", "immediate"]);
    }
}
