//! Commands that misbehave: stopped, deaf to signals, lingering, talkative, or giving something that is no file.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::processes::{lives, signal};
use crate::support::{Done, Project, Witness, await_that, text, trestle};

fn start(project: &Project) -> Child {
    trestle(project.path()).args(["run"]).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap()
}

fn end(child: Child) -> Done {
    text(child.wait_with_output().unwrap())
}

/// The pid that a command wrote with `witness.says("$$")` or `$!`.
fn pid(witness: &Witness) -> String {
    await_that("a pid", || !witness.heard().is_empty());
    witness.heard()[0].clone()
}

#[test]
fn a_child_that_is_stopped_for_a_while_changes_nothing() {
    let witness = Witness::new();
    let script = format!("{}; sleep 0.1; echo out > {{out.o}}; sleep 0.1; echo more >> {{out.o}}", witness.says("$$"));
    let project = Project::new(&format!(
        "stages:\n  a: {{ run: '{script}', out: {{ o: o }} }}\n  b: {{ run: 'cat {{in.a}} > {{out.o}}', in: {{ a: a }}, out: {{ o: o }} }}\n"
    ));
    let running = start(&project);
    let child = pid(&witness);
    for whom in [child.clone(), running.id().to_string(), child] {
        if lives(&whom) {
            signal("STOP", &whom);
            std::thread::sleep(Duration::from_millis(200));
            signal("CONT", &whom);
        }
    }
    let done = end(running);
    assert!(done.code == Some(0) && done.out.contains("2 executed"), "{done:?}");
    project.run().did(&[]);
    assert_eq!(project.output("b", "o"), "out\nmore\n");
}

/// Deaf to SIGTERM, and so is what it starts.
fn deaf(witness: &Witness) -> Project {
    let says = witness.says("$$");
    Project::new(&format!(
        "stages:\n  quick: {{ run: 'echo 1 > {{out.o}}', out: {{ o: o }} }}\n  deaf: {{ run: \"trap '' TERM; cat {{in.q}}; {says}; while :; do sleep 0.05; done; echo > {{out.o}}\", in: {{ q: quick }}, out: {{ o: o }} }}\n"
    ))
}

/// A run with a deaf command, the command's pid; the run was interrupted just now.
fn interrupted() -> (Project, Child, String) {
    let witness = Witness::new();
    let project = deaf(&witness);
    let running = start(&project);
    let child = pid(&witness);
    signal("INT", &running.id().to_string());
    (project, running, child)
}

#[test]
fn a_child_that_ignores_sigterm_is_ended() {
    let (project, running, child) = interrupted();
    let asked = Instant::now();
    let done = end(running);
    assert_eq!(done.code, Some(130), "{done:?}");
    assert!(asked.elapsed() < Duration::from_secs(12), "took {:?}", asked.elapsed());
    assert!(done.out.contains("cancelled deaf"), "{done:?}");
    assert!(!lives(&child));
    assert_eq!(project.plan()["quick"], "cached");
}

#[test]
fn a_second_interruption_ends_at_once() {
    let (project, running, child) = interrupted();
    let asked = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    signal("INT", &running.id().to_string());
    let done = end(running);
    assert_eq!(done.code, Some(130), "{done:?}");
    assert!(asked.elapsed() < Duration::from_secs(3), "took {:?}", asked.elapsed());
    // Nothing goes on behind our back.
    let gone = Instant::now();
    while lives(&child) && gone.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let lingers = lives(&child);
    if lingers {
        signal("KILL", &format!("-{child}"));
    }
    assert!(!lingers, "the child was left running");
    assert_eq!(project.plan()["quick"], "cached");
}

