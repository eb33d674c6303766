//! `trestle run`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use trestle_engine::event::Event;
use trestle_engine::executor::{Cancel, Executor, Local, Sandbox, VISIBLE_GPUS, end_below};
use trestle_engine::run::{Ending, Options, Summary, run as run_pipeline};
use trestle_engine::runs::Recorder;

use crate::args::{Format, Run};
use crate::fail::Fail;
use crate::lists::{self, Rounds};
use crate::lock::Held;
use crate::project::{RUNS, Session};
use crate::render::{self, Render};

/// How long a stage has to end after an interruption.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes that are read again at most at the end of a run.
const SETTLE_BYTES: u64 = 256 << 20;
/// Variables of ours that stages get.
const PASSED: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "LC_ALL"];

/// Variables that say how native stages reach Hugging Face: none of them can change what a stage gives. Commands do not get them.
const HUB: [&str; 9] =
    ["HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Where a program for GPUs finds CUDA's libraries. Native stages alone get it, and programs that were built for GPUs alone hand it on.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// Runs the pipeline.
pub fn run(args: &Run) -> Result<ExitCode, Fail> {
    let mut render: Box<dyn Render> = match args.format {
        Format::Human if args.ci => Box::new(render::ci::Ci::default()),
        Format::Human => render::human(),
        Format::Json => Box::new(render::Json),
    };
    let cancel = interruptible()?;
    let runtime = runtime()?;
    let summary = all_rounds(args, &runtime, &cancel, render.as_mut())?;
    // Every stage has ended: there is no thread to wait for.
    runtime.shutdown_background();
    Ok(exit_code(&summary))
}

/// Runs all rounds; the counts of the last.
fn all_rounds(args: &Run, runtime: &tokio::runtime::Runtime, cancel: &Cancel, render: &mut dyn Render) -> Result<Summary, Fail> {
    let mut rounds = Rounds::default();
    let mut recording = None;
    let mut is_mended = false;
    // Lists that stages are expanded over are made in rounds of their own; the last round is for everything.
    loop {
        let start = Instant::now();
        match round(args, runtime, cancel, &mut rounds, &mut recording, render) {
            Ok(Some(summary)) => return Ok(summary),
            Ok(None) => {}
            // What was kept of the pipeline turned out to be damaged on the way: what is done is done, and the rest begins anew from the YAML.
            Err(fail) if fail.is_damaged_plan() && !is_mended => {
                is_mended = true;
                Session::forget(&args.words, &args.source)?;
                rounds.end(start.elapsed());
            }
            Err(fail) => return Err(fail),
        }
    }
}

/// One round; its counts if it was the last.
fn round(
    args: &Run,
    runtime: &tokio::runtime::Runtime,
    cancel: &Cancel,
    rounds: &mut Rounds,
    recording: &mut Option<Recording>,
    render: &mut dyn Render,
) -> Result<Option<Summary>, Fail> {
    let (mut session, targets) = Session::open(&args.words, &args.source)?;
    let asked = lists::wanted(&session, &targets)?;
    let is_last = asked.later.is_empty();
    let asked = if is_last { asked } else { rounds.begin(asked, &session.compiled)? };
    let wanted = |id: usize| asked.has(id);
    let _held = session.cache.share()?;
    session.cache.sweep_tmp(&mut |folder| end_below(folder))?;
    let mut locked = if args.locked { Some(Held::begin(&session, &wanted)?) } else { None };
    let options = Options {
        verbose: args.verbose,
        report_cached: args.format == Format::Json,
        ..options(args.jobs, args.keep_going, session.compiled.pools.clone(), session.logs(), session.root())
    };
    let recorded = recording.get_or_insert_with(|| Recording::begin(&session, &options, render));
    let executor: Arc<dyn Executor> = Arc::new(local(args.sandbox.into(), &options, session.cache.root())?);
    let (compiled, cache) = (Arc::clone(&session.compiled), Arc::clone(&session.cache));
    let mut events = |event: Event| {
        if locked.as_mut().is_some_and(|locked| !locked.allows(&event, &cache)) {
            cancel.end();
        }
        if let Some(event) = rounds.event(event, is_last) {
            recorded.event(&event, render);
            render.event(&event);
        }
    };
    let (summary, ending) =
        runtime.block_on(run_pipeline(&compiled, &mut session.planner, &wanted, &cache, &executor, &options, cancel, &mut events))?;
    if let Some(locked) = locked {
        locked.end()?;
    }
    if !is_last && lists::is_good(&summary) {
        runtime.block_on(ending.wait())?;
        // What the last run left of the other stages is not thrown away for what this round knows.
        session.cache.flush()?;
        rounds.end(Duration::from_secs_f64(summary.seconds));
        return Ok(None);
    }
    if args.format == Format::Human && lists::is_good(&summary) {
        render::tables(&session, &wanted)?;
    }
    let summary = rounds.total(summary);
    if let Some(recording) = recording.take() {
        recording.end(&session, &wanted, summary, render);
    }
    finish(session, &summary, runtime, ending, render)?;
    Ok(Some(summary))
}

/// The account of this run, as long as it can be written: a run does not fail for want of it.
struct Recording(Option<Recorder>);

impl Recording {
    fn begin(session: &Session, options: &Options, render: &mut dyn Render) -> Self {
        let compiled = &session.compiled;
        let command = std::env::args().skip(1).collect();
        let folder = session.cache.root().join(RUNS);
        match Recorder::begin(&folder, &compiled.name, &compiled.params, command, &options.host, env!("CARGO_PKG_VERSION")) {
            Ok(recorder) => Self(Some(recorder)),
            Err(error) => Self::without(&error, render),
        }
    }

    fn event(&mut self, event: &Event, render: &mut dyn Render) {
        // The end needs what no event tells.
        if let Some(recorder) = self.0.as_mut().filter(|_| !matches!(event, Event::Summary(_)))
            && let Err(error) = recorder.event(event)
        {
            *self = Self::without(&error, render);
        }
    }

    fn end(self, session: &Session, wanted: &dyn Fn(usize) -> bool, summary: Summary, render: &mut dyn Render) {
        let Some(mut recorder) = self.0 else { return };
        let mut end = || {
            let names = session.compiled.names()?;
            let planner = &session.planner;
            let known = names.iter().enumerate().filter(|(id, _)| wanted(*id));
            recorder.others(known.filter_map(|(id, name)| Some((name, planner.key(id)?))))?;
            recorder.event(&Event::Summary(summary))
        };
        if let Err(error) = end() {
            Self::without(&error, render);
        }
    }

    fn without(error: &trestle_engine::error::Error, render: &mut dyn Render) -> Self {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        render.note(&format!("warning: `trestle runs` will not have this run: {error}{cause}"));
        Self(None)
    }
}

/// Makes what was stored durable, and known by its stat, so that the next run need not read it again.
fn finish(
    session: Session,
    summary: &Summary,
    runtime: &tokio::runtime::Runtime,
    ending: Ending,
    render: &mut dyn Render,
) -> Result<(), Fail> {
    let cache = Arc::clone(&session.cache);
    if summary.executed > 0 {
        for blob in session.cache.settle(SETTLE_BYTES)? {
            render.note(&format!(
                "warning: blob:{} was changed in the store by a stage that reads it; the stage that makes it will run again",
                blob.short()
            ));
        }
    }
    if let Some(remark) = session.keep(|| Ok(runtime.block_on(ending.wait())?))? {
        render.note(&format!("warning: {remark}"));
    }
    // A process that a killed run was just starting holds its lock until it is the command, so that the first sweep may miss it.
    if summary.executed > 0
        && let Err(error) = cache.sweep_tmp(&mut |folder| end_below(folder))
    {
        render.note(&format!("warning: what a killed run left is still there: {error}"));
    }
    Ok(())
}

fn exit_code(summary: &Summary) -> ExitCode {
    match summary {
        Summary { failed, .. } if *failed > 0 => ExitCode::from(1),
        Summary { cancelled, .. } if *cancelled > 0 => ExitCode::from(130),
        _ => ExitCode::SUCCESS,
    }
}

/// Threads to use: as many as were asked for, else all of the machine.
pub fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from)
}

