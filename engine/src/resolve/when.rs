//! `when:`, a condition on params and coordinates.
//!
//! ```text
//! condition = both { "or" both }
//! both      = one { "and" one }
//! one       = "not" one | operand [ ("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not" "in") operand ]
//! operand   = "${" name "}" | number | word | 'text' | "text" | "[" operand { "," operand } "]" | "(" condition ")"
//! ```

use serde_json::Value;

use crate::problem::{Problem, Problems, Span};
use crate::source::{Node, value_type_name};
use crate::template::Scope;

/// Whether the condition holds.
///
/// # Errors
/// If it is none, or a name in it means nothing.
pub fn holds(node: &Node, scope: &Scope<'_>) -> Result<bool, Problems> {
    let Some(text) = node.as_str() else {
        return match node.to_value() {
            Value::Bool(holds) => Ok(holds),
            _ => Err(Problem::new("when::not-a-condition", "`when` must be a condition")
                .at(node.span, format!("this is {}", node.type_name()))
                .help("write, for example, `when: \"${mode} == full\"`")
                .into()),
        };
    };
    let written = scope.files.narrow(node.span, text);
    let mut parser = Parser { text, at: 0, depth: 0, scope, whole: written, literal: scope.files.text(written) == text };
    let start = parser.at;
    let value = parser.condition()?;
    if parser.word_ahead().is_some() {
        return Err(parser.expected("`and`, `or` or the end", parser.at));
    }
    parser.truth(value, start)
}

/// Deepest nesting of parentheses, lists and `not`.
const MAX_NESTING: usize = 64;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    scope: &'a Scope<'a>,
    /// Place of the whole condition.
    whole: Span,
    /// Whether the file has the condition letter by letter, so that a part of it can be underlined.
    literal: bool,
}

impl<'a> Parser<'a> {
    fn condition(&mut self) -> Result<Value, Problems> {
        self.chain("or", Self::both, |a, b| a || b)
    }

    fn both(&mut self) -> Result<Value, Problems> {
        self.chain("and", Self::one, |a, b| a && b)
    }

