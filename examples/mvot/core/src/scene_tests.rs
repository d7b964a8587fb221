//! Given views in some order and at some time, when are timesteps closed and what is left.

use super::*;
use crate::camera::tests::camera_on_a_pole;
use crate::camera::{Area, Calibration};

const TIMEOUT: u64 = 500;

fn open_scene() -> InMemory {
    let calibration = Calibration {
        step_seconds: 0.2,
        area: Area {
            x_min: -5.0,
            y_min: -5.0,
            x_max: 5.0,
            y_max: 5.0,
        },
        cameras: ["a", "b", "c"].map(camera_on_a_pole).to_vec(),
    };
    let mut state = InMemory::default();
    handle(
        &mut state,
        Request::Open(Settings {
            calibration,
            timeout_ms: TIMEOUT,
        }),
        0,
    )
    .unwrap();
    state
}

fn view(camera: &str, step: u64) -> Request {
    Request::View(View {
        camera: camera.into(),
        step,
        sent_unix_ms: step,
        detect_micros: 0,
        detections: vec![],
    })
}

fn results(state: &mut InMemory, from: u64, now: u64) -> Vec<(u64, Closed, usize)> {
    let answer = handle(state, Request::Results { from, limit: 100 }, now).unwrap();
    answer
        .results
        .iter()
        .map(|result| (result.step, result.closed, result.missing.len()))
        .collect()
}

#[test]
fn results_come_in_order_whatever_the_order_of_views() {
    let mut state = open_scene();
    for (camera, step) in [("a", 1), ("b", 1), ("c", 1), ("b", 0), ("a", 2), ("a", 0)] {
        assert_eq!(
            handle(&mut state, view(camera, step), 10)
                .unwrap()
                .next_step,
            0
        );
    }
    // The last view of timestep 0 closes 1 as well.
    assert_eq!(handle(&mut state, view("c", 0), 20).unwrap().next_step, 2);
    assert_eq!(
        results(&mut state, 0, 20),
        [(0, Closed::Complete, 0), (1, Closed::Complete, 0)]
    );
}

#[test]
fn a_missing_camera_stalls_nothing_longer_than_the_timeout() {
    let mut state = open_scene();
    for step in 0..3 {
        handle(&mut state, view("a", step), 100 + step).unwrap();
        handle(&mut state, view("b", step), 110 + step).unwrap();
    }
    assert_eq!(results(&mut state, 0, 100 + TIMEOUT - 1), []);
    assert_eq!(
        results(&mut state, 0, 100 + TIMEOUT),
        [(0, Closed::Timeout, 1)]
    );
    // An arrival checks the time as well.
    assert_eq!(
        handle(&mut state, view("a", 3), 102 + TIMEOUT)
            .unwrap()
            .next_step,
        3
    );
}

#[test]
fn a_silent_camera_is_not_waited_for_until_it_sends_again() {
    let mut state = open_scene();
    let two_of_three = |state: &mut InMemory, step: u64, now: u64| {
        handle(state, view("a", step), now).unwrap();
        handle(state, view("b", step), now).unwrap();
    };
    for step in 0..u64::from(SILENT_AFTER) {
        let now = step * 1000;
        two_of_three(&mut state, step, now);
        assert_eq!(
            results(&mut state, step, now + TIMEOUT),
            [(step, Closed::Timeout, 1)]
        );
    }
    two_of_three(&mut state, 3, 9000);
    assert_eq!(
        results(&mut state, 3, 9000),
        [(3, Closed::WithoutSilent, 1)]
    );
    // A late view says that the camera lives.
    handle(&mut state, view("c", 3), 9001).unwrap();
    two_of_three(&mut state, 4, 9100);
    assert_eq!(results(&mut state, 4, 9100), []);
    handle(&mut state, view("c", 4), 9101).unwrap();
    assert_eq!(results(&mut state, 4, 9101), [(4, Closed::Complete, 0)]);
}

#[test]
fn a_timestep_without_any_view_does_not_stall_later_ones() {
    let mut state = open_scene();
    for camera in ["a", "b", "c"] {
        handle(&mut state, view(camera, 1), 100).unwrap();
    }
    assert_eq!(
        results(&mut state, 0, 100 + TIMEOUT),
        [(0, Closed::Timeout, 3), (1, Closed::Complete, 0)]
    );
}

