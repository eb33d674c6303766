#![allow(clippy::unwrap_used)]
use super::*;
use crate::error::Error;
use crate::event::{Event, Failure};
use crate::stage::StageError;
use serde_json::json;
use std::fs;

/// A key that begins with a number.
fn key(number: u64) -> String {
    format!("{number:016x}{}", "0".repeat(48))
}

fn cached(stage: &str, number: u64) -> Event {
    Event::Cached { stage: stage.to_owned(), key: key(number) }
}

fn done(stage: &str, number: u64) -> Event {
    Event::Done { stage: stage.to_owned(), key: key(number), seconds: number as f64, metrics: json!({"m": number}), peak_rss_kib: Some(7) }
}

fn begin(folder: &Path) -> Recorder {
    loop {
        let recorder = Recorder::begin(folder, "p", &Map::new(), vec!["run".to_owned()], "host", "1.0").unwrap();
        // A process that another test starts has a copy of the last recorder's lock for a moment.
        match fs::remove_file(journal(folder, "p", 1)) {
            Ok(()) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => return recorder,
        }
    }
}

fn run(folder: &Path, events: &[Event]) {
    let mut recorder = begin(folder);
    for event in events {
        recorder.event(event).unwrap();
    }
    recorder.event(&Event::Summary(Summary::default())).unwrap();
}

fn lines(folder: &Path) -> usize {
    fs::read_to_string(journal(folder, "p", 0)).unwrap().lines().count()
}

/// Names, outcomes and keys of a run.
fn stages(folder: &Path, word: &str) -> Vec<(String, Outcome, Option<String>)> {
    let history = Runs::read(folder).unwrap();
    let snapshot = history.find(word).unwrap().snapshot().unwrap();
    snapshot.into_iter().map(|(name, known)| (name, known.outcome, known.key)).collect()
}

fn expect(list: &[(&str, Outcome, u64)]) -> Vec<(String, Outcome, Option<String>)> {
    list.iter().map(|(name, outcome, number)| ((*name).to_owned(), *outcome, Some(key(*number)))).collect()
}

#[test]
fn what_is_as_it_was_has_no_line_and_is_known_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &[done("a", 1), done("b", 2), cached("c", 3)]);
    let first = lines(folder);
    assert_eq!(first, 5);
    // Another order of events changes nothing.
    run(folder, &[cached("c", 3), cached("a", 1), cached("b", 2)]);
    assert_eq!(lines(folder), first + 2);
    run(folder, &[cached("a", 1), done("b", 4), cached("c", 5)]);
    assert_eq!(lines(folder), first + 2 + 4);
    run(folder, &[cached("a", 1), cached("b", 2), cached("c", 5)]);
    use Outcome::{Cached, Executed};
    assert_eq!(stages(folder, "last~3"), expect(&[("a", Executed, 1), ("b", Executed, 2), ("c", Cached, 3)]));
    assert_eq!(stages(folder, "last~2"), expect(&[("a", Cached, 1), ("b", Cached, 2), ("c", Cached, 3)]));
    assert_eq!(stages(folder, "last~1"), expect(&[("a", Cached, 1), ("b", Executed, 4), ("c", Cached, 5)]));
    assert_eq!(stages(folder, "last"), expect(&[("a", Cached, 1), ("b", Cached, 2), ("c", Cached, 5)]));
    // What an earlier run measured is found by its key.
    let snapshot = Runs::read(folder).unwrap().find("last").unwrap().snapshot().unwrap();
    assert_eq!(snapshot["b"].execution.as_ref().unwrap().seconds, Some(2.0));
    assert!(snapshot["c"].execution.is_none());
}

#[test]
fn stages_leave_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    use Outcome::{Cached, Executed};
    run(folder, &[done("a", 1), done("b", 2)]);
    run(folder, &[cached("a", 1)]);
    run(folder, &[cached("a", 1), cached("b", 2)]);
    run(folder, &[cached("a", 1)]);
    run(folder, &[cached("b", 9), cached("a", 1)]);
    assert_eq!(stages(folder, "last~4"), expect(&[("a", Executed, 1), ("b", Executed, 2)]));
    assert_eq!(stages(folder, "last~3"), expect(&[("a", Cached, 1)]));
    assert_eq!(stages(folder, "last~2"), expect(&[("a", Cached, 1), ("b", Cached, 2)]));
    assert_eq!(stages(folder, "last~1"), expect(&[("a", Cached, 1)]));
    assert_eq!(stages(folder, "last"), expect(&[("a", Cached, 1), ("b", Cached, 9)]));
}

#[test]
fn failures_have_lines_and_what_comes_after_them_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &[done("a", 1), done("b", 2)]);
    let running = Event::Running { stage: "a".into(), key: key(3), reasons: Vec::new(), threads: 1 };
    let failed = Event::Failed { stage: "a".into(), failure: Failure::from(StageError::new("no")) };
    run(folder, &[running, failed, Event::Skipped { stage: "b".into(), because: "a".into() }]);
    run(folder, &[cached("a", 1), cached("b", 2)]);
    assert_eq!(stages(folder, "last~1"), [("a".to_owned(), Outcome::Failed, Some(key(3))), ("b".to_owned(), Outcome::Skipped, None)]);
    assert_eq!(stages(folder, "last"), expect(&[("a", Outcome::Cached, 1), ("b", Outcome::Cached, 2)]));
}

