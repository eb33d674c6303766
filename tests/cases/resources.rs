//! Resources, time limits, retries and the network, as a run keeps them.

use std::time::Instant;

use crate::support::{Project, Witness};

/// Far more stages than processors wait for a pool of one; what needs nothing of it goes past them.
#[test]
fn a_full_pool_holds_back_its_own_stages_alone() {
    let witness = Witness::new();
    let (enters, leaves, free) = (witness.says("in"), witness.says("out"), witness.says("free"));
    let project = Project::new(&format!(
        "pools: {{ licence: 1 }}
stages:
  held: {{ run: '{enters}; sleep 0.02; {leaves}; echo ${{n}} > {{out.x}}', out: {{ x: x }}, foreach: {{ n: [{}] }}, resources: {{ licence: 1 }}, priority: 9 }}
  free: {{ run: '{free}; echo 1 > {{out.x}}', out: {{ x: x }} }}
",
        (0..70).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    ));
    let run = project.run_with(&["-j", "4"]);
    assert_eq!((run.code, run.executed.len()), (Some(0), 71));
    let heard = witness.heard();
    let at = heard.iter().position(|word| word == "free").unwrap();
    assert!(at < 20, "the free stage came only after {at} lines");
    let held: Vec<&String> = heard.iter().filter(|word| *word != "free").collect();
    assert_eq!(held.len(), 140);
    assert!(held.chunks(2).all(|pair| pair[0] == "in" && pair[1] == "out"), "two stages had the one licence at once");
}

#[test]
fn a_stage_that_takes_too_long_is_ended_and_said_to_have() {
    let project = Project::new("stages: { s: { run: 'sleep 30; echo > {out.x}', out: { x: x }, timeout: 300ms } }\n");
    let start = Instant::now();
    let done = project.call(&["run"]);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    assert_eq!(done.code, Some(1));
    assert!(done.out.contains("300ms") || done.out.contains("0.3 s"), "{}{}", done.out, done.err);
    assert_eq!(project.plan()["s"], "run");
}

#[test]
fn a_stage_is_tried_again_as_often_as_it_says() {
    let witness = Witness::new();
    let says = witness.says("try");
    let log = witness.path();
    let log = log.display();
    let project = Project::new(&format!(
        "stages:
  third: {{ run: '{says}; test $(wc -l < {log}) -ge 3 && echo 1 > {{out.x}}', out: {{ x: x }}, retries: {{ times: 2, delay: 50ms }} }}
"
    ));
    let start = Instant::now();
    project.run().did(&["third"]);
    assert_eq!(witness.heard().len(), 3);
    assert!(start.elapsed().as_millis() >= 150, "50 ms and 100 ms lie between three tries");
    project.edit("trestle.yaml", "-ge 3", "-ge 9");
    witness.clear();
    let done = project.call(&["run"]);
    assert_eq!((done.code, witness.heard().len()), (Some(1), 3), "{}", done.out);
}

/// A server of this test answers on the loopback; the command may not reach it.
#[test]
fn a_command_without_network_reaches_none() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let reach = format!("bash -c \"exec 3<>/dev/tcp/127.0.0.1/{port}\" && echo yes > {{out.x}} || echo no > {{out.x}}");
    let project = Project::new(&format!(
        "stages:
  with: {{ run: '{reach}', out: {{ x: x }}, cache: false }}
  without: {{ run: 'true; {reach}', out: {{ x: x }}, cache: false, network: false }}
"
    ));
    for sandbox in ["auto", "strict", "off"] {
        project.run_with(&["--sandbox", sandbox]).did(&["with", "without"]);
        assert_eq!((project.output("with", "x").trim(), project.output("without", "x").trim()), ("yes", "no"), "{sandbox}");
    }
}
