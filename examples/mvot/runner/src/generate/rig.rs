//! Seven cameras around the plaza.

use mvot_core::camera::{Area, CameraCalibration};
use mvot_core::geometry::{Homography, Point};

use super::random::Random;

/// Image size of the cameras, in pixels.
pub(crate) const WIDTH: usize = 480;
/// Image height, in pixels.
pub(crate) const HEIGHT: usize = 270;

/// A camera with its full geometry, of which only the ground's homography is written down.
#[derive(Debug, Clone)]
pub(crate) struct Pose {
    pub(crate) name: String,
    pub(crate) eye: [f64; 3],
    /// Directions of the image's right and down and of the view, in the world.
    pub(crate) right: [f64; 3],
    pub(crate) down: [f64; 3],
    pub(crate) forward: [f64; 3],
    /// Focal length in pixels.
    pub(crate) focal: f64,
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl Pose {
    fn new(name: String, eye: [f64; 3], target: Point, focal: f64) -> Self {
        let to = [target[0] - eye[0], target[1] - eye[1], -eye[2]];
        let length = dot(to, to).sqrt();
        let forward = to.map(|value| value / length);
        let level = forward[0].hypot(forward[1]);
        let right = [forward[1] / level, -forward[0] / level, 0.0];
        // forward x right: down, as the image's rows count downwards.
        let down = [
            forward[1] * right[2] - forward[2] * right[1],
            forward[2] * right[0] - forward[0] * right[2],
            forward[0] * right[1] - forward[1] * right[0],
        ];
        Self {
            name,
            eye,
            right,
            down,
            forward,
            focal,
        }
    }

    /// Pixel and depth of a point in the world; depth at most 0 behind the camera.
    pub(crate) fn project(&self, point: [f64; 3]) -> (Point, f64) {
        let to = [
            point[0] - self.eye[0],
            point[1] - self.eye[1],
            point[2] - self.eye[2],
        ];
        let depth = dot(to, self.forward);
        let scale = self.focal / depth;
        (
            [
                centre()[0] + dot(to, self.right) * scale,
                centre()[1] + dot(to, self.down) * scale,
            ],
            depth,
        )
    }

    /// Direction of a pixel, of length 1 along the view.
    pub(crate) fn ray(&self, pixel: Point) -> [f64; 3] {
        let [u, v] = [0, 1].map(|i| (pixel[i] - centre()[i]) / self.focal);
        std::array::from_fn(|i| self.forward[i] + u * self.right[i] + v * self.down[i])
    }

    /// What `calibration.json` says of the camera.
    pub(crate) fn calibration(&self) -> CameraCalibration {
        // Homogeneous pixels of the directions x and y, and of the origin.
        let column = |p: [f64; 3]| {
            let [x, y, z] = [dot(p, self.right), dot(p, self.down), dot(p, self.forward)];
            [
                self.focal * x + centre()[0] * z,
                self.focal * y + centre()[1] * z,
                z,
            ]
        };
        let columns = [
            column([1.0, 0.0, 0.0]),
            column([0.0, 1.0, 0.0]),
            column(self.eye.map(|value| -value)),
        ];
        let image_from_ground = Homography(std::array::from_fn(|r| {
            std::array::from_fn(|c| columns[c][r])
        }));
        CameraCalibration {
            name: self.name.clone(),
            width: WIDTH as u32,
            height: HEIGHT as u32,
            // A camera above the ground always has one.
            ground_from_image: image_from_ground.inverse().unwrap_or(image_from_ground),
            focal_pixels: None,
        }
    }
}

fn centre() -> Point {
    [(WIDTH as f64 - 1.0) / 2.0, (HEIGHT as f64 - 1.0) / 2.0]
}

/// Seven cameras on poles around the area, each looking near its middle.
pub(crate) fn rig(area: Area, seed: u64) -> Vec<Pose> {
    let mut random = Random::new(seed, &[2]);
    let middle = [
        (area.x_min + area.x_max) / 2.0,
        (area.y_min + area.y_max) / 2.0,
    ];
    let half = [
        (area.x_max - area.x_min) / 2.0,
        (area.y_max - area.y_min) / 2.0,
    ];
    (0..7)
        .map(|index| {
            let angle = (f64::from(index) + random.between(-0.15, 0.15)) / 7.0
                * std::f64::consts::TAU
                + 0.4;
            // On a rounded rectangle outside the area.
            let (sin, cos) = angle.sin_cos();
            let stretch = 1.0 / ((cos.abs().powi(4) + sin.abs().powi(4)).powf(0.25));
            let eye = [
                middle[0] + cos * stretch * (half[0] + 2.5),
                middle[1] + sin * stretch * (half[1] + 3.0),
                random.between(3.2, 4.6),
            ];
            let target = [
                middle[0] + random.between(-1.0, 1.0) - cos * 0.5,
                middle[1] + random.between(-1.0, 1.0) - sin * 0.5,
            ];
            Pose::new(
                format!("c{}", index + 1),
                eye,
                target,
                random.between(300.0, 360.0),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvot_core::camera::Camera;
    use mvot_core::geometry::distance;

    #[test]
    fn the_calibration_says_where_people_appear() {
        let area = Area {
            x_min: -8.0,
            y_min: -6.0,
            x_max: 8.0,
            y_max: 6.0,
        };
        for pose in rig(area, 5) {
            let camera = Camera::new(&pose.calibration(), 1).unwrap();
            assert!((camera.focal() - pose.focal).abs() < 1e-6 * pose.focal);
            for (place, z) in [([0.0, 0.0], 0.0), ([2.0, -1.5], 1.72), ([-3.0, 2.0], 0.9)] {
                let (expected, depth) = pose.project([place[0], place[1], z]);
                let (pixel, found) = camera.project(place, z).unwrap();
                assert!(distance(pixel, expected) < 1e-6 && (found - depth).abs() < 1e-6);
            }
        }
    }
}
