//! The aggregation of one scene: which timestep is closed when, and what is kept.
//!
//! Views arrive in any order. A timestep is closed when all its views are there, or when its time is over; always
//! in order, so that the tracker sees each timestep once and results have no gaps. A camera that stays silent is not
//! waited for after a few timesteps, until it sends again: a dead camera costs the scene its view, not its latency. The decisions are here, the
//! state is behind [`SceneState`]: a session's state in the function `aggregate`, plain maps in tests.
//! Whatever happens, the state is bounded: [`MAX_AHEAD`], [`MAX_WAITING`], [`MAX_RESULTS`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::camera::CalibrationError;
use crate::detect::{Detection, MAX_DETECTIONS};
use crate::fusion::Fusion;
use crate::message::{Closed, Request, Response, Settings, StepResult, View};
use crate::tracker::Tracker;

/// How far a view's timestep may be ahead of the first open one.
pub const MAX_AHEAD: u64 = 4096;
/// Timesteps that wait for views at most; over it the first is closed with what it has.
pub const MAX_WAITING: usize = 256;
/// Timesteps in a row without a camera's view after which nobody waits for it, until it sends again.
pub const SILENT_AFTER: u32 = 3;
/// Results that wait to be fetched at most; over it the oldest is given up.
pub const MAX_RESULTS: u64 = 4096;
/// Timesteps closed by one request at most, so that it ends in time; the next goes on.
const MAX_CLOSED_AT_ONCE: usize = 64;
/// Results in one answer at most.
const MAX_RESULTS_AT_ONCE: u32 = 256;

/// Views of a timestep that is still open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// When the first and the last of its frames were sent, in milliseconds since the Unix epoch.
    pub sent_unix_ms: Option<(u64, u64)>,
    /// By position of the camera in the calibration.
    pub views: BTreeMap<u32, Vec<Detection>>,
}

/// Where a scene is. Written at each view, hence small.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// First timestep that is open.
    pub next_step: u64,
    /// When the first view of each waiting timestep arrived, in milliseconds since the Unix epoch.
    pub waiting: BTreeMap<u64, u64>,
    /// First timestep whose result is kept.
    pub first_kept: u64,
    /// Timesteps in a row, up to [`SILENT_AFTER`], that were closed without a camera although others were there.
    pub silent: BTreeMap<u32, u32>,
    /// Views that came too late.
    pub late: u64,
    /// Views that came twice.
    pub repeated: u64,
    /// Results that nobody fetched.
    pub dropped: u64,
}

/// What a scene keeps between requests, key by key.
pub trait SceneState {
    /// Why the state cannot be used.
    type Error;

    /// The settings, once the scene is open.
    fn settings(&mut self) -> Result<Option<Settings>, Self::Error>;
    /// Begins anew: forgets everything but these settings.
    fn reset(&mut self, settings: &Settings) -> Result<(), Self::Error>;
    /// Where the scene is; the default at first.
    fn progress(&mut self) -> Result<Progress, Self::Error>;
    /// Keeps where the scene is.
    fn set_progress(&mut self, progress: &Progress) -> Result<(), Self::Error>;
    /// The views of a timestep.
    fn waiting(&mut self, step: u64) -> Result<Option<Waiting>, Self::Error>;
    /// Keeps the views of a timestep.
    fn set_waiting(&mut self, step: u64, waiting: &Waiting) -> Result<(), Self::Error>;
    /// Forgets the views of a timestep.
    fn remove_waiting(&mut self, step: u64) -> Result<(), Self::Error>;
    /// The tracker, once there was a result.
    fn tracker(&mut self) -> Result<Option<Tracker>, Self::Error>;
    /// Keeps the tracker.
    fn set_tracker(&mut self, tracker: &Tracker) -> Result<(), Self::Error>;
    /// The result of a timestep.
    fn result(&mut self, step: u64) -> Result<Option<StepResult>, Self::Error>;
    /// Keeps a result.
    fn set_result(&mut self, result: &StepResult) -> Result<(), Self::Error>;
    /// Forgets a result.
    fn remove_result(&mut self, step: u64) -> Result<(), Self::Error>;
}

