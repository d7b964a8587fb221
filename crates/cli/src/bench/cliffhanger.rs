//! `fulmar bench cliffhanger`: the five experiments of "Cliffhanger: An Experimental Evaluation of Stateful Serverless at
//! the Edge" (section III-B), on the multi-view object tracking of `examples/mvot` with its seven cameras.
//!
//! Rates are parts of what this machine can do, which is measured first. Each variant runs on a node of its own with an
//! empty data directory; variants take turns, round by round, and figures are medians over the rounds.

mod cpu;
mod drive;
mod flood;
mod from_zero;
mod image;
mod kit;
mod measure;
mod overhead;
mod provisioned;
mod server;
mod state;
mod state_size;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use fulmar_model::Manifest;
use fulmar_sim::report::{Finding, Report, ResultRow, Title};

use drive::steady;
use kit::{Kind, Kit, Then};
use measure::median;
use server::Server;
use store::Store;

/// What is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which of the experiments, 1 to 5.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,2,3,4,5", value_parser = clap::value_parser!(u8).range(1..=5))]
    only: Vec<u8>,
    /// How long each run of a variant is measured.
    #[arg(long, default_value = "20s")]
    duration: fulmar_model::Duration,
    /// Runs of each variant.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How large the state of experiment 5 gets.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    largest_state: fulmar_model::ByteSize,
    /// Folder of frames with their backgrounds.
    #[arg(long, value_name = "DIR", default_value = "target/cliffhanger/frames")]
    frames: PathBuf,
    /// Folder of the functions.
    #[arg(long, value_name = "DIR", default_value = "examples/mvot")]
    functions: PathBuf,
    /// Folder of packages for functions in Python; without it only components are run.
    #[arg(long, value_name = "DIR", default_value = "target/cliffhanger/python")]
    python: PathBuf,
    /// Store for what is to be external; without one, `redis-server` is started if it is installed.
    #[arg(
        long,
        value_name = "URL",
        env = "FULMAR_EXTERNAL",
        hide_env_values = true
    )]
    external: Option<String>,
    /// Folder for the nodes' data: it has to be on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value = "target/cliffhanger/data")]
    data: PathBuf,
    /// Folder for the report.
    #[arg(long, value_name = "DIR", default_value = "cliffhanger-report")]
    out: PathBuf,
}

/// Runs the experiments and writes the report.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut bench = Bench::prepare(options)?;
    for number in 1..=5 {
        if options.only.contains(&number) {
            match number {
                1 => provisioned::run(&mut bench)?,
                2 => state::run(&mut bench)?,
                3 => from_zero::run(&mut bench)?,
                4 => overhead::run(&mut bench)?,
                _ => state_size::run(&mut bench, options.largest_state.0)?,
            }
        }
    }
    let title = Title {
        scenario: "cliffhanger",
        summary: "The five experiments of the Cliffhanger study, on this machine",
        seed: 0,
        set: &bench.setting,
    };
    bench.report.write(&title, &options.out)?;
    crate::sim::show(&bench.report);
    let page = options.out.join("report.html");
    eprintln!("wrote {}", page.display());
    Ok(())
}

/// What all experiments have in common.
struct Bench {
    kit: Arc<Kit>,
    store: Option<Store>,
    /// Frames of all cameras a second that the default configuration can do, by the kind of `detect`, once it is known.
    capacity: BTreeMap<Kind, f64>,
    seconds: f64,
    rounds: usize,
    data: PathBuf,
    setting: Vec<String>,
    report: Report,
}

