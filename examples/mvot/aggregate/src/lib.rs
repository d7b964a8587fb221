//! `aggregate`: what the cameras of a scene see, brought together. Session = scene.
//!
//! The decisions are in [`mvot_core::scene`]; this is where their state is: each value under a key of its own, so
//! that a view costs the same whatever else the scene keeps.

use fulmar::{Error, Json, Map, Value};
use mvot_core::message::{Request, Response, Settings, StepResult};
use mvot_core::scene::{Progress, SceneState, Waiting, handle};
use mvot_core::tracker::Tracker;

static SETTINGS: Value<Settings> = Value::new("settings");
static PROGRESS: Value<Progress> = Value::new("progress");
static TRACKER: Value<Tracker> = Value::new("tracker");
static WAITING: Map<u64, Waiting> = Map::new("waiting");
static RESULTS: Map<u64, StepResult> = Map::new("results");

#[fulmar::function]
fn aggregate(Json(request): Json<Request>) -> Result<Json<Response>, Error> {
    let answer = handle(&mut Session, request, fulmar::now_unix_ms());
    answer.map(Json).map_err(|error| {
        if error.is_rejection() {
            Error::rejected(error)
        } else {
            Error::failed(error)
        }
    })
}

/// The state of the session that is being invoked.
struct Session;

impl SceneState for Session {
    type Error = Error;

    fn settings(&mut self) -> Result<Option<Settings>, Error> {
        SETTINGS.get()
    }

    fn reset(&mut self, settings: &Settings) -> Result<(), Error> {
        WAITING.keys()?.iter().for_each(|step| WAITING.remove(step));
        RESULTS.keys()?.iter().for_each(|step| RESULTS.remove(step));
        TRACKER.remove();
        PROGRESS.remove();
        SETTINGS.set(settings.clone());
        Ok(())
    }

    fn progress(&mut self) -> Result<Progress, Error> {
        Ok(PROGRESS.get()?.unwrap_or_default())
    }

    fn set_progress(&mut self, progress: &Progress) -> Result<(), Error> {
        PROGRESS.set(progress.clone());
        Ok(())
    }

    fn waiting(&mut self, step: u64) -> Result<Option<Waiting>, Error> {
        WAITING.get(&step)
    }

    fn set_waiting(&mut self, step: u64, waiting: &Waiting) -> Result<(), Error> {
        WAITING.insert(&step, waiting.clone());
        Ok(())
    }

    fn remove_waiting(&mut self, step: u64) -> Result<(), Error> {
        WAITING.remove(&step);
        Ok(())
    }

    fn tracker(&mut self) -> Result<Option<Tracker>, Error> {
        TRACKER.get()
    }

    fn set_tracker(&mut self, tracker: &Tracker) -> Result<(), Error> {
        TRACKER.set(tracker.clone());
        Ok(())
    }

    fn result(&mut self, step: u64) -> Result<Option<StepResult>, Error> {
        RESULTS.get(&step)
    }

    fn set_result(&mut self, result: &StepResult) -> Result<(), Error> {
        RESULTS.insert(&result.step, result.clone());
        Ok(())
    }

    fn remove_result(&mut self, step: u64) -> Result<(), Error> {
        RESULTS.remove(&step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar::testing;
    use mvot_core::camera::{Area, Calibration, CameraCalibration};
    use mvot_core::geometry::Homography;
    use mvot_core::message::{Closed, View};

    fn ask(request: Request) -> Result<Response, Error> {
        testing::invoke("plaza", || aggregate(Json(request))).map(|Json(answer)| answer)
    }

    fn settings() -> Settings {
        let camera = |name: &str| CameraCalibration {
            name: name.into(),
            width: 480,
            height: 270,
            // Looks along y, 4 m up and 20 degrees down.
            ground_from_image: Homography([
                [4.0, 0.0, -958.0],
                [0.0, -1.367_9, 1_493.3],
                [0.0, 0.939_7, -6.7],
            ]),
            focal_pixels: Some(350.0),
        };
        let area = Area {
            x_min: -5.0,
            y_min: 0.0,
            x_max: 5.0,
            y_max: 10.0,
        };
        let calibration = Calibration {
            step_seconds: 0.2,
            area,
            cameras: vec![camera("a"), camera("b")],
        };
        Settings {
            calibration,
            timeout_ms: 500,
        }
    }

    fn view(camera: &str, step: u64) -> Request {
        Request::View(View {
            camera: camera.into(),
            step,
            sent_unix_ms: 7,
            detect_micros: 0,
            detections: vec![],
        })
    }

    #[test]
    fn a_scene_survives_the_loss_of_its_worker() {
        testing::reset();
        ask(Request::Open(settings())).unwrap();
        ask(view("a", 0)).unwrap();
        testing::drop_worker();
        ask(view("b", 0)).unwrap();
        testing::drop_worker();
        let answer = ask(Request::Results { from: 0, limit: 10 }).unwrap();
        assert_eq!(
            (answer.results[0].step, answer.results[0].closed),
            (0, Closed::Complete)
        );
        assert!(testing::stored_in_session("plaza", "waiting:0").is_none());
        // Fetched, hence gone.
        ask(Request::Results { from: 1, limit: 10 }).unwrap();
        assert!(testing::stored_in_session("plaza", "results:0").is_none());
    }

    #[test]
    fn views_of_unknown_cameras_are_rejected_and_leave_no_trace() {
        testing::reset();
        assert!(ask(view("a", 0)).unwrap_err().is_rejected());
        ask(Request::Open(settings())).unwrap();
        assert!(ask(view("z", 0)).unwrap_err().is_rejected());
        assert!(testing::stored_in_session("plaza", "progress").is_none());
    }
}