    fn chain(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Value, Problems>,
        join: fn(bool, bool) -> bool,
    ) -> Result<Value, Problems> {
        let mut start = self.at;
        let mut value = part(self)?;
        while self.takes(word) {
            let left = self.truth(value, start)?;
            start = self.at;
            let right = part(self)?;
            value = Value::Bool(join(left, self.truth(right, start)?));
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<Value, Problems> {
        if self.takes("not") {
            self.deeper()?;
            let start = self.at;
            let value = self.one()?;
            self.depth -= 1;
            return Ok(Value::Bool(!self.truth(value, start)?));
        }
        let start = self.at;
        let left = self.operand()?;
        let Some(operator) = self.operator() else { return Ok(left) };
        let middle = self.at;
        let right = self.operand()?;
        let holds = match operator {
            "==" => equal(&left, &right),
            "!=" => !equal(&left, &right),
            "in" | "not in" => {
                let Value::Array(items) = &right else { return Err(self.wrong(&right, "a list", middle)) };
                items.iter().any(|item| equal(item, &left)) == (operator == "in")
            }
            _ => {
                let x = left.as_f64().ok_or_else(|| self.wrong(&left, "a number", start))?;
                let y = right.as_f64().ok_or_else(|| self.wrong(&right, "a number", middle))?;
                match operator {
                    "<" => x < y,
                    "<=" => x <= y,
                    ">" => x > y,
                    _ => x >= y,
                }
            }
        };
        Ok(Value::Bool(holds))
    }

    fn operator(&mut self) -> Option<&'static str> {
        if self.takes("not") {
            // `a not` is only ever followed by `in`.
            return if self.takes("in") { Some("not in") } else { None };
        }
        ["==", "!=", "<=", ">=", "<", ">", "in"].into_iter().find(|operator| self.takes(operator))
    }

    fn operand(&mut self) -> Result<Value, Problems> {
        self.blank();
        let start = self.at;
        let rest = &self.text[start..];
        let Some(first) = rest.chars().next() else { return Err(self.expected("a value", start)) };
        match first {
            '$' => self.name(),
            '(' => {
                self.at += 1;
                self.deeper()?;
                let value = self.condition()?;
                self.depth -= 1;
                self.closing(")", start)?;
                Ok(value)
            }
            '[' => self.list(),
            '\'' | '"' => {
                let inside = &rest[1..];
                let end = inside.find(first).ok_or_else(|| self.problem("this text is never closed", start, start + 1))?;
                self.at += end + 2;
                Ok(Value::from(&inside[..end]))
            }
            _ => {
                let word = self.word_ahead().filter(|word| is_word(word));
                let word = word.ok_or_else(|| self.expected("a value", start))?;
                if ["and", "or", "not", "in"].contains(&word) {
                    return Err(self.expected("a value", start));
                }
                self.at += word.len();
                Ok(typed(word))
            }
        }
    }

    fn name(&mut self) -> Result<Value, Problems> {
        let start = self.at;
        let rest = &self.text[start..];
        let end = rest.find('}').filter(|_| rest.starts_with("${"));
        let end = end.ok_or_else(|| self.problem("a `${` is never closed", start, start + 1))?;
        self.at += end + 1;
        let name = rest[2..end].trim();
        let place = self.place(start, self.at);
        self.scope.value(name).cloned().ok_or_else(|| self.scope.unknown(name, place).into())
    }

    fn list(&mut self) -> Result<Value, Problems> {
        let start = self.at;
        self.at += 1;
        self.deeper()?;
        let mut items = Vec::new();
        while !self.takes("]") {
            if !items.is_empty() && !self.takes(",") {
                return Err(self.expected("`,` or `]`", self.at));
            }
            if self.at >= self.text.len() {
                return Err(self.problem("this list is never closed", start, start + 1));
            }
            items.push(self.operand()?);
        }
        self.depth -= 1;
        Ok(Value::Array(items))
    }

    fn closing(&mut self, bracket: &str, opened: usize) -> Result<(), Problems> {
        if self.takes(bracket) { Ok(()) } else { Err(self.problem("this parenthesis is never closed", opened, opened + 1)) }
    }

    fn deeper(&mut self) -> Result<(), Problems> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(self.problem("the condition nests too deep", self.at.saturating_sub(1), self.at));
        }
        Ok(())
    }

    fn blank(&mut self) {
        self.at += self.text[self.at..].len() - self.text[self.at..].trim_start().len();
    }

    /// The next word or sign, which is not taken.
    fn word_ahead(&mut self) -> Option<&'a str> {
        self.blank();
        let text: &'a str = self.text;
        let rest = &text[self.at..];
        let first = rest.chars().next()?;
        if !is_part(first) {
            return Some(&rest[..first.len_utf8()]);
        }
        Some(&rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())])
    }

    /// Takes a word or sign, if it comes next.
    fn takes(&mut self, wanted: &str) -> bool {
        let found = if is_word(wanted) {
            self.word_ahead() == Some(wanted)
        } else {
            self.blank();
            self.text[self.at..].starts_with(wanted)
        };
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    fn truth(&self, value: Value, start: usize) -> Result<bool, Problems> {
        value.as_bool().ok_or_else(|| self.wrong(&value, "true or false", start))
    }

    fn wrong(&self, value: &Value, wanted: &str, start: usize) -> Problems {
        let (start, end) = self.trimmed(start, self.at);
        let what = match value {
            Value::String(text) => format!("the text `{text}`"),
            Value::Number(number) => format!("the number {number}"),
            other => value_type_name(other).to_owned(),
        };
        Problem::new("when::wrong-type", format!("this part of a condition must be {wanted}"))
            .at(self.place(start, end), format!("this is {what}"))
            .into()
    }

    fn trimmed(&self, start: usize, end: usize) -> (usize, usize) {
        let part = &self.text[start..end];
        let start = start + part.len() - part.trim_start().len();
        (start, start + part.trim().len())
    }

    fn expected(&self, what: &str, at: usize) -> Problems {
        let at = at.min(self.text.len());
        let skipped = at + self.text[at..].len() - self.text[at..].trim_start().len();
        let end = self.text[skipped..].chars().next().map_or(skipped, |c| skipped + c.len_utf8());
        self.problem(&format!("the condition needs {what} here"), skipped, end)
    }

    fn problem(&self, message: &str, start: usize, end: usize) -> Problems {
        Problem::new("when::syntax", message)
            .at(self.place(start, end), "here")
            .help("a condition is such as `${mode} == full and ${shots} in [1, 5]`; texts with other signs stand in quotes")
            .into()
    }

    fn place(&self, start: usize, end: usize) -> Span {
        if self.literal { Span::new(self.whole.start() + start, self.whole.start() + end) } else { self.whole }
    }
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || "_-.+/:%@~".contains(c)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_part)
}