impl Bench {
    fn prepare(options: &Options) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.data)
            .with_context(|| format!("cannot make {}", options.data.display()))?;
        let cores = std::thread::available_parallelism()?;
        let store = Store::find(options.external.as_deref(), &options.data)?;
        let external = store.as_ref().map_or("nothing", Store::kind);
        Ok(Self {
            kit: Arc::new(Kit::open(
                &options.frames,
                &options.functions,
                &options.python,
                &options.data.join("image"),
            )?),
            capacity: BTreeMap::new(),
            seconds: options.duration.get().as_secs_f64(),
            rounds: options.rounds as usize,
            data: options.data.clone(),
            setting: vec![
                format!("{cores} cores"),
                format!("{} rounds of {}", options.rounds, options.duration),
                format!("external: {external}"),
            ],
            store,
            report: Report::default(),
        })
    }

    /// A node with `detect`, `aggregate` and `collect`, changed, and its scene open.
    fn serve(
        &self,
        kind: Kind,
        external: Option<&str>,
        change: &dyn Fn(&mut Manifest),
    ) -> anyhow::Result<Server> {
        let artifacts = self.data.join("artifacts");
        let server = Server::start(&self.data.join("node"), &artifacts, external)?;
        for function in ["detect", "aggregate", "collect"] {
            server.deploy(&self.kit, function, kind, |manifest| change(manifest))?;
        }
        server.keep_artifacts(&artifacts)?;
        server.open_scene(&self.kit, false)?;
        Ok(server)
    }

    /// Timesteps a second that are this part of what the default configuration can do.
    fn rate(&mut self, kind: Kind, part: f64) -> anyhow::Result<f64> {
        let capacity = match self.capacity.get(&kind) {
            Some(capacity) => *capacity,
            None => {
                let server = self.serve(kind, None, &|_| {})?;
                let once = || flood::frames(&self.kit, &server, self.seconds.min(4.0));
                // The first one finds everything cold.
                once()?;
                let capacity = median(vec![once()?, once()?]);
                let name = kind.name();
                self.setting
                    .push(format!("up to {capacity:.0} frames/s tracked ({name})"));
                self.capacity.insert(kind, capacity);
                capacity
            }
        };
        Ok(capacity * part / self.kit.cameras() as f64)
    }

    /// Sends frames to a node when they are due.
    fn drive(&self, server: &Server, due: Vec<Duration>) -> anyhow::Result<drive::Seen> {
        let plan = drive::Plan {
            kit: self.kit.clone(),
            address: server.address,
            due,
            first: 0,
            then: Then::Aggregate,
        };
        sound(drive::run(&plan)?)
    }

    /// Sends frames at a rate to a node, for a while before it counts and then as long as it does.
    fn measure(&self, server: &Server, per_second: f64, then: Then) -> anyhow::Result<drive::Seen> {
        let warm_up = steady(per_second, self.seconds.min(3.0));
        let steps = warm_up.len() as u64;
        let mut plan = drive::Plan {
            kit: self.kit.clone(),
            address: server.address,
            due: warm_up,
            first: 0,
            then,
        };
        drive::run(&plan)?;
        plan.first = steps;
        plan.due = steady(per_second, self.seconds);
        drive::run(&plan)
    }

    /// Where external state goes, and those variants that can be run: without a store none with external state.
    fn possible<V: Copy>(
        &mut self,
        experiment: u8,
        all: &[V],
        is_external: fn(V) -> bool,
    ) -> (Option<String>, Vec<V>) {
        let url = self.store.as_ref().map(|store| store.url().to_owned());
        if url.is_none() {
            self.note(format!(
                "experiment {experiment} had no external store: give --external, or install redis-server"
            ));
        }
        let is_possible = |variant: &V| url.is_some() || !is_external(*variant);
        let possible = all.iter().copied().filter(is_possible).collect();
        (url, possible)
    }

    /// Runs each variant once a round, beginning with another one each time.
    fn in_turns<V, R>(
        &self,
        experiment: u8,
        variants: &[V],
        name: impl Fn(&V) -> String,
        mut run: impl FnMut(&V) -> anyhow::Result<R>,
    ) -> anyhow::Result<Vec<Vec<R>>> {
        let mut results: Vec<Vec<R>> = variants.iter().map(|_| Vec::new()).collect();
        for round in 0..self.rounds {
            for turn in 0..variants.len() {
                let at = (turn + round) % variants.len();
                let name = name(&variants[at]);
                eprintln!("experiment {experiment}, round {}: {name}", round + 1);
                let result = run(&variants[at]);
                results[at]
                    .push(result.with_context(|| format!("experiment {experiment}: {name}"))?);
            }
        }
        Ok(results)
    }

    fn row(
        &mut self,
        experiment: u8,
        variant: &str,
        metric: &'static str,
        unit: &'static str,
        values: &[f64],
    ) {
        if values.is_empty() {
            return;
        }
        let config = vec![
            ("experiment", experiment.to_string()),
            ("variant", variant.to_owned()),
        ];
        self.report.results.push(ResultRow {
            config,
            metric,
            unit,
            mean: median(values.to_vec()),
            ci95: None,
            n: values.len() as u64,
        });
    }

    fn finding(&mut self, claim: impl Into<String>, holds: bool, evidence: String) {
        self.report.findings.push(Finding {
            claim: claim.into(),
            holds,
            evidence,
        });
    }

    fn note(&mut self, note: impl Into<String>) {
        self.report.notes.push(note.into());
    }
}

/// Fails if something went wrong for good.
fn sound(seen: drive::Seen) -> anyhow::Result<drive::Seen> {
    if let Some(error) = &seen.error {
        anyhow::bail!("{error}");
    }
    ensure!(
        !seen.steps.is_empty(),
        "the run was too short for one timestep"
    );
    Ok(seen)
}
