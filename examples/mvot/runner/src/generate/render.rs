//! What the cameras see: a paved plaza with columns, and people in front of and behind each other.

use mvot_core::geometry::Point;
use mvot_core::image::Image;

use super::crowd::{COLUMN_HEIGHT, COLUMN_RADIUS, COLUMNS, Walker};
use super::random::Random;
use super::rig::{HEIGHT, Pose, WIDTH};

/// Standard deviation of the sensor's noise, in levels.
const NOISE: f32 = 3.0;
/// How far the light drifts, as a share.
const DRIFT: f64 = 0.08;
/// How long the light takes to drift there and back, in seconds.
const DRIFT_PERIOD: f64 = 45.0;
/// Light that is left in the shadow at somebody's feet.
const SHADOW: f64 = 0.9;

/// A camera's empty scene and how deep it is.
pub(crate) struct Stage {
    pose: Pose,
    colours: Vec<[f32; 3]>,
    depths: Vec<f32>,
    seed: u64,
}

impl Stage {
    /// Looks at the empty plaza.
    pub(crate) fn new(pose: Pose, seed: u64) -> Self {
        let mut colours = Vec::with_capacity(WIDTH * HEIGHT);
        let mut depths = Vec::with_capacity(WIDTH * HEIGHT);
        for y in 0..HEIGHT {
            for x in 0..WIDTH {
                let (colour, depth) = empty(&pose, [x as f64, y as f64], seed);
                colours.push(colour.map(|level| level as f32));
                depths.push(depth as f32);
            }
        }
        Self {
            pose,
            colours,
            depths,
            seed,
        }
    }

    /// The frame of a timestep.
    pub(crate) fn frame(&self, walkers: &[Walker], camera: u64, step: u64, seconds: f64) -> Image {
        let mut colours = self.colours.clone();
        for walker in walkers {
            self.shade(&mut colours, walker);
        }
        let mut far_to_near: Vec<(f64, &Walker)> = walkers
            .iter()
            .map(|w| (self.pose.project([w.position[0], w.position[1], 0.9]).1, w))
            .collect();
        far_to_near.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (depth, walker) in far_to_near {
            if depth > 1.0 {
                self.paint(&mut colours, walker, depth);
            }
        }
        let mut random = Random::new(self.seed, &[3, camera, step]);
        let light: [f32; 3] = [0.0, 0.25, 0.5].map(|tint| {
            let phase = seconds / DRIFT_PERIOD * std::f64::consts::TAU + camera as f64 + tint;
            (1.0 + DRIFT * phase.sin()) as f32
        });
        let mut image = Image::new(WIDTH, HEIGHT);
        let mut levels = colours
            .iter()
            .flat_map(|colour| [0, 1, 2].map(|i| colour[i] * light[i]));
        for pair in image.data_mut().chunks_mut(2) {
            for (out, noise) in pair.iter_mut().zip(random.two_normal()) {
                *out = (levels.next().unwrap_or(0.0) + noise * NOISE)
                    .round()
                    .clamp(0.0, 255.0) as u8;
            }
        }
        image
    }

    /// Darkens the ground around somebody's feet.
    fn shade(&self, colours: &mut [[f32; 3]], walker: &Walker) {
        let radius = 0.3;
        let around = [[-radius, 0.0], [radius, 0.0], [0.0, -radius], [0.0, radius]];
        let corners = around.map(|d| {
            self.pose
                .project([walker.position[0] + d[0], walker.position[1] + d[1], 0.0])
        });
        if corners.iter().any(|(_, depth)| *depth < 1.0) {
            return;
        }
        let (xs, ys) = (corners.map(|(p, _)| p[0]), corners.map(|(p, _)| p[1]));
        for (x, y) in pixels(least(&xs), most(&xs), least(&ys), most(&ys)) {
            let Some(ground) = on_ground(&self.pose, [x as f64, y as f64]) else {
                continue;
            };
            let gap = (ground[0] - walker.position[0]).hypot(ground[1] - walker.position[1]);
            if gap < radius && self.depths[y * WIDTH + x].is_infinite() {
                colours[y * WIDTH + x] = colours[y * WIDTH + x].map(|level| level * SHADOW as f32);
            }
        }
    }

    fn paint(&self, colours: &mut [[f32; 3]], walker: &Walker, depth: f64) {
        let [x, y] = walker.position;
        let (foot, _) = self.pose.project([x, y, 0.0]);
        let (head, _) = self.pose.project([x, y, walker.height]);
        let scale = self.pose.focal / depth;
        // How far the legs go apart depends on how much the walk is seen from the side.
        let pace = walker.velocity[0].hypot(walker.velocity[1]).max(1e-6);
        let across = (walker.velocity[0] * self.pose.right[0]
            + walker.velocity[1] * self.pose.right[1])
            / pace;
        let stride = (walker.walked / 0.7 * std::f64::consts::PI).sin() * 0.22 * across;
        let reach = (walker.breadth / 2.0 + 0.3) * scale;
        for (px, py) in pixels(
            foot[0].min(head[0]) - reach,
            foot[0].max(head[0]) + reach,
            head[1],
            foot[1] + 1.0,
        ) {
            if self.depths[py * WIDTH + px] < depth as f32 {
                continue;
            }
            let down = (py as f64 - head[1]) / (foot[1] - head[1]);
            let axis = head[0] + (foot[0] - head[0]) * down;
            let aside = (px as f64 - axis) / scale;
            if let Some(colour) = body(walker, down, aside, stride) {
                colours[py * WIDTH + px] = colour.map(|level| level as f32);
            }
        }
    }
}

