//! How a function says that it could not do its work.

use std::fmt;

use crate::bindings::Failure;

/// An invocation without an answer: nothing that it wrote or sent is kept.
///
/// `?` turns any other error into [`Error::failed`], its causes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    message: String,
    rejected: bool,
}

impl Error {
    /// The input is wrong: the client gets 400, a message is not delivered again.
    ///
    /// Takes text or any error: `text.parse().map_err(Error::rejected)?`.
    pub fn rejected(reason: impl fmt::Display) -> Self {
        Self {
            message: reason.to_string(),
            rejected: true,
        }
    }

    /// The function could not do it now: the client gets 500, a message is delivered again.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self {
            message: reason.to_string(),
            rejected: false,
        }
    }

    /// Whether the input was to blame.
    pub fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// Says first what was being done: `doing: reason`.
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// For `?`. (So `Error` itself cannot be a `std::error::Error`.)
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut failed = Self::failed(&error);
        let mut cause = error.source();
        while let Some(error) = cause {
            failed.message.push_str(": ");
            failed.message.push_str(&error.to_string());
            cause = error.source();
        }
        failed
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.rejected {
            Failure::Rejected(error.message)
        } else {
            Failure::Failed(error.message)
        }
    }
}

/// What a function returns: a result.
#[diagnostic::on_unimplemented(
    message = "a function of Fulmar returns `Result<R, E>`, not `{Self}`",
    label = "wrap it: `Result<{Self}, fulmar::Error>`",
    note = "E is `fulmar::Error` or any `std::error::Error`"
)]
pub trait Answer {
    /// What it returns when it succeeds.
    type Output;
    /// As a result with our error.
    fn answer(self) -> Result<Self::Output, Error>;
}

impl<R, E: Into<Error>> Answer for Result<R, E> {
    type Output = R;

    fn answer(self) -> Result<R, Error> {
        self.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("no number")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_question_mark_fails_and_tells_the_causes() {
        let error = Error::from(Outer("x".parse::<i32>().unwrap_err()));
        assert!(!error.is_rejected());
        assert_eq!(
            error.to_string(),
            "no number: invalid digit found in string"
        );
    }

    #[test]
    fn what_was_being_done_comes_first_and_keeps_the_kind() {
        let error = Error::rejected("too long").while_doing("name");
        assert_eq!(error, Error::rejected("name: too long"));
    }
}
