//! From what is written to what can be planned: params filled in, matrices expanded, references resolved, all mistakes reported at once.

pub mod commands;
mod drafts;
mod expand;
mod finish;
mod include;
mod join;
mod params;
mod program;
pub(crate) mod project;
mod settings;
mod shared;
mod values;
pub mod variants;
mod when;

use std::path::Path;

use crate::compiled::Dependency;
use crate::pipeline::Pipeline;
use crate::problem::{Problem, Problems};
use crate::source::{self, Files};
use crate::spec;
use crate::stage::Registry;
use program::Program;
pub use values::Override;

/// Most stages that a pipeline may expand to.
pub const MAX_STAGES: usize = 1_000_000;

/// What a pipeline is resolved with, besides its files.
pub struct Choices<'a> {
    /// The profile that is chosen.
    pub profile: Option<String>,
    /// Parsed files of params, which go over the profile.
    pub params: Vec<source::Node>,
    /// Single values of params, which go over all else, in the order in which they are to be set.
    pub overrides: Vec<Override>,
    /// Variables of the caller; only those that a stage declares are asked for.
    pub environment: commands::Environment<'a>,
    /// Outputs that are known already, for `foreach` over one.
    pub known: variants::Known<'a>,
}

/// Resolves the first of `files`, the text of a pipeline file.
///
/// `root` is the folder of the file, `fallback_name` the pipeline's name if the file gives none.
///
/// # Errors
/// Every mistake that could be found.
pub fn pipeline(
    files: &mut Files,
    root: &Path,
    fallback_name: &str,
    choices: &Choices<'_>,
    registry: &Registry,
) -> Result<Pipeline, Problems> {
    let parsed = files.first().map(|source| source::parse(&source.text, source.base)).transpose()?;
    let Some(tree) = parsed else { return Err(Problem::new("spec::empty", "there is no pipeline file").into()) };
    let (mut spec, mut problems) = spec::read(tree);
    let name = spec.name.take().map_or_else(|| fallback_name.to_owned(), |name| name.value);
    let params = values::chosen(&spec, choices, &mut problems);
    let mut program = include::program(spec, root, params, files, &mut problems);
    let files = &*files;
    let mut drafted = drafts::draft(&program, files, choices.known, &mut problems);
    let order = drafts::order(&program, &drafted, &mut problems);
    let lists = program.stages.iter().any(|stage| variants::takes_output(stage, &program)).then_some(Dependency::List);
    let specs = std::mem::take(&mut program.stages);
    let expander = expand::Expander::new(&program, specs, files, registry, choices);
    let expand::Expanded { stages, later, patterns } = expander.run(&mut drafted, &order, &mut problems);
    let Program { mut units, pools, mut dependencies, .. } = program;
    dependencies.extend(patterns.into_iter().chain(lists));
    problems.or(Pipeline { name, root: root.to_owned(), params: units.swap_remove(0).params, pools, stages, later, dependencies })
}
