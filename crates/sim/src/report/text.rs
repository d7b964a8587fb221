//! Plots for terminals.

use super::{Plot, Point};

/// Marks of the lines, in their order.
const MARKS: [char; 8] = ['*', 'o', '+', 'x', '#', '@', '%', '&'];

impl Plot {
    /// The plot in characters, `width` by `height` without its axes; nothing if it has no points.
    pub fn text(&self, width: usize, height: usize) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let range = |value: fn(&Point) -> f64| {
            let values = points().map(value);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let scaled = |value: f64| match self.log_y {
            true => libm::log10(value.max(f64::MIN_POSITIVE)),
            false => value,
        };
        let ((left, right), (low, high)) = (range(|point| point.x), range(|point| point.y));
        if points().next().is_none() || width < 2 || height < 2 {
            return String::new();
        }
        let mut cells = vec![vec![' '; width]; height];
        let place = |value: f64, low: f64, high: f64, cells: usize| match high > low {
            true => ((value - low) / (high - low) * (cells - 1) as f64).round() as usize,
            false => 0,
        };
        for (series, mark) in self.series.iter().zip(MARKS.iter().cycle()) {
            for point in &series.points {
                let x = place(point.x, left, right, width);
                let y = place(scaled(point.y), scaled(low), scaled(high), height);
                cells[height - 1 - y.min(height - 1)][x.min(width - 1)] = *mark;
            }
        }
        let (top, bottom) = (super::plot::number(high), super::plot::number(low));
        let margin = top.chars().count().max(bottom.chars().count());
        let mut text = format!("{}\n", self.y);
        for (at, line) in cells.iter().enumerate() {
            let label = match at {
                0 => top.as_str(),
                _ if at == height - 1 => bottom.as_str(),
                _ => "",
            };
            let line: String = line.iter().collect();
            text.push_str(format!("{label:>margin$} |{}\n", line).trim_end());
            text.push('\n');
        }
        text.push_str(&format!("{:margin$} +{}\n", "", "-".repeat(width)));
        let (first, last) = (super::plot::number(left), super::plot::number(right));
        let gap = width.saturating_sub(first.chars().count() + last.chars().count());
        text.push_str(&format!(
            "{:margin$}  {first}{:gap$}{last}  {}\n",
            "", "", self.x
        ));
        if self.series.len() > 1 {
            for (series, mark) in self.series.iter().zip(MARKS.iter().cycle()) {
                text.push_str(&format!("{mark} {}\n", series.name));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Series;

    #[test]
    fn the_ends_are_at_the_corners() {
        let point = |x: f64, y: f64| Point { x, y, ci95: None };
        let plot = Plot {
            x: "x".into(),
            y: "y".into(),
            series: vec![Series {
                points: vec![point(0.0, 1.0), point(10.0, 3.0)],
                ..Series::default()
            }],
            ..Plot::default()
        };
        let expected = "y\n3 |   *\n  |\n1 |*\n  +----\n   0 10  x\n";
        assert_eq!(plot.text(4, 3), expected);
        assert_eq!(Plot::default().text(4, 3), "");
    }
}