#[test]
fn a_killed_run_keeps_its_account_and_the_next_one_lists_all() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &[done("a", 1), done("b", 2)]);
    let mut killed = begin(folder);
    killed.event(&done("a", 3)).unwrap();
    drop(killed);
    let path = journal(folder, "p", 0);
    let torn = fs::read(&path).unwrap();
    fs::write(&path, [&torn[..], b"{\"is\":\"stage\",\"sta"].concat()).unwrap();
    run(folder, &[cached("a", 3), cached("b", 2)]);
    let history = Runs::read(folder).unwrap();
    assert_eq!(history.runs().iter().map(|run| run.summary.is_some()).collect::<Vec<_>>(), [true, false, true]);
    assert!(!history.runs()[2].header.carries_on);
    assert_eq!(stages(folder, "last~1"), expect(&[("a", Outcome::Executed, 3)]));
    assert_eq!(stages(folder, "last"), expect(&[("a", Outcome::Cached, 3), ("b", Outcome::Cached, 2)]));
}

/// Whether the last run carried on from what was known of the one before.
fn carried_on(folder: &Path) -> bool {
    Runs::read(folder).unwrap().runs().last().unwrap().header.carries_on
}

#[test]
fn a_state_of_another_journal_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, other) = (dir.path(), &dir.path().join("other"));
    run(other, &[done("a", 7), done("z", 9)]);
    let foreign = fs::read(other.join("p.state")).unwrap();
    run(folder, &[done("a", 1)]);
    let own = fs::read(folder.join("p.state")).unwrap();
    run(folder, &[done("a", 2)]);
    for spoilt in [foreign, own[..own.len() - 1].to_vec(), b"".to_vec(), vec![0; 40]] {
        fs::write(folder.join("p.state"), &spoilt).unwrap();
        run(folder, &[cached("a", 2)]);
        assert_eq!(stages(folder, "last"), expect(&[("a", Outcome::Cached, 2)]));
        assert!(!carried_on(folder));
    }
}

/// The state is written now and then; what it does not have is read from the end of the journal.
#[test]
fn a_state_with_a_few_lines_less_than_the_journal_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let state = || fs::read(folder.join("p.state")).unwrap();
    let all = |key: u64| ["a", "b", "c", "d"].map(|name| cached(name, key));
    run(folder, &all(1));
    let (first, mut written) = (state(), 0);
    let mut last = first.clone();
    for round in 2..60u64 {
        let mut events = all(1).to_vec();
        match round % 5 {
            // A stage leaves, and comes back as it was or another.
            0 => drop(events.remove(3)),
            1 => events[3] = cached("d", 1),
            2 => events[1] = done("b", round),
            3 => events[2] = Event::Skipped { stage: "c".into(), because: "b".into() },
            // Nothing changes: but for what the last rounds did.
            _ => {}
        }
        run(folder, &events);
        assert!(carried_on(folder), "round {round}");
        let wanted = events.iter().filter_map(|event| match event {
            Event::Cached { stage, key } => Some((stage.clone(), Some(key.clone()))),
            Event::Done { stage, key, .. } => Some((stage.clone(), Some(key.clone()))),
            Event::Skipped { stage, .. } => Some((stage.clone(), None)),
            _ => None,
        });
        let found: Vec<_> = stages(folder, "last").into_iter().map(|(name, _, key)| (name, key)).collect();
        assert_eq!(found, wanted.collect::<Vec<_>>(), "round {round}");
        written += usize::from(state() != last);
        last = state();
    }
    assert!((2..20).contains(&written), "{written} of 58 runs wrote it");
    // One that lags too far behind is no use.
    run(folder, &all(2));
    fs::write(folder.join("p.state"), first).unwrap();
    run(folder, &all(2));
    assert!(!carried_on(folder));
    assert_eq!(stages(folder, "last").len(), 4);
}

/// What a stage was when it left is in the end of the journal, though the checksum is that of the state.
#[test]
fn a_stage_that_left_as_another_comes_back_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    // A line of its own makes the journal long enough for the state to be written.
    let long = "l".repeat(5000);
    run(folder, &[done(&long, 1), done("d", 1)]);
    run(folder, &[done(&long, 2)]);
    let written = fs::read(folder.join("p.state")).unwrap();
    run(folder, &[cached(&long, 2), done("d", 9)]);
    run(folder, &[cached(&long, 2)]);
    assert_eq!(fs::read(folder.join("p.state")).unwrap(), written);
    run(folder, &[cached(&long, 2), cached("d", 1)]);
    assert!(carried_on(folder));
    let keys: Vec<_> = stages(folder, "last").into_iter().map(|(_, _, key)| key).collect();
    assert_eq!(keys, [Some(key(1)), Some(key(2))]);
}

#[test]
fn lost_lines_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &[done("a", 1), done("b", 2)]);
    run(folder, &[cached("a", 1), done("b", 3)]);
    let path = journal(folder, "p", 0);
    let text = fs::read_to_string(&path).unwrap();
    let without: String = text.lines().filter(|line| !line.contains(&key(3))).map(|line| format!("{line}\n")).collect();
    fs::write(&path, without).unwrap();
    let history = Runs::read(folder).unwrap();
    assert!(matches!(history.find("last").unwrap().snapshot(), Err(Error::BrokenJournal { .. })));
    assert!(history.find("last~1").unwrap().snapshot().is_ok());
}

#[test]
fn a_word_names_one_run_or_says_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    assert!(Runs::read(&folder.join("none")).unwrap().find("last").is_err());
    run(folder, &[done("a", 1)]);
    run(folder, &[done("a", 2)]);
    let history = Runs::read(folder).unwrap();
    let id = &history.runs()[0].header.id;
    assert_eq!(&history.find(id).unwrap().header.id, id);
    for wrong in ["last~2", "last~x", "lasting", "zz", ""] {
        assert!(history.find(wrong).is_err(), "{wrong}");
    }
}
