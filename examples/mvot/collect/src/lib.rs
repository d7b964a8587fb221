//! `collect`: the aggregator of the Cliffhanger study (III-A). What the cameras saw is kept until a timestep is complete,
//! and then given out, in the order of the cameras' names, and forgotten. With `keep` it is kept for good (III-B, 5).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Instant;

use fulmar::{Counter, Error, Json, List, Map, Value};
use mvot_core::detect::Detection;
use mvot_core::message::View;
use serde::{Deserialize, Serialize};

/// What `collect` can be asked.
#[derive(Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
enum Request {
    /// Begin anew.
    Open(Settings),
    /// What a camera saw.
    View(View),
    /// Keep so many views that somebody has seen so much in, so that there is more state.
    Fill { views: u32, detections: u32 },
    /// Timesteps that were completed from the `from`th on; those before it have been received, and go.
    Results { from: u64, limit: u32 },
}

/// What a session is.
#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    /// How many cameras there are.
    cameras: usize,
    /// Whether everything is kept.
    #[serde(default)]
    keep: bool,
}

/// A complete timestep.
#[derive(Clone, Serialize, Deserialize)]
struct Complete {
    step: u64,
    views: Vec<View>,
}

#[derive(Serialize)]
struct Response {
    /// Views so far.
    events: i64,
    /// Timesteps that were completed so far.
    completed: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<Complete>,
    /// Time between the beginnings of an event and of the one before it in this worker, in microseconds, for those since
    /// results were asked for.
    #[serde(skip_serializing_if = "VecDeque::is_empty")]
    between_micros: VecDeque<u32>,
}

static SETTINGS: Value<Settings> = Value::new("settings");
static EVENTS: Counter = Counter::new("events");
static COMPLETED: Counter = Counter::new("completed");
static WAITING: Map<u64, Vec<View>> = Map::new("waiting");
static RESULTS: Map<u64, Complete> = Map::new("results");
static KEPT: List<View> = List::new("kept");

/// Times that are remembered at most.
const BETWEEN: usize = 4096;

thread_local! {
    /// When the last event began, and the times between events. A measurement, not state.
    static BEGAN: RefCell<(Option<Instant>, VecDeque<u32>)> = const { RefCell::new((None, VecDeque::new())) };
}

#[fulmar::function]
fn collect(Json(request): Json<Request>) -> Result<Json<Response>, Error> {
    let mut response = Response {
        events: 0,
        completed: 0,
        results: Vec::new(),
        between_micros: VecDeque::new(),
    };
    match request {
        Request::Open(settings) => {
            WAITING.clear()?;
            RESULTS.clear()?;
            KEPT.clear()?;
            EVENTS.set(0);
            COMPLETED.set(0);
            SETTINGS.set(settings);
        }
        Request::View(view) => {
            began();
            see(view)?;
        }
        Request::Fill { views, detections } => {
            for step in 0..views {
                KEPT.push(large(step, detections))?;
            }
        }
        Request::Results { from, limit } => {
            for received in RESULTS.keys()?.into_iter().take_while(|n| *n < from) {
                RESULTS.remove(&received);
            }
            let completed = COMPLETED.get()? as u64;
            for n in from..completed.min(from + u64::from(limit)) {
                response.results.extend(RESULTS.get(&n)?);
            }
            response.between_micros = BEGAN.with_borrow_mut(|(_, between)| std::mem::take(between));
        }
    }
    response.events = EVENTS.get()?;
    response.completed = COMPLETED.get()?;
    Ok(Json(response))
}

fn large(step: u32, detections: u32) -> View {
    let detection = |n| Detection {
        foot: [f64::from(n), 100.25],
        sigma: [0.75, 1.25],
        bbox: [10.5, 20.5, 30.5, 40.5],
        visible: 0.875,
    };
    View {
        camera: "c1".into(),
        step: u64::from(step),
        sent_unix_ms: 0,
        detect_micros: 0,
        detections: (0..detections).map(detection).collect(),
    }
}

fn began() {
    BEGAN.with_borrow_mut(|(last, between)| {
        let now = Instant::now();
        if let Some(last) = last.replace(now) {
            between.push_back((now - last).as_micros() as u32);
            if between.len() > BETWEEN {
                between.pop_front();
            }
        }
    });
}

fn see(view: View) -> Result<(), Error> {
    let Some(settings) = SETTINGS.get()? else {
        return Err(Error::rejected("the session was not opened"));
    };
    EVENTS.add(1)?;
    if settings.keep {
        KEPT.push(view.clone())?;
    }
    let step = view.step;
    let mut views = WAITING.get(&step)?.unwrap_or_default();
    let at = views.partition_point(|other| other.camera < view.camera);
    views.insert(at, view);
    if views.len() < settings.cameras {
        WAITING.insert(&step, views);
        return Ok(());
    }
    WAITING.remove(&step);
    let n = COMPLETED.add(1)? as u64 - 1;
    RESULTS.insert(&n, Complete { step, views });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar::testing;

    fn ask(request: &str) -> Response {
        let Json(response) = testing::invoke("s", || {
            collect(Json(serde_json::from_str(request).unwrap()))
        })
        .unwrap();
        response
    }

    fn view(camera: &str, step: u64) {
        ask(&format!(
            r#"{{"request":"view","camera":"{camera}","step":{step},"sent_unix_ms":1,"detect_micros":0,"detections":[]}}"#
        ));
    }

    #[test]
    fn a_timestep_comes_out_once_when_it_is_complete() {
        testing::reset();
        ask(r#"{"request":"open","cameras":2}"#);
        view("b", 7);
        view("a", 8);
        testing::drop_worker();
        view("a", 7);
        let results = ask(r#"{"request":"results","from":0,"limit":9}"#).results;
        let cameras: Vec<_> = results[0].views.iter().map(|view| &*view.camera).collect();
        assert_eq!((results.len(), results[0].step), (1, 7));
        assert_eq!(cameras, ["a", "b"]);
        let after = ask(r#"{"request":"results","from":1,"limit":9}"#);
        assert_eq!(
            (after.results.len(), after.events, after.completed),
            (0, 3, 1)
        );
        assert!(testing::stored_in_session("s", "results:0").is_none());
    }

    #[test]
    fn with_keep_everything_stays() {
        testing::reset();
        ask(r#"{"request":"open","cameras":1,"keep":true}"#);
        view("a", 0);
        view("a", 1);
        assert_eq!(testing::invoke("s", || KEPT.len()).unwrap(), 2);
    }
}
