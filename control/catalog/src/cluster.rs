//! What belongs to the cluster as a whole: its founding, servers, join tokens and feature level.

use crate::{At, Catalog};
use ipnet::IpNet;
use model::{Authority, Founding, JoinToken, NodeStatus, Refusal, Role, ServerId, ServerRecord, Table, Timestamp};
use std::sync::Arc;

/// Open tokens are few; a cap keeps a runaway script from filling the replicated state.
const TOKENS_MAX: usize = 4096;
const NAME_LEN_MAX: usize = 63;
/// The prefix length of a node's address block.
pub(crate) const BLOCK_PREFIX: u8 = 26;

impl Catalog {
    pub(crate) fn bootstrap(&mut self, at: At, authority: &Authority, alloc: IpNet, vip: IpNet) -> Result<(), Refusal> {
        if self.founding.is_some() {
            return Err(Refusal::AlreadyBootstrapped);
        }
        let (alloc_range, vip_range) = (alloc.trunc(), vip.trunc());
        check_range(alloc_range, BLOCK_PREFIX)?;
        check_range(vip_range, 30)?;
        if alloc_range.contains(&vip_range) || vip_range.contains(&alloc_range) {
            return Err(invalid(vip_range, &format!("overlaps the allocation range {alloc_range}")));
        }
        self.founding = Some(Arc::new(Founding { authority: authority.clone(), alloc_range, vip_range }));
        self.touch(Table::Cluster, at);
        Ok(())
    }

    pub(crate) fn upsert_server(&mut self, at: At, server: &ServerRecord) -> Result<(), Refusal> {
        check_name(&server.name)?;
        if self.servers.values().any(|other| other.name == server.name && other.id != server.id) {
            return Err(Refusal::NameTaken { name: server.name.clone() });
        }
        self.servers.insert(server.id, server.clone());
        self.touch(Table::Servers, at);
        Ok(())
    }

    pub(crate) fn remove_server(&mut self, at: At, id: ServerId) -> Result<(), Refusal> {
        self.servers.remove(&id).ok_or(Refusal::ServerUnknown { id })?;
        self.touch(Table::Servers, at);
        Ok(())
    }

    pub(crate) fn create_token(&mut self, at: At, token: &JoinToken) -> Result<(), Refusal> {
        if self.tokens.contains_key(&token.digest) {
            return Err(Refusal::TokenExists);
        }
        if self.tokens.len() >= TOKENS_MAX {
            // Kept until here only so that their next use is refused with the exact reason.
            self.tokens =
                std::mem::take(&mut self.tokens).into_iter().filter(|(_, token)| is_open(token, at)).collect();
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::TooManyTokens { max: TOKENS_MAX as u32 });
        }
        self.tokens.insert(token.digest, token.clone());
        self.touch(Table::Tokens, at);
        Ok(())
    }

    pub(crate) fn use_token(&mut self, at: At, digest: &[u8; 32], role: Role, name: &str) -> Result<(), Refusal> {
        let token = self.tokens.get(digest).ok_or(Refusal::TokenUnknown)?;
        if token.role != role {
            return Err(Refusal::TokenRole { asked: role });
        }
        if token.uses_left == 0 {
            return Err(Refusal::TokenSpent);
        }
        if has_expired(token, at) {
            return Err(Refusal::TokenExpired);
        }
        let left = JoinToken { uses_left: token.uses_left - 1, ..token.clone() };
        check_name(name)?;
        self.check_name_free(role, name)?;
        self.tokens.insert(*digest, left);
        self.touch(Table::Tokens, at);
        Ok(())
    }

    pub(crate) fn set_feature_level(&mut self, at: At, level: u32) -> Result<(), Refusal> {
        if level < self.feature_level {
            return Err(Refusal::FeatureLevelLowered { cluster: self.feature_level, asked: level });
        }
        self.feature_level = level;
        self.touch(Table::Cluster, at);
        Ok(())
    }

    fn check_name_free(&self, role: Role, name: &str) -> Result<(), Refusal> {
        let taken = match role {
            Role::Server => self.servers.values().any(|server| server.name == name),
            Role::Agent => self.nodes.values().any(|node| node.name == name && node.status != NodeStatus::Down),
        };
        if taken { Err(Refusal::NameTaken { name: name.to_owned() }) } else { Ok(()) }
    }
}

/// Names become DNS labels and file names.
pub(crate) fn check_name(name: &str) -> Result<(), Refusal> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(usable) {
        return Err(Refusal::NameInvalid { name: name.chars().take(NAME_LEN_MAX).collect() });
    }
    Ok(())
}

fn check_range(range: IpNet, prefix_max: u8) -> Result<(), Refusal> {
    match range {
        IpNet::V6(_) => Err(invalid(range, "IPv6 ranges are not built yet; give an IPv4 range")),
        IpNet::V4(net) if net.prefix_len() > prefix_max => {
            Err(invalid(range, &format!("is too small; give at least a /{prefix_max}")))
        }
        IpNet::V4(net) if net.prefix_len() < 8 => Err(invalid(range, "is too large; give at most a /8")),
        IpNet::V4(_) => Ok(()),
    }
}

fn invalid(range: IpNet, reason: &str) -> Refusal {
    Refusal::RangeInvalid { range: range.to_string(), reason: reason.to_owned() }
}

fn has_expired(token: &JoinToken, at: At) -> bool {
    token.expires_at != Timestamp::NEVER && token.expires_at <= at.time
}

fn is_open(token: &JoinToken, at: At) -> bool {
    token.uses_left > 0 && !has_expired(token, at)
}
