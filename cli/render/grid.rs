//! Rows with aligned columns.

use std::io::IsTerminal;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::colour::{Colour, Colours};

/// Between two columns.
const GAP: &str = "  ";
/// A last column narrower than this is not worth cutting to.
const LEAST_REST: usize = 20;

/// One text in a row.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
    right: bool,
}

impl Cell {
    /// The same in a colour.
    #[must_use]
    pub fn colour(mut self, colour: Colour) -> Self {
        self.colour = Some(colour);
        self
    }

    /// The same, aligned to the right: for quantities.
    #[must_use]
    pub fn right(mut self) -> Self {
        self.right = true;
        self
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        // A line end would tear the row.
        Self { text: text.into().replace('\n', "⏎"), colour: None, right: false }
    }
}

/// Rows of the same number of cells.
#[derive(Debug, Default)]
pub struct Grid {
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// One row more.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The text for standard output: in a terminal, the last column is cut where the line would break.
    pub fn print(&self) -> String {
        let width =
            if std::io::stdout().is_terminal() { terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)) } else { None };
        self.to_text(Colours::stdout(), width)
    }

    fn to_text(&self, colours: Colours, width: Option<usize>) -> String {
        let widths = self.widths();
        let before: usize = widths.iter().rev().skip(1).map(|width| width + GAP.len()).sum();
        let rest = width.map(|width| width.saturating_sub(before).max(LEAST_REST));
        let mut text = String::new();
        for row in &self.rows {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, width))| {
                    let is_last = i + 1 == row.len();
                    let shown = if is_last { cut(&cell.text, rest) } else { cell.text.clone() };
                    let pad = " ".repeat(if is_last && !cell.right { 0 } else { width.saturating_sub(shown.width()) });
                    let shown = cell.colour.map_or_else(|| shown.clone(), |colour| colours.paint(colour, &shown));
                    if cell.right { format!("{pad}{shown}") } else { format!("{shown}{pad}") }
                })
                .collect();
            text.push_str(line.join(GAP).trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns).map(|i| self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.text.width()).max().unwrap_or(0)).collect()
    }
}

fn cut(text: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| text.width() > *width) else { return text.to_owned() };
    let mut used = 0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used < width
        })
        .collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_only_the_last_is_cut() {
        let mut grid = Grid::new();
        grid.push(vec!["a".into(), Cell::from("9").right(), "what is said of it".into()]);
        grid.push(vec!["größer".into(), Cell::from("10").right(), "長い長い長い長い長い長い".into()]);
        assert_eq!(grid.to_text(Colours::none(), None), "a        9  what is said of it\ngrößer  10  長い長い長い長い長い長い\n");
        assert_eq!(grid.to_text(Colours::none(), Some(10)), "a        9  what is said of it\ngrößer  10  長い長い長い長い長…\n");
    }

    #[test]
    fn a_line_end_does_not_tear_a_row() {
        let mut grid = Grid::new();
        grid.push(vec!["a\nb".into(), "c".into()]);
        assert_eq!(grid.to_text(Colours::none(), None), "a⏎b  c\n");
    }
}
