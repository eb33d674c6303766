//! Drafts to stages: references bound to expanded stages, inherited axes joined, ports checked.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use litemap::LiteMap;

use super::drafts::{self, Draft, DraftInput, Drafted};
use super::join::{Group, Instances};
use super::program::Program;
use super::project::{Finder, is_pattern};
use super::shared::Shared;
use super::variants::too_many;
use super::{Choices, MAX_STAGES};
use crate::compiled::Dependency;
use crate::pipeline::{Labels, Later, Origin, Output, Stage, StageId, expanded_name};
use crate::problem::{Problem, Problems, Span};
use crate::reference::{Reference, Wanted};
use crate::source::Files;
use crate::spec::{ActionSpec, StageSpec, StageSpecs};
use crate::stage::{Arity, Format, InPort, Kind, Registry};

/// Expands stage after stage, in topological order.
pub struct Expander<'s> {
    /// What all stages share; their own part is in `specs`.
    pub(super) program: &'s Program,
    pub(super) files: &'s Files,
    pub(super) registry: &'s Registry,
    pub(super) choices: &'s Choices<'s>,
    pub(super) stages: Vec<Stage>,
    /// For every stage whether its `when` is false. Such stages are there until all is expanded, so that what reads from them is noticed.
    pub(super) off: Vec<bool>,
    pub(super) problems: Problems,
    pub(super) finder: Finder,
    pub(super) shared: Shared,
    /// Stages of the file that are not expanded yet: what was written of a stage is let go once it is expanded.
    specs: Vec<Option<Box<StageSpec>>>,
    /// Where the conditions of stages stand.
    conditions: HashMap<usize, Span>,
    /// Expanded stages of every stage of the file.
    instances: Vec<Instances>,
    /// Stages of the file with mistakes of their own: what reads from them is not complained about.
    broken: HashSet<usize>,
    /// Stages of the file that cannot be expanded yet.
    later: HashMap<usize, Later>,
}

/// An instance in the making: its coordinates so far and the values of its inputs so far.
#[derive(Clone)]
pub struct Partial {
    pub labels: Labels,
    /// Values by the place of the input in the draft.
    pub slots: Vec<(usize, Vec<Picked>)>,
    /// A stage that it reads from although that is left out, and where it says so.
    pub reads_off: Option<(StageId, Span)>,
}

/// A value picked for an input. There can be very many of them for a while, so they hold no more than they must.
#[derive(Clone)]
pub enum Picked {
    /// A path or pattern as written, which is looked for once it is clear that the stage is not left out.
    Project(Rc<str>, Span),
    /// An output of an earlier stage.
    Output(StageId, Arc<str>),
}

/// A reference to a stage of the file, for a port, and where it is written.
type Want<'w> = (usize, &'w Reference, &'w Port, Span);

/// What an input port allows.
pub struct Port {
    pub format: Format,
    pub many: bool,
}

/// What came of the drafts.
pub struct Expanded {
    /// In topological order.
    pub stages: Vec<Stage>,
    /// What cannot be expanded yet.
    pub later: Vec<Later>,
    /// Patterns that were looked for.
    pub patterns: Vec<Dependency>,
}

impl<'s> Expander<'s> {
    /// An expander of the stages `specs` of a program.
    pub fn new(program: &'s Program, specs: StageSpecs, files: &'s Files, registry: &'s Registry, choices: &'s Choices<'s>) -> Self {
        let specs = specs.into_iter().map(Some).collect();
        Self {
            program,
            specs,
            conditions: HashMap::new(),
            files,
            registry,
            choices,
            stages: Vec::new(),
            off: Vec::new(),
            problems: Problems::new(),
            finder: Finder::default(),
            shared: Shared::default(),
            instances: Vec::new(),
            broken: HashSet::new(),
            later: HashMap::new(),
        }
    }

    /// Expands all that can be.
    pub fn run(mut self, drafted: &mut Drafted, order: &[usize], problems: &mut Problems) -> Expanded {
        self.broken = std::mem::take(&mut drafted.broken);
        self.instances.resize_with(self.specs.len(), Instances::default);
        self.stages.reserve(drafted.drafts.len());
        for &base in order {
            let Some(spec) = self.specs[base].take() else { continue };
            self.conditions.extend(spec.when.as_ref().map(|node| (base, node.span)));
            let before = self.stages.len();
            let mut sound = self.check_kind(&spec);
            if self.is_later(base, &spec, drafted) {
                continue;
            }
            let first = drafted.drafts.partition_point(|draft| draft.spec() < base);
            for draft in drafted.drafts[first..].iter().take_while(|draft| draft.spec() == base) {
                sound &= self.expand(&spec, draft);
            }
            if !sound {
                self.broken.insert(base);
            }
            if self.stages.len() > MAX_STAGES {
                self.problems.push(too_many(&spec));
                break;
            }
            self.instances[base] = Instances::new(&self.stages, before..self.stages.len());
        }
        problems.extend(std::mem::take(&mut self.problems));
        self.without_off()
    }

