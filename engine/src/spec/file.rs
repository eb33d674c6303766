//! The top of the file.

use super::reader::Reader;
use super::{INCLUDE_KEYS, IncludeSpec, Spec, TOP_KEYS};
use crate::problem::Problem;
use crate::source::{Data, Node};

impl Reader {
    /// A whole file.
    pub fn file(&mut self, root: Node) -> Spec {
        let mut spec = Spec::default();
        if root.is_null() {
            self.problems.push(
                Problem::new("spec::empty", "the pipeline file is empty")
                    .at(root.span, "nothing in here")
                    .help("write at least one entry under `stages:`"),
            );
            return spec;
        }
        let span = root.span;
        let (mut stages, mut templates) = (None, None);
        for (key, node) in self.map(root, "a pipeline") {
            match key.name.as_str() {
                "name" => spec.name = self.text(&node, "name"),
                "about" => drop(self.text(&node, "about")),
                "params" => spec.params = self.named_map(node, "params"),
                "profiles" => spec.profiles = self.named_map(node, "profiles"),
                "include" => spec.includes = self.includes(node),
                "pools" => spec.pools = self.named_map(node, "pools"),
                "templates" => templates = Some(node),
                "stages" => stages = Some(node),
                _ => self.unknown_key(&key, "a pipeline", &TOP_KEYS),
            }
        }
        if let Some(node) = templates {
            self.templates(node);
        }
        match stages {
            Some(node) => self.stages(node, &mut spec),
            // A misspelt `stages`, or what is no map at all, was complained about already.
            None if !self.problems.is_empty() || !spec.includes.is_empty() => {}
            None => self.problems.push(Problem::new("spec::no-stages", "a pipeline needs `stages:`").at(span, "no `stages:` in here")),
        }
        spec
    }

    fn stages(&mut self, node: Node, spec: &mut Spec) {
        let span = node.span;
        let entries = self.named_map(node, "stages");
        if entries.is_empty() {
            self.problems.push(Problem::new("spec::no-stages", "`stages:` is empty").at(span, "write at least one stage"));
        }
        spec.stages.reserve(entries.len());
        for (key, node) in entries {
            match self.stage(&key, node) {
                Some(stage) => spec.stages.push(Box::new(stage)),
                None => spec.broken.push(key.name.into()),
            }
        }
    }

    fn includes(&mut self, node: Node) -> Vec<IncludeSpec> {
        let span = node.span;
        let Data::List(items) = node.data else {
            let problem = Problem::new("spec::wrong-type", "`include` must be a list").at(span, format!("this is {}", node.type_name()));
            self.problems.push(problem.help("write `include: [{ file: other.yaml, as: other }]`"));
            return Vec::new();
        };
        let mut includes: Vec<IncludeSpec> = Vec::new();
        for item in items {
            let Some(include) = self.include(item) else { continue };
            if let Some(first) = includes.iter().find(|first| first.name.value == include.name.value) {
                self.problems.push(
                    Problem::new("include::repeated", format!("two files are included as `{}`", include.name.value))
                        .at(include.name.span, "again here")
                        .at(first.name.span, "first here")
                        .help("give one of them another name"),
                );
                continue;
            }
            includes.push(include);
        }
        includes
    }

    fn include(&mut self, node: Node) -> Option<IncludeSpec> {
        let span = node.span;
        let before = self.problems.len();
        let (mut file, mut name, mut params) = (None, None, None);
        for (key, value) in self.map(node, "an entry of `include`") {
            match key.name.as_str() {
                "file" => file = self.text(&value, "file"),
                "as" => name = self.text(&value, "as"),
                "params" => params = Some(value),
                _ => self.unknown_key(&key, "`include`", &INCLUDE_KEYS),
            }
        }
        if let Some(name) = name.as_ref().filter(|name| !super::is_name(&name.value)) {
            self.bad_name(&name.value, "include", name.span);
        }
        match (file, name) {
            (Some(file), Some(name)) => Some(IncludeSpec { file, name, params }),
            _ if self.problems.len() > before => None,
            _ => {
                self.problems.push(
                    Problem::new("include::incomplete", "an entry of `include` needs `file` and `as`")
                        .at(span, "one of them is missing")
                        .help("write `{ file: other.yaml, as: other }`; its stages are then called `other::stage`"),
                );
                None
            }
        }
    }
}
