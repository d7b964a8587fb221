//! People in one frame: foreground, components, and the figures that explain them.

use serde::{Deserialize, Serialize};

use crate::background;
use crate::camera::{CalibrationError, Camera, CameraCalibration, Figure};
use crate::fit::{Fit, Parts, covered, window};
use crate::geometry::Point;
use crate::image::{Image, ImageError, working_factor};
use crate::mask::{Component, Components, Mask, Rect};

/// One person seen by one camera. Pixels are those of the original frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Where the feet meet the ground.
    pub foot: Point,
    /// Standard deviations of that across and down.
    pub sigma: Point,
    /// Left, top, width and height of the box around the person.
    pub bbox: [f64; 4],
    /// Share of the expected figure that is foreground and not explained by somebody in front, 0 to 1.
    pub visible: f64,
}

/// Why a frame could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// Frame or background are not as the calibration says.
    #[error("the frame has {found:?} pixels, the calibration says {expected:?}")]
    WrongSize {
        /// As the calibration says.
        expected: (usize, usize),
        /// As it is.
        found: (usize, usize),
    },
    /// The image itself.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Components of fewer pixels are noise.
const MIN_COMPONENT: usize = 20;
/// Foreground pixels a figure has to explain at least.
const MIN_EXPLAINED: f64 = 18.0;
/// Share of the figure that has to be foreground.
const MIN_VISIBLE: f64 = 0.28;
/// Least score, as a share of the figure's area.
const MIN_SCORE: f64 = 0.12;
/// Most people in one frame: a frame full of noise has to end, here and in fusion.
pub const MAX_DETECTIONS: usize = 256;
/// Most figures in one component.
const MAX_FIGURES: usize = 24;
/// Smallest figure worth looking for, in pixels of height.
const MIN_HEIGHT: f64 = 10.0;
/// Pixels of height for which the search takes steps of one more pixel.
const PIXELS_PER_STEP: f64 = 24.0;

/// Detection for one camera: what it needs besides the frame.
#[derive(Debug)]
pub struct Detector {
    camera: Camera,
    background: Image,
    size: (usize, usize),
    factor: usize,
}

impl Detector {
    /// A detector from a camera's calibration and its background at working size (see [`Detector::prepare`]).
    pub fn new(
        calibration: &CameraCalibration,
        background: Image,
    ) -> Result<Self, CalibrationError> {
        let factor = working_factor(calibration.width as usize);
        let camera = Camera::new(calibration, factor)?;
        let expected = camera.size().map(|pixels| pixels as usize);
        if background.size() != (expected[0], expected[1]) {
            return Err(CalibrationError {
                camera: calibration.name.clone(),
                reason: "its background is not of the working size of its frames",
            });
        }
        Ok(Self {
            camera,
            background,
            size: (calibration.width as usize, calibration.height as usize),
            factor,
        })
    }

    /// A frame at the size that detection works on.
    pub fn prepare(frame: Image) -> Image {
        let factor = working_factor(frame.width());
        frame.shrink(factor)
    }

    /// The people in a frame, those that explain most of it first.
    pub fn detect(&self, frame: Image) -> Result<Vec<Detection>, DetectError> {
        if frame.size() != self.size {
            return Err(DetectError::WrongSize {
                expected: self.size,
                found: frame.size(),
            });
        }
        let frame = frame.shrink(self.factor);
        let mask = background::difference(&frame, &self.background)?
            .majority(5)
            .close(1, 2);
        let components = mask.components(MIN_COMPONENT);
        let mut detections = Vec::new();
        for component in &components.found {
            self.explain(&mask, &components, component, &mut detections);
            if detections.len() >= MAX_DETECTIONS {
                detections.truncate(MAX_DETECTIONS);
                break;
            }
        }
        Ok(detections)
    }

    /// Finds the figures that explain a component, one after the other.
    fn explain(
        &self,
        mask: &Mask,
        components: &Components,
        component: &Component,
        out: &mut Vec<Detection>,
    ) {
        let (candidates, step) = self.candidates(component.bounds);
        let Some(window) = window(mask, component.bounds, &candidates) else {
            return;
        };
        let width = (window.x1 - window.x0) as usize;
        let mut explained = vec![false; window.area() as usize];
        let mut left = component.area;
        for _ in 0..MAX_FIGURES {
            if (left as f64) < MIN_EXPLAINED {
                return;
            }
            let fit = Fit::new(mask, components, component.label, window, &explained);
            let best = candidates.iter().map(|figure| (fit.score(figure), figure));
            let Some((score, figure)) = best.max_by(|a, b| a.0.total_cmp(&b.0)) else {
                return;
            };
            let figure = self.refine(&fit, *figure, score, step);
            let parts = Parts::of(&figure);
            let visible = fit.residual(&parts) / parts.area();
            let score = fit.score(&figure);
            if visible < MIN_VISIBLE
                || score < MIN_SCORE * parts.area()
                || fit.residual(&parts) < MIN_EXPLAINED
            {
                return;
            }
            out.push(self.detection(&fit, &figure, &parts, visible.min(1.0)));
            let covered = covered(&figure).intersect(&window);
            left -= fit.residual.sum(covered) as usize;
            for y in covered.y0..covered.y1 {
                let row = (y - window.y0) as usize * width;
                let from = row + (covered.x0 - window.x0) as usize;
                explained[from..from + (covered.x1 - covered.x0).max(0) as usize].fill(true);
            }
        }
    }

