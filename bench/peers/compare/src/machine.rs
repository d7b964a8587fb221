//! On what and of what the results are.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::Arguments;
use crate::load::Generator;
use crate::setup::Setup;
use crate::target::Target;

/// The machine and the versions.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Seconds since 1970.
    pub(crate) time: u64,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Of the folder with the data.
    pub(crate) file_system: String,
    /// Of the repository.
    pub(crate) commit: String,
    pub(crate) versions: Vec<String>,
    pub(crate) generator: Generator,
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    /// Size of the binary of Fulmar.
    pub(crate) binary_bytes: u64,
}

/// The last line that a program prints, or a note.
fn said(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return format!("{}: {error}", command.get_program().display()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().unwrap_or_default().trim().to_owned()
}

fn version(program: &Path) -> String {
    said(Command::new(program).arg("--version"))
}

pub(crate) fn describe(setup: &Setup, arguments: &Arguments) -> anyhow::Result<Machine> {
    setup.check(&arguments.targets)?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    let git = |arguments: &[&str]| {
        said(
            Command::new("git")
                .arg("-C")
                .arg(&setup.bench)
                .args(arguments),
        )
    };
    let is_dirty = !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty();
    let commit = git(&["rev-parse", "--short", "HEAD"]) + if is_dirty { "+" } else { "" };
    let mut versions = vec![version(&setup.fulmar)];
    for target in &arguments.targets {
        match target {
            Target::Redis => versions.push(version(Path::new("redis-server"))),
            Target::Postgres => versions.push(version(&Setup::postgres("postgres"))),
            Target::Workerd => versions.push(version(&setup.workerd()?)),
            Target::Restate2 => versions.push(version(&setup.restate_server()?)),
            _ => {}
        }
    }
    Ok(Machine {
        time: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        processor: processor.to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        kernel: said(Command::new("uname").arg("-r")),
        file_system: said(Command::new("df").arg("--output=fstype").arg(&setup.work)),
        commit,
        versions,
        generator: arguments.generator,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        binary_bytes: std::fs::metadata(&setup.fulmar)?.len(),
    })
}
