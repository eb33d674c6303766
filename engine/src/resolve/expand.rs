//! Drafts to stages: references bound to expanded stages, inherited axes joined, ports and params checked.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::drafts::{Draft, DraftInput, too_many};
use super::program::Program;
use super::{Choices, MAX_STAGES, commands, params, settings};
use crate::pipeline::{Bound, Labels, Origin, Output, Slot, Stage, StageId, compare_labels, expanded_name};
use crate::problem::{Problem, Problems, Span};
use crate::reference::{Reference, Wanted};
use crate::source::Files;
use crate::spec::{ActionSpec, StageSpec};
use crate::stage::{Arity, Format, InPort, Kind, Registry, Threads};
use crate::template::{Scope, plain};

/// Expands stage after stage, in topological order.
pub struct Expander<'s> {
    program: &'s Program,
    files: &'s Files,
    registry: &'s Registry,
    choices: &'s Choices<'s>,
    stages: Vec<Stage>,
    problems: Problems,
    /// Expanded stages of every stage of the file.
    instances: Vec<Vec<StageId>>,
    /// Stages of the file with mistakes of their own: what reads from them is not complained about.
    broken: HashSet<usize>,
}

/// An instance in the making: its coordinates so far and the values of its inputs so far.
#[derive(Clone)]
struct Partial {
    labels: Labels,
    slots: Vec<(usize, Vec<Picked>)>,
}

/// A value picked for an input.
#[derive(Clone)]
struct Picked {
    origin: Origin,
    labels: Labels,
    /// Base name of the file, for places in a work folder.
    file_name: String,
}

/// What an input port allows.
struct Port {
    format: Format,
    many: bool,
}

impl<'s> Expander<'s> {
    /// An expander over a program, in which the stages `broken` have mistakes already.
    pub fn new(program: &'s Program, files: &'s Files, registry: &'s Registry, choices: &'s Choices<'s>, broken: HashSet<usize>) -> Self {
        let instances = vec![Vec::new(); program.stages.len()];
        Self { program, files, registry, choices, stages: Vec::new(), problems: Problems::new(), instances, broken }
    }

    /// All expanded stages in topological order.
    pub fn run(mut self, drafts: &[Draft], order: &[usize], problems: &mut Problems) -> Vec<Stage> {
        let mut by_spec: Vec<Vec<&Draft>> = vec![Vec::new(); self.program.stages.len()];
        for draft in drafts {
            by_spec[draft.spec].push(draft);
        }
        for &base in order {
            let before = self.stages.len();
            let mut sound = self.check_kind(base);
            for draft in &by_spec[base] {
                sound &= self.expand(draft);
            }
            if !sound {
                self.broken.insert(base);
            }
            if self.stages.len() > MAX_STAGES {
                self.problems.push(too_many(&self.program.stages[base]));
                break;
            }
            self.instances[base] = (before..self.stages.len()).collect();
        }
        problems.extend(self.problems);
        self.stages
    }

