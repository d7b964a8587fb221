//! Where a camera stands, from its ground-plane homography alone.

use serde::{Deserialize, Serialize};

use crate::geometry::{Homography, Point};

/// How tall a person is expected to be, in metres.
pub const PERSON_HEIGHT: f64 = 1.72;
/// How wide, over the shoulders and swinging arms, in metres.
pub const PERSON_WIDTH: f64 = 0.52;

/// `calibration.json`: what is known about a folder of frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Time from one timestep to the next, in seconds.
    pub step_seconds: f64,
    /// Where people are tracked.
    pub area: Area,
    /// The cameras; the name is the folder's.
    pub cameras: Vec<CameraCalibration>,
}

/// A rectangle on the ground, in metres.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// Smallest x.
    pub x_min: f64,
    /// Smallest y.
    pub y_min: f64,
    /// Largest x.
    pub x_max: f64,
    /// Largest y.
    pub y_max: f64,
}

impl Area {
    /// Whether a point is inside, allowing for `margin` metres around it.
    pub fn contains(&self, p: Point, margin: f64) -> bool {
        p[0] >= self.x_min - margin
            && p[0] <= self.x_max + margin
            && p[1] >= self.y_min - margin
            && p[1] <= self.y_max + margin
    }
}

/// One camera of `calibration.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraCalibration {
    /// Name, as in `frames/<name>`.
    pub name: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// From pixels (centres at whole numbers, origin at the top left) to metres on the ground.
    pub ground_from_image: Homography,
    /// Focal length in pixels; worked out of the homography when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focal_pixels: Option<f64>,
}

/// A calibration that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("camera {camera}: {reason}")]
pub struct CalibrationError {
    /// Name of the camera.
    pub camera: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Projection of a camera: pixels of points on and above the ground.
///
/// The homography of the ground plane says everything about a camera with square pixels and its principal
/// point in the middle (Zhang, "A flexible new technique for camera calibration", 2000): its first two
/// columns are images of perpendicular directions of equal length, which gives the focal length, and their
/// cross product is the vertical.
#[derive(Debug, Clone)]
pub struct Camera {
    size: [f64; 2],
    focal: f64,
    /// Directions of x, y and up, and the ground's origin, in the camera's frame.
    axes: [[f64; 3]; 3],
    origin: [f64; 3],
    ground_from_image: Homography,
}

/// How a standing person is expected to appear.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Where the feet are, in pixels.
    pub foot: Point,
    /// Where the top of the head is, in pixels.
    pub head: Point,
    /// Width over the shoulders, in pixels.
    pub width: f64,
}

impl Figure {
    /// From head to foot, in pixels.
    pub fn height(&self) -> f64 {
        self.foot[1] - self.head[1]
    }
}

impl Camera {
    /// The camera of a calibration, for frames shrunk by `factor`.
    pub fn new(calibration: &CameraCalibration, factor: usize) -> Result<Self, CalibrationError> {
        let fail = |reason| CalibrationError {
            camera: calibration.name.clone(),
            reason,
        };
        if calibration.width == 0
            || calibration.height == 0
            || calibration.width > 16_384
            || calibration.height > 16_384
        {
            return Err(fail("its image size has to be 1 to 16,384 pixels"));
        }
        // Pixel centres are whole numbers at both sizes.
        let factor = factor as f64;
        let middle = (factor - 1.0) / 2.0;
        let enlarge = Homography([
            [factor, 0.0, middle],
            [0.0, factor, middle],
            [0.0, 0.0, 1.0],
        ]);
        let ground_from_image = calibration.ground_from_image.after(&enlarge);
        let size = [f64::from(calibration.width), f64::from(calibration.height)]
            .map(|pixels| (pixels / factor).floor());
        let image_from_ground = ground_from_image
            .inverse()
            .ok_or_else(|| fail("its homography has no inverse"))?;
        let centre = size.map(|pixels| (pixels - 1.0) / 2.0);
        let to_centre = Homography([
            [1.0, 0.0, -centre[0]],
            [0.0, 1.0, -centre[1]],
            [0.0, 0.0, 1.0],
        ]);
        let h = to_centre.after(&image_from_ground).0;
        let focal = match calibration.focal_pixels {
            Some(focal) if focal > 0.0 => focal / factor,
            Some(_) => return Err(fail("its focal_pixels has to be positive")),
            None => focal_length(&h).unwrap_or(size[0]),
        };
        let column = |c: usize| [h[0][c] / focal, h[1][c] / focal, h[2][c]];
        let mut scale = 2.0 / (norm(column(0)) + norm(column(1)));
        // What is seen at the bottom of the image lies in front of the camera.
        let seen = ground_from_image
            .apply([centre[0], size[1] - 1.0])
            .ok_or_else(|| fail("its bottom row is at infinity"))?;
        if h[2][0] * seen[0] + h[2][1] * seen[1] + h[2][2] < 0.0 {
            scale = -scale;
        }
        let [x, y, origin] = [0, 1, 2].map(|c| column(c).map(|value| value * scale));
        let mut up = cross(x, y);
        // The camera is above the ground, also when the ground's axes are left-handed.
        if dot(up, origin) > 0.0 {
            up = up.map(|value| -value);
        }
        if !(focal.is_finite() && up.iter().chain(&origin).all(|value| value.is_finite())) {
            return Err(fail("its homography is not that of a camera"));
        }
        let length = norm(up);
        let up = up.map(|value| value / length);
        Ok(Self {
            size,
            focal,
            axes: [x, y, up],
            origin,
            ground_from_image,
        })
    }