/// Why a request to a scene failed.
#[derive(Debug, thiserror::Error)]
pub enum SceneError<E> {
    /// No settings yet.
    #[error("the scene is not open: send the request \"open\" first")]
    NotOpen,
    /// A camera that the settings do not know.
    #[error("the scene has no camera {camera:?}; its cameras: {known}")]
    UnknownCamera {
        /// As the view says.
        camera: String,
        /// As the settings say.
        known: String,
    },
    /// A timestep so far ahead that it must be a mistake.
    #[error(
        "timestep {step} is too far ahead of {next_step}, the first open one: at most {MAX_AHEAD}"
    )]
    TooFarAhead {
        /// As the request says.
        step: u64,
        /// First open timestep.
        next_step: u64,
    },
    /// Settings that cannot be used.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// Settings that make no sense.
    #[error("the settings: {0}")]
    Settings(&'static str),
    /// The state could not be read or written.
    #[error("the state: {0}")]
    State(E),
}

impl<E> SceneError<E> {
    /// Whether the request is to blame, so that sending it again cannot help.
    pub fn is_rejection(&self) -> bool {
        !matches!(self, Self::State(_))
    }
}

/// Answers a request to the scene at the given time.
pub fn handle<S: SceneState>(
    state: &mut S,
    request: Request,
    now_unix_ms: u64,
) -> Result<Response, SceneError<S::Error>> {
    if let Request::Open(settings) = request {
        return open(state, &settings);
    }
    let settings = state
        .settings()
        .map_err(SceneError::State)?
        .ok_or(SceneError::NotOpen)?;
    let before = state.progress().map_err(SceneError::State)?;
    let mut scene = Scene {
        progress: before.clone(),
        state,
        settings,
        now_unix_ms,
    };
    let mut results = Vec::new();
    match request {
        Request::Open(_) => {}
        Request::View(view) => {
            scene.take_in(view)?;
            scene.close_due()?;
        }
        Request::Results { from, limit } => {
            scene.close_due()?;
            scene.forget_results_before(from)?;
            results = scene.results(from, limit)?;
        }
        Request::Flush { through } => {
            scene.check_ahead(through)?;
            for _ in 0..MAX_AHEAD {
                if scene.progress.next_step > through {
                    break;
                }
                scene.close(Closed::Flushed)?;
            }
        }
    }
    let Scene {
        progress, state, ..
    } = scene;
    if progress != before {
        state.set_progress(&progress).map_err(SceneError::State)?;
    }
    Ok(answer(&progress, results))
}

fn open<S: SceneState>(
    state: &mut S,
    settings: &Settings,
) -> Result<Response, SceneError<S::Error>> {
    Fusion::new(&settings.calibration)?;
    if settings.calibration.cameras.is_empty() {
        return Err(SceneError::Settings("there has to be a camera"));
    }
    let seconds = settings.calibration.step_seconds;
    if !(seconds.is_finite() && (0.001..=60.0).contains(&seconds)) {
        return Err(SceneError::Settings("step_seconds has to be 0.001 to 60"));
    }
    state.reset(settings).map_err(SceneError::State)?;
    Ok(answer(&Progress::default(), Vec::new()))
}

fn answer(progress: &Progress, results: Vec<StepResult>) -> Response {
    Response {
        next_step: progress.next_step,
        waiting: progress.waiting.len() as u64,
        late: progress.late,
        repeated: progress.repeated,
        dropped: progress.dropped,
        results,
    }
}

/// A scene during one request.
struct Scene<'a, S> {
    progress: Progress,
    state: &'a mut S,
    settings: Settings,
    now_unix_ms: u64,
}

