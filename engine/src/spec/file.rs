//! The top of the file.

use super::reader::Reader;
use super::{Spec, TOP_KEYS};
use crate::problem::Problem;
use crate::source::Node;

impl Reader {
    /// A whole file.
    pub fn file(&mut self, root: Node) -> Spec {
        let mut spec = Spec::default();
        if root.is_null() {
            self.problems.push(Problem::new("spec::empty", "the pipeline file is empty").help("write at least one entry under `stages:`"));
            return spec;
        }
        let mut has_stages = false;
        let span = root.span;
        for (key, node) in self.map(root, "a pipeline") {
            match key.name.as_str() {
                "name" => spec.name = self.text(&node, "name"),
                "about" => drop(self.text(&node, "about")),
                "params" => spec.params = self.named_map(node, "params"),
                "pools" => spec.pools = self.named_map(node, "pools"),
                "stages" => {
                    has_stages = true;
                    self.stages(node, &mut spec);
                }
                _ => self.unknown_key(&key, "a pipeline", &TOP_KEYS),
            }
        }
        // A misspelt `stages`, or what is no map at all, was complained about already.
        if !has_stages && self.problems.is_empty() {
            self.problems.push(Problem::new("spec::no-stages", "a pipeline needs `stages:`").at(span, "no `stages:` in here"));
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
                Some(stage) => spec.stages.push(stage),
                None => spec.broken.push(key.name),
            }
        }
    }
}
