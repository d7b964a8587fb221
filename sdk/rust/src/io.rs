//! What a function may take and return.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// Something that a function can take.
pub trait Input: Sized {
    /// Reads it from the request's body.
    fn read(body: Vec<u8>) -> Result<Self, Error>;
}

/// Something that a function can return.
pub trait Output {
    /// Writes it as the response's body.
    fn write(self) -> Result<Vec<u8>, Error>;
}

/// JSON in or out. An input that is not what is expected is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl Input for Vec<u8> {
    fn read(body: Vec<u8>) -> Result<Self, Error> {
        Ok(body)
    }
}

impl Input for String {
    fn read(body: Vec<u8>) -> Result<Self, Error> {
        String::from_utf8(body).map_err(|error| Error::rejected(format!("the body is not UTF-8: {error}")))
    }
}

impl<T: DeserializeOwned> Input for Json<T> {
    fn read(body: Vec<u8>) -> Result<Self, Error> {
        serde_json::from_slice(&body)
            .map(Json)
            .map_err(|error| Error::rejected(format!("the body is not the JSON expected: {error}")))
    }
}

impl Output for Vec<u8> {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self)
    }
}

impl Output for String {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self.into_bytes())
    }
}

impl Output for () {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }
}

impl<T: Serialize> Output for Json<T> {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(serde_json::to_vec(&self.0)?)
    }
}
