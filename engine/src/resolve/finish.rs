//! The last step: an instance whose inputs are bound becomes a stage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use litemap::LiteMap;

use super::drafts::{Draft, DraftInput};
use super::expand::{Expander, Partial, Picked, port};
use super::params::Resolved;
use super::shared::Shared;
use super::{commands, params, settings, when};
use crate::pipeline::{Action, Bound, Labels, Origin, Settings, Slot, Stage, default_shell, expanded_name};
use crate::problem::Problems;
use crate::reference::Wanted;
use crate::spec::{ActionSpec, StageSpec};
use crate::stage::{Kind, Threads};
use crate::template::{Scope, plain};

impl<'s> Expander<'s> {
    /// Makes the stage; `false` if it has a mistake.
    pub(super) fn finish(
        &mut self,
        spec: &StageSpec,
        kind: Option<&'s Kind>,
        draft: &Draft,
        inputs: &[DraftInput],
        partial: Partial,
    ) -> bool {
        let Partial { labels, slots, reads_off } = partial;
        let unit = self.program.unit(spec);
        let scope = Scope { params: &unit.params, items: &draft.own().items, matrix: &labels, files: self.files };
        let is_on = spec.when.as_ref().map_or(Ok(true), |node| when::holds(node, &scope));
        let built = is_on.and_then(|is_on| match (is_on, reads_off) {
            (true, Some((id, span))) => Err(self.left_out(id, span).into()),
            (true, None) => self.build(spec, kind, inputs, slots, &scope).map(Some),
            (false, _) => Ok(None),
        });
        let built = match built {
            Ok(built) => built,
            Err(problems) => {
                self.problems.extend(problems);
                return false;
            }
        };
        self.off.push(built.is_none());
        let Built { inputs, resolved: (action, outputs, threads), settings } = built.unwrap_or_else(nothing);
        let name = expanded_name(&spec.name.value, &labels);
        let outputs = self.shared.outputs(outputs);
        self.stages.push(Stage { name, labels, action, inputs, outputs, threads, settings });
        true
    }

    fn build(
        &mut self,
        spec: &StageSpec,
        kind: Option<&'s Kind>,
        drafted: &[DraftInput],
        slots: Vec<(usize, Vec<Picked>)>,
        scope: &Scope<'_>,
    ) -> Result<Built, Problems> {
        let mut problems = Problems::new();
        let (mut settings, cpus) = settings::settings(&spec.settings, &self.program.pools, scope, &mut problems);
        let inputs = self.inputs(spec, kind, drafted, slots);
        // What a command says about an input that is not there is not complained about too.
        let resolved = inputs.and_then(|inputs| {
            let resolved = match (&spec.action, kind) {
                (ActionSpec::Uses(uses), Some(kind)) => params::native(spec, kind, uses.with.as_ref(), scope)?,
                (ActionSpec::Run(run), _) => (commands::command(run, &inputs, scope, self.choices.environment)?, 0),
                (ActionSpec::Uses(_), None) => return Err(Problems::new()),
            };
            Ok((inputs, resolved))
        });
        let (mut inputs, ((action, outputs, threads), gpus)) = match resolved {
            Ok(resolved) => problems.or(resolved)?,
            Err(found) => {
                problems.extend(found);
                return Err(problems);
            }
        };
        if gpus > settings.gpus {
            Arc::make_mut(&mut settings).gpus = gpus;
        }
        let threads = cpus.map_or(threads, |cpus| limited(threads, kind.is_some(), cpus));
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Built { inputs, resolved: (action, outputs, threads), settings })
    }

    fn inputs(
        &mut self,
        spec: &StageSpec,
        kind: Option<&'s Kind>,
        drafted: &[DraftInput],
        slots: Vec<(usize, Vec<Picked>)>,
    ) -> Result<Vec<Slot>, Problems> {
        let mut problems = Problems::new();
        let mut inputs = Vec::with_capacity(slots.len());
        for (i, picked) in slots {
            match self.found(&self.program.unit(spec).root, picked) {
                Ok(picked) => inputs.push(slot(kind, &drafted[i], &spec.inputs[drafted[i].key].0.name, picked, &mut self.shared)),
                Err(found) => problems.extend(found),
            }
        }
        problems.or(inputs)
    }

    /// Looks for the files of the project among the values, and for the labels of the others.
    fn found(&mut self, root: &Path, picked: Vec<Picked>) -> Result<Vec<Value>, Problems> {
        let mut problems = Problems::new();
        let mut all = Vec::with_capacity(picked.len());
        for value in picked {
            match value {
                Picked::Project(written, span) => match self.finder.find(root, &written, span) {
                    Ok(files) => all.extend(files.into_iter().map(|file| {
                        let file_name = name_of(&file.path, "root");
                        Value { origin: Origin::File { path: file.path, written: file.written }, labels: Labels::new(), file_name }
                    })),
                    Err(problem) => problems.push(problem),
                },
                Picked::Output(stage, output) => {
                    let labels = self.stages[stage].labels.clone();
                    let path = self.stages[stage].outputs.get(&*output).map_or(Path::new(""), |output| Path::new(&output.path));
                    let file_name = name_of(path, &output);
                    all.push(Value { origin: Origin::Output { stage, output }, labels, file_name });
                }
            }
        }
        problems.or(all)
    }
}

