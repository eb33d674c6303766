//! SIGKILL at random moments, while stages write large files and while these are stored.
//!
//! `TRESTLE_KILLS` says how often (26 if it is not set), `TRESTLE_SEED` at which moments.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::processes::kill_session;
use crate::support::{Done, Project, number, store, text, trestle_in_session};

/// Bytes of each file.
const SIZE: usize = 2_000_000;
/// Files in the folder.
const FILES: usize = 6;
/// Longest that a run may take that follows a kill. It takes half a second; a lock that is left would make it wait for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder of large files, all of one letter; one file made of them; a small one made of that; and a second large one beside them.
fn pipeline() -> String {
    format!(
        "params: {{ letter: a }}
stages:
  many:
    run: |
      mkdir {{out.d}}
      for i in 1 2 3 4 5 6; do head -c {SIZE} /dev/zero | tr '\\0' ${{letter}} > {{out.d}}/$i; done
    out: {{ d: d }}
  beside: {{ run: \"head -c {SIZE} /dev/zero | tr '\\\\0' ${{letter}} > {{out.f}}; echo end >> {{out.f}}\", out: {{ f: f }} }}
  joined: {{ run: 'cat {{in.d}}/* > {{out.f}}', in: {{ d: many }}, out: {{ f: f }} }}
  counted: {{ run: \"wc -c < {{in.f}} | tr -d ' ' > {{out.n}}; head -c 1 {{in.f}} >> {{out.n}}\", in: {{ f: joined }}, out: {{ n: n }} }}
"
    )
}

/// A small generator: the moments need not be good, only different.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn run(project: &Project, letter: char) -> Command {
    let mut command = trestle_in_session(project.path());
    command.args(["run", "--set", &format!("letter={letter}"), "-j", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs and kills after a while: the program with all that it started, or alone.
fn killed(project: &Project, letter: char, after: Duration, all: bool) {
    let mut child = run(project, letter).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    if all {
        kill_session(&child.id().to_string());
    } else {
        child.kill().unwrap();
    }
    child.wait().unwrap();
}

/// A run that must end well, and soon.
#[track_caller]
fn completed(project: &Project, letter: char) -> Done {
    let child = run(project, letter).spawn().unwrap();
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        kill_session(&id.to_string());
        panic!("the run does not end");
    };
    waiting.join().unwrap().unwrap();
    let done = text(output);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    done
}

fn all_are(path: &Path, letter: char, size: usize, end: &str) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len(), size + end.len(), "{}", path.display());
    assert!(bytes[..size].iter().all(|byte| *byte == letter as u8), "{} has other letters than {letter}", path.display());
    assert!(bytes.ends_with(end.as_bytes()));
}

/// All outputs are what a clean build gives.
#[track_caller]
fn check(project: &Project, letter: char) {
    let set = format!("letter={letter}");
    let place = |stage: &str| project.path().join(project.say(&["out", stage, "--set", &set]).trim_end());
    assert_eq!(std::fs::read_to_string(place("counted")).unwrap(), format!("{}\n{letter}", SIZE * FILES));
    all_are(&place("joined"), letter, SIZE * FILES, "");
    all_are(&place("beside"), letter, SIZE, "end\n");
    for i in 1..=FILES {
        all_are(&place("many").join(i.to_string()), letter, SIZE, "");
    }
}

/// Half of the kills that are asked for, each at another moment.
fn kills(all: bool) {
    let (count, seed) = (number("TRESTLE_KILLS", 26) / 2, number("TRESTLE_SEED", 0));
    let mut random = Random(u64::from(seed) ^ 0x9e37_79b9_7f4a_7c15);
    let mut left = count;
    while left > 0 {
        // A new project now and then, so that the disk does not fill.
        let project = Project::new(&pipeline());
        let start = Instant::now();
        completed(&project, 'a');
        let whole = u64::try_from(start.elapsed().as_millis()).unwrap();
        for letter in 'b'..='h' {
            let some = (1 + random.below(3)).min(u64::from(left));
            for _ in 0..some {
                killed(&project, letter, Duration::from_millis(random.below(whole + whole / 4 + 1)), all);
            }
            left -= u32::try_from(some).unwrap();
            let done = completed(&project, letter);
            if !done.out.contains("0 executed") {
                assert_eq!(
                    store::unfinished(&store::folder(project.path())),
                    Vec::<std::path::PathBuf>::new(),
                    "unfinished things are left"
                );
            }
            check(&project, letter);
            let again = completed(&project, letter);
            assert!(again.out.contains("0 executed, 4 cached"), "{}", again.out);
        }
        // What was made before the kills is still what it was.
        check(&project, 'a');
        println!("{} of {count} kills", count - left);
    }
}

#[test]
fn a_kill_of_all_at_any_moment_costs_time_alone() {
    kills(true);
}

/// The commands that it started may go on for a while.
#[test]
fn a_kill_of_the_program_alone_at_any_moment_costs_time_alone() {
    kills(false);
}
