//! A plot as SVG: axes with round numbers, lines or dots, confidence bars, a legend.

use std::fmt::Write as _;

use super::{Plot, Point, Series};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 50.0;
/// Told apart also by those who see colours differently (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#777777",
];

/// A linear or logarithmic axis from the smallest to the largest value, to round numbers.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, log: bool) -> Option<Self> {
        let low = values
            .clone()
            .filter(|v| !log || *v > 0.0)
            .reduce(f64::min)?;
        let high = values.reduce(f64::max)?;
        if log && high > 0.0 {
            let (low, high) = (libm::log10(low).floor(), libm::log10(high).ceil());
            let high = high.max(low + 1.0);
            let ticks = (low as i32..=high as i32)
                .map(|power| libm::pow(10.0, f64::from(power)))
                .collect();
            return Some(Self {
                low,
                high,
                log,
                ticks,
            });
        }
        // From zero, unless the values keep far away from it.
        let low = if low > 0.0 && low < high * 0.7 {
            0.0
        } else {
            low
        };
        let span = if high > low {
            high - low
        } else {
            high.abs().max(1.0)
        };
        let rough = span / 5.0;
        let power = libm::pow(10.0, libm::log10(rough).floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (low / step).floor() as i64;
        let last = ((low + span) / step).ceil() as i64;
        Some(Self {
            low: first as f64 * step,
            high: last as f64 * step,
            log: false,
            ticks: (first..=last).map(|tick| tick as f64 * step).collect(),
        })
    }

    /// From 0 to 1 along the axis.
    fn place(&self, value: f64) -> f64 {
        let value = match self.log {
            true => libm::log10(value.max(f64::MIN_POSITIVE)),
            false => value,
        };
        ((value - self.low) / (self.high - self.low)).clamp(-0.05, 1.05)
    }
}

/// The plot; nothing if it has no points.
pub(super) fn svg(plot: &Plot) -> String {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let reach = |point: &Point| point.ci95.unwrap_or((point.y, point.y));
    let ys = points().flat_map(|point| [point.y, reach(point).0, reach(point).1]);
    let (Some(x), Some(y)) = (
        Axis::of(points().map(|point| point.x), false),
        Axis::of(ys, plot.log_y),
    ) else {
        return String::new();
    };
    let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
    let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    // Writing into a text cannot fail.
    for tick in &y.ticks {
        let at = at_y(*tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            number(*tick)
        );
    }
    for tick in &x.ticks {
        let at = at_x(*tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
            number(*tick)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0,
        super::html::escape(&plot.x),
        (TOP + HEIGHT - BOTTOM) / 2.0,
        super::html::escape(&plot.y)
    );
    for (index, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        draw(&mut svg, series, colour, &at_x, &at_y);
        let at = TOP + 12.0 + index as f64 * 18.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{:.1}\" width=\"12\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{at:.1}\">{}</text>",
            WIDTH - RIGHT + 12.0,
            at - 6.0,
            WIDTH - RIGHT + 30.0,
            super::html::escape(&series.name)
        );
    }
    svg + "</svg>\n"
}

fn draw(
    svg: &mut String,
    series: &Series,
    colour: &str,
    at_x: &impl Fn(f64) -> f64,
    at_y: &impl Fn(f64) -> f64,
) {
    if !series.dots {
        let path: Vec<String> = series
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", at_x(point.x), at_y(point.y)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>",
            path.join(" ")
        );
    }
    for point in &series.points {
        let at = at_x(point.x);
        if let Some((low, high)) = point.ci95 {
            let _ = writeln!(
                svg,
                "<line stroke=\"{colour}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                at_y(low),
                at_y(high)
            );
        }
        if series.dots {
            let _ = writeln!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"{colour}\"/>",
                at_y(point.y)
            );
        }
    }
}

/// A number as short as it can be read.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:e}");
    }
    let digits = match size {
        size if size >= 100.0 || size == 0.0 => 1,
        size if size >= 1.0 => 3,
        _ => 5,
    };
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let axis = Axis::of([0.0, 37.0].into_iter(), false).unwrap();
        assert_eq!((axis.low, axis.high), (0.0, 40.0));
        let axis = Axis::of([0.02, 700.0].into_iter(), true).unwrap();
        assert_eq!((axis.low, axis.high, axis.ticks.len()), (-2.0, 3.0, 6));
        assert_eq!(axis.place(0.01), 0.0);
        assert!(
            Axis::of([5.0, 5.0].into_iter(), false).is_some(),
            "one value"
        );
        assert!(Axis::of(std::iter::empty(), false).is_none());
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 40.0, 0.25, 1234.5, 2.5e7].map(number);
        assert_eq!(texts, ["0", "40", "0.25", "1234.5", "2.5e7"]);
    }
}
