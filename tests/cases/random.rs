//! Random pipelines, changed at random between runs, against the model in `support::model`.
//!
//! After each run the outputs are those of a clean build, and what ran is what had to: nothing else where nothing was damaged or killed.
//! `TRESTLE_CASES` says how many cases (2,000 if it is not set), `TRESTLE_SEED` which ones. A failing case is made smaller by proptest
//! and printed with its pipeline and steps.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::Value;

use crate::support::model::{Content, Fate, Instance, Key, Mode, Op, Pipeline, Source, Stage};
use crate::support::processes::kill_session;
use crate::support::{files, number, store, trestle, trestle_in_session};

/// What a stage is grown from: any numbers make a sensible stage, so that proptest can make a case smaller.
#[derive(Debug, Clone)]
struct Gene {
    op: u8,
    env: u8,
    inputs: Vec<(u16, u8)>,
    matrix: bool,
    folder: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Edit {
        source: u16,
        text: String,
    },
    /// Puts an unread file into a folder, or takes it out.
    Unread {
        source: u16,
    },
    /// Back to what the source was before its last change.
    Revert {
        source: u16,
    },
    Touch {
        source: u16,
        seconds: i32,
    },
    Param(u8),
    Rename {
        stage: u16,
    },
    Op {
        stage: u16,
        op: u8,
    },
    Env {
        stage: u16,
        env: u8,
    },
    Damage {
        file: u16,
        how: Harm,
    },
}

#[derive(Debug, Clone)]
enum Harm {
    Delete,
    DeleteFolder,
    /// Another byte somewhere; with the time of change put back or not.
    Flip {
        at: u16,
        secretly: bool,
    },
    Cut {
        at: u16,
    },
    Append,
    Empty,
}

#[derive(Debug, Clone)]
enum Act {
    /// Of these stages, or of all.
    Run { targets: Vec<u16>, jobs: u8 },
    /// The run, with all that it started, is killed after this long. For a run that is killed alone see the module `kills`.
    Kill { after_ms: u8 },
}

#[derive(Debug, Clone)]
struct Case {
    sources: Vec<(String, bool)>,
    genes: Vec<Gene>,
    rounds: Vec<(Vec<Change>, Act)>,
}

fn text() -> impl Strategy<Value = String> {
    // Few letters and little text, so that different stages often give the same bytes. `e` makes the checking stages fail.
    prop_oneof![9 => "[a-d\n]{0,5}", 1 => "[a-e\n]{0,5}"]
}

