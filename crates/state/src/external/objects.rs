//! Sessions in an object store or a folder: one object each, replaced as a whole if it has not changed.
//!
//! | object | holds |
//! |---|---|
//! | `fulmar/sessions/FUNCTION/SESSION.session` | state, messages, and answers to idempotency keys |
//! | `fulmar/unsent/FUNCTION/SESSION.session/VERSION` | nothing: the session may have messages of this version |

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use fulmar_model::{FunctionName, Group, SessionName, Version};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    Change, ExternalError, Kept, MessageId, NAMESPACE, Outcome, Ready, Unsent, some_identity,
};
use crate::objects::{Objects, Tag};
use crate::record::{IdempotencyRecord, Record};

/// Objects that are remembered as they were seen last, so that a commit need not read them again.
const REMEMBERED: usize = 1024;
/// Commits that a session remembers, so that whoever is not told whether one took effect can see it.
const RECENT: usize = 16;
/// Characters of one part of a name: file systems take no more than 255.
const PART: usize = 200;
const SUFFIX: &str = ".session";

/// One session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Session {
    version: u64,
    entries: BTreeMap<String, Vec<u8>>,
    answers: BTreeMap<String, IdempotencyRecord>,
    /// By version and place.
    messages: BTreeMap<(u64, u32), Unsent>,
    /// Random names of the last commits.
    recent: Vec<u64>,
}

impl Record for Session {}

impl Session {
    fn answer(&self, key: &str, now_unix_ms: u64) -> Option<&IdempotencyRecord> {
        let answer = self.answers.get(key);
        answer.filter(|answer| answer.expires_unix_ms > now_unix_ms)
    }
}

/// A session as it was seen last; no tag: it was not there.
type Seen = (Option<Tag>, Arc<Session>);

pub(super) struct Bucket {
    objects: Objects,
    seen: Mutex<HashMap<Group, Seen>>,
}

