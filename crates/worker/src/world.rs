//! What a function serves.

use std::fmt;

/// Which interface a function serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `fulmar:function`: bytes in, bytes out.
    Function,
    /// `wasi:http/proxy`.
    Http,
    /// HTTP on a Unix socket.
    Program,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            World::Function => "fulmar:function",
            World::Http => "wasi:http/proxy",
            World::Program => "program",
        })
    }
}
