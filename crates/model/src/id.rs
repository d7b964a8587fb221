//! Names and positions that cannot be built wrong: parsed once, at the edge.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// Longest function name, without its namespace, and longest name of a namespace in bytes (as in DNS labels, so that names
/// can become host names).
pub const MAX_FUNCTION_NAME_BYTES: usize = 63;
/// The namespace of functions whose name has none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Between a namespace and the name of a shared bucket, which may not contain it.
const BUCKET_SEPARATOR: char = '\u{1}';
/// Stands for the shared keys of a namespace where they are placed like sessions; no function is called so.
const SHARED_KEYS: &str = "-shared";
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
    /// The default namespace, spelt out: every function has one name.
    #[error("functions of the namespace {DEFAULT_NAMESPACE} are named without it: {name:?}")]
    SpeltOut {
        /// The name without it.
        name: String,
    },
    /// Another namespace than the one that is meant.
    #[error("{name} is of the namespace {found}, not of {expected}")]
    OtherNamespace {
        /// The function.
        name: String,
        /// The namespace that it names.
        found: String,
        /// The namespace that it has to be of.
        expected: String,
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
    /// Name of a deployed function: lower-case letters, digits and inner hyphens, with its namespace and a dot in front unless that
    /// is the default one.
    FunctionName
}

impl FunctionName {
    /// Checks and takes the name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        match text.split_once('.') {
            None => check_name(text)?,
            Some((namespace, name)) => {
                check_label("namespace", namespace, MAX_FUNCTION_NAME_BYTES)?;
                check_name(name)?;
                if namespace == DEFAULT_NAMESPACE {
                    let name = name.to_owned();
                    return Err(NameError::SpeltOut { name });
                }
            }
        }
        Ok(Self(text.into()))
    }

    /// Checks and takes a name that is meant to be of a namespace: with it in front, or without any.
    ///
    /// # Errors
    /// When it is no name, or of another namespace.
    pub fn within(namespace: &str, text: &str) -> Result<Self, NameError> {
        let name = match text.contains('.') || namespace == DEFAULT_NAMESPACE {
            true => Self::new(text)?,
            false => Self::new(&format!("{namespace}.{text}"))?,
        };
        if name.is_shared_keys() {
            // What stands for shared keys is no function: it is refused as the label that it is not.
            check_label("function name", SHARED_KEYS, MAX_FUNCTION_NAME_BYTES)?;
        }
        if name.namespace() == namespace {
            return Ok(name);
        }
        Err(NameError::OtherNamespace {
            found: name.namespace().to_owned(),
            expected: namespace.to_owned(),
            name: name.to_string(),
        })
    }

    /// The namespace that it is of.
    pub fn namespace(&self) -> &str {
        split_namespace(&self.0).0
    }

    /// What stands for the shared keys of a namespace where they are placed like sessions.
    pub fn of_shared_keys(namespace: &str) -> Self {
        match namespace {
            DEFAULT_NAMESPACE => Self(SHARED_KEYS.into()),
            _ => Self(format!("{namespace}.{SHARED_KEYS}").into()),
        }
    }

    /// Whether it stands for shared keys, and for no function.
    pub fn is_shared_keys(&self) -> bool {
        is_shared_keys(&self.0)
    }
}

/// Whether a name stands for the shared keys of a namespace ([`FunctionName::of_shared_keys`]).
pub fn is_shared_keys(name: &str) -> bool {
    split_namespace(name).1 == SHARED_KEYS
}

fn check_name(text: &str) -> Result<(), NameError> {
    match text {
        SHARED_KEYS => Ok(()),
        _ => check_label("function name", text, MAX_FUNCTION_NAME_BYTES),
    }
}

/// Splits the name of a function, or a pattern of such names, into its namespace and the rest.
pub fn split_namespace(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((DEFAULT_NAMESPACE, name))
}

/// Checks the name of a namespace: a label as in host names.
pub fn check_namespace(name: &str) -> Result<(), NameError> {
    check_label("namespace", name, MAX_FUNCTION_NAME_BYTES)
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
    /// A bucket shared by all functions of a namespace; its name among those of all ([`bucket_within`]).
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

/// The name of a shared bucket of a namespace among those of all: itself in the default one.
pub fn bucket_within<'a>(namespace: &str, name: &'a str) -> Cow<'a, str> {
    match namespace {
        DEFAULT_NAMESPACE => Cow::Borrowed(name),
        _ => Cow::Owned(format!("{namespace}{BUCKET_SEPARATOR}{name}")),
    }
}

/// Splits such a name into its namespace and the bucket's name there.
pub fn split_bucket(name: &str) -> (&str, &str) {
    name.split_once(BUCKET_SEPARATOR)
        .unwrap_or((DEFAULT_NAMESPACE, name))
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
    fn functions_have_one_name_each() {
        let name = FunctionName::new("shop.counter").unwrap();
        assert_eq!(name.namespace(), "shop");
        assert_eq!(FunctionName::within("shop", "counter"), Ok(name.clone()));
        assert_eq!(FunctionName::within("shop", "shop.counter"), Ok(name));
        for namespace in ["shop", "default"] {
            let keys = FunctionName::of_shared_keys(namespace);
            assert_eq!(FunctionName::new(keys.as_str()), Ok(keys.clone()));
            assert!(keys.is_shared_keys() && keys.namespace() == namespace);
            for name in [keys.as_str(), SHARED_KEYS] {
                assert!(FunctionName::within(namespace, name).is_err(), "{name}");
            }
        }
        let plain = FunctionName::new("counter").unwrap();
        assert_eq!(plain.namespace(), "default");
        assert_eq!(FunctionName::within("default", "counter"), Ok(plain));
        for bad in [
            "shop.",
            ".counter",
            "a.b.c",
            "Shop.counter",
            "default.counter",
        ] {
            assert!(FunctionName::new(bad).is_err(), "{bad}");
        }
        for (namespace, bad) in [("shop", "fleet.counter"), ("default", "shop.counter")] {
            let refused = FunctionName::within(namespace, bad);
            assert!(
                matches!(refused, Err(NameError::OtherNamespace { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn buckets_of_two_namespaces_are_two() {
        assert_eq!(bucket_within("default", "b"), "b");
        let full = bucket_within("shop", "b");
        assert_eq!(split_bucket(&full), ("shop", "b"));
        assert_eq!(split_bucket("b"), ("default", "b"));
        assert!(Bucket::new(&full).is_err(), "nobody can name it otherwise");
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