impl Bucket {
    pub(super) fn open(
        url: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Self, ExternalError> {
        let objects = Objects::open(url, options);
        Ok(Self {
            objects: objects.map_err(|_| ExternalError::Url(url.to_owned()))?,
            seen: Mutex::default(),
        })
    }

    pub(super) async fn prepare(&self) -> Result<Ready, ExternalError> {
        // Two writers with the same tag: only one may come through.
        let name = format!("{NAMESPACE}/probe-{:016x}", fastrand::u64(..));
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        self.objects.replace(&name, None, text("first")).await?;
        let tag = self.objects.get_tagged(&name).await?.map(|(tag, _)| tag);
        let second = self.objects.replace(&name, tag.as_ref(), text("second"));
        let second = second.await?;
        let third = self.objects.replace(&name, tag.as_ref(), text("third"));
        let third = third.await?;
        self.objects.delete(&name).await?;
        if second.is_none() || third.is_some() {
            return Err(ExternalError::Failed {
                doing: "be relied on",
                reason: "it does not check `If-Match` when an object is replaced".to_owned(),
            });
        }
        let name = format!("{NAMESPACE}/identity");
        let ours = Bytes::from(some_identity());
        self.objects.create(&name, ours).await?;
        let found = self.objects.get(&name).await?.unwrap_or_default();
        Ok(Ready {
            identity: String::from_utf8_lossy(&found).into_owned(),
            caveats: Vec::new(),
        })
    }

    async fn see(&self, group: &Group) -> Result<Seen, ExternalError> {
        let found = self.objects.get_tagged(&name(group)).await?;
        let seen = match found {
            None => (None, Arc::default()),
            Some((tag, bytes)) => (Some(tag), Arc::new(Session::decode(&bytes)?)),
        };
        self.remember(group, seen.clone());
        Ok(seen)
    }

    fn remember(&self, group: &Group, seen: Seen) {
        let mut remembered = self.seen.lock();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(group.clone(), seen);
    }

    async fn remembered(&self, group: &Group) -> Result<Seen, ExternalError> {
        let seen = self.seen.lock().get(group).cloned();
        match seen {
            Some(seen) => Ok(seen),
            None => self.see(group).await,
        }
    }

    /// Writes a session that was seen so; false if it has changed since.
    async fn replace(
        &self,
        group: &Group,
        tag: Option<&Tag>,
        session: Session,
    ) -> Result<bool, ExternalError> {
        let bytes = Bytes::from(session.encode());
        let replaced = self.objects.replace(&name(group), tag, bytes).await;
        let Ok(Some(tag)) = replaced else {
            self.seen.lock().remove(group);
            return Ok(replaced.map(|_| false)?);
        };
        self.remember(group, (Some(tag), Arc::new(session)));
        Ok(true)
    }

    /// Changes a session until nobody comes in between; none: nothing is to change.
    async fn update(
        &self,
        group: &Group,
        change: impl Fn(&Session) -> Option<Session>,
    ) -> Result<(), ExternalError> {
        loop {
            let (tag, session) = self.see(group).await?;
            let Some(changed) = change(&session) else {
                return Ok(());
            };
            if self.replace(group, tag.as_ref(), changed).await? {
                return Ok(());
            }
        }
    }

    pub(super) async fn load(&self, group: &Group) -> Result<Kept, ExternalError> {
        let (_, session) = self.see(group).await?;
        let entries = session.entries.iter();
        Ok(Kept {
            version: Version(session.version),
            entries: entries
                .map(|(key, value)| (key.clone(), Bytes::copy_from_slice(value)))
                .collect(),
            closed: None,
        })
    }

    pub(super) async fn commit(&self, change: &Change<'_>) -> Result<Outcome, ExternalError> {
        let (group, now) = (change.group, change.now_unix_ms);
        let is_silent = !change.makes_a_version() && change.answers.is_empty();
        let (tag, session) = match is_silent {
            // It only wants to know whether what it has seen still holds.
            true => self.see(group).await?,
            false => self.remembered(group).await?,
        };
        let mut keys = change.answers.iter().map(|(key, _)| key);
        let answered = keys.find_map(|key| session.answer(key, now));
        if let Some(answer) = answered {
            return Ok(Outcome::Replay(answer.clone()));
        }
        if session.version != change.base.0 {
            self.seen.lock().remove(group);
            return Ok(Outcome::Conflict);
        }
        if is_silent {
            return Ok(Outcome::Committed(change.base));
        }
        let mut changed = Session::clone(&session);
        changed.version = change.version_after().0;
        for (key, value) in change.writes {
            match value {
                Some(value) => changed.entries.insert(key.clone(), value.to_vec()),
                None => changed.entries.remove(key),
            };
        }
        for (index, message) in change.messages.iter().enumerate() {
            let id = (change.next.0, index as u32);
            changed.messages.insert(id, message.clone());
        }
        changed
            .answers
            .retain(|_, answer| answer.expires_unix_ms > now);
        changed.answers.extend(change.answers.iter().cloned());
        let commit = fastrand::u64(..);
        changed.recent.push(commit);
        let surplus = changed.recent.len().saturating_sub(RECENT);
        changed.recent.drain(..surplus);
        if !change.messages.is_empty() {
            // First, so that messages are found whatever becomes of this node.
            let marker = marker(group, change.next);
            self.objects.put(&marker, Bytes::new()).await?;
        }
        if self.replace(group, tag.as_ref(), changed).await? {
            return Ok(Outcome::Committed(change.version_after()));
        }
        // A request that was sent again on the way is refused because it came through the first time.
        let (_, session) = self.see(group).await?;
        match session.recent.contains(&commit) {
            true => Ok(Outcome::Committed(change.version_after())),
            false => Ok(Outcome::Conflict),
        }
    }

    pub(super) async fn answered(
        &self,
        group: &Group,
        keys: &[&str],
        now_unix_ms: u64,
    ) -> Result<Vec<Option<IdempotencyRecord>>, ExternalError> {
        let (_, session) = self.see(group).await?;
        let answer = |key: &&str| session.answer(key, now_unix_ms).cloned();
        Ok(keys.iter().map(answer).collect())
    }

    pub(super) async fn answers(
        &self,
        group: &Group,
        now_unix_ms: u64,
    ) -> Result<Vec<(String, IdempotencyRecord)>, ExternalError> {
        let (_, session) = self.see(group).await?;
        let answers = session.answers.iter();
        Ok(answers
            .filter(|(_, answer)| answer.expires_unix_ms > now_unix_ms)
            .map(|(key, answer)| (key.clone(), answer.clone()))
            .collect())
    }

    pub(super) async fn keep_answers(
        &self,
        group: &Group,
        answers: &[(String, IdempotencyRecord)],
        now_unix_ms: u64,
    ) -> Result<(), ExternalError> {
        self.update(group, |session| {
            let mut changed = session.clone();
            changed
                .answers
                .retain(|_, answer| answer.expires_unix_ms > now_unix_ms);
            changed.answers.extend(answers.iter().cloned());
            Some(changed)
        })
        .await
    }

    pub(super) async fn forget(&self, group: &Group, keys: &[String]) -> Result<(), ExternalError> {
        self.update(group, |session| {
            let mut changed = session.clone();
            for key in keys {
                changed.answers.remove(key);
            }
            (changed.answers.len() < session.answers.len()).then_some(changed)
        })
        .await
    }

    pub(super) async fn unsent(&self, limit: usize) -> Result<Vec<Group>, ExternalError> {
        let below = format!("{NAMESPACE}/unsent");
        let names = self.objects.list(&below, limit).await?;
        let mut groups: Vec<Group> = names
            .iter()
            .filter_map(|name| parse(name.rsplit_once('/')?.0))
            .collect();
        groups.dedup();
        Ok(groups)
    }

    pub(super) async fn messages(
        &self,
        group: &Group,
    ) -> Result<Vec<(MessageId, Unsent)>, ExternalError> {
        let (_, session) = self.see(group).await?;
        let messages = session.messages.iter();
        Ok(messages
            .map(|(&(version, index), message)| {
                let version = Version(version);
                (MessageId { version, index }, message.clone())
            })
            .collect())
    }

    pub(super) async fn taken(
        &self,
        group: &Group,
        ids: &[MessageId],
    ) -> Result<(), ExternalError> {
        self.update(group, |session| {
            let mut changed = session.clone();
            for id in ids {
                changed.messages.remove(&(id.version.0, id.index));
            }
            (changed.messages.len() < session.messages.len()).then_some(changed)
        })
        .await?;
        // Not of later versions: another commit may just be putting its own.
        let (_, session) = self.see(group).await?;
        let markers = format!("{NAMESPACE}/unsent/{}", below(group));
        for name in self.objects.list(&markers, usize::MAX).await? {
            let version = u64::from_str_radix(&name, 16).unwrap_or(u64::MAX);
            let has_messages = session.messages.range((version, 0)..=(version, u32::MAX));
            if version <= session.version && has_messages.count() == 0 {
                self.objects.delete(&format!("{markers}/{name}")).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn sessions(
        &self,
        function: &FunctionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ExternalError> {
        let below = format!("{NAMESPACE}/sessions/{function}");
        let names = self.objects.list(&below, usize::MAX).await?;
        let mut groups: Vec<Group> = names
            .iter()
            .filter_map(|name| parse(&format!("{function}/{name}")))
            .filter(|group| after.is_none_or(|after| group.session.as_str() > after))
            .collect();
        groups.sort_by(|a, b| a.session.as_str().cmp(b.session.as_str()));
        let mut sessions = Vec::new();
        for group in groups {
            if sessions.len() == limit {
                break;
            }
            let (_, session) = self.see(&group).await?;
            if session.version > 0 {
                sessions.push(group.session.to_string());
            }
        }
        Ok(sessions)
    }

    pub(super) async fn remove(&self, group: &Group) -> Result<(), ExternalError> {
        // The object stays while it has answers, so that a late repetition still gets its own.
        self.update(group, |session| {
            (session.version > 0).then(|| Session {
                answers: session.answers.clone(),
                recent: session.recent.clone(),
                ..Session::default()
            })
        })
        .await
    }
}

fn name(group: &Group) -> String {
    format!("{NAMESPACE}/sessions/{}", below(group))
}

fn marker(group: &Group, version: Version) -> String {
    format!("{NAMESPACE}/unsent/{}/{:016x}", below(group), version.0)
}

/// A session's name in the store: letters, digits, `.`, `_` and `-` stand for themselves, `=` and two digits for any
/// other byte, and long names are cut into parts.
fn below(group: &Group) -> String {
    let mut parts = format!("{}/", group.function);
    let mut length = 0;
    for &byte in group.session.as_str().as_bytes() {
        if length >= PART {
            parts.push('/');
            length = 0;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            parts.push(char::from(byte));
            length += 1;
        } else {
            parts.push_str(&format!("={byte:02x}"));
            length += 3;
        }
    }
    parts + SUFFIX
}

fn parse(below: &str) -> Option<Group> {
    let (function, encoded) = below.strip_suffix(SUFFIX)?.split_once('/')?;
    let mut session = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'/' => {}
            b'=' => {
                let (digits, after) = rest.split_at_checked(2)?;
                session.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = after;
            }
            byte => session.push(byte),
        }
    }
    Some(Group {
        function: FunctionName::new(function).ok()?,
        session: SessionName::new(std::str::from_utf8(&session).ok()?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_session_has_a_name_of_its_own(session in "[^\\x00-\\x1f\\x7f]{1,120}") {
            let Ok(session) = SessionName::new(&session) else { return Ok(()) };
            let group = Group { function: FunctionName::new("f").unwrap(), session };
            prop_assert!(below(&group).split('/').all(|part| part.len() < 255));
            prop_assert_eq!(parse(&below(&group)), Some(group));
        }
    }
}
