//! `${name}` in the values of a pipeline: params and matrix coordinates, filled in before anything else looks at a value.

use serde_json::{Map, Value};

use crate::pipeline::Labels;
use crate::problem::{Problem, Problems, Span};
use crate::source::{Data, Files, Node, Scalar, value_type_name};

/// What a name in `${…}` can mean: the matrix coordinates of the stage first, then the params.
pub struct Scope<'s> {
    /// Params of the pipeline.
    pub params: &'s Map<String, Value>,
    /// Items of `foreach` that are more than a coordinate.
    pub items: &'s [(String, Value)],
    /// Coordinates of the expanded stage.
    pub matrix: &'s Labels,
    /// The texts, to underline the very name that is wrong.
    pub files: &'s Files,
}

impl Scope<'_> {
    /// What a name means.
    pub fn value(&self, path: &str) -> Option<&Value> {
        let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
        if let Some((_, item)) = self.items.iter().find(|(name, _)| name == head) {
            return walk(item, rest);
        }
        match (head, rest) {
            ("params", Some(rest)) => walk_map(self.params, rest),
            ("matrix", Some(rest)) => {
                let (axis, rest) = rest.split_once('.').map_or((rest, None), |(axis, rest)| (axis, Some(rest)));
                walk(self.matrix.get(axis)?, rest)
            }
            (head, rest) => match self.matrix.get(head) {
                Some(value) => walk(value, rest),
                None => walk_map(self.params, path),
            },
        }
    }

    fn names(&self) -> Vec<&str> {
        self.matrix.keys().chain(self.params.keys()).map(String::as_str).collect()
    }

    /// A node with every `${…}` filled in.
    ///
    /// # Errors
    /// Every name that means nothing and every `${` that is not closed.
    pub fn fill(&self, node: &Node) -> Result<Value, Problems> {
        let mut problems = Problems::new();
        let value = self.fill_into(node, &mut problems);
        problems.or(value)
    }

    fn fill_into(&self, node: &Node, problems: &mut Problems) -> Value {
        match &node.data {
            Data::Scalar(Scalar::Text(text)) => self.text(text, node.span, problems),
            Data::Scalar(value) => value.to_value(),
            Data::List(items) => Value::Array(items.iter().map(|item| self.fill_into(item, problems)).collect()),
            Data::Map(entries) => {
                Value::Object(entries.iter().map(|(key, value)| (key.name.to_string(), self.fill_into(value, problems))).collect())
            }
        }
    }

    /// A string: `"${x}"` alone keeps the type of `x`, anything around it makes text; `$${` is a plain `${`.
    fn text(&self, text: &str, span: Span, problems: &mut Problems) -> Value {
        let pieces = match split(text) {
            Ok(pieces) => pieces,
            Err(problem) => {
                let written = problem.message.split('`').nth(1).unwrap_or_default().to_owned();
                problems.push(problem.at(self.files.narrow(span, &written), "here"));
                return Value::Null;
            }
        };
        if let [Piece::Name(name)] = pieces.as_slice() {
            return self.named(name, span, problems).cloned().unwrap_or(Value::Null);
        }
        let mut out = String::new();
        for piece in &pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Name(name) => match self.named(name, span, problems) {
                    Some(value @ (Value::Array(_) | Value::Object(_))) => problems.push(
                        Problem::new(
                            "template::not-text",
                            format!("`${{{name}}}` is {} and cannot stand inside text", value_type_name(value)),
                        )
                        .at(self.files.narrow(span, &format!("${{{name}}}")), "here"),
                    ),
                    Some(value) => out.push_str(&plain(value)),
                    None => {}
                },
            }
        }
        Value::String(out)
    }

    fn named(&self, name: &str, span: Span, problems: &mut Problems) -> Option<&Value> {
        let found = self.value(name);
        if found.is_none() {
            problems.push(self.unknown(name, self.files.narrow(span, &format!("${{{name}}}"))));
        }
        found
    }

    /// The complaint about a name that means nothing.
    pub fn unknown(&self, name: &str, place: Span) -> Problem {
        let problem = Problem::new("template::unknown-name", format!("`${{{name}}}` means nothing here"))
            .at(place, "no param and no axis of this stage");
        let wrong = name.strip_prefix("params.").or_else(|| name.strip_prefix("matrix.")).unwrap_or(name);
        let names = self.names();
        if names.is_empty() {
            problem.help("declare it under `params:` at the top of the file, or write `$${` for a plain `${`")
        } else {
            problem.nearest(wrong, names)
        }
    }
}