    fn kind_of(&self, stage: &StageSpec) -> Option<&'s Kind> {
        match &stage.action {
            ActionSpec::Uses { kind, .. } => self.registry.get(&kind.value),
            ActionSpec::Run(_) => None,
        }
    }

    /// Whether the kind exists; input names are checked against its ports.
    fn check_kind(&mut self, base: usize) -> bool {
        let stage = &self.program.stages[base];
        let ActionSpec::Uses { kind: name, .. } = &stage.action else { return true };
        let Some(kind) = self.registry.get(&name.value) else {
            let problem =
                Problem::new("stage::unknown-kind", format!("there is no stage kind `{}`", name.value)).at(name.span, "unknown kind");
            self.problems.push(problem.nearest(&name.value, self.registry.kinds().map(|kind| kind.name)));
            return false;
        };
        let mut sound = true;
        for (key, _) in &stage.inputs {
            if !kind.inputs.iter().any(|port| port.name == key.name) {
                let problem = Problem::new("stage::unknown-input", format!("`{}` takes no input `{}`", kind.name, key.name))
                    .at(key.span, "unknown input");
                self.problems.push(problem.nearest(&key.name, kind.inputs.iter().map(|port| port.name)));
                sound = false;
            }
        }
        sound
    }

    /// Expands one draft; `false` if it has a mistake.
    fn expand(&mut self, draft: &Draft) -> bool {
        let stage = &self.program.stages[draft.spec];
        let kind = self.kind_of(stage);
        let mut partials = vec![Partial { labels: draft.own.clone(), slots: Vec::new() }];
        let mut sound = self.check_missing(stage, kind, draft);
        for (i, input) in draft.inputs.iter().enumerate() {
            let port = port(kind, input);
            match self.bind(partials.clone(), i, stage, input, &port) {
                Some(next) => partials = next,
                None => sound = false,
            }
        }
        sound && partials.into_iter().all(|partial| self.finish(stage, kind, draft, partial))
    }

    fn check_missing(&mut self, stage: &StageSpec, kind: Option<&Kind>, draft: &Draft) -> bool {
        let Some(kind) = kind else { return true };
        let given = |port: &InPort| draft.inputs.iter().any(|input| input.key.name == port.name && !input.wants.is_empty());
        let missing: Vec<&InPort> = kind.inputs.iter().filter(|port| port.arity != Arity::Optional && !given(port)).collect();
        for port in &missing {
            self.problems.push(
                Problem::new(
                    "stage::missing-input",
                    format!("stage `{}` lacks the input `{}` of `{}`", stage.name.value, port.name, kind.name),
                )
                .at(stage.name.span, format!("needs `{}`: {}", port.name, port.doc))
                .help(format!("add `in: {{ {}: … }}`, a value of the format `{}`", port.name, port.format.0)),
            );
        }
        missing.is_empty()
    }

    /// Binds all values of one input for every partial instance, which may split on inherited axes.
    fn bind(&mut self, partials: Vec<Partial>, slot: usize, stage: &StageSpec, input: &DraftInput, port: &Port) -> Option<Vec<Partial>> {
        let mut partials: Vec<Partial> = partials
            .into_iter()
            .map(|mut partial| {
                partial.slots.push((slot, Vec::new()));
                partial
            })
            .collect();
        if !port.many && input.wants.len() > 1 {
            let span = input.wants[1].1;
            self.problems
                .push(Problem::new("stage::one-value", format!("the input `{}` takes one value", input.key.name)).at(span, "a second one"));
            return None;
        }
        for (wanted, span) in &input.wants {
            partials = match wanted {
                Wanted::File(written) => self.bind_file(partials, stage, written, *span)?,
                Wanted::Output(reference) => self.bind_output(partials, reference, input, port, *span)?,
            };
        }
        Some(partials)
    }

    fn bind_file(&mut self, mut partials: Vec<Partial>, stage: &StageSpec, written: &str, span: Span) -> Option<Vec<Partial>> {
        let path = self.program.unit(stage).root.join(written);
        if !path.exists() {
            self.problems.push(
                Problem::new("input::not-found", format!("there is no file or folder `{written}`"))
                    .at(span, "not found")
                    .help("paths are relative to the folder of the pipeline file"),
            );
            return None;
        }
        let file_name = path.file_name().map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
        for partial in &mut partials {
            let picked = Picked {
                origin: Origin::File { path: path.clone(), written: written.to_owned() },
                labels: Labels::new(),
                file_name: file_name.clone(),
            };
            partial.slots.last_mut()?.1.push(picked);
        }
        Some(partials)
    }

    fn bind_output(
        &mut self,
        partials: Vec<Partial>,
        reference: &Reference,
        input: &DraftInput,
        port: &Port,
        span: Span,
    ) -> Option<Vec<Partial>> {
        let base = *self.program.index.get(&reference.stage)?;
        if self.broken.contains(&base) {
            return None;
        }
        self.check_axes(base, reference, span)?;
        if reference.gather && !port.many {
            self.problems.push(
                Problem::new("reference::gather", format!("the input `{}` takes one value", input.key.name))
                    .at(span, "`*` gathers several")
                    .help("name the one that is meant, such as `stage[seed=0]`"),
            );
            return None;
        }
        let mut next = Vec::new();
        for partial in partials {
            let groups = self.matching(base, reference, &partial.labels);
            if groups.is_empty() {
                self.problems.push(self.nothing_matches(base, reference, &partial.labels, span));
                return None;
            }
            for (extra, members) in groups {
                let mut grown = partial.clone();
                grown.labels.extend(extra);
                for member in members {
                    let picked = self.pick(member, reference, port, span)?;
                    grown.slots.last_mut()?.1.push(picked);
                }
                next.push(grown);
            }
        }
        Some(next)
    }

    /// Axes named in brackets must exist.
    fn check_axes(&mut self, base: usize, reference: &Reference, span: Span) -> Option<()> {
        let axes: Vec<String> =
            self.instances[base].first().map(|&id| self.stages[id].labels.keys().cloned().collect()).unwrap_or_default();
        for (axis, _) in &reference.fixed {
            if !axes.contains(axis) {
                let problem = Problem::new("reference::unknown-axis", format!("stage `{}` has no axis `{axis}`", reference.stage))
                    .at(span, "in this reference");
                self.problems.push(if axes.is_empty() {
                    problem.help("it has no matrix")
                } else {
                    problem.nearest(axis, axes.iter().map(String::as_str))
                });
                return None;
            }
        }
        Some(())
    }

    /// Instances of `base` that fit, grouped by the coordinates that the reader inherits from them.
    fn matching(&self, base: usize, reference: &Reference, labels: &Labels) -> Vec<(Labels, Vec<StageId>)> {
        let mut groups: Vec<(Labels, Vec<StageId>)> = Vec::new();
        for &id in &self.instances[base] {
            let theirs = &self.stages[id].labels;
            let fits = reference.fixed.iter().all(|(axis, value)| theirs.get(axis).is_some_and(|v| plain(v) == *value));
            let is_fixed = |axis: &String| reference.fixed.iter().any(|(fixed, _)| fixed == axis);
            let joins =
                reference.gather || theirs.iter().all(|(axis, value)| is_fixed(axis) || labels.get(axis).is_none_or(|ours| ours == value));
            if !fits || !joins {
                continue;
            }
            let inherits = |axis: &String| !reference.gather && !is_fixed(axis) && !labels.contains_key(axis);
            let extra: Labels =
                theirs.iter().filter(|(axis, _)| inherits(axis)).map(|(axis, value)| (axis.clone(), value.clone())).collect();
            match groups.iter_mut().find(|(known, _)| *known == extra) {
                Some((_, members)) => members.push(id),
                None => groups.push((extra, vec![id])),
            }
        }
        for (_, members) in &mut groups {
            members.sort_by(|&a, &b| compare_labels(&self.stages[a].labels, &self.stages[b].labels));
        }
        groups
    }

    fn nothing_matches(&self, base: usize, reference: &Reference, labels: &Labels, span: Span) -> Problem {
        let known: Vec<&str> = self.instances[base].iter().map(|&id| self.stages[id].name.as_str()).take(8).collect();
        let coordinates = if labels.is_empty() { String::new() } else { format!(" for {}", expanded_name("", labels)) };
        Problem::new("reference::no-match", format!("no expanded stage of `{}` fits this reference{coordinates}", reference.stage))
            .at(span, "fits none")
            .help(format!("there are: {}", known.join(", ")))
    }

    fn pick(&mut self, id: StageId, reference: &Reference, port: &Port, span: Span) -> Option<Picked> {
        let stage = &self.stages[id];
        let output = match &reference.output {
            Some(name) => name.clone(),
            None => match choose_output(stage, port) {
                Ok(name) => name,
                Err(problem) => {
                    self.problems.push(problem.at(span, "in this reference"));
                    return None;
                }
            },
        };
        let Some(found) = stage.outputs.get(&output) else {
            let problem = Problem::new("reference::unknown-output", format!("stage `{}` has no output `{output}`", stage.base))
                .at(span, "in this reference");
            let problem = problem.nearest(&output, stage.outputs.keys().map(String::as_str));
            self.problems.push(problem);
            return None;
        };
        if !found.format.fits(port.format) {
            let message = format!("`{}.{output}` has the format `{}`, but `{}` is wanted here", stage.base, found.format.0, port.format.0);
            let fitting: Vec<&str> =
                stage.outputs.iter().filter(|(_, other)| other.format.fits(port.format)).map(|(name, _)| name.as_str()).collect();
            let problem = Problem::new("reference::wrong-format", message).at(span, format!("of the format `{}`", found.format.0));
            self.problems.push(if fitting.is_empty() {
                problem
            } else {
                problem.help(format!("`{}` also gives: {}", stage.base, fitting.join(", ")))
            });
            return None;
        }
        let file_name = Path::new(&found.path).file_name().map_or_else(|| output.clone(), |name| name.to_string_lossy().into_owned());
        Some(Picked { origin: Origin::Output { stage: id, output }, labels: stage.labels.clone(), file_name })
    }

    fn finish(&mut self, spec: &'s StageSpec, kind: Option<&'s Kind>, draft: &Draft, partial: Partial) -> bool {
        let Partial { labels, slots } = partial;
        let scope = Scope { params: &self.program.unit(spec).params, matrix: &labels, files: self.files };
        let slots: Vec<Slot> = slots.into_iter().map(|(i, picked)| self.slot(kind, &draft.inputs[i], picked)).collect();
        let built = match (&spec.action, kind) {
            (ActionSpec::Uses { with, .. }, Some(kind)) => params::native(spec, kind, with.as_ref(), &scope),
            (ActionSpec::Run(run), _) => commands::command(run, &slots, &scope, self.choices.environment),
            (ActionSpec::Uses { .. }, None) => return false,
        };
        let mut problems = Problems::new();
        let (settings, cpus) = settings::settings(&spec.settings, &self.program.pools, &scope, &mut problems);
        let (action, outputs, threads) = match built.and_then(|built| problems.clone().or(built)) {
            Ok(built) => built,
            Err(found) => {
                self.problems.extend(found);
                self.problems.extend(problems);
                return false;
            }
        };
        let threads = cpus.map_or(threads, |cpus| limited(threads, kind.is_some(), cpus));
        let mut inputs: Vec<Slot> = slots;
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        let name = expanded_name(&spec.name.value, &labels);
        self.stages.push(Stage { name, base: spec.name.value.clone(), labels, action, inputs, outputs, threads, settings });
        true
    }

    fn slot(&self, kind: Option<&Kind>, input: &DraftInput, picked: Vec<Picked>) -> Slot {
        let many = port(kind, input).many
            && (kind.is_some() || input.list || picked.len() > 1 || input.wants.iter().any(|(want, _)| is_gather(want)));
        let count = picked.len();
        let values = picked.into_iter().enumerate().map(|(i, value)| self.bound(kind, &input.key.name, many, (i, count), value)).collect();
        Slot { name: input.key.name.clone(), many, values }
    }

    fn bound(&self, kind: Option<&Kind>, input: &str, many: bool, (i, count): (usize, usize), value: Picked) -> Bound {
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
        Bound { origin: value.origin, place, labels }
    }
}

