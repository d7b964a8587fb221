//! A node's memory: containers that run, and idle ones that keep theirs until it is needed.

/// What is deployed: name, execution time (s), memory (MB), load of Table 2 (requests/s), mean cold start (s).
pub(super) const FUNCTIONS: [(&str, f64, u64, f64, f64); 5] = [
    ("f1", 0.40, 512, 8.0, 0.5),
    ("f2", 0.20, 512, 16.0, 0.25),
    ("f3", 0.30, 128, 42.0, 0.6),
    ("f4", 0.25, 1024, 6.0, 0.25),
    ("f5", 0.45, 256, 14.0, 0.5),
];
/// How long an idle container keeps its memory.
const IDLE_SECONDS: f64 = 600.0;

/// Containers of a node.
pub(super) struct Machine {
    free_mb: u64,
    /// When each idle container of each function became idle, the latest last.
    idle: [Vec<f64>; FUNCTIONS.len()],
}

impl Machine {
    pub(super) fn new(memory_mb: u64) -> Self {
        Self {
            free_mb: memory_mb,
            idle: Default::default(),
        }
    }

    /// A container has become idle.
    pub(super) fn done(&mut self, function: usize, now: f64) {
        self.idle[function].push(now);
    }

    /// Whether a container for the function is idle, or fits when idle ones go.
    pub(super) fn has_room(&mut self, function: usize, now: f64) -> bool {
        for (other, (_, _, memory, _, _)) in self.idle.iter_mut().zip(FUNCTIONS) {
            let expired = other.partition_point(|since| *since + IDLE_SECONDS <= now);
            other.drain(..expired);
            self.free_mb += expired as u64 * memory;
        }
        let idle = |(idle, (_, _, memory, _, _)): (&Vec<f64>, (_, _, u64, _, _))| {
            idle.len() as u64 * memory
        };
        !self.idle[function].is_empty()
            || self.free_mb + self.idle.iter().zip(FUNCTIONS).map(idle).sum::<u64>()
                >= FUNCTIONS[function].2
    }

    /// Takes a container; whether it was warm.
    pub(super) fn take(&mut self, function: usize) -> bool {
        if self.idle[function].pop().is_some() {
            return true;
        }
        let needed = FUNCTIONS[function].2;
        while self.free_mb < needed {
            // The largest idle ones go first.
            let largest = (0..FUNCTIONS.len())
                .filter(|other| !self.idle[*other].is_empty())
                .max_by_key(|other| FUNCTIONS[*other].2);
            let Some(largest) = largest else { break };
            self.idle[largest].remove(0);
            self.free_mb += FUNCTIONS[largest].2;
        }
        self.free_mb = self.free_mb.saturating_sub(needed);
        false
    }
}
