//! Multi-view object tracking: several calibrated cameras, people on a ground plane, one set of tracks.
//!
//! Everything here is a pure computation on values: no files, no network, no clock, no randomness.
//! The functions `detect` and `aggregate` and the runner `mvot` are thin shells around it.
//!
//! The path of a frame: [`image`] decodes it; [`background`] finds what differs from the empty scene;
//! [`mask`] cleans that up and splits it into components; [`detect`] explains the components by people of the
//! size that the [`camera`] expects at each place; [`fusion`] brings the views together on the ground plane;
//! [`tracker`] ([`kalman`], [`assignment`]) connects timesteps; [`metrics`] compares with the truth.
//! [`scene`] decides when a timestep is complete, and keeps results in order; [`message`] is what travels.

pub mod assignment;
pub mod background;
pub mod camera;
pub mod detect;
mod fit;
pub mod fusion;
pub mod geometry;
pub mod image;
pub mod kalman;
pub mod mask;
pub mod message;
pub mod metrics;
pub mod scene;
pub mod tracker;