/// A stage that took a moment the last time is carried out by the loop itself, which must hear an interruption all the same.
#[test]
fn what_was_short_the_last_time_can_be_interrupted_when_it_is_long() {
    let witness = Witness::new();
    let script = format!("cat {{in.w}}; {}; sleep $(cat {{in.w}}); echo > {{out.o}}", witness.says("$$"));
    let project = Project::new(&format!("stages:\n  a: {{ run: '{script}', in: {{ w: ./wait.txt }}, out: {{ o: o }} }}\n"));
    project.write("wait.txt", "0.01\n");
    project.run().did(&["a"]);
    witness.clear();
    project.write("wait.txt", "100\n");
    let running = trestle(project.path()).args(["run", "--verbose"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let child = pid(&witness);
    signal("INT", &running.id().to_string());
    let asked = Instant::now();
    let done = end(running);
    assert_eq!(done.code, Some(130), "{done:?}");
    assert!(asked.elapsed() < Duration::from_secs(4), "took {:?}", asked.elapsed());
    assert!(done.out.contains("cancelled a") && done.out.contains("a | 100"), "{done:?}");
    assert!(!lives(&child));
    project.write("wait.txt", "0.01\n");
    project.run().did(&[]);
}

/// Before the first stage there is nothing to be ended, and nobody who would hear it.
#[test]
fn a_run_that_has_begun_nothing_ends_at_the_first_interruption() {
    use std::os::unix::process::ExitStatusExt;
    let project = Project::new("stages:\n  a: { run: 'echo > {out.o}', out: { o: o } }\n");
    project.run().did(&["a"]);
    // As if a repair had the cache for itself.
    let lock = std::fs::File::open(project.path().join(".trestle/lock")).unwrap();
    lock.lock().unwrap();
    let mut running = start(&project);
    std::thread::sleep(Duration::from_millis(300));
    signal("INT", &running.id().to_string());
    let asked = Instant::now();
    assert_eq!(running.wait().unwrap().signal(), Some(2));
    assert!(asked.elapsed() < Duration::from_secs(2), "took {:?}", asked.elapsed());
}

/// SIGKILL leaves no time to end anything, but the system ends the command with the thread that waits for it.
#[cfg(target_os = "linux")]
#[test]
fn a_command_ends_with_a_run_that_is_killed() {
    let witness = Witness::new();
    let project = Project::new(&format!("stages:\n  a: {{ run: '{}; exec sleep 100', out: {{ o: o }} }}\n", witness.says("$$")));
    let mut running = start(&project);
    let child = pid(&witness);
    signal("KILL", &running.id().to_string());
    running.wait().unwrap();
    await_that("the end of the command", || !lives(&child));
}

/// What a command is started with is not what this program does with it: signals do what they do by default, and none is blocked.
#[cfg(target_os = "linux")]
#[test]
fn a_command_starts_without_the_signals_and_files_of_this_program() {
    let script = "cat /proc/self/status > {out.signals}; ls /proc/self/fd | wc -l > {out.files}; yes | head -n 1 > {out.pipe}";
    let project = Project::new(&format!("stages:\n  a: {{ run: '{script}', out: {{ signals: signals, files: files, pipe: pipe }} }}\n"));
    project.run().did(&["a"]);
    let (signals, own) = (project.output("a", "signals"), std::fs::read_to_string("/proc/self/status").unwrap());
    let set = |status: &str, mask: &str| {
        let line = status.lines().find(|line| line.starts_with(mask)).unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    // Whoever started this test may have handed some on (`nohup` does), and so do we; but that of a closed pipe is ignored by every program in Rust.
    let pipe = 1 << 12;
    for mask in ["SigBlk", "SigIgn"] {
        let handed_on = set(&own, mask) & !pipe;
        assert_eq!(set(&signals, mask) & !handed_on, 0, "{mask}");
    }
    // Its three, and the folder that `ls` reads.
    assert_eq!(project.output("a", "files").trim(), "4");
    assert_eq!(project.output("a", "pipe"), "y\n");
}

fn lingering(script: &str) {
    let witness = Witness::new();
    let says = witness.says("$!");
    let project = Project::new(&format!("stages:\n  a: {{ run: '{script} & {says}; echo 1 > {{out.o}}', out: {{ o: o }} }}\n"));
    let done = end(start(&project));
    assert_eq!(done.code, Some(0), "{done:?}");
    let left = pid(&witness);
    let lingers = lives(&left);
    if lingers {
        signal("KILL", &left);
    }
    assert!(!lingers, "what the stage left running was not ended");
}

#[test]
fn what_a_stage_leaves_running_is_ended_with_it() {
    lingering("sleep 300");
}

#[test]
fn what_a_stage_leaves_in_a_session_of_its_own_is_ended_with_it() {
    lingering("setsid sleep 300");
}

/// The most memory that a process has held by now, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Runs a project and gives what it printed and the most memory that it held.
fn watched(project: &Project) -> (Done, u64) {
    let mut child = start(project);
    let id = child.id();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        said
    });
    let mut most = 0;
    let status = loop {
        // A process that is over has none.
        most = most.max(peak(id).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (Done { code: status.code(), out: reader.join().unwrap(), err }, most)
}

const GIGABYTE: u64 = 1_000_000_000;
/// Far below what was printed, far above what the program needs (20 MB).
const MEMORY_KIB: u64 = 150_000;

#[test]
fn a_gigabyte_of_output_does_not_fill_the_memory() {
    let project = Project::new(&format!("stages:\n  a: {{ run: 'head -c {GIGABYTE} /dev/zero; echo 1 > {{out.o}}', out: {{ o: o }} }}\n"));
    let (done, most) = watched(&project);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(most < MEMORY_KIB, "{most} KiB");
}

#[test]
fn a_gigabyte_of_output_before_a_failure_does_not_fill_the_memory() {
    let project = Project::new(&format!("stages:\n  a: {{ run: 'yes | head -c {GIGABYTE}; echo the end; exit 1', out: {{ o: o }} }}\n"));
    let (done, most) = watched(&project);
    assert_eq!(done.code, Some(1));
    assert!(done.out.contains("the end") && done.out.len() < 20_000, "{}", done.out.len());
    assert!(most < MEMORY_KIB, "{most} KiB");
}

/// The stage writes `script`'s product; the run must refuse it, keep nothing and say `says`.
#[track_caller]
fn refused(script: &str, says: &str) {
    let project = Project::new(&format!("stages:\n  a: {{ run: \"{script}\", out: {{ o: out/o }} }}\n"));
    project.write("secret.txt", "secret\n");
    let done = project.call(&["run"]);
    assert_eq!(done.code, Some(1), "{script}: {}{}", done.out, done.err);
    assert!(done.out.contains(says) && done.out.contains("1 failed"), "{script}: {}", done.out);
    let kept: Vec<_> = project.blobs().into_iter().filter(|blob| std::fs::read(blob).unwrap() == b"secret\n").collect();
    assert!(kept.is_empty(), "{script}: {kept:?}");
    assert_eq!(project.plan()["a"], "run");
}

#[test]
fn outputs_that_lead_outside_are_refused() {
    refused("ln -s /etc/passwd {out.o}", "passwd");
    refused("ln -s ../../../../../secret.txt {out.o}", "secret.txt");
    refused("echo 1 > real; ln -s ../real {out.o}", "real");
    refused("mkdir {out.o}; ln -s /etc/passwd {out.o}/link", "passwd");
    refused("mkdir -p {out.o}/deep; ln -s ../../../real {out.o}/deep/link", "real");
}

/// Not the output but a folder above it leads outside: what lies there is not the stage's to give, and stays where it is.
#[test]
fn outputs_behind_a_link_that_leads_outside_are_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("o");
    std::fs::write(&file, "mine\n").unwrap();
    let project =
        Project::new(&format!("stages:\n  a: {{ run: 'rmdir out; ln -s {} out', out: {{ o: out/o }} }}\n", elsewhere.path().display()));
    let done = project.call(&["run"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), "mine\n", "a file outside was taken");
    assert_eq!(done.code, Some(1), "{done:?}");
}

#[test]
fn outputs_that_are_no_files_are_refused() {
    refused("mkfifo {out.o}", "pipe");
    refused("mkdir {out.o}; mkfifo {out.o}/p", "pipe");
    if Path::new("/usr/bin/python3").exists() {
        refused("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\\\"{out.o}\\\")'", "socket");
    }
    // Only root may make devices.
    if Command::new("mknod")
        .args(["/dev/shm/trestle-probe", "c", "1", "3"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        std::fs::remove_file("/dev/shm/trestle-probe").unwrap();
        refused("mknod {out.o} c 1 3", "device");
    }
    refused("touch real", "did not write");
    refused("mkdir {out.o}; touch {out.o}/$(printf 'bad\\\\377name')", "UTF-8");
}

/// A link within the folder that a stage gives is a link; it leads to the same in every copy.
#[test]
fn links_that_stay_inside_are_kept() {
    let project = Project::new(
        "stages:
  a: { run: 'mkdir -p {out.o}/d; echo 1 > {out.o}/d/f; ln -s d/f {out.o}/link; ln -s ../link {out.o}/d/back', out: { o: o } }
  b: { run: 'cat {in.a}/link {in.a}/d/back > {out.o}; test -L {in.a}/link', in: { a: a }, out: { o: o } }
",
    );
    project.run().did(&["a", "b"]);
    assert_eq!(project.output("b", "o"), "1\n1\n");
}

#[test]
fn an_input_that_is_no_file_is_refused() {
    let project = Project::new("stages:\n  a: { run: 'cat {in.p} > {out.o}', in: { p: ./pipe }, out: { o: o } }\n");
    assert!(Command::new("mkfifo").arg(project.path().join("pipe")).status().unwrap().success());
    let done = project.call(&["run"]);
    assert!(done.code != Some(0) && (done.err.contains("pipe") || done.out.contains("pipe")), "{done:?}");
}

/// A stage gets copies of its inputs: what it does to them reaches neither the project nor the store.
#[test]
fn a_stage_that_writes_to_its_inputs_harms_nobody() {
    let project = Project::new(
        "stages:
  a: { run: 'echo 1 > {out.o}', out: { o: o } }
  b: { run: 'chmod u+w {in.a} {in.f}; echo mine > {in.a}; echo mine > {in.f}; cat {in.a} {in.f} > {out.o}', in: { a: a, f: ./f }, out: { o: o } }
  c: { run: 'cat {in.a} {in.f} > {out.o}', in: { a: a, f: ./f, b: b }, out: { o: o } }
",
    );
    project.write("f", "f\n");
    assert!(project.run_with(&[]).code.is_some());
    assert_eq!(project.output("a", "o"), "1\n");
    assert_eq!(project.output("c", "o"), "1\nf\n");
    assert_eq!(std::fs::read_to_string(project.path().join("f")).unwrap(), "f\n");
    project.run().did(&[]);
}
