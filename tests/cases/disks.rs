//! Disks that are full, read-only or elsewhere; clocks that go back; files that change while they are read.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::changes::{CHAIN, chain};
use crate::support::mount::Tmpfs;
use crate::support::{Done, Project, store, text, trestle};

/// Trestle in a folder, its cache in another.
fn call(dir: &Path, cache: &Path, args: &[&str]) -> Done {
    let done = text(trestle(dir).args(args).arg("--cache").arg(cache).output().unwrap());
    assert!(!done.err.contains("panicked") && done.code.is_some(), "{args:?}: {done:?}");
    done
}

/// Two stages of 60,000 bytes each in a folder, and one that counts them.
const LARGE: &str = "\
stages:
  a: { run: \"head -c 60000 /dev/zero | tr '\\\\0' a > {out.o}\", out: { o: o } }
  b: { run: 'cat {in.a} > {out.o}; echo printed', in: { a: a }, out: { o: o } }
  c: { run: \"wc -c < {in.b} | tr -d ' ' > {out.o}\", in: { b: b }, out: { o: o } }
";

#[test]
fn a_full_disk_fails_in_words_and_is_forgotten_when_there_is_room() {
    let Some(disk) = Tmpfs::mount(2 << 20) else { return };
    let project = tempfile::tempdir().unwrap();
    std::fs::write(project.path().join("trestle.yaml"), LARGE).unwrap();
    let cache = disk.path().join("cache");
    let (mut failed, mut refused) = (0, 0);
    // The room ends at another moment each time: in the folder, the inputs, the outputs, the records, the logs, the index.
    for pages in (0..12).chain((12..140).step_by(4)) {
        let ballast = disk.fill(pages * 4096);
        let done = call(project.path(), &cache, &["run"]);
        match done.code {
            Some(0) => {}
            Some(1) => failed += 1,
            Some(2) => refused += 1,
            other => panic!("{other:?}: {done:?}"),
        }
        let said = format!("{}{}", done.out, done.err);
        // A command may find the disk full before we do; its own words then have no room in the log.
        let in_words = said.to_lowercase().contains("no space") || said.contains("ended with status");
        assert!(done.code == Some(0) || in_words, "with {pages} pages: {said}");
        // Whatever it left is not taken for more than it is.
        if done.code == Some(0) {
            assert_eq!(out(project.path(), &cache, "c"), "60000\n");
        }
        disk.lighten(&ballast);
        let again = call(project.path(), &cache, &["run"]);
        assert_eq!(again.code, Some(0), "with {pages} pages before: {}{}", again.out, again.err);
        assert_eq!(out(project.path(), &cache, "b").len(), 60000);
        assert_eq!(out(project.path(), &cache, "c"), "60000\n");
        std::fs::remove_dir_all(&cache).unwrap();
    }
    assert!(failed > 5 && refused > 0, "{failed} failed, {refused} refused");
}

/// The text of a stage's output.
fn out(project: &Path, cache: &Path, stage: &str) -> String {
    let done = call(project, cache, &["out", stage]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    std::fs::read_to_string(project.join(done.out.trim_end())).unwrap()
}

#[test]
fn a_read_only_cache_is_refused_in_words() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let project = chain();
    let cache = disk.path().join("cache");
    assert_eq!(call(project.path(), &cache, &["run"]).code, Some(0));
    for (files, read_only) in [("a\nb\n", true), ("a\nb\nc\n", true), ("a\nb\nc\n", false)] {
        project.write("src.txt", files);
        disk.read_only(read_only);
        let done = call(project.path(), &cache, &["run"]);
        if read_only && done.code != Some(0) {
            assert_eq!(done.code, Some(2), "{done:?}");
            let said = done.err.replace(['\n', ' ', '│'], "");
            assert!(said.contains("Read-onlyfilesystem") && said.contains("cache"), "{done:?}");
        }
        assert!(read_only || done.out.contains("3 executed"), "{done:?}");
    }
    assert_eq!(out(project.path(), &cache, "words"), "result: 6\n");
}

#[test]
fn a_read_only_cache_can_be_read() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let project = chain();
    let cache = disk.path().join("cache");
    assert_eq!(call(project.path(), &cache, &["run"]).code, Some(0));
    disk.read_only(true);
    for args in [&["plan"][..], &["explain", "words"], &["log", "words"], &["out", "words", "--to", "here"], &["run"]] {
        let done = call(project.path(), &cache, args);
        assert_eq!(done.code, Some(0), "{args:?}: {}", done.err);
    }
}

/// No hard link and no shared block leads from one to the other.
#[test]
fn the_cache_may_be_on_another_file_system() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let project = Project::new(CHAIN);
    let cache = disk.path().join("cache");
    project.write("src.txt", "a\nb\n");
    for (source, executed) in [("a\nb\n", 3), ("c\nd\n", 1), ("e\n", 3), ("a\nb\n", 0)] {
        project.write("src.txt", source);
        let done = call(project.path(), &cache, &["run"]);
        assert!(done.out.contains(&format!("{executed} executed")), "{done:?}");
        assert_eq!(out(project.path(), &cache, "words"), format!("result: {}\n", 2 * source.lines().count()));
        let done = call(project.path(), &cache, &["out", "words", "--to", "here"]);
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert_eq!(
            std::fs::read_to_string(project.path().join("here/t.txt")).unwrap(),
            format!("result: {}\n", 2 * source.lines().count())
        );
    }
    assert_eq!(store::unfinished(&cache), Vec::<std::path::PathBuf>::new());
}

