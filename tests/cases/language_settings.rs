//! How a stage is to be run: what is written reaches the engine, and never the key.

use crate::support::Project;

const ALL: &str = "\
params: { patience: 5m, slots: 2 }
pools: { licence: '${slots}' }
stages:
  a:
    run: 'echo 1 > {out.x}'
    out: { x: x }
";

#[test]
fn settings_never_enter_the_key() {
    let project = Project::new(ALL);
    project.run().did(&["a"]);
    project.write(
        "trestle.yaml",
        &format!(
            "{ALL}    timeout: '${{patience}}'
    retries: {{ times: 2, delay: 100ms }}
    priority: -3
    network: false
    tags: [slow, net]
    resources: {{ cpus: 1, memory: 0.5GiB, gpus: 0, licence: '${{slots}}' }}
"
        ),
    );
    project.run().did(&[]);
    project.edit("trestle.yaml", "retries: { times: 2, delay: 100ms }", "retries: 2");
    project.run().did(&[]);
    let asks_too_much = project.call(&["plan", "--set", "slots=0"]);
    assert_eq!(asks_too_much.code, Some(2));
    assert!(asks_too_much.err.contains("must be a whole number above 0"), "{}", asks_too_much.err);
}
