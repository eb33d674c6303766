//! A pipeline as written: the shape of the file with its places, before any value is filled in.

use serde_json::Value;

use crate::problem::{Problem, Problems, Span, Spanned};
use crate::source::{Data, Key, Node};

/// Keys at the top of the file.
pub const TOP_KEYS: [&str; 4] = ["name", "about", "params", "stages"];
/// Keys of a stage.
pub const STAGE_KEYS: [&str; 10] = ["about", "uses", "run", "in", "with", "out", "matrix", "env", "shell", "resources"];
/// Keys of `resources`.
pub const RESOURCE_KEYS: [&str; 1] = ["cpus"];

/// The whole file.
#[derive(Debug, Clone)]
pub struct Spec {
    /// `name:`, if it has one.
    pub name: Option<Spanned<String>>,
    /// `params:` in the order of the file.
    pub params: Vec<(Key, Node)>,
    /// `stages:` in the order of the file, without those whose shape is wrong.
    pub stages: Vec<StageSpec>,
    /// Names of stages whose shape is wrong; what refers to them is not complained about.
    pub broken: Vec<String>,
}

/// One entry of `stages:`.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// Its key.
    pub name: Spanned<String>,
    /// `uses:` or `run:`.
    pub action: ActionSpec,
    /// `in:`.
    pub inputs: Vec<(Key, Node)>,
    /// `matrix:`; each axis is a list or an interpolation that gives one.
    pub matrix: Vec<(Key, Node)>,
    /// `resources.cpus`.
    pub cpus: Option<Spanned<usize>>,
}

/// What a stage does, as written.
#[derive(Debug, Clone)]
pub enum ActionSpec {
    /// A native stage kind with its params.
    Uses {
        /// `uses:`.
        kind: Spanned<String>,
        /// `with:`, a map; `None` if left out.
        with: Option<Node>,
    },
    /// A command.
    Run {
        /// `run:`.
        script: Node,
        /// `out:`, name to path.
        outputs: Vec<(Key, Node)>,
        /// `env:`, name to value.
        env: Vec<(Key, Node)>,
        /// `shell:`, the words before the script.
        shell: Option<Node>,
    },
}

/// Reads the shape of a parsed file: what could be read, and every mistake of shape.
pub fn read(root: &Node) -> (Spec, Problems) {
    let mut reader = Reader { problems: Problems::new() };
    let spec = reader.spec(root);
    (spec, reader.problems)
}

/// Whether `name` can name a stage, a param, an axis, an input or an output.
pub fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

struct Reader {
    problems: Problems,
}

impl Reader {
    fn spec(&mut self, root: &Node) -> Spec {
        let mut spec = Spec { name: None, params: Vec::new(), stages: Vec::new(), broken: Vec::new() };
        if root.is_null() {
            self.problems.push(Problem::new("spec::empty", "the pipeline file is empty").help("write at least one entry under `stages:`"));
            return spec;
        }
        let mut has_stages = false;
        for (key, node) in self.map(root, "a pipeline") {
            match key.name.as_str() {
                "name" => spec.name = self.text(node, "name"),
                "about" => drop(self.text(node, "about")),
                "params" => spec.params = self.named_map(node, "params"),
                "stages" => {
                    has_stages = true;
                    self.stages(node, &mut spec);
                }
                _ => self.unknown_key(key, "a pipeline", &TOP_KEYS),
            }
        }
        // A misspelt `stages`, or what is no map at all, was complained about already.
        if !has_stages && self.problems.is_empty() {
            self.problems.push(Problem::new("spec::no-stages", "a pipeline needs `stages:`").at(root.span, "no `stages:` in here"));
        }
        spec
    }

    fn stages(&mut self, node: &Node, spec: &mut Spec) {
        let entries = self.named_map(node, "stages");
        if entries.is_empty() {
            self.problems.push(Problem::new("spec::no-stages", "`stages:` is empty").at(node.span, "write at least one stage"));
        }
        for (key, node) in &entries {
            match self.stage(key, node) {
                Some(stage) => spec.stages.push(stage),
                None => spec.broken.push(key.name.clone()),
            }
        }
    }