impl<S: SceneState> Scene<'_, S> {
    fn check_ahead(&self, step: u64) -> Result<(), SceneError<S::Error>> {
        let next_step = self.progress.next_step;
        match step.checked_sub(next_step) {
            Some(ahead) if ahead >= MAX_AHEAD => Err(SceneError::TooFarAhead { step, next_step }),
            _ => Ok(()),
        }
    }

    fn take_in(&mut self, view: View) -> Result<(), SceneError<S::Error>> {
        let cameras = &self.settings.calibration.cameras;
        let Some(camera) = cameras.iter().position(|camera| camera.name == view.camera) else {
            let known: Vec<&str> = cameras.iter().map(|camera| camera.name.as_str()).collect();
            return Err(SceneError::UnknownCamera {
                camera: view.camera,
                known: known.join(", "),
            });
        };
        self.check_ahead(view.step)?;
        // Late or not, it is there.
        self.progress.silent.remove(&(camera as u32));
        if view.step < self.progress.next_step {
            self.progress.late += 1;
            return Ok(());
        }
        let mut waiting = self
            .state
            .waiting(view.step)
            .map_err(SceneError::State)?
            .unwrap_or_default();
        if waiting.views.contains_key(&(camera as u32)) {
            self.progress.repeated += 1;
            return Ok(());
        }
        let sent = view.sent_unix_ms;
        let (first, last) = waiting.sent_unix_ms.unwrap_or((sent, sent));
        waiting.sent_unix_ms = Some((first.min(sent), last.max(sent)));
        let mut detections = view.detections;
        detections.truncate(MAX_DETECTIONS);
        waiting.views.insert(camera as u32, detections);
        self.progress
            .waiting
            .entry(view.step)
            .or_insert(self.now_unix_ms);
        self.state
            .set_waiting(view.step, &waiting)
            .map_err(SceneError::State)
    }

    /// Closes, in order, what is complete and what has waited long enough.
    fn close_due(&mut self) -> Result<(), SceneError<S::Error>> {
        for _ in 0..MAX_CLOSED_AT_ONCE {
            match self.due()? {
                Some(reason) => self.close(reason)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Why the first open timestep is to be closed now, if it is.
    fn due(&mut self) -> Result<Option<Closed>, SceneError<S::Error>> {
        // A timestep of which nothing has arrived waits as long as the first later one: its frames are overdue.
        let Some(oldest) = self.progress.waiting.values().min() else {
            return Ok(None);
        };
        let step = self.progress.next_step;
        if self.progress.waiting.contains_key(&step) {
            let waiting = self
                .state
                .waiting(step)
                .map_err(SceneError::State)?
                .unwrap_or_default();
            let cameras = 0..self.settings.calibration.cameras.len() as u32;
            let mut missing = cameras
                .filter(|camera| !waiting.views.contains_key(camera))
                .peekable();
            if missing.peek().is_none() {
                return Ok(Some(Closed::Complete));
            }
            let silent = |camera| {
                self.progress
                    .silent
                    .get(&camera)
                    .is_some_and(|steps| *steps >= SILENT_AFTER)
            };
            if missing.all(silent) {
                return Ok(Some(Closed::WithoutSilent));
            }
        }
        if self.now_unix_ms >= oldest.saturating_add(self.settings.timeout_ms) {
            return Ok(Some(Closed::Timeout));
        }
        Ok((self.progress.waiting.len() > MAX_WAITING).then_some(Closed::Overrun))
    }

    /// Closes the first open timestep: fuses, tracks, keeps the result.
    fn close(&mut self, closed: Closed) -> Result<(), SceneError<S::Error>> {
        let step = self.progress.next_step;
        let waiting = match self.progress.waiting.remove(&step) {
            Some(_) => self
                .state
                .waiting(step)
                .map_err(SceneError::State)?
                .unwrap_or_default(),
            None => Waiting::default(),
        };
        let calibration = &self.settings.calibration;
        let views: Vec<Option<&[Detection]>> = (0..calibration.cameras.len() as u32)
            .map(|camera| waiting.views.get(&camera).map(Vec::as_slice))
            .collect();
        if !waiting.views.is_empty() {
            for (camera, view) in (0..).zip(&views) {
                if view.is_none() {
                    let steps = self.progress.silent.entry(camera).or_default();
                    *steps = (*steps + 1).min(SILENT_AFTER);
                }
            }
        }
        let people = Fusion::new(calibration)?.fuse(&views);
        let tracker = self.state.tracker().map_err(SceneError::State)?;
        let mut tracker =
            tracker.unwrap_or_else(|| Tracker::new(calibration.area, calibration.step_seconds));
        let missing = calibration
            .cameras
            .iter()
            .zip(&views)
            .filter(|(_, view)| view.is_none());
        let result = StepResult {
            step,
            closed,
            missing: missing.map(|(camera, _)| camera.name.clone()).collect(),
            first_sent_unix_ms: waiting.sent_unix_ms.map(|(first, _)| first),
            last_sent_unix_ms: waiting.sent_unix_ms.map(|(_, last)| last),
            closed_unix_ms: self.now_unix_ms,
            tracks: tracker.step(&people),
        };
        self.state
            .set_tracker(&tracker)
            .map_err(SceneError::State)?;
        self.state.set_result(&result).map_err(SceneError::State)?;
        self.state.remove_waiting(step).map_err(SceneError::State)?;
        self.progress.next_step += 1;
        if self.progress.next_step - self.progress.first_kept > MAX_RESULTS {
            self.state
                .remove_result(self.progress.first_kept)
                .map_err(SceneError::State)?;
            self.progress.first_kept += 1;
            self.progress.dropped += 1;
        }
        Ok(())
    }

    fn forget_results_before(&mut self, from: u64) -> Result<(), SceneError<S::Error>> {
        while self.progress.first_kept < from.min(self.progress.next_step) {
            self.state
                .remove_result(self.progress.first_kept)
                .map_err(SceneError::State)?;
            self.progress.first_kept += 1;
        }
        Ok(())
    }

    fn results(&mut self, from: u64, limit: u32) -> Result<Vec<StepResult>, SceneError<S::Error>> {
        let first = from.max(self.progress.first_kept);
        let steps = (first..self.progress.next_step).take(limit.min(MAX_RESULTS_AT_ONCE) as usize);
        let mut results = Vec::new();
        for step in steps {
            results.extend(self.state.result(step).map_err(SceneError::State)?);
        }
        Ok(results)
    }
}

/// A scene's state in memory, for runs without a node and for tests.
#[derive(Debug, Default)]
pub struct InMemory {
    settings: Option<Settings>,
    progress: Progress,
    waiting: BTreeMap<u64, Waiting>,
    tracker: Option<Tracker>,
    results: BTreeMap<u64, StepResult>,
}

impl InMemory {
    /// Values that are kept: what has to stay bounded.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.results.len()
    }

    /// Whether neither views nor results are kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SceneState for InMemory {
    type Error = std::convert::Infallible;

    fn settings(&mut self) -> Result<Option<Settings>, Self::Error> {
        Ok(self.settings.clone())
    }
    fn reset(&mut self, settings: &Settings) -> Result<(), Self::Error> {
        *self = Self {
            settings: Some(settings.clone()),
            ..Self::default()
        };
        Ok(())
    }
    fn progress(&mut self) -> Result<Progress, Self::Error> {
        Ok(self.progress.clone())
    }
    fn set_progress(&mut self, progress: &Progress) -> Result<(), Self::Error> {
        self.progress = progress.clone();
        Ok(())
    }
    fn waiting(&mut self, step: u64) -> Result<Option<Waiting>, Self::Error> {
        Ok(self.waiting.get(&step).cloned())
    }
    fn set_waiting(&mut self, step: u64, waiting: &Waiting) -> Result<(), Self::Error> {
        self.waiting.insert(step, waiting.clone());
        Ok(())
    }
    fn remove_waiting(&mut self, step: u64) -> Result<(), Self::Error> {
        self.waiting.remove(&step);
        Ok(())
    }
    fn tracker(&mut self) -> Result<Option<Tracker>, Self::Error> {
        Ok(self.tracker.clone())
    }
    fn set_tracker(&mut self, tracker: &Tracker) -> Result<(), Self::Error> {
        self.tracker = Some(tracker.clone());
        Ok(())
    }
    fn result(&mut self, step: u64) -> Result<Option<StepResult>, Self::Error> {
        Ok(self.results.get(&step).cloned())
    }
    fn set_result(&mut self, result: &StepResult) -> Result<(), Self::Error> {
        self.results.insert(result.step, result.clone());
        Ok(())
    }
    fn remove_result(&mut self, step: u64) -> Result<(), Self::Error> {
        self.results.remove(&step);
        Ok(())
    }
}

#[cfg(test)]
#[path = "scene_tests.rs"]
mod tests;