    /// All stages but those that are left out, numbered anew.
    fn without_off(mut self) -> Expanded {
        if !self.off.contains(&true) {
            return Expanded { stages: self.stages, later: in_order(self.later), patterns: self.finder.patterns };
        }
        let mut place = Vec::with_capacity(self.stages.len());
        let mut stages: Vec<Stage> = Vec::with_capacity(self.stages.len());
        for (mut stage, off) in std::mem::take(&mut self.stages).into_iter().zip(self.off) {
            place.push(stages.len());
            if off {
                continue;
            }
            for bound in stage.inputs.iter_mut().flat_map(|slot| &mut slot.values) {
                if let Origin::Output { stage, .. } = &mut bound.origin {
                    *stage = place[*stage];
                }
            }
            stages.push(stage);
        }
        let later = in_order(self.later).into_iter().map(|later| Later { stage: place[later.stage], ..later }).collect();
        Expanded { stages, later, patterns: self.finder.patterns }
    }

    /// Notes a stage that waits for a list, or reads from one that does.
    fn is_later(&mut self, base: usize, spec: &StageSpec, drafted: &Drafted) -> bool {
        if drafted.later.is_empty() {
            return false;
        }
        let own = drafted.later.get(&base);
        let upstream = drafted.reads(base).find_map(|from| self.later.get(&from).cloned());
        let name = spec.name.value.clone();
        let found = match (upstream, own) {
            (Some(later), _) => Some(Later { name, ..later }),
            (None, Some((reference, span))) => {
                let Some(later) = self.list_of(name, reference, *span) else {
                    self.broken.insert(base);
                    return true;
                };
                Some(later)
            }
            (None, None) => None,
        };
        let is_later = found.is_some();
        self.later.extend(found.map(|later| (base, later)));
        is_later
    }

    /// The one output that lists the items of the stage `name`.
    fn list_of(&mut self, name: String, reference: &Reference, span: Span) -> Option<Later> {
        let base = *self.program.index.get(reference.stage.as_str())?;
        if self.broken.contains(&base) {
            return None;
        }
        self.check_axes(base, reference, span)?;
        let groups = self.instances[base].matching(&self.stages, reference, &Labels::new());
        let ids: Vec<StageId> = groups.into_iter().flat_map(|(_, ids)| ids).collect();
        let &[stage] = ids.as_slice() else {
            self.problems.push(match ids.first() {
                None => self.nothing_matches(base, reference, &Labels::new(), span),
                Some(&first) => Problem::new("foreach::one-output", "`foreach` takes the list from one stage")
                    .at(span, format!("stands for {} stages", ids.len()))
                    .help(format!(
                        "name one of them, such as `${{{}.{}}}`",
                        self.stages[first].name,
                        reference.output.as_deref().unwrap_or("")
                    )),
            });
            return None;
        };
        if self.off[stage] {
            self.problems.push(self.left_out(stage, span));
            return None;
        }
        let output = reference.output.clone()?;
        self.pick(stage, reference, &Port { format: Format::ANY, many: false }, span)?;
        let fixed: Labels = reference.fixed.iter().map(|(axis, value)| (axis.clone(), value.as_str().into())).collect();
        Some(Later { name, stage, output, asked: expanded_name(&reference.stage, &fixed) })
    }