    /// Figures that could explain something in `bounds`: feet on a grid in and a little below it; and its step.
    fn candidates(&self, bounds: Rect) -> (Vec<Figure>, i32) {
        let mut candidates = Vec::new();
        let bottom = f64::from(bounds.y1 - 1);
        let lowest = [f64::from(bounds.x0 + bounds.x1) / 2.0, bottom];
        let tallest = self
            .camera
            .ground_at(lowest)
            .and_then(|ground| self.camera.figure(ground))
            .map_or(0.0, |f| f.height());
        let step = ((tallest / PIXELS_PER_STEP) as i32).clamp(1, 4);
        // Who is cut off by the edge of the image has the feet below it.
        let cut = bounds.y1 as f64 >= self.camera.size()[1] - 2.0;
        let reach = if cut {
            tallest * 0.5
        } else {
            2.0 + tallest * 0.04
        };
        let reach_x = (tallest * 0.05) as i32 + 1;
        for v in (bounds.y0..=bounds.y1 + reach as i32).step_by(step as usize) {
            for u in (bounds.x0 - reach_x..bounds.x1 + reach_x).step_by(step as usize) {
                let foot = [f64::from(u), f64::from(v)];
                let figure = self
                    .camera
                    .ground_at(foot)
                    .and_then(|ground| self.camera.figure(ground));
                candidates.extend(figure.filter(|figure| {
                    // No head far above everything that is to be explained.
                    figure.height() >= MIN_HEIGHT
                        && figure.head[1] > f64::from(bounds.y0) - 0.35 * figure.height()
                }));
            }
        }
        (candidates, step)
    }

    /// The best of the figure's neighbours, then with its feet at the lowest foreground pixels if those show.
    fn refine(&self, fit: &Fit, figure: Figure, score: f64, step: i32) -> Figure {
        let mut best = (score, figure);
        let reach = (step - 1).max(1);
        for dv in -reach..=reach {
            for du in -reach..=reach {
                let foot = [
                    figure.foot[0] + f64::from(du),
                    figure.foot[1] + f64::from(dv),
                ];
                if let Some(near) = self.at(foot) {
                    let score = fit.score(&near);
                    if score > best.0 {
                        best = (score, near);
                    }
                }
            }
        }
        let figure = best.1;
        fit.lowest_row(&figure)
            .and_then(|v| self.at([figure.foot[0], v]))
            .unwrap_or(figure)
    }

    fn at(&self, foot: Point) -> Option<Figure> {
        self.camera
            .ground_at(foot)
            .and_then(|ground| self.camera.figure(ground))
    }

    fn detection(&self, fit: &Fit, figure: &Figure, parts: &Parts, visible: f64) -> Detection {
        let height = figure.height();
        let foot_shows = fit.lowest_row(figure).is_some();
        // People differ in height by 5 %: that is what the place is worth when only the head shows.
        let down = if foot_shows {
            0.6 + 0.03 * height
        } else {
            1.5 + 0.1 * height
        };
        let across = 0.5 + figure.width * (0.05 + 0.25 * (1.0 - visible));
        let factor = self.factor as f64;
        let full = |pixel: f64| (pixel + 0.5) * factor - 0.5;
        let x0 = parts.torso.x0.min(parts.legs.x0) as f64;
        let x1 = parts.torso.x1.max(parts.legs.x1) as f64;
        Detection {
            foot: [round(full(figure.foot[0])), round(full(figure.foot[1]))],
            sigma: [round(across * factor), round(down * factor)],
            bbox: [
                round(x0 * factor),
                round(figure.head[1] * factor),
                round((x1 - x0) * factor),
                round(height * factor),
            ],
            visible: round(visible),
        }
    }
}

