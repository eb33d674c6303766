//! All that can change an action's outputs, as one value with two readings: its bytes make the key, its diff explains a miss.
//!
//! What a manifest holds for each kind of stage is written in `docs/cache-key.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{ActionKey, Digest};

/// Opens the bytes of a manifest. Raise the version whenever the same ingredients would give other bytes.
const TAG: &[u8] = b"trestle manifest v1\0";

/// What kind of thing an ingredient is. The number is part of the bytes: never renumber, only add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Section {
    /// What the stage is: its kind and version, the device kind and the number format.
    Stage = 1,
    /// The script of a command stage, and the shell.
    Command = 2,
    /// A parameter, by its dotted path.
    Param = 3,
    /// An input's content, label and place.
    Input = 4,
    /// Where a command must leave an output.
    Output = 5,
    /// A declared environment variable.
    Env = 6,
}

impl Section {
    /// The number in the bytes.
    pub const fn ordinal(self) -> u8 {
        self as u8
    }

    /// The name that people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Command => "command",
            Self::Param => "param",
            Self::Input => "input",
            Self::Output => "output",
            Self::Env => "env",
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that can change an action's outputs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingredient {
    /// What kind of thing it is.
    pub section: Section,
    /// Its name, unique within the section.
    pub name: String,
    /// Its value as text, in one spelling.
    pub value: String,
}

/// Two ingredients of one section under one name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the manifest has `{name}` twice in section `{section}`")]
pub struct DuplicateIngredient {
    /// Where.
    pub section: Section,
    /// Which.
    pub name: String,
}

/// One difference between two manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The kind of the ingredient.
    pub section: Section,
    /// Its name.
    pub name: String,
    /// Its value before; `None` if it was added.
    pub old: Option<String>,
    /// Its value now; `None` if it was taken away.
    pub new: Option<String>,
}

/// The ingredients of an action, kept in order of section and name, whatever the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Ingredient>", into = "Vec<Ingredient>")]
pub struct Manifest {
    ingredients: Vec<Ingredient>,
}

impl Manifest {
    /// A manifest without ingredients.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an ingredient.
    ///
    /// To name two alike is a mistake in the caller: it stops a debug build, and elsewhere both enter the bytes, so that no value is
    /// ever left out of a key. Use [`Manifest::try_push`] where the names are not the caller's own.
    pub fn push(&mut self, section: Section, name: impl Into<String>, value: impl Into<String>) {
        let ingredient = Ingredient { section, name: name.into(), value: value.into() };
        debug_assert!(self.get(section, &ingredient.name).is_none(), "{} `{}` is in the manifest twice", section, ingredient.name);
        self.insert(ingredient);
    }

    /// Adds an ingredient, or says that its name is taken.
    ///
    /// # Errors
    /// [`DuplicateIngredient`], and the manifest is as before.
    pub fn try_push(&mut self, section: Section, name: impl Into<String>, value: impl Into<String>) -> Result<(), DuplicateIngredient> {
        let ingredient = Ingredient { section, name: name.into(), value: value.into() };
        if self.get(section, &ingredient.name).is_some() {
            return Err(DuplicateIngredient { section, name: ingredient.name });
        }
        self.insert(ingredient);
        Ok(())
    }

    fn insert(&mut self, ingredient: Ingredient) {
        let place = self.ingredients.partition_point(|other| *other < ingredient);
        self.ingredients.insert(place, ingredient);
    }

    /// The value under a name.
    pub fn get(&self, section: Section, name: &str) -> Option<&str> {
        let place = self.ingredients.partition_point(|other| (other.section, other.name.as_str()) < (section, name));
        let found = self.ingredients.get(place)?;
        (found.section == section && found.name == name).then_some(found.value.as_str())
    }

    /// The ingredients in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Ingredient> {
        self.ingredients.iter()
    }

    /// The bytes that are hashed: the tag, the number of ingredients, and for each its section's number, its name and its value.
    /// Numbers are little-endian `u64`, texts carry their length first, so no two manifests share their bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = TAG.to_vec();
        out.extend((self.ingredients.len() as u64).to_le_bytes());
        for ingredient in &self.ingredients {
            out.push(ingredient.section.ordinal());
            for text in [&ingredient.name, &ingredient.value] {
                out.extend((text.len() as u64).to_le_bytes());
                out.extend(text.as_bytes());
            }
        }
        out
    }

    /// The key: BLAKE3 of [`Manifest::bytes`].
    pub fn key(&self) -> ActionKey {
        ActionKey::new(Digest::of(&self.bytes()))
    }

    /// What must change in `self`, the old manifest, to make `new`; empty exactly if they are equal. In order of section and name.
    pub fn diff(&self, new: &Self) -> Vec<Change> {
        let (mut olds, mut news) = (self.ingredients.iter().peekable(), new.ingredients.iter().peekable());
        let mut changes = Vec::new();
        loop {
            // A name that only one side has, or has first, is taken from that side alone.
            let (old, new) = match (olds.peek(), news.peek()) {
                (None, None) => return changes,
                (Some(_), None) => (olds.next(), None),
                (None, Some(_)) => (None, news.next()),
                (Some(old), Some(new)) => match (old.section, &old.name).cmp(&(new.section, &new.name)) {
                    std::cmp::Ordering::Less => (olds.next(), None),
                    std::cmp::Ordering::Greater => (None, news.next()),
                    std::cmp::Ordering::Equal => (olds.next(), news.next()),
                },
            };
            changes.extend(change(old, new));
        }
    }
}