/// A value of an input.
struct Value {
    origin: Origin,
    labels: Labels,
    /// Base name of the file, for places in a work folder.
    file_name: String,
}

fn name_of(path: &Path, otherwise: &str) -> String {
    path.file_name().map_or_else(|| otherwise.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// What a stage is made of, besides its name.
struct Built {
    inputs: Vec<Slot>,
    resolved: Resolved,
    settings: Arc<Settings>,
}

/// What stands for a stage that is left out.
fn nothing() -> Built {
    let action =
        Action::Command { script: Box::default(), shell: default_shell(), env: BTreeMap::new(), workdir: Arc::default(), stdout: None };
    Built { inputs: Vec::new(), resolved: (action, LiteMap::new(), Threads::ONE), settings: Settings::shared() }
}

fn slot(kind: Option<&Kind>, input: &DraftInput, name: &str, picked: Vec<Value>, shared: &mut Shared) -> Slot {
    let many =
        port(kind, name).many && (kind.is_some() || input.list || picked.len() > 1 || input.wants.iter().any(|(want, _)| is_several(want)));
    let count = picked.len();
    let values = picked.into_iter().enumerate().map(|(i, value)| bound(kind, name, many, (i, count), value, shared)).collect();
    Slot { name: shared.text(name), many, values }
}

fn bound(kind: Option<&Kind>, input: &str, many: bool, (i, count): (usize, usize), value: Value, shared: &mut Shared) -> Bound {
    let is_file = matches!(value.origin, Origin::File { .. });
    let folder = if many && count > 1 { format!("in/{input}/{}", place_of_labels(i, &value.labels)) } else { format!("in/{input}") };
    let place = match (&value.origin, kind) {
        (Origin::File { written, .. }, None) => project_place(written).unwrap_or_else(|| format!("{folder}/{}", value.file_name)),
        (_, None) => format!("{folder}/{}", value.file_name),
        (_, Some(_)) if is_file => format!("{folder}/{}", value.file_name),
        (_, Some(_)) if many && count == 1 => format!("in/{input}/0"),
        (_, Some(_)) => folder,
    };
    let labels = if many { value.labels } else { Labels::new() };
    // Files of the project are many, and few of them have one name.
    let place = if is_file { place.into() } else { shared.text(&place) };
    Bound { origin: value.origin, place, labels }
}

/// The threads of a stage that asks for `cpus`: a native stage is held to what it can use, a command gets what it says.
fn limited(threads: Threads, is_native: bool, cpus: usize) -> Threads {
    let cpus = if is_native { cpus.min(threads.max) } else { cpus };
    Threads { min: cpus, max: cpus }
}

/// Whether this may stand for several values, however many they are today.
fn is_several(wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Output(reference) => reference.gather,
        Wanted::File(written) => super::project::is_pattern(written),
    }
}

/// A folder name for one of many values that a person recognises.
fn place_of_labels(i: usize, labels: &Labels) -> String {
    if labels.is_empty() {
        return i.to_string();
    }
    let parts: Vec<String> = labels.iter().map(|(axis, value)| format!("{axis}={}", plain(value).replace(['/', ' '], "_"))).collect();
    format!("{i}-{}", parts.join(","))
}

/// Where a project file stands in a command's folder: at its own path, if that stays inside.
fn project_place(written: &str) -> Option<String> {
    use std::path::Component;
    let mut parts = Vec::new();
    for component in Path::new(written).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
