//! The manifest of a stage: all that can change its outputs, and nothing else.
//!
//! | section | ingredient | native | command |
//! |---|---|---|---|
//! | stage | `kind`, `version`, `device`, `dtype` | kind, its version, the params `device` and `precision`, or else `cpu` and `f32` | `command`, 1 |
//! | param | each leaf of the params by path, defaults explicit | yes | – (they are in the script) |
//! | command | `script`, `shell` | – | yes |
//! | input | `name` or `name[i]`: digest, labels, and the place where the stage sees it if that carries a file name | yes | yes |
//! | output | `name`: path | – (fixed by kind and version) | yes |
//! | env | each declared variable | – | yes |
//!
//! Not in it: the stage's name, resources, the executor, the folder of the project, times of files, order and layout of the YAML.

use serde_json::Value;
use trestle_cache::{Content, Manifest, Section};

use crate::pipeline::{Action, Bound, Origin, Stage};

/// Contents of the values of all inputs, in the order of [`Stage::inputs`].
pub type Contents = Vec<Vec<Content>>;

/// Where, or in which number format, a native stage is computed: a kind that can do otherwise than usual has a param for it, and leaves out the
/// usual value.
fn said<'a>(params: &'a Value, param: &str, usual: &'a str) -> &'a str {
    params.get(param).and_then(Value::as_str).unwrap_or(usual)
}

/// The manifest of `stage` with these input contents.
pub fn manifest(stage: &Stage, contents: &Contents) -> Manifest {
    let mut manifest = Manifest::new();
    match &stage.action {
        Action::Native { kind, version, params, aside: _ } => {
            manifest.push(Section::Stage, "kind", kind.as_str());
            manifest.push(Section::Stage, "version", version.to_string());
            manifest.push(Section::Stage, "device", said(params, "device", "cpu"));
            manifest.push(Section::Stage, "dtype", said(params, "precision", "f32"));
            push_leaves(&mut manifest, "", params);
        }
        Action::Command { script, shell, env, workdir, stdout } => {
            manifest.push(Section::Stage, "kind", "command");
            manifest.push(Section::Stage, "version", "1");
            manifest.push(Section::Command, "script", &**script);
            manifest.push(Section::Command, "shell", Value::from(shell.to_vec()).to_string());
            // Only where they are used: a stage without them keeps the key that it had before they existed.
            if !workdir.is_empty() {
                manifest.push(Section::Command, "workdir", &**workdir);
            }
            if let Some(output) = stdout {
                manifest.push(Section::Command, "stdout", &**output);
            }
            for (name, value) in env {
                manifest.push(Section::Env, name.as_str(), value.as_str());
            }
            for (name, output) in stage.outputs.iter() {
                manifest.push(Section::Output, name.as_str(), output.path.as_str());
            }
        }
    }
    for (slot, contents) in stage.inputs.iter().zip(contents) {
        for (i, (bound, content)) in slot.values.iter().zip(contents).enumerate() {
            let name = if slot.many { format!("{}[{i}]", slot.name) } else { slot.name.to_string() };
            manifest.push(Section::Input, name, describe(&stage.action, bound, content));
        }
    }
    manifest
}

/// The digest, then what else of this value reaches the stage.
fn describe(action: &Action, bound: &Bound, content: &Content) -> String {
    let mut text = content.to_string();
    if !bound.labels.is_empty() {
        let labels: Value = bound.labels.iter().map(|(axis, value)| (axis.clone(), value.clone())).collect();
        text.push_str(&format!(" {labels}"));
    }
    let is_named = matches!(action, Action::Command { .. }) || matches!(bound.origin, Origin::File { .. });
    if is_named {
        text.push_str(&format!(" at {}", bound.place));
    }
    text
}

/// Every leaf of a JSON value under its dotted path; an empty collection is a leaf.
fn push_leaves(manifest: &mut Manifest, path: &str, value: &Value) {
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| push_leaves(manifest, &child(path, key), value)),
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(i, value)| push_leaves(manifest, &format!("{path}[{i}]"), value))
        }
        leaf => manifest.push(Section::Param, path, leaf.to_string()),
    }
}

/// The path of an entry. A key that could be read as more than one step is quoted, so that no two entries share a path.
fn child(path: &str, key: &str) -> String {
    if !crate::spec::is_name(key) {
        format!("{path}[{}]", Value::from(key))
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_is_the_usual_one_unless_a_param_says_otherwise() {
        assert_eq!(said(&json!({"lr": 1}), "device", "cpu"), "cpu");
        assert_eq!(said(&json!({"device": "cuda", "precision": "bf16"}), "device", "cpu"), "cuda");
        assert_eq!(said(&json!({"device": "cuda", "precision": "bf16"}), "precision", "f32"), "bf16");
    }

    #[test]
    fn no_two_leaves_share_a_path() {
        let mut manifest = Manifest::new();
        push_leaves(&mut manifest, "", &json!({"a": {"b": 1, "c": [2, {"d": 3}], "e": {}}, "a.b": 4, "a[0]": 5, "": 6}));
        let leaves: Vec<String> = manifest.iter().map(|i| format!("{}={}", i.name, i.value)).collect();
        assert_eq!(leaves, ["[\"\"]=6", "[\"a.b\"]=4", "[\"a[0]\"]=5", "a.b=1", "a.c[0]=2", "a.c[1].d=3", "a.e={}"]);
    }
}
