//! `trestle run`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use trestle_engine::event::Event;
use trestle_engine::executor::{Cancel, Executor, Local, end_below};
use trestle_engine::run::{Options, Summary, run as run_pipeline};

use crate::args::{Format, Run};
use crate::fail::Fail;
use crate::lists::{self, Rounds};
use crate::project::Session;
use crate::render::{self, Render};

/// How long a stage has to end after an interruption.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes that are read again at most at the end of a run.
const SETTLE_BYTES: u64 = 256 << 20;
/// Variables of ours that stages get.
const PASSED: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "LC_ALL"];

/// Runs the pipeline.
pub fn run(args: &Run) -> Result<ExitCode, Fail> {
    let mut render: Box<dyn Render> = match args.format {
        Format::Human => render::human(),
        Format::Json => Box::new(render::Json),
    };
    let cancel = Cancel::new().map_err(|e| Fail::message(format!("cannot make a pipe: {e}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::message(format!("cannot start the runtime: {e}")))?;
    {
        let _inside = runtime.enter();
        listen(cancel.clone());
    }
    let mut rounds = Rounds::default();
    // Lists that stages are expanded over are made in rounds of their own; the last round is for everything.
    loop {
        if let Some(summary) = round(args, &runtime, &cancel, &mut rounds, render.as_mut())? {
            return Ok(exit_code(&summary));
        }
    }
}

/// One round; its counts if it was the last.
fn round(
    args: &Run,
    runtime: &tokio::runtime::Runtime,
    cancel: &Cancel,
    rounds: &mut Rounds,
    render: &mut dyn Render,
) -> Result<Option<Summary>, Fail> {
    let (mut session, targets) = Session::open(&args.words, &args.source)?;
    let asked = lists::wanted(&session, &targets)?;
    let is_last = asked.later.is_empty();
    let asked = if is_last { asked } else { rounds.begin(asked, &session.compiled)? };
    let wanted = |id: usize| asked.has(id);
    let _held = session.cache.share()?;
    session.cache.sweep_tmp(&mut |folder| end_below(folder))?;
    let options = options(args, &session);
    let executor: Arc<dyn Executor> = Arc::new(local(args, &options, &session)?);
    let (compiled, cache) = (Arc::clone(&session.compiled), Arc::clone(&session.cache));
    let mut events = |event: Event| {
        if let Some(event) = rounds.event(event, is_last) {
            render.event(&event);
        }
    };
    let summary =
        runtime.block_on(run_pipeline(&compiled, &mut session.planner, &wanted, &cache, &executor, &options, cancel, &mut events))?;
    if !is_last && lists::is_good(&summary) {
        // What the last run left of the other stages is not thrown away for what this round knows.
        session.cache.flush()?;
        rounds.end(&summary);
        return Ok(None);
    }
    if args.format == Format::Human && lists::is_good(&summary) {
        render::tables(&session, &wanted)?;
    }
    let summary = rounds.total(summary);
    finish(session, &summary, render)?;
    Ok(Some(summary))
}

/// Makes what was stored durable, and known by its stat, so that the next run need not read it again.
fn finish(session: Session, summary: &Summary, render: &mut dyn Render) -> Result<(), Fail> {
    if summary.executed > 0 {
        session.cache.sync()?;
        for blob in session.cache.settle(SETTLE_BYTES)? {
            render.note(&format!(
                "warning: blob:{} was changed in the store by a stage that reads it; the stage that makes it will run again",
                blob.short()
            ));
        }
    }
    if let Some(remark) = session.keep()? {
        render.note(&format!("warning: {remark}"));
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

fn options(args: &Run, session: &Session) -> Options {
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let env: BTreeMap<String, String> = PASSED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    Options {
        cpus: args.jobs.map_or(machine, usize::from),
        memory: memory(),
        gpus: gpus(),
        pools: session.compiled.pools.clone(),
        keep_going: args.keep_going,
        verbose: args.verbose,
        report_cached: args.format == Format::Json,
        env,
        host: std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned()),
        versions: BTreeMap::from([
            ("trestle".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("target".to_owned(), format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
            ("instructions".to_owned(), trestle_stages::instruction_set().to_owned()),
        ]),
        logs: session.logs(),
        root: session.root().to_owned(),
    }
}

/// Memory of this machine in bytes; without bound where it does not say.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(u64::MAX, |kib| kib << 10)
}

/// The GPUs that this process may use: those that `CUDA_VISIBLE_DEVICES` names, else all whose device file is there.
fn gpus() -> Vec<u32> {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return visible.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    }
    (0..64).filter(|number| std::path::Path::new(&format!("/dev/nvidia{number}")).exists()).collect()
}

fn local(args: &Run, options: &Options, session: &Session) -> Result<Local, Fail> {
    let program = std::env::current_exe().map_err(|e| Fail::message(format!("cannot find this program: {e}")))?;
    let closed = vec![session.root().to_owned(), session.cache.root().to_owned()];
    let rooms = session.cache.root().join("tmp");
    Ok(Local::new(vec![program.into_os_string()], options.env.clone(), GRACE, args.sandbox.into(), closed, rooms))
}

/// The first Ctrl-C (or SIGTERM) asks for the end; the second ends everything now.
fn listen(cancel: Cancel) {
    tokio::spawn(async move {
        if interruption().await.is_err() {
            return;
        }
        cancel.end();
        if interruption().await.is_err() {
            return;
        }
        cancel.kill();
        // Time enough to note what was finished; a third Ctrl-C is not needed.
        tokio::time::sleep(Duration::from_secs(2)).await;
        std::process::exit(130);
    });
}

async fn interruption() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed,
        _ = terminate.recv() => Ok(()),
    }
}
