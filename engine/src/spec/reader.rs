//! What all readers of shapes share: typed access to nodes, and the words for what is wrong with them.

use crate::problem::{Problem, Problems, Span, Spanned};
use crate::source::{Data, Entries, Key, Node};
use crate::spec::is_name;
use crate::spec::template::Template;

/// Collects the mistakes of shape.
#[derive(Default)]
pub struct Reader {
    /// All mistakes so far.
    pub problems: Problems,
    /// `templates:` of the file.
    pub templates: Vec<Template>,
}

impl Reader {
    /// The entries of a map; nothing, with a complaint, if it is none.
    pub fn map(&mut self, node: Node, what: &str) -> Entries {
        match node.data {
            Data::Map(entries) => entries,
            _ => {
                self.wrong_type(&node, what, "a map");
                Entries::default()
            }
        }
    }

    /// A map whose keys are names; empty if left out.
    pub fn named_map(&mut self, node: Node, what: &str) -> Entries {
        if node.is_null() {
            return Entries::default();
        }
        let entries = match node.data {
            Data::Map(entries) => entries,
            _ => self.map(node, &format!("`{what}`")),
        };
        for (key, _) in &entries {
            if !is_name(&key.name) {
                self.bad_name(&key.name, what, key.span);
            }
        }
        entries
    }

    /// `name` cannot be one.
    pub fn bad_name(&mut self, name: &str, what: &str, span: Span) {
        self.problems.push(
            Problem::new("spec::bad-name", format!("`{name}` cannot be a name in `{what}`"))
                .at(span, "this name")
                .help("a name begins with a letter and has letters, digits, `_` and `-` only"),
        );
    }

    /// A string.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<Spanned<String>> {
        match node.as_str() {
            Some(text) => Some(Spanned::new(text.to_owned(), node.span)),
            None => {
                self.wrong_type(node, &format!("`{what}`"), "a string");
                None
            }
        }
    }

    /// `what` is not what it should be.
    pub fn wrong_type(&mut self, node: &Node, what: &str, wanted: &str) {
        let problem =
            Problem::new("spec::wrong-type", format!("{what} must be {wanted}")).at(node.span, format!("this is {}", node.type_name()));
        self.problems.push(problem);
    }

    /// `what` has no such key.
    pub fn unknown_key(&mut self, key: &Key, what: &str, known: &[&str]) {
        let problem = Problem::new("spec::unknown-key", format!("{what} has no key `{}`", key.name)).at(key.span, "unknown key");
        self.problems.push(problem.nearest(&key.name, known.iter().copied()));
    }

    /// A key of another kind of stage.
    pub fn misplaced(&mut self, place: Option<Span>, key: &str, belongs_to: &str) {
        if let Some(span) = place {
            self.problems.push(
                Problem::new("spec::misplaced-key", format!("`{key}` belongs to a stage with `{belongs_to}`")).at(span, "not allowed here"),
            );
        }
    }
}
