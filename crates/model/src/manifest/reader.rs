//! From the tree of a TOML file to a [`Manifest`], collecting everything that is wrong on the way.

mod granted;
mod values;

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ManifestError, ManifestIssue, issue};
use super::schema::{self, Field};
use super::suggest::nearest;
use super::{Durability, ExecutionModel, Manifest, Runtime, limits};
use crate::units::CpuAmount;

type Node<'i> = Spanned<DeValue<'i>>;

pub(super) fn read(text: &str, file_name: &str) -> Result<Manifest, ManifestError> {
    let mut reader = Reader {
        text,
        issues: Vec::new(),
    };
    let manifest = reader.manifest();
    match manifest {
        Some(manifest) if reader.issues.is_empty() => Ok(manifest),
        _ => Err(ManifestError::new(file_name, reader.issues)),
    }
}

/// A table of the manifest that has been looked up; `None` when the file leaves it out.
struct Section<'t, 'i> {
    table: Option<&'t DeTable<'i>>,
}

impl<'t, 'i> Section<'t, 'i> {
    fn get(&self, key: &str) -> Option<&'t Node<'i>> {
        self.table?.get(key)
    }
}

struct Reader<'a> {
    text: &'a str,
    issues: Vec<ManifestIssue>,
}

impl Reader<'_> {
    fn manifest(&mut self) -> Option<Manifest> {
        if self.text.len() > limits::MAX_MANIFEST_BYTES {
            let found = format!("the file has {} bytes", self.text.len());
            let allowed = format!("at most {} are allowed", limits::MAX_MANIFEST_BYTES);
            self.report(
                0..0,
                found,
                allowed,
                "move large values out of the manifest",
            );
            return None;
        }
        let root = match DeTable::parse(self.text) {
            Ok(root) => root,
            Err(error) => {
                let found = format!("not TOML: {}", error.message());
                let span = error.span().unwrap_or(0..0);
                self.report(
                    span,
                    found,
                    "",
                    "see https://toml.io for the form of the file",
                );
                return None;
            }
        };
        let root = root.get_ref();
        self.check_keys("", root);
        let top = Section { table: Some(root) };

        let name = self.name(&top);
        let artifact = self.artifact(&top);
        let mut manifest = Manifest::for_artifact(name?);
        manifest.artifact = artifact?;
        if let Some(word) = self.choice(&top, &schema::DURABILITY) {
            manifest.durability = Durability::parse(word).unwrap_or_default();
        }
        self.on_partition(&top, &mut manifest.on_partition);
        if let Some(word) = self.choice(&top, &schema::EXECUTION_MODEL) {
            manifest.execution_model = ExecutionModel::parse(word).unwrap_or_default();
        }
        self.flag(&top, &schema::ANTI_ROLLBACK, &mut manifest.anti_rollback);
        manifest.read_only_methods = self.methods(&top);

        let process = self.section(root, "process");
        manifest.process.command = self.command(&process);
        self.runtime(&top, &mut manifest);

        let limits = self.section(root, "limits");
        self.size(&limits, &schema::MEMORY, &mut manifest.limits.memory);
        self.time(&limits, &schema::TIMEOUT, &mut manifest.limits.timeout);
        self.count(&limits, &schema::ATTEMPTS, &mut manifest.limits.attempts);
        self.size(
            &limits,
            &schema::MAX_REQUEST,
            &mut manifest.limits.max_request,
        );
        self.size(
            &limits,
            &schema::MAX_RESPONSE,
            &mut manifest.limits.max_response,
        );

        let workers = self.section(root, "workers");
        self.count(&workers, &schema::WORKERS_MIN, &mut manifest.workers.min);
        self.count(&workers, &schema::WORKERS_MAX, &mut manifest.workers.max);
        let (min, max) = (manifest.workers.min, manifest.workers.max);
        if min > max {
            let node = workers.get("min").or(workers.get("max"));
            self.report(
                node.map_or(0..0, Spanned::span),
                format!("min is {min}, more than max, which is {max}"),
                "min can be at most max",
                "lower min or raise max",
            );
        }
        self.time(&workers, &schema::IDLE_TTL, &mut manifest.workers.idle_ttl);
        let reserved = &mut manifest.workers.reserved_cpu;
        self.cpu(&workers, &schema::RESERVED_CPU, reserved);
        let weight = &mut manifest.workers.cpu_weight;
        self.count(&workers, &schema::CPU_WEIGHT, weight);

        let queue = self.section(root, "queue");
        self.count(&queue, &schema::QUEUE_MAX, &mut manifest.queue.max);
        self.time(
            &queue,
            &schema::QUEUE_MAX_WAIT,
            &mut manifest.queue.max_wait,
        );

        let batch = self.section(root, "batch");
        self.count(&batch, &schema::BATCH_MAX, &mut manifest.batch.max);
        let wait = &mut manifest.batch.max_wait;
        self.time(&batch, &schema::BATCH_MAX_WAIT, wait);

        let messages = self.section(root, "messages");
        let retry = &mut manifest.messages;
        self.count(&messages, &schema::MAX_ATTEMPTS, &mut retry.max_attempts);
        self.time(
            &messages,
            &schema::BACKOFF_INITIAL,
            &mut retry.backoff_initial,
        );
        self.time(&messages, &schema::BACKOFF_MAX, &mut retry.backoff_max);
        if retry.backoff_initial > retry.backoff_max {
            let (initial, max) = (retry.backoff_initial, retry.backoff_max);
            let node = messages
                .get("backoff_initial")
                .or(messages.get("backoff_max"));
            self.report(
                node.map_or(0..0, Spanned::span),
                format!("backoff_initial is {initial}, more than backoff_max, which is {max}"),
                "backoff_initial can be at most backoff_max",
                "lower backoff_initial or raise backoff_max",
            );
        }

        let idempotency = self.section(root, "idempotency");
        self.time(
            &idempotency,
            &schema::RETENTION,
            &mut manifest.idempotency.retention,
        );

        let slo = self.section(root, "slo");
        self.time(&slo, &schema::SLO_RESPONSE, &mut manifest.slo.max_response);
        self.time(&slo, &schema::SLO_DATA, &mut manifest.slo.max_data_access);
        let penalty = &mut manifest.slo.penalty_per_second;
        self.count(&slo, &schema::SLO_PENALTY, penalty);
        self.flag(
            &slo,
            &schema::SLO_BEST_EFFORT,
            &mut manifest.slo.best_effort,
        );

        manifest.env = self.entries(root, &schema::ENV, env_name_fault);
        manifest.config = self.entries(root, &schema::CONFIG, config_key_fault);
        manifest.grants = self.grants(root);
        self.check_kind(root, &manifest);
        Some(manifest)
    }

    /// What workers are, as it is said or as the command tells.
    fn runtime(&mut self, top: &Section<'_, '_>, manifest: &mut Manifest) {
        let has_command = !manifest.process.command.is_empty();
        let Some(word) = self.choice(top, &schema::RUNTIME) else {
            if has_command {
                manifest.runtime = Runtime::Process;
            }
            return;
        };
        manifest.runtime = Runtime::parse(word).unwrap_or_default();
        let span = top.get("runtime").map_or(0..0, Spanned::span);
        match manifest.runtime {
            Runtime::Wasm if has_command => self.report(
                span,
                "a component has a command",
                "`process.command` is for programs and containers",
                "remove [process], or write runtime = \"process\"",
            ),
            Runtime::Process if !has_command => self.report(
                span,
                "there is no `process.command`",
                "a program needs one",
                "add [process] with a line such as command = [\"python3\", \"main.py\"]",
            ),
            _ => {}
        }
    }

    /// What is granted has to suit the kind of function.
    fn check_kind(&mut self, root: &DeTable<'_>, manifest: &Manifest) {
        let (grants, span) = (
            &manifest.grants,
            root.get("grants").map_or(0..0, Spanned::span),
        );
        let elsewhere = grants.files.iter().find(|file| file.host != file.guest);
        match manifest.is_program() {
            true if !grants.http.is_empty() => self.report(
                span.clone(),
                "a program is granted hosts",
                "programs are granted the whole network or none of it",
                "write network = true instead of http",
            ),
            false if grants.network => self.report(
                span.clone(),
                "a component is granted the network",
                "components are granted hosts",
                "list the hosts in grants.http instead",
            ),
            _ => {}
        }
        let workers = root.get("workers").map_or(0..0, Spanned::span);
        if !manifest.is_program() && manifest.workers.reserved_cpu > CpuAmount::default() {
            self.report(
                workers.clone(),
                "CPU is reserved for a component",
                "instances of components share the CPU of their node",
                "remove reserved_cpu",
            );
        }
        if !manifest.is_program() && manifest.workers.min > 0 {
            self.report(
                workers,
                "workers of a component are to be always there",
                "instances of components start in microseconds",
                "remove min",
            );
        }
        if let Some(file) = elsewhere.filter(|_| manifest.runtime == Runtime::Process) {
            self.report(
                span,
                format!("a program is to see {:?} as {:?}", file.host, file.guest),
                "a program sees folders where they are",
                "make host and guest the same",
            );
        }
    }

    fn report(
        &mut self,
        span: Range<usize>,
        found: impl Into<String>,
        allowed: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let issue = issue(self.text, span, found.into(), allowed.into(), fix.into());
        self.issues.push(issue);
    }

    /// Reports a value that its rule does not allow.
    fn refuse(
        &mut self,
        node: &Node<'_>,
        field: &Field,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let allowed = format!("allowed is {}", field.rule.allowed());
        self.report(node.span(), found, allowed, fix);
    }

    fn refuse_type(&mut self, node: &Node<'_>, field: &Field, fix: &str) {
        let found = format!("{} is {}", label(field), kind(node.get_ref()));
        self.refuse(node, field, found, fix);
    }

    fn check_keys(&mut self, table: &str, found: &DeTable<'_>) {
        let allowed = schema::allowed_keys(table);
        let place = match table {
            "" => "at the top level".to_owned(),
            table => format!("in [{table}]"),
        };
        for key in found.keys() {
            let name: &str = key.get_ref();
            if allowed.contains(&name) {
                continue;
            }
            let elsewhere = schema::home_of(name).filter(|home| home.table != table);
            let fix = if let Some(home) = elsewhere {
                match home.table {
                    "" => format!("move `{name}` above the first [table]"),
                    home => format!("move `{name}` below [{home}]"),
                }
            } else if let Some(near) = nearest(name, &allowed) {
                format!("did you mean `{near}`?")
            } else {
                "remove it".to_owned()
            };
            self.report(
                key.span(),
                format!("unknown key `{}` {place}", shortened(name)),
                format!("allowed are {}", allowed.join(", ")),
                fix,
            );
        }
    }

    fn section<'t, 'i>(&mut self, root: &'t DeTable<'i>, name: &'static str) -> Section<'t, 'i> {
        let table = match root.get(name) {
            None => None,
            Some(node) => match node.get_ref() {
                DeValue::Table(table) => {
                    if !schema::allowed_keys(name).is_empty() {
                        self.check_keys(name, table);
                    }
                    Some(table)
                }
                other => {
                    let found = format!("`{name}` is {}", kind(other));
                    let fix = format!("write [{name}] on a line of its own and its keys below");
                    self.report(node.span(), found, "allowed is a table", fix);
                    None
                }
            },
        };
        Section { table }
    }

    fn entries(
        &mut self,
        root: &DeTable<'_>,
        field: &'static Field,
        name_fault: fn(&str) -> Option<String>,
    ) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        let Some(table) = self.section(root, field.table).table else {
            return entries;
        };
        let allowed = || format!("allowed is {}", field.rule.allowed());
        if table.len() > limits::MAX_ENTRIES {
            let span = root.get(field.table).map_or(0..0, Spanned::span);
            let found = format!("[{}] has {} entries", field.table, table.len());
            self.report(
                span,
                found,
                allowed(),
                format!("keep at most {}", limits::MAX_ENTRIES),
            );
            return entries;
        }
        for (key, node) in table {
            if let Some(fault) = name_fault(key.get_ref()) {
                self.report(key.span(), fault, allowed(), "choose another name");
                continue;
            }
            let name = key.get_ref();
            let fault = match node.get_ref() {
                DeValue::String(value) if value.len() > limits::MAX_ENTRY_VALUE_BYTES => {
                    format!("the value of `{name}` has {} bytes", value.len())
                }
                DeValue::String(value) if value.contains('\0') => {
                    format!("the value of `{name}` has a NUL character")
                }
                DeValue::String(value) => {
                    entries.insert(name.to_string(), value.to_string());
                    continue;
                }
                other => format!("the value of `{name}` is {}", kind(other)),
            };
            self.report(
                node.span(),
                fault,
                allowed(),
                "write the value as text in double quotes",
            );
        }
        entries
    }
}

fn label(field: &Field) -> String {
    match field.table {
        "" => format!("`{}`", field.key),
        table => format!("`{table}.{}`", field.key),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn suggestion(found: &str, words: &[&str]) -> String {
    match nearest(found, words) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "choose one of these".to_owned(),
    }
}

fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 60;
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.escape_debug().to_string(),
        Some((end, _)) => format!("{}...", text[..end].escape_debug()),
    }
}

fn env_name_fault(name: &str) -> Option<String> {
    let good = |(at, c): (usize, char)| {
        c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit())
    };
    if name.is_empty()
        || name.len() > limits::MAX_ENTRY_NAME_BYTES
        || !name.char_indices().all(good)
    {
        return Some(format!(
            "`{}` is not a name of an environment variable",
            shortened(name)
        ));
    }
    None
}

fn config_key_fault(name: &str) -> Option<String> {
    if name.is_empty()
        || name.len() > limits::MAX_ENTRY_NAME_BYTES
        || name.chars().any(char::is_control)
    {
        return Some(format!(
            "`{}` is not a key of the configuration",
            shortened(name)
        ));
    }
    None
}
