//! People who walk over the plaza: from edge to edge, around each other and around the columns.

use mvot_core::camera::Area;
use mvot_core::geometry::{Point, distance};

use super::random::Random;

/// Columns of the plaza: places and radius, in metres.
pub(crate) const COLUMNS: [Point; 2] = [[-3.2, 1.6], [3.6, -1.4]];
/// Radius of a column in metres.
pub(crate) const COLUMN_RADIUS: f64 = 0.35;
/// Height of a column in metres.
pub(crate) const COLUMN_HEIGHT: f64 = 3.2;
/// Time between two steps of the simulation, in seconds.
const STEP: f64 = 0.05;
/// How far outside the area people appear and disappear, in metres.
const OUTSIDE: f64 = 1.2;

/// Somebody who walks.
#[derive(Debug, Clone)]
pub(crate) struct Walker {
    pub(crate) id: u64,
    pub(crate) position: Point,
    pub(crate) velocity: Point,
    /// Metres walked: where in the gait.
    pub(crate) walked: f64,
    pub(crate) height: f64,
    pub(crate) breadth: f64,
    /// Skin, hair, upper and lower clothes.
    pub(crate) colours: [[f64; 3]; 4],
    speed: f64,
    targets: Vec<Point>,
}

/// All who walk.
pub(crate) struct Crowd {
    area: Area,
    random: Random,
    walkers: Vec<Walker>,
    size: usize,
    last_id: u64,
}

impl Crowd {
    /// `size` people in and around the area.
    pub(crate) fn new(area: Area, size: usize, seed: u64) -> Self {
        let mut crowd = Self {
            area,
            random: Random::new(seed, &[1]),
            walkers: Vec::new(),
            size,
            last_id: 0,
        };
        while crowd.walkers.len() < size {
            let place = [
                crowd.random.between(area.x_min + 0.5, area.x_max - 0.5),
                crowd.random.between(area.y_min + 0.5, area.y_max - 0.5),
            ];
            let free = crowd
                .walkers
                .iter()
                .map(|w| w.position)
                .chain(COLUMNS)
                .all(|other| distance(other, place) > 0.9);
            if free {
                crowd.enter(place);
            }
        }
        for _ in 0..20 {
            crowd.step();
        }
        crowd
    }

    /// Who is there now.
    pub(crate) fn walkers(&self) -> &[Walker] {
        &self.walkers
    }

    /// Lets time pass.
    pub(crate) fn walk(&mut self, seconds: f64) {
        for _ in 0..(seconds / STEP).round().max(1.0) as usize {
            self.step();
        }
    }

    fn edge(&mut self) -> Point {
        let Area {
            x_min,
            y_min,
            x_max,
            y_max,
        } = self.area;
        let side = self.random.below(4);
        let along = self.random.between(0.1, 0.9);
        let (x, y) = (
            x_min + along * (x_max - x_min),
            y_min + along * (y_max - y_min),
        );
        [
            [x, y_min - OUTSIDE],
            [x_max + OUTSIDE, y],
            [x, y_max + OUTSIDE],
            [x_min - OUTSIDE, y],
        ][side]
    }

    fn enter(&mut self, position: Point) {
        self.last_id += 1;
        let area = self.area;
        let mut targets = vec![self.edge()];
        while distance(targets[0], position) < 6.0 {
            targets[0] = self.edge();
        }
        let random = &mut self.random;
        for _ in 0..1 + random.below(2) {
            targets.push([
                random.between(area.x_min + 1.0, area.x_max - 1.0),
                random.between(area.y_min + 1.0, area.y_max - 1.0),
            ]);
        }
        let mut colour = |dark: f64, light: f64| [0; 3].map(|_| random.between(dark, light));
        let (upper, lower) = (colour(20.0, 235.0), colour(20.0, 120.0));
        let skin = random.between(0.45, 1.0);
        let hair = random.between(20.0, 110.0);
        let colours = [
            [225.0 * skin, 180.0 * skin, 150.0 * skin],
            [hair, hair * 0.8, hair * 0.6],
            upper,
            lower,
        ];
        self.walkers.push(Walker {
            id: self.last_id,
            position,
            velocity: [0.0, 0.0],
            walked: random.between(0.0, 1.0),
            height: random.between(1.58, 1.9),
            breadth: random.between(0.42, 0.54),
            colours,
            speed: random.between(0.8, 1.5),
            targets,
        });
    }

    fn step(&mut self) {
        let places: Vec<Point> = self.walkers.iter().map(|walker| walker.position).collect();
        for (index, walker) in self.walkers.iter_mut().enumerate() {
            let Some(target) = walker.targets.last().copied() else {
                continue;
            };
            if distance(walker.position, target) < 0.5 {
                walker.targets.pop();
            }
            let gap = distance(walker.position, target).max(1e-6);
            let mut wish = [0, 1].map(|i| (target[i] - walker.position[i]) / gap * walker.speed);
            let people = places
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, place)| (*place, 0.45));
            for (place, radius) in
                people.chain(COLUMNS.map(|column| (column, COLUMN_RADIUS + 0.35)))
            {
                let gap = distance(walker.position, place).max(1e-3);
                let push = 2.2 * ((radius + 0.25 - gap) / 0.3).clamp(-4.0, 1.5).exp();
                let away = [0, 1].map(|i| (walker.position[i] - place[i]) / gap);
                // Also to the right, so that two who meet pass.
                wish[0] += push * (away[0] + 0.5 * away[1]);
                wish[1] += push * (away[1] - 0.5 * away[0]);
            }
            let pace = wish[0].hypot(wish[1]);
            let limit = (1.3 * walker.speed / pace.max(1e-6)).min(1.0);
            for (i, wished) in wish.iter().enumerate() {
                walker.velocity[i] += (wished * limit - walker.velocity[i]) * 0.25;
                walker.position[i] += walker.velocity[i] * STEP;
            }
            walker.walked += walker.velocity[0].hypot(walker.velocity[1]) * STEP;
        }
        let before = self.walkers.len();
        self.walkers.retain(|walker| !walker.targets.is_empty());
        for _ in self.walkers.len()..before.min(self.size) {
            let place = self.edge();
            self.enter(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area {
        x_min: -8.0,
        y_min: -6.0,
        x_max: 8.0,
        y_max: 6.0,
    };

    #[test]
    fn people_walk_at_human_speed_and_keep_apart() {
        let mut crowd = Crowd::new(AREA, 14, 3);
        let mut closest = f64::MAX;
        for _ in 0..300 {
            let before: Vec<(u64, Point)> =
                crowd.walkers().iter().map(|w| (w.id, w.position)).collect();
            crowd.walk(0.2);
            for walker in crowd.walkers() {
                if let Some((_, place)) = before.iter().find(|(id, _)| *id == walker.id) {
                    assert!(distance(*place, walker.position) < 0.2 * 2.1);
                }
                for other in crowd.walkers().iter().filter(|other| other.id < walker.id) {
                    closest = closest.min(distance(other.position, walker.position));
                }
            }
            assert_eq!(crowd.walkers().len(), 14);
        }
        assert!(closest > 0.25, "two came {closest} m close");
        assert!(
            crowd.walkers().iter().any(|walker| walker.id > 14),
            "nobody came and went"
        );
    }
}
