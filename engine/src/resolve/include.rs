//! `include:`: the stages of other files, under names of their own.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::program::{Program, Unit};
use super::{settings, values};
use crate::compiled::Dependency;
use crate::pipeline::Labels;
use crate::problem::{Problem, Problems, Span};
use crate::source::{self, Data, Files, MAX_BYTES, Node, Scalar};
use crate::spec::{self, IncludeSpec, Spec};
use crate::template::Scope;

/// Between the name of an included file and the names of its stages.
pub const SEPARATOR: &str = "::";
/// Most files that a pipeline may be made of.
const MAX_FILES: usize = 1000;

/// Lays a file and all that it includes together.
pub fn program(spec: Spec, root: &Path, params: Map<String, Value>, files: &mut Files, problems: &mut Problems) -> Program {
    let name = files.first().map(|source| source.name.clone()).unwrap_or_default();
    let main = root.join(Path::new(&name).file_name().unwrap_or_default());
    let place = Place { root: root.to_owned(), name: PathBuf::from(name), prefix: String::new() };
    let mut loader = Loader { files, problems, program: Program::default(), open: vec![main.canonicalize().unwrap_or(main)] };
    loader.unit(spec, place, params);
    loader.program
}

/// Where a file is.
struct Place {
    /// Its folder.
    root: PathBuf,
    /// What it is called in messages.
    name: PathBuf,
    /// Stands before the names of its stages.
    prefix: String,
}

struct Loader<'a> {
    files: &'a mut Files,
    problems: &'a mut Problems,
    program: Program,
    /// Files that are being read, the outermost first.
    open: Vec<PathBuf>,
}

impl Loader<'_> {
    fn unit(&mut self, spec: Spec, place: Place, params: Map<String, Value>) {
        let unit = self.program.units.len();
        let pools = settings::pools(&spec.pools, &scope(&params, self.files, &Labels::new()), self.problems);
        for (name, units) in pools {
            // The file that includes knows the machine better.
            self.program.pools.entry(name).or_insert(units);
        }
        let first = self.program.stages.len();
        if first == 0 {
            self.program.stages = spec.stages;
        } else {
            self.program.stages.extend(spec.stages);
        }
        self.program.index.reserve(self.program.stages.len() - first);
        for (i, stage) in self.program.stages.iter_mut().enumerate().skip(first) {
            stage.name.value.insert_str(0, &place.prefix);
            stage.unit = unit as u32;
            self.program.index.insert(stage.name.value.as_str().into(), i);
        }
        self.program.broken.extend(spec.broken.iter().map(|name| format!("{}{name}", place.prefix)));
        self.program.units.push(Unit { prefix: place.prefix.clone(), root: place.root.clone(), params: params.clone() });
        for include in &spec.includes {
            self.include(include, &place, &params);
        }
    }

    fn include(&mut self, include: &IncludeSpec, from: &Place, params: &Map<String, Value>) {
        let path = from.root.join(&include.file.value);
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(first) = self.open.iter().position(|open| *open == whole) {
            self.problems.push(self.cycle(first, &whole, include.file.span));
            return;
        }
        if self.program.units.len() >= MAX_FILES {
            self.problems.push(
                Problem::new("include::too-many", format!("the pipeline is made of more than {MAX_FILES} files"))
                    .at(include.file.span, "with this one"),
            );
            return;
        }
        let name = from.name.parent().unwrap_or(Path::new("")).join(&include.file.value);
        let Some(tree) = self.read(&path, &name, include.file.span) else { return };
        let (spec, found) = spec::read(tree);
        self.problems.extend(found);
        let own = self.params(&spec, include, params);
        let root = path.parent().map_or_else(|| from.root.clone(), Path::to_path_buf);
        let prefix = format!("{}{}{SEPARATOR}", from.prefix, include.name.value);
        self.open.push(whole);
        self.unit(spec, Place { root, name, prefix }, own);
        self.open.pop();
    }

    fn read(&mut self, path: &Path, name: &Path, span: Span) -> Option<Node> {
        let text = std::fs::metadata(path).and_then(|meta| {
            let is_small = meta.is_file() && meta.len() <= MAX_BYTES as u64;
            if is_small { std::fs::read_to_string(path) } else { Err(std::io::Error::other("it is no file, or far too large")) }
        });
        match text {
            Ok(text) => {
                self.program.dependencies.push(Dependency::file(path, &text));
                let source = self.files.add(name.display().to_string(), text);
                source::parse(&source.text, source.base).map_err(|found| self.problems.extend(found)).ok()
            }
            Err(error) => {
                self.problems.push(
                    Problem::new("include::not-found", format!("cannot read {}: {error}", name.display()))
                        .at(span, "included here")
                        .help("paths are relative to the folder of the file that includes"),
                );
                None
            }
        }
    }

    /// The params of the included file, with what the including one sets.
    fn params(&mut self, spec: &Spec, include: &IncludeSpec, outer: &Map<String, Value>) -> Map<String, Value> {
        let mut params = values::declared(spec, self.problems);
        let Some(node) = &include.params else { return params };
        let no_labels = Labels::new();
        match scope(outer, self.files, &no_labels).fill(node) {
            Ok(value) => {
                let filled = with_values(node, &value);
                values::over(&mut params, &filled, &format!("the include `{}`", include.name.value), self.problems);
            }
            Err(found) => self.problems.extend(found),
        }
        params
    }

    fn cycle(&self, first: usize, last: &Path, span: Span) -> Problem {
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut way: Vec<String> = self.open[first..].iter().map(name).collect();
        way.push(name(&last.to_path_buf()));
        Problem::new("include::cycle", format!("the files include each other: {}", way.join(" → "))).at(span, "closes the circle")
    }
}

fn scope<'s>(params: &'s Map<String, Value>, files: &'s Files, matrix: &'s Labels) -> Scope<'s> {
    Scope { params, items: &[], matrix, files }
}

/// The tree of `node` with the filled-in values, its places kept.
fn with_values(node: &Node, value: &Value) -> Node {
    let data = match (&node.data, value) {
        (Data::Map(entries), Value::Object(map)) => {
            let filled = |name: &str| map.get(name).cloned().unwrap_or_default();
            Data::Map(entries.iter().map(|(key, child)| (key.clone(), with_values(child, &filled(&key.name)))).collect())
        }
        (_, value) => from_value(node.span, value),
    };
    Node { span: node.span, data }
}

fn from_value(span: Span, value: &Value) -> Data {
    let node = |value: &Value| Node { span, data: from_value(span, value) };
    match value {
        Value::Array(items) => Data::List(items.iter().map(node).collect()),
        Value::Object(map) => Data::Map(map.iter().map(|(name, value)| (source::Key { name: name.into(), span }, node(value))).collect()),
        Value::Null => Data::Scalar(Scalar::Null),
        Value::Bool(truth) => Data::Scalar(Scalar::Bool(*truth)),
        Value::Number(number) => Data::Scalar(Scalar::Number(number.into())),
        Value::String(text) => Data::Scalar(Scalar::text(text)),
    }
}
