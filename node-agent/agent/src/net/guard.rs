//! The node's rules for what the stack forwards, kept in place: at the start, when the uplink is another one, and when
//! somebody has flushed them. What stands in their way is told in every report.

use super::chain;
use network::Network;

/// The interface that leads outside, and what is wrong with the way there.
#[derive(Debug, Default)]
pub struct Guard {
    outward: Option<String>,
    failure: Option<String>,
    refused_by: Vec<String>,
}

impl Guard {
    /// Puts the rules in place. Without an uplink of its own the node's default route is what leads outside.
    pub async fn start(network: &Network, uplink: Option<&str>) -> Self {
        let outward = match uplink {
            Some(uplink) => Some(uplink.to_owned()),
            None => network.outward(super::stack::OUTSIDE).await.ok(),
        };
        let mut guard = Self { outward, ..Self::default() };
        guard.renew(network);
        guard
    }

    /// Writes the rules anew; the connections that they let through live on.
    pub fn renew(&mut self, network: &Network) {
        let outcome = network.guard(self.outward.as_deref());
        if outcome.is_err()
            && let Some(Err(error)) = self.outward.as_deref().map(|uplink| network.forward_unguarded(uplink))
        {
            tracing::error!(error = chain(&error), "what comes in by the uplink is not forwarded");
        }
        let failure = outcome.err().map(|error| {
            format!(
                "allocations do not reach the world outside and are not shielded from the node's neighbours: {}",
                chain(&error)
            )
        });
        if let Some(failure) = failure.as_ref().filter(|failure| self.failure.as_ref() != Some(*failure)) {
            tracing::error!("{failure}");
        }
        self.failure = failure;
        self.look(network);
    }

    /// Puts back what somebody took away.
    pub fn check(&mut self, network: &Network) {
        match network.is_guarded() {
            Ok(true) if self.failure.is_none() => self.look(network),
            Ok(_) => {
                tracing::warn!("the node's firewall rules were gone and are put back");
                self.renew(network);
            }
            Err(_) => self.renew(network),
        }
    }

    /// What an operator has to know of.
    pub fn notices(&self) -> Vec<String> {
        let refused = |chain: &String| {
            format!(
                "{chain} drops what is forwarded unless it is told otherwise (Docker sets it so): allocations neither reach \
                 the world outside nor each other on this node; allow forwarding from and to interfaces `mc+` there"
            )
        };
        self.failure.iter().cloned().chain(self.refused_by.iter().map(refused)).collect()
    }

    fn look(&mut self, network: &Network) {
        let refused_by = network.forwarding_refused_by().unwrap_or_default();
        if refused_by != self.refused_by {
            self.refused_by = refused_by;
            self.notices().iter().for_each(|notice| tracing::warn!("{notice}"));
        }
    }
}
