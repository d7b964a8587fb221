//! What a decision is taken from: nodes, the network between them, functions, keys, accesses.
//!
//! Plain data in SI units. The live node fills it from gossip and from the statistics of its Data
//! Proxy, the simulator from its scenario. Symbols in backquotes are those of "Function Offloading
//! and Data Migration for Stateful Serverless Edge Computing", Table 1.

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index into a slice.
            pub const fn at(self) -> usize {
                self.0 as usize
            }
        }

        impl From<usize> for $name {
            /// # Panics
            /// When there are more than 2^32 of them.
            fn from(at: usize) -> Self {
                Self(u32::try_from(at).expect("fewer than 2^32"))
            }
        }
    };
}

index!(
    /// A node's place in the view.
    NodeIndex
);
index!(
    /// A function's place in the view.
    FunctionIndex
);
index!(
    /// A key's place in the view.
    KeyIndex
);

/// Where a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// Near the clients.
    Edge,
    /// In a data centre.
    Cloud,
}

/// A machine that executes functions or keeps keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: Box<str>,
    /// Edge or cloud.
    pub zone: Zone,
    /// Nodes of one site share a LAN.
    pub site: u32,
    /// Spare memory for workers, in bytes (`M̄_i`).
    pub spare_memory_bytes: u64,
    /// Room for keys, in bytes (`S_i`).
    pub storage_bytes: u64,
    /// Speed relative to the reference machine (`s_i`).
    pub speed_up: f64,
}

/// One-way latencies and bandwidths between every two nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    nodes: usize,
    latency_seconds: Box<[f64]>,
    bandwidth_bytes_per_second: Box<[f64]>,
}

impl Network {
    /// Both matrices row by row, from `i` to `j` at `i * nodes + j`.
    ///
    /// A node reaches itself at once, whatever the diagonals say.
    ///
    /// # Panics
    /// When a matrix does not have `nodes * nodes` elements.
    pub fn new(
        nodes: usize,
        mut latency_seconds: Vec<f64>,
        mut bandwidth_bytes_per_second: Vec<f64>,
    ) -> Self {
        assert_eq!(latency_seconds.len(), nodes * nodes);
        assert_eq!(bandwidth_bytes_per_second.len(), nodes * nodes);
        for node in 0..nodes {
            latency_seconds[node * nodes + node] = 0.0;
            bandwidth_bytes_per_second[node * nodes + node] = f64::INFINITY;
        }
        Self {
            nodes,
            latency_seconds: latency_seconds.into(),
            bandwidth_bytes_per_second: bandwidth_bytes_per_second.into(),
        }
    }

    /// How many nodes it connects.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// One-way latency in seconds (`d_{i,j}`).
    pub fn latency(&self, from: NodeIndex, to: NodeIndex) -> f64 {
        self.latency_seconds[from.at() * self.nodes + to.at()]
    }

    /// Bandwidth in bytes per second (`b_{i,j}`).
    pub fn bandwidth(&self, from: NodeIndex, to: NodeIndex) -> f64 {
        self.bandwidth_bytes_per_second[from.at() * self.nodes + to.at()]
    }

    /// Seconds to move `bytes` one way (eqs. 6 and 7).
    pub fn transfer(&self, from: NodeIndex, to: NodeIndex, bytes: f64) -> f64 {
        bytes / self.bandwidth(from, to) + self.latency(from, to)
    }

    /// Seconds for `at` to access a value of `bytes` that lives on `home` (eq. 4).
    pub fn access(&self, at: NodeIndex, home: NodeIndex, bytes: f64) -> f64 {
        self.latency(at, home) + bytes / self.bandwidth(at, home) + self.latency(home, at)
    }
}

/// What a function has been promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    /// Longest mean data access time, in seconds (`T_f^max`); infinite if nothing is promised.
    pub max_data_access_seconds: f64,
    /// Longest response time, in seconds; infinite if nothing is promised.
    pub max_response_seconds: f64,
    /// What each second beyond costs (`rho_f`).
    pub penalty_per_second: f64,
}

/// Deployed code, as decisions see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: Box<str>,
    /// Execution time on the reference machine, in seconds (`r_f`).
    pub exec_seconds: f64,
    /// Memory of one worker, in bytes (`m_f`).
    pub memory_bytes: u64,
    /// Mean size of its input, in bytes (`l_f^in`).
    pub input_bytes: f64,
    /// Mean size of its output, in bytes (`l_f^out`).
    pub output_bytes: f64,
    /// What it has been promised.
    pub slo: Slo,
}

/// A key (or a whole session: a placement group).
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Size of its value, in bytes (`l_k`).
    pub size_bytes: u64,
    /// The node where it lives now (`loc(k)`).
    pub home: NodeIndex,
}

/// How often a function that runs on a node accesses a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Access {
    /// Who accesses.
    pub function: FunctionIndex,
    /// What is accessed.
    pub key: KeyIndex,
    /// Where the function runs.
    pub node: NodeIndex,
    /// Accesses per second.
    pub rate: f64,
}
