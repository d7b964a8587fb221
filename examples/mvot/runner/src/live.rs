//! `mvot run`: frames to a node at a given rate, results back, and how long that took.
//!
//! Open loop: each timestep's frames are sent when their time has come, whether or not earlier ones have been
//! answered, and latency counts from that time, so that a node that does not keep up looks slow. One task sends,
//! one task a frame waits for its answer, one task fetches results; fetching also tells the scene that time
//! passes, so that a timestep with missing frames is closed when it is due.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use indicatif::ProgressBar;
use mvot_core::message::{
    BUCKET, CameraRecord, FrameHeader, Request, Response, Settings, StepResult, Then, View,
    background_key, camera_key, encode_frame,
};
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::dataset::Dataset;
use crate::deploy::Functions;
use crate::node::{Node, parsed, segment};
use crate::offline::Input;
use crate::outcome::{Live, Metrics, Outcome, times};
use crate::progress;

/// Results fetched at once.
const RESULTS_AT_ONCE: u32 = 64;
/// How long no result may come, beyond what the scene itself waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Frames on their way at once: memory, not a rate. Over it the sender waits and says so.
const MAX_ON_THE_WAY: usize = 512;

/// Arguments of `mvot run`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) input: Input,
    /// Address of the node.
    #[arg(long, default_value = "http://127.0.0.1:7400")]
    pub(crate) node: String,
    /// Timesteps a second; as the calibration says when absent.
    #[arg(long)]
    pub(crate) fps: Option<f64>,
    /// Name of the scene: the session of `aggregate`.
    #[arg(long, default_value = "plaza")]
    pub(crate) scene: String,
    /// How long a timestep waits for frames that are missing, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    pub(crate) timeout_ms: u64,
    /// Pause between two requests for results, in milliseconds: part of the latency that is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) poll_ms: u64,
    /// Deploy the functions first.
    #[arg(long)]
    pub(crate) deploy: bool,
    #[command(flatten)]
    pub(crate) functions: Functions,
}

/// For each timestep with frames: when they were due, and when the last one was sent.
type Sent = Vec<Option<(Instant, Instant)>>;

/// What became of a frame.
struct Framed {
    camera: usize,
    step: usize,
    sent: Instant,
    took: Duration,
    refusals: u32,
    view: Result<View>,
}

/// What the sender and its frames tell at the end.
struct Sending {
    sent: Sent,
    framed: Vec<Framed>,
}

