//! JSON Schema of the pipeline file, so that an editor completes and checks it. The params of every native stage come from its types.

use serde_json::{Map, Value, json};

use crate::stage::{Arity, Kind, Registry};

/// The schema of a pipeline file with these stage kinds.
pub fn pipeline(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    let mut native: Vec<Value> = Vec::new();
    for kind in registry.kinds() {
        native.push(native_stage(kind, &mut definitions));
    }
    let mut stage_forms = native;
    stage_forms.push(command_stage());
    stage_forms.push(templated_stage());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "trestle pipeline",
        "type": "object",
        "additionalProperties": false,
        "anyOf": [{"required": ["stages"]}, {"required": ["include"]}],
        "properties": {
            "name": {"type": "string", "description": "Name of the pipeline; the file's name if left out."},
            "about": {"type": "string", "description": "What it is for."},
            "params": {"type": "object", "description": "Values that `${name}` stands for; changed by --set name=value."},
            "profiles": {
                "type": "object",
                "additionalProperties": {"type": "object"},
                "description": "Values of params by the name of a profile, which --profile chooses.",
            },
            "include": {
                "type": "array",
                "description": "Other pipeline files, whose stages are called `name::stage`.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["file", "as"],
                    "properties": {
                        "file": {"type": "string", "description": "Relative to this file."},
                        "as": {"type": "string", "description": "Stands before the names of its stages."},
                        "params": {"type": "object", "description": "Values of its params."},
                    },
                },
            },
            "templates": {
                "type": "object",
                "description": "Stages with holes: `args` and the keys of a stage.",
                "additionalProperties": {"type": "object", "properties": {
                    "args": {"type": "object", "description": "Args with their defaults; one without must be given."},
                }},
            },
            "pools": {"type": "object", "additionalProperties": or_name(json!({"type": "integer", "minimum": 1}), "Units."), "description": "What stages share, such as licences or connections: units by name."},
            "stages": {"type": "object", "minProperties": 1, "additionalProperties": {"oneOf": stage_forms}},
        },
        "$defs": definitions,
    })
}

/// What stands for a value of any type.
const NAME: &str = "\\$\\{.*\\}";

/// `own`, or an interpolation.
fn or_name(own: Value, description: &str) -> Value {
    json!({"anyOf": [own, {"type": "string", "pattern": NAME}], "description": description})
}

fn maps() -> Value {
    json!({"type": "array", "items": {"type": "object", "minProperties": 1}})
}

fn time() -> Value {
    json!({"type": "string", "pattern": "^[0-9.]+ *(ms|s|m|min|h|d)$"})
}

fn common(properties: Value) -> Value {
    let mut all = json!({
        "about": {"type": "string", "description": "What the stage is for."},
        "matrix": {
            "type": "object",
            "description": "One expanded stage for every combination of these values, without the excluded ones, with the included ones.",
            "properties": {
                "include": {"anyOf": [maps(), {"type": "string", "pattern": NAME}], "description": "Values to add, as GitHub Actions does."},
                "exclude": {"anyOf": [maps(), {"type": "string", "pattern": NAME}], "description": "Combinations to leave out."},
            },
            "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"type": "string", "pattern": "^\\$\\{.*\\}$"}]},
        },
        "foreach": {
            "type": "object",
            "description": "One expanded stage for every item: values, maps with a `name`, or the output of a stage that lists them.",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"type": "string", "pattern": "^\\$\\{.*\\}$"}]},
        },
        "when": {"type": ["string", "boolean"], "description": "A condition such as `${mode} == full`; the stage is left out where it is false."},
        "resources": {
            "type": "object",
            "description": "What it holds while it runs: threads, memory, GPUs, and units of the pools that are declared at the top. Never part of the key.",
            "properties": {
                "cpus": or_name(json!({"type": "integer", "minimum": 1}), "Threads that it gets."),
                "memory": or_name(json!({"type": "string", "pattern": "^[0-9.]+ *([kKMGT]?B|[KMGT]iB)$"}), "Memory that it needs, such as `2GiB`."),
                "gpus": or_name(json!({"type": "integer", "minimum": 0}), "GPUs that it needs."),
            },
            "additionalProperties": or_name(json!({"type": "integer", "minimum": 0}), "Units of a pool."),
        },
        "timeout": or_name(time(), "After this long it is ended, and has failed."),
        "retries": {
            "description": "How often it is tried again after a failure.",
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": NAME},
                {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "times": or_name(json!({"type": "integer", "minimum": 0}), "Most tries after the first; 1 if left out."),
                        "delay": or_name(time(), "Pause before the second try, doubled for each further one; 1s if left out."),
                    },
                },
            ],
        },
        "priority": or_name(json!({"type": "integer"}), "Among ready stages those of higher priority start first; 0 if left out."),
        "cache": or_name(json!({"type": "boolean"}), "false: run every time."),
        "pure": or_name(json!({"type": "boolean"}), "false: nobody expects the same bytes again."),
        "network": or_name(json!({"type": "boolean"}), "false: a command may not use the network."),
        "tags": {"description": "Words by which stages can be chosen.", "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut all, properties) {
        all.extend(more);
    }
    all
}

