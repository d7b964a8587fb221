//! Bringing the views of one timestep together on the ground plane.
//!
//! Each detection becomes a point on the ground with a covariance: long along the view, longer when the feet
//! were hidden. Points of different cameras that agree are merged, closest first in standard deviations, into
//! people weighted by how reliable each view is. What other cameras should have seen but did not counts against.

use crate::camera::{Area, Calibration, CalibrationError, Camera};
use crate::detect::Detection;
use crate::geometry::{Matrix2, Point, add2, apply2, distance, invert2, mahalanobis2};

/// What calibration adds to the uncertainty of each point, as a standard deviation in metres.
const CALIBRATION_SIGMA: f64 = 0.06;
/// Farthest apart that two groups may be to be one person, in squared standard deviations (99 %).
const GATE: f64 = 9.2;
/// And in metres.
const MAX_DISTANCE: f64 = 1.2;
/// Two people are not closer than this, in metres.
const MIN_SEPARATION: f64 = 0.35;
/// How far outside the area people are still followed, in metres.
pub const AREA_MARGIN: f64 = 0.6;

/// A person at one timestep, from all views.
#[derive(Debug, Clone, PartialEq)]
pub struct Fused {
    /// On the ground, in metres.
    pub position: Point,
    /// Its uncertainty.
    pub covariance: Matrix2,
    /// Cameras that saw the person.
    pub views: u32,
    /// How likely there is somebody, 0 to 1: seen against should have been seen.
    pub confidence: f64,
}

/// One camera's detections at a timestep. `None`: the frame did not arrive.
pub type View<'a> = Option<&'a [Detection]>;

/// The geometry of all cameras of a scene.
#[derive(Debug)]
pub struct Fusion {
    cameras: Vec<Camera>,
    area: Area,
}

/// A group of detections that may be one person.
#[derive(Clone)]
struct Group {
    /// Sum of the inverse covariances, and of those times the points.
    information: Matrix2,
    weighted: Point,
    position: Point,
    covariance: Matrix2,
    /// Bit per camera.
    cameras: u64,
    /// Sum of what is visible in each view.
    support: f64,
}

impl Group {
    fn of(point: Point, covariance: Matrix2, camera: usize, support: f64) -> Option<Self> {
        let information = invert2(covariance)?;
        let weighted = apply2(information, point);
        Some(Self {
            information,
            weighted,
            position: point,
            covariance,
            cameras: 1 << camera,
            support,
        })
    }

    fn merged(&self, other: &Self) -> Option<Self> {
        let information = add2(self.information, other.information);
        let weighted = [
            self.weighted[0] + other.weighted[0],
            self.weighted[1] + other.weighted[1],
        ];
        let covariance = invert2(information)?;
        Some(Self {
            information,
            weighted,
            position: apply2(covariance, weighted),
            covariance,
            cameras: self.cameras | other.cameras,
            support: self.support + other.support,
        })
    }

    /// How far two groups are from being one person; `None` when they cannot be.
    fn gap(&self, other: &Self) -> Option<f64> {
        if self.cameras & other.cameras != 0
            || distance(self.position, other.position) > MAX_DISTANCE
        {
            return None;
        }
        let gap = mahalanobis2(
            self.position,
            other.position,
            add2(self.covariance, other.covariance),
        );
        (gap < GATE).then_some(gap)
    }
}

impl Fusion {
    /// Most cameras of a scene.
    pub const MAX_CAMERAS: usize = 64;

