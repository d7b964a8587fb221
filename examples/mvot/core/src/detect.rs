//! People in one frame: foreground, components, and the figures that explain them.

use serde::{Deserialize, Serialize};

use crate::background;
use crate::camera::{CalibrationError, Camera, CameraCalibration, Figure};
use crate::geometry::Point;
use crate::image::{Image, ImageError, working_factor};
use crate::mask::{Component, Components, Integral, Mask, Rect};

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
/// Most figures in one component.
const MAX_FIGURES: usize = 24;
/// Smallest figure worth looking for, in pixels of height.
const MIN_HEIGHT: f64 = 10.0;
/// Cost of a background pixel inside the figure, in foreground pixels.
const BACKGROUND_COST: f64 = 0.9;
/// Cost of a foreground pixel beside the figure, on the emptier of both sides: a figure starts at an edge.
const SIDE_COST: f64 = 0.8;
/// Cost of a foreground pixel below the feet: who is nearer is explained first.
const BELOW_COST: f64 = 1.2;

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
        let candidates = self.candidates(component.bounds);
        let Some(window) = window(mask, component.bounds, &candidates) else {
            return;
        };
        let width = (window.x1 - window.x0) as usize;
        let mut explained = vec![false; window.area() as usize];
        for _ in 0..MAX_FIGURES {
            let fit = Fit::new(mask, components, component.label, window, &explained);
            let best = candidates.iter().map(|figure| (fit.score(figure), figure));
            let Some((score, figure)) = best.max_by(|a, b| a.0.total_cmp(&b.0)) else {
                return;
            };
            let figure = self.refine(&fit, *figure, score);
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
            for y in covered.y0..covered.y1 {
                let row = (y - window.y0) as usize * width;
                let from = row + (covered.x0 - window.x0) as usize;
                explained[from..from + (covered.x1 - covered.x0).max(0) as usize].fill(true);
            }
        }
    }

    /// Figures that could explain something in `bounds`: feet on a grid in and a little below it.
    fn candidates(&self, bounds: Rect) -> Vec<Figure> {
        let mut candidates = Vec::new();
        let bottom = f64::from(bounds.y1 - 1);
        let lowest = [f64::from(bounds.x0 + bounds.x1) / 2.0, bottom];
        let tallest = self
            .camera
            .ground_at(lowest)
            .and_then(|ground| self.camera.figure(ground))
            .map_or(0.0, |f| f.height());
        let step = if tallest > 70.0 { 2 } else { 1 };
        // Who is cut off by the edge of the image has the feet below it.
        let cut = bounds.y1 as f64 >= self.camera.size()[1] - 2.0;
        let reach = if cut {
            tallest * 0.5
        } else {
            2.0 + tallest * 0.04
        };
        let reach_x = (tallest * 0.05) as i32 + 1;
        for v in (bounds.y0..=bounds.y1 + reach as i32).step_by(step) {
            for u in (bounds.x0 - reach_x..bounds.x1 + reach_x).step_by(step) {
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
        candidates
    }

    /// The best of the figure's neighbours, then with its feet at the lowest foreground pixels if those show.
    fn refine(&self, fit: &Fit, figure: Figure, score: f64) -> Figure {
        let mut best = (score, figure);
        for dv in -1..=1 {
            for du in -1..=1 {
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

/// What is counted as one person: head, torso and legs as rectangles.
struct Parts {
    head: Rect,
    torso: Rect,
    legs: Rect,
}

/// The first pixel whose centre is not before a coordinate.
fn edge(coordinate: f64) -> i32 {
    coordinate.ceil() as i32
}

fn part(figure: &Figure, half_width: f64, from: f64, to: f64) -> Rect {
    let height = figure.height();
    // The body leans with the perspective: its axis goes from foot to head.
    let middle = 1.0 - (from + to) / 2.0;
    let x = figure.foot[0] + (figure.head[0] - figure.foot[0]) * middle;
    let half = half_width * figure.width;
    Rect {
        x0: edge(x - half),
        x1: edge(x + half).max(edge(x - half) + 1),
        y0: edge(figure.head[1] + from * height),
        y1: edge(figure.head[1] + to * height),
    }
}

impl Parts {
    fn of(figure: &Figure) -> Self {
        Self {
            head: part(figure, 0.2, 0.0, 0.14),
            torso: part(figure, 0.42, 0.14, 0.52),
            legs: part(figure, 0.32, 0.52, 1.0),
        }
    }

    fn all(&self) -> [Rect; 3] {
        [self.head, self.torso, self.legs]
    }

    fn area(&self) -> f64 {
        f64::from(self.all().iter().map(Rect::area).sum::<i32>().max(1))
    }
}

/// What an accepted figure takes out of the component.
fn covered(figure: &Figure) -> Rect {
    part(figure, 0.62, -0.08, 1.06)
}

/// The pixels that matter for a component: it and everything that a candidate covers, in the image.
fn window(mask: &Mask, bounds: Rect, candidates: &[Figure]) -> Option<Rect> {
    let mut window = bounds;
    for figure in candidates {
        let covered = covered(figure);
        window = Rect {
            x0: window.x0.min(covered.x0),
            y0: window.y0.min(covered.y0),
            x1: window.x1.max(covered.x1),
            y1: window.y1.max(covered.y1),
        };
    }
    let window = window.intersect(&Rect {
        x0: 0,
        y0: 0,
        x1: mask.width() as i32,
        y1: mask.height() as i32,
    });
    (window.area() > 0 && !candidates.is_empty()).then_some(window)
}

/// Counts of what is still to be explained and of background. Other components, explained pixels and the
/// outside of the image are neither: nothing is known about what they hide.
struct Fit {
    residual: Integral,
    background: Integral,
}

impl Fit {
    fn new(
        mask: &Mask,
        components: &Components,
        label: u32,
        window: Rect,
        explained: &[bool],
    ) -> Self {
        let width = window.x1 - window.x0;
        let is_explained =
            |x: i32, y: i32| explained[((y - window.y0) * width + x - window.x0) as usize];
        Self {
            residual: Integral::of(window, |x, y| {
                u32::from(components.label(x, y) == label && !is_explained(x, y))
            }),
            background: Integral::of(window, |x, y| {
                u32::from(!mask.is_set(x as usize, y as usize) && !is_explained(x, y))
            }),
        }
    }

    fn residual(&self, parts: &Parts) -> f64 {
        f64::from(
            parts
                .all()
                .iter()
                .map(|part| self.residual.sum(*part))
                .sum::<u32>(),
        )
    }

    fn score(&self, figure: &Figure) -> f64 {
        let parts = Parts::of(figure);
        let background: u32 = parts
            .all()
            .iter()
            .map(|part| self.background.sum(*part))
            .sum();
        let body = Rect {
            x0: parts.torso.x0,
            x1: parts.torso.x1,
            y0: parts.torso.y0,
            y1: parts.legs.y1,
        };
        let side = ((body.x1 - body.x0) / 3).max(1);
        let left = self.residual.sum(Rect {
            x0: body.x0 - side,
            x1: body.x0,
            ..body
        });
        let right = self.residual.sum(Rect {
            x0: body.x1,
            x1: body.x1 + side,
            ..body
        });
        let below = part(figure, 0.32, 1.02, 1.14);
        self.residual(&parts)
            - BACKGROUND_COST * f64::from(background)
            - SIDE_COST * f64::from(left.min(right))
            - BELOW_COST * f64::from(self.residual.sum(below))
    }

    /// The edge below the lowest row of foreground near the feet, if the feet show.
    fn lowest_row(&self, figure: &Figure) -> Option<f64> {
        let reach = (0.12 * figure.height()).ceil() as i32;
        let legs = part(figure, 0.36, 0.5, 1.0);
        let enough = ((legs.x1 - legs.x0) / 5).max(1) as u32;
        let foot = figure.foot[1].round() as i32;
        let row = |y: i32| {
            self.residual.sum(Rect {
                y0: y,
                y1: y + 1,
                ..legs
            })
        };
        let lowest = (foot - reach..=foot + reach)
            .rev()
            .find(|y| row(*y) >= enough)?;
        // At the edge of the search the component goes on: somebody else's pixels.
        let ends = lowest < foot + reach;
        // Below the feet there has to be ground, not the hidden part of the same person.
        let ground = self.background.sum(Rect {
            y0: lowest + 1,
            y1: lowest + 3,
            ..legs
        });
        (ends && ground > 0).then_some(f64::from(lowest) + 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::tests::camera_on_a_pole;
    use crate::geometry::distance;

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
        assert!(
            detections[1].visible < detections[0].visible
                && detections[1].sigma[1] > detections[0].sigma[1]
        );
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
