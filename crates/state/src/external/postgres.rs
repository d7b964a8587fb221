//! Sessions in a PostgreSQL database: four tables, and a function that commits (`schema.sql`).

use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::{
    Client, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use fulmar_model::{FunctionName, Group, SessionName, Version};
use rustls_platform_verifier::ConfigVerifierExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Change, ExternalError, Kept, MessageId, Outcome, Ready, Unsent, some_identity};
use crate::record::{IdempotencyRecord, Record};

const SCHEMA: &str = include_str!("schema.sql");
/// The store's identity: what is there, or else this one.
const IDENTITY: &str = "WITH made AS (INSERT INTO fulmar.identity SELECT $1 \
    WHERE NOT EXISTS (SELECT FROM fulmar.identity) RETURNING identity) \
    SELECT identity FROM made UNION ALL SELECT identity FROM fulmar.identity LIMIT 1";
/// Connections at once: one runs one commit at a time.
const CONNECTIONS: usize = 16;
/// Longest wait for a connection, and for an answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// The lock of whoever makes the schema: two at once are in each other's way.
const SCHEMA_LOCK: i64 = 0x6675_6c6d_6172;

pub(super) struct Postgres {
    pool: Pool,
}

impl Postgres {
    pub(super) fn open(url: &str) -> Result<Self, ExternalError> {
        let bad = || ExternalError::Url(url.to_owned());
        crate::objects::choose_ciphers();
        let mut config = Config::from_str(url).map_err(|_| bad())?;
        config
            .connect_timeout(DEADLINE)
            .tcp_user_timeout(DEADLINE)
            .application_name("fulmar");
        let tls = rustls::ClientConfig::with_platform_verifier()
            .map_err(|error| ExternalError::failed("be reached safely", &error))?;
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_config(config, MakeRustlsConnect::new(tls), recycling);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .timeouts(Timeouts {
                wait: Some(DEADLINE),
                create: Some(DEADLINE),
                recycle: Some(DEADLINE),
            })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| ExternalError::failed("be reached", &error))?;
        Ok(Self { pool })
    }

    async fn client(&self) -> Result<Client, ExternalError> {
        let client = self.pool.get().await;
        client.map_err(|error: PoolError| ExternalError::failed("be reached", &error))
    }

    async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ExternalError> {
        let client = self.client().await?;
        let asked = async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, values).await
        };
        match tokio::time::timeout(DEADLINE, asked).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(ExternalError::failed(doing, &error)),
            Err(error) => {
                // Nobody is to wait behind what hangs.
                drop(Client::take(client));
                Err(ExternalError::failed(doing, &error))
            }
        }
    }

    pub(super) async fn prepare(&self) -> Result<Ready, ExternalError> {
        let failed =
            |error: tokio_postgres::Error| ExternalError::failed("make its tables", &error);
        let mut client = self.client().await?;
        let made = async {
            let transaction = client.transaction().await?;
            transaction
                .execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK])
                .await?;
            transaction.batch_execute(SCHEMA).await?;
            let row = transaction.query_one(IDENTITY, &[&some_identity()]).await?;
            transaction.commit().await?;
            Ok(row.get(0))
        };
        let identity = made.await.map_err(failed)?;
        let mut caveats = Vec::new();
        for setting in ["fsync", "synchronous_commit"] {
            let row = client
                .query_one("SELECT current_setting($1)", &[&setting])
                .await
                .map_err(failed)?;
            if row.get::<_, String>(0) == "off" {
                caveats.push(format!(
                    "PostgreSQL has `{setting} = off`, with which it can lose what it has acknowledged; set `{setting} = on`"
                ));
            }
        }
        Ok(Ready { identity, caveats })
    }

    pub(super) async fn load(&self, group: &Group) -> Result<Kept, ExternalError> {
        let rows = self
            .query(
                "read a session",
                "SELECT s.version, t.key, t.value FROM fulmar.sessions s \
                 LEFT JOIN fulmar.state t USING (function, session) \
                 WHERE s.function = $1 AND s.session = $2",
                &[&group.function.as_str(), &group.session.as_str()],
            )
            .await?;
        let mut kept = Kept::default();
        for row in rows {
            kept.version = version(&row, 0);
            let (key, value): (Option<String>, Option<Vec<u8>>) = (row.get(1), row.get(2));
            if let (Some(key), Some(value)) = (key, value) {
                kept.entries.push((key, value.into()));
            }
        }
        Ok(kept)
    }

    pub(super) async fn commit(&self, change: &Change<'_>) -> Result<Outcome, ExternalError> {
        let keys: Vec<&str> = change.writes.iter().map(|(key, _)| &**key).collect();
        let values: Vec<Option<&[u8]>> = change
            .writes
            .iter()
            .map(|(_, value)| value.as_deref())
            .collect();
        let messages: Vec<Vec<u8>> = change.messages.iter().map(Record::encode).collect();
        let (answer_keys, answers, expires) = columns(change.answers);
        let after = change.version_after();
        let rows = self
            .query(
                "commit",
                "SELECT verdict, answer FROM fulmar.commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                &[
                    &change.group.function.as_str(),
                    &change.group.session.as_str(),
                    &as_stored(change.base.0),
                    &as_stored(after.0),
                    &keys,
                    &values,
                    &messages,
                    &answer_keys,
                    &answers,
                    &expires,
                    &as_stored(change.now_unix_ms),
                ],
            )
            .await?;
        let row = rows.first();
        match row.map(|row| (row.get::<_, i32>(0), row.get::<_, Option<&[u8]>>(1))) {
            Some((0, _)) => Ok(Outcome::Committed(after)),
            Some((1, _)) => Ok(Outcome::Conflict),
            Some((_, Some(record))) => Ok(Outcome::Replay(IdempotencyRecord::decode(record)?)),
            _ => Err(ExternalError::Failed {
                doing: "commit",
                reason: "fulmar.commit answered nothing".to_owned(),
            }),
        }
    }

    pub(super) async fn answered(
        &self,
        group: &Group,
        keys: &[&str],
        now_unix_ms: u64,
    ) -> Result<Vec<Option<IdempotencyRecord>>, ExternalError> {
        let rows = self
            .query(
                "read the answers of idempotency keys",
                "SELECT a.record FROM unnest($3::text[]) WITH ORDINALITY AS k (key, place) \
                 LEFT JOIN fulmar.answers a ON a.function = $1 AND a.session = $2 AND a.key = k.key \
                     AND a.expires_unix_ms > $4 \
                 ORDER BY k.place",
                &[
                    &group.function.as_str(),
                    &group.session.as_str(),
                    &keys,
                    &as_stored(now_unix_ms),
                ],
            )
            .await?;
        let record = |row: &Row| {
            let record: Option<&[u8]> = row.get(0);
            Ok(record.map(IdempotencyRecord::decode).transpose()?)
        };
        rows.iter().map(record).collect()
    }

    pub(super) async fn answers(
        &self,
        group: &Group,
        now_unix_ms: u64,
    ) -> Result<Vec<(String, IdempotencyRecord)>, ExternalError> {
        let (function, session) = (group.function.as_str(), group.session.as_str());
        let rows = self
            .query(
                "read the answers of idempotency keys",
                "SELECT key, record FROM fulmar.answers WHERE function = $1 AND session = $2 \
                 AND expires_unix_ms > $3",
                &[&function, &session, &as_stored(now_unix_ms)],
            )
            .await?;
        let answer = |row: &Row| Ok((row.get(0), IdempotencyRecord::decode(row.get(1))?));
        rows.iter().map(answer).collect()
    }

    pub(super) async fn keep_answers(
        &self,
        group: &Group,
        answers: &[(String, IdempotencyRecord)],
        _now_unix_ms: u64,
    ) -> Result<(), ExternalError> {
        let (keys, records, expires) = columns(answers);
        let (function, session) = (group.function.as_str(), group.session.as_str());
        self.query(
            "keep the answers of idempotency keys",
            "INSERT INTO fulmar.answers AS a (function, session, key, record, expires_unix_ms) \
             SELECT $1, $2, k.key, k.record, k.expires FROM unnest($3::text[], $4::bytea[], $5::bigint[]) \
                 AS k (key, record, expires) \
             ON CONFLICT (function, session, key) \
             DO UPDATE SET record = excluded.record, expires_unix_ms = excluded.expires_unix_ms",
            &[&function, &session, &keys, &records, &expires],
        )
        .await
        .map(|_| ())
    }

    pub(super) async fn forget(&self, group: &Group, keys: &[String]) -> Result<(), ExternalError> {
        let (function, session) = (group.function.as_str(), group.session.as_str());
        self.query(
            "forget idempotency keys",
            "DELETE FROM fulmar.answers WHERE function = $1 AND session = $2 AND key = ANY ($3)",
            &[&function, &session, &keys],
        )
        .await
        .map(|_| ())
    }

    pub(super) async fn tidy(&self, now_unix_ms: u64) -> Result<(), ExternalError> {
        self.query(
            "forget what has expired",
            "DELETE FROM fulmar.answers WHERE expires_unix_ms <= $1",
            &[&as_stored(now_unix_ms)],
        )
        .await
        .map(|_| ())
    }

    pub(super) async fn unsent(&self, limit: usize) -> Result<Vec<Group>, ExternalError> {
        let rows = self
            .query(
                "list messages",
                "SELECT DISTINCT function, session FROM fulmar.messages LIMIT $1",
                &[&(limit as i64)],
            )
            .await?;
        let group = |row: &Row| {
            Some(Group {
                function: FunctionName::new(row.get::<_, &str>(0)).ok()?,
                session: SessionName::new(row.get::<_, &str>(1)).ok()?,
            })
        };
        Ok(rows.iter().filter_map(group).collect())
    }

    pub(super) async fn messages(
        &self,
        group: &Group,
    ) -> Result<Vec<(MessageId, Unsent)>, ExternalError> {
        let rows = self
            .query(
                "read messages",
                "SELECT version, index, message FROM fulmar.messages \
                 WHERE function = $1 AND session = $2 ORDER BY version, index",
                &[&group.function.as_str(), &group.session.as_str()],
            )
            .await?;
        let message = |row: &Row| {
            let id = MessageId {
                version: version(row, 0),
                index: row.get::<_, i64>(1) as u32,
            };
            Ok((id, Unsent::decode(row.get(2))?))
        };
        rows.iter().map(message).collect()
    }

    pub(super) async fn taken(
        &self,
        group: &Group,
        ids: &[MessageId],
    ) -> Result<(), ExternalError> {
        let versions: Vec<i64> = ids.iter().map(|id| as_stored(id.version.0)).collect();
        let indexes: Vec<i64> = ids.iter().map(|id| i64::from(id.index)).collect();
        self.query(
            "take messages",
            "DELETE FROM fulmar.messages m USING unnest($3::bigint[], $4::bigint[]) AS i (version, index) \
             WHERE m.function = $1 AND m.session = $2 AND m.version = i.version AND m.index = i.index",
            &[
                &group.function.as_str(),
                &group.session.as_str(),
                &versions,
                &indexes,
            ],
        )
        .await
        .map(|_| ())
    }

    pub(super) async fn sessions(
        &self,
        function: &FunctionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ExternalError> {
        let rows = self
            .query(
                "list sessions",
                "SELECT session FROM fulmar.sessions WHERE function = $1 AND ($2::text IS NULL OR session > $2) \
                 ORDER BY session LIMIT $3",
                &[&function.as_str(), &after, &(limit as i64)],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub(super) async fn remove(&self, group: &Group) -> Result<(), ExternalError> {
        // Its answers go when they expire: a late repetition still gets its own.
        let (function, session) = (group.function.as_str(), group.session.as_str());
        self.query(
            "remove a session",
            "WITH gone AS (DELETE FROM fulmar.sessions WHERE function = $1 AND session = $2), \
                  state AS (DELETE FROM fulmar.state WHERE function = $1 AND session = $2) \
             DELETE FROM fulmar.messages WHERE function = $1 AND session = $2",
            &[&function, &session],
        )
        .await
        .map(|_| ())
    }
}

/// Answers as columns: keys, records, when they expire.
fn columns(answers: &[(String, IdempotencyRecord)]) -> (Vec<&str>, Vec<Vec<u8>>, Vec<i64>) {
    let keys = answers.iter().map(|(key, _)| &**key);
    let records = answers.iter().map(|(_, record)| record);
    (
        keys.collect(),
        records.clone().map(Record::encode).collect(),
        records
            .map(|record| as_stored(record.expires_unix_ms))
            .collect(),
    )
}

/// PostgreSQL has no unsigned numbers; none of ours reaches half of theirs, but for `never`.
fn as_stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn version(row: &Row, column: usize) -> Version {
    Version(row.get::<_, i64>(column) as u64)
}