/// Colour of a walker's body `down` from the head (0) to the feet (1) and `aside` metres from its axis.
fn body(walker: &Walker, down: f64, aside: f64, stride: f64) -> Option<[f64; 3]> {
    let half = walker.breadth / 2.0;
    let [skin, hair, upper, lower] = walker.colours;
    let round = |half: f64| 1.0 - 0.35 * (aside / half).powi(2);
    let lit = |colour: [f64; 3], light: f64| Some(colour.map(|level| level * light));
    match down {
        d if (0.0..0.135).contains(&d) => {
            let height = (d - 0.068) / 0.068;
            let width = 0.1 * (1.0 - height * height).max(0.0).sqrt();
            (aside.abs() < width).then_some(if d < 0.055 { hair } else { skin })
        }
        d if (0.135..0.53).contains(&d) => {
            let shoulder = half * (0.62 + 0.38 * ((d - 0.135) / 0.06).min(1.0));
            let waist = shoulder * (1.0 - 0.28 * ((d - 0.25) / 0.28).clamp(0.0, 1.0));
            let arm = aside - stride * 0.5 * (d - 0.2);
            let in_arm = (arm.abs() - (half - 0.04)).abs() < 0.045 && d > 0.17;
            if aside.abs() < waist || in_arm {
                lit(upper, round(half * 1.2))
            } else {
                None
            }
        }
        d if (0.53..=1.0).contains(&d) => {
            let far = (d - 0.53) / 0.47;
            let apart = 0.075 + 0.02 * far;
            let thick = 0.088 - 0.035 * far;
            let legs = [-apart + stride * far, apart - stride * far];
            let on = legs.iter().any(|leg| (aside - leg).abs() < thick);
            if on {
                lit(if d > 0.965 { hair } else { lower }, round(half))
            } else {
                None
            }
        }
        _ => None,
    }
}

/// Whole pixels of a rectangle, inside the image.
fn pixels(x0: f64, x1: f64, y0: f64, y1: f64) -> impl Iterator<Item = (usize, usize)> {
    let clip = |value: f64, end: usize| value.clamp(0.0, end as f64) as usize;
    let (from, to) = (clip(x0.floor(), WIDTH), clip(x1.ceil() + 1.0, WIDTH));
    (clip(y0.ceil(), HEIGHT)..clip(y1.floor() + 1.0, HEIGHT))
        .flat_map(move |y| (from..to).map(move |x| (x, y)))
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MAX, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MIN, f64::max)
}

fn on_ground(pose: &Pose, pixel: Point) -> Option<Point> {
    let ray = pose.ray(pixel);
    (ray[2] < -1e-3).then(|| {
        let far = -pose.eye[2] / ray[2];
        [pose.eye[0] + far * ray[0], pose.eye[1] + far * ray[1]]
    })
}

/// Colour of the empty scene, and depth where something stands that can hide people (else infinite).
fn empty(pose: &Pose, pixel: Point, seed: u64) -> ([f64; 3], f64) {
    let ray = pose.ray(pixel);
    let hits = COLUMNS.iter().filter_map(|column| {
        // Where the ray's shadow on the ground enters the circle.
        let to = [pose.eye[0] - column[0], pose.eye[1] - column[1]];
        let a = ray[0] * ray[0] + ray[1] * ray[1];
        let b = to[0] * ray[0] + to[1] * ray[1];
        let c = to[0] * to[0] + to[1] * to[1] - COLUMN_RADIUS * COLUMN_RADIUS;
        let root = (b * b - a * c).max(-1.0);
        let depth = (-b - root.max(0.0).sqrt()) / a;
        let z = pose.eye[2] + depth * ray[2];
        let side = (to[0] + depth * ray[0]) / COLUMN_RADIUS;
        (root > 0.0 && depth > 0.0 && (0.0..COLUMN_HEIGHT).contains(&z)).then_some((depth, z, side))
    });
    if let Some((depth, z, side)) = hits.min_by(|a, b| a.0.total_cmp(&b.0)) {
        let light = 0.75 + 0.25 * side + 0.06 * noise(side * 9.0, z * 6.0, seed);
        return ([168.0, 160.0, 148.0].map(|level| level * light), depth);
    }
    let colour = match on_ground(pose, pixel) {
        Some([x, y]) if x.abs() < 40.0 && y.abs() < 40.0 => {
            let tile = [x / 1.2, y / 1.2];
            let seam = tile.iter().any(|t| (t - t.round()).abs() < 0.025);
            let each = noise(tile[0].floor() * 7.3, tile[1].floor() * 5.1, seed);
            let light = 1.0 + 0.09 * each + 0.07 * noise(x * 2.5, y * 2.5, seed)
                - if seam { 0.16 } else { 0.0 };
            let paved = x.abs() < 11.0 && y.abs() < 9.0;
            let base = if paved {
                [142.0, 136.0, 128.0]
            } else {
                [92.0, 112.0, 78.0]
            };
            base.map(|level| level * light)
        }
        _ => {
            let windows = noise(pixel[0] * 0.06 + pose.eye[0] * 3.0, pixel[1] * 0.09, seed);
            [150.0, 146.0, 150.0].map(|level| level * (1.0 + 0.25 * windows))
        }
    };
    (colour, f64::INFINITY)
}

/// Smooth noise from -1 to 1.
fn noise(x: f64, y: f64, seed: u64) -> f64 {
    let corner = |i: f64, j: f64| {
        Random::new(seed, &[4, i as i64 as u64, j as i64 as u64]).between(-1.0, 1.0)
    };
    let (i, j) = (x.floor(), y.floor());
    let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
    let (s, t) = (smooth(x - i), smooth(y - j));
    let mix = |a: f64, b: f64, share: f64| a + (b - a) * share;
    mix(
        mix(corner(i, j), corner(i + 1.0, j), s),
        mix(corner(i, j + 1.0), corner(i + 1.0, j + 1.0), s),
        t,
    )
}
