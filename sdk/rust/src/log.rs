//! Lines for the function's log, which `fulmar logs` shows.

use crate::Level;
use crate::host::{HOST, Host};

/// Writes a line to the function's log.
pub fn log(level: Level, message: &str) {
    HOST.log(level, message);
}

/// Writes a line of a level to the function's log, formatted as by `format!`:
/// `fulmar::log!(Level::Warn, "{n} left")`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($text:tt)*) => { $crate::log($level, &::std::format!($($text)*)) };
}

/// Writes a line of level trace to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! trace {
    ($($text:tt)*) => { $crate::log($crate::Level::Trace, &::std::format!($($text)*)) };
}

/// Writes a line of level debug to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { $crate::log($crate::Level::Debug, &::std::format!($($text)*)) };
}

/// Writes a line of level info to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::log($crate::Level::Info, &::std::format!($($text)*)) };
}

/// Writes a line of level warn to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::log($crate::Level::Warn, &::std::format!($($text)*)) };
}

/// Writes a line of level error to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::log($crate::Level::Error, &::std::format!($($text)*)) };
}
