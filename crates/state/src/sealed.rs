//! The home *in-client*: a session's state in a token that the client sends along.
//!
//! Sealed with AES-256-GCM, so that nobody else can read or change it; bound to its function and
//! session; with the number of its key, so that keys can be replaced. The state is there as often as
//! the client copies the token: that an older one is not accepted again takes a counter on the node.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fulmar_model::{Group, Version};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::record::{KeyRingRecord, SealingKey};

/// Longest token in characters: servers and proxies take 16 KiB of headers, some 8.
pub const MAX_TOKEN: usize = 12 << 10;
/// Keys that still open tokens, the one that seals included.
pub const MAX_KEYS: usize = 4;
/// First byte of every token.
const FORMAT: u8 = 1;
/// Format and number of the key.
const HEAD: usize = 5;

/// A token cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The state does not fit into a token.
    #[error("the session's state makes a token of {0} characters; at most {MAX_TOKEN} are allowed")]
    TooLarge(usize),
    /// Not a token: cut off, or something else.
    #[error("it is not a token of this node's form")]
    Malformed,
    /// Sealed with a key that is not there, or not any more.
    #[error("it was sealed with key {0}, which is not, or no longer, in use")]
    UnknownKey(u32),
    /// Changed since it was sealed, or sealed for another function or session.
    #[error("it was not sealed for this session by this node")]
    Refused,
    /// The system has no random bytes.
    #[error("the system has no random bytes")]
    NoRandom,
}

/// Keys that seal and open tokens; the last one seals.
#[derive(Debug, Clone)]
pub struct KeyRing(KeyRingRecord);

/// A session's state as it is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Grows with every commit.
    pub version: Version,
    /// When it left its home, if it has one: not a time, but a number that no other leaving has.
    pub left: u64,
    /// Keys and values.
    pub entries: Vec<(String, Vec<u8>)>,
}

impl KeyRing {
    /// A ring with one new key.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn new() -> Result<Self, SealError> {
        let mut ring = Self(KeyRingRecord { keys: Vec::new() });
        ring.rotate()?;
        Ok(ring)
    }

    /// As stored.
    pub fn from_record(record: KeyRingRecord) -> Self {
        Self(record)
    }

    /// To be stored.
    pub fn record(&self) -> &KeyRingRecord {
        &self.0
    }

    /// The number of the key that seals.
    pub fn current(&self) -> u32 {
        self.0.keys.last().map_or(0, |key| key.number)
    }

    /// Seals with a new key from now on; the oldest one goes when there are too many.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn rotate(&mut self) -> Result<(), SealError> {
        let mut secret = [0; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| SealError::NoRandom)?;
        let number = self.current().wrapping_add(1);
        self.0.keys.push(SealingKey { number, secret });
        let surplus = self.0.keys.len().saturating_sub(MAX_KEYS);
        self.0.keys.drain(..surplus);
        Ok(())
    }

    fn key(&self, number: u32) -> Result<LessSafeKey, SealError> {
        let found = self.0.keys.iter().find(|key| key.number == number);
        let key = found.ok_or(SealError::UnknownKey(number))?;
        // 32 bytes are a key of this algorithm.
        let key = UnboundKey::new(&AES_256_GCM, &key.secret).map_err(|_| SealError::Malformed)?;
        Ok(LessSafeKey::new(key))
    }

    /// A token of a session's state.
    ///
    /// # Errors
    /// When it would be too long, or the system has no random bytes.
    pub fn seal(&self, group: &Group, carried: &Carried) -> Result<String, SealError> {
        let number = self.current();
        let key = self.key(number)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| SealError::NoRandom)?;
        // Plain owned data: postcard has no case in which it refuses.
        let mut sealed = postcard::to_allocvec(carried).map_err(|_| SealError::Malformed)?;
        let nonce_used = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_used, aad(group), &mut sealed)
            .map_err(|_| SealError::Refused)?;
        let mut token = vec![FORMAT];
        token.extend_from_slice(&number.to_be_bytes());
        token.extend_from_slice(&nonce);
        token.extend_from_slice(&sealed);
        let text = BASE64_URL_SAFE_NO_PAD.encode(token);
        match text.len() <= MAX_TOKEN {
            true => Ok(text),
            false => Err(SealError::TooLarge(text.len())),
        }
    }

    /// The state in a token.
    ///
    /// # Errors
    /// When it is no token, or not one for this session by one of these keys.
    pub fn open(&self, group: &Group, token: &str) -> Result<Carried, SealError> {
        if token.len() > MAX_TOKEN {
            return Err(SealError::Malformed);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| SealError::Malformed)?;
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or(SealError::Malformed)?;
        let (nonce, sealed) = rest
            .split_at_checked(NONCE_LEN)
            .ok_or(SealError::Malformed)?;
        let (FORMAT, number) = (head[0], &head[1..]) else {
            return Err(SealError::Malformed);
        };
        let number = number.try_into().map_err(|_| SealError::Malformed)?;
        let key = self.key(u32::from_be_bytes(number))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Malformed)?;
        let mut sealed = sealed.to_vec();
        let plain = key
            .open_in_place(nonce, aad(group), &mut sealed)
            .map_err(|_| SealError::Refused)?;
        postcard::from_bytes(plain).map_err(|_| SealError::Malformed)
    }
}

