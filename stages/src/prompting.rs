//! The stage `prompting`: class names and templates to prompts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Stage, StageError};

use crate::data::words::bad_place;
use crate::data::{ClassPrompts, Classes, Prompts};
use crate::formats::{CLASSES, PROMPTS};

/// Writes prompts for each class.
pub struct Prompting;

/// One text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    fn all(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// Parameters of `prompting`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Template or templates with `{class}` and, if `style` is given, `{style}`: "A good photo of the {class}".
    pub templates: Texts,
    /// Word or words for `{style}`, for example `S*`, a learned style token.
    #[serde(default)]
    pub style: Option<Texts>,
}

/// The places that a template can have.
const PLACES: [&str; 2] = ["class", "style"];

/// Every prompt of a class: one a template, or one a template and style where the template has a place for it.
fn prompts(class: &str, templates: &[String], styles: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    for template in templates {
        // The style first: a class called `{style}` would otherwise be taken for a place.
        let styled = if template.contains("{style}") {
            styles.iter().map(|style| template.replace("{style}", style)).collect()
        } else {
            vec![template.clone()]
        };
        out.extend(styled.iter().map(|text| text.replace("{class}", class)));
    }
    out
}

impl Stage for Prompting {
    const KIND: &'static str = "prompting";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Prompts for each class, from templates with {class} and {style}";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![InPort { name: "classes", format: CLASSES, arity: Arity::One, doc: "the names of the classes" }]
    }

    fn outputs() -> Vec<OutPort> {
        vec![OutPort { name: "prompts", format: PROMPTS, path: "prompts.json", doc: "the prompts of each class" }]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let templates = params.templates.all();
        let styles = params.style.as_ref().map(Texts::all);
        let mut out = Vec::new();
        let path = |name: &str, texts: &Texts, i: usize| if let Texts::Many(_) = texts { format!("{name}.{i}") } else { name.to_owned() };
        if templates.is_empty() {
            out.push(ParamError::new("templates", "there is no template: give at least one with {class}"));
        }
        for (i, template) in templates.iter().enumerate() {
            let mut complain = |message: String| out.push(ParamError::new(path("templates", &params.templates, i), message));
            if let Some(message) = bad_place(template, &PLACES) {
                complain(message);
            } else if !template.contains("{class}") {
                complain(format!("`{template}` lacks {{class}}: every class would get the same prompt"));
            } else if template.contains("{style}") && styles.is_none() {
                complain(format!("`{template}` has {{style}}, and no `style` is given"));
            }
        }
        if let (Some(texts), Some(styles)) = (&params.style, styles) {
            if styles.is_empty() {
                out.push(ParamError::new("style", "there is no word: give at least one or leave `style` out"));
            }
            let blank = styles.iter().enumerate().filter(|(_, style)| style.trim().is_empty());
            out.extend(blank.map(|(i, _)| ParamError::new(path("style", texts, i), "it is empty")));
            if !templates.iter().any(|template| template.contains("{style}")) {
                out.push(ParamError::new("style", "no template has {style}, so it would never be used"));
            }
        }
        out
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let classes = Classes::read(cx.input("classes")?)?;
        let templates = params.templates.all();
        let styles = params.style.as_ref().map_or(&[][..], Texts::all);
        let classes = classes.names.into_iter().map(|name| ClassPrompts { prompts: prompts(&name, templates, styles), name }).collect();
        Prompts { templates: templates.to_vec(), classes }.write(cx.output("prompts")?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use trestle_engine::stage::{Input, Kind, Silent};

    use super::*;

    fn run(with: &Value) -> Prompts {
        let dir = tempfile::tempdir().unwrap();
        let (classes, out) = (dir.path().join("classes.json"), dir.path().join("prompts.json"));
        Classes::new(vec!["zero".into(), "one".into()]).write(&classes).unwrap();
        let inputs = [("classes".to_owned(), vec![Input { path: classes, labels: BTreeMap::new() }])].into();
        let kind = Kind::of::<Prompting>();
        let params = kind.check(with).unwrap().params;
        kind.run(&params, &mut Context::new(inputs, [("prompts".to_owned(), out.clone())].into(), 1, &mut Silent)).unwrap();
        Prompts::read(&out).unwrap()
    }

    #[test]
    fn one_template_gives_one_prompt_a_class() {
        let prompts = run(&json!({"templates": "A good photo of the {class}"}));
        assert_eq!(prompts.classes[0].prompts, ["A good photo of the zero"]);
        assert_eq!((prompts.classes[1].name.as_str(), &prompts.classes[1].prompts[0][..]), ("one", "A good photo of the one"));
        assert_eq!(prompts.classes().names, ["zero", "one"]);
    }

    #[test]
    fn styles_fill_the_templates_that_have_a_place() {
        let prompts = run(&json!({"templates": ["a {class}", "a {style} {class}"], "style": ["soft", "bold"]}));
        assert_eq!(prompts.classes[1].prompts, ["a one", "a soft one", "a bold one"]);
        let prompts = run(&json!({"templates": "A {class} photo in the style of {style}", "style": "S*"}));
        assert_eq!(prompts.classes[0].prompts, ["A zero photo in the style of S*"]);
    }

    #[test]
    fn bad_templates_are_found_before_a_run() {
        let kind = Kind::of::<Prompting>();
        let cases = [
            (json!({"templates": "a photo"}), "templates", "lacks {class}"),
            (json!({"templates": ["a {class}", "a photo"]}), "templates.1", "lacks {class}"),
            (json!({"templates": []}), "templates", "no template"),
            (json!({"templates": "a {style} {class}"}), "templates", "no `style` is given"),
            (json!({"templates": "a {klass} {class}"}), "templates", "has {klass}"),
            (json!({"templates": "a {class"}), "templates", "a brace without"),
            (json!({"templates": "a {class}}"}), "templates", "a brace without"),
            (json!({"templates": "a {class}", "style": "S*"}), "style", "never be used"),
            (json!({"templates": "a {style} {class}", "style": ["soft", " "]}), "style.1", "empty"),
            (json!({"templates": "a {style} {class}", "style": []}), "style", "no word"),
        ];
        for (with, path, want) in cases {
            let complaints = kind.check(&with).unwrap_err();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert!(complaints[0].path == path && complaints[0].message.contains(want), "{complaints:?}");
        }
    }
}
