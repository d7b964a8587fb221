//! Keys of the local data store: parts joined by NUL, which no name may contain, so that a session
//! is one contiguous range and `a/bc` never meets `ab/c`.

use fulmar_model::Group;

use crate::commit::Ticket;

/// The separator of parts.
pub const SEPARATOR: &[u8] = b"\0";

/// Key of a session's record, and prefix (with a separator) of its state.
pub fn session(group: &Group) -> Vec<u8> {
    [
        group.function.as_str().as_bytes(),
        SEPARATOR,
        group.session.as_str().as_bytes(),
    ]
    .concat()
}

/// Prefix of everything that a session stores.
pub fn session_state(group: &Group) -> Vec<u8> {
    let mut prefix = session(group);
    prefix.extend_from_slice(SEPARATOR);
    prefix
}

/// Splits the key of a session's record.
pub fn parse_session(key: &[u8]) -> Option<(&str, &str)> {
    let (function, session) = std::str::from_utf8(key).ok()?.split_once('\0')?;
    Some((function, session))
}

/// Prefix of the keys of a shared bucket.
pub fn bucket(name: &str) -> Vec<u8> {
    [name.as_bytes(), SEPARATOR].concat()
}

/// Key of a message: ordered by commit, then by the order of sending.
pub fn message(commit: Ticket, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&commit.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Key of an answer kept for an idempotency key.
pub fn idempotency(function: &str, session: Option<&str>, key: &str) -> Vec<u8> {
    [function, session.unwrap_or(""), key]
        .join("\0")
        .into_bytes()
}

/// Begins what follows the session in the key of a delivery; no client's idempotency key begins so.
const DELIVERY: u8 = 1;
/// The same for the note where its state is, if not at home.
const AWAY: u8 = 2;
/// The same for the execution model that was chosen for it.
const CHOSEN: u8 = 3;

/// Key of the note where a session's state is that is not at its home; no client's idempotency key begins so.
pub fn away(group: &Group) -> Vec<u8> {
    note(group, AWAY)
}

/// Key of the note which execution model was chosen for a session.
pub fn chosen(group: &Group) -> Vec<u8> {
    note(group, CHOSEN)
}

fn note(group: &Group, kind: u8) -> Vec<u8> {
    let mut key = session_state(group);
    key.push(kind);
    key
}

/// Whether it is a note, by what follows the session in its key.
pub fn is_note(rest: &[u8]) -> bool {
    matches!(rest, [AWAY | CHOSEN])
}

/// Splits what follows the session in the key of a delivery: the data directory, and the message there.
pub fn parse_delivery(rest: &[u8]) -> Option<(&str, [u8; 12])> {
    let (instance, message) = rest.strip_prefix(&[DELIVERY])?.split_last_chunk::<12>()?;
    let instance = instance.strip_suffix(&[DELIVERY])?;
    Some((std::str::from_utf8(instance).ok()?, *message))
}

/// Prefix of the records that messages of a data directory were delivered to a session.
pub fn deliveries(group: &Group, instance: &str) -> Vec<u8> {
    let mut prefix = session_state(group);
    prefix.push(DELIVERY);
    prefix.extend_from_slice(instance.as_bytes());
    prefix.push(DELIVERY);
    prefix
}