fn native_stage(kind: &Kind, definitions: &mut Map<String, Value>) -> Value {
    let mut with = kind.schema.clone().to_value();
    if let Value::Object(with) = &mut with {
        with.remove("$schema");
        with.remove("title");
        if let Some(Value::Object(own)) = with.remove("$defs") {
            definitions.extend(own);
        }
        relax(with);
    }
    let inputs: Map<String, Value> = kind.inputs.iter().map(|port| (port.name.to_owned(), input(port.doc, port.arity))).collect();
    let required: Vec<&str> = kind.inputs.iter().filter(|port| port.arity != Arity::Optional).map(|port| port.name).collect();
    let mut needed = vec!["uses"];
    if !required.is_empty() {
        needed.push("in");
    }
    json!({
        "type": "object",
        "title": kind.name,
        "description": kind.about,
        "additionalProperties": false,
        "required": needed,
        "properties": common(json!({
            "uses": {"const": kind.name, "description": kind.about},
            "in": {"type": "object", "additionalProperties": false, "required": required, "properties": inputs},
            "with": with,
        })),
    })
}

/// Every param may also be written as `${name}`.
fn relax(with: &mut Map<String, Value>) {
    if let Some(Value::Object(properties)) = with.get_mut("properties") {
        for schema in properties.values_mut() {
            let own = schema.take();
            let description = own.get("description").cloned();
            *schema = json!({"anyOf": [own, {"type": "string", "pattern": NAME}]});
            if let (Some(description), Value::Object(schema)) = (description, schema) {
                schema.insert("description".to_owned(), description);
            }
        }
    }
}

fn input(doc: &str, arity: Arity) -> Value {
    let one = json!({"type": "string", "description": doc});
    match arity {
        Arity::One => one,
        Arity::Optional => json!({"type": ["string", "null"], "description": doc}),
        Arity::Many => json!({"anyOf": [one, {"type": "array", "items": {"type": "string"}, "minItems": 1}], "description": doc}),
    }
}

fn templated_stage() -> Value {
    json!({
        "type": "object",
        "title": "template",
        "description": "A stage with the keys of a template; keys of its own go over them.",
        "required": ["template"],
        "properties": common(json!({
            "template": {"type": "string", "description": "Name of the template."},
            "args": {"type": "object", "description": "Values for its holes."},
        })),
    })
}

fn command_stage() -> Value {
    json!({
        "type": "object",
        "title": "command",
        "description": "Any command: it sees its declared inputs and gives its declared outputs.",
        "additionalProperties": false,
        "required": ["run", "out"],
        "properties": common(json!({
            "run": {
                "description": "The command or script, or the words of one command that needs no shell; `{in.name}` and `{out.name}` are paths.",
                "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean"]}}],
            },
            "in": {"type": "object", "additionalProperties": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}}]}},
            "out": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}, "description": "Name to path in the stage's folder."},
            "env": {
                "type": "object",
                "description": "Variables; part of the key.",
                "additionalProperties": {"anyOf": [
                    {"type": ["string", "number", "boolean"]},
                    {
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["from"],
                        "properties": {
                            "from": {"type": "string", "description": "The caller's variable that gives the value."},
                            "default": {"type": ["string", "number", "boolean"], "description": "The value if the caller has none."},
                        },
                    },
                ]},
            },
            "workdir": {"type": "string", "description": "Where the command starts, in the stage's folder."},
            "stdout": {"type": "string", "description": "The output that takes what the command prints."},
            "shell": {"type": "string", "description": "The words before the script; `/bin/sh -e -u -c` if left out."},
        })),
    })
}
