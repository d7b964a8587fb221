//! `wasi:config/store`, in both published versions: the manifest's `[config]`.

use super::Host;
use crate::wasm::bindings::offered::wasi::{config0_2_0_draft, config0_2_0_rc_1};

impl config0_2_0_draft::store::Host for Host {
    fn get(
        &mut self,
        key: String,
    ) -> wasmtime::Result<Result<Option<String>, config0_2_0_draft::store::Error>> {
        Ok(Ok(self.settings.config.get(&key).cloned()))
    }

    fn get_all(
        &mut self,
    ) -> wasmtime::Result<Result<Vec<(String, String)>, config0_2_0_draft::store::Error>> {
        Ok(Ok(self.settings.config.clone().into_iter().collect()))
    }
}

impl config0_2_0_rc_1::store::Host for Host {
    fn get(
        &mut self,
        key: String,
    ) -> wasmtime::Result<Result<Option<String>, config0_2_0_rc_1::store::Error>> {
        Ok(Ok(self.settings.config.get(&key).cloned()))
    }

    fn get_all(
        &mut self,
    ) -> wasmtime::Result<Result<Vec<(String, String)>, config0_2_0_rc_1::store::Error>> {
        Ok(Ok(self.settings.config.clone().into_iter().collect()))
    }
}
