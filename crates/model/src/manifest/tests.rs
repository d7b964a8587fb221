//! The manifest as its users meet it.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const MINIMAL: &str = "name = \"counter\"\nartifact = \"counter.wasm\"\n";

const FULL: &str = r#"
name = "aggregate"
artifact = "target/wasm32-wasip2/release/aggregate.wasm"
durability = "memory"
execution_model = "in-function"
read_only_methods = ["HEAD", "GET"]
[limits]
memory = "128MiB"
timeout = "1.5s"
attempts = 3
max_request = "2MiB"
max_response = "8MiB"
[workers]
max = 0x10
idle_ttl = "1m"
cpu_weight = 300
[queue]
max = 16
max_wait = "2s"
[batch]
max = 64
max_wait = "5ms"
[messages]
max_attempts = 3
backoff_initial = "1s"
backoff_max = "1m"
[idempotency]
retention = "1h"
[env]
KEY = "line\none \"two\" \\ ü"
[config]
"a key.with dots" = "value"
[grants]
http = ["api.example.com", "localhost:8080"]
files = [{ host = "/srv/maps", guest = "/maps" }, { host = "/tmp", guest = "/tmp", mode = "rw" }]
"#;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, "fulmar.toml")
}

/// The message for the minimal manifest with more text after it.
fn message(more: &str) -> String {
    parse(&format!("{MINIMAL}{more}")).unwrap_err().to_string()
}

#[test]
fn a_minimal_manifest_gets_the_defaults() {
    let expected = Manifest::for_artifact(FunctionName::new("counter").unwrap());
    assert_eq!(parse(MINIMAL), Ok(expected.clone()));
    assert_eq!(expected.durability, Durability::Local);
    assert_eq!(expected.limits.memory, ByteSize::mib(64));
    assert_eq!(
        expected.limits.timeout.get(),
        std::time::Duration::from_secs(30)
    );
    assert_eq!(expected.messages.backoff_max.to_string(), "30s");
}

#[test]
fn every_key_is_read() {
    let manifest = parse(FULL).unwrap();
    assert_eq!(manifest.name.as_str(), "aggregate");
    assert_eq!(manifest.durability, Durability::Memory);
    assert_eq!(manifest.execution_model, ExecutionModel::InFunction);
    assert!(manifest.is_read_only("GET") && !manifest.is_read_only("POST"));
    assert_eq!(manifest.limits.memory, ByteSize::mib(128));
    assert_eq!(manifest.limits.timeout, Duration::from_millis(1_500));
    assert_eq!(manifest.limits.max_request, ByteSize::mib(2));
    assert_eq!(manifest.limits.max_response, ByteSize::mib(8));
    assert_eq!((manifest.workers.max, manifest.queue.max), (16, 16));
    assert_eq!(manifest.workers.idle_ttl, Duration::from_secs(60));
    assert_eq!(manifest.queue.max_wait, Duration::from_secs(2));
    assert_eq!(manifest.batch.max, 64);
    assert_eq!(manifest.batch.max_wait, Duration::from_millis(5));
    assert_eq!(
        (manifest.limits.attempts, manifest.workers.cpu_weight),
        (3, 300)
    );
    assert_eq!(manifest.messages.max_attempts, 3);
    assert_eq!(manifest.messages.backoff_initial, Duration::from_secs(1));
    assert_eq!(manifest.messages.backoff_max, Duration::from_secs(60));
    assert_eq!(manifest.idempotency.retention, Duration::from_hours(1));
    assert_eq!(manifest.env["KEY"], "line\none \"two\" \\ ü");
    assert_eq!(manifest.config["a key.with dots"], "value");
    assert!(manifest.grants.http[1].allows("localhost", 8080));
    assert_eq!(manifest.grants.files[0].mode, FileMode::ReadOnly);
    assert_eq!(manifest.grants.files[1].mode, FileMode::ReadWrite);
}