/// How to run on this machine.
pub fn options(jobs: Option<u16>, keep_going: bool, pools: BTreeMap<String, u32>, logs: PathBuf, root: &Path) -> Options {
    let env: BTreeMap<String, String> = PASSED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    Options {
        cpus: threads(jobs),
        memory: memory(),
        gpus: gpus(),
        pools,
        keep_going,
        verbose: false,
        report_cached: false,
        env,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        versions: versions(),
        logs,
        root: root.to_owned(),
    }
}

/// What the records name: this program, and what of the machine can change the bits of a result.
fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([
        ("trestle".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("target".to_owned(), format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
        ("instructions".to_owned(), trestle_stages::instruction_set().to_owned()),
    ]);
    if trestle_stages::nn::compute::has_cuda() {
        versions.insert("gpus".to_owned(), gpu_models());
    }
    versions
}

/// The models of this machine's GPUs, as the driver names them.
fn gpu_models() -> String {
    let folders = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let model = |folder: std::fs::DirEntry| {
        let text = std::fs::read_to_string(folder.path().join("information")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Model:")).map(|model| model.trim().to_owned())
    };
    let mut models: Vec<String> = folders.filter_map(model).collect();
    models.sort();
    if models.is_empty() { "none".to_owned() } else { models.join(", ") }
}

/// Memory of this machine in bytes; without bound where it does not say.
fn memory() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let info = rustix::system::sysinfo();
        u64::from(info.mem_unit).saturating_mul(info.totalram)
    }
    #[cfg(not(target_os = "linux"))]
    u64::MAX
}

