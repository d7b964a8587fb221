//! The messages of `proto/peer.proto`, and what goes with each call.

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod generated {
    tonic::include_proto!("fulmar.peer.v1");
}

pub use generated::*;

use fulmar_model::{FunctionName, NameError, SessionName};
use fulmar_state::Table;

/// The protocol that this version speaks; grows when a message changes its meaning.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol that this version still speaks.
pub const OLDEST_PROTOCOL: u32 = 1;
/// Metadata that names the calling node.
pub const NODE: &str = "fulmar-node";
/// Metadata that says which protocol it speaks; the first one if it does not say.
pub const CALLER_PROTOCOL: &str = "fulmar-protocol";
/// Largest message: the largest body of a request with its headers.
pub const MAX_MESSAGE_BYTES: usize = 68 << 20;

/// Whether this version can speak with one that speaks the protocols from `oldest` to `newest`.
///
/// # Errors
/// Why not.
pub fn understands(oldest: u32, newest: u32) -> Result<(), String> {
    match oldest <= PROTOCOL && newest >= OLDEST_PROTOCOL {
        true => Ok(()),
        false => Err(format!(
            "it speaks the protocols {oldest} to {newest}, this version {OLDEST_PROTOCOL} to {PROTOCOL}; \
             upgrade the older one, one version at a time"
        )),
    }
}

impl From<&fulmar_model::Group> for Group {
    fn from(group: &fulmar_model::Group) -> Self {
        Self {
            function: group.function.to_string(),
            session: group.session.to_string(),
        }
    }
}

impl TryFrom<Group> for fulmar_model::Group {
    type Error = NameError;

    fn try_from(group: Group) -> Result<Self, NameError> {
        Ok(Self {
            function: FunctionName::new(&group.function)?,
            session: SessionName::new(&group.session)?,
        })
    }
}

/// Headers of HTTP from those of the protocol.
///
/// # Errors
/// When one of them is none of HTTP.
pub(crate) fn http_headers(from: Vec<Header>) -> Result<http::HeaderMap, http::Error> {
    let mut headers = http::HeaderMap::with_capacity(from.len());
    for header in from {
        let name = http::HeaderName::try_from(header.name)?;
        let value = http::HeaderValue::from_maybe_shared(header.value)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Tables whose entries go with a session, and their numbers.
const STAGED: [(Table, u32); 2] = [(Table::State, 1), (Table::Idempotency, 2)];

/// Entries of a copy.
///
/// # Errors
/// When one is of a table that this version does not know.
pub(crate) fn staged(entries: Vec<StageEntry>) -> Result<Vec<crate::StageEntry>, String> {
    let entry = |entry: StageEntry| {
        let known = STAGED.iter().find(|(_, number)| *number == entry.table);
        let (table, _) = known.ok_or_else(|| format!("no table has the number {}", entry.table))?;
        Ok(crate::StageEntry {
            table: *table,
            key: entry.key,
            value: entry.value,
        })
    };
    entries.into_iter().map(entry).collect()
}

impl From<crate::StageEntry> for StageEntry {
    fn from(entry: crate::StageEntry) -> Self {
        let known = STAGED.iter().find(|(table, _)| *table == entry.table);
        Self {
            // A table that does not go with sessions has a number that nobody knows.
            table: known.map_or(0, |(_, number)| *number),
            key: entry.key,
            value: entry.value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_others_are_told_why_not() {
        for (oldest, newest) in [
            (PROTOCOL, PROTOCOL),
            (PROTOCOL, PROTOCOL + 1),
            (0, OLDEST_PROTOCOL),
        ] {
            understands(oldest, newest).unwrap();
        }
        for (oldest, newest) in [(0, OLDEST_PROTOCOL - 1), (PROTOCOL + 1, PROTOCOL + 2)] {
            let refused = understands(oldest, newest).unwrap_err();
            assert!(refused.contains("upgrade the older one"), "{refused}");
        }
    }
}