/// A result and when it was there.
struct Fetched {
    results: Vec<(StepResult, Instant)>,
    late: u64,
    repeated: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Args) -> Result<(Metrics, u64)> {
    let dataset = Arc::new(args.input.open()?);
    let fps = args.fps.unwrap_or(1.0 / dataset.calibration.step_seconds);
    anyhow::ensure!(
        (0.01..=1000.0).contains(&fps),
        "--fps has to be 0.01 to 1000, not {fps}"
    );
    let node = Node::new(&args.node)?;
    node.ready().await?;
    if args.deploy {
        args.functions.deploy(&node).await?;
    }
    prepare(args, &node, &dataset).await?;

    let bar = progress::bar(dataset.timesteps.len() as u64, "timesteps");
    let begun = Instant::now();
    let (all_sent, sending_done) = watch::channel(false);
    let fetching = tokio::spawn(fetch(
        args.clone(),
        node.clone(),
        dataset.timesteps.len() as u64,
        sending_done,
        bar.clone(),
    ));
    let mut sending = send(args, &node, &dataset, fps, &bar).await?;
    // The scene may close what is left: nothing more comes.
    all_sent.send_replace(true);
    let fetched = fetching.await.context("fetching results failed")??;
    bar.finish_and_clear();

    let mut outcome = Outcome {
        views: Vec::new(),
        results: Vec::new(),
        detect: times(),
        live: None,
    };
    let mut live = Live {
        from_due: times(),
        from_last: times(),
        frame: times(),
        frames: sending.framed.len() as u64,
        sent_again: 0,
        failed: 0,
        late: fetched.late,
        repeated: fetched.repeated,
        seconds: begun.elapsed().as_secs_f64(),
    };
    for (result, there) in fetched.results {
        if let Some((due, last)) = sending.sent[result.step as usize] {
            live.from_due.saturating_record(micros(there - due));
            live.from_last.saturating_record(micros(there - last));
        }
        outcome.results.push(result);
    }
    for framed in sending.framed.drain(..) {
        live.sent_again += u64::from(framed.refusals);
        match framed.view {
            Ok(view) => {
                live.frame.saturating_record(micros(framed.took));
                outcome.detect.saturating_record(view.detect_micros);
                outcome.views.push(view);
            }
            Err(error) => {
                if live.failed == 0 {
                    let camera = &dataset.camera(framed.camera).name;
                    eprintln!(
                        "frame {} of camera {camera} failed: {error:#}",
                        dataset.timesteps[framed.step]
                    );
                }
                live.failed += 1;
            }
        }
    }
    let failed = live.failed;
    outcome.live = Some(live);
    Ok((
        outcome.write(&dataset, &args.input.out, args.input.match_distance)?,
        failed,
    ))
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

/// Puts backgrounds and calibration into the shared bucket and opens the scene.
async fn prepare(args: &Args, node: &Node, dataset: &Arc<Dataset>) -> Result<()> {
    let samples = usize::from(args.input.background_samples);
    let for_backgrounds = dataset.clone();
    let backgrounds =
        tokio::task::spawn_blocking(move || for_backgrounds.backgrounds(samples)).await??;
    let key_path = |key: String| format!("/admin/state/shared/{BUCKET}/key/{}", segment(&key));
    for (camera, background) in dataset.calibration.cameras.iter().zip(backgrounds) {
        let Some(background) = background else {
            continue;
        };
        let png = background.to_png()?;
        let background_version = Sha256::digest(&png)
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let record = CameraRecord {
            calibration: camera.clone(),
            background_version,
        };
        // The record last: whoever reads it finds the background that it means.
        node.put(&key_path(background_key(&args.scene, &camera.name)), png)
            .await?;
        node.put(
            &key_path(camera_key(&args.scene, &camera.name)),
            serde_json::to_vec(&record)?,
        )
        .await?;
    }
    let settings = Settings {
        calibration: dataset.calibration.clone(),
        timeout_ms: args.timeout_ms,
    };
    ask(args, node, &Request::Open(settings))
        .await
        .context("cannot open the scene")?;
    Ok(())
}

/// Invokes `aggregate`. All its requests may be repeated.
async fn ask(args: &Args, node: &Node, request: &Request) -> Result<Response> {
    let path = format!("/fn/aggregate/{}", segment(&args.scene));
    parsed(
        &node
            .invoke(&path, serde_json::to_vec(request)?.into(), None)
            .await?
            .body,
    )
}

/// Sends all frames at their times and waits for their answers.
async fn send(
    args: &Args,
    node: &Node,
    dataset: &Arc<Dataset>,
    fps: f64,
    bar: &ProgressBar,
) -> Result<Sending> {
    // Another run of the same scene is not a repetition.
    let run = unix_ms();
    let on_the_way = Arc::new(Semaphore::new(MAX_ON_THE_WAY));
    let mut frames = JoinSet::new();
    let begun = tokio::time::Instant::now();
    for step in 0..dataset.timesteps.len() {
        let due = begun + Duration::from_secs_f64(step as f64 / fps);
        tokio::time::sleep_until(due).await;
        for camera in
            (0..dataset.calibration.cameras.len()).filter(|camera| dataset.has(*camera, step))
        {
            let permit = match on_the_way.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    bar.set_message("the node does not keep up: sending waits");
                    on_the_way.clone().acquire_owned().await?
                }
            };
            let (node, dataset, scene) = (node.clone(), dataset.clone(), args.scene.clone());
            frames.spawn(async move {
                let framed = send_frame(&node, &dataset, scene, run, camera, step).await;
                drop(permit);
                framed
            });
        }
    }
    let mut sent: Sent = vec![None; dataset.timesteps.len()];
    let mut framed = Vec::with_capacity(dataset.frames());
    while let Some(frame) = frames.join_next().await {
        let frame = frame??;
        let due = begun.into_std() + Duration::from_secs_f64(frame.step as f64 / fps);
        let times = sent[frame.step].get_or_insert((due, frame.sent));
        times.1 = times.1.max(frame.sent);
        framed.push(frame);
    }
    Ok(Sending { sent, framed })
}

