//! Plane geometry: points, covariances, homographies.

use serde::{Deserialize, Serialize};

/// A point or a direction in a plane.
pub type Point = [f64; 2];

/// A matrix of 2 x 2, by rows.
pub type Matrix2 = [[f64; 2]; 2];

/// Distance of two points.
pub fn distance(a: Point, b: Point) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// Sum of two matrices.
pub fn add2(a: Matrix2, b: Matrix2) -> Matrix2 {
    [
        [a[0][0] + b[0][0], a[0][1] + b[0][1]],
        [a[1][0] + b[1][0], a[1][1] + b[1][1]],
    ]
}

/// Inverse of a symmetric positive definite matrix; `None` when it is not one.
pub fn invert2(m: Matrix2) -> Option<Matrix2> {
    let determinant = m[0][0] * m[1][1] - m[0][1] * m[1][0];
    let definite = m[0][0] > 0.0 && determinant > 1e-18 && determinant.is_finite();
    definite.then(|| {
        let d = 1.0 / determinant;
        [[m[1][1] * d, -m[0][1] * d], [-m[1][0] * d, m[0][0] * d]]
    })
}

/// Matrix times vector.
pub fn apply2(m: Matrix2, v: Point) -> Point {
    [
        m[0][0] * v[0] + m[0][1] * v[1],
        m[1][0] * v[0] + m[1][1] * v[1],
    ]
}

/// Square of the distance of `a` and `b` in standard deviations of `covariance`; infinite when that is singular.
pub fn mahalanobis2(a: Point, b: Point, covariance: Matrix2) -> f64 {
    let d = [a[0] - b[0], a[1] - b[1]];
    invert2(covariance).map_or(f64::INFINITY, |inverse| {
        let scaled = apply2(inverse, d);
        d[0] * scaled[0] + d[1] * scaled[1]
    })
}

/// A projective map between two planes, by rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Homography(pub [[f64; 3]; 3]);

impl Homography {
    /// Where a point goes; `None` for points on the line that goes to infinity.
    pub fn apply(&self, p: Point) -> Option<Point> {
        let [x, y, w] = self.lift(p);
        (w.abs() > 1e-12).then(|| [x / w, y / w])
    }

    /// Homogeneous coordinates of where a point goes.
    pub fn lift(&self, p: Point) -> [f64; 3] {
        self.0.map(|row| row[0] * p[0] + row[1] * p[1] + row[2])
    }

    /// The map back; `None` when there is none.
    pub fn inverse(&self) -> Option<Homography> {
        let m = &self.0;
        let cofactor = |r: usize, c: usize| {
            let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
            m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
        };
        let determinant: f64 = (0..3).map(|c| m[0][c] * cofactor(0, c)).sum();
        let largest = m
            .iter()
            .flatten()
            .fold(0.0f64, |largest, value| largest.max(value.abs()));
        if !determinant.is_finite() || determinant.abs() <= largest.powi(3) * 1e-15 {
            return None;
        }
        // The adjugate: cofactors, transposed.
        Some(Homography(std::array::from_fn(|r| {
            std::array::from_fn(|c| cofactor(c, r) / determinant)
        })))
    }

    /// This map after `first`.
    pub fn after(&self, first: &Homography) -> Homography {
        Homography(std::array::from_fn(|r| {
            std::array::from_fn(|c| (0..3).map(|k| self.0[r][k] * first.0[k][c]).sum())
        }))
    }

    /// The covariance of where a point goes, from the covariance of the point, to first order.
    pub fn carry_covariance(&self, p: Point, covariance: Matrix2) -> Option<Matrix2> {
        let [x, y, w] = self.lift(p);
        if w.abs() <= 1e-12 {
            return None;
        }
        let m = &self.0;
        let derivative =
            |row: usize, value: f64, c: usize| (m[row][c] * w - value * m[2][c]) / (w * w);
        let j = [
            [derivative(0, x, 0), derivative(0, x, 1)],
            [derivative(1, y, 0), derivative(1, y, 1)],
        ];
        let half: Matrix2 = j.map(|row| {
            [
                row[0] * covariance[0][0] + row[1] * covariance[1][0],
                row[0] * covariance[0][1] + row[1] * covariance[1][1],
            ]
        });
        Some(half.map(|row| {
            [
                row[0] * j[0][0] + row[1] * j[0][1],
                row[0] * j[1][0] + row[1] * j[1][1],
            ]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TILTED: Homography = Homography([
        [0.03, 0.002, -7.0],
        [-0.001, -0.05, 20.0],
        [0.0001, 0.004, 0.2],
    ]);

    #[test]
    fn there_and_back_is_the_same_point() {
        let back = TILTED.inverse().unwrap();
        for p in [[0.0, 0.0], [479.0, 269.0], [240.0, 135.0], [17.5, 203.25]] {
            let there = TILTED.apply(p).unwrap();
            assert!(distance(back.apply(there).unwrap(), p) < 1e-8);
            assert!(distance(back.after(&TILTED).apply(p).unwrap(), p) < 1e-8);
        }
    }

    #[test]
    fn a_singular_map_has_no_inverse() {
        assert!(
            Homography([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 0.0, 1.0]])
                .inverse()
                .is_none()
        );
        assert!(Homography([[0.0; 3]; 3]).inverse().is_none());
    }

    #[test]
    fn covariance_is_carried_as_finite_differences_say() {
        let (p, step) = ([300.0, 180.0], 1e-4);
        let at = |p| TILTED.apply(p).unwrap();
        let [origin, du, dv] = [at(p), at([p[0] + step, p[1]]), at([p[0], p[1] + step])];
        let j = [
            [(du[0] - origin[0]) / step, (dv[0] - origin[0]) / step],
            [(du[1] - origin[1]) / step, (dv[1] - origin[1]) / step],
        ];
        let carried = TILTED
            .carry_covariance(p, [[4.0, 0.0], [0.0, 9.0]])
            .unwrap();
        for r in 0..2 {
            for c in 0..2 {
                let expected = 4.0 * j[r][0] * j[c][0] + 9.0 * j[r][1] * j[c][1];
                assert!(
                    (carried[r][c] - expected).abs() < 1e-5 * expected.abs().max(1e-3),
                    "{carried:?}"
                );
            }
        }
    }

    #[test]
    fn distances_in_standard_deviations() {
        assert_eq!(
            mahalanobis2([2.0, 3.0], [0.0, 0.0], [[4.0, 0.0], [0.0, 9.0]]),
            2.0
        );
        assert_eq!(
            mahalanobis2([1.0, 1.0], [0.0, 0.0], [[0.0; 2]; 2]),
            f64::INFINITY
        );
    }
}
