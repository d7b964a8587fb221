//! The Rust SDK as it is vendored into functions made by `fulmar new rust`: the files of `sdk/rust`
//! without its tests of the public interface. A test of [`crate::template`] compares both.

/// Path below the SDK's directory, and text.
pub(crate) const SDK_FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../../sdk/rust/Cargo.toml")),
    (
        "macros/Cargo.toml",
        include_str!("../../../sdk/rust/macros/Cargo.toml"),
    ),
    (
        "macros/src/lib.rs",
        include_str!("../../../sdk/rust/macros/src/lib.rs"),
    ),
    (
        "src/context.rs",
        include_str!("../../../sdk/rust/src/context.rs"),
    ),
    (
        "src/error.rs",
        include_str!("../../../sdk/rust/src/error.rs"),
    ),
    ("src/host.rs", include_str!("../../../sdk/rust/src/host.rs")),
    (
        "src/host/memory.rs",
        include_str!("../../../sdk/rust/src/host/memory.rs"),
    ),
    (
        "src/host/node.rs",
        include_str!("../../../sdk/rust/src/host/node.rs"),
    ),
    ("src/io.rs", include_str!("../../../sdk/rust/src/io.rs")),
    ("src/lib.rs", include_str!("../../../sdk/rust/src/lib.rs")),
    ("src/log.rs", include_str!("../../../sdk/rust/src/log.rs")),
    (
        "src/messages.rs",
        include_str!("../../../sdk/rust/src/messages.rs"),
    ),
    (
        "src/placement.rs",
        include_str!("../../../sdk/rust/src/placement.rs"),
    ),
    (
        "src/state.rs",
        include_str!("../../../sdk/rust/src/state.rs"),
    ),
    (
        "src/state/bucket.rs",
        include_str!("../../../sdk/rust/src/state/bucket.rs"),
    ),
    (
        "src/state/cache.rs",
        include_str!("../../../sdk/rust/src/state/cache.rs"),
    ),
    (
        "src/state/counter.rs",
        include_str!("../../../sdk/rust/src/state/counter.rs"),
    ),
    (
        "src/state/list.rs",
        include_str!("../../../sdk/rust/src/state/list.rs"),
    ),
    (
        "src/state/map.rs",
        include_str!("../../../sdk/rust/src/state/map.rs"),
    ),
    (
        "src/state/name.rs",
        include_str!("../../../sdk/rust/src/state/name.rs"),
    ),
    (
        "src/state/stored.rs",
        include_str!("../../../sdk/rust/src/state/stored.rs"),
    ),
    (
        "src/state/value.rs",
        include_str!("../../../sdk/rust/src/state/value.rs"),
    ),
    (
        "src/testing.rs",
        include_str!("../../../sdk/rust/src/testing.rs"),
    ),
    (
        "wit/deps/config/store.wit",
        include_str!("../../../sdk/rust/wit/deps/config/store.wit"),
    ),
    (
        "wit/deps/logging/logging.wit",
        include_str!("../../../sdk/rust/wit/deps/logging/logging.wit"),
    ),
    (
        "wit/fulmar.wit",
        include_str!("../../../sdk/rust/wit/fulmar.wit"),
    ),
];
