//! From people at single timesteps to tracks through time.

use serde::{Deserialize, Serialize};

use crate::assignment::{FORBIDDEN, assign};
use crate::camera::Area;
use crate::fusion::{AREA_MARGIN, Fused};
use crate::geometry::{Point, add2, distance, mahalanobis2};
use crate::kalman::Kalman;

/// Confidence from which somebody may become a track.
const STRONG: f64 = 0.5;
/// Confidence from which somebody at an expected place continues a track.
const WEAK: f64 = 0.2;
/// Confidence from which, with three views, a track is shown at once.
const CERTAIN: f64 = 0.72;
/// Farthest from its prediction that a track goes on, in squared standard deviations.
const GATE: f64 = 13.8;
/// And in metres.
const MAX_STEP: f64 = 1.3;
/// A new track this close to an old one would be the same person, in metres.
const BIRTH_DISTANCE: f64 = 0.55;
/// Timesteps in which somebody has to be seen before the track is shown.
const CONFIRMING_HITS: u32 = 3;
/// Time after which a track that nobody sees ends, in seconds.
const MAX_UNSEEN: f64 = 2.0;
/// Time for which a track is shown although nobody sees it, in seconds.
const MAX_SHOWN_UNSEEN: f64 = 1.0;
/// Speed of people, standard deviation in m/s.
const SPEED_SIGMA: f64 = 1.2;
/// How much their velocity wanders, in m^2/s^3.
const ACCELERATION: f64 = 0.6;
/// What fusion leaves out of its covariances (gait, unequal shapes), as a standard deviation in metres.
const MODEL_SIGMA: f64 = 0.1;
/// Share of the speed that is left after each timestep in which a track was not seen.
const UNSEEN_SLOWDOWN: f64 = 0.92;

/// A person followed through time, at one timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackPoint {
    /// Number of the track, from 1.
    pub id: u64,
    /// Where, in metres.
    pub position: Point,
    /// How fast, in m/s.
    pub velocity: Point,
    /// Cameras that saw the person at this timestep; 0 when the place is a prediction.
    pub views: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Track {
    id: u64,
    filter: Kalman,
    hits: u32,
    misses: u32,
    confirmed: bool,
    views: u32,
}

/// All tracks of a scene: the state between two timesteps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tracker {
    tracks: Vec<Track>,
    last_id: u64,
    step_seconds: f64,
    area: Area,
}

impl Tracker {
    /// A tracker that has seen nobody yet.
    pub fn new(area: Area, step_seconds: f64) -> Self {
        Self {
            tracks: Vec::new(),
            last_id: 0,
            step_seconds,
            area,
        }
    }

    /// Takes in the people of the next timestep and says who is where.
    pub fn step(&mut self, people: &[Fused]) -> Vec<TrackPoint> {
        for track in &mut self.tracks {
            track.filter.predict(self.step_seconds, ACCELERATION);
            track.misses += 1;
            track.views = 0;
        }
        let mut free: Vec<bool> = vec![true; people.len()];
        // Established tracks choose first among those that are certain, then everybody among the rest.
        self.continue_tracks(people, &mut free, |track, person| {
            track.confirmed && person.confidence >= STRONG
        });
        self.continue_tracks(people, &mut free, |_, person| person.confidence >= WEAK);
        for track in self.tracks.iter_mut().filter(|track| track.misses > 0) {
            track.filter.slow_down(UNSEEN_SLOWDOWN);
        }
        self.end_tracks();
        self.begin_tracks(people, &free);
        let max_shown = (MAX_SHOWN_UNSEEN / self.step_seconds).ceil() as u32;
        let shown = self.tracks.iter().filter(|track| {
            track.confirmed
                && track.misses <= max_shown
                && self.area.contains(track.filter.position(), 0.0)
        });
        shown
            .map(|track| TrackPoint {
                id: track.id,
                position: track.filter.position().map(millimetres),
                velocity: track.filter.velocity().map(millimetres),
                views: track.views,
            })
            .collect()
    }

    /// Assigns people to tracks that have not been seen at this timestep, and updates those.
    fn continue_tracks(
        &mut self,
        people: &[Fused],
        free: &mut [bool],
        may: impl Fn(&Track, &Fused) -> bool,
    ) {
        let noise = MODEL_SIGMA * MODEL_SIGMA;
        let measured: Vec<_> = people
            .iter()
            .map(|person| add2(person.covariance, [[noise, 0.0], [0.0, noise]]))
            .collect();
        let open: Vec<usize> = (0..self.tracks.len())
            .filter(|i| self.tracks[*i].misses > 0)
            .collect();
        let mut costs = Vec::with_capacity(open.len() * people.len());
        for index in &open {
            let track = &self.tracks[*index];
            let (position, covariance) =
                (track.filter.position(), track.filter.position_covariance());
            for ((person, noise), free) in people.iter().zip(&measured).zip(free.iter()) {
                let gap = mahalanobis2(position, person.position, add2(covariance, *noise));
                let reach = MAX_STEP.min(0.6 + 1.5 * self.step_seconds * f64::from(track.misses));
                let possible = *free
                    && may(track, person)
                    && gap < GATE
                    && distance(position, person.position) < reach;
                costs.push(if possible { gap } else { FORBIDDEN });
            }
        }
        for (index, person) in open.into_iter().zip(assign_gated(people.len(), &costs)) {
            let Some(person) = person else { continue };
            free[person] = false;
            let track = &mut self.tracks[index];
            track
                .filter
                .update(people[person].position, measured[person]);
            track.hits += 1;
            track.misses = 0;
            track.views = people[person].views;
            let certain = people[person].views >= 3 && people[person].confidence >= CERTAIN;
            track.confirmed |= track.hits >= CONFIRMING_HITS || certain;
        }
    }