/// The GPUs that this process may use: those that `CUDA_VISIBLE_DEVICES` names, else all whose device file is there.
fn gpus() -> Vec<u32> {
    if let Ok(visible) = std::env::var(VISIBLE_GPUS) {
        return visible.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    }
    let is_there = |name: &str| Path::new("/dev").join(name).exists();
    // Without the driver's own device there are none: one look instead of sixty-four.
    if !is_there("nvidiactl") {
        return Vec::new();
    }
    (0..64).filter(|number| is_there(&format!("nvidia{number}"))).collect()
}

/// Processes on this machine, with the rooms of stages in a cache.
pub fn local(sandbox: Sandbox, options: &Options, cache: &Path) -> Result<Local, Fail> {
    let program = std::env::current_exe().map_err(|e| Fail::message(format!("cannot find this program: {e}")))?;
    let closed = vec![options.root.clone(), cache.to_owned()];
    let rooms = cache.join("tmp");
    let mut env = options.env.clone();
    let libraries = Some(&LIBRARIES).filter(|_| trestle_stages::nn::compute::has_cuda());
    env.extend(HUB.iter().chain(libraries).filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    Ok(Local::new(vec![program.into_os_string()], env, GRACE, sandbox, closed, rooms))
}

/// The first Ctrl-C (or SIGTERM) asks for the end; the second ends everything now. Where nobody would hear it, as before the first stage, it ends
/// this process as it ends any other.
pub fn interruptible() -> Result<Cancel, Fail> {
    let make = || {
        let (read, write) = std::io::pipe()?;
        let unheard = Arc::new(AtomicBool::new(true));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&unheard))?;
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Cancel::new(read.into(), unheard, || drop(std::thread::spawn(end_soon)))
    };
    make().map_err(|e: std::io::Error| Fail::message(format!("cannot listen for Ctrl-C: {e}")))
}

/// Leaves time enough to note what was finished; a third Ctrl-C is not needed.
fn end_soon() {
    std::thread::sleep(Duration::from_secs(2));
    std::process::exit(130);
}

/// What a run waits in.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fail> {
    let built = tokio::runtime::Builder::new_current_thread().enable_time().build();
    built.map_err(|e| Fail::message(format!("cannot start the runtime: {e}")))
}
