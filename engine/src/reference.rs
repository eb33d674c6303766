//! References to outputs of other stages, as written under `in:`.
//!
//! ```text
//! prompts                     the stage `prompts`, its only output of a fitting format
//! target.train                one output by name
//! adapt[seed=1].model         one expanded stage
//! score[*]                    gather all expanded stages
//! data::train.model           an output of a stage of the file that is included as `data`
//! score[method=mixed,*]       gather all that have this coordinate
//! ./data/table.csv            a file or folder of the project: anything with a `/`
//! ```

use crate::problem::Problem;
use crate::spec::is_name;

/// One value of an input, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A path relative to the pipeline file.
    File(String),
    /// An output of a stage.
    Output(Reference),
}

/// A reference to outputs of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Name of the stage as written in the file.
    pub stage: String,
    /// Coordinates that are fixed.
    pub fixed: Vec<(String, String)>,
    /// Whether all other coordinates are gathered.
    pub gather: bool,
    /// Name of the output; `None` leaves the choice to the format.
    pub output: Option<String>,
}

/// Parses the text of one input.
///
/// # Errors
/// If it is neither a path nor a reference.
pub fn parse(text: &str) -> Result<Wanted, Problem> {
    let bad = || {
        Problem::new("reference::syntax", format!("`{text}` is not a reference"))
            .help("write `stage`, `stage.output`, `stage[axis=value].output`, `stage[*]`, or a path with a `/` such as `./data.csv`")
    };
    let before_bracket = text.split('[').next().unwrap_or_default();
    if before_bracket.contains('/') {
        return Ok(Wanted::File(text.to_owned()));
    }
    let (head, brackets, tail) = match text.split_once('[') {
        None => {
            let (head, tail) = text.split_once('.').map_or((text, ""), |(head, tail)| (head, tail));
            (head, None, tail)
        }
        Some((head, rest)) => {
            let (inside, after) = rest.split_once(']').ok_or_else(bad)?;
            let tail = if after.is_empty() { "" } else { after.strip_prefix('.').filter(|tail| !tail.is_empty()).ok_or_else(bad)? };
            (head, Some(inside), tail)
        }
    };
    let malformed_tail = text.ends_with('.') || (!tail.is_empty() && !is_name(tail));
    if !head.split("::").all(is_name) || malformed_tail {
        return Err(bad());
    }
    let (fixed, gather) = brackets.map_or(Ok((Vec::new(), false)), selector).map_err(|()| bad())?;
    Ok(Wanted::Output(Reference { stage: head.to_owned(), fixed, gather, output: (!tail.is_empty()).then(|| tail.to_owned()) }))
}

type Selector = (Vec<(String, String)>, bool);

fn selector(inside: &str) -> Result<Selector, ()> {
    let mut fixed = Vec::new();
    let mut gather = false;
    for part in inside.split(',').map(str::trim) {
        if part == "*" {
            gather = true;
            continue;
        }
        let (axis, value) = part.split_once('=').ok_or(())?;
        if !is_name(axis.trim()) {
            return Err(());
        }
        fixed.push((axis.trim().to_owned(), value.trim().to_owned()));
    }
    Ok((fixed, gather))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn output(text: &str) -> Reference {
        match parse(text).unwrap() {
            Wanted::Output(reference) => reference,
            Wanted::File(path) => panic!("{path} was read as a file"),
        }
    }

    #[test]
    fn all_forms() {
        assert_eq!(output("a"), Reference { stage: "a".into(), fixed: vec![], gather: false, output: None });
        assert_eq!(output("a.b").output.as_deref(), Some("b"));
        assert_eq!(output("a[x=1, y=two].b").fixed, [("x".into(), "1".into()), ("y".into(), "two".into())]);
        assert_eq!(output("d::e::a.b").stage, "d::e::a");
        assert!(output("a[*]").gather);
        assert!(output("a[x=1,*].b").gather);
        assert_eq!(parse("./a.csv").unwrap(), Wanted::File("./a.csv".into()));
        assert_eq!(parse("data/x[1].csv").unwrap(), Wanted::File("data/x[1].csv".into()));
        for bad in ["", "a.", "a[", "a[x]", "a[*].", "a b", "1a", "a.b.c", "a[*]b", "::a", "a::", "a:b", "a::1"] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
    }
}