    fn end_tracks(&mut self) {
        let max_unseen = (MAX_UNSEEN / self.step_seconds).ceil() as u32;
        let area = self.area;
        self.tracks.retain(|track| {
            let patience = if track.confirmed { max_unseen } else { 1 };
            // Who walked out is gone at once.
            let left =
                track.misses > 0 && !area.contains(track.filter.position(), AREA_MARGIN / 2.0);
            track.misses <= patience && !left
        });
    }

    fn begin_tracks(&mut self, people: &[Fused], free: &[bool]) {
        for (person, _) in people
            .iter()
            .zip(free)
            .filter(|(person, free)| **free && person.confidence >= STRONG)
        {
            let taken = self
                .tracks
                .iter()
                .any(|track| distance(track.filter.position(), person.position) < BIRTH_DISTANCE);
            if taken {
                continue;
            }
            self.last_id += 1;
            self.tracks.push(Track {
                id: self.last_id,
                filter: Kalman::new(person.position, person.covariance, SPEED_SIGMA),
                hits: 1,
                misses: 0,
                confirmed: person.views >= 3 && person.confidence >= CERTAIN,
                views: person.views,
            });
        }
    }
}

fn millimetres(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The assignment that is best when leaving a track unassigned costs as much as the gate: two good pairs do not
/// give way to three bad ones.
fn assign_gated(people: usize, costs: &[f64]) -> Vec<Option<usize>> {
    if people == 0 {
        return vec![None; 0];
    }
    let tracks = costs.len() / people;
    // One column of its own for each track stands for "nobody".
    let columns = people + tracks;
    let mut padded = vec![FORBIDDEN; tracks * columns];
    for (track, row) in padded.chunks_exact_mut(columns.max(1)).enumerate() {
        row[..people].copy_from_slice(&costs[track * people..(track + 1) * people]);
        row[people + track] = GATE;
    }
    assign(tracks, columns, &padded)
        .into_iter()
        .map(|column| column.filter(|column| *column < people))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area {
        x_min: -10.0,
        y_min: -10.0,
        x_max: 10.0,
        y_max: 10.0,
    };

    fn person(position: Point, confidence: f64) -> Fused {
        Fused {
            position,
            covariance: [[0.01, 0.0], [0.0, 0.01]],
            views: 3,
            confidence,
        }
    }

    fn ids(points: &[TrackPoint]) -> Vec<u64> {
        points.iter().map(|point| point.id).collect()
    }

    #[test]
    fn people_who_cross_keep_their_tracks() {
        let mut tracker = Tracker::new(AREA, 0.2);
        for step in 0..40 {
            let x = -4.0 + 0.2 * f64::from(step);
            let points = tracker.step(&[person([x, 0.3], 0.9), person([-x, -0.3], 0.9)]);
            assert_eq!(ids(&points), [1, 2]);
            assert!(
                distance(points[0].position, [x, 0.3]) < 0.3,
                "step {step}: {points:?}"
            );
        }
    }

    #[test]
    fn who_is_hidden_for_a_while_goes_on_as_the_same_track() {
        let mut tracker = Tracker::new(AREA, 0.2);
        let mut last = Vec::new();
        for step in 0..30 {
            let place = [0.25 * f64::from(step) - 4.0, 1.0];
            let seen = if (12..16).contains(&step) {
                vec![]
            } else {
                vec![person(place, 0.9)]
            };
            last = tracker.step(&seen);
            assert_eq!(ids(&last), [1], "step {step}");
            assert_eq!(last[0].views, if seen.is_empty() { 0 } else { 3 });
        }
        assert!(distance(last[0].position, [3.25, 1.0]) < 0.3);
    }

    #[test]
    fn doubtful_people_continue_tracks_but_do_not_begin_them() {
        let mut tracker = Tracker::new(AREA, 0.2);
        for _ in 0..5 {
            assert!(tracker.step(&[person([1.0, 1.0], 0.3)]).is_empty());
        }
        tracker.step(&[person([1.0, 1.0], 0.9)]);
        for _ in 0..20 {
            assert_eq!(ids(&tracker.step(&[person([1.0, 1.0], 0.3)])), [1]);
        }
    }

    #[test]
    fn a_track_without_certain_proof_is_shown_after_some_timesteps() {
        let mut tracker = Tracker::new(AREA, 0.2);
        let seen = Fused {
            views: 2,
            ..person([0.0, 0.0], 0.6)
        };
        let shown: Vec<usize> = (0..4)
            .map(|_| tracker.step(std::slice::from_ref(&seen)).len())
            .collect();
        assert_eq!(shown, [0, 0, 1, 1]);
    }

    #[test]
    fn tracks_end_when_nobody_is_seen_any_more() {
        let mut tracker = Tracker::new(AREA, 0.5);
        tracker.step(&[person([0.0, 0.0], 0.9)]);
        for _ in 0..10 {
            tracker.step(&[]);
        }
        assert!(tracker.tracks.is_empty());
        assert_eq!(ids(&tracker.step(&[person([0.0, 0.0], 0.9)])), [2]);
    }

    #[test]
    fn the_state_survives_being_written_down() {
        let mut tracker = Tracker::new(AREA, 0.2);
        tracker.step(&[person([0.1, 0.2], 0.9), person([3.0, 0.2], 0.6)]);
        let mut read: Tracker =
            serde_json::from_str(&serde_json::to_string(&tracker).unwrap()).unwrap();
        let next = [person([0.2, 0.2], 0.9)];
        assert_eq!(read.step(&next), tracker.step(&next));
    }
}