/// Two decimals are more than the pixels are worth, and keep messages short.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::tests::camera_on_a_pole;
    use crate::geometry::{Homography, distance};

    /// A gray frame with dark figures (rectangles with a head) standing at the given places.
    fn frame(camera: &Camera, people: &[Point]) -> Image {
        let mut image = Image::new(480, 270);
        image.data_mut().fill(120);
        for ground in people {
            let figure = camera.figure(*ground).unwrap();
            for rect in Parts::of(&figure).all() {
                let rect = rect.intersect(&Rect {
                    x0: 0,
                    y0: 0,
                    x1: 480,
                    y1: 270,
                });
                for y in rect.y0..rect.y1 {
                    for x in rect.x0..rect.x1 {
                        let at = (y as usize * 480 + x as usize) * 3;
                        image.data_mut()[at..at + 3].copy_from_slice(&[30, 40, 50]);
                    }
                }
            }
        }
        image
    }

    fn found(people: &[Point]) -> (Camera, Vec<Detection>) {
        let calibration = camera_on_a_pole("c");
        let camera = Camera::new(&calibration, 1).unwrap();
        let detector = Detector::new(&calibration, frame(&camera, &[])).unwrap();
        let detections = detector.detect(frame(&camera, people)).unwrap();
        (camera, detections)
    }

    fn assert_found(people: &[Point], tolerance: f64) {
        let (camera, detections) = found(people);
        let places: Vec<Point> = detections
            .iter()
            .map(|d| camera.ground_at(d.foot).unwrap())
            .collect();
        assert_eq!(places.len(), people.len(), "{detections:?} {places:?}");
        for person in people {
            let nearest = places
                .iter()
                .map(|place| distance(*place, *person))
                .fold(f64::MAX, f64::min);
            assert!(
                nearest < tolerance,
                "{person:?} is {nearest} m away: {places:?}"
            );
        }
    }

    #[test]
    fn an_empty_frame_has_nobody() {
        assert!(found(&[]).1.is_empty());
    }

    #[test]
    fn one_person_is_found_where_they_stand() {
        for person in [[0.0, 0.0], [2.0, 3.0], [-2.5, 6.0], [0.5, 11.0]] {
            assert_found(&[person], 0.4);
        }
    }

    #[test]
    fn people_side_by_side_in_one_component_are_two() {
        assert_found(&[[0.0, 2.0], [0.45, 2.0]], 0.4);
    }

    #[test]
    fn who_is_half_hidden_behind_somebody_is_found_and_less_certain() {
        let people = [[0.0, 1.0], [0.3, 3.6]];
        assert_found(&people, 1.0);
        let (_, detections) = found(&people);
        let across = |of: &Detection| of.sigma[0] / of.bbox[2];
        assert!(
            detections[1].visible < detections[0].visible,
            "{detections:?}"
        );
        assert!(
            across(&detections[1]) > across(&detections[0]),
            "{detections:?}"
        );
    }

    #[test]
    fn large_frames_are_shrunk_and_detections_are_in_their_pixels() {
        let small = camera_on_a_pole("c");
        let camera = Camera::new(&small, 1).unwrap();
        let enlarge = |image: Image| {
            let mut large = Image::new(480 * 3, 270 * 3);
            for (i, pixel) in large.data_mut().chunks_exact_mut(3).enumerate() {
                let (x, y) = (i % 1440 / 3, i / 1440 / 3);
                let at = (y * 480 + x) * 3;
                pixel.copy_from_slice(&image.data()[at..at + 3]);
            }
            large
        };
        let shrink = Homography([
            [1.0 / 3.0, 0.0, -1.0 / 3.0],
            [0.0, 1.0 / 3.0, -1.0 / 3.0],
            [0.0, 0.0, 1.0],
        ]);
        let calibration = CameraCalibration {
            width: 1440,
            height: 810,
            ground_from_image: small.ground_from_image.after(&shrink),
            ..small.clone()
        };
        let background = Detector::prepare(enlarge(frame(&camera, &[])));
        assert_eq!(background.size(), (480, 270));
        let detector = Detector::new(&calibration, background).unwrap();
        let person = [1.0, 3.0];
        let found = detector.detect(enlarge(frame(&camera, &[person]))).unwrap();
        let large = Camera::new(&calibration, 1).unwrap();
        assert!(
            distance(large.ground_at(found[0].foot).unwrap(), person) < 0.3,
            "{found:?}"
        );
    }

    #[test]
    fn a_frame_full_of_noise_ends_with_a_bounded_number_of_people() {
        let calibration = camera_on_a_pole("c");
        let camera = Camera::new(&calibration, 1).unwrap();
        let detector = Detector::new(&calibration, frame(&camera, &[])).unwrap();
        let mut noise = Image::new(480, 270);
        for (i, pixel) in noise.data_mut().chunks_exact_mut(3).enumerate() {
            let (x, y) = (i % 480, i / 480);
            pixel.fill(if x % 10 < 6 && y % 14 < 10 { 250 } else { 120 });
        }
        assert!(detector.detect(noise).unwrap().len() <= MAX_DETECTIONS);
    }

    #[test]
    fn frames_of_another_size_are_refused() {
        let calibration = camera_on_a_pole("c");
        let camera = Camera::new(&calibration, 1).unwrap();
        let detector = Detector::new(&calibration, frame(&camera, &[])).unwrap();
        assert!(matches!(
            detector.detect(Image::new(48, 27)),
            Err(DetectError::WrongSize { .. })
        ));
        assert!(Detector::new(&calibration, Image::new(5, 5)).is_err());
    }
}