/// The threads of a stage that asks for `cpus`: a native stage is held to what it can use, a command gets what it says.
fn limited(threads: Threads, is_native: bool, cpus: usize) -> Threads {
    let cpus = if is_native { cpus.min(threads.max) } else { cpus };
    Threads { min: cpus, max: cpus }
}

fn is_gather(wanted: &Wanted) -> bool {
    matches!(wanted, Wanted::Output(reference) if reference.gather)
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

fn port(kind: Option<&Kind>, input: &DraftInput) -> Port {
    let declared = kind.and_then(|kind| kind.inputs.iter().find(|port| port.name == input.key.name));
    declared
        .map_or(Port { format: Format::ANY, many: kind.is_none() }, |port| Port { format: port.format, many: port.arity == Arity::Many })
}

fn choose_output(stage: &Stage, port: &Port) -> Result<String, Problem> {
    let names = |outputs: &BTreeMap<String, Output>| outputs.keys().cloned().collect::<Vec<_>>().join(", ");
    if stage.outputs.len() == 1 {
        return Ok(stage.outputs.keys().next().cloned().unwrap_or_default());
    }
    let fitting: Vec<&String> = stage.outputs.iter().filter(|(_, output)| output.format.fits(port.format)).map(|(name, _)| name).collect();
    match fitting.as_slice() {
        [only] => Ok((*only).clone()),
        [] => Err(Problem::new(
            "reference::wrong-format",
            format!("no output of `{}` has the format `{}` that is wanted here", stage.base, port.format.0),
        )
        .help(format!("its outputs are: {}", names(&stage.outputs)))),
        several => {
            let offers: Vec<String> = several.iter().map(|name| format!("`{}.{name}`", stage.base)).collect();
            Err(Problem::new("reference::ambiguous", format!("`{}` has several outputs that fit here", stage.base))
                .help(format!("write one of {}", offers.join(", "))))
        }
    }
}
