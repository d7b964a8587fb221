//! What makes a simulation impossible.

use std::path::PathBuf;

/// Always the user's to mend: the command line ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting, a file or a combination of them makes no sense; the text says which, where, and
    /// what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Something makes no sense.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}
