//! `wasi:logging/logging`.

use super::Host;
use crate::logs::Level;
use crate::wasm::bindings::offered::wasi::logging::logging;

impl logging::Host for Host {
    fn log(
        &mut self,
        level: logging::Level,
        context: String,
        message: String,
    ) -> wasmtime::Result<()> {
        let level = match level {
            logging::Level::Trace => Level::Trace,
            logging::Level::Debug => Level::Debug,
            logging::Level::Info => Level::Info,
            logging::Level::Warn => Level::Warn,
            logging::Level::Error => Level::Error,
            logging::Level::Critical => Level::Critical,
        };
        if context.is_empty() {
            self.writer.log(level, &message);
        } else {
            self.writer.log(level, &format!("{context}: {message}"));
        }
        Ok(())
    }
}
