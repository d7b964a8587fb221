//! What a function takes and returns.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Context, Error};

/// Something that a function can take.
#[diagnostic::on_unimplemented(
    message = "a function of Fulmar cannot take `{Self}`",
    label = "not an input",
    note = "an input is `Vec<u8>`, `&[u8]`, `String`, `&str`, `fulmar::Raw` or `fulmar::Json<T>`, where T: serde::Deserialize"
)]
pub trait Input<'a>: Sized {
    /// Reads it from the request's body, which it may take or look at.
    fn read(body: &'a mut Vec<u8>) -> Result<Self, Error>;
}

/// Something that a function can return.
#[diagnostic::on_unimplemented(
    message = "a function of Fulmar cannot return `{Self}`",
    label = "not an output",
    note = "an output is `Vec<u8>`, `&'static [u8]`, `String`, `&'static str`, `()`, `fulmar::Raw`, `Option` of one of these, or `fulmar::Json<T>`, where T: serde::Serialize"
)]
pub trait Output {
    /// Writes it as the response's body.
    fn write(self) -> Result<Vec<u8>, Error>;
}

/// JSON in or out. An input that is not what is expected is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Json<T>(pub T);

/// Bytes as they are: in, out, or stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Raw(pub Vec<u8>);

fn not_utf8(error: std::str::Utf8Error) -> Error {
    Error::rejected(format!("the body is not UTF-8: {error}"))
}

impl Input<'_> for Vec<u8> {
    fn read(body: &mut Vec<u8>) -> Result<Self, Error> {
        Ok(std::mem::take(body))
    }
}

impl<'a> Input<'a> for &'a [u8] {
    fn read(body: &'a mut Vec<u8>) -> Result<Self, Error> {
        Ok(body)
    }
}

impl Input<'_> for Raw {
    fn read(body: &mut Vec<u8>) -> Result<Self, Error> {
        Ok(Raw(std::mem::take(body)))
    }
}

impl Input<'_> for String {
    fn read(body: &mut Vec<u8>) -> Result<Self, Error> {
        String::from_utf8(std::mem::take(body)).map_err(|error| not_utf8(error.utf8_error()))
    }
}

impl<'a> Input<'a> for &'a str {
    fn read(body: &'a mut Vec<u8>) -> Result<Self, Error> {
        std::str::from_utf8(body).map_err(not_utf8)
    }
}

impl<T: DeserializeOwned> Input<'_> for Json<T> {
    fn read(body: &mut Vec<u8>) -> Result<Self, Error> {
        serde_json::from_slice(body)
            .map(Json)
            .map_err(|error| Error::rejected(format!("the body is not the JSON expected: {error}")))
    }
}

/// A function that looks only at its context.
impl Input<'_> for Context {
    fn read(_: &mut Vec<u8>) -> Result<Self, Error> {
        Ok(crate::context())
    }
}

impl Output for Vec<u8> {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self)
    }
}

impl Output for &'static [u8] {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self.to_vec())
    }
}

impl Output for Raw {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self.0)
    }
}

impl Output for String {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self.into_bytes())
    }
}

impl Output for &'static str {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(self.as_bytes().to_vec())
    }
}

impl Output for () {
    fn write(self) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }
}

/// `None` is an empty body.
impl<T: Output> Output for Option<T> {
    fn write(self) -> Result<Vec<u8>, Error> {
        self.map_or_else(|| Ok(Vec::new()), Output::write)
    }
}

impl<T: Serialize> Output for Json<T> {
    fn write(self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&self.0).map_err(|error| Error::from(error).while_doing("the answer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_is_not_what_was_expected_is_rejected() {
        assert!(String::read(&mut vec![0xff]).unwrap_err().is_rejected());
        assert!(<&str>::read(&mut vec![0xff]).unwrap_err().is_rejected());
        let error = Json::<Vec<u8>>::read(&mut b"[1, true]".to_vec()).unwrap_err();
        assert!(error.is_rejected());
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut body = Json(vec![1, 2]).write().unwrap();
        assert_eq!(body, b"[1,2]");
        assert_eq!(Json::read(&mut body), Ok(Json(vec![1, 2])));
        assert_eq!(Some("a").write().unwrap(), b"a");
        assert_eq!(None::<String>.write().unwrap(), b"");
    }
}
