//! Write functions for Fulmar in Rust.
//!
//! ```
//! use fulmar::{Context, Counter, Error};
//!
//! static COUNT: Counter = Counter::new("count");
//!
//! #[fulmar::function]
//! fn handle(context: Context, delta: &str) -> Result<String, Error> {
//!     let delta = delta.trim().parse().map_err(Error::rejected)?;
//!     fulmar::info!("adding {delta} in {:?}", context.session());
//!     Ok(COUNT.add(delta)?.to_string())
//! }
//! # fn main() {}
//! ```
//!
//! Everything that an invocation writes and sends becomes visible together with its answer, or not
//! at all. Typed state ([`Counter`], [`Value`], [`Map`], [`List`]) belongs to the invocation's
//! session; it stays deserialized while the session's worker lives, and is written key by key, so
//! an event costs what it touches however much state there is. Shared state is in a [`Bucket`].
//!
//! The way of an invocation: `run` <- the handler -> `state` -> `host`, which is the node in a
//! component and a map in memory elsewhere, so that functions are tested as they are ([`testing`]).

mod context;
mod error;
mod host;
mod io;
mod log;
mod messages;
mod placement;
mod state;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

/// Generated from the WIT of `fulmar:function`.
#[doc(hidden)]
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
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

pub use bindings::wasi::logging::logging::Level;
pub use context::{Context, config, context, now_unix_ms};
pub use error::Error;
pub use fulmar_macros::function;
pub use io::{Input, Json, Output, Raw};
pub use log::log;
pub use messages::{send, send_json};
pub use placement::{ExecutionModel, choose_model};
pub use state::bucket::{Bucket, bucket, session};
pub use state::counter::Counter;
pub use state::list::List;
pub use state::map::Map;
#[cfg(feature = "postcard")]
pub use state::stored::Bin;
pub use state::stored::Stored;
pub use state::value::Value;

/// What [`function`] expands to uses these.
#[doc(hidden)]
pub mod __private {
    pub use crate::error::Answer;

    /// Runs a handler and, if it succeeds, writes what it changed.
    pub fn run(
        handler: impl FnOnce() -> Result<Vec<u8>, crate::Error>,
    ) -> Result<Vec<u8>, crate::bindings::Failure> {
        crate::run(handler).map_err(Into::into)
    }
}

/// Runs a handler and, if it succeeds, writes what it changed.
fn run<R>(handler: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    let result = handler().and_then(|answer| {
        state::cache::finish()?;
        Ok(answer)
    });
    if result.is_err() {
        // What is cached did not happen. The node goes on with a fresh worker; a test, with this one.
        state::cache::clear();
    }
    result
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_interface_is_the_node_s() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let node = here.join("../../wit");
        if !node.exists() {
            eprintln!("SKIPPED: outside of the repository there is nothing to compare with");
            return;
        }
        for file in [
            "fulmar.wit",
            "deps/logging/logging.wit",
            "deps/config/store.wit",
        ] {
            let read = |top: &Path| std::fs::read_to_string(top.join(file)).unwrap();
            assert_eq!(read(&here.join("wit")), read(&node), "{file}");
        }
    }
}