    fn kind_of(&self, stage: &StageSpec) -> Option<&'s Kind> {
        match &stage.action {
            ActionSpec::Uses(uses) => self.registry.get(&uses.kind.value),
            ActionSpec::Run(_) => None,
        }
    }

    /// Whether the kind exists; input names are checked against its ports.
    fn check_kind(&mut self, stage: &StageSpec) -> bool {
        let ActionSpec::Uses(uses) = &stage.action else { return true };
        let name = &uses.kind;
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
    fn expand(&mut self, stage: &StageSpec, draft: &Draft) -> bool {
        let kind = self.kind_of(stage);
        // What is wrong in them was complained about when they were drafted.
        let Ok(inputs) = drafts::inputs(stage, self.program.unit(stage), self.files, draft.own()) else { return false };
        let mut partials = vec![Partial { labels: draft.own().labels.clone(), slots: Vec::with_capacity(inputs.len()), reads_off: None }];
        let mut sound = self.check_missing(stage, kind, &inputs);
        for (i, input) in inputs.iter().enumerate() {
            let name = stage.inputs[input.key].0.name.as_str();
            let port = port(kind, name);
            // Were it not for mistakes in the inputs to come, nobody would need the partials of before.
            let before = if i + 1 < inputs.len() { partials.clone() } else { Vec::new() };
            match self.bind(partials, i, stage, input, name, &port) {
                Some(next) => partials = next,
                None => {
                    sound = false;
                    partials = before;
                }
            }
        }
        sound && partials.into_iter().all(|partial| self.finish(stage, kind, draft, &inputs, partial))
    }

    fn check_missing(&mut self, stage: &StageSpec, kind: Option<&Kind>, inputs: &[DraftInput]) -> bool {
        let Some(kind) = kind else { return true };
        let given = |port: &InPort| inputs.iter().any(|input| stage.inputs[input.key].0.name == port.name && !input.wants.is_empty());
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
    fn bind(
        &mut self,
        mut partials: Vec<Partial>,
        slot: usize,
        stage: &StageSpec,
        input: &DraftInput,
        name: &str,
        port: &Port,
    ) -> Option<Vec<Partial>> {
        partials.iter_mut().for_each(|partial| partial.slots.push((slot, Vec::with_capacity(input.wants.len()))));
        if !port.many && input.wants.len() > 1 {
            let span = input.wants[1].1;
            self.problems.push(Problem::new("stage::one-value", format!("the input `{name}` takes one value")).at(span, "a second one"));
            return None;
        }
        for (wanted, span) in &input.wants {
            partials = match wanted {
                Wanted::File(written) => self.bind_file(partials, written, name, port, *span)?,
                Wanted::Output(reference) => self.bind_output(partials, stage, reference, name, port, *span)?,
            };
        }
        Some(partials)
    }

    fn bind_file(&mut self, mut partials: Vec<Partial>, written: &str, name: &str, port: &Port, span: Span) -> Option<Vec<Partial>> {
        if is_pattern(written) && !port.many {
            self.problems.push(
                Problem::new("input::pattern", format!("the input `{name}` takes one value"))
                    .at(span, "a pattern stands for several files")
                    .help("name one file, or a folder without `*`"),
            );
            return None;
        }
        let written: Rc<str> = written.into();
        for partial in &mut partials {
            partial.slots.last_mut()?.1.push(Picked::Project(Rc::clone(&written), span));
        }
        Some(partials)
    }

    fn bind_output(
        &mut self,
        partials: Vec<Partial>,
        stage: &StageSpec,
        reference: &Reference,
        name: &str,
        port: &Port,
        span: Span,
    ) -> Option<Vec<Partial>> {
        let base = *self.program.index.get(reference.stage.as_str())?;
        if self.broken.contains(&base) {
            return None;
        }
        self.check_axes(base, reference, span)?;
        if reference.gather && !port.many {
            self.problems.push(
                Problem::new("reference::gather", format!("the input `{name}` takes one value"))
                    .at(span, "`*` gathers several")
                    .help("name the one that is meant, such as `stage[seed=0]`"),
            );
            return None;
        }
        if self.instances[base].ids.is_empty() && !reference.gather {
            // A list that turned out to be empty: nothing to do for each of its items.
            return Some(Vec::new());
        }
        let mut next = Vec::with_capacity(partials.len());
        let mut left = partials.len();
        for partial in partials {
            let groups = self.instances[base].matching(&self.stages, reference, &partial.labels);
            // Were all that are left to split as this one does, it would be too many: said before memory goes.
            if next.len() + self.stages.len() + left.saturating_mul(groups.len()) > MAX_STAGES && groups.len() > 1 {
                self.problems.push(too_many(stage));
                return None;
            }
            left -= 1;
            self.grow(&mut next, partial, groups, (base, reference, port, span))?;
        }
        Some(next)
    }

    /// All that become of one partial instance by one reference.
    fn grow(&mut self, next: &mut Vec<Partial>, partial: Partial, mut groups: Vec<Group>, want: Want<'_>) -> Option<()> {
        let (base, reference, _, span) = want;
        let Some((extra, members)) = groups.pop() else {
            if self.instances[base].ids.is_empty() {
                next.push(partial);
                return Some(());
            }
            self.problems.push(self.nothing_matches(base, reference, &partial.labels, span));
            return None;
        };
        for (extra, members) in groups {
            next.push(self.with_group(partial.clone(), extra, &members, want)?);
        }
        next.push(self.with_group(partial, extra, &members, want)?);
        Some(())
    }

    fn with_group(&mut self, mut partial: Partial, extra: Labels, members: &[StageId], want: Want<'_>) -> Option<Partial> {
        let (_, reference, port, span) = want;
        partial.labels.extend(extra);
        for &member in members {
            if self.off[member] {
                // What gathers takes what is there, if anything is.
                if !reference.gather || members.iter().all(|&member| self.off[member]) {
                    partial.reads_off.get_or_insert((member, span));
                }
                continue;
            }
            let picked = self.pick(member, reference, port, span)?;
            partial.slots.last_mut()?.1.push(picked);
        }
        Some(partial)
    }

    /// The complaint about reading from a stage that is left out.
    pub(super) fn left_out(&self, id: StageId, span: Span) -> Problem {
        let stage = &self.stages[id];
        let problem = Problem::new("when::left-out", format!("`{}` is left out", stage.name)).at(span, "read from here");
        let condition = self.program.index.get(stage.base()).and_then(|base| self.conditions.get(base));
        let problem = match condition {
            Some(span) => problem.at(*span, "because this is false"),
            None => problem,
        };
        problem.help("give this stage a `when` too, or gather with `[*]`, which takes what is there")
    }

    /// Axes named in brackets must exist.
    fn check_axes(&mut self, base: usize, reference: &Reference, span: Span) -> Option<()> {
        let axes: Vec<&str> = self.instances[base].axes().collect();
        for (axis, _) in &reference.fixed {
            if !axes.contains(&axis.as_str()) && !self.instances[base].ids.is_empty() {
                let problem = Problem::new("reference::unknown-axis", format!("stage `{}` has no axis `{axis}`", reference.stage))
                    .at(span, "in this reference");
                self.problems.push(if axes.is_empty() {
                    problem.help("it has no matrix")
                } else {
                    problem.nearest(axis, axes.iter().copied())
                });
                return None;
            }
        }
        Some(())
    }

    fn nothing_matches(&self, base: usize, reference: &Reference, labels: &Labels, span: Span) -> Problem {
        let known: Vec<&str> = self.instances[base].ids.clone().map(|id| self.stages[id].name.as_str()).take(8).collect();
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
            let problem = Problem::new("reference::unknown-output", format!("stage `{}` has no output `{output}`", stage.base()))
                .at(span, "in this reference");
            let problem = problem.nearest(&output, stage.outputs.keys().map(String::as_str));
            self.problems.push(problem);
            return None;
        };
        if !found.format.fits(port.format) {
            let message =
                format!("`{}.{output}` has the format `{}`, but `{}` is wanted here", stage.base(), found.format.0, port.format.0);
            let fitting: Vec<&str> =
                stage.outputs.iter().filter(|(_, other)| other.format.fits(port.format)).map(|(name, _)| name.as_str()).collect();
            let problem = Problem::new("reference::wrong-format", message).at(span, format!("of the format `{}`", found.format.0));
            self.problems.push(if fitting.is_empty() {
                problem
            } else {
                problem.help(format!("`{}` also gives: {}", stage.base(), fitting.join(", ")))
            });
            return None;
        }
        Some(Picked::Output(id, self.shared.text(&output)))
    }
}

