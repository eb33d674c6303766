//! Colours: only where they are shown as such.

use std::io::IsTerminal;

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy)]
pub struct Colours(bool);

/// What a colour is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Done, the same.
    Good,
    /// Failed, gone.
    Bad,
    /// To be done, changed.
    Open,
    /// What is looked at second.
    Faint,
}

impl Colours {
    /// Colours for standard output: in a terminal, unless the user wants none (<https://no-color.org>).
    pub fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && are_wanted())
    }

    /// No colours.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(false)
    }

    /// The text in a colour.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Good => 32,
            Colour::Bad => 31,
            Colour::Open => 33,
            Colour::Faint => 2,
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn are_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
