//! Sessions in Redis, or whatever speaks its protocol and runs its scripts.
//!
//! | key | holds |
//! |---|---|
//! | `fulmar:s:FUNCTION/SESSION` | a hash: `v` the version, `kKEY` a value, `mVERSION.INDEX` a message |
//! | `fulmar:i:FUNCTION/SESSION` + 0 + KEY | the record of an idempotency key, which Redis lets expire |
//! | `fulmar:a:FUNCTION/SESSION` | a sorted set: those keys, by when they expire; goes with the last of them |
//! | `fulmar:f:FUNCTION` | a sorted set: names of the function's sessions |
//! | `fulmar:unsent` | a set: sessions with messages |
//! | `fulmar:identity` | what tells this store from others |
//!
//! A commit is one script, which Redis runs alone. The keys of one session are not in one slot of a Redis Cluster.

use bytes::Bytes;
use fulmar_model::{FunctionName, Group, SessionName, Version};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, RedisError, Script};
use std::time::Duration;
use tokio::sync::OnceCell;

use super::{
    Change, ExternalError, Kept, MessageId, NAMESPACE, Outcome, Ready, Unsent, some_identity,
};
use crate::record::{IdempotencyRecord, Record};

/// Longest wait for a connection, and for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Answers that go in one command.
const ANSWERS_AT_ONCE: usize = 256;
/// Pauses between attempts to connect do not grow longer than this.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Begins the scripts that write what the next function gets.
const REMEMBER: &str = r"
local function remember(known, key, record_key, record, expires)
    if expires == '0' then
        redis.call('SET', record_key, record)
        redis.call('ZADD', known, '+inf', key)
    else
        redis.call('SET', record_key, record, 'PXAT', expires)
        redis.call('ZADD', known, expires, key)
    end
end

local function tidy(known, now)
    redis.call('ZREMRANGEBYSCORE', known, '-inf', now)
    local last = redis.call('ZREVRANGE', known, 0, 0, 'WITHSCORES')[2]
    if last == 'inf' then
        redis.call('PERSIST', known)
    elseif last then
        redis.call('PEXPIREAT', known, last)
    end
end
";

/// KEYS: keys of the session's records, then records. ARGV: now, then key, record and when it expires of each.
const KEEP: &str = r"
for n = 2, #KEYS do
    local at = 3 * n - 4
    remember(KEYS[1], ARGV[at], KEYS[n], ARGV[at + 1], ARGV[at + 2])
end
tidy(KEYS[1], ARGV[1])
return 0
";

/// KEYS: session, unsent, sessions of the function, keys of the session's records, then records.
/// ARGV: base, version after, name of the session, its group, now, count of writes, then field and value (or only the
/// field of a deletion, after a flag), count of messages, then field and message, then key, record and when it expires of
/// each.
/// Answers 0 (committed), 1 (conflict), or a record that was there.
const COMMIT: &str = r"
for n = 5, #KEYS do
    local answered = redis.call('GET', KEYS[n])
    if answered then return answered end
end
if (redis.call('HGET', KEYS[1], 'v') or '0') ~= ARGV[1] then return 1 end
if ARGV[2] ~= ARGV[1] then
    redis.call('HSET', KEYS[1], 'v', ARGV[2])
    if ARGV[1] == '0' then redis.call('ZADD', KEYS[3], 0, ARGV[3]) end
end
local at = 7
for _ = 1, tonumber(ARGV[6]) do
    if ARGV[at] == '1' then
        redis.call('HSET', KEYS[1], ARGV[at + 1], ARGV[at + 2])
        at = at + 3
    else
        redis.call('HDEL', KEYS[1], ARGV[at + 1])
        at = at + 2
    end
end
local messages = tonumber(ARGV[at])
at = at + 1
for _ = 1, messages do
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
    at = at + 2
end
if messages > 0 then redis.call('SADD', KEYS[2], ARGV[4]) end
for n = 5, #KEYS do
    remember(KEYS[4], ARGV[at], KEYS[n], ARGV[at + 1], ARGV[at + 2])
    at = at + 3
end
if #KEYS > 4 then tidy(KEYS[4], ARGV[5]) end
return 0
";

