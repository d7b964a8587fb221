//! A Kalman filter for something that walks on a plane at nearly constant velocity.
//!
//! The model treats x and y alike and independently; measurements may correlate them, so the state is kept
//! as one vector (x, y, vx, vy) with its covariance.

use serde::{Deserialize, Serialize};

use crate::geometry::{Matrix2, Point, add2, apply2, invert2};

type Vector4 = [f64; 4];
type Matrix4 = [[f64; 4]; 4];

/// Position and velocity with their uncertainty. Metres and seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kalman {
    state: Vector4,
    covariance: Matrix4,
}

impl Kalman {
    /// Starts at a measured position with unknown velocity of standard deviation `speed_sigma` in m/s.
    pub fn new(position: Point, covariance: Matrix2, speed_sigma: f64) -> Self {
        let mut full = [[0.0; 4]; 4];
        for (row, values) in full.iter_mut().zip(covariance) {
            row[..2].copy_from_slice(&values);
        }
        full[2][2] = speed_sigma * speed_sigma;
        full[3][3] = full[2][2];
        Self {
            state: [position[0], position[1], 0.0, 0.0],
            covariance: full,
        }
    }

    /// Where it is thought to be.
    pub fn position(&self) -> Point {
        [self.state[0], self.state[1]]
    }

    /// How it is thought to move, in m/s.
    pub fn velocity(&self) -> Point {
        [self.state[2], self.state[3]]
    }

    /// Uncertainty of the position.
    pub fn position_covariance(&self) -> Matrix2 {
        let p = &self.covariance;
        [[p[0][0], p[0][1]], [p[1][0], p[1][1]]]
    }

    /// Lets `seconds` pass; the velocity wanders by white acceleration of density `acceleration` in m^2/s^3.
    pub fn predict(&mut self, seconds: f64, acceleration: f64) {
        let t = seconds;
        self.state[0] += t * self.state[2];
        self.state[1] += t * self.state[3];
        let p = &mut self.covariance;
        // F P F^T, where F adds t times the velocity to the position: first the rows, then the columns.
        let (positions, velocities) = p.split_at_mut(2);
        for (position, velocity) in positions.iter_mut().zip(velocities.iter()) {
            position
                .iter_mut()
                .zip(velocity)
                .for_each(|(value, other)| *value += t * other);
        }
        for row in p.iter_mut() {
            row[0] += t * row[2];
            row[1] += t * row[3];
        }
        for axis in 0..2 {
            p[axis][axis] += acceleration * t * t * t / 3.0;
            p[axis][axis + 2] += acceleration * t * t / 2.0;
            p[axis + 2][axis] += acceleration * t * t / 2.0;
            p[axis + 2][axis + 2] += acceleration * t;
        }
    }

    /// Takes a measured position into account. One whose covariance is no covariance changes nothing.
    pub fn update(&mut self, measured: Point, covariance: Matrix2) {
        let innovation = [measured[0] - self.state[0], measured[1] - self.state[1]];
        let Some(inverse) = invert2(add2(self.position_covariance(), covariance)) else {
            return;
        };
        let gain: [Point; 4] = self.covariance.map(|row| apply2(inverse, [row[0], row[1]]));
        for (value, gain) in self.state.iter_mut().zip(&gain) {
            *value += gain[0] * innovation[0] + gain[1] * innovation[1];
        }
        // Joseph form: stays symmetric and positive.
        let mut keep = [[0.0; 4]; 4];
        for (r, row) in keep.iter_mut().enumerate() {
            row[r] = 1.0;
            row[0] -= gain[r][0];
            row[1] -= gain[r][1];
        }
        let kept = multiply(&multiply(&keep, &self.covariance), &transpose(&keep));
        for r in 0..4 {
            for c in 0..4 {
                let noise = apply2(covariance, gain[c]);
                self.covariance[r][c] = kept[r][c] + gain[r][0] * noise[0] + gain[r][1] * noise[1];
            }
        }
    }

    /// Scales the velocity down, for something that has not been seen for a while.
    pub fn slow_down(&mut self, factor: f64) {
        self.state[2] *= factor;
        self.state[3] *= factor;
    }
}

fn multiply(a: &Matrix4, b: &Matrix4) -> Matrix4 {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..4).map(|k| a[r][k] * b[k][c]).sum()))
}

fn transpose(a: &Matrix4) -> Matrix4 {
    std::array::from_fn(|r| std::array::from_fn(|c| a[c][r]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Matrix2 = [[1.0, 0.0], [0.0, 1.0]];

    #[test]
    fn measurements_of_something_at_rest_average() {
        // Without velocity and noise the filter is the mean, its variance 1 / n.
        let mut filter = Kalman::new([1.0, 5.0], UNIT, 0.0);
        for (n, measured) in [[3.0, 1.0], [2.0, 3.0], [6.0, -1.0]]
            .into_iter()
            .enumerate()
        {
            filter.predict(1.0, 0.0);
            filter.update(measured, UNIT);
            assert!((filter.position_covariance()[0][0] - 1.0 / (n as f64 + 2.0)).abs() < 1e-12);
        }
        assert!(
            (filter.position()[0] - 3.0).abs() < 1e-12
                && (filter.position()[1] - 2.0).abs() < 1e-12
        );
    }

    #[test]
    fn one_step_is_the_closed_form() {
        // Prior: x 0 (variance 4), v 0 (variance 9), correlated through one second of prediction.
        let mut filter = Kalman::new([0.0, 0.0], [[4.0, 0.0], [0.0, 4.0]], 3.0);
        filter.predict(1.0, 6.0);
        // P = [[4 + 9 + 6/3, 9 + 6/2], [.., 9 + 6]] = [[15, 12], [12, 15]]; with R = 5 the gain is (15, 12) / 20.
        filter.update([2.0, 0.0], [[5.0, 0.0], [0.0, 5.0]]);
        assert!(
            (filter.position()[0] - 1.5).abs() < 1e-12
                && (filter.velocity()[0] - 1.2).abs() < 1e-12
        );
        assert!((filter.position_covariance()[0][0] - 15.0 * 5.0 / 20.0).abs() < 1e-12);
    }

    #[test]
    fn a_straight_walk_is_learnt() {
        let mut filter = Kalman::new([0.0, 0.0], [[0.01, 0.0], [0.0, 0.01]], 2.0);
        for step in 1..=20 {
            filter.predict(0.2, 0.01);
            filter.update(
                [0.2 * 1.3 * f64::from(step), -0.2 * 0.4 * f64::from(step)],
                [[0.01, 0.0], [0.0, 0.01]],
            );
        }
        let velocity = filter.velocity();
        assert!(
            (velocity[0] - 1.3).abs() < 0.02 && (velocity[1] + 0.4).abs() < 0.02,
            "{velocity:?}"
        );
    }

    #[test]
    fn nonsense_measurements_change_nothing() {
        let mut filter = Kalman::new([1.0, 1.0], UNIT, 1.0);
        let before = filter.clone();
        filter.update([f64::NAN, 0.0], [[f64::NAN; 2]; 2]);
        assert_eq!(filter, before);
    }
}