async fn send_frame(
    node: &Node,
    dataset: &Dataset,
    scene: String,
    run: u64,
    camera: usize,
    step: usize,
) -> Result<Framed> {
    let path = dataset.path(camera, step);
    let png = tokio::fs::read(&path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let name = dataset.camera(camera).name.clone();
    let key = format!("{run}-{camera}-{step}");
    let header = FrameHeader {
        scene,
        camera: name,
        step: step as u64,
        sent_unix_ms: unix_ms(),
        then: Then::Aggregate,
    };
    let event = Bytes::from(encode_frame(&header, &png));
    let sent = Instant::now();
    let answer = node.invoke("/fn/detect", event, Some(&key)).await;
    let took = sent.elapsed();
    let refusals = answer.as_ref().map_or(0, |answer| answer.refusals);
    let view = answer.and_then(|answer| parsed(&answer.body));
    Ok(Framed {
        camera,
        step,
        sent,
        took,
        refusals,
        view,
    })
}

/// Fetches results until there is one for each timestep; checks that none is missing and none comes twice.
async fn fetch(
    args: Args,
    node: Node,
    steps: u64,
    sending_done: watch::Receiver<bool>,
    bar: ProgressBar,
) -> Result<Fetched> {
    let mut fetched = Fetched {
        results: Vec::new(),
        late: 0,
        repeated: 0,
    };
    let mut last_progress = Instant::now();
    let mut flushed = false;
    let scene_waits = Duration::from_millis(args.timeout_ms);
    loop {
        let from = fetched.results.len() as u64;
        let answer = ask(
            &args,
            &node,
            &Request::Results {
                from,
                limit: RESULTS_AT_ONCE,
            },
        )
        .await
        .context("cannot fetch results")?;
        let there = Instant::now();
        (fetched.late, fetched.repeated) = (answer.late, answer.repeated);
        for (expected, result) in (from..).zip(answer.results) {
            if result.step != expected || result.step >= steps {
                bail!(
                    "the result of timestep {} came where {expected} was due",
                    result.step
                );
            }
            last_progress = there;
            fetched.results.push((result, there));
        }
        bar.set_position(fetched.results.len() as u64);
        let all_there = fetched.results.len() as u64 == steps;
        // Once more, to acknowledge the last ones.
        if all_there && from == steps {
            return Ok(fetched);
        }
        let idle = last_progress.elapsed();
        if *sending_done.borrow()
            && idle > scene_waits + Duration::from_secs(1)
            && !flushed
            && !all_there
        {
            // Nothing is on its way any more: the last timesteps had no frame that could have told of them.
            ask(&args, &node, &Request::Flush { through: steps - 1 }).await?;
            flushed = true;
        } else if idle > scene_waits + PATIENCE && *sending_done.borrow() {
            bail!(
                "no result of timestep {} for {:.0} s; see `fulmar logs aggregate`",
                fetched.results.len(),
                idle.as_secs_f64()
            );
        }
        if !all_there {
            tokio::time::sleep(Duration::from_millis(args.poll_ms)).await;
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_millis() as u64)
}