#[test]
fn late_and_repeated_views_are_counted_and_change_nothing() {
    let mut state = open_scene();
    for camera in ["a", "b", "b"] {
        handle(&mut state, view(camera, 0), 0).unwrap();
    }
    assert_eq!(results(&mut state, 0, TIMEOUT).len(), 1);
    let answer = handle(&mut state, view("c", 0), TIMEOUT).unwrap();
    assert_eq!((answer.late, answer.repeated, answer.next_step), (1, 1, 1));
}

#[test]
fn asking_for_later_results_acknowledges_and_evicts_the_earlier() {
    let mut state = open_scene();
    for step in 0..5 {
        for camera in ["a", "b", "c"] {
            handle(&mut state, view(camera, step), 0).unwrap();
        }
    }
    assert_eq!(state.len(), 5);
    assert_eq!(results(&mut state, 0, 0).len(), 5);
    // Asking again gives the same: nothing is lost when an answer is.
    assert_eq!(results(&mut state, 0, 0).len(), 5);
    assert_eq!(
        results(&mut state, 3, 0)
            .iter()
            .map(|result| result.0)
            .collect::<Vec<_>>(),
        [3, 4]
    );
    assert_eq!(state.len(), 2);
    // Nobody can acknowledge what is not there yet.
    assert_eq!(results(&mut state, 1000, 0), []);
    assert!(state.is_empty());
    handle(&mut state, view("a", 5), 0).unwrap();
    assert_eq!(state.progress.next_step, 5);
}

#[test]
fn the_state_stays_bounded_when_nobody_fetches_and_a_camera_is_dead() {
    let mut state = open_scene();
    // Two cameras that take turns: neither is ever silent for long, and no timestep is ever complete.
    for step in 0..MAX_RESULTS + 2 * MAX_WAITING as u64 {
        let camera = if step % 2 == 0 { "a" } else { "b" };
        handle(&mut state, view(camera, step), 0).unwrap();
    }
    assert!(state.len() as u64 <= MAX_RESULTS + MAX_WAITING as u64 + 1);
    let answer = handle(&mut state, Request::Results { from: 0, limit: 1 }, 0).unwrap();
    assert_eq!(answer.dropped, MAX_WAITING as u64);
    assert_eq!(answer.results[0].step, answer.dropped);
}

#[test]
fn flushing_closes_with_what_is_there() {
    let mut state = open_scene();
    handle(&mut state, view("a", 0), 0).unwrap();
    handle(&mut state, Request::Flush { through: 2 }, 1).unwrap();
    assert_eq!(
        results(&mut state, 0, 1),
        [
            (0, Closed::Flushed, 2),
            (1, Closed::Flushed, 3),
            (2, Closed::Flushed, 3)
        ]
    );
}

#[test]
fn requests_that_make_no_sense_are_rejected() {
    let mut closed = InMemory::default();
    let reject = |state: &mut InMemory, request| handle(state, request, 0).unwrap_err();
    assert!(matches!(
        reject(&mut closed, view("a", 0)),
        SceneError::NotOpen
    ));
    let mut state = open_scene();
    assert!(
        reject(&mut state, view("x", 0))
            .to_string()
            .contains("a, b, c")
    );
    assert!(matches!(
        reject(&mut state, view("a", MAX_AHEAD)),
        SceneError::TooFarAhead { .. }
    ));
    assert!(matches!(
        reject(&mut state, Request::Flush { through: u64::MAX }),
        SceneError::TooFarAhead { .. }
    ));
    assert!(reject(&mut state, view("x", 0)).is_rejection());
    let mut settings = state.settings.clone().unwrap();
    settings.calibration.step_seconds = f64::NAN;
    assert!(matches!(
        reject(&mut state, Request::Open(settings)),
        SceneError::Settings(_)
    ));
}

#[test]
fn opening_again_begins_anew() {
    let mut state = open_scene();
    handle(&mut state, view("a", 0), 0).unwrap();
    let settings = state.settings.clone().unwrap();
    handle(&mut state, Request::Open(settings), 0).unwrap();
    assert!(state.is_empty() && state.progress == Progress::default());
}
