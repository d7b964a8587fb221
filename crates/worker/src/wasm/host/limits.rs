//! Limits of one worker's memory and tables.

use wasmtime::ResourceLimiter;

/// Entries of one table: functions of a large language runtime.
const TABLE_ELEMENTS: usize = 100_000;
/// Core instances, tables and memories of one component: with the pool the engine bounds them, without
/// it nobody else does.
const INSTANCES: usize = 64;
const TABLES: usize = 64;
const MEMORIES: usize = 8;

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

    /// A new invocation: what an earlier one asked for in vain is not its fault.
    pub(crate) fn begin(&mut self) {
        self.hit = false;
    }

    /// Whether memory was refused since [`Limits::begin`].
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

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}
