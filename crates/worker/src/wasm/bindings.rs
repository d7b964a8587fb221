//! Generated from `wit/`: the world `fulmar:function` and what the host offers to all.

#![allow(missing_docs)]

/// What the node offers to every component.
pub(crate) mod offered {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "fulmar:function/host",
        imports: {
            default: trappable,
            // What is read of shared keys may be on another node.
            "fulmar:function/state.get": async | trappable,
            "fulmar:function/state.list-keys": async | trappable,
            "fulmar:function/state.increment": async | trappable,
            "fulmar:function/state.compare-and-swap": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft.[method]bucket.get": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft.[method]bucket.exists": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft.[method]bucket.list-keys": async | trappable,
            "wasi:keyvalue/atomics@0.2.0-draft.increment": async | trappable,
            "wasi:keyvalue/batch@0.2.0-draft.get-many": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft2.[method]bucket.get": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft2.[method]bucket.exists": async | trappable,
            "wasi:keyvalue/store@0.2.0-draft2.[method]bucket.list-keys": async | trappable,
            "wasi:keyvalue/atomics@0.2.0-draft2.increment": async | trappable,
            "wasi:keyvalue/atomics@0.2.0-draft2.[static]cas.new": async | trappable,
            "wasi:keyvalue/batch@0.2.0-draft2.get-many": async | trappable,
        },
        require_store_data_send: true,
        with: {
            "wasi:keyvalue/store@0.2.0-draft.bucket": crate::wasm::host::keyvalue::Bucket,
            "wasi:keyvalue/store@0.2.0-draft2.bucket": crate::wasm::host::keyvalue::Bucket,
            "wasi:keyvalue/atomics@0.2.0-draft2.cas": crate::wasm::host::keyvalue::Cas,
        },
    });
}

/// What a component of `fulmar:function` exports.
pub(crate) mod function {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "fulmar:function/function",
        imports: { default: trappable },
        exports: { default: async },
        require_store_data_send: true,
        with: {
            "fulmar:function": super::offered::fulmar::function,
            "wasi:logging": super::offered::wasi::logging,
            "wasi:config/store@0.2.0-draft": super::offered::wasi::config0_2_0_draft::store,
        },
    });
}