/// A scalar as the text that a user would write.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn walk<'v>(value: &'v Value, path: Option<&str>) -> Option<&'v Value> {
    path.map_or(Some(value), |path| path.split('.').try_fold(value, |value, part| value.get(part)))
}

fn walk_map<'v>(map: &'v Map<String, Value>, path: &str) -> Option<&'v Value> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    walk(map.get(head)?, rest)
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'t> {
    /// What stands for itself; exactly `${` where that was written as `$${`.
    Text(&'t str),
    /// What stands between `${` and `}`.
    Name(&'t str),
}

/// Splits a text at its `${…}`.
///
/// # Errors
/// If one is not closed, or holds no name.
pub fn split(text: &str) -> Result<Vec<Piece<'_>>, Problem> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            pieces.push(Piece::Text(&rest[..at - 1]));
            pieces.push(Piece::Text("${"));
            rest = &rest[at + 2..];
            continue;
        }
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let after = &rest[at + 2..];
        // A second brace inside means that the first was never closed.
        let closing = after.find('}').filter(|&end| !after[..end].contains('{'));
        let end = closing.ok_or_else(|| {
            Problem::new("template::not-closed", "a `${` is never closed").help("close it with `}`, or write `$${` for a plain `${`")
        })?;
        let name = after[..end].trim();
        if name.is_empty()
            || !name.split('.').all(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') && !part.is_empty())
        {
            let problem = Problem::new("template::bad-name", format!("`${{{}}}` is not a name", &after[..end]));
            return Err(
                problem.help("`${…}` takes the name of a param or a matrix axis; for the shell's own `${VAR}` write `$VAR` or `$${VAR}`")
            );
        }
        pieces.push(Piece::Name(name));
        rest = &after[end + 1..];
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::source::parse;
    use serde_json::json;

    fn fill(text: &str) -> Result<Value, Problems> {
        let params = json!({"n": 3, "deep": {"er": [1, 2]}, "name": "x", "seed": 9});
        let matrix = Labels::from_iter([("seed".to_owned(), json!(7))]);
        let mut files = Files::new();
        files.add("test", text.to_owned());
        Scope { params: params.as_object().unwrap(), items: &[], matrix: &matrix, files: &files }.fill(&parse(text, 0).unwrap())
    }

    #[test]
    fn a_value_alone_keeps_its_type_and_text_around_it_makes_text() {
        let value =
            fill("{a: '${n}', b: 'n=${n}', c: '${deep.er}', d: '$${n} ${name}', e: '${seed}', f: '${params.seed}', g: ''}").unwrap();
        assert_eq!(value, json!({"a":3,"b":"n=3","c":[1,2],"d":"${n} x","e":7,"f":9,"g":""}));
    }

    #[test]
    fn unknown_and_broken_names_are_problems() {
        let problems = fill("{a: '${nn}', b: '${', c: '${deep.er} x', d: '${a b}'}").unwrap_err();
        let codes: Vec<_> = problems.iter().map(|p| p.code).collect();
        assert_eq!(codes.len(), 4, "{codes:?}");
        for code in ["template::unknown-name", "template::not-closed", "template::not-text", "template::bad-name"] {
            assert!(codes.contains(&code), "{code} is not in {codes:?}");
        }
    }
}
