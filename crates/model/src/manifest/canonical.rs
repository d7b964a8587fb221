//! The canonical text of a manifest: every key, in the order of the reference page.

use std::fmt::Write as _;

use super::Manifest;

/// All of `manifest` as TOML. Equal manifests have equal texts, and the text parses to an equal
/// manifest.
pub(super) fn write(manifest: &Manifest) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{key} = {value}");
    };
    let quoted = |value: &dyn std::fmt::Display| quote(&value.to_string());

    line("name", quoted(&manifest.name));
    line("artifact", quote(&manifest.artifact));
    line("runtime", quote(manifest.runtime.as_str()));
    line("durability", quote(manifest.durability.as_str()));
    line("on_partition", quoted(&manifest.on_partition));
    line("execution_model", quote(manifest.execution_model.as_str()));
    line("anti_rollback", manifest.anti_rollback.to_string());
    let methods = manifest
        .read_only_methods
        .iter()
        .map(|method| quote(method));
    line("read_only_methods", list(methods));

    let command = list(manifest.process.command.iter().map(|text| quote(text)));
    let _ = write!(out, "\n[process]\ncommand = {command}\n");

    out.push_str("\n[limits]\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key} = {value}");
    };
    line("memory", quoted(&manifest.limits.memory));
    line("timeout", quoted(&manifest.limits.timeout));
    line("attempts", manifest.limits.attempts.to_string());
    line("max_request", quoted(&manifest.limits.max_request));
    line("max_response", quoted(&manifest.limits.max_response));

    out.push_str("\n[workers]\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key} = {value}");
    };
    let workers = &manifest.workers;
    line("min", workers.min.to_string());
    line("max", workers.max.to_string());
    line("idle_ttl", quoted(&workers.idle_ttl));
    line("reserved_cpu", quoted(&workers.reserved_cpu));
    line("cpu_weight", workers.cpu_weight.to_string());

    let queue = &manifest.queue;
    let _ = write!(
        out,
        "\n[queue]\nmax = {}\nmax_wait = \"{}\"\n",
        queue.max, queue.max_wait
    );
    let batch = &manifest.batch;
    let _ = write!(
        out,
        "\n[batch]\nmax = {}\nmax_wait = \"{}\"\n",
        batch.max, batch.max_wait
    );
    let _ = write!(
        out,
        "\n[messages]\nmax_attempts = {}\nbackoff_initial = \"{}\"\nbackoff_max = \"{}\"\n",
        manifest.messages.max_attempts,
        manifest.messages.backoff_initial,
        manifest.messages.backoff_max
    );
    let _ = write!(
        out,
        "\n[idempotency]\nretention = \"{}\"\n",
        manifest.idempotency.retention
    );

    let slo = &manifest.slo;
    let _ = write!(
        out,
        "\n[slo]\nmax_response = \"{}\"\nmax_data_access = \"{}\"\npenalty_per_second = {}\nbest_effort = {}\n",
        slo.max_response, slo.max_data_access, slo.penalty_per_second, slo.best_effort
    );

    for (table, entries) in [("env", &manifest.env), ("config", &manifest.config)] {
        let _ = writeln!(out, "\n[{table}]");
        for (key, value) in entries {
            let _ = writeln!(out, "{} = {}", bare_or_quoted(key), quote(value));
        }
    }

    let hosts = manifest.grants.http.iter().map(|host| quoted(host));
    let files = manifest.grants.files.iter().map(|grant| {
        let (host, guest) = (quote(&grant.host), quote(&grant.guest));
        format!(
            "{{ host = {host}, guest = {guest}, mode = \"{}\" }}",
            grant.mode.as_str()
        )
    });
    let (hosts, files) = (list(hosts), list(files));
    let network = manifest.grants.network;
    let _ = write!(
        out,
        "\n[grants]\nnetwork = {network}\nhttp = {hosts}\nfiles = {files}\n"
    );
    out
}

fn list(entries: impl Iterator<Item = String>) -> String {
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        quote(key)
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