/// The change from `old` to `new`, which have one name; `None` if there is none.
fn change(old: Option<&Ingredient>, new: Option<&Ingredient>) -> Option<Change> {
    let named = old.or(new)?;
    (old != new).then(|| Change {
        section: named.section,
        name: named.name.clone(),
        old: old.map(|i| i.value.clone()),
        new: new.map(|i| i.value.clone()),
    })
}

impl TryFrom<Vec<Ingredient>> for Manifest {
    type Error = DuplicateIngredient;

    fn try_from(ingredients: Vec<Ingredient>) -> Result<Self, Self::Error> {
        let mut manifest = Self::new();
        for Ingredient { section, name, value } in ingredients {
            manifest.try_push(section, name, value)?;
        }
        Ok(manifest)
    }
}

impl From<Manifest> for Vec<Ingredient> {
    fn from(manifest: Manifest) -> Self {
        manifest.ingredients
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Map = BTreeMap<(Section, String), String>;

    fn section() -> impl Strategy<Value = Section> {
        prop::sample::select(vec![Section::Stage, Section::Command, Section::Param, Section::Input, Section::Output, Section::Env])
    }

    /// Few letters, NUL among them: names and values that tempt bytes to run into each other.
    fn map() -> impl Strategy<Value = Map> {
        prop::collection::btree_map((section(), "[ab\0]{0,3}"), "[ab\0]{0,3}", 0..5)
    }

    fn manifest<'a>(entries: impl IntoIterator<Item = (&'a (Section, String), &'a String)>) -> Manifest {
        let mut manifest = Manifest::new();
        for ((section, name), value) in entries {
            manifest.push(*section, name.clone(), value.clone());
        }
        manifest
    }

    proptest! {
        #[test]
        fn the_order_of_pushes_does_not_count(map in map(), seed in any::<u64>()) {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|entry| Digest::of(format!("{seed}{entry:?}").as_bytes()));
            prop_assert_eq!(manifest(entries), manifest(&map));
        }

        #[test]
        fn bytes_keys_and_diffs_are_equal_exactly_if_the_ingredients_are(a in map(), b in map()) {
            let (left, right) = (manifest(&a), manifest(&b));
            prop_assert_eq!(a == b, left == right);
            prop_assert_eq!(a == b, left.bytes() == right.bytes());
            prop_assert_eq!(a == b, left.key() == right.key());
            prop_assert_eq!(a == b, left.diff(&right).is_empty());
            // Prefix-free: no manifest's bytes open another's.
            prop_assert_eq!(a == b, right.bytes().starts_with(&left.bytes()));
        }

        #[test]
        fn a_diff_turns_the_old_into_the_new(a in map(), b in map()) {
            let mut map = a.clone();
            for change in manifest(&a).diff(&manifest(&b)) {
                let name = (change.section, change.name);
                prop_assert_eq!(map.remove(&name), change.old);
                if let Some(value) = change.new {
                    map.insert(name, value);
                }
            }
            prop_assert_eq!(map, b);
        }

        #[test]
        fn json_round_trips(map in map()) {
            let manifest = manifest(&map);
            let json = serde_json::to_string(&manifest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        }
    }

    #[test]
    fn duplicates_are_refused() {
        let mut manifest = Manifest::new();
        manifest.push(Section::Param, "lr", "0.1");
        manifest.try_push(Section::Env, "lr", "0.1").unwrap();
        let error = manifest.try_push(Section::Param, "lr", "0.2").unwrap_err();
        assert_eq!(error.to_string(), "the manifest has `lr` twice in section `param`");
        assert_eq!(manifest.get(Section::Param, "lr"), Some("0.1"));
        let one = r#"{"section":"param","name":"lr","value":"0.1"}"#;
        assert!(serde_json::from_str::<Manifest>(&format!("[{one},{one}]")).is_err());
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut manifest = Manifest::new();
        manifest.push(Section::Param, "b", "1");
        manifest.push(Section::Stage, "kind", "dataset");
        let mut wanted = b"trestle manifest v1\0".to_vec();
        wanted.extend(2u64.to_le_bytes());
        for (ordinal, name, value) in [(1u8, "kind", "dataset"), (3, "b", "1")] {
            wanted.push(ordinal);
            wanted.extend((name.len() as u64).to_le_bytes());
            wanted.extend(name.as_bytes());
            wanted.extend((value.len() as u64).to_le_bytes());
            wanted.extend(value.as_bytes());
        }
        assert_eq!(manifest.bytes(), wanted);
    }

    /// If this fails, every cache in the world is lost: raise the version of the tag and say so in the change log.
    #[test]
    fn the_key_of_a_known_manifest_never_changes() {
        let mut manifest = Manifest::new();
        manifest.push(Section::Stage, "kind", "command");
        manifest.push(Section::Command, "script", "true");
        assert_eq!(manifest.key().to_string(), "682b67f5f978f9244493b12fb61ebe67d95c2d4d55e8394716e02ae6f07bc648");
    }
}