    /// Image size in pixels, as the camera is used.
    pub fn size(&self) -> [f64; 2] {
        self.size
    }

    /// Focal length in pixels.
    pub fn focal(&self) -> f64 {
        self.focal
    }

    /// The pixel of a point `z` metres above the ground, and its depth; `None` behind the camera.
    pub fn project(&self, ground: Point, z: f64) -> Option<(Point, f64)> {
        let [x, y, up] = &self.axes;
        let p: [f64; 3] = std::array::from_fn(|i| {
            x[i] * ground[0] + y[i] * ground[1] + up[i] * z + self.origin[i]
        });
        let centre = self.size.map(|pixels| (pixels - 1.0) / 2.0);
        (p[2] > 0.1).then(|| {
            (
                [
                    p[0] / p[2] * self.focal + centre[0],
                    p[1] / p[2] * self.focal + centre[1],
                ],
                p[2],
            )
        })
    }

    /// The point on the ground at a pixel; `None` at and above the horizon.
    pub fn ground_at(&self, pixel: Point) -> Option<Point> {
        let ground = self.ground_from_image.apply(pixel)?;
        self.project(ground, 0.0).map(|_| ground)
    }

    /// The point on the ground below the camera.
    pub fn ground_position(&self) -> Point {
        [0, 1].map(|axis| -dot(self.axes[axis], self.origin))
    }

    /// Map from pixels to the ground.
    pub fn ground_from_image(&self) -> &Homography {
        &self.ground_from_image
    }

    /// How a person who stands there appears.
    pub fn figure(&self, ground: Point) -> Option<Figure> {
        let (foot, depth) = self.project(ground, 0.0)?;
        let (head, _) = self.project(ground, PERSON_HEIGHT)?;
        Some(Figure {
            foot,
            head,
            width: PERSON_WIDTH * self.focal / depth,
        })
    }

    /// Whether a pixel is in the image, `margin` pixels away from the edge.
    pub fn sees(&self, pixel: Point, margin: f64) -> bool {
        (0..2).all(|i| pixel[i] >= margin && pixel[i] <= self.size[i] - 1.0 - margin)
    }
}

