//! `cargo xtask fuzz`: every target of `fuzz/` for a while.

use anyhow::{Context, Result, bail};

use crate::steps::{self, Steps};
use crate::workspace::Workspace;

const DEFAULT_SECONDS: u32 = 60;

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let seconds = match arguments {
        [] => DEFAULT_SECONDS,
        [text] => text
            .parse()
            .with_context(|| format!("{text:?} is not a number of seconds"))?,
        _ => bail!("one number of seconds is enough"),
    };
    let targets = targets(workspace)?;
    let mut steps = Steps::new("fuzz", targets.len());
    for target in &targets {
        steps.run(target, || {
            let limit = format!("-max_total_time={seconds}");
            // Not `workspace.cargo()`: the outer cargo pins the stable toolchain.
            let mut command = workspace.command("cargo");
            command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
            command.args(["+nightly", "fuzz", "run", target]);
            // Found inputs go to the first directory, which must exist; the others are only read.
            let corpus = format!("fuzz/corpus/{target}");
            std::fs::create_dir_all(workspace.root().join(&corpus))?;
            command.arg(corpus);
            let seeds = format!("fuzz/seeds/{target}");
            if workspace.root().join(&seeds).is_dir() {
                command.arg(seeds);
            }
            command.args(["--", &limit, "-rss_limit_mb=2048"]);
            steps::run(&mut command).context(
                "if the tools are missing: `rustup toolchain install nightly` and `cargo install cargo-fuzz`",
            )?;
            Ok(format!("{seconds} s without a finding"))
        })?;
    }
    steps.finish();
    Ok(())
}

/// Names of the fuzz targets, from their files.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = workspace.root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
