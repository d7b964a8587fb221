//! Limits of one worker's memory and tables.

use wasmtime::ResourceLimiter;

/// Table entries of one worker: functions of a large language runtime.
const TABLE_ELEMENTS: usize = 100_000;

/// Refuses growth beyond the limit and remembers that it did: the guest only sees a failed
/// allocation and traps for reasons of its own.
pub(crate) struct Limits {
    memory_bytes: usize,
    /// All memories of the component together.
    used_bytes: usize,
    hit: bool,
}

impl Limits {
    pub(crate) fn new(memory_bytes: usize) -> Self {
        Self {
            memory_bytes,
            used_bytes: 0,
            hit: false,
        }
    }

    pub(crate) fn was_hit(&self) -> bool {
        self.hit
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.used_bytes - current.min(self.used_bytes) + desired;
        if used > self.memory_bytes {
            self.hit = true;
            return Ok(false);
        }
        self.used_bytes = used;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}