/// KEYS: session, unsent. ARGV: the session's group, then fields of messages.
const TAKEN: &str = r"
for at = 2, #ARGV do redis.call('HDEL', KEYS[1], ARGV[at]) end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 1) == 'm' then return 0 end
end
redis.call('SREM', KEYS[2], ARGV[1])
return 0
";

pub(super) struct Redis {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    commit: Script,
    keep: Script,
    taken: Script,
}

fn session_key(group: &Group) -> String {
    format!("{NAMESPACE}:s:{group}")
}

fn idempotency_key(group: &Group, key: &str) -> String {
    format!("{NAMESPACE}:i:{group}\0{key}")
}

fn known_key(group: &Group) -> String {
    format!("{NAMESPACE}:a:{group}")
}

/// When a record expires, as scripts have it: 0 for never, since Redis knows no later time than this.
fn expiry(record: &IdempotencyRecord) -> u64 {
    match record.expires_unix_ms {
        expires if expires > i64::MAX as u64 => 0,
        expires => expires,
    }
}

fn sessions_key(function: &FunctionName) -> String {
    format!("{NAMESPACE}:f:{function}")
}

fn unsent_key() -> String {
    format!("{NAMESPACE}:unsent")
}

fn failed(doing: &'static str) -> impl Fn(RedisError) -> ExternalError {
    move |error| ExternalError::failed(doing, &error)
}

impl Redis {
    pub(super) fn open(url: &str) -> Result<Self, ExternalError> {
        crate::objects::choose_ciphers();
        let client = Client::open(url).map_err(|_| ExternalError::Url(url.to_owned()))?;
        Ok(Self {
            client,
            connection: OnceCell::new(),
            commit: Script::new(&[REMEMBER, COMMIT].concat()),
            keep: Script::new(&[REMEMBER, KEEP].concat()),
            taken: Script::new(TAKEN),
        })
    }