/// In the order of the file.
fn in_order(later: HashMap<usize, Later>) -> Vec<Later> {
    let mut later: Vec<(usize, Later)> = later.into_iter().collect();
    later.sort_by_key(|(base, _)| *base);
    later.into_iter().map(|(_, later)| later).collect()
}

pub fn port(kind: Option<&Kind>, input: &str) -> Port {
    let declared = kind.and_then(|kind| kind.inputs.iter().find(|port| port.name == input));
    declared
        .map_or(Port { format: Format::ANY, many: kind.is_none() }, |port| Port { format: port.format, many: port.arity == Arity::Many })
}

fn choose_output(stage: &Stage, port: &Port) -> Result<String, Problem> {
    let names = |outputs: &LiteMap<String, Output>| outputs.keys().cloned().collect::<Vec<_>>().join(", ");
    if stage.outputs.len() == 1 {
        return Ok(stage.outputs.keys().next().cloned().unwrap_or_default());
    }
    let fitting: Vec<&String> = stage.outputs.iter().filter(|(_, output)| output.format.fits(port.format)).map(|(name, _)| name).collect();
    match fitting.as_slice() {
        [only] => Ok((*only).clone()),
        [] => Err(Problem::new(
            "reference::wrong-format",
            format!("no output of `{}` has the format `{}` that is wanted here", stage.base(), port.format.0),
        )
        .help(format!("its outputs are: {}", names(&stage.outputs)))),
        several => {
            let offers: Vec<String> = several.iter().map(|name| format!("`{}.{name}`", stage.base())).collect();
            Err(Problem::new("reference::ambiguous", format!("`{}` has several outputs that fit here", stage.base()))
                .help(format!("write one of {}", offers.join(", "))))
        }
    }
}