/// From the first two columns, least squares over both constraints. `None` when they do not determine it
/// (a camera that looks straight down).
fn focal_length(h: &[[f64; 3]; 3]) -> Option<f64> {
    let [a1, a2] = [
        h[0][0] * h[0][1] + h[1][0] * h[1][1],
        h[0][0].powi(2) + h[1][0].powi(2) - h[0][1].powi(2) - h[1][1].powi(2),
    ];
    let [b1, b2] = [h[2][0] * h[2][1], h[2][0].powi(2) - h[2][1].powi(2)];
    let inverse_square = -(a1 * b1 + a2 * b2) / (a1 * a1 + a2 * a2);
    (inverse_square.is_finite() && inverse_square > 1e-12).then(|| inverse_square.powf(-0.5))
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn norm(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::geometry::distance;

    /// A camera at (0, -8), 3.5 m up, that looks along y and 20 degrees down; focal length 350 pixels.
    pub(crate) fn camera_on_a_pole(name: &str) -> CameraCalibration {
        let (sin, cos) = 20f64.to_radians().sin_cos();
        let (focal, height, back, centre) = (350.0, 3.5, 8.0, [239.5, 134.5]);
        // Columns: images of x, y and the origin; camera axes right, down, forward.
        let [x, y, o] = [
            [1.0, 0.0, 0.0],
            [0.0, -sin, cos],
            [0.0, height * cos - back * sin, height * sin + back * cos],
        ];
        let pixel = |p: [f64; 3]| {
            [
                focal * p[0] + centre[0] * p[2],
                focal * p[1] + centre[1] * p[2],
                p[2],
            ]
        };
        let [x, y, o] = [pixel(x), pixel(y), pixel(o)];
        let image_from_ground = Homography(std::array::from_fn(|r| [x[r], y[r], o[r]]));
        CameraCalibration {
            name: name.into(),
            width: 480,
            height: 270,
            ground_from_image: image_from_ground.inverse().unwrap(),
            focal_pixels: None,
        }
    }

    #[test]
    fn the_homography_gives_focal_length_and_height() {
        let camera = Camera::new(&camera_on_a_pole("c"), 1).unwrap();
        assert!((camera.focal() - 350.0).abs() < 1e-6);
        assert!(distance(camera.ground_position(), [0.0, -8.0]) < 1e-6);
        // A point at the camera's own height is on the horizon: level with the optical axis, tilted up 20 degrees.
        let (pixel, _) = camera.project([0.0, 1000.0], 3.5).unwrap();
        assert!(
            (pixel[1] - (134.5 - 350.0 * 20f64.to_radians().tan())).abs() < 1e-6,
            "{pixel:?}"
        );
        // Straight above a point on the optical axis the image goes up.
        let figure = camera.figure([0.0, 2.0]).unwrap();
        assert!(
            figure.height() > 40.0 && (figure.foot[0] - figure.head[0]).abs() < 1e-9,
            "{figure:?}"
        );
    }

    #[test]
    fn ground_points_project_there_and_back_at_every_size_and_sign() {
        for (factor, sign) in [(1, 1.0), (1, -3.0), (3, 1.0), (2, -0.5)] {
            let mut calibration = camera_on_a_pole("c");
            calibration
                .ground_from_image
                .0
                .iter_mut()
                .flatten()
                .for_each(|value| *value *= sign);
            let camera = Camera::new(&calibration, factor).unwrap();
            for ground in [[0.0, 0.0], [-3.0, 4.0], [2.5, 9.0]] {
                let (pixel, depth) = camera.project(ground, 0.0).unwrap();
                assert!(depth > 0.0 && distance(camera.ground_at(pixel).unwrap(), ground) < 1e-6);
                assert!(camera.figure(ground).unwrap().height() > 0.0);
            }
        }
    }

    #[test]
    fn left_handed_ground_axes_work_too() {
        let mut calibration = camera_on_a_pole("c");
        let mirror = Homography([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        calibration.ground_from_image = mirror.after(&calibration.ground_from_image);
        assert!(
            Camera::new(&calibration, 1)
                .unwrap()
                .figure([1.0, 2.0])
                .unwrap()
                .height()
                > 40.0
        );
    }

    #[test]
    fn above_the_horizon_there_is_no_ground() {
        let camera = Camera::new(&camera_on_a_pole("c"), 1).unwrap();
        assert!(camera.ground_at([240.0, 0.0]).is_none());
        assert!(camera.ground_at([240.0, 260.0]).is_some());
    }

    #[test]
    fn bad_calibrations_are_refused() {
        let mut singular = camera_on_a_pole("c");
        singular.ground_from_image = Homography([[1.0; 3]; 3]);
        assert!(
            Camera::new(&singular, 1)
                .unwrap_err()
                .to_string()
                .starts_with("camera c: ")
        );
        let mut empty = camera_on_a_pole("c");
        empty.width = 0;
        assert!(Camera::new(&empty, 1).is_err());
    }
}
