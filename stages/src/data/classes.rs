//! Class names and prompts, as JSON files.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::data(path, e))
}

/// Writes a JSON file, indented, with a newline at its end; the keys stand in the order of the fields.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::data(path, e))?;
    text.push('\n');
    fs::write(path, text).map_err(Error::io(path))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Class {
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassesFile {
    classes: Vec<Class>,
}

/// The classes of a data set, in the order of their labels: `{"classes": [{"name": "zero"}, …]}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Name of each label.
    pub names: Vec<String>,
}

impl Classes {
    /// Classes of these names.
    pub fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    /// Reads `classes.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not of this shape, names no class, or names one twice.
    pub fn read(path: &Path) -> Result<Self> {
        let file: ClassesFile = read_json(path)?;
        let names: Vec<String> = file.classes.into_iter().map(|class| class.name).collect();
        check_names(&names).map_err(|message| Error::data(path, message))?;
        Ok(Self { names })
    }

    /// Writes `classes.json`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let classes = self.names.iter().map(|name| Class { name: name.clone() }).collect();
        write_json(path, &ClassesFile { classes })
    }

    /// How many classes there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Says what is wrong with a list of class names.
pub(crate) fn check_names(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err("it names no class".into());
    }
    for (i, name) in names.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(format!("class {i} has no name"));
        }
        if let Some(first) = names[..i].iter().position(|other| other == name) {
            return Err(format!("classes {first} and {i} are both called `{name}`"));
        }
    }
    Ok(())
}

/// The prompts of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassPrompts {
    /// The class.
    pub name: String,
    /// Its prompts, one a template and style.
    pub prompts: Vec<String>,
}

/// Prompts for every class, in the order of their labels: `{"templates": […], "classes": [{"name": …, "prompts": […]}, …]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// The templates that the prompts were made from.
    pub templates: Vec<String>,
    /// One entry a class.
    pub classes: Vec<ClassPrompts>,
}

impl Prompts {
    /// Reads `prompts.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not of this shape, or has a class without prompts.
    pub fn read(path: &Path) -> Result<Self> {
        let prompts: Self = read_json(path)?;
        let names: Vec<String> = prompts.classes.iter().map(|class| class.name.clone()).collect();
        check_names(&names).map_err(|message| Error::data(path, message))?;
        if let Some(class) = prompts.classes.iter().find(|class| class.prompts.is_empty()) {
            return Err(Error::data(path, format!("class `{}` has no prompts", class.name)));
        }
        Ok(prompts)
    }

    /// Writes `prompts.json`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// The classes of these prompts.
    pub fn classes(&self) -> Classes {
        Classes::new(self.classes.iter().map(|class| class.name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn classes_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.json");
        let classes = Classes::new(vec!["zero".into(), "one".into()]);
        classes.write(&path).unwrap();
        assert_eq!(Classes::read(&path).unwrap(), classes);
        let flat = fs::read_to_string(&path).unwrap().split_whitespace().collect::<String>();
        assert_eq!(flat, r#"{"classes":[{"name":"zero"},{"name":"one"}]}"#);
    }

    #[test]
    fn bad_class_files_are_refused_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.json");
        let cases = [
            (r#"{"classes":[]}"#, "names no class"),
            (r#"{"classes":[{"name":"a"},{"name":"b"},{"name":"a"}]}"#, "classes 0 and 2 are both called `a`"),
            (r#"{"classes":[{"name":" "}]}"#, "class 0 has no name"),
            (r#"{"classes":[{"nom":"a"}]}"#, "unknown field `nom`"),
            ("{", "EOF"),
        ];
        for (text, want) in cases {
            fs::write(&path, text).unwrap();
            let message = Classes::read(&path).unwrap_err().to_string();
            assert!(message.contains(want) && message.contains("classes.json"), "{message}");
        }
    }

    #[test]
    fn a_class_without_prompts_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.json");
        let class = ClassPrompts { name: "one".into(), prompts: vec![] };
        Prompts { templates: vec!["{class}".into()], classes: vec![class] }.write(&path).unwrap();
        assert!(Prompts::read(&path).unwrap_err().to_string().contains("class `one` has no prompts"));
    }
}
