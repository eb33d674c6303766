//! Annotations: lines that GitHub Actions, and what understands it, show beside the code and at the top of a run.
//!
//! Format: <https://docs.github.com/actions/reference/workflow-commands-for-github-actions>.

use std::fmt;

/// How much an annotation is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something to know.
    Notice,
    /// Something is wrong.
    Error,
}

/// A place in a file; lines and columns begin at 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'a> {
    /// The file, as named on the command line.
    pub file: &'a str,
    /// The line.
    pub line: usize,
    /// The first column.
    pub column: usize,
}

/// One annotation; shown, it is one line without its end.
#[derive(Debug)]
pub struct Annotation<'a> {
    /// How much it is in the way.
    pub level: Level,
    /// Where, if it is about a place.
    pub place: Option<Place<'a>>,
    /// A few words.
    pub title: &'a str,
    /// All of it; it may have several lines.
    pub message: &'a str,
}

impl fmt::Display for Annotation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Notice => "notice",
            Level::Error => "error",
        };
        write!(f, "::{level} ")?;
        if let Some(Place { file, line, column }) = &self.place {
            write!(f, "file={},line={line},col={column},", property(file))?;
        }
        write!(f, "title={}::{}", property(self.title), data(self.message))
    }
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_line_or_a_property_is_escaped() {
        let place = Some(Place { file: "a,b.yaml", line: 3, column: 7 });
        let annotation = Annotation { level: Level::Error, place, title: "x::y", message: "100 %\nno: stage" };
        assert_eq!(annotation.to_string(), "::error file=a%2Cb.yaml,line=3,col=7,title=x%3A%3Ay::100 %25%0Ano: stage");
        let annotation = Annotation { level: Level::Notice, place: None, title: "t", message: "m" };
        assert_eq!(annotation.to_string(), "::notice title=t::m");
    }
}
