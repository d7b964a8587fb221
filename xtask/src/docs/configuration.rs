//! `docs/configuration.md`: the keys of `fulmar.toml`.

use anyhow::{Context, Result};
use fulmar_model::manifest::schema::{FIELDS, Field};
use fulmar_model::{FunctionName, Manifest};

const INTRODUCTION: &str = "# Configuration of a function: `fulmar.toml`

One file describes one function. `fulmar deploy PATH` takes it, or a bare `.wasm` file, which gets every default and
the file's stem as its name.

```toml
name = \"counter\"
artifact = \"target/wasm32-wasip2/release/counter.wasm\"

[limits]
timeout = \"2s\"
```

Only `name` and `artifact` are required. Sizes are text with a unit (`B`, `KiB`, `MiB`, `GiB`, `TiB`, or decimal `kB`,
`MB`, `GB`, `TB`), and so are durations (`ns`, `us`, `ms`, `s`, `m`, `h`, `d`); both may have a decimal point. Unknown keys
and values that are not allowed are errors that name the line and say what to write instead; nothing is ignored.
Values are fixed when the function is deployed: a later version of Fulmar with other defaults does not change them.
";

/// The page, with the defaults that the parser really uses.
pub(super) fn page() -> Result<String> {
    let defaults: toml::Table = Manifest::for_artifact(FunctionName::new("name")?)
        .to_toml()
        .parse()
        .context("the canonical text is TOML")?;
    let mut text = INTRODUCTION.to_owned();
    let mut table = None;
    for field in FIELDS {
        if table != Some(field.table) {
            table = Some(field.table);
            text += &match field.table {
                "" => "\n## Top level\n".to_owned(),
                name => format!("\n## `[{name}]`\n"),
            };
            if !field.key.is_empty() {
                text += "\n| key | default | allowed | what it does |\n|---|---|---|---|\n";
            }
        }
        if field.key.is_empty() {
            text += &format!("\n{} Allowed: {}.\n", about(field), field.rule.allowed());
            continue;
        }
        let default = default_of(field, &defaults)?;
        let allowed = field.rule.allowed();
        text += &format!(
            "| `{}` | {default} | {allowed} | {} |\n",
            field.key,
            about(field)
        );
    }
    Ok(text)
}

/// The sentences on one line.
fn about(field: &Field) -> String {
    field.about.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn default_of(field: &Field, defaults: &toml::Table) -> Result<String> {
    if ["name", "artifact"].contains(&field.key) {
        return Ok("required".to_owned());
    }
    let table = match field.table {
        "" => Some(defaults),
        name => defaults.get(name).and_then(toml::Value::as_table),
    };
    let value = table.and_then(|table| table.get(field.key));
    let value = value.with_context(|| format!("{}.{} has no default", field.table, field.key))?;
    Ok(format!("`{value}`"))
}
