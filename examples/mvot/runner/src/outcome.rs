//! What a run leaves: detections, tracks, metrics, a picture, a table.

use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use mvot_core::message::{Closed, StepResult, View};
use mvot_core::metrics::{Accuracy, Moment, Placed, accuracy};
use serde::Serialize;

use crate::dataset::{Dataset, write_lines};
use crate::plot;

/// Everything that a run has collected.
pub(crate) struct Outcome {
    /// Views in the order in which they came.
    pub(crate) views: Vec<View>,
    /// One result for each timestep, in order.
    pub(crate) results: Vec<StepResult>,
    /// Time of one detection (decoding included), in microseconds.
    pub(crate) detect: Histogram<u64>,
    /// What only a run on a node has.
    pub(crate) live: Option<Live>,
}

/// Figures of a run on a node.
pub(crate) struct Live {
    /// From the time when the frames of a timestep were due to having its result, in microseconds.
    pub(crate) from_due: Histogram<u64>,
    /// From sending the last frame, in microseconds.
    pub(crate) from_last: Histogram<u64>,
    /// From sending a frame to having the answer of `detect`, in microseconds.
    pub(crate) frame: Histogram<u64>,
    /// Frames sent, and those that were sent again after a refusal.
    pub(crate) frames: u64,
    pub(crate) sent_again: u64,
    pub(crate) failed: u64,
    pub(crate) late: u64,
    pub(crate) repeated: u64,
    pub(crate) seconds: f64,
}

/// A histogram of times up to ten minutes, in microseconds.
pub(crate) fn times() -> Histogram<u64> {
    // Constant and in range: cannot fail.
    Histogram::new_with_bounds(1, 600_000_000, 3)
        .unwrap_or_else(|_| Histogram::new(3).expect("three digits are allowed"))
}

#[derive(Debug, Serialize)]
struct Times {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Times {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

/// `summary.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics {
    timesteps: usize,
    complete: usize,
    without_silent: usize,
    timed_out: usize,
    detections: usize,
    tracks: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<Accuracy>,
    match_distance_metres: f64,
    detect_ms: Times,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<LiveMetrics>,
}

#[derive(Debug, Serialize)]
struct LiveMetrics {
    /// From the time when a timestep's frames were due to having its result.
    end_to_end_ms: Times,
    /// From sending its last frame.
    from_last_frame_ms: Times,
    frame_ms: Times,
    frames: u64,
    frames_per_second: f64,
    sent_again: u64,
    failed: u64,
    late: u64,
    repeated: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct DetectionLine<'a> {
    timestep: &'a str,
    #[serde(flatten)]
    view: &'a View,
}

#[derive(Serialize)]
struct TrackLine<'a> {
    timestep: &'a str,
    #[serde(flatten)]
    result: &'a StepResult,
}

impl Outcome {
    /// Compares with the truth and writes everything into `folder`.
    pub(crate) fn write(
        &mut self,
        dataset: &Dataset,
        folder: &Path,
        match_distance: f64,
    ) -> Result<Metrics> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let truth = dataset.truth()?;
        let metrics = self.metrics(truth.as_deref(), match_distance);
        self.views
            .sort_by(|a, b| (a.step, &a.camera).cmp(&(b.step, &b.camera)));
        let label = |step: u64| {
            dataset
                .timesteps
                .get(step as usize)
                .map_or("", String::as_str)
        };
        let views = self.views.iter().map(|view| DetectionLine {
            timestep: label(view.step),
            view,
        });
        write_lines(&folder.join("detections.jsonl"), views)?;
        let results = self.results.iter().map(|result| TrackLine {
            timestep: label(result.step),
            result,
        });
        write_lines(&folder.join("tracks.jsonl"), results)?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(
            "summary.json",
            serde_json::to_string_pretty(&metrics)? + "\n",
        )?;
        write(
            "tracks.svg",
            plot::top_view(&dataset.calibration, &self.results, truth.as_deref()),
        )?;
        Ok(metrics)
    }

    fn metrics(&self, truth: Option<&[Vec<Placed>]>, match_distance: f64) -> Metrics {
        let accuracy = truth.map(|truth| {
            let found = |result: Option<&StepResult>| {
                let points = result
                    .map(|result| result.tracks.as_slice())
                    .unwrap_or_default();
                points
                    .iter()
                    .map(|point| Placed {
                        id: point.id,
                        position: point.position,
                    })
                    .collect()
            };
            let moment = |(step, truth): (usize, &Vec<Placed>)| Moment {
                truth: truth.clone(),
                found: found(self.results.get(step)),
            };
            accuracy(
                &truth.iter().enumerate().map(moment).collect::<Vec<_>>(),
                match_distance,
            )
        });
        let mut ids: Vec<u64> = self
            .results
            .iter()
            .flat_map(|result| &result.tracks)
            .map(|point| point.id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let count = |closed| {
            self.results
                .iter()
                .filter(|result| result.closed == closed)
                .count()
        };
        Metrics {
            timesteps: self.results.len(),
            complete: count(Closed::Complete),
            without_silent: count(Closed::WithoutSilent),
            timed_out: count(Closed::Timeout),
            detections: self.views.iter().map(|view| view.detections.len()).sum(),
            tracks: ids.len(),
            accuracy,
            match_distance_metres: match_distance,
            detect_ms: Times::of(&self.detect),
            live: self.live.as_ref().map(|live| LiveMetrics {
                end_to_end_ms: Times::of(&live.from_due),
                from_last_frame_ms: Times::of(&live.from_last),
                frame_ms: Times::of(&live.frame),
                frames: live.frames,
                frames_per_second: live.frames as f64 / live.seconds.max(1e-9),
                sent_again: live.sent_again,
                failed: live.failed,
                late: live.late,
                repeated: live.repeated,
                seconds: live.seconds,
            }),
        }
    }
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<28} {value}");
        row(
            "timesteps",
            format!(
                "{} ({} complete, {} without a silent camera, {} timed out)",
                self.timesteps, self.complete, self.without_silent, self.timed_out
            ),
        )?;
        row(
            "detections, tracks",
            format!("{}, {}", self.detections, self.tracks),
        )?;
        if let Some(a) = &self.accuracy {
            row("MOTA", format!("{:.3}", a.mota))?;
            row("IDF1", format!("{:.3}", a.idf1))?;
            row("mean error", format!("{:.3} m", a.motp_metres))?;
            row(
                "misses, false, switches",
                format!(
                    "{}, {}, {} of {}",
                    a.misses, a.false_positives, a.switches, a.people
                ),
            )?;
        }
        let times = |t: &Times| {
            format!(
                "{:.1} / {:.1} / {:.1} ms (p50 / p95 / p99)",
                t.p50, t.p95, t.p99
            )
        };
        row("detection of a frame", times(&self.detect_ms))?;
        if let Some(live) = &self.live {
            row("frame to answer", times(&live.frame_ms))?;
            row("end to end", times(&live.end_to_end_ms))?;
            row("after the last frame", times(&live.from_last_frame_ms))?;
            let rate = format!(
                "{} in {:.1} s, {:.1} a second",
                live.frames, live.seconds, live.frames_per_second
            );
            row("frames", rate)?;
            let trouble = format!(
                "{}, {}, {}, {}",
                live.sent_again, live.failed, live.late, live.repeated
            );
            row("again, failed, late, double", trouble)?;
        }
        Ok(())
    }
}