fn typed(word: &str) -> Value {
    match word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => {
            let number = word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
            let whole = word.parse::<i64>().ok().filter(|_| number).map(Value::from);
            whole
                .or_else(|| word.parse::<f64>().ok().filter(|_| number).and_then(|x| serde_json::Number::from_f64(x).map(Value::Number)))
                .unwrap_or_else(|| Value::from(word))
        }
    }
}

/// Numbers are equal by value, everything else as it is.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pipeline::Labels;
    use crate::source::{Data, Files, Scalar};
    use serde_json::json;

    fn eval(text: &str) -> Result<bool, &'static str> {
        let params = json!({"mode": "full", "n": 5, "deep": {"x": 0.5}, "on": true, "all": [1, 5], "odd": "a b"});
        let mut files = Files::new();
        files.add("test", text.to_owned());
        let scope = Scope { params: params.as_object().unwrap(), items: &[], matrix: &Labels::new(), files: &files };
        let node = Node { span: Span::new(0, text.len()), data: Data::Scalar(Scalar::text(text)) };
        holds(&node, &scope).map_err(|problems| problems.iter().next().unwrap().code)
    }

    #[test]
    fn conditions() {
        for (text, value) in [
            ("${mode} == full", true),
            ("${mode} != 'full'", false),
            ("${n} >= 5 and ${n} < 5.5", true),
            ("${n}>=5 and not ${n}==5", false),
            ("${n} in ${all}", true),
            ("${n} not in [1, 2, 3]", true),
            ("${mode} in [ci, full]", true),
            ("${on}", true),
            ("not ${on} or ${deep.x} == 0.50", true),
            ("not (${on} or ${deep.x} == 1)", false),
            ("false or true and false", false),
            ("${odd} == \"a b\"", true),
            ("${n} == '5'", false),
            ("true", true),
        ] {
            assert_eq!(eval(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_condition() {
        for (text, code) in [
            ("", "when::syntax"),
            ("${mode}", "when::wrong-type"),
            ("${mode} = full", "when::syntax"),
            ("${mode} == ", "when::syntax"),
            ("${mode} == full full", "when::syntax"),
            ("${mod} == full", "template::unknown-name"),
            ("${mode} < 3", "when::wrong-type"),
            ("${n} in 5", "when::wrong-type"),
            ("(${on}", "when::syntax"),
            ("${n} in [1, 2", "when::syntax"),
            ("${n} in [1 2]", "when::syntax"),
            ("${n", "when::syntax"),
            ("and", "when::syntax"),
            ("'open", "when::syntax"),
            ("${on} not ${on}", "when::syntax"),
            ("1 and true", "when::wrong-type"),
            ("ü§", "when::syntax"),
        ] {
            assert_eq!(eval(text), Err(code), "{text}");
        }
        assert_eq!(eval(&"(".repeat(100_000)), Err("when::syntax"));
        assert_eq!(eval(&"not ".repeat(100_000)), Err("when::syntax"));
    }
}
