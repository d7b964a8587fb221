//! Mean latency against the number of dedicated containers (Fig. 3).

use super::Unstable;
use super::erlang::{dedicated_seconds, pool_seconds};

/// Identical clients that share a budget of containers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clients {
    /// How many.
    pub clients: u32,
    /// Containers in all.
    pub containers: u32,
    /// Calls per second of each client.
    pub rate: f64,
    /// Mean service time of a local-state call, in seconds.
    pub local_seconds: f64,
    /// Mean service time of a remote-state call, access to the state included, in seconds.
    pub remote_seconds: f64,
}

impl Clients {
    /// Mean latency in seconds over all calls when `local` clients have a container each and the
    /// others share the rest.
    ///
    /// # Errors
    /// When a queue is unstable; also when there are remote clients and no container for them.
    pub fn mean_seconds(&self, local: u32) -> Result<f64, Unstable> {
        let local = local.min(self.clients);
        let remote = self.clients - local;
        let dedicated = match local {
            0 => 0.0,
            _ => f64::from(local) * dedicated_seconds(self.rate, self.local_seconds)?,
        };
        let pooled = match remote {
            0 => 0.0,
            _ => {
                let servers = self.containers.saturating_sub(local);
                let rate = f64::from(remote) * self.rate;
                f64::from(remote) * pool_seconds(servers, rate, self.remote_seconds)?
            }
        };
        Ok((dedicated + pooled) / f64::from(self.clients.max(1)))
    }

    /// The number of dedicated containers with the least mean latency, and that latency.
    ///
    /// # Errors
    /// When every number is unstable: what is wrong with none at all.
    pub fn optimum(&self) -> Result<(u32, f64), Unstable> {
        let mut best: Option<(u32, f64)> = None;
        for local in 0..=self.containers.min(self.clients) {
            if let Ok(seconds) = self.mean_seconds(local)
                && best.is_none_or(|(_, least)| seconds < least)
            {
                best = Some((local, seconds));
            }
        }
        match best {
            Some(best) => Ok(best),
            None => self.mean_seconds(0).map(|seconds| (0, seconds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper(clients: u32) -> Clients {
        Clients {
            clients,
            containers: 40,
            rate: 0.075,
            local_seconds: 1.0,
            remote_seconds: 3.0,
        }
    }

    #[test]
    fn the_optimum_lies_between_none_and_all_and_falls_with_more_clients() {
        let optimum = |clients| paper(clients).optimum().unwrap().0;
        assert!(optimum(50) > optimum(90));
        assert!(optimum(110) > 0);
        let (best, least) = paper(90).optimum().unwrap();
        for other in [best - 1, best + 1] {
            assert!(paper(90).mean_seconds(other).unwrap() > least);
        }
    }

    #[test]
    fn as_many_containers_as_clients_need_no_pool() {
        let all = paper(40).mean_seconds(40).unwrap();
        assert!((all - 1.0 / 0.925).abs() < 1e-12);
    }

    #[test]
    fn too_many_clients_are_unstable() {
        assert!(paper(200).optimum().is_err());
    }
}
