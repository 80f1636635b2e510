//! Users and groups from /etc/passwd and /etc/group: a static program has no other name service.

use serde::{Deserialize, Serialize};
use std::fs;

/// What an unlisted number gets for a group: none that owns anything.
const NOGROUP: u32 = 65_534;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("user {0:?} is not in /etc/passwd of this node; create it, or give a number")]
    Unknown(String),
    #[error("/etc/passwd cannot be read: {0}")]
    Unreadable(String),
}

/// `name`, `uid` or `uid:gid`.
pub fn resolve(user: &str) -> Result<Identity, UserError> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(|error| UserError::Unreadable(error.to_string()))?;
    // Without the file there are no supplementary groups, which only takes rights away.
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    find(user, &passwd, &group).ok_or_else(|| UserError::Unknown(user.to_owned()))
}

pub(crate) fn find(user: &str, passwd: &str, group: &str) -> Option<Identity> {
    if let Some((uid, gid)) = user.split_once(':') {
        return Some(Identity { uid: uid.parse().ok()?, gid: gid.parse().ok()?, groups: Vec::new() });
    }
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().filter_map(parse_entry).find(|entry| match number {
        Some(number) => entry.uid == number,
        None => entry.name == user,
    });
    match (entry, number) {
        (Some(Entry { name, uid, gid }), _) => Some(Identity { uid, gid, groups: groups_of(name, group) }),
        (None, Some(uid)) => Some(Identity { uid, gid: NOGROUP, groups: Vec::new() }),
        (None, None) => None,
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn parse_entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let mut numbers = fields.skip(1).map(|field| field.parse().ok());
    Some(Entry { name, uid: numbers.next()??, gid: numbers.next()?? })
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    let lists = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    });
    lists.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/sh\nbad:x:minus:1:::\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:a,web\nssl:x:110:web\nempty:x:5\n";

    fn check(user: &str, expect: Option<(u32, u32, &[u32])>) {
        let expect = expect.map(|(uid, gid, groups)| Identity { uid, gid, groups: groups.to_vec() });
        assert_eq!(find(user, PASSWD, GROUP), expect, "{user}");
    }

    #[test]
    fn names_and_numbers_are_found() {
        check("web", Some((33, 34, &[29, 110])));
        check("33", Some((33, 34, &[29, 110])));
        check("7001", Some((7001, NOGROUP, &[])));
        check("7001:7002", Some((7001, 7002, &[])));
    }

    #[test]
    fn unknown_and_broken_entries_are_none() {
        for user in ["nobody-here", "broken", "bad", "", "a:b", "-1", "99999999999"] {
            check(user, None);
        }
    }
}
