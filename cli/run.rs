//! `trestle run`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trestle_cache::RunLock;
use trestle_engine::event::Event;
use trestle_engine::executor::{Executor, Local};
use trestle_engine::history::Recorder;
use trestle_engine::run::{Options, Summary, run as run_pipeline};

use crate::args::{Format, Run};
use crate::fail::Fail;
use crate::lock::Held;
use crate::project::{Project, RUNS};
use crate::render::{self, Render};

/// How long a stage has to end after an interruption.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes that are read again at most at the end of a run.
const SETTLE_BYTES: u64 = 256 << 20;
/// Variables of ours that stages get.
const PASSED: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "LC_ALL"];

/// Runs the pipeline.
pub fn run(args: &Run) -> Result<ExitCode, Fail> {
    let (mut project, targets) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let wanted = project.wanted(&targets)?;
    let mut render: Box<dyn Render> = match args.format {
        Format::Human if args.ci => Box::new(render::ci::Ci::default()),
        Format::Human => render::human(),
        Format::Json => Box::new(render::Json),
    };
    let held = lock(&project, render.as_mut())?;
    project.cache.sweep_tmp(&held)?;
    let mut locked = if args.locked { Some(Held::begin(&project, &wanted)?) } else { None };
    let options = options(args, &project);
    let executor: Arc<dyn Executor> = Arc::new(local(&options)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::message(format!("cannot start the runtime: {e}")))?;
    let (pipeline, cache) = (Arc::clone(&project.pipeline), Arc::clone(&project.cache));
    let mut recorder = Recording::begin(&project, &options, render.as_mut());
    let result = runtime.block_on(async {
        let (stop, cancel) = interruptions();
        let mut events = |event: Event| {
            if locked.as_mut().is_some_and(|locked| !locked.allows(&event, &cache)) {
                // Nobody listens only when the run is over.
                let _ = stop.send(true);
            }
            recorder.event(&event, render.as_mut());
            render.event(&event);
        };
        run_pipeline(&pipeline, &wanted, &cache, &mut project.last, &executor, &options, cancel, &mut events).await
    });
    let summary = result?;
    settle(&project, &summary, render.as_mut())?;
    if let Some(locked) = locked {
        locked.end(&project.pipeline)?;
    }
    if args.format == Format::Human && is_good(&summary) {
        render::tables(&project, &wanted)?;
    }
    Ok(exit_code(&summary))
}

/// The account of this run, as long as it can be written: a run does not fail for want of it.
struct Recording(Option<Recorder>);

impl Recording {
    fn begin(project: &Project, options: &Options, render: &mut dyn Render) -> Self {
        let pipeline = &project.pipeline;
        let command = std::env::args().skip(1).collect();
        let folder = project.folder.join(RUNS);
        match Recorder::begin(&folder, &pipeline.name, &pipeline.params, command, &options.host, env!("CARGO_PKG_VERSION")) {
            Ok(recorder) => Self(Some(recorder)),
            Err(error) => Self::without(&error, render),
        }
    }

    fn event(&mut self, event: &Event, render: &mut dyn Render) {
        if let Some(recorder) = &mut self.0
            && let Err(error) = recorder.event(event)
        {
            *self = Self::without(&error, render);
        }
    }

    fn without(error: &trestle_engine::error::Error, render: &mut dyn Render) -> Self {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        render.note(&format!("warning: `trestle runs` will not have this run: {error}{cause}"));
        Self(None)
    }
}

/// Makes what was stored known by its stat, so that the next run need not read it again.
fn settle(project: &Project, summary: &Summary, render: &mut dyn Render) -> Result<(), Fail> {
    if summary.executed > 0 {
        for blob in project.cache.settle(SETTLE_BYTES)? {
            render.note(&format!(
                "warning: blob:{} was changed in the store by a stage that reads it; the stage that makes it will run again",
                blob.short()
            ));
        }
    }
    Ok(project.cache.flush()?)
}

fn is_good(summary: &Summary) -> bool {
    summary.failed + summary.skipped + summary.cancelled == 0
}

fn exit_code(summary: &Summary) -> ExitCode {
    match summary {
        Summary { failed, .. } if *failed > 0 => ExitCode::from(1),
        Summary { cancelled, .. } if *cancelled > 0 => ExitCode::from(130),
        _ => ExitCode::SUCCESS,
    }
}

/// One run at a time uses a cache; the system frees the lock of a run that died.
fn lock(project: &Project, render: &mut dyn Render) -> Result<RunLock, Fail> {
    if let Some(lock) = project.cache.try_lock()? {
        return Ok(lock);
    }
    render.note("waiting for another run in this project to end");
    Ok(project.cache.lock()?)
}

/// Threads to use: as many as were asked for, else all of the machine.
pub fn threads(asked: Option<u16>) -> usize {
    asked.map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from)
}

fn options(args: &Run, project: &Project) -> Options {
    let env: BTreeMap<String, String> = PASSED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    Options {
        cpus: threads(args.jobs),
        keep_going: args.keep_going,
        env,
        host: std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned()),
        versions: BTreeMap::from([
            ("trestle".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("target".to_owned(), format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
            ("instructions".to_owned(), trestle_stages::instruction_set().to_owned()),
        ]),
        logs: project.logs(),
    }
}

fn local(options: &Options) -> Result<Local, Fail> {
    let program = std::env::current_exe().map_err(|e| Fail::message(format!("cannot find this program: {e}")))?;
    Ok(Local { program: vec![program.into_os_string()], env: options.env.clone(), grace: GRACE })
}

/// Turns true at the first Ctrl-C (or SIGTERM), or when something is sent; the second Ctrl-C ends the program at once.
fn interruptions() -> (watch::Sender<bool>, watch::Receiver<bool>) {
    let (sender, receiver) = watch::channel(false);
    let pressed = sender.clone();
    tokio::spawn(async move {
        if interruption().await.is_err() {
            return;
        }
        // Nobody listens only when the run is over.
        let _ = pressed.send(true);
        if interruption().await.is_ok() {
            std::process::exit(130);
        }
    });
    (sender, receiver)
}

async fn interruption() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed,
        _ = terminate.recv() => Ok(()),
    }
}
