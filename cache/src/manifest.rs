//! All that can change the outputs of an action, in one value with two readings: its bytes make the key, and the difference of two
//! of them says why an action has to run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{ActionKey, Digest};

/// What an ingredient is about. The ordinals are part of the encoding: never change one, only add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// The stage kind, its version, device and number type.
    Stage = 1,
    /// The script of a command and its shell.
    Command = 2,
    /// A parameter.
    Param = 3,
    /// An input's content and what else of it reaches the stage.
    Input = 4,
    /// A declared output of a command.
    Output = 5,
    /// A declared variable.
    Env = 6,
}

/// One ingredient.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ingredient {
    /// What it is about.
    pub section: Section,
    /// Its name, unique in its section.
    pub name: String,
    /// Its value as text.
    pub value: String,
}

/// The ingredients of an action, ordered by section and name whatever the order in which they were pushed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest {
    ingredients: Vec<Ingredient>,
}

/// A difference between two manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is about.
    pub section: Section,
    /// The ingredient.
    pub name: String,
    /// Its old value; `None` if it is new.
    pub old: Option<String>,
    /// Its new value; `None` if it is gone.
    pub new: Option<String>,
}

/// Kind and version of the encoding.
const TAG: &[u8] = b"trestle manifest v1\0";

impl Manifest {
    /// No ingredients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an ingredient. A second one of the same section and name is a mistake of the caller; it is kept, so that it changes the key.
    pub fn push(&mut self, section: Section, name: impl Into<String>, value: impl Into<String>) {
        let ingredient = Ingredient { section, name: name.into(), value: value.into() };
        let at = self.ingredients.partition_point(|known| known <= &ingredient);
        debug_assert!(
            self.ingredients.iter().all(|known| (known.section, &known.name) != (section, &ingredient.name)),
            "{ingredient:?} is pushed twice"
        );
        self.ingredients.insert(at, ingredient);
    }

    /// The ingredients in order.
    pub fn iter(&self) -> impl Iterator<Item = &Ingredient> {
        self.ingredients.iter()
    }

    /// The bytes that are hashed: the tag, the number of ingredients, then for each its section (1 byte), and its name and value, each
    /// after its length (8 bytes, little-endian).
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.extend((self.ingredients.len() as u64).to_le_bytes());
        for Ingredient { section, name, value } in &self.ingredients {
            bytes.push(*section as u8);
            for text in [name, value] {
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
        }
        bytes
    }

    /// The key of the action.
    pub fn key(&self) -> ActionKey {
        ActionKey(Digest::of(&self.bytes()))
    }

    /// What differs in `new`, in the order of the ingredients; empty if and only if the two are equal.
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (self.ingredients.iter().peekable(), new.ingredients.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return changes,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => (a.section, &a.name).cmp(&(b.section, &b.name)),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            if before.map(|i| &i.value) != after.map(|i| &i.value) {
                changes.extend(before.or(after).map(|i| Change {
                    section: i.section,
                    name: i.name.clone(),
                    old: before.map(|i| i.value.clone()),
                    new: after.map(|i| i.value.clone()),
                }));
            }
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stage => "stage",
            Self::Command => "command",
            Self::Param => "param",
            Self::Input => "input",
            Self::Output => "output",
            Self::Env => "env",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTIONS: [Section; 6] = [Section::Stage, Section::Command, Section::Param, Section::Input, Section::Output, Section::Env];

    fn ingredients() -> impl Strategy<Value = Vec<(Section, String, String)>> {
        prop::collection::btree_map((0..6usize, "[ab.]{0,3}"), "[ab\u{0}]{0,3}", 0..6)
            .prop_map(|map| map.into_iter().map(|((s, n), v)| (SECTIONS[s], n, v)).collect())
    }

    fn build(list: &[(Section, String, String)]) -> Manifest {
        let mut manifest = Manifest::new();
        list.iter().for_each(|(s, n, v)| manifest.push(*s, n, v));
        manifest
    }

    proptest! {
        #[test]
        fn the_order_of_pushing_does_not_matter(list in ingredients(), seed in any::<u64>()) {
            let mut shuffled = list.clone();
            shuffled.sort_by_key(|item| blake3::hash(format!("{seed}{item:?}").as_bytes()).to_hex().to_string());
            prop_assert_eq!(build(&list).bytes(), build(&shuffled).bytes());
        }

        #[test]
        fn keys_and_diffs_agree_about_equality(a in ingredients(), b in ingredients()) {
            let (x, y) = (build(&a), build(&b));
            prop_assert_eq!(a == b, x.bytes() == y.bytes());
            prop_assert_eq!(a == b, x.key() == y.key());
            prop_assert_eq!(a == b, x.diff(&y).is_empty());
        }
    }

    #[test]
    fn a_diff_names_old_and_new() {
        let mut old = Manifest::new();
        old.push(Section::Param, "lr", "0.1");
        old.push(Section::Param, "gone", "1");
        let mut new = Manifest::new();
        new.push(Section::Param, "lr", "0.2");
        new.push(Section::Env, "fresh", "x");
        let words: Vec<_> = old.diff(&new).into_iter().map(|c| (c.name, c.old, c.new)).collect();
        assert_eq!(
            words,
            [
                ("gone".to_owned(), Some("1".to_owned()), None),
                ("lr".to_owned(), Some("0.1".to_owned()), Some("0.2".to_owned())),
                ("fresh".to_owned(), None, Some("x".to_owned())),
            ]
        );
    }

    #[test]
    fn the_key_of_a_known_manifest_never_changes() {
        let mut manifest = Manifest::new();
        manifest.push(Section::Stage, "kind", "command");
        manifest.push(Section::Command, "script", "true");
        assert_eq!(manifest.key().to_string(), "682b67f5f978f9244493b12fb61ebe67d95c2d4d55e8394716e02ae6f07bc648");
    }
}