    /// From the calibration of a scene.
    pub fn new(calibration: &Calibration) -> Result<Self, CalibrationError> {
        if let Some(camera) = calibration.cameras.get(Self::MAX_CAMERAS) {
            return Err(CalibrationError {
                camera: camera.name.clone(),
                reason: "a scene has at most 64 cameras",
            });
        }
        let cameras = calibration
            .cameras
            .iter()
            .map(|camera| Camera::new(camera, 1))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            cameras,
            area: calibration.area,
        })
    }

    /// A detection as a point on the ground with its covariance; `None` at the horizon and far outside the area.
    pub fn on_ground(&self, camera: usize, detection: &Detection) -> Option<(Point, Matrix2)> {
        let camera = self.cameras.get(camera)?;
        let ground = camera.ground_at(detection.foot)?;
        let [across, down] = detection.sigma;
        let pixels = [[across * across, 0.0], [0.0, down * down]];
        let covariance = camera
            .ground_from_image()
            .carry_covariance(detection.foot, pixels)?;
        let floor = CALIBRATION_SIGMA * CALIBRATION_SIGMA;
        let far = !self.area.contains(ground, 2.0 * AREA_MARGIN + MAX_DISTANCE);
        (!far).then(|| (ground, add2(covariance, [[floor, 0.0], [0.0, floor]])))
    }

    /// The people of a timestep, the most certain first. `views` are in the order of the calibration.
    pub fn fuse(&self, views: &[View<'_>]) -> Vec<Fused> {
        let mut groups = Vec::new();
        for (camera, view) in views.iter().enumerate().take(self.cameras.len()) {
            for detection in view.unwrap_or_default() {
                if let Some((point, covariance)) = self.on_ground(camera, detection) {
                    groups.extend(Group::of(point, covariance, camera, detection.visible));
                }
            }
        }
        let groups = merge(groups);
        let mut people: Vec<Fused> = groups
            .into_iter()
            .filter(|group| self.area.contains(group.position, AREA_MARGIN))
            .map(|group| self.judged(&group, views))
            .collect();
        people.sort_by(|a, b| {
            b.confidence
                .total_cmp(&a.confidence)
                .then(b.views.cmp(&a.views))
        });
        // A weak group beside a strong one is a second piece of the same person.
        let mut kept: Vec<Fused> = Vec::new();
        for person in people {
            if kept
                .iter()
                .all(|other| distance(other.position, person.position) >= MIN_SEPARATION)
            {
                kept.push(person);
            }
        }
        kept
    }

    /// Weighs what saw the person against what should have.
    fn judged(&self, group: &Group, views: &[View<'_>]) -> Fused {
        let mut missed = 0.0;
        for (index, (camera, view)) in self.cameras.iter().zip(views).enumerate() {
            let Some(detections) = view else { continue };
            if group.cameras & (1 << index) != 0 {
                continue;
            }
            let Some(figure) = camera.figure(group.position) else {
                continue;
            };
            let inside = camera.sees(figure.foot, 2.0) && camera.sees(figure.head, 0.0);
            if !inside || figure.height() < 14.0 {
                continue;
            }
            // Hidden behind somebody who was seen: no evidence either way.
            let body = [figure.foot[0], (figure.foot[1] + figure.head[1]) / 2.0];
            let hidden = detections.iter().any(|d| {
                let [x, y, width, height] = d.bbox;
                let [dx, dy] = [0.3 * figure.width, 0.35 * figure.height()];
                body[0] > x - dx
                    && body[0] < x + width + dx
                    && body[1] > y - dy
                    && body[1] < y + height + dy
            });
            if !hidden {
                missed += 1.0;
            }
        }
        let views = group.cameras.count_ones();
        // One view alone is half a proof.
        let confidence =
            group.support / (group.support + 0.8 * missed + if views == 1 { 0.6 } else { 0.15 });
        Fused {
            position: group.position,
            covariance: group.covariance,
            views,
            confidence,
        }
    }
}

/// Merges the closest two until none are close enough.
fn merge(groups: Vec<Group>) -> Vec<Group> {
    let mut groups: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
    let count = groups.len();
    let gap = |groups: &[Option<Group>], a: usize, b: usize| match (&groups[a], &groups[b]) {
        (Some(a), Some(b)) => a.gap(b),
        _ => None,
    };
    // For each group its closest of those after it.
    let closest = |groups: &[Option<Group>], a: usize| {
        (a + 1..count)
            .filter_map(|b| gap(groups, a, b).map(|gap| (gap, b)))
            .min_by(|x, y| x.0.total_cmp(&y.0))
    };
    let mut best: Vec<Option<(f64, usize)>> = (0..count).map(|a| closest(&groups, a)).collect();
    loop {
        let next = best
            .iter()
            .enumerate()
            .filter_map(|(a, best)| best.map(|(gap, b)| (gap, a, b)));
        let Some((_, a, b)) = next.min_by(|x, y| x.0.total_cmp(&y.0)) else {
            break;
        };
        let merged = match (&groups[a], &groups[b]) {
            (Some(first), Some(second)) => first.merged(second),
            _ => None,
        };
        let Some(merged) = merged else {
            best[a] = None;
            continue;
        };
        groups[a] = Some(merged);
        groups[b] = None;
        best[b] = None;
        for i in 0..count {
            let concerned = i == a || best[i].is_some_and(|(_, other)| other == a || other == b);
            if groups[i].is_some() && (concerned || i < a) {
                best[i] = closest(&groups, i);
            }
        }
    }
    groups.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::CameraCalibration;
    use crate::camera::tests::camera_on_a_pole;
    use crate::geometry::Homography;

    /// The camera of the tests, moved around the origin.
    fn turned(name: &str, degrees: f64) -> CameraCalibration {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let mut camera = camera_on_a_pole(name);
        let turn = Homography([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]);
        camera.ground_from_image = turn.after(&camera.ground_from_image);
        camera
    }

    fn three_cameras() -> (Calibration, Fusion) {
        let calibration = Calibration {
            step_seconds: 0.2,
            area: Area {
                x_min: -4.0,
                y_min: -4.0,
                x_max: 4.0,
                y_max: 4.0,
            },
            cameras: vec![turned("a", 0.0), turned("b", 120.0), turned("c", 240.0)],
        };
        let fusion = Fusion::new(&calibration).unwrap();
        (calibration, fusion)
    }

    fn seen(fusion: &Fusion, camera: usize, ground: Point, shift: Point) -> Detection {
        let figure = fusion.cameras[camera].figure(ground).unwrap();
        let foot = [figure.foot[0] + shift[0], figure.foot[1] + shift[1]];
        let bbox = [
            foot[0] - figure.width / 2.0,
            figure.head[1],
            figure.width,
            figure.height(),
        ];
        Detection {
            foot,
            sigma: [1.0, 2.0],
            bbox,
            visible: 0.9,
        }
    }

    #[test]
    fn views_of_the_same_people_become_one_each() {
        let (_, fusion) = three_cameras();
        let people = [[0.0, 0.5], [1.5, -1.0], [-1.0, -0.8]];
        let shifts = [[1.0, -1.0], [-1.0, 1.0], [0.5, 1.5]];
        let views: Vec<Vec<Detection>> = (0..3)
            .map(|camera| {
                people
                    .iter()
                    .map(|p| seen(&fusion, camera, *p, shifts[camera]))
                    .collect()
            })
            .collect();
        let views: Vec<View<'_>> = views.iter().map(|view| Some(&view[..])).collect();
        let fused = fusion.fuse(&views);
        assert_eq!(fused.len(), 3, "{fused:?}");
        for person in people {
            let near = fused
                .iter()
                .find(|f| distance(f.position, person) < 0.2)
                .unwrap();
            assert!(near.views == 3 && near.confidence > 0.9, "{near:?}");
        }
    }

    #[test]
    fn what_only_one_of_three_sees_is_doubted_but_not_when_the_others_are_missing() {
        let (_, fusion) = three_cameras();
        let lone = [seen(&fusion, 0, [0.0, 0.0], [0.0, 0.0])];
        let doubted = fusion.fuse(&[Some(&lone), Some(&[]), Some(&[])]);
        let alone = fusion.fuse(&[Some(&lone), None, None]);
        assert!(
            doubted[0].confidence < 0.4 && alone[0].confidence > 0.55,
            "{doubted:?} {alone:?}"
        );
    }

    #[test]
    fn reliable_views_weigh_more() {
        let (_, fusion) = three_cameras();
        let sure = seen(&fusion, 0, [0.0, 0.0], [0.0, 0.0]);
        let mut unsure = seen(&fusion, 1, [0.4, 0.3], [0.0, 0.0]);
        unsure.sigma = [8.0, 16.0];
        let fused = fusion.fuse(&[Some(&[sure]), Some(&[unsure]), None]);
        assert_eq!(fused.len(), 1);
        assert!(distance(fused[0].position, [0.0, 0.0]) < distance(fused[0].position, [0.4, 0.3]));
    }

    #[test]
    fn people_outside_the_area_are_left_out() {
        let (_, fusion) = three_cameras();
        let far = [seen(&fusion, 0, [0.0, 6.0], [0.0, 0.0])];
        assert!(fusion.fuse(&[Some(&far), None, None]).is_empty());
    }
}
