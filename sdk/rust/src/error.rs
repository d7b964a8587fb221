//! How a function says that it could not do its work.

use std::fmt;

use crate::bindings::Failure;

/// An invocation without an answer: nothing that it wrote or sent is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    rejected: bool,
}

impl Error {
    /// The input is wrong: the client gets 400, a message is not delivered again.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self { message: message.into(), rejected: true }
    }

    /// The function could not do it now: the client gets 500, a message is delivered again.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), rejected: false }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `?` on any error means [`Error::failed`]. (So `Error` itself cannot be a `std::error::Error`.)
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.rejected { Failure::Rejected(error.message) } else { Failure::Failed(error.message) }
    }
}
