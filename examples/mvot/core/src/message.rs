//! What travels: frames to `detect`, views from `detect` to `aggregate`, requests and results.

use serde::{Deserialize, Serialize};

use crate::camera::{Calibration, CameraCalibration};
use crate::detect::Detection;
use crate::tracker::TrackPoint;

/// Shared bucket that holds what the cameras need.
pub const BUCKET: &str = "mvot";
/// First bytes of a frame event.
const MAGIC: [u8; 4] = *b"MVF1";
/// Largest header of a frame event in bytes.
const MAX_HEADER: usize = 4096;

/// Key of a camera's background: a PNG at working size.
pub fn background_key(scene: &str, camera: &str) -> String {
    format!("{scene}/{camera}/background")
}

/// Key of a camera's [`CameraRecord`].
pub fn camera_key(scene: &str, camera: &str) -> String {
    format!("{scene}/{camera}/camera")
}

/// What `detect` reads at each frame: small, and different whenever the background is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CameraRecord {
    /// Size and homography.
    pub calibration: CameraCalibration,
    /// Changes with the background, so that a worker knows when the one it holds is old.
    pub background_version: String,
}

/// Header of a frame event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameHeader {
    /// Scene that the camera belongs to: the session of `aggregate`.
    pub scene: String,
    /// Name of the camera.
    pub camera: String,
    /// Timestep, counted from 0 without gaps.
    pub step: u64,
    /// When the runner sent it, in milliseconds since the Unix epoch.
    pub sent_unix_ms: u64,
    /// What becomes of what is seen.
    #[serde(default)]
    pub then: Then,
}

/// What `detect` does with what it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Send it to the session of `aggregate`.
    #[default]
    Aggregate,
    /// Only answer it: whoever asked knows what to do with it.
    Answer,
    /// Look at nothing, and send that to the session of `collect`: what is measured then is everything but detection.
    Collect,
}

/// A frame event that is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It does not begin as a frame event does.
    #[error(
        "a frame event begins with \"MVF1\", the header's length (u32, little-endian), the header (JSON) and then the PNG"
    )]
    NotAFrame,
    /// Its header is not as expected.
    #[error("the header of the frame event: {0}")]
    Header(#[from] serde_json::Error),
}

/// A frame event: `MVF1`, length of the header (u32, little-endian), header (JSON), PNG.
pub fn encode_frame(header: &FrameHeader, png: &[u8]) -> Vec<u8> {
    // A struct of strings and numbers always has a JSON form.
    let header = serde_json::to_vec(header).unwrap_or_default();
    [
        &MAGIC[..],
        &(header.len() as u32).to_le_bytes(),
        &header,
        png,
    ]
    .concat()
}

/// Header and PNG of a frame event.
pub fn decode_frame(event: &[u8]) -> Result<(FrameHeader, &[u8]), FrameError> {
    let rest = event.strip_prefix(&MAGIC).ok_or(FrameError::NotAFrame)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(FrameError::NotAFrame)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_HEADER || length > rest.len() {
        return Err(FrameError::NotAFrame);
    }
    let (header, png) = rest.split_at(length);
    Ok((serde_json::from_slice(header)?, png))
}

/// What one camera saw at one timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Name of the camera.
    pub camera: String,
    /// Timestep.
    pub step: u64,
    /// When the frame was sent.
    pub sent_unix_ms: u64,
    /// Time that decoding and detection took, in microseconds.
    pub detect_micros: u64,
    /// The people.
    pub detections: Vec<Detection>,
}

/// What `aggregate` can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Begin the scene, anew if there was one.
    Open(Settings),
    /// One camera's detections, sent by `detect`.
    View(View),
    /// Close what is due; give results from timestep `from` on; those before it have been received and go.
    Results {
        /// First timestep wanted.
        from: u64,
        /// Most results to give.
        limit: u32,
    },
    /// Close every timestep up to and including this one, with what has arrived.
    Flush {
        /// Last timestep to close.
        through: u64,
    },
}

/// What a scene is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Cameras and area.
    pub calibration: Calibration,
    /// How long a timestep waits for the frames that are missing, from its first frame on, in milliseconds.
    pub timeout_ms: u64,
}

/// Why a timestep was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// All cameras' frames had arrived.
    Complete,
    /// All had but those of cameras that have been silent for some timesteps.
    WithoutSilent,
    /// Some had not when its time was over.
    Timeout,
    /// Too many later timesteps were waiting.
    Overrun,
    /// Asked for.
    Flushed,
}

/// The result of one timestep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// Timestep.
    pub step: u64,
    /// Why it was closed.
    pub closed: Closed,
    /// Cameras whose frames had not arrived.
    pub missing: Vec<String>,
    /// When its first frame was sent, in milliseconds since the Unix epoch; absent without any frame.
    pub first_sent_unix_ms: Option<u64>,
    /// When its last frame was sent.
    pub last_sent_unix_ms: Option<u64>,
    /// When it was closed, by the node's clock.
    pub closed_unix_ms: u64,
    /// Who is where.
    pub tracks: Vec<TrackPoint>,
}

/// What `aggregate` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// First timestep that is still open.
    pub next_step: u64,
    /// Timesteps that have some of their frames.
    pub waiting: u64,
    /// Views that came after their timestep was closed, so far.
    pub late: u64,
    /// Views that came a second time, so far.
    pub repeated: u64,
    /// Results that were given up because nobody fetched them, so far.
    pub dropped: u64,
    /// The results asked for, in the order of timesteps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<StepResult>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            scene: "plaza".into(),
            camera: "c1".into(),
            step: 7,
            sent_unix_ms: 1_700_000_000_123,
            then: Then::Aggregate,
        }
    }

    #[test]
    fn frames_go_there_and_back() {
        let event = encode_frame(&header(), b"png bytes");
        let (read, png) = decode_frame(&event).unwrap();
        assert_eq!((read, png), (header(), &b"png bytes"[..]));
    }

    #[test]
    fn whatever_is_no_frame_is_refused() {
        let event = encode_frame(&header(), b"");
        for cut in 0..event.len() {
            assert!(decode_frame(&event[..cut]).is_err());
        }
        assert!(decode_frame(b"MVF1\xff\xff\xff\xff{}").is_err());
        assert!(
            decode_frame(b"MVF1\x02\0\0\0{}")
                .unwrap_err()
                .to_string()
                .contains("scene")
        );
    }

    #[test]
    fn requests_are_plain_json() {
        let text = r#"{"request":"results","from":3,"limit":10}"#;
        assert_eq!(
            serde_json::from_str::<Request>(text).unwrap(),
            Request::Results { from: 3, limit: 10 }
        );
    }
}
