//! `foreach` over an output of an earlier stage.

use crate::support::Project;

const SPLIT: &str = "\
stages:
  split: { in: { f: ./words.txt }, run: 'tr -s \" \" \"\\n\" < {in.f} | sort -u > {out.list}; wc -l < {out.list} > {out.n}', out: { list: l.txt, n: n } }
  say: { foreach: { word: '${split.list}' }, run: 'echo ${word}! > {out.t}', out: { t: t } }
  twice: { in: { t: say }, run: 'cat {in.t} {in.t} > {out.t}', out: { t: t } }
  all: { in: { t: 'twice[*]', n: split.n }, run: 'cat {in.t} {in.n} > {out.t}', out: { t: t } }
  apart: { run: 'echo apart > {out.t}', out: { t: t } }
";

#[test]
fn stages_are_expanded_once_the_list_is_made() {
    let project = Project::new(SPLIT);
    project.write("words.txt", "b a\n");
    let planned = project.plan();
    assert_eq!(planned["say"], "later");
    assert_eq!(planned["all"], "later");
    assert_eq!(planned["split"], "run");
    let said = project.say(&["plan"]);
    assert!(said.contains("later  say: for the items of `split.list`, which is not made yet"), "{said}");
    assert!(said.ends_with("2 to run, 3 later, 0 cached\n"), "{said}");
    let run = project.run_with(&[]);
    run.did(&["split", "apart", "say[word=a]", "say[word=b]", "twice[word=a]", "twice[word=b]", "all"]);
    assert_eq!((run.count("executed"), run.count("cached")), (7, 0), "one summary for all rounds");
    assert_eq!(run.events.iter().filter(|event| event["event"] == "summary").count(), 1);
    assert_eq!(project.output("all", "t"), "a!\na!\nb!\nb!\n2\n");
    project.run().did(&[]);
    // An item more: only what is new runs.
    project.write("words.txt", "b a c\n");
    project.run_with(&[]).did(&["split", "say[word=c]", "twice[word=c]", "all"]);
    // Back to before.
    project.write("words.txt", "a b\n");
    project.run_with(&[]).did(&["split"]);
    // No item at all.
    project.write("words.txt", "");
    project.run_with(&[]).did(&["split", "all"]);
    assert_eq!(project.output("all", "t"), "0\n");
}

#[test]
fn targets_may_name_what_is_not_expanded_yet() {
    let project = Project::new(SPLIT);
    project.write("words.txt", "b a\n");
    project.run_with(&["say[word=a]"]).did(&["split", "say[word=a]"]);
    let project = Project::new(SPLIT);
    project.write("words.txt", "b a\n");
    project.run_with(&["twice*"]).did(&["split", "say[word=a]", "say[word=b]", "twice[word=a]", "twice[word=b]"]);
    let wrong = project.call(&["run", "say[word=z]"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
}

#[test]
fn a_list_may_be_json_and_lists_may_follow_on_each_other() {
    let project = Project::new(
        "\
stages:
  first: { run: 'echo \"[1, {\\\"name\\\": \\\"two\\\", \\\"n\\\": 2}]\" > {out.l}', out: { l: l.json } }
  second: { foreach: { k: '${first.l}' }, run: 'echo ${k} > {out.l}', out: { l: l } }
  join: { in: { l: 'second[*]' }, run: 'cat {in.l} > {out.l}', out: { l: l } }
  third: { foreach: { j: '${join.l}' }, run: 'echo third ${j} > {out.l}', out: { l: l } }
",
    );
    project.edit("trestle.yaml", "echo ${k} >", "echo ${k.name} >");
    let wrong = project.call(&["run"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("`${k.name}` means nothing here"), "the first item is no map: {}", wrong.err);
    project.edit("trestle.yaml", "[1, {", "[{\\\"name\\\": \\\"one\\\", \\\"n\\\": 1}, {");
    project.edit("trestle.yaml", "echo ${k.name} >", "echo ${k.n}-${k.name} >");
    let names = ["second[k=one]", "second[k=two]", "join", "third[j=1-one]", "third[j=2-two]"];
    project.run_with(&[]).did(&[&["first"][..], &names].concat());
    assert_eq!(project.output("third[j=2-two]", "l"), "third 2-two\n");
    project.run().did(&[]);
}

#[test]
fn what_is_no_list_is_a_mistake_and_what_fails_ends_the_run() {
    let project = Project::new(
        "\
stages:
  make: { run: 'mkdir {out.d}', out: { d: d } }
  use: { foreach: { x: '${make.d}' }, run: 'echo ${x} > {out.t}', out: { t: t } }
",
    );
    let done = project.call(&["run"]);
    assert_eq!(done.code, Some(2), "{}", done.out);
    assert!(done.err.contains("the output `make.d` is no list: it is a folder"), "{}", done.err);
    let project = Project::new(&SPLIT.replace("tr -s", "exit 3; tr -s"));
    project.write("words.txt", "a\n");
    let run = project.run_with(&[]);
    assert_eq!((run.code, run.count("failed")), (Some(1), 1));
}
