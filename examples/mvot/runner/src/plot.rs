//! The picture of a run: the area from above, tracks over the dashed truth.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mvot_core::camera::{Calibration, Camera};
use mvot_core::geometry::Point;
use mvot_core::message::StepResult;
use mvot_core::metrics::Placed;

/// Pixels per metre.
const SCALE: f64 = 48.0;
/// Ground shown around the area, in metres.
const MARGIN: f64 = 3.5;
/// Colours that differ well, also to most colour-blind eyes.
const COLOURS: [&str; 10] = [
    "#4477aa", "#ee6677", "#228833", "#b08c00", "#aa3377", "#0099bb", "#cc3311", "#555555",
    "#117755", "#7755cc",
];

/// An SVG of the tracks and, if it is known, the truth.
pub(crate) fn top_view(
    calibration: &Calibration,
    results: &[StepResult],
    truth: Option<&[Vec<Placed>]>,
) -> String {
    let area = calibration.area;
    let size = [
        area.x_max - area.x_min + 2.0 * MARGIN,
        area.y_max - area.y_min + 2.0 * MARGIN,
    ]
    .map(|metres| metres * SCALE);
    let place = |p: Point| {
        [
            (p[0] - area.x_min + MARGIN) * SCALE,
            (area.y_max - p[1] + MARGIN) * SCALE,
        ]
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0} {1:.0}\" width=\"{0:.0}\" height=\"{1:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>Tracks from above</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        size[0], size[1]
    );
    let corner = place([area.x_min, area.y_max]);
    let _ = writeln!(
        svg,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f6f5f2\" stroke=\"#999999\"/>",
        corner[0],
        corner[1],
        (area.x_max - area.x_min) * SCALE,
        (area.y_max - area.y_min) * SCALE
    );
    for camera in &calibration.cameras {
        if let Some([x, y]) = Camera::new(camera, 1)
            .ok()
            .map(|camera| place(camera.ground_position()))
        {
            let (x, y) = (x.clamp(12.0, size[0] - 30.0), y.clamp(14.0, size[1] - 12.0));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\" fill=\"#333333\"/>"
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 9.0,
                y + 4.0,
                escaped(&camera.name)
            );
        }
    }
    if let Some(truth) = truth {
        let points = truth.iter().flat_map(|people| {
            people
                .iter()
                .map(|person| (person.id, place(person.position)))
        });
        for line in lines(points).values() {
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"#888888\" stroke-width=\"2\" stroke-dasharray=\"6 5\"/>",
                joined(line)
            );
        }
    }
    let points = results.iter().flat_map(|result| {
        result
            .tracks
            .iter()
            .map(|track| (track.id, place(track.position)))
    });
    for (id, line) in lines(points) {
        let colour = COLOURS[(id % COLOURS.len() as u64) as usize];
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\" stroke-linejoin=\"round\"/>",
            joined(&line)
        );
        if let Some([x, y]) = line.last() {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
            );
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{id}</text>",
                x + 6.0,
                y - 5.0
            );
        }
    }
    svg.push_str("<text x=\"12\" y=\"20\">solid: tracks (dot at the end); dashed: ground truth; black: cameras; the frame is the tracked area</text>\n</svg>\n");
    svg
}

fn lines(points: impl Iterator<Item = (u64, Point)>) -> BTreeMap<u64, Vec<Point>> {
    let mut lines: BTreeMap<u64, Vec<Point>> = BTreeMap::new();
    for (id, point) in points {
        lines.entry(id).or_default().push(point);
    }
    lines
}

fn joined(line: &[Point]) -> String {
    let points: Vec<String> = line.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
    points.join(" ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