    fn stage(&mut self, key: &Key, node: &Node) -> Option<StageSpec> {
        let mut fields = Fields::default();
        let mut cpus = None;
        for (field, value) in self.map(node, &format!("stage `{}`", key.name)) {
            match field.name.as_str() {
                "about" => drop(self.text(value, "about")),
                "uses" => fields.uses = self.text(value, "uses").map(|kind| (field.span, kind)),
                "run" => fields.run = self.text(value, "run").map(|_| (field.span, value.clone())),
                "in" => fields.inputs = self.named_map(value, "in"),
                "with" => fields.with = Some((field.span, value.clone())),
                "out" => fields.out = Some((field.span, self.named_map(value, "out"))),
                "matrix" => fields.matrix = self.matrix(value),
                "env" => fields.env = Some((field.span, self.named_map(value, "env"))),
                "shell" => fields.shell = self.text(value, "shell").map(|_| (field.span, value.clone())),
                "resources" => cpus = self.resources(value),
                _ => self.unknown_key(field, "a stage", &STAGE_KEYS),
            }
        }
        let names_an_action =
            matches!(&node.data, Data::Map(entries) if entries.iter().any(|(field, _)| field.name == "uses" || field.name == "run"));
        let has_action = fields.uses.is_some() || fields.run.is_some();
        // What is written but could not be read was complained about already.
        if !has_action && (names_an_action || !matches!(node.data, Data::Map(_))) {
            return None;
        }
        let action = self.action(key, &mut fields)?;
        let name = Spanned::new(key.name.clone(), key.span);
        Some(StageSpec { name, action, inputs: fields.inputs, matrix: fields.matrix, cpus })
    }

    fn action(&mut self, key: &Key, fields: &mut Fields) -> Option<ActionSpec> {
        match (fields.uses.take(), fields.run.take()) {
            (Some((_, kind)), None) => {
                for (name, place) in [("out", span_of(&fields.out)), ("env", span_of(&fields.env)), ("shell", span_of(&fields.shell))] {
                    self.misplaced(place, name, "run");
                }
                let with = fields.with.take().map(|(_, node)| node).filter(|node| !node.is_null());
                if let Some(node) = &with {
                    self.map(node, "`with`");
                }
                Some(ActionSpec::Uses { kind, with })
            }
            (None, Some((_, script))) => {
                self.misplaced(span_of(&fields.with), "with", "uses");
                let outputs = fields.out.take().map(|(_, out)| out).unwrap_or_default();
                if outputs.is_empty() {
                    self.problems.push(
                        Problem::new("spec::no-outputs", format!("the command of stage `{}` declares no output", key.name))
                            .at(key.span, "this stage")
                            .help("add `out: { name: path }`; only declared outputs are kept"),
                    );
                }
                let env = fields.env.take().map(|(_, env)| env).unwrap_or_default();
                Some(ActionSpec::Run { script, outputs, env, shell: fields.shell.take().map(|(_, node)| node) })
            }
            (Some((uses, _)), Some((run, _))) => {
                self.problems.push(
                    Problem::new("spec::uses-and-run", format!("stage `{}` has both `uses` and `run`", key.name))
                        .at(uses, "a native stage")
                        .at(run, "and a command")
                        .help("keep one"),
                );
                None
            }
            (None, None) => {
                self.problems.push(
                    Problem::new("spec::no-action", format!("stage `{}` does nothing", key.name))
                        .at(key.span, "neither `uses` nor `run`")
                        .help("add `uses: <kind>` for a native stage or `run: <command>`"),
                );
                None
            }
        }
    }

    fn misplaced(&mut self, place: Option<Span>, key: &str, belongs_to: &str) {
        if let Some(span) = place {
            self.problems.push(
                Problem::new("spec::misplaced-key", format!("`{key}` belongs to a stage with `{belongs_to}`")).at(span, "not allowed here"),
            );
        }
    }

