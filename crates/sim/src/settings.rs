//! Settings of a scenario: its file's defaults, then the user's file, then `--set`.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Scenario};

/// The key that says which scenario a file is for.
const SCENARIO: &str = "scenario";

/// Where settings come from, besides the scenario's own defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The user's file: its name for messages, and its text.
    pub file: Option<(String, String)>,
    /// `key=value`, later ones win.
    pub set: Vec<String>,
}

impl Sources {
    /// Reads the user's file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path, set: Vec<String>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file: Some((path.display().to_string(), text)),
            set,
        })
    }

    /// The scenario that the file is for.
    ///
    /// # Errors
    /// When it does not say.
    pub fn scenario(&self) -> Result<Option<String>, Error> {
        let Some((name, text)) = &self.file else {
            return Ok(None);
        };
        let table: Table = parse(name, text)?;
        match table.get(SCENARIO) {
            Some(Value::String(scenario)) => Ok(Some(scenario.clone())),
            _ => Err(Error::invalid(format!(
                "{name}: the first key has to be scenario = \"NAME\"; `fulmar sim list` lists the names"
            ))),
        }
    }
}

/// The scenario's settings.
///
/// # Errors
/// When a key or a value is none that the scenario takes; the text says where and what is allowed.
pub fn resolve<S: Scenario>(sources: &Sources) -> Result<S::Settings, Error> {
    let defaults = without_scenario(parse(S::NAME, S::FILE)?);
    let mut settings = defaults.clone();
    if let Some((name, text)) = &sources.file {
        // On its own first, for an error with the line that it is in.
        let lines: String = text
            .lines()
            .map(|line| match line.trim_start().starts_with(SCENARIO) {
                true => "\n".to_owned(),
                false => format!("{line}\n"),
            })
            .collect();
        let _: S::Settings =
            toml::from_str(&lines).map_err(|error| located(name, &lines, &error))?;
        for (key, value) in without_scenario(parse(name, text)?) {
            settings.insert(key, value);
        }
    }
    for assignment in &sources.set {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            Error::invalid(format!(
                "--set {assignment}: expected key=value, for example --set {}",
                example(&defaults)
            ))
        })?;
        let default = defaults.get(key).ok_or_else(|| unknown(key, &defaults))?;
        settings.insert(key.to_owned(), value(text, default));
        check::<S::Settings>(&settings).map_err(|error| {
            Error::invalid(format!(
                "--set {assignment}: {}; the default is {default}",
                error.message()
            ))
        })?;
    }
    check(&settings).map_err(|error| Error::invalid(error.message().to_owned()))
}

fn check<T: DeserializeOwned>(settings: &Table) -> Result<T, toml::de::Error> {
    Value::Table(settings.clone()).try_into()
}

fn parse(name: &str, text: &str) -> Result<Table, Error> {
    toml::from_str(text).map_err(|error| located(name, text, &error))
}

fn without_scenario(mut table: Table) -> Table {
    table.remove(SCENARIO);
    table
}

fn located(name: &str, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| {
        1 + text[..span.start.min(text.len())].matches('\n').count()
    });
    Error::invalid(format!("{name}, line {line}: {}", error.message()))
}

fn unknown(key: &str, defaults: &Table) -> Error {
    let known: Vec<&str> = defaults.keys().map(String::as_str).collect();
    Error::invalid(format!(
        "--set {key}: there is no such setting; there are: {}",
        known.join(", ")
    ))
}

fn example(defaults: &Table) -> String {
    defaults
        .iter()
        .next()
        .map_or_else(String::new, |(key, value)| format!("{key}={value}"))
}

/// The text as a value of the default's kind: a list where the default is one, else one value.
fn value(text: &str, default: &Value) -> Value {
    let one = |text: &str, like: Option<&Value>| match like {
        // "1" stays a text where a text is expected.
        Some(Value::String(_)) => Value::String(text.trim_matches('"').to_owned()),
        Some(Value::Float(_)) => text
            .parse()
            .map_or_else(|_| Value::String(text.to_owned()), Value::Float),
        _ => toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned())),
    };
    match default {
        Value::Array(defaults) if !text.starts_with('[') => Value::Array(
            text.split(',')
                .map(|part| one(part.trim(), defaults.first()))
                .collect(),
        ),
        Value::Array(_) => one(text, None),
        _ => one(text, Some(default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Report, Run};
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        clients: Vec<u32>,
        share: f64,
        name: String,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self {
                clients: vec![1, 2],
                share: 0.5,
                name: "x".into(),
            }
        }
    }

    struct Test;

    impl Scenario for Test {
        type Settings = Settings;
        const NAME: &'static str = "test";
        const SUMMARY: &'static str = "";
        const FILE: &'static str =
            "scenario = \"test\"\nclients = [1, 2]\nshare = 0.5\nname = \"x\"\n";
        fn run(_: &Settings, _: &Run) -> Result<Report, Error> {
            Ok(Report::default())
        }
    }

    fn sources(file: Option<&str>, set: &[&str]) -> Sources {
        Sources {
            file: file.map(|text| ("my.toml".to_owned(), text.to_owned())),
            set: set.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn error(file: Option<&str>, set: &[&str]) -> String {
        resolve::<Test>(&sources(file, set))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn set_wins_over_the_file_and_the_file_over_the_defaults() {
        let file = "scenario = \"test\"\nshare = 0.25\nname = \"file\"";
        let set = ["clients=7", "name=1", "share=1"];
        let settings = resolve::<Test>(&sources(Some(file), &set)).unwrap();
        assert_eq!(
            settings,
            Settings {
                clients: vec![7],
                share: 1.0,
                name: "1".into()
            }
        );
        let settings = resolve::<Test>(&sources(Some(file), &["clients=3,4"])).unwrap();
        assert_eq!((settings.share, settings.clients), (0.25, vec![3, 4]));
    }

    #[test]
    fn errors_say_where_and_what_is_allowed() {
        let text = error(Some("scenario = \"test\"\n\nshar = 0.25"), &[]);
        assert!(
            text.starts_with("my.toml, line 3: unknown field `shar`"),
            "{text}"
        );
        assert!(text.contains("share"), "{text}");
        let text = error(None, &["shar=1"]);
        assert!(text.contains("there are: clients, name, share"), "{text}");
        let text = error(None, &["share=many"]);
        assert!(
            text.contains("--set share=many") && text.contains("default is 0.5"),
            "{text}"
        );
        assert!(error(None, &["share"]).contains("key=value"));
        assert!(sources(Some("share = 1"), &[]).scenario().is_err());
    }

    #[test]
    fn the_defaults_are_those_of_the_file() {
        assert_eq!(
            resolve::<Test>(&Sources::default()).unwrap(),
            Settings::default()
        );
    }
}
