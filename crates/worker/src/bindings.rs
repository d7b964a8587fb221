//! Generated from `wit/`: the world `fulmar:function` and what the host offers to all.

#![allow(missing_docs)]

/// What the node offers to every component.
pub(crate) mod offered {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "fulmar:function/host",
        imports: { default: trappable },
        require_store_data_send: true,
        with: {
            "wasi:keyvalue/store@0.2.0-draft.bucket": crate::host::keyvalue::Bucket,
            "wasi:keyvalue/store@0.2.0-draft2.bucket": crate::host::keyvalue::Bucket,
            "wasi:keyvalue/atomics@0.2.0-draft2.cas": crate::host::keyvalue::Cas,
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