    /// The connection: one for all, made again when it breaks.
    async fn connection(&self) -> Result<ConnectionManager, ExternalError> {
        let connect = async || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(DEADLINE))
                .set_response_timeout(Some(DEADLINE))
                .set_max_delay(MAX_PAUSE)
                .set_number_of_retries(1);
            ConnectionManager::new_with_config(self.client.clone(), config).await
        };
        let connection = self.connection.get_or_try_init(connect).await;
        connection.cloned().map_err(failed("be reached"))
    }

    pub(super) async fn prepare(&self) -> Result<Ready, ExternalError> {
        let mut connection = self.connection().await?;
        let persistence: String = redis::cmd("INFO")
            .arg("persistence")
            .query_async(&mut connection)
            .await
            .map_err(failed("be asked what it is"))?;
        let mut caveats = Vec::new();
        if !persistence.contains("aof_enabled:1") {
            caveats.push(
                "Redis keeps no append-only file: what it has acknowledged is lost when it dies; set `appendonly yes` and `appendfsync always`"
                    .to_owned(),
            );
        }
        // Managed servers do not tell, which is no answer either way.
        for (setting, wanted) in [
            ("appendfsync", "always"),
            ("maxmemory-policy", "noeviction"),
        ] {
            let found: Result<Vec<String>, _> = redis::cmd("CONFIG")
                .arg("GET")
                .arg(setting)
                .query_async(&mut connection)
                .await;
            match found.as_deref() {
                Ok([_, value]) if value != wanted => caveats.push(format!(
                    "Redis has `{setting} {value}`, with which it can lose what it has acknowledged; set `{setting} {wanted}`"
                )),
                _ => {}
            }
        }
        let identity = format!("{NAMESPACE}:identity");
        let (identity,): (String,) = redis::pipe()
            .set_nx(&identity, some_identity())
            .ignore()
            .get(&identity)
            .query_async(&mut connection)
            .await
            .map_err(failed("be asked who it is"))?;
        Ok(Ready { identity, caveats })
    }

    pub(super) async fn load(&self, group: &Group) -> Result<Kept, ExternalError> {
        let mut connection = self.connection().await?;
        let fields: Vec<(Vec<u8>, Vec<u8>)> = connection
            .hgetall(session_key(group))
            .await
            .map_err(failed("read a session"))?;
        let mut kept = Kept::default();
        for (field, value) in fields {
            match field.split_first() {
                Some((b'v', [])) => kept.version = Version(number(&value)?),
                Some((b'k', key)) => kept.entries.push((text(key)?, Bytes::from(value))),
                _ => {}
            }
        }
        Ok(kept)
    }

    pub(super) async fn commit(&self, change: &Change<'_>) -> Result<Outcome, ExternalError> {
        let Change { group, base, .. } = change;
        let mut call = self.commit.prepare_invoke();
        call.key(session_key(group))
            .key(unsent_key())
            .key(sessions_key(&group.function))
            .key(known_key(group));
        for (key, _) in change.answers {
            call.key(idempotency_key(group, key));
        }
        call.arg(base.0)
            .arg(change.version_after().0)
            .arg(group.session.as_str())
            .arg(group.to_string())
            .arg(change.now_unix_ms)
            .arg(change.writes.len());
        for (key, value) in change.writes {
            let field = [b"k", key.as_bytes()].concat();
            match value {
                Some(value) => call.arg(1).arg(field).arg(&value[..]),
                None => call.arg(0).arg(field),
            };
        }
        call.arg(change.messages.len());
        for (index, message) in change.messages.iter().enumerate() {
            let id = MessageId {
                version: change.next,
                index: index as u32,
            };
            call.arg(message_field(id)).arg(message.encode());
        }
        for (key, record) in change.answers {
            call.arg(key).arg(record.encode()).arg(expiry(record));
        }
        let mut connection = self.connection().await?;
        let answer: redis::Value = call
            .invoke_async(&mut connection)
            .await
            .map_err(failed("commit"))?;
        match answer {
            redis::Value::Int(0) => Ok(Outcome::Committed(change.version_after())),
            redis::Value::Int(_) => Ok(Outcome::Conflict),
            redis::Value::BulkString(record) => {
                Ok(Outcome::Replay(IdempotencyRecord::decode(&record)?))
            }
            other => Err(ExternalError::Failed {
                doing: "commit",
                reason: format!("it answered {other:?}"),
            }),
        }
    }

    pub(super) async fn answered(
        &self,
        group: &Group,
        keys: &[&str],
        _now_unix_ms: u64,
    ) -> Result<Vec<Option<IdempotencyRecord>>, ExternalError> {
        let mut connection = self.connection().await?;
        self.records(&mut connection, group, keys).await
    }

    /// The records of keys, in their order; there has to be one key.
    async fn records(
        &self,
        connection: &mut ConnectionManager,
        group: &Group,
        keys: &[impl AsRef<str>],
    ) -> Result<Vec<Option<IdempotencyRecord>>, ExternalError> {
        let names = keys.iter().map(|key| idempotency_key(group, key.as_ref()));
        let found: Vec<Option<Vec<u8>>> = redis::cmd("MGET")
            .arg(names.collect::<Vec<_>>())
            .query_async(connection)
            .await
            .map_err(failed("read the answers of idempotency keys"))?;
        let record = |found: Option<Vec<u8>>| {
            let found = found.map(|found| IdempotencyRecord::decode(&found));
            Ok(found.transpose()?)
        };
        found.into_iter().map(record).collect()
    }

    pub(super) async fn answers(
        &self,
        group: &Group,
        now_unix_ms: u64,
    ) -> Result<Vec<(String, IdempotencyRecord)>, ExternalError> {
        let mut connection = self.connection().await?;
        let keys: Vec<String> = connection
            .zrangebyscore(known_key(group), format!("({now_unix_ms}"), "+inf")
            .await
            .map_err(failed("read the answers of idempotency keys"))?;
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(ANSWERS_AT_ONCE) {
            let found = self.records(&mut connection, group, keys).await?;
            let found = keys.iter().zip(found);
            answers.extend(found.filter_map(|(key, record)| Some((key.clone(), record?))));
        }
        Ok(answers)
    }

    pub(super) async fn keep_answers(
        &self,
        group: &Group,
        answers: &[(String, IdempotencyRecord)],
        now_unix_ms: u64,
    ) -> Result<(), ExternalError> {
        let mut connection = self.connection().await?;
        for answers in answers.chunks(ANSWERS_AT_ONCE) {
            let mut call = self.keep.prepare_invoke();
            call.key(known_key(group)).arg(now_unix_ms);
            for (key, record) in answers {
                call.key(idempotency_key(group, key))
                    .arg(key)
                    .arg(record.encode())
                    .arg(expiry(record));
            }
            let kept: Result<(), RedisError> = call.invoke_async(&mut connection).await;
            kept.map_err(failed("keep the answers of idempotency keys"))?;
        }
        Ok(())
    }

    pub(super) async fn forget(&self, group: &Group, keys: &[String]) -> Result<(), ExternalError> {
        let mut connection = self.connection().await?;
        let records: Vec<String> = keys.iter().map(|key| idempotency_key(group, key)).collect();
        let gone = redis::pipe()
            .del(records)
            .ignore()
            .zrem(known_key(group), keys)
            .ignore()
            .query_async(&mut connection)
            .await;
        gone.map_err(failed("forget idempotency keys"))
    }

    pub(super) async fn unsent(&self, limit: usize) -> Result<Vec<Group>, ExternalError> {
        let mut connection = self.connection().await?;
        let members: Vec<String> = redis::cmd("SRANDMEMBER")
            .arg(unsent_key())
            .arg(limit)
            .query_async(&mut connection)
            .await
            .map_err(failed("list messages"))?;
        let group = |member: &String| {
            let (function, session) = member.split_once('/')?;
            Some(Group {
                function: FunctionName::new(function).ok()?,
                session: SessionName::new(session).ok()?,
            })
        };
        Ok(members.iter().filter_map(group).collect())
    }

    pub(super) async fn messages(
        &self,
        group: &Group,
    ) -> Result<Vec<(MessageId, Unsent)>, ExternalError> {
        let mut connection = self.connection().await?;
        let fields: Vec<(Vec<u8>, Vec<u8>)> = connection
            .hgetall(session_key(group))
            .await
            .map_err(failed("read messages"))?;
        let mut messages = Vec::new();
        for (field, value) in fields {
            if let Some((b'm', id)) = field.split_first() {
                messages.push((message_id(id)?, Unsent::decode(&value)?));
            }
        }
        messages.sort_by_key(|(id, _)| *id);
        Ok(messages)
    }

    pub(super) async fn taken(
        &self,
        group: &Group,
        ids: &[MessageId],
    ) -> Result<(), ExternalError> {
        let mut call = self.taken.prepare_invoke();
        call.key(session_key(group))
            .key(unsent_key())
            .arg(group.to_string());
        for id in ids {
            call.arg(message_field(*id));
        }
        let mut connection = self.connection().await?;
        let taken = call.invoke_async(&mut connection).await;
        taken.map_err(failed("take messages"))
    }

    pub(super) async fn sessions(
        &self,
        function: &FunctionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ExternalError> {
        let mut connection = self.connection().await?;
        let from = after.map_or("-".to_owned(), |after| format!("({after}"));
        connection
            .zrangebylex_limit(sessions_key(function), from, "+", 0, limit as isize)
            .await
            .map_err(failed("list sessions"))
    }

    pub(super) async fn remove(&self, group: &Group) -> Result<(), ExternalError> {
        let mut connection = self.connection().await?;
        // Its idempotency records go when they expire: a late repetition still gets its answer.
        redis::pipe()
            .atomic()
            .del(session_key(group))
            .srem(unsent_key(), group.to_string())
            .zrem(sessions_key(&group.function), group.session.as_str())
            .query_async(&mut connection)
            .await
            .map_err(failed("remove a session"))
    }
}

fn message_field(id: MessageId) -> String {
    format!("m{}.{}", id.version.0, id.index)
}

fn message_id(field: &[u8]) -> Result<MessageId, ExternalError> {
    let field = text(field)?;
    let (version, index) = field.split_once('.').unwrap_or_default();
    Ok(MessageId {
        version: Version(number(version.as_bytes())?),
        index: number(index.as_bytes())? as u32,
    })
}

fn text(bytes: &[u8]) -> Result<String, ExternalError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|error| ExternalError::failed("be understood", &error))
}

fn number(bytes: &[u8]) -> Result<u64, ExternalError> {
    let number = text(bytes)?.parse();
    number.map_err(|error: std::num::ParseIntError| ExternalError::failed("be understood", &error))
}
