//! Containers needed so that hardly anybody who wants to be local-state has to be remote (Fig. 4).

/// Identical clients of which each wants to be local-state a share of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// How many clients.
    pub clients: u32,
    /// Share of the time that a client wants to be local-state, in `[0, 1]`.
    pub local_share: f64,
    /// Calls per second of each client.
    pub rate: f64,
    /// Mean service time of a remote-state call, in seconds.
    pub remote_seconds: f64,
    /// Largest probability that a client that wants to be local-state is not.
    pub max_refused: f64,
}

impl Demand {
    /// How many of `containers` can be dedicated so that the rest keeps up with the other clients;
    /// none if not even all of them together do.
    pub fn most_dedicated(&self, containers: u32) -> Option<u32> {
        let keeps_up = |dedicated: u32| {
            let pool = f64::from(containers - dedicated);
            let remote = f64::from(self.clients.saturating_sub(dedicated));
            pool >= remote * self.rate * self.remote_seconds
        };
        (0..=containers.min(self.clients))
            .rev()
            .find(|dedicated| keeps_up(*dedicated))
    }

    /// Probability that `dedicated` containers are all taken, given that anybody wants one: `exactly
    /// full` counts as refused, as in the paper's figure.
    pub fn refused(&self, dedicated: u32) -> f64 {
        if dedicated == 0 {
            return if self.local_share > 0.0 { 1.0 } else { 0.0 };
        }
        let nobody = binomial(self.clients, 0, self.local_share);
        let tail: f64 = tail(self.clients, dedicated, self.local_share);
        if nobody >= 1.0 {
            0.0
        } else {
            tail / (1.0 - nobody)
        }
    }

    /// The least number of containers; none only if even a container for each client is refused
    /// too often, which `exactly full` makes possible for few clients.
    pub fn least_containers(&self) -> Option<u32> {
        // The most that can be dedicated grows with the containers, what is refused falls with it.
        let enough = |containers: u32| {
            self.most_dedicated(containers)
                .is_some_and(|dedicated| self.refused(dedicated) <= self.max_refused)
        };
        let most = self.most_needed();
        if !enough(most) {
            return None;
        }
        let (mut too_few, mut enough_of) = (0, most);
        if enough(0) {
            return Some(0);
        }
        while enough_of - too_few > 1 {
            let middle = too_few + (enough_of - too_few) / 2;
            if enough(middle) {
                enough_of = middle;
            } else {
                too_few = middle;
            }
        }
        Some(enough_of)
    }

    /// With so many containers a further one changes nothing.
    fn most_needed(&self) -> u32 {
        let shared = f64::from(self.clients) * self.rate * self.remote_seconds;
        // A pool beyond what u32 counts is no plan that anybody could carry out.
        self.clients
            .saturating_add(shared.ceil().min(f64::from(u32::MAX)) as u32)
    }

    /// Containers per client for ever more clients: `[q (mu - lambda) + lambda] / mu`.
    pub fn limit_per_client(&self) -> f64 {
        let pooled = self.rate * self.remote_seconds;
        self.local_share * (1.0 - pooled) + pooled
    }
}

/// Probability of `k` successes in `n` trials.
fn binomial(n: u32, k: u32, p: f64) -> f64 {
    if p <= 0.0 {
        return if k == 0 { 1.0 } else { 0.0 };
    }
    if p >= 1.0 {
        return if k == n { 1.0 } else { 0.0 };
    }
    let (n, k) = (f64::from(n), f64::from(k));
    let choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    libm::exp(choose + k * libm::log(p) + (n - k) * libm::log1p(-p))
}

/// Probability of at least `k` successes: summed from the larger terms on, in the shorter direction.
fn tail(n: u32, k: u32, p: f64) -> f64 {
    if k > n {
        return 0.0;
    }
    let odds = p / (1.0 - p);
    if f64::from(k) > f64::from(n) * p || p >= 1.0 {
        let (mut term, mut sum) = (binomial(n, k, p), 0.0);
        for at in k..=n {
            sum += term;
            // Later terms fall at least geometrically.
            if term <= sum * 1e-18 {
                break;
            }
            term *= f64::from(n - at) / f64::from(at + 1) * odds;
        }
        return sum;
    }
    let (mut term, mut sum) = (binomial(n, k - 1, p), 0.0);
    for at in (0..k).rev() {
        sum += term;
        if term <= sum * 1e-18 {
            break;
        }
        term *= f64::from(at) / (f64::from(n - at + 1) * odds);
    }
    1.0 - sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand(clients: u32, local_share: f64) -> Demand {
        Demand {
            clients,
            local_share,
            rate: 0.075,
            remote_seconds: 3.0,
            max_refused: 0.01,
        }
    }

    #[test]
    fn the_papers_example() {
        // "With 10 clients and 20 %, at least 0.7 containers a client."
        assert_eq!(demand(10, 0.2).least_containers(), Some(7));
        assert_eq!(demand(100, 0.2).least_containers(), Some(47));
    }

    #[test]
    fn many_clients_come_near_the_limit() {
        for local_share in [0.2, 0.3, 0.4] {
            let demand = demand(100_000, local_share);
            let containers = f64::from(demand.least_containers().unwrap()) / 100_000.0;
            let limit = demand.limit_per_client();
            assert!(
                containers > limit && containers < limit + 0.005,
                "{local_share}: {containers} against {limit}"
            );
        }
    }

    #[test]
    fn nobody_wants_to_be_local() {
        let demand = demand(100, 0.0);
        assert_eq!(demand.least_containers(), Some(23), "the pool alone: 22.5");
    }

    proptest! {
        #[test]
        fn the_tail_is_the_sum_of_its_terms(n in 1_u32..60, k in 0_u32..60, p in 0.001..0.999) {
            let direct: f64 = (k..=n).map(|at| binomial(n, at, p)).sum();
            let fast = if k == 0 { 1.0 } else { tail(n, k, p) };
            prop_assert!((direct - fast).abs() < 1e-11, "{direct} {fast}");
        }

        #[test]
        fn one_container_less_is_too_few(clients in 2_u32..300, share in 0.05..0.9) {
            let demand = demand(clients, share);
            if let Some(containers) = demand.least_containers() {
                let fewer = demand.most_dedicated(containers - 1);
                prop_assert!(fewer.is_none_or(|dedicated| demand.refused(dedicated) > 0.01));
            }
        }
    }
}
