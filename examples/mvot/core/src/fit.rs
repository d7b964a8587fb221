//! How well a figure explains the foreground of a component: what [`crate::detect`] maximises.

use crate::camera::Figure;
use crate::mask::{Components, Integral, Mask, Rect};

/// Cost of a background pixel inside the figure, in foreground pixels.
const BACKGROUND_COST: f64 = 0.9;
/// Cost of a foreground pixel beside the figure, on the emptier of both sides: a figure starts at an edge.
const SIDE_COST: f64 = 0.8;
/// Cost of a foreground pixel below the feet: who is nearer is explained first.
const BELOW_COST: f64 = 1.2;

/// What is counted as one person: head, torso and legs as rectangles.
pub(crate) struct Parts {
    pub(crate) head: Rect,
    pub(crate) torso: Rect,
    pub(crate) legs: Rect,
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
    pub(crate) fn of(figure: &Figure) -> Self {
        Self {
            head: part(figure, 0.2, 0.0, 0.14),
            torso: part(figure, 0.42, 0.14, 0.52),
            legs: part(figure, 0.32, 0.52, 1.0),
        }
    }

    pub(crate) fn all(&self) -> [Rect; 3] {
        [self.head, self.torso, self.legs]
    }

    pub(crate) fn area(&self) -> f64 {
        f64::from(self.all().iter().map(Rect::area).sum::<i32>().max(1))
    }
}

/// What an accepted figure takes out of the component.
pub(crate) fn covered(figure: &Figure) -> Rect {
    part(figure, 0.62, -0.08, 1.06)
}

/// The pixels that matter for a component: it and everything that a candidate covers, in the image.
pub(crate) fn window(mask: &Mask, bounds: Rect, candidates: &[Figure]) -> Option<Rect> {
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
pub(crate) struct Fit {
    pub(crate) residual: Integral,
    background: Integral,
}

impl Fit {
    pub(crate) fn new(
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

    pub(crate) fn residual(&self, parts: &Parts) -> f64 {
        f64::from(
            parts
                .all()
                .iter()
                .map(|part| self.residual.sum(*part))
                .sum::<u32>(),
        )
    }

    pub(crate) fn score(&self, figure: &Figure) -> f64 {
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
    pub(crate) fn lowest_row(&self, figure: &Figure) -> Option<f64> {
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
