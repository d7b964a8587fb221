//! Any bytes as headers of an invocation: what comes out as an idempotency key is one.

#![no_main]

use headers::{idempotency_key, prefers_async};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

// Not through the crate: building the whole node with sanitizers takes a quarter of an hour.
#[path = "../../crates/node/src/headers.rs"]
mod headers;

fuzz_target!(|fields: Vec<(bool, Vec<u8>)>| {
    let mut map = HeaderMap::new();
    for (is_key, value) in fields {
        let name = if is_key { "idempotency-key" } else { "prefer" };
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            map.append(HeaderName::from_static(name), value);
        }
    }
    let _ = prefers_async(&map);
    if let Ok(Some(key)) = idempotency_key(&map) {
        assert!((1..=255).contains(&key.len()));
        assert!(key.bytes().all(|byte| byte.is_ascii_graphic()), "{key:?}");
        assert_eq!(map.get_all("idempotency-key").iter().count(), 1);
    }
});