/// Sources on another file system than project and cache.
#[test]
fn a_source_may_be_a_link_to_another_file_system() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let project = Project::new(CHAIN);
    let source = disk.path().join("src.txt");
    std::fs::write(&source, "a\n").unwrap();
    std::os::unix::fs::symlink(&source, project.path().join("src.txt")).unwrap();
    project.run().did(&["count", "times", "words"]);
    project.run().did(&[]);
    std::fs::write(&source, "a\nb\n").unwrap();
    project.run().did(&["count", "times", "words"]);
    assert_eq!(project.output("words", "t"), "result: 4\n");
}

fn set_time(path: &Path, time: SystemTime) {
    std::fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// What a clock that was set back leaves: files from the future. An edit that keeps size and time is still seen.
#[test]
fn files_from_the_future_are_believed_no_more_than_others() {
    let project = chain();
    let future = SystemTime::now() + Duration::from_secs(10 * 365 * 24 * 3600);
    let source = project.path().join("src.txt");
    set_time(&source, future);
    project.run();
    for blob in project.blobs() {
        set_time(&blob, future);
    }
    project.run().did(&[]);
    for (text, executed) in [("a\nc\n", &["count"][..]), ("abc\n", &["count", "times", "words"]), ("a\nb\n", &[])] {
        std::thread::sleep(Duration::from_millis(80));
        project.run();
        project.write("src.txt", text);
        set_time(&source, future);
        project.run().did(executed);
    }
    std::thread::sleep(Duration::from_millis(80));
    project.run();
    let blob = store::blob(&project, b"result: 4\n");
    store::spoil(&blob);
    assert_eq!(project.run().executed, ["words"]);
    assert_eq!(project.output("words", "t"), "result: 4\n");
}

/// With the clock itself set back, by libfaketime where it is installed.
#[test]
fn a_clock_that_was_set_back_costs_nothing_but_time() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !Path::new(library).exists() {
        println!("skipped: {library} is not installed");
        return;
    }
    let project = chain();
    let run = |offset: &str| {
        let mut command = trestle(project.path());
        command.arg("run").env("LD_PRELOAD", library).env("FAKETIME", offset).env("NO_FAKE_STAT", "1");
        let done = text(command.output().unwrap());
        assert_eq!(done.code, Some(0), "{}", done.err);
        done.out
    };
    assert!(run("+0").contains("3 executed"));
    for (i, offset) in ["-1d", "-40y", "+1d", "-2d", "+20y", "+0"].into_iter().enumerate() {
        let out = run(offset);
        assert!(out.contains("0 executed, 3 cached"), "{offset}: {out}");
        project.write("src.txt", &"x\n".repeat(i + 3));
        let out = run(offset);
        assert!(out.contains("3 executed"), "{offset}: {out}");
        assert_eq!(project.output("words", "t"), format!("result: {}\n", 2 * (i + 3)));
    }
}

/// A file that is all `a` or all `b`, but for the time in which it is rewritten in place.
struct Flickering<'a> {
    path: &'a Path,
    size: usize,
}