#[test]
fn the_canonical_text_reads_back_and_is_stable() {
    for text in [MINIMAL, FULL] {
        let manifest = parse(text).unwrap();
        let canonical = manifest.to_toml();
        assert_eq!(parse(&canonical), Ok(manifest), "{canonical}");
        assert_eq!(parse(&canonical).unwrap().to_toml(), canonical);
    }
}

#[test]
fn the_canonical_text_has_every_key_of_the_schema_in_order() {
    let text = parse(FULL).unwrap().to_toml();
    let mut at = 0;
    for field in schema::FIELDS {
        if !field.table.is_empty() {
            let head = format!("\n[{}]\n", field.table);
            at = text
                .find(&head)
                .unwrap_or_else(|| panic!("{head} is missing"))
                .max(at);
        }
        if !field.key.is_empty() {
            let line = format!("\n{} = ", field.key);
            let from = format!("\n{text}");
            let found = from[at..]
                .find(&line)
                .unwrap_or_else(|| panic!("{line} is missing"));
            at += found;
        }
    }
}

#[test]
fn a_program_is_told_from_a_component_by_its_command() {
    let program = "[process]\ncommand = [\"python3\", \"main.py\"]\n";
    let read = parse(&format!("{MINIMAL}{program}[grants]\nnetwork = true\n")).unwrap();
    assert!(read.is_program() && read.grants.network);
    assert_eq!(read.process.command, ["python3", "main.py"]);
    assert_eq!(read.runtime, Runtime::Process);
    assert_eq!(parse(&read.to_toml()), Ok(read));
    assert!(!parse(MINIMAL).unwrap().is_program());
    let container = "runtime = \"container\"\n[workers]\nreserved_cpu = \"0.5cpu\"\n";
    let read = parse(&format!("{MINIMAL}{container}")).unwrap();
    assert!(read.is_program() && read.process.command.is_empty());
    assert_eq!(read.workers.reserved_cpu, CpuAmount::from_millis(500));
    assert_eq!(parse(&read.to_toml()), Ok(read));
    for (text, expected) in [
        (
            "[grants]\nnetwork = true\n".to_owned(),
            "list the hosts in grants.http",
        ),
        (
            format!("{program}[grants]\nhttp = [\"a.example\"]\n"),
            "write network = true",
        ),
        (
            format!("{program}[grants]\nfiles = [{{ host = \"/a\", guest = \"/b\" }}]\n"),
            "make host and guest the same",
        ),
        ("[process]\ncommand = [\"\"]\n".to_owned(), "without a NUL"),
        (format!("runtime = \"wasm\"\n{program}"), "remove [process]"),
        ("runtime = \"process\"\n".to_owned(), "add [process]"),
        (
            "[workers]\nreserved_cpu = \"1cpu\"\n".to_owned(),
            "remove reserved_cpu",
        ),
        ("[workers]\nmin = 1\n".to_owned(), "remove min"),
        (
            format!("{program}[workers]\nmin = 3\nmax = 2\n"),
            "lower min or raise max",
        ),
        (
            format!("{program}[workers]\nreserved_cpu = \"1\"\n"),
            "has no unit",
        ),
        (
            "[process]\ncommand = \"python3\"\n".to_owned(),
            "square brackets",
        ),
    ] {
        let message = message(&text);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn json_has_the_names_of_the_file() {
    let json = serde_json::to_value(parse(FULL).unwrap()).unwrap();
    assert_eq!(json["execution_model"], "in-function");
    assert_eq!(json["limits"]["timeout"], "1500ms");
    assert_eq!(json["grants"]["files"][1]["mode"], "rw");
    assert_eq!(json["grants"]["http"][1], "localhost:8080");
}

#[test]
fn an_unknown_key_is_named_with_the_allowed_ones_and_a_suggestion() {
    assert_eq!(
        message("[limits]\nmemmory = \"1MiB\"\n"),
        "fulmar.toml:4:1: unknown key `memmory` in [limits]; \
         allowed are memory, timeout, attempts, max_request, max_response; did you mean `memory`?\n\
         \x20 |\n\
         4 | memmory = \"1MiB\"\n\
         \x20 | ^^^^^^^"
    );
    assert!(message("[limitz]\n").contains("did you mean `limits`?"));
    assert!(message("colour = 1\n").contains("remove it"));
}

#[test]
fn a_key_in_the_wrong_table_is_sent_home() {
    assert!(message("timeout = \"1s\"\n").contains("move `timeout` below [limits]"));
    assert!(
        message("[limits]\ndurability = \"local\"\n")
            .contains("move `durability` above the first [table]")
    );
}

#[test]
fn bad_values_say_what_is_allowed() {
    for (text, expected) in [
        (
            "[limits]\nmemory = \"64M\"\n",
            "\"64M\" has the unknown unit \"M\"",
        ),
        (
            "[limits]\nmemory = 64\n",
            "`limits.memory` is a number; allowed is a size from 64KiB to 4GiB",
        ),
        (
            "[limits]\nmemory = \"1KiB\"\n",
            "`limits.memory` is 1KiB; allowed is a size from 64KiB to 4GiB such as \"64MiB\"; raise it to at least 64KiB",
        ),
        ("[limits]\nmemory = \"5GiB\"\n", "lower it to at most 4GiB"),
        ("[limits]\ntimeout = \"2h\"\n", "lower it to at most 1h"),
        (
            "[limits]\nmax_request = \"65MiB\"\n",
            "lower it to at most 64MiB",
        ),
        ("limits = 3\n", "`limits` is a number; allowed is a table"),
        (
            "[workers]\nmax = 0\n",
            "`workers.max` is 0; allowed is a whole number from 1 to 10000",
        ),
        ("[workers]\nmax = -1\n", "`workers.max` is -1"),
        ("[workers]\nmax = \"3\"\n", "`workers.max` is text"),
        (
            "[queue]\nmax = 99999999999999999999\n",
            "allowed is a whole number",
        ),
        (
            "[messages]\nbackoff_initial = \"1m\"\n",
            "backoff_initial is 1m, more than backoff_max, which is 30s",
        ),
        (
            "on_partition = \"takeover-after 30h\"\n",
            "a duration from 1s to 24h",
        ),
        ("durability = \"lokal\"\n", "did you mean `local`?"),
        (
            "execution_model = \"in-functoin\"\n",
            "did you mean `in-function`?",
        ),
        ("read_only_methods = \"GET\"\n", "put it in square brackets"),
        ("read_only_methods = [\"get\"]\n", "did you mean `GET`?"),
        (
            "[env]\n\"A=B\" = \"x\"\n",
            "`A=B` is not a name of an environment variable",
        ),
        ("[env]\nA = 1\n", "the value of `A` is a number"),
        (
            "[config]\n\"\" = \"x\"\n",
            "is not a key of the configuration",
        ),
        (
            "[grants]\nhttp = [\"https://example.com\"]\n",
            "has a scheme",
        ),
        (
            "[grants]\nhttp = [\"a.b\", \"A.b\"]\n",
            "a.b is listed twice",
        ),
        (
            "[grants]\nfiles = [{ host = \"maps\", guest = \"/m\" }]\n",
            "not absolute",
        ),
        (
            "[grants]\nfiles = [{ host = \"/m\" }]\n",
            "the grant has no `guest`",
        ),
        (
            "[grants]\nfiles = [{ host = \"/m\", guest = \"/m\", mode = \"r\" }]\n",
            "allowed are \"ro\" and \"rw\"",
        ),
        (
            "[grants]\nfiles = [{ host = \"/m\", guest = \"/m\", mod = \"ro\" }]\n",
            "did you mean `mode`?",
        ),
        (
            "[grants]\nfiles = [{ host = \"/a\", guest = \"/m\" }, { host = \"/b\", guest = \"/m\" }]\n",
            "granted twice",
        ),
    ] {
        let shown = message(text);
        assert!(shown.contains(expected), "{text}\n{shown}");
        let place = shown.strip_prefix("fulmar.toml:").unwrap();
        assert!(place.starts_with(|c: char| c.is_ascii_digit()), "{shown}");
    }
}

#[test]
fn missing_and_bad_names_are_found() {
    let shown = parse("artifact = \"a.wasm\"\n").unwrap_err().to_string();
    assert!(shown.contains("the key `name` is missing"), "{shown}");
    let shown = parse("name = \"Not Good\"\n").unwrap_err();
    assert_eq!(shown.issues().len(), 2, "{shown}");
    assert!(shown.to_string().contains("allowed are a-z"), "{shown}");
    assert!(
        parse("")
            .unwrap_err()
            .to_string()
            .starts_with("fulmar.toml:1:1:")
    );
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_in_order() {
    let error = parse(&format!("{MINIMAL}a = 1\n[limits]\nb = 2\nmemory = 3\n")).unwrap_err();
    let lines: Vec<usize> = error.issues().iter().map(|issue| issue.line).collect();
    assert_eq!(lines, [3, 5, 6]);
}

#[test]
fn broken_toml_is_placed() {
    let shown = message("[limits\n");
    assert!(shown.starts_with("fulmar.toml:3:"), "{shown}");
    assert!(shown.contains("not TOML"), "{shown}");
}

#[test]
fn hostile_sizes_are_refused_quickly() {
    let long = "#".repeat(limits::MAX_MANIFEST_BYTES + 1);
    assert!(
        parse(&long)
            .unwrap_err()
            .to_string()
            .contains("at most 262144 are allowed")
    );
    let many: String = (0..5_000).map(|n| format!("k{n} = 1\n")).collect();
    assert!(message(&many).ends_with("more"));
    assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(parse(&"a.".repeat(100_000)).is_err());
}

#[test]
fn components_give_their_functions_names() {
    let name = |path: &str| function_name_of(Path::new(path)).map(|name| name.to_string());
    assert_eq!(
        name("target/release/my_Function.wasm"),
        Ok("my-function".to_owned())
    );
    assert!(name("ü.wasm").is_err());
    assert!(name("..").is_err());
}

/// Text made of the pieces of manifests, to get further into the reader than noise does.
fn manifest_like() -> impl Strategy<Value = String> {
    let keys: Vec<String> = schema::FIELDS
        .iter()
        .flat_map(|field| {
            [
                field.table.to_owned(),
                field.key.to_owned(),
                format!("[{}]\n", field.table),
            ]
        })
        .chain(
            [
                "=",
                " ",
                "\n",
                "\"",
                "'",
                "[",
                "]",
                "{",
                "}",
                ",",
                ".",
                "#",
                "[[",
                "]]",
                "\"\"\"",
                "-1",
                "0x7f",
                "1e400",
                "true",
                "\"64MiB\"",
                "\"1h\"",
                "\"local\"",
                "\"/a\"",
                "host = \"/a\"",
                "\u{feff}",
                "é",
                "\r\n",
                "\\u0000",
            ]
            .map(str::to_owned),
        )
        .collect();
    prop::collection::vec(prop::sample::select(keys), 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), "\\PC{0,200}", manifest_like()]) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
        if let Err(error) = parse(&format!("{MINIMAL}{text}")) {
            prop_assert!(!error.issues().is_empty());
        }
    }

    #[test]
    fn chosen_values_survive_the_canonical_text(
        name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        memory in (64_u64 << 10)..=(4 << 30),
        timeout_ms in 1_u64..=3_600_000,
        env in prop::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,9}", "[^\\x00]{0,20}", 0..4),
        config in prop::collection::btree_map("\\PC{1,20}", "[^\\x00]{0,20}", 0..4),
    ) {
        let mut manifest = Manifest::for_artifact(FunctionName::new(&name).unwrap());
        manifest.limits.memory = ByteSize(memory);
        manifest.limits.timeout = Duration::from_millis(timeout_ms);
        manifest.env = env;
        manifest.config = config;
        prop_assert_eq!(parse(&manifest.to_toml()), Ok(manifest));
    }
}
