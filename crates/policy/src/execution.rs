//! How long a function takes on each node (eq. 1 of "Function Offloading and Data Migration for Stateful Serverless Edge
//! Computing": `r_f / s_i`), from what the nodes have measured: what may be chance counts for all nodes alike, and only
//! what clearly is not, such as a busy node, for the node that measured it.

/// Differences of so many standard errors may be chance.
const CHANCE: f64 = 2.0;
/// What was measured is never taken to be more exact than this part of it.
const EXACT: f64 = 0.01;

/// A mean of what a node has measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// In seconds.
    pub mean: f64,
    /// Its standard error, in seconds.
    pub error: f64,
}

impl Measured {
    /// The same on the reference machine.
    fn on_reference(self, speed_up: f64) -> Self {
        let mean = self.mean * speed_up;
        Self {
            mean,
            error: (self.error * speed_up).max(EXACT * mean).max(1e-9),
        }
    }
}

/// Seconds that are to be expected on each node; where nothing was measured `elsewhere`, on the reference machine, or what
/// the others take. None if nobody has measured anything.
pub fn expected_seconds(
    measured: &[Option<Measured>],
    speed_up: &[f64],
    elsewhere: Option<f64>,
) -> Option<Vec<f64>> {
    let known = measured.iter().zip(speed_up);
    let known = known.filter_map(|(measured, speed_up)| Some((*measured)?.on_reference(*speed_up)));
    let (mut weights, mut sum) = (0.0, 0.0);
    for known in known {
        let weight = 1.0 / (known.error * known.error);
        weights += weight;
        sum += weight * known.mean;
    }
    let common = (weights > 0.0).then(|| sum / weights);
    let unknown = elsewhere.or(common)?;
    let expected = measured.iter().zip(speed_up).map(|(measured, speed_up)| {
        let (Some(measured), Some(common)) = (measured, common) else {
            return unknown / speed_up;
        };
        let own = measured.on_reference(*speed_up);
        let off = own.mean - common;
        let by_chance = CHANCE * own.error;
        let chance = match off.abs() > by_chance {
            true => (by_chance / off) * (by_chance / off),
            false => 1.0,
        };
        (common + (1.0 - chance) * off) / speed_up
    });
    Some(expected.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn measured(mean: f64, error: f64) -> Option<Measured> {
        Some(Measured { mean, error })
    }

    #[test]
    fn chance_counts_for_all_and_a_busy_node_for_itself() {
        let alike = [measured(0.30, 0.06), measured(0.38, 0.06), None];
        let expected = expected_seconds(&alike, &[1.0; 3], None).unwrap();
        for seconds in &expected {
            assert!((seconds - 0.34).abs() < 1e-9, "{expected:?}");
        }
        let busy = [measured(0.30, 0.01), measured(1.2, 0.05), None];
        let expected = expected_seconds(&busy, &[1.0; 3], Some(0.3)).unwrap();
        assert!(expected[1] > 1.1, "{expected:?}");
        assert!(expected[0] < 0.34 && expected[2] == 0.3, "{expected:?}");
    }

    #[test]
    fn a_fast_node_takes_less() {
        let expected = expected_seconds(&[measured(0.4, 0.0), None], &[1.0, 4.0], None);
        assert_eq!(expected.unwrap(), [0.4, 0.1]);
        assert_eq!(expected_seconds(&[None, None], &[1.0, 1.0], None), None);
        let told = expected_seconds(&[None, None], &[1.0, 2.0], Some(0.2));
        assert_eq!(told.unwrap(), [0.2, 0.1]);
    }

    proptest! {
        #[test]
        fn what_is_expected_lies_between_the_common_and_the_own(
            nodes in prop::collection::vec((0.0_f64..10.0, 0.0_f64..5.0), 1..20)
        ) {
            let measured: Vec<_> = nodes.iter().map(|(mean, error)| measured(*mean, *error)).collect();
            let expected = expected_seconds(&measured, &vec![1.0; nodes.len()], None).unwrap();
            let least = nodes.iter().map(|node| node.0).fold(f64::INFINITY, f64::min);
            let most = nodes.iter().map(|node| node.0).fold(0.0, f64::max);
            for seconds in expected {
                prop_assert!((least - 1e-9..=most + 1e-9).contains(&seconds), "{}", seconds);
            }
        }
    }
}
