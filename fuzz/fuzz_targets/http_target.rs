//! Any text as the path of an invocation: a session that comes out is a valid name, and the same
//! path comes out when it is encoded again.

#![no_main]

use std::fmt::Write as _;

use fulmar_model::SessionName;
use libfuzzer_sys::fuzz_target;
use target::{PREFIX, Target};

// Not through the crate: building the whole node with sanitizers takes a quarter of an hour.
#[path = "../../crates/node/src/target.rs"]
mod target;

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "%{byte:02x}");
        out
    })
}

fuzz_target!(|text: &str| {
    for path in [text.to_owned(), format!("{PREFIX}{text}")] {
        let Ok(target) = Target::parse(&path) else { continue };
        assert!(target.rest.starts_with('/'), "{target:?}");
        let session = match &target.session {
            None => "-".to_owned(),
            Some(session) => {
                assert!(SessionName::new(session).is_ok(), "{target:?}");
                encoded(session)
            }
        };
        let again = format!("{PREFIX}{}/{session}{}", encoded(&target.function), target.rest);
        assert_eq!(Target::parse(&again).as_ref(), Ok(&target), "{again}");
    }
});
