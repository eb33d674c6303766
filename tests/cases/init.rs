//! `trestle init`: what it writes runs.

use crate::support::{files, text, trestle};

#[test]
fn a_first_pipeline_runs_and_then_has_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let call = |at: &str, args: &[&str]| text(trestle(&dir.path().join(at)).args(args).output().unwrap());
    let said = call(".", &["init", "new one"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.ends_with("next: cd 'new one' && trestle run\n"), "{}", said.out);
    let first = call("new one", &["run"]);
    assert!(first.out.contains("5 executed, 0 cached"), "{}{}", first.out, first.err);
    let second = call("new one", &["run"]);
    assert!(second.out.contains("0 executed, 5 cached"), "{}", second.out);
    call("new one", &["out", "table", "--to", "."]);
    let table = std::fs::read_to_string(dir.path().join("new one/table.txt")).unwrap();
    assert_eq!(table, "3 letters or more 36\n5 letters or more 14\n7 letters or more 3\n");
}

#[test]
fn nothing_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let init = || text(trestle(dir.path()).arg("init").output().unwrap());
    std::fs::write(dir.path().join(".gitignore"), "/target").unwrap();
    assert!(init().out.ends_with("next: trestle run\n"));
    assert_eq!(std::fs::read_to_string(dir.path().join(".gitignore")).unwrap(), "/target\n.trestle/\n");
    std::fs::write(dir.path().join("trestle.yaml"), "mine").unwrap();
    std::fs::remove_file(dir.path().join("data/text.txt")).unwrap();
    let before = files(dir.path());
    let again = init();
    assert_eq!(again.code, Some(2));
    assert!(again.err.contains("has a trestle.yaml already") && again.err.contains("trestle init <DIR>"), "{}", again.err);
    assert_eq!(files(dir.path()), before);
    assert_eq!(std::fs::read_to_string(dir.path().join("trestle.yaml")).unwrap(), "mine");
}
