//! `detect`: the people in one frame of one camera. No session; the answer goes to the client and, as a message,
//! to the session of `aggregate` that is named after the scene, unless the frame says otherwise.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use fulmar::{Error, Json};
use mvot_core::detect::{DetectError, Detection, Detector};
use mvot_core::image::Image;
use mvot_core::message::{
    BUCKET, CameraRecord, FrameHeader, Request, Then, View, background_key, camera_key,
    decode_frame,
};

/// Cameras that a worker keeps ready at most: a few scenes' worth, well inside its memory.
const MAX_READY: usize = 24;

thread_local! {
    /// By the key of the camera's record: the record they were made from, and the detector.
    static READY: RefCell<BTreeMap<String, (CameraRecord, Detector)>> = const { RefCell::new(BTreeMap::new()) };
}

#[fulmar::function]
fn detect(event: &[u8]) -> Result<Json<View>, Error> {
    let started = Instant::now();
    let (header, png) = decode_frame(event).map_err(Error::rejected)?;
    let detections = match header.then {
        Then::Collect => Image::from_png(png)
            .map(|_| Vec::new())
            .map_err(Error::rejected)?,
        Then::Aggregate | Then::Answer => with_detector(&header, |detector| {
            let frame = Image::from_png(png).map_err(Error::rejected)?;
            detector.detect(frame).map_err(|error| match error {
                DetectError::WrongSize { .. } => Error::rejected(error),
                DetectError::Image(_) => Error::failed(error),
            })
        })?,
    };
    let view = View {
        camera: header.camera,
        step: header.step,
        sent_unix_ms: header.sent_unix_ms,
        detect_micros: started.elapsed().as_micros() as u64,
        detections,
    };
    let receiver = match header.then {
        Then::Aggregate => "aggregate",
        Then::Collect => "collect",
        Then::Answer => return Ok(Json(view)),
    };
    let message = serde_json::to_vec(&Request::View(view.clone()))?;
    fulmar::send(receiver, Some(&header.scene), &message)?;
    Ok(Json(view))
}

/// Uses the camera's detector: the one at hand if the bucket still says the same, else a new one.
fn with_detector(
    header: &FrameHeader,
    look: impl FnOnce(&Detector) -> Result<Vec<Detection>, Error>,
) -> Result<Vec<Detection>, Error> {
    let bucket = fulmar::bucket(BUCKET);
    let unknown = |what: &str| {
        let FrameHeader { scene, camera, .. } = header;
        Error::rejected(format!(
            "bucket {BUCKET:?} has no {what} of camera {camera:?} of scene {scene:?}: put it there first"
        ))
    };
    let key = camera_key(&header.scene, &header.camera);
    let record = bucket.get(&key)?.ok_or_else(|| unknown("calibration"))?;
    let record: CameraRecord = serde_json::from_slice(&record)?;
    READY.with_borrow_mut(|ready| {
        if ready
            .get(&key)
            .is_none_or(|(made_from, _)| *made_from != record)
        {
            let background = background_key(&header.scene, &header.camera);
            let background = bucket
                .get(&background)?
                .ok_or_else(|| unknown("background"))?;
            let detector = Detector::new(&record.calibration, Image::from_png(&background)?)?;
            if ready.len() >= MAX_READY {
                ready.clear();
            }
            ready.insert(key.clone(), (record, detector));
        }
        ready
            .get(&key)
            .map_or_else(|| Err(unknown("detector")), |(_, detector)| look(detector))
    })
}
