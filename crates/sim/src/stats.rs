//! Means with confidence intervals, and quantiles.

/// Mean, spread and number of values, taken in one at a time (Welford).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    n: u64,
    mean: f64,
    squares: f64,
}

impl Summary {
    /// Takes in a value.
    pub fn add(&mut self, value: f64) {
        self.n += 1;
        let off = value - self.mean;
        self.mean += off / self.n as f64;
        self.squares += off * (value - self.mean);
    }

    /// Values so far.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Their mean, 0 if there are none.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Standard error of the mean.
    pub fn standard_error(&self) -> Option<f64> {
        let freedom = self.n.checked_sub(1).filter(|freedom| *freedom > 0)?;
        Some((self.squares / freedom as f64 / self.n as f64).sqrt())
    }

    /// 95 % confidence interval of the mean (Student's t); none with fewer than two values.
    pub fn ci95(&self) -> Option<(f64, f64)> {
        let half = t_95(self.n.checked_sub(1)?) * self.standard_error()?;
        Some((self.mean - half, self.mean + half))
    }
}

impl FromIterator<f64> for Summary {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut summary = Self::default();
        for value in values {
            summary.add(value);
        }
        summary
    }
}

/// 97.5 % quantile of Student's t with so many degrees of freedom: exact for 1 and 2, otherwise the
/// expansion of Cornish and Fisher (Abramowitz and Stegun 26.7.5), right to 0.5 % from 3 on.
fn t_95(freedom: u64) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    match freedom {
        0 => f64::INFINITY,
        1 => 12.706_204_736_174_7,
        2 => 4.302_652_729_749_46,
        _ => {
            let n = freedom as f64;
            let (z2, z3) = (Z * Z, Z * Z * Z);
            let z5 = z3 * z2;
            let z7 = z5 * z2;
            let z9 = z7 * z2;
            Z + (z3 + Z) / (4.0 * n)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / (96.0 * n * n)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / (384.0 * n * n * n)
                + (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * Z)
                    / (92_160.0 * n * n * n * n)
        }
    }
}

/// The quantile of sorted values, interpolated between neighbours (Hyndman and Fan's type 7).
///
/// # Panics
/// When there are no values.
pub fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let at = quantile.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_interval_of_a_known_sample() {
        let summary: Summary = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
            .into_iter()
            .collect();
        assert_eq!((summary.n(), summary.mean()), (8, 5.0));
        // s = 2.1381, t(7) = 2.3646.
        let (low, high) = summary.ci95().unwrap();
        assert!((low - 3.2125).abs() < 1e-2 && (high - 6.7875).abs() < 1e-2);
        assert_eq!(Summary::from_iter([1.0]).ci95(), None);
    }

    #[test]
    fn t_is_near_the_tables() {
        for (freedom, t) in [(3, 3.182), (9, 2.262), (29, 2.045), (198, 1.972)] {
            assert!((t_95(freedom) - t).abs() < 0.005 * t, "{freedom}");
        }
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&values, 0.5), 2.0);
        assert_eq!(quantile(&values, 0.75), 3.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }
}
