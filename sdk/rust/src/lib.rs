//! Write functions for Fulmar in Rust.
//!
//! ```ignore
//! use fulmar::Counter;
//!
//! #[fulmar::function]
//! fn handle(delta: String) -> Result<String, fulmar::Error> {
//!     let count = Counter::new("count");
//!     Ok(count.add(delta.trim().parse()?)?.to_string())
//! }
//! ```
//!
//! Everything that an invocation writes and sends becomes visible together with its answer, or not
//! at all. Typed state ([`Counter`], [`Value`], [`Map`], [`List`]) belongs to the invocation's
//! session; it stays deserialized while the session's worker lives, and is written key by key.

mod error;
mod io;
mod state;

/// Generated from the WIT of `fulmar:function`.
#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "function",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "fulmar::bindings",
        generate_all,
    });
}

pub use bindings::fulmar::function::context::Invocation;
pub use error::Error;
pub use fulmar_macros::function;
pub use io::{Input, Json, Output};
pub use state::bucket::{Bucket, bucket, session};
pub use state::counter::Counter;
pub use state::list::List;
pub use state::map::Map;
pub use state::value::Value;

use bindings::fulmar::function::{context as host_context, messages};
pub use bindings::wasi::logging::logging::Level;

/// What is known about the running invocation: function, session, deadline, idempotency key, attempt.
pub fn context() -> Invocation {
    host_context::current()
}

/// The node's clock, in milliseconds since the Unix epoch.
pub fn now_unix_ms() -> u64 {
    host_context::now_unix_ms()
}

/// Sends a message: delivered exactly once, after this invocation commits, in order per sending and
/// receiving session.
pub fn send(function: &str, session: Option<&str>, body: &[u8]) -> Result<(), Error> {
    messages::send(function, session, body).map_err(|error| Error::failed(format!("send to {function}: {error:?}")))
}

/// A value of the manifest's `[config]`.
pub fn config(key: &str) -> Option<String> {
    bindings::wasi::config::store::get(key).ok().flatten()
}

/// Writes a line to the function's log.
pub fn log(level: Level, message: &str) {
    bindings::wasi::logging::logging::log(level, "", message);
}

/// Writes a line of level info to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::log($crate::Level::Info, &format!($($text)*)) };
}

/// Writes a line of level warn to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::log($crate::Level::Warn, &format!($($text)*)) };
}

/// Writes a line of level error to the function's log, formatted as by `format!`.
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::log($crate::Level::Error, &format!($($text)*)) };
}

/// Runs a handler and, if it succeeds, writes what it changed.
#[doc(hidden)]
pub fn run(handler: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<Vec<u8>, bindings::Failure> {
    let result = handler().and_then(|output| {
        state::cache::flush(&state::host::Node)?;
        Ok(output)
    });
    result.map_err(|error| {
        // What was cached did not happen; the node starts a fresh worker, and so does a test.
        state::cache::clear();
        error.into()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_interface_is_the_node_s() {
        for file in ["fulmar.wit", "deps/logging/logging.wit", "deps/config/store.wit"] {
            let ours = std::fs::read_to_string(format!("wit/{file}")).unwrap();
            match std::fs::read_to_string(format!("../../wit/{file}")) {
                Ok(theirs) => assert_eq!(ours, theirs, "{file}"),
                Err(_) => eprintln!("SKIPPED: not in the repository, nothing to compare {file} with"),
            }
        }
    }
}