/// Says that it is over, also where a test fails: a scope waits for its threads.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flickering<'_> {
    fn write(&self, letter: u8) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).create(true).truncate(false).open(self.path).unwrap();
        let block = vec![letter; 1 << 16];
        for at in (0..self.size).step_by(block.len()) {
            file.write_all_at(&block, at as u64).unwrap();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_hashed_or_copied_is_never_taken_for_another() {
    let project = Project::new("stages:\n  sum: { run: 'cksum < {in.f} > {out.o}', in: { f: ./f }, out: { o: o } }\n");
    let path = project.path().join("f");
    let file = Flickering { path: &path, size: 16 << 20 };
    file.write(b'a');
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = AtEnd(&over);
        scope.spawn(|| {
            for letter in [b'b', b'a'].into_iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                file.write(letter);
                // Long enough for some runs to come through.
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        for _ in 0..12 {
            let done = project.call(&["run"]);
            assert!(matches!(done.code, Some(0..=2)), "{done:?}");
            let said = format!("{}{}", done.out, done.err);
            assert!(done.code == Some(0) || said.contains("chang"), "{said}");
        }
    });
    for letter in [b'a', b'b', b'a'] {
        file.write(letter);
        assert_eq!(project.run().code, Some(0));
        let sum = std::process::Command::new("cksum").stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
        assert_eq!(project.output("sum", "o"), String::from_utf8(sum.stdout).unwrap());
    }
}

/// What is as large as this is hashed where it lies in memory, and a look behind the end of such a file is a bus error.
#[test]
fn a_large_file_that_is_cut_off_while_it_is_hashed_ends_no_program() {
    const SIZE: u64 = 1 << 30;
    let project = Project::new("stages:\n  head: { run: 'head -c 3 {in.f} > {out.o}', in: { f: ./f }, out: { o: o } }\n");
    let path = project.path().join("f");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = AtEnd(&over);
        scope.spawn(|| {
            let file = std::fs::File::create(&path).unwrap();
            let mut delay = 0;
            while !over.load(Ordering::Relaxed) {
                delay = (delay + 37) % 101;
                // With blocks: a file of holes is read.
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
                std::thread::sleep(Duration::from_millis(delay));
                file.set_len(4097).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut refused = 0;
        for _ in 0..10 {
            let done = project.call(&["plan"]);
            let said = format!("{}{}", done.out, done.err);
            assert!(matches!(done.code, Some(0..=2)), "{done:?}");
            if done.code != Some(0) {
                assert!(said.contains("chang") || said.contains("No such file"), "{said}");
                refused += 1;
            }
        }
        assert!(refused > 0, "it was never cut off while it was hashed");
    });
    std::fs::write(&path, "abcdef").unwrap();
    assert_eq!(project.run().code, Some(0));
    assert_eq!(project.output("head", "o"), "abc");
}

/// What took a moment is left to the system to write. If the machine loses power before it does, a blob may have its name, its size and its times,
/// and not its bytes.
#[test]
fn what_a_loss_of_power_took_is_made_again() {
    let (project, mark) = chain_with_mark();
    store::overwrite(&store::blob(&project, b"1\n"), b"0\n");
    start_anew(&mark);
    let run = project.run();
    run.did(&["a"]);
    assert_eq!(run.count("cached"), 1);
    assert_eq!(project.output("b", "o"), "1\n2\n");
    // That run was short as well.
    assert!(!std::fs::read_to_string(&mark).unwrap().contains(ANOTHER));
}

#[test]
fn after_a_start_of_the_machine_that_took_nothing_nothing_is_made_again() {
    let (project, mark) = chain_with_mark();
    start_anew(&mark);
    project.run().did(&[]);
    assert!(!mark.exists(), "it was not seen to");
    project.run().did(&[]);
}

#[test]
fn a_cache_that_may_not_be_written_is_read_after_a_loss_of_power() {
    let Some(disk) = Tmpfs::mount(8 << 20) else { return };
    let (project, mark) = chain_with_mark();
    let cache = disk.path().join("cache");
    project.call(&["run", "--cache", cache.to_str().unwrap()]);
    start_anew(&cache.join("unsynced"));
    disk.read_only(true);
    let done = call(project.path(), &cache, &["plan"]);
    disk.read_only(false);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(mark.exists() && cache.join("unsynced").exists());
}

#[test]
fn a_run_that_is_worth_a_sync_also_syncs_what_earlier_ones_left() {
    let (project, mark) = chain_with_mark();
    project.edit("trestle.yaml", "echo 1", "sleep 1.1; echo 1");
    project.run().did(&["a"]);
    assert!(!mark.exists());
}

/// Number of another start of the machine.
const ANOTHER: &str = "b0070000";

/// As if the machine had been started since the mark was left.
fn start_anew(mark: &Path) {
    use std::os::unix::fs::MetadataExt;
    let number = std::fs::metadata(mark).unwrap().ino();
    std::fs::write(mark, format!("{ANOTHER} {number}\n")).unwrap();
}

/// A pipeline of two stages that was run, and the mark that this left.
fn chain_with_mark() -> (Project, std::path::PathBuf) {
    let project = Project::new(
        "stages:\n  a: { run: 'echo 1 > {out.o}', out: { o: o } }\n  b: { run: '(cat {in.a}; echo 2) > {out.o}', in: { a: a }, out: { o: o } }\n",
    );
    project.run().did(&["a", "b"]);
    let mark = store::folder(project.path()).join("unsynced");
    assert!(mark.exists());
    (project, mark)
}
