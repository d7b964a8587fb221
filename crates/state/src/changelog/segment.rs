//! The form of what is in the object store: writes one after the other, in segments with a head and a checksum.
//!
//! ```text
//! segment  "FULMLOG1" kind:u8 stream:u64 sequence:u64 run:u64 first:u64 last:u64 content crc32:u32
//! content  write*                         (kind 0)   or the name of whoever fenced the log (kind 1)
//! write    table:u8 1 key-length:u32 value-length:u32 key value
//!          table:u8 0 key-length:u32 key  (deleted)
//! ```
//! Numbers are big-endian.

use bytes::Bytes;

use crate::commit::Ticket;
use crate::engine::{Table, Write};

const MAGIC: &[u8; 8] = b"FULMLOG1";
const HEAD_BYTES: usize = MAGIC.len() + 1 + 5 * 8;
const CHECKSUM_BYTES: usize = 4;

/// What is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a segment of the changelog is damaged: {0}")]
pub struct Damaged(pub &'static str);

/// One object of a changelog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which of the data directory's logs it belongs to.
    pub stream: u64,
    /// Its place there, from 1; parts of a base: their place in it.
    pub sequence: u64,
    /// The run of the node that wrote it.
    pub run: u64,
    /// The commits that are in it.
    pub first: Ticket,
    /// The last of them.
    pub last: Ticket,
    /// What it holds.
    pub content: Content,
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Writes in the form above.
    Writes(Bytes),
    /// The end of the log, put there by whoever takes over.
    Fence(String),
}

impl Segment {
    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let (kind, content) = match &self.content {
            Content::Writes(writes) => (0, &writes[..]),
            Content::Fence(by) => (1, by.as_bytes()),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + content.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.push(kind);
        for number in [
            self.stream,
            self.sequence,
            self.run,
            self.first.0,
            self.last.0,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(content);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        bytes.into()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn decode(bytes: &Bytes) -> Result<Self, Damaged> {
        let end = bytes.len().checked_sub(CHECKSUM_BYTES);
        let end = end.filter(|end| *end >= HEAD_BYTES);
        let end = end.ok_or(Damaged("it is too short"))?;
        let (body, checksum) = bytes.split_at(end);
        if crc32fast::hash(body).to_be_bytes() != checksum {
            return Err(Damaged("its checksum is wrong"));
        }
        if !body.starts_with(MAGIC) {
            return Err(Damaged("it is none, or of a newer version"));
        }
        let number = |at: usize| {
            let from = MAGIC.len() + 1 + 8 * at;
            let mut number = [0; 8];
            number.copy_from_slice(&body[from..from + 8]);
            u64::from_be_bytes(number)
        };
        let content = bytes.slice(HEAD_BYTES..end);
        Ok(Self {
            stream: number(0),
            sequence: number(1),
            run: number(2),
            first: Ticket(number(3)),
            last: Ticket(number(4)),
            content: match body[MAGIC.len()] {
                0 => Content::Writes(content),
                1 => Content::Fence(String::from_utf8_lossy(&content).into_owned()),
                _ => return Err(Damaged("it is of an unknown kind")),
            },
        })
    }
}

/// Appends a write.
pub fn put_write(bytes: &mut Vec<u8>, write: &Write<'_>) {
    // Keys and values are far below 4 GiB: the limits of a transaction see to that.
    let length = |part: &[u8]| (part.len() as u32).to_be_bytes();
    bytes.push(write.table as u8);
    bytes.push(u8::from(write.value.is_some()));
    bytes.extend_from_slice(&length(write.key));
    if let Some(value) = write.value {
        bytes.extend_from_slice(&length(value));
    }
    bytes.extend_from_slice(write.key);
    bytes.extend_from_slice(write.value.unwrap_or_default());
}

/// The writes in the content of a segment, in their order.
///
/// # Errors
/// When it breaks off, or names a table that is not known.
pub fn writes(mut content: &[u8]) -> Result<Vec<Write<'_>>, Damaged> {
    fn take<'a>(content: &mut &'a [u8], count: usize) -> Result<&'a [u8], Damaged> {
        let taken = content.split_at_checked(count);
        let (taken, rest) = taken.ok_or(Damaged("a write breaks off"))?;
        *content = rest;
        Ok(taken)
    }
    fn length(content: &mut &[u8]) -> Result<usize, Damaged> {
        let mut number = [0; 4];
        number.copy_from_slice(take(content, 4)?);
        Ok(u32::from_be_bytes(number) as usize)
    }
    let mut writes = Vec::new();
    while !content.is_empty() {
        let head = take(&mut content, 2)?;
        let table = Table::ALL.get(usize::from(head[0]));
        let table = *table.ok_or(Damaged("a write names a table that is not known"))?;
        let key_length = length(&mut content)?;
        let value_length = match head[1] {
            0 => None,
            _ => Some(length(&mut content)?),
        };
        let key = take(&mut content, key_length)?;
        let value = value_length.map(|length| take(&mut content, length));
        writes.push(Write {
            table,
            key,
            value: value.transpose()?,
        });
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(content: Content) -> Segment {
        Segment {
            stream: 1,
            sequence: 7,
            run: 9,
            first: Ticket(3),
            last: Ticket(5),
            content,
        }
    }

    #[test]
    fn segments_come_back_as_they_were_and_damage_is_noticed() {
        let fence = segment(Content::Fence("n2".into()));
        assert_eq!(Segment::decode(&fence.encode()), Ok(fence));
        let mut bytes = Vec::new();
        let put = Write {
            table: Table::State,
            key: b"a\0b\0c",
            value: Some(b""),
        };
        let delete = Write {
            table: Table::Messages,
            key: b"k",
            value: None,
        };
        put_write(&mut bytes, &put);
        put_write(&mut bytes, &delete);
        assert_eq!(writes(&bytes).unwrap(), [put, delete]);
        let whole = segment(Content::Writes(bytes.into()));
        let encoded = whole.encode();
        assert_eq!(Segment::decode(&encoded), Ok(whole));
        for at in 0..encoded.len() {
            let mut damaged = encoded.to_vec();
            damaged[at] ^= 1;
            assert!(Segment::decode(&damaged.into()).is_err(), "byte {at}");
            assert!(Segment::decode(&encoded.slice(..at)).is_err());
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = writes(&bytes);
            let _ = Segment::decode(&bytes.into());
        }
    }
}