    fn matrix(&mut self, node: &Node) -> Vec<(Key, Node)> {
        let axes = self.named_map(node, "matrix");
        for (key, values) in &axes {
            let interpolated = values.as_str().is_some_and(|text| text.starts_with("${"));
            match &values.data {
                Data::List(items) if !items.is_empty() => {}
                _ if interpolated => {}
                _ => self.problems.push(
                    Problem::new("spec::matrix-axis", format!("the axis `{}` needs a list of values", key.name))
                        .at(
                            values.span,
                            format!("this is {}", if matches!(values.data, Data::List(_)) { "an empty list" } else { values.type_name() }),
                        )
                        .help(format!("write `{}: [1, 2]`", key.name)),
                ),
            }
        }
        axes
    }

    fn resources(&mut self, node: &Node) -> Option<Spanned<usize>> {
        let mut cpus = None;
        for (key, value) in self.map(node, "`resources`") {
            match (key.name.as_str(), &value.data) {
                ("cpus", Data::Scalar(Value::Number(n))) if n.as_u64().is_some_and(|n| n > 0) => {
                    cpus = n.as_u64().map(|n| Spanned::new(usize::try_from(n).unwrap_or(usize::MAX), value.span));
                }
                ("cpus", _) => self.wrong_type(value, "cpus", "a whole number above 0"),
                _ => self.unknown_key(key, "`resources`", &RESOURCE_KEYS),
            }
        }
        cpus
    }

    fn map<'n>(&mut self, node: &'n Node, what: &str) -> &'n [(Key, Node)] {
        match &node.data {
            Data::Map(entries) => entries,
            _ => {
                self.wrong_type(node, what, "a map");
                &[]
            }
        }
    }

    /// A map whose keys are names; empty if left out.
    fn named_map(&mut self, node: &Node, what: &str) -> Vec<(Key, Node)> {
        if node.is_null() {
            return Vec::new();
        }
        let entries = self.map(node, &format!("`{what}`")).to_vec();
        for (key, _) in &entries {
            if !is_name(&key.name) {
                self.problems.push(
                    Problem::new("spec::bad-name", format!("`{}` cannot be a name in `{what}`", key.name))
                        .at(key.span, "this name")
                        .help("a name begins with a letter and has letters, digits, `_` and `-` only"),
                );
            }
        }
        entries
    }

    fn text(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        match node.as_str() {
            Some(text) => Some(Spanned::new(text.to_owned(), node.span)),
            None => {
                self.wrong_type(node, &format!("`{what}`"), "a string");
                None
            }
        }
    }

    fn wrong_type(&mut self, node: &Node, what: &str, wanted: &str) {
        let problem =
            Problem::new("spec::wrong-type", format!("{what} must be {wanted}")).at(node.span, format!("this is {}", node.type_name()));
        self.problems.push(problem);
    }

    fn unknown_key(&mut self, key: &Key, what: &str, known: &[&str]) {
        let problem = Problem::new("spec::unknown-key", format!("{what} has no key `{}`", key.name)).at(key.span, "unknown key");
        self.problems.push(problem.nearest(&key.name, known.iter().copied()));
    }
}

fn span_of<T>(field: &Option<(Span, T)>) -> Option<Span> {
    field.as_ref().map(|(span, _)| *span)
}

/// What was written under one stage, each with the place of its key.
#[derive(Default)]
struct Fields {
    uses: Option<(Span, Spanned<String>)>,
    run: Option<(Span, Node)>,
    with: Option<(Span, Node)>,
    out: Option<(Span, Vec<(Key, Node)>)>,
    env: Option<(Span, Vec<(Key, Node)>)>,
    shell: Option<(Span, Node)>,
    inputs: Vec<(Key, Node)>,
    matrix: Vec<(Key, Node)>,
}
