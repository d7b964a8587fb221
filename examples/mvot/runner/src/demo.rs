//! `mvot demo`: frames, a node of its own, a run, and the node stopped again.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::deploy::Functions;
use crate::offline::Input;
use crate::outcome::Metrics;
use crate::{generate, live};

/// How long the node may take to start.
const START: Duration = Duration::from_secs(30);
/// How long the node may take to stop.
const STOP: Duration = Duration::from_secs(30);

/// Arguments of `mvot demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The program `fulmar`.
    #[arg(long, value_name = "PATH")]
    fulmar: PathBuf,
    /// Folder for frames, the node's data and the results.
    #[arg(long, value_name = "DIR", default_value = "target/mvot-demo")]
    out: PathBuf,
    /// Timesteps.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    steps: u64,
    /// Timesteps a second, of seven frames each.
    #[arg(long, default_value_t = 5.0)]
    fps: f64,
    /// Seed of the frames.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// People on the plaza.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(0..=60))]
    people: u64,
    /// Cameras whose frames are not sent.
    #[arg(long, value_name = "CAMERA")]
    without: Vec<String>,
    /// MOTA and IDF1 below which the demo has failed.
    #[arg(long, default_value_t = 0.8)]
    min_accuracy: f64,
    #[command(flatten)]
    functions: Functions,
}

/// Runs everything; an error says what failed.
pub(crate) async fn run(args: &Args) -> Result<Metrics> {
    let frames = args.out.join("dataset");
    let data = args.out.join("node");
    for old in [&frames, &data] {
        remove(old)?;
    }
    eprintln!("drawing {} timesteps of seven cameras", args.steps);
    let plaza = generate::Args {
        out: frames.clone(),
        steps: args.steps,
        seed: args.seed,
        people: args.people,
        fps: args.fps,
    };
    tokio::task::spawn_blocking(move || generate::run(&plaza)).await??;

    let log = args.out.join("node.log");
    eprintln!("starting a node; its log is {}", log.display());
    let (mut node, address) = start(&args.fulmar, &args.out, &data, &log).await?;
    let run = live::Args {
        input: Input {
            frames,
            out: args.out.join("results"),
            steps: None,
            without: args.without.clone(),
            background_samples: 31,
            match_distance: 0.5,
        },
        node: address,
        fps: Some(args.fps),
        scene: "plaza".into(),
        timeout_ms: 1500,
        poll_ms: 5,
        deploy: true,
        functions: args.functions.clone(),
    };
    eprintln!("sending frames, {} timesteps a second", args.fps);
    let result = live::run(&run).await;
    let status = stop(&mut node).await;
    let (metrics, failed) =
        result.with_context(|| format!("the node's log is {}", log.display()))?;
    let status = status?;
    if !status.success() {
        bail!("the node ended with {status}; its log is {}", log.display());
    }
    println!("{metrics}");
    eprintln!(
        "picture of the tracks: {}",
        run.input.out.join("tracks.svg").display()
    );
    if failed > 0 {
        bail!("{failed} frames failed");
    }
    let accuracy = metrics
        .accuracy
        .as_ref()
        .context("there is no ground truth")?;
    if accuracy.mota < args.min_accuracy || accuracy.idf1 < args.min_accuracy {
        bail!(
            "MOTA {:.3} and IDF1 {:.3} have to be at least {}",
            accuracy.mota,
            accuracy.idf1,
            args.min_accuracy
        );
    }
    Ok(metrics)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Starts `fulmar dev` and waits until it says where it listens.
async fn start(fulmar: &Path, out: &Path, data: &Path, log: &Path) -> Result<(Child, String)> {
    let ports = out.join("ports.json");
    match std::fs::remove_file(&ports) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let output =
        std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(fulmar);
    command
        .args(["dev", "--port", "0", "--ports-file"])
        .arg(&ports)
        .arg("--data")
        .arg(data);
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true);
    let mut node = command
        .spawn()
        .with_context(|| format!("cannot start {}", fulmar.display()))?;
    let begun = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        // Written atomically: what is there is whole.
        if let Ok(text) = std::fs::read_to_string(&ports) {
            let ports: serde_json::Value =
                serde_json::from_str(&text).context("the node's ports file")?;
            let port = ports["http"]
                .as_u64()
                .context("the node's ports file names no HTTP port")?;
            return Ok((node, format!("http://127.0.0.1:{port}")));
        }
        if let Some(status) = node.try_wait()? {
            bail!(
                "the node ended with {status} before it was ready; its log is {}",
                log.display()
            );
        }
        if begun.elapsed() > START {
            bail!(
                "the node was not ready after {} s; its log is {}",
                START.as_secs(),
                log.display()
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Asks the node to stop and waits for it.
async fn stop(node: &mut Child) -> Result<ExitStatus> {
    let pid = node
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id as i32));
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .context("cannot stop the node")?;
    }
    let stopped = tokio::time::timeout(STOP, node.wait()).await;
    Ok(stopped.with_context(|| format!("the node did not stop within {} s", STOP.as_secs()))??)
}