fn change() -> impl Strategy<Value = Change> {
    let harm = prop_oneof![
        3 => Just(Harm::Delete),
        1 => Just(Harm::DeleteFolder),
        4 => (any::<u16>(), any::<bool>()).prop_map(|(at, secretly)| Harm::Flip { at, secretly }),
        2 => any::<u16>().prop_map(|at| Harm::Cut { at }),
        1 => Just(Harm::Append),
        1 => Just(Harm::Empty),
    ];
    prop_oneof![
        6 => (any::<u16>(), text()).prop_map(|(source, text)| Change::Edit { source, text }),
        1 => any::<u16>().prop_map(|source| Change::Unread { source }),
        3 => any::<u16>().prop_map(|source| Change::Revert { source }),
        2 => (any::<u16>(), -100_000..100_000).prop_map(|(source, seconds)| Change::Touch { source, seconds }),
        2 => (0..3u8).prop_map(Change::Param),
        2 => any::<u16>().prop_map(|stage| Change::Rename { stage }),
        3 => (any::<u16>(), any::<u8>()).prop_map(|(stage, op)| Change::Op { stage, op }),
        2 => (any::<u16>(), 0..3u8).prop_map(|(stage, env)| Change::Env { stage, env }),
        3 => (any::<u16>(), harm).prop_map(|(file, how)| Change::Damage { file, how }),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let gene = (
        any::<u8>(),
        0..3u8,
        prop::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(op, env, inputs, matrix, folder)| Gene { op, env, inputs, matrix, folder });
    let act = prop_oneof![
        5 => (1..3u8).prop_map(|jobs| Act::Run { targets: Vec::new(), jobs }),
        2 => (prop::collection::vec(any::<u16>(), 1..3), 1..3u8).prop_map(|(targets, jobs)| Act::Run { targets, jobs }),
        1 => (0..60u8).prop_map(|after_ms| Act::Kill { after_ms }),
    ];
    // Mostly small: a graph of five shows most that a graph of twelve does.
    let size = prop_oneof![8 => 1..6usize, 1 => 6..13usize];
    let genes = size.prop_flat_map(move |size| prop::collection::vec(gene.clone(), size));
    let rounds = prop::collection::vec((prop::collection::vec(change(), 0..3), act), 1..4);
    (prop::collection::vec((text(), prop::bool::weighted(0.2)), 1..4), genes, rounds).prop_map(|(sources, genes, rounds)| Case {
        sources,
        genes,
        rounds,
    })
}

fn op(number: u8) -> Op {
    match number % 16 {
        0..4 => Op::Cat,
        4..7 => Op::Head(number / 16 % 6),
        7..9 => Op::Lines,
        9..11 => Op::Shift,
        11..13 => Op::Param,
        13..15 => Op::Env,
        _ => Op::Check,
    }
}

fn source(text: &str, folder: bool) -> Content {
    if folder { Content::Folder { a: text.to_owned(), c: "c\n".into(), unread: false } } else { Content::File(text.to_owned()) }
}

impl Case {
    /// The pipeline that the genes make.
    fn pipeline(&self) -> Pipeline {
        let sources = self.sources.iter().map(|(text, folder)| source(text, *folder)).collect();
        let mut pipeline = Pipeline { param: 0, sources, stages: Vec::new() };
        for (i, gene) in self.genes.iter().enumerate() {
            let stage =
                Stage { renamed: false, op: op(gene.op), env: gene.env, inputs: Vec::new(), matrix: gene.matrix, folder: gene.folder };
            pipeline.stages.push(stage);
            for &(which, mode) in &gene.inputs {
                let input = connect(&pipeline, i, which, mode);
                // See `sources::a_file_may_be_read_under_two_names`.
                let twice = matches!(input, Source::File(_)) && pipeline.stages[i].inputs.contains(&input);
                if !twice {
                    pipeline.stages[i].inputs.push(input);
                }
            }
        }
        pipeline
    }
}

/// The input that these numbers mean for stage `i`. At most two axes are inherited.
fn connect(pipeline: &Pipeline, i: usize, which: u16, mode: u8) -> Source {
    let which = usize::from(which) % (pipeline.sources.len() + 2 * i);
    if which < pipeline.sources.len() {
        return Source::File(which);
    }
    let up = (which - pipeline.sources.len()) / 2;
    let axes = pipeline.axes(up);
    let together = axes.union(&pipeline.axes(i)).count();
    Source::Stage(
        up,
        match mode % 4 {
            _ if axes.is_empty() => Mode::Inherit,
            0 | 1 if together <= 2 => Mode::Inherit,
            0 => Mode::Pick(1 + mode / 4 % 2),
            1 => Mode::Gather,
            2 => Mode::Gather,
            _ => Mode::Pick(1 + mode / 4 % 2),
        },
    )
}

/// A project on disk beside what the model knows of it.
struct Bench {
    folder: tempfile::TempDir,
    pipeline: Pipeline,
    /// What each source was before its last change.
    before: Vec<Content>,
    /// Keys whose outputs are in the cache for sure.
    certain: BTreeSet<Key>,
    /// Keys of which that is not known, for something was damaged or killed.
    perhaps: BTreeSet<Key>,
    /// Something was damaged since the last good run.
    damaged: bool,
    story: String,
}

type Verdict = Result<(), String>;

macro_rules! hold {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}

impl Bench {
    fn new(case: &Case) -> Self {
        let pipeline = case.pipeline();
        // In memory where that is possible: these tests are about what is decided, and a disk's sync would be most of their time.
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let before = pipeline.sources.clone();
        let bench =
            Self { folder, pipeline, before, certain: BTreeSet::new(), perhaps: BTreeSet::new(), damaged: false, story: String::new() };
        for source in 0..bench.before.len() {
            bench.put(source);
        }
        bench.write_yaml();
        bench
    }

    fn path(&self, source: usize) -> PathBuf {
        self.folder.path().join(format!("f{source}"))
    }

    /// Writes a source as the model has it.
    fn put(&self, source: usize) {
        let path = self.path(source);
        match &self.pipeline.sources[source] {
            Content::File(text) => std::fs::write(path, text).unwrap(),
            Content::Folder { a, c, unread } => {
                std::fs::create_dir_all(path.join("b")).unwrap();
                std::fs::write(path.join("a"), a).unwrap();
                std::fs::write(path.join("b/c"), c).unwrap();
                let z = path.join("z");
                if *unread { std::fs::write(z, "z").unwrap() } else { std::fs::remove_file(z).unwrap_or_default() }
            }
        }
    }

    fn write_yaml(&self) {
        std::fs::write(self.folder.path().join("trestle.yaml"), self.pipeline.yaml()).unwrap();
    }

    fn change(&mut self, change: &Change) {
        let _ = writeln!(self.story, "- {change:?}");
        let (sources, stages) = (self.pipeline.sources.len(), self.pipeline.stages.len());
        let source_of = |number: &u16| usize::from(*number) % sources;
        let stage_of = |number: &u16| usize::from(*number) % stages;
        match change {
            Change::Edit { source, text } => {
                let source = source_of(source);
                let mut content = self.pipeline.sources[source].clone();
                match &mut content {
                    Content::File(old) | Content::Folder { a: old, .. } => text.clone_into(old),
                }
                self.replace(source, content);
            }
            Change::Unread { source } => {
                let source = source_of(source);
                let mut content = self.pipeline.sources[source].clone();
                if let Content::Folder { unread, .. } = &mut content {
                    *unread = !*unread;
                }
                self.replace(source, content);
            }
            Change::Revert { source } => {
                let source = source_of(source);
                self.replace(source, self.before[source].clone());
            }
            Change::Touch { source, seconds } => self.touch(source_of(source), *seconds),
            Change::Param(value) => self.pipeline.param = *value,
            Change::Rename { stage } => self.pipeline.stages[stage_of(stage)].renamed ^= true,
            Change::Op { stage, op: number } => self.pipeline.stages[stage_of(stage)].op = op(*number),
            Change::Env { stage, env } => self.pipeline.stages[stage_of(stage)].env = *env,
            Change::Damage { file, how } => self.damage(*file, how),
        }
        self.write_yaml();
    }

    fn replace(&mut self, source: usize, content: Content) {
        self.before[source] = std::mem::replace(&mut self.pipeline.sources[source], content);
        self.put(source);
    }

    fn touch(&self, source: usize, seconds: i32) {
        let path = if self.pipeline.sources[source].is_folder() { self.path(source).join("a") } else { self.path(source) };
        let gap = Duration::from_secs(u64::from(seconds.unsigned_abs()));
        let now = std::time::SystemTime::now();
        let time = if seconds < 0 { now - gap } else { now + gap };
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn damage(&mut self, number: u16, how: &Harm) {
        let all = files(&store::folder(self.folder.path()));
        if all.is_empty() {
            return;
        }
        let path = &all[usize::from(number) % all.len()];
        let _ = writeln!(self.story, "  ({})", path.strip_prefix(self.folder.path()).unwrap().display());
        harm(path, how);
        self.damaged = true;
        self.perhaps.append(&mut self.certain);
    }
}

fn harm(path: &Path, how: &Harm) {
    let bytes = std::fs::read(path).unwrap();
    let at = |at: &u16| usize::from(*at) % bytes.len().max(1);
    match how {
        Harm::Delete => std::fs::remove_file(path).unwrap(),
        Harm::DeleteFolder => std::fs::remove_dir_all(path.parent().unwrap()).unwrap(),
        Harm::Flip { .. } if bytes.is_empty() => store::overwrite(path, b"x"),
        Harm::Flip { at: place, secretly } => {
            let mut bytes = bytes.clone();
            bytes[at(place)] ^= 1 << (place % 8);
            let modified = std::fs::metadata(path).unwrap().modified().unwrap();
            store::overwrite(path, &bytes);
            if *secretly {
                std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
            }
        }
        Harm::Cut { at: place } => store::overwrite(path, &bytes[..at(place)]),
        Harm::Append => store::overwrite(path, &[bytes.as_slice(), b"\0more"].concat()),
        Harm::Empty => store::overwrite(path, b""),
    }
}

/// What a run said of the stages, by name.
#[derive(Default, Debug)]
struct Heard {
    done: Vec<String>,
    running: Vec<String>,
    cached: BTreeSet<String>,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

impl Heard {
    fn of(stdout: &[u8]) -> Self {
        let mut heard = Self::default();
        // The last line of a killed run may be cut short.
        let lines = String::from_utf8_lossy(stdout);
        for event in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let stage = event["stage"].as_str().unwrap_or_default().to_owned();
            match event["event"].as_str().unwrap_or_default() {
                "done" => heard.done.push(stage),
                "running" => heard.running.push(stage),
                "cached" => drop(heard.cached.insert(stage)),
                "failed" => drop(heard.failed.insert(stage)),
                "skipped" => drop(heard.skipped.insert(stage)),
                _ => {}
            }
        }
        heard
    }
}

impl Bench {
    fn act(&mut self, act: &Act) -> Verdict {
        let _ = writeln!(self.story, "- {act:?}");
        match act {
            Act::Run { targets, jobs } => {
                let targets: BTreeSet<usize> = targets.iter().map(|target| usize::from(*target) % self.pipeline.stages.len()).collect();
                self.run(&targets, *jobs)
            }
            Act::Kill { after_ms } => self.kill(*after_ms),
        }
    }

    fn run(&mut self, targets: &BTreeSet<usize>, jobs: u8) -> Verdict {
        let wanted = self.pipeline.needed(targets);
        let mut command = trestle(self.folder.path());
        command.args(["run", "--format", "json", "--keep-going", "-j", &jobs.to_string()]);
        command.args(targets.iter().map(|target| self.pipeline.name(*target)));
        // After damage a run may end with the advice to run again; each such end removes what was damaged.
        for _ in 0..=if self.damaged { 3 } else { 0 } {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let heard = Heard::of(&output.stdout);
            let _ = writeln!(self.story, "  code {:?}: {heard:?} {said}", output.status.code());
            self.story
                .extend(String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.contains(r#":"failed""#)).map(|l| format!("  {l}\n")));
            let again = String::from_utf8_lossy(&output.stdout).contains("run again");
            if self.damaged && (again || self.must_start_anew(&said)) {
                self.learn(&heard);
                continue;
            }
            self.judge(&wanted, &heard, output.status.code())?;
            self.damaged &= !targets.is_empty();
            return self.outputs(&wanted);
        }
        Err("the damage does not go away".into())
    }

    /// A cache whose mark cannot be read is refused, and the way out is to remove it.
    fn must_start_anew(&mut self, said: &str) -> bool {
        // See `damage::a_damaged_plan_is_made_again`.
        if said.contains("remove the folder `plans`") {
            std::fs::remove_dir_all(store::plans(self.folder.path())).unwrap();
            return true;
        }
        let refused = said.contains("format");
        if refused {
            std::fs::remove_dir_all(store::folder(self.folder.path())).unwrap();
            self.perhaps.clear();
        }
        refused
    }

    /// Holds what happened to what had to.
    fn judge(&mut self, wanted: &BTreeSet<Instance>, heard: &Heard, code: Option<i32>) -> Verdict {
        let fates = self.pipeline.build();
        let done: BTreeSet<&String> = heard.done.iter().collect();
        hold!(done.len() == heard.done.len(), "a stage ran twice");
        let mut failed = false;
        let mut ran: BTreeSet<&Key> = BTreeSet::new();
        let mut gave: BTreeSet<&Key> = BTreeSet::new();
        for (instance, fate) in fates.iter().filter(|(instance, _)| wanted.contains(*instance)) {
            let name = self.pipeline.instance_name(instance);
            let (executed, cached) = (done.contains(&name), heard.cached.contains(&name));
            match fate {
                Fate::Skipped => hold!(heard.skipped.contains(&name), "{name} is not skipped"),
                Fate::Fails => {
                    failed = true;
                    hold!(heard.failed.contains(&name), "{name} does not fail");
                }
                Fate::Gives(key, _) => {
                    hold!(executed != cached, "{name} is neither or both: executed and cached");
                    hold!(!executed || self.damaged || !self.certain.contains(key), "{name} ran and was in the cache");
                    hold!(!executed || self.damaged || ran.insert(key), "{name} ran, and so did another stage of the same key");
                    if executed {
                        ran.insert(key);
                    }
                    gave.insert(key);
                }
            }
        }
        for key in &gave {
            let known = self.certain.contains(key) || self.perhaps.contains(key);
            hold!(known || ran.contains(key), "a stage was found in the cache that cannot be there: {key:?}");
        }
        let all = heard.done.len() + heard.cached.len() + heard.failed.len() + heard.skipped.len();
        hold!(all == wanted.len(), "{all} stages were heard of, not {}", wanted.len());
        hold!(code == Some(i32::from(failed)), "ended with {code:?}");
        for key in gave.into_iter().cloned().collect::<Vec<_>>() {
            self.perhaps.remove(&key);
            self.certain.insert(key);
        }
        Ok(())
    }

    /// Holds the outputs of what nobody else reads to a clean build; a stage that read wrong bytes shows there.
    fn outputs(&self, wanted: &BTreeSet<Instance>) -> Verdict {
        let fates = self.pipeline.build();
        let read: BTreeSet<Instance> = wanted.iter().flat_map(|instance| self.pipeline.upstream(instance)).collect();
        for instance in wanted.difference(&read) {
            let Fate::Gives(_, content) = &fates[instance] else { continue };
            self.output(instance, content)?;
        }
        Ok(())
    }

    fn output(&self, instance: &Instance, wanted: &Content) -> Verdict {
        let name = self.pipeline.instance_name(instance);
        let output = trestle(self.folder.path()).args(["out", &name]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        hold!(output.status.success(), "out {name}: {}", String::from_utf8_lossy(&output.stderr));
        let path = self.folder.path().join(said.trim_end());
        let read = |path: PathBuf| std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()));
        let found = match wanted {
            Content::File(_) => Content::File(read(path)?),
            Content::Folder { .. } => {
                Content::Folder { a: read(path.join("a"))?, c: read(path.join("b/c"))?, unread: path.join("z").exists() }
            }
        };
        hold!(found == *wanted, "{name} gives {found:?}, not {wanted:?}");
        Ok(())
    }

    /// A run that is killed: what it said was done is in the cache, the rest perhaps.
    fn kill(&mut self, after_ms: u8) -> Verdict {
        let mut command = trestle_in_session(self.folder.path());
        command.args(["run", "--format", "json", "--keep-going"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
        kill_session(&child.id().to_string());
        let heard = Heard::of(&child.wait_with_output().unwrap().stdout);
        let _ = writeln!(self.story, "  {heard:?}");
        self.learn(&heard);
        Ok(())
    }

    /// What a run that did not come to its end said was done is in the cache, the rest perhaps.
    fn learn(&mut self, heard: &Heard) {
        for (instance, fate) in self.pipeline.build() {
            let Fate::Gives(key, _) = fate else { continue };
            let name = self.pipeline.instance_name(&instance);
            if heard.done.contains(&name) {
                self.perhaps.remove(&key);
                self.certain.insert(key);
            } else if !self.certain.contains(&key) {
                self.perhaps.insert(key);
            }
        }
    }
}

fn play(case: &Case) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(case);
    let mut play = || {
        bench.act(&Act::Run { targets: Vec::new(), jobs: 2 })?;
        for (changes, act) in &case.rounds {
            changes.iter().for_each(|change| bench.change(change));
            bench.act(act)?;
        }
        bench.act(&Act::Run { targets: Vec::new(), jobs: 1 })?;
        bench.act(&Act::Run { targets: Vec::new(), jobs: 1 })
    };
    let verdict = play();
    verdict.map_err(|why| {
        TestCaseError::fail(format!("{why}\n\nWhat happened:\n{}\nThe pipeline at the end:\n{}", bench.story, bench.pipeline.yaml()))
    })
}

/// Plays the cases of one seed.
fn cases(seed: u32, count: u32) {
    let config = Config { cases: count, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(&case(), |case| play(&case)) {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => {
            panic!("seed {seed}: {why}\nThe pipeline at first:\n{}\n{case:#?}", case.pipeline().yaml())
        }
        Err(aborted) => panic!("seed {seed}: {aborted}"),
    }
}

/// Several at a time: a case waits for processes most of its time.
const THREADS: u32 = 4;

#[test]
fn random_pipelines_equal_their_model() {
    let (count, seed) = (number("TRESTLE_CASES", 2000), number("TRESTLE_SEED", 0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || cases(seed + thread, count.div_ceil(THREADS)))).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