/// What a token is bound to. No name has a NUL.
fn aad(group: &Group) -> Aad<Vec<u8>> {
    Aad::from(crate::key::session(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar_model::{FunctionName, SessionName};
    use proptest::prelude::*;

    fn group(function: &str, session: &str) -> Group {
        Group {
            function: FunctionName::new(function).unwrap(),
            session: SessionName::new(session).unwrap(),
        }
    }

    fn carried(entries: &[(&str, &[u8])]) -> Carried {
        Carried {
            version: Version(7),
            left: 0,
            entries: entries
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
                .collect(),
        }
    }

    #[test]
    fn a_token_is_for_one_session_and_outlives_some_rotations() {
        let mut ring = KeyRing::new().unwrap();
        let state = carried(&[("count", b"3")]);
        let token = ring.seal(&group("f", "a"), &state).unwrap();
        assert_eq!(ring.open(&group("f", "a"), &token), Ok(state.clone()));
        for other in [group("f", "b"), group("g", "a")] {
            assert_eq!(ring.open(&other, &token), Err(SealError::Refused));
        }
        assert_eq!(
            KeyRing::new().unwrap().open(&group("f", "a"), &token),
            Err(SealError::Refused)
        );
        for _ in 1..MAX_KEYS {
            ring.rotate().unwrap();
            assert!(ring.open(&group("f", "a"), &token).is_ok());
        }
        ring.rotate().unwrap();
        assert_eq!(
            ring.open(&group("f", "a"), &token),
            Err(SealError::UnknownKey(1))
        );
        let stored = KeyRing::from_record(ring.record().clone());
        let newer = ring.seal(&group("f", "a"), &state).unwrap();
        assert!(stored.open(&group("f", "a"), &newer).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let ring = KeyRing::new().unwrap();
        let large = carried(&[("blob", &[0; MAX_TOKEN])]);
        let error = ring.seal(&group("f", "a"), &large).unwrap_err();
        assert!(matches!(error, SealError::TooLarge(_)), "{error}");
        let long = "A".repeat(MAX_TOKEN + 1);
        assert_eq!(
            ring.open(&group("f", "a"), &long),
            Err(SealError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn no_changed_token_is_opened(at in 0_usize..80, bit in 0_u8..8, cut in 0_usize..80) {
            let ring = KeyRing::new().unwrap();
            let session = group("f", "a");
            let token = ring.seal(&session, &carried(&[("count", b"3"), ("name", b"x")])).unwrap();
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(ring.open(&session, &BASE64_URL_SAFE_NO_PAD.encode(&bytes)).is_err());
            let cut = cut % token.len();
            prop_assert!(ring.open(&session, &token[..cut]).is_err());
        }

        #[test]
        fn nothing_that_anybody_sends_panics(token in "\\PC{0,200}") {
            let _ = KeyRing::new().unwrap().open(&group("f", "a"), &token);
        }
    }
}
