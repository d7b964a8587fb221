//! How values become bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Raw};

/// What can be stored: everything of serde, as JSON; [`Raw`] bytes as they are; with the feature
/// `postcard`, `Bin` in a compact binary format.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be stored",
    label = "not storable",
    note = "derive serde::Serialize and serde::Deserialize, own everything in it, or store `fulmar::Raw` bytes"
)]
pub trait Stored: Sized + 'static {
    /// As stored.
    fn to_stored(&self) -> Result<Vec<u8>, Error>;
    /// From what was stored.
    fn from_stored(bytes: &[u8]) -> Result<Self, Error>;
}

impl<T: Serialize + DeserializeOwned + 'static> Stored for T {
    fn to_stored(&self) -> Result<Vec<u8>, Error> {
        Ok(serde_json::to_vec(self)?)
    }

    fn from_stored(bytes: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl Stored for Raw {
    fn to_stored(&self) -> Result<Vec<u8>, Error> {
        Ok(self.0.clone())
    }

    fn from_stored(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Raw(bytes.to_vec()))
    }
}

/// Stored in the binary format postcard: smaller and quicker than JSON, not readable. Fields cannot
/// be added later, except at the end of an enum.
#[cfg(feature = "postcard")]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bin<T>(pub T);

#[cfg(feature = "postcard")]
impl<T: Serialize + DeserializeOwned + 'static> Stored for Bin<T> {
    fn to_stored(&self) -> Result<Vec<u8>, Error> {
        Ok(postcard::to_stdvec(&self.0)?)
    }

    fn from_stored(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Bin(postcard::from_bytes(bytes)?))
    }
}

#[cfg(all(test, feature = "postcard"))]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_binary_are_small() {
        let numbers = Bin(vec![1.5_f32; 100]);
        let bytes = numbers.to_stored().unwrap();
        assert_eq!(bytes.len(), 401);
        assert_eq!(Bin::<Vec<f32>>::from_stored(&bytes).unwrap(), numbers);
        assert!(Bin::<Vec<f32>>::from_stored(&bytes[..50]).is_err());
    }
}
