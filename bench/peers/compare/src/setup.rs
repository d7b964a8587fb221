//! Where the programs, the data and the logs are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::Arguments;
use crate::target::Target;

/// How many ports a server and what belongs to it use, from the first one on.
const PORTS: u16 = 4;

/// Places on this machine.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) work: PathBuf,
    pub(crate) bench: PathBuf,
    pub(crate) fulmar: PathBuf,
    pub(crate) functions: PathBuf,
    /// The first of the ports that may be used.
    pub(crate) port: u16,
    /// The folder of this program, where the other peers are, too.
    programs: PathBuf,
    /// Held as long as this program runs: two comparisons in one folder would remove each other's
    /// data, and two at once measure each other.
    _lock: fs::File,
}

impl Setup {
    pub(crate) fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let absolute =
            |path: &Path| fs::canonicalize(path).with_context(|| path.display().to_string());
        fs::create_dir_all(arguments.work.join("logs"))?;
        let own = std::env::current_exe()?;
        let lock = fs::File::create(arguments.work.join("lock"))?;
        if lock.try_lock().is_err() {
            anyhow::bail!(
                "another comparison runs in {}; wait for its end",
                arguments.work.display()
            );
        }
        for port in arguments.port..arguments.port + PORTS {
            std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!("port {port} is in use; choose others with --port, or end what listens")
            })?;
        }
        Ok(Self {
            work: absolute(&arguments.work)?,
            bench: absolute(&arguments.bench)?,
            fulmar: absolute(&arguments.fulmar)?,
            functions: absolute(&arguments.functions)?,
            port: arguments.port,
            programs: own
                .parent()
                .context("this program is in no folder")?
                .to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.work.join("logs")
    }

    /// Where a server keeps its data.
    pub(crate) fn data(&self, target: Target) -> PathBuf {
        self.work.join("data").join(target.to_string())
    }

    /// Removes a server's data.
    pub(crate) fn clear(&self, target: Target) -> anyhow::Result<()> {
        let data = self.data(target);
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
        }
        fs::create_dir_all(&data)?;
        Ok(())
    }

    pub(crate) fn axum_peer(&self) -> PathBuf {
        self.programs.join("axum-peer")
    }

    pub(crate) fn restate_counter(&self) -> PathBuf {
        self.programs.join("restate-counter")
    }

    /// The program itself rather than npm's wrapper, which would be measured with it.
    fn npm_program(&self, scope: &str, package: &str, program: &str) -> anyhow::Result<PathBuf> {
        let scope = self.work.join("npm/node_modules").join(scope);
        let entries = fs::read_dir(&scope)
            .with_context(|| format!("nothing is installed in {}", scope.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let found = path.join("bin").join(program);
            if name.starts_with(package) && found.is_file() {
                return Ok(found);
            }
        }
        anyhow::bail!("{program} is not in {}", scope.display())
    }

    pub(crate) fn workerd(&self) -> anyhow::Result<PathBuf> {
        self.npm_program("@cloudflare", "workerd-", "workerd")
    }

    pub(crate) fn restate_server(&self) -> anyhow::Result<PathBuf> {
        self.npm_program("@restatedev", "restate-server-", "restate-server")
    }

    /// A program of PostgreSQL: the newest of Debian's, or the one in the path.
    pub(crate) fn postgres(program: &str) -> PathBuf {
        let version = |path: &Path| -> u32 {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.parse().unwrap_or(0)
        };
        fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("bin").join(program).is_file())
            .max_by_key(|path| version(path))
            .map_or(PathBuf::from(program), |path| {
                path.join("bin").join(program)
            })
    }

    /// Fails early rather than in the middle.
    pub(crate) fn check(&self, targets: &[Target]) -> anyhow::Result<()> {
        for target in targets {
            match target {
                Target::Workerd => drop(self.workerd()?),
                Target::Restate | Target::Restate2 => drop(self.restate_server()?),
                _ => {}
            }
        }
        for function in ["counter.wasm", "five.wasm"] {
            let path = self.functions.join(function);
            ensure!(path.is_file(), "{} is missing", path.display());
        }
        Ok(())
    }
}
