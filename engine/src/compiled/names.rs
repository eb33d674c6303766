//! The names of all stages, in one text.

use std::ops::Index;

use crate::pipeline::StageId;

/// Names by the numbers of their stages. One text and where each name ends take a third of what as many strings would.
#[derive(Debug, Default)]
pub struct Names {
    /// Each followed by a line end, which no name has.
    text: String,
    /// Where the line ends are.
    ends: Vec<usize>,
}

impl Names {
    /// From lines, as they lie in a file.
    pub(super) fn of_lines(text: String) -> Self {
        let ends = text.bytes().enumerate().filter_map(|(at, byte)| (byte == b'\n').then_some(at)).collect();
        Self { text, ends }
    }

    /// The lines.
    pub(super) fn lines(&self) -> &str {
        &self.text
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All names, by number.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|id| &self[id])
    }
}

impl<'n> FromIterator<&'n str> for Names {
    fn from_iter<I: IntoIterator<Item = &'n str>>(names: I) -> Self {
        let mut text = String::new();
        for name in names {
            text.push_str(name);
            text.push('\n');
        }
        Self::of_lines(text)
    }
}

impl Index<StageId> for Names {
    type Output = str;

    fn index(&self, id: StageId) -> &str {
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before] + 1);
        &self.text[start..self.ends[id]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_by_number() {
        let names: Names = ["first", "größer[x=1]", "last"].into_iter().collect();
        assert_eq!((names.len(), &names[0], &names[1], &names[2]), (3, "first", "größer[x=1]", "last"));
        assert_eq!(Names::of_lines(names.lines().to_owned()).iter().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        assert!(Names::default().is_empty() && Names::default().iter().next().is_none());
    }
}
