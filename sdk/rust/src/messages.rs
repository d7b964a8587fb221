//! Messages to other functions.

use serde::Serialize;

use crate::Error;
use crate::host::{HOST, Host};

/// Sends a message: delivered exactly once, after this invocation commits, in order per sending and
/// receiving session.
pub fn send(function: &str, session: Option<&str>, body: impl AsRef<[u8]>) -> Result<(), Error> {
    HOST.send(function, session, body.as_ref())
}

/// Sends a message whose body is JSON.
pub fn send_json<T: Serialize + ?Sized>(
    function: &str,
    session: Option<&str>,
    body: &T,
) -> Result<(), Error> {
    send(function, session, serde_json::to_vec(body)?)
}
