//! One graph, all tools: each phase in rounds, A B C A B C, so that whatever disturbs the machine disturbs all of them.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::check;
use crate::dag::{Dag, LEAF, MID, Shape};
use crate::measure::{Order, Taken, measure};
use crate::results::Row;
use crate::tools::{Phase, Stamps, Tool};

/// Phases on a graph, in their order: each begins in the state in which the one before it ended.
const ORDER: [Phase; 5] = [Phase::Full, Phase::Noop, Phase::Plan, Phase::Leaf, Phase::Mid];
/// Runs shorter than this many seconds are repeated more often.
const SHORT: f64 = 1.0;
/// How much more often.
const MORE: usize = 3;

/// How things are measured.
pub struct Settings {
    /// Folder for projects.
    pub work: PathBuf,
    /// Phases to measure.
    pub phases: Vec<Phase>,
    /// Rounds.
    pub repeat: usize,
    /// Seconds that a run may take, and that a tool may spend in a phase before it is not repeated any more.
    pub limit: f64,
    /// Whether projects are left where they are.
    pub keep: bool,
}

/// A tool in its project.
struct Contestant<'a> {
    tool: &'a Tool,
    project: PathBuf,
    /// Versions of sources so far.
    version: usize,
    /// Why it takes part no longer.
    out: Option<String>,
}

/// Measures all tools on one graph; gives rows, and who took no part and why.
pub fn graph(settings: &Settings, tools: &[&Tool], shape: Shape, n: usize) -> Result<(Vec<Row>, Vec<String>), String> {
    let dag = Dag::new(shape, n)?;
    let folder = settings.work.join(format!("{}-{n}", shape.name()));
    let mut contestants = Vec::new();
    for tool in tools.iter().filter(|tool| tool.takes_part(Phase::Full, n)) {
        let project = folder.join(tool.name.replace(' ', "-"));
        crate::tools::remove(&project).map_err(|e| format!("{}: {e}", project.display()))?;
        set_up(tool, &project, &dag)?;
        contestants.push(Contestant { tool, project, version: 0, out: None });
    }
    let mut rows = Vec::new();
    for phase in ORDER.into_iter().filter(|phase| *phase == Phase::Full || settings.phases.contains(phase)) {
        let measured = phase_of(settings, &mut contestants, &dag, phase)?;
        if settings.phases.contains(&phase) {
            rows.extend(measured);
        }
    }
    // The projects stay until all is measured: ext4 would charge the next ones for the files of these.
    let why =
        |contestant: &Contestant| contestant.out.clone().map(|why| format!("{} with {} {n}: {why}", contestant.tool.name, shape.name()));
    Ok((rows, contestants.iter().filter_map(why).collect()))
}

fn set_up(tool: &Tool, project: &Path, dag: &Dag) -> Result<(), String> {
    let sources = project.join("src");
    fs::create_dir_all(&sources).map_err(|e| format!("{}: {e}", sources.display()))?;
    for name in dag.sources() {
        write_source(project, name, 0)?;
    }
    tool.write(project, dag)
}

fn write_source(project: &Path, name: &str, version: usize) -> Result<(), String> {
    let path = project.join(format!("src/{name}.txt"));
    fs::write(&path, format!("source {name} v{version}\n")).map_err(|e| format!("{}: {e}", path.display()))
}

