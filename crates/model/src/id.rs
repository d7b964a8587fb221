//! Names and positions that cannot be built wrong: parsed once, at the edge.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest function name in bytes (as in DNS labels, so that names can become host names).
pub const MAX_FUNCTION_NAME_BYTES: usize = 63;
/// Longest name of a node or a site in bytes.
pub const MAX_NODE_NAME_BYTES: usize = 63;
/// Longest session name in bytes: part of every stored key of the session.
pub const MAX_SESSION_NAME_BYTES: usize = 512;
/// Longest bucket or key name in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The bucket that is private to the session.
pub const SESSION_BUCKET: &str = "session";

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the {what} is empty; give it at least one character")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// Too many bytes.
    #[error("the {what} has {bytes} bytes; at most {max} are allowed")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A character that is not allowed.
    #[error("the {what} has the character {found:?} at byte {at}; allowed are {allowed}")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The character.
        found: char,
        /// Its offset in bytes.
        at: usize,
        /// What is allowed instead.
        allowed: &'static str,
    },
}

fn check_length(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > max {
        return Err(NameError::TooLong {
            what,
            bytes: text.len(),
            max,
        });
    }
    Ok(())
}

fn check_no_control(what: &'static str, text: &str) -> Result<(), NameError> {
    match text.char_indices().find(|(_, c)| c.is_control()) {
        None => Ok(()),
        Some((at, found)) => Err(NameError::Character {
            what,
            found,
            at,
            allowed: "all characters but control characters",
        }),
    }
}

/// Checks a label as in host names: lower-case letters, digits and, between them, hyphens.
fn check_label(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    check_length(what, text, max)?;
    let edge = |at: usize| at == 0 || at == text.len() - 1;
    for (at, c) in text.char_indices() {
        let ok = c.is_ascii_lowercase() || c.is_ascii_digit() || (c == '-' && !edge(at));
        if !ok {
            return Err(NameError::Character {
                what,
                found: c,
                at,
                allowed: "a-z, 0-9 and, between them, hyphens",
            });
        }
    }
    Ok(())
}

/// Checks a key of a bucket: 1 to [`MAX_KEY_BYTES`] bytes of UTF-8 without control characters.
pub fn check_key(key: &str) -> Result<(), NameError> {
    check_length("key", key, MAX_KEY_BYTES)?;
    check_no_control("key", key)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as text that can be shared.
            pub fn shared(&self) -> &Arc<str> {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type! {
    /// Name of a deployed function: lower-case letters, digits and inner hyphens.
    FunctionName
}

impl FunctionName {
    /// Checks and takes the name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_label("function name", text, MAX_FUNCTION_NAME_BYTES)?;
        Ok(Self(text.into()))
    }
}

name_type! {
    /// Name of a node: lower-case letters, digits and inner hyphens.
    NodeName
}

impl NodeName {
    /// Checks and takes the name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_label("node name", text, MAX_NODE_NAME_BYTES)?;
        Ok(Self(text.into()))
    }
}

name_type! {
    /// Name of a site (nodes that share a LAN): lower-case letters, digits and inner hyphens.
    SiteName
}

impl SiteName {
    /// Checks and takes the name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_label("site name", text, MAX_NODE_NAME_BYTES)?;
        Ok(Self(text.into()))
    }
}

name_type! {
    /// Name of a session, chosen by the client: any text of 1 to 512 bytes without control characters.
    SessionName
}

impl SessionName {
    /// Checks and takes the name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Checks the name without taking it.
    pub fn check(text: &str) -> Result<(), NameError> {
        check_length("session name", text, MAX_SESSION_NAME_BYTES)?;
        check_no_control("session name", text)
    }
}

/// Which bucket a key is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket<'a> {
    /// The private bucket of the invocation's session.
    Session,
    /// A bucket shared by all functions.
    Shared(&'a str),
}

impl<'a> Bucket<'a> {
    /// Checks and takes a bucket name.
    pub fn new(name: &'a str) -> Result<Self, NameError> {
        if name == SESSION_BUCKET {
            return Ok(Self::Session);
        }
        check_length("bucket name", name, MAX_KEY_BYTES)?;
        check_no_control("bucket name", name)?;
        Ok(Self::Shared(name))
    }
}

/// A placement group that is a session: what moves as one.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Group {
    /// The function that the session belongs to.
    pub function: FunctionName,
    /// The session.
    pub session: SessionName,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.function, self.session)
    }
}

/// How many commits a placement group has seen.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Version(pub u64);

impl Version {
    /// The version that the next commit makes.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Reign of a state home. A home with a lower epoch than the stored one is fenced.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Epoch(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_dns_labels() {
        for good in ["a", "a1", "line-3", "0"] {
            assert!(FunctionName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", "a/b", &"x".repeat(64)] {
            assert!(FunctionName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn session_names_may_be_odd_but_not_long_or_unprintable() {
        for good in ["line 3", "ä/ö", "..", "%", &"x".repeat(512)] {
            assert!(SessionName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a\0b", "a\nb", &"x".repeat(513)] {
            assert!(SessionName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_session_bucket_is_private() {
        assert_eq!(Bucket::new("session"), Ok(Bucket::Session));
        assert_eq!(Bucket::new("default"), Ok(Bucket::Shared("default")));
    }
}
