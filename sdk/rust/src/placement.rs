//! Where the session's state is to be.

use crate::Error;
pub use crate::bindings::fulmar::function::placement::ExecutionModel;
use crate::host::{HOST, Host};

/// Wants the invocation's session to have this execution model from now on. The platform changes it soon after the
/// invocation's commit, while the session is in use; an invocation that fails changes nothing.
///
/// The function's manifest has to leave the choice, with `execution_model = "auto"`.
pub fn choose_model(model: ExecutionModel) -> Result<(), Error> {
    HOST.choose_model(model)
}