/// One phase, all rounds.
fn phase_of(settings: &Settings, contestants: &mut [Contestant], dag: &Dag, phase: Phase) -> Result<Vec<Row>, String> {
    let n = dag.stages.len();
    let expected = expected(dag, phase);
    // Without being asked for, a full run is there to begin from.
    let rounds = if settings.phases.contains(&phase) { settings.repeat } else { 1 };
    let mut runs: Vec<Vec<Taken>> = contestants.iter().map(|_| Vec::new()).collect();
    let mut takes_part: Vec<bool> = contestants.iter().map(|c| c.out.is_none() && c.tool.takes_part(phase, n)).collect();
    let started = takes_part.clone();
    for round in 0..rounds * MORE {
        for (i, contestant) in contestants.iter_mut().enumerate().filter(|(i, _)| started[*i]) {
            takes_part[i] = takes_part[i] && goes_on(&runs[i], round, rounds, phase, settings.limit);
            if !takes_part[i] {
                continue;
            }
            progress(&format!("{} {n} {phase:?}, round {}: {}", dag.shape.name(), round + 1, contestant.tool.name));
            match once(settings, contestant, phase, expected) {
                Ok(taken) => runs[i].push(taken),
                Err((taken, why)) => {
                    runs[i].extend(taken);
                    contestant.out = Some(why);
                    takes_part[i] = false;
                }
            }
        }
    }
    progress("");
    let mut rows = Vec::new();
    for (i, contestant) in contestants.iter_mut().enumerate().filter(|(i, _)| started[*i]) {
        if contestant.out.is_none() && phase != Phase::Noop && phase != Phase::Plan {
            contestant.out = check::outputs(contestant.tool, &contestant.project, dag).err();
        }
        let invalid = contestant.out.clone();
        rows.push(Row::new(dag.shape.name(), n, phase, &contestant.tool.name, expected, std::mem::take(&mut runs[i]), invalid));
    }
    Ok(rows)
}

/// Whether a tool with these runs takes part in a round.
fn goes_on(runs: &[Taken], round: usize, rounds: usize, phase: Phase, limit: f64) -> bool {
    let spent: f64 = runs.iter().map(|run| run.wall).sum();
    let short = phase != Phase::Full && runs.iter().all(|run| run.wall < SHORT);
    round == 0 || (spent < limit && (round < rounds || (short && rounds > 1)))
}

/// How many stages have to run.
fn expected(dag: &Dag, phase: Phase) -> usize {
    match phase {
        Phase::Full => dag.stages.len(),
        Phase::Leaf => dag.cone(LEAF),
        Phase::Mid => dag.cone(MID),
        Phase::Noop | Phase::Plan | Phase::Hash | Phase::GitStatus => 0,
    }
}

/// One run, which must end well and run as many stages as it has to.
fn once(settings: &Settings, contestant: &mut Contestant, phase: Phase, expected: usize) -> Result<Taken, (Option<Taken>, String)> {
    let (tool, project) = (contestant.tool, contestant.project.clone());
    prepare(contestant, phase).map_err(|why| (None, why))?;
    let before = Stamps::of(&project).map_err(|why| (None, why))?;
    settle(&project);
    let log = project.with_extension("log");
    let order = Order { command: tool.command(phase), folder: project.clone(), log: log.clone(), limit: settings.limit };
    let taken = measure(&order).map_err(|why| (None, why))?;
    if let Some(why) = &taken.failure {
        let why = format!("{why}; {}", end_of(&log));
        return Err((Some(taken), why));
    }
    match tool.ran(phase, &log, &project, &before) {
        Ok(ran) if ran == expected => Ok(taken),
        Ok(ran) => Err((Some(taken), format!("{ran} stages ran, not {expected}"))),
        Err(why) => Err((Some(taken), why)),
    }
}

fn prepare(contestant: &mut Contestant, phase: Phase) -> Result<(), String> {
    let source = match phase {
        Phase::Full => return contestant.tool.forget(&contestant.project),
        Phase::Leaf => LEAF,
        Phase::Mid => MID,
        _ => return Ok(()),
    };
    // Further than the grain of file times from what was written last.
    std::thread::sleep(Duration::from_millis(20));
    contestant.version += 1;
    write_source(&contestant.project, source, contestant.version)
}

/// Shows what is being measured, in one line of a terminal.
pub fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

/// Lets the disk finish what was written before: it is none of the next run's work. Where that fails, runs of all tools begin alike.
pub fn settle(folder: &Path) {
    #[cfg(target_os = "linux")]
    if let Ok(folder) = fs::File::open(folder) {
        let _ = nix::unistd::syncfs(folder);
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        nix::unistd::sync();
    }
}

/// The last line of a log.
pub fn end_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
    line.chars().take(160).collect()
}
