//! A pure model of pipelines of small commands: what the file says, what each stage must give, and under which key.
//!
//! The model knows nothing of caches. Two expanded stages have one [`Key`] if and only if the engine must treat them as one action.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A file, or a folder of two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    File(String),
    /// The files `a` and `b/c`, and whether there is an unread file `z` beside them.
    Folder {
        a: String,
        c: String,
        unread: bool,
    },
}

impl Content {
    /// What a command gets to read of it.
    fn read(&self) -> String {
        match self {
            Self::File(text) => text.clone(),
            Self::Folder { a, c, .. } => format!("{a}{c}"),
        }
    }

    pub fn is_folder(&self) -> bool {
        matches!(self, Self::Folder { .. })
    }
}

/// What a command does with the bytes of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Cat,
    Head(u8),
    Lines,
    Shift,
    Param,
    Env,
    /// Fails if there is an `e` among the bytes.
    Check,
}

impl Op {
    fn filter(self) -> String {
        match self {
            Self::Cat => "cat".into(),
            Self::Head(bytes) => format!("head -c {bytes}"),
            Self::Lines => "wc -l | tr -d ' '".into(),
            Self::Shift => "tr abcd bcde".into(),
            Self::Param => "cat; echo ${p}".into(),
            Self::Env => "cat; echo $V".into(),
            Self::Check => "tee got; if grep -q e got; then exit 3; fi".into(),
        }
    }

    /// What it gives; none if it fails.
    fn apply(self, bytes: &str, param: u8, env: u8) -> Option<String> {
        Some(match self {
            Self::Cat => bytes.to_owned(),
            Self::Head(count) => bytes.chars().take(usize::from(count)).collect(),
            Self::Lines => format!("{}\n", bytes.matches('\n').count()),
            Self::Shift => bytes.chars().map(|c| if ('a'..='d').contains(&c) { char::from(c as u8 + 1) } else { c }).collect(),
            Self::Param => format!("{bytes}{param}\n"),
            Self::Env => format!("{bytes}{env}\n"),
            Self::Check if bytes.contains('e') => return None,
            Self::Check => bytes.to_owned(),
        })
    }
}

/// How a stage refers to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `s`: its axes are inherited.
    Inherit,
    /// `s[*]`: all of them.
    Gather,
    /// `s[a=1]`: one of them.
    Pick(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    File(usize),
    Stage(usize, Mode),
}

/// A stage of the file.
#[derive(Debug, Clone)]
pub struct Stage {
    pub renamed: bool,
    pub op: Op,
    pub env: u8,
    pub inputs: Vec<Source>,
    /// Whether it has an axis of its own, with the values 1 and 2.
    pub matrix: bool,
    /// Whether its output is a folder.
    pub folder: bool,
}

/// Coordinates: the stages whose axes they are, and the values.
pub type Labels = BTreeMap<usize, u8>;

/// A pipeline with its sources. All axes of a stage are found in [`Pipeline::axes`].
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub param: u8,
    pub sources: Vec<Content>,
    pub stages: Vec<Stage>,
}

/// All that makes two expanded stages the same action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    script: String,
    env: Option<u8>,
    /// For each input the file that it is, if it is one, and what is read.
    inputs: Vec<(Option<usize>, Read)>,
    folder: bool,
}

/// The contents that an input stands for, each with the labels that the engine shows.
type Read = Vec<(Content, Labels)>;

/// What becomes of an expanded stage in a clean build.
#[derive(Debug, Clone)]
pub enum Fate {
    Gives(Key, Content),
    Fails,
    Skipped,
}

/// An expanded stage: its place in the file and its coordinates.
pub type Instance = (usize, Labels);

impl Pipeline {
    pub fn name(&self, stage: usize) -> String {
        format!("{}{stage}", if self.stages[stage].renamed { "renamed" } else { "s" })
    }

    /// `s3[a=1,b=2]`.
    pub fn instance_name(&self, (stage, labels): &Instance) -> String {
        let labels: Vec<String> = labels.iter().map(|(axis, value)| format!("{}={value}", axis_name(*axis))).collect();
        let name = self.name(*stage);
        if labels.is_empty() { name } else { format!("{name}[{}]", labels.join(",")) }
    }

    /// The stages whose axes a stage has.
    pub fn axes(&self, stage: usize) -> BTreeSet<usize> {
        let inherited = self.stages[stage].inputs.iter().filter_map(|input| match input {
            Source::Stage(up, Mode::Inherit) => Some(self.axes(*up)),
            _ => None,
        });
        let own = self.stages[stage].matrix.then_some(stage);
        inherited.flatten().chain(own).collect()
    }

    /// Expansions in the order in which a gathering input gets them.
    pub fn instances(&self, stage: usize) -> Vec<Instance> {
        let grow = |all: Vec<Labels>, axis: usize| {
            all.into_iter().flat_map(|labels| [1, 2].map(|value| labels.clone().into_iter().chain([(axis, value)]).collect())).collect()
        };
        self.axes(stage).into_iter().fold(vec![Labels::new()], grow).into_iter().map(|labels| (stage, labels)).collect()
    }

    /// The expanded stages of these stages, or of all if there are none, with all that they need.
    pub fn needed(&self, targets: &BTreeSet<usize>) -> BTreeSet<Instance> {
        let all = (0..self.stages.len()).filter(|stage| targets.is_empty() || targets.contains(stage));
        let mut open: Vec<Instance> = all.flat_map(|stage| self.instances(stage)).collect();
        let mut needed = BTreeSet::new();
        while let Some(instance) = open.pop() {
            open.extend(self.upstream(&instance));
            needed.insert(instance);
        }
        needed
    }

    /// The expanded stages that an input of an instance reads.
    fn members(&self, labels: &Labels, up: usize, mode: Mode) -> Vec<Instance> {
        let all = self.instances(up).into_iter();
        match mode {
            Mode::Inherit => all.filter(|(_, theirs)| theirs.iter().all(|(axis, value)| labels.get(axis) == Some(value))).collect(),
            Mode::Gather => all.collect(),
            Mode::Pick(value) => all.filter(|(_, theirs)| theirs.values().all(|v| *v == value)).collect(),
        }
    }

    /// The expanded stages that an instance reads.
    pub fn upstream(&self, (stage, labels): &Instance) -> Vec<Instance> {
        let of_input = |input: &Source| match *input {
            Source::File(_) => Vec::new(),
            Source::Stage(up, mode) => self.members(labels, up, mode),
        };
        self.stages[*stage].inputs.iter().flat_map(of_input).collect()
    }

    /// A clean build: the fate of every expanded stage.
    pub fn build(&self) -> BTreeMap<Instance, Fate> {
        let mut fates = BTreeMap::new();
        for stage in 0..self.stages.len() {
            for instance in self.instances(stage) {
                let fate = self.fate(&instance, &fates);
                fates.insert(instance, fate);
            }
        }
        fates
    }

    fn fate(&self, instance: &Instance, fates: &BTreeMap<Instance, Fate>) -> Fate {
        let (stage, labels) = (&self.stages[instance.0], &instance.1);
        let mut inputs = Vec::new();
        for input in &stage.inputs {
            match *input {
                Source::File(source) => inputs.push((Some(source), vec![(self.sources[source].clone(), Labels::new())])),
                Source::Stage(up, mode) => {
                    let mut contents = Vec::new();
                    for member in self.members(labels, up, mode) {
                        let Fate::Gives(_, content) = &fates[&member] else { return Fate::Skipped };
                        contents.push((content.clone(), if mode == Mode::Gather { member.1 } else { Labels::new() }));
                    }
                    inputs.push((None, contents));
                }
            }
        }
        let bytes: String = inputs.iter().flat_map(|(_, contents)| contents).map(|(content, _)| content.read()).collect();
        let given = stage.op.apply(&bytes, self.param, stage.env);
        let own = labels.get(&instance.0);
        let key = Key {
            script: self.script(instance.0).replace("${p}", &self.param.to_string()).replace("${x}", &format!("{own:?}")),
            env: (stage.op == Op::Env).then_some(stage.env),
            inputs,
            folder: stage.folder,
        };
        let Some(mut text) = given else { return Fate::Fails };
        if let Some(value) = own {
            let _ = writeln!(text, "m{value}");
        }
        let content = if stage.folder { Content::Folder { a: text, c: "sub\n".into(), unread: false } } else { Content::File(text) };
        Fate::Gives(key, content)
    }

    fn script(&self, stage: usize) -> String {
        let spec = &self.stages[stage];
        let is_folder = |input: &Source| match *input {
            Source::File(source) => self.sources[source].is_folder(),
            Source::Stage(up, _) => self.stages[up].folder,
        };
        let mut reads = String::from("true");
        for (i, input) in spec.inputs.iter().enumerate() {
            match is_folder(input) {
                true => write!(reads, "; for d in {{in.i{i}}}; do cat $d/a $d/b/c; done").unwrap(),
                false => write!(reads, "; cat {{in.i{i}}}").unwrap(),
            }
        }
        let to = if spec.folder { "{out.o}/a" } else { "{out.o}" };
        let first = if spec.folder { "mkdir -p {out.o}/b; echo sub > {out.o}/b/c; " } else { "" };
        let last = if spec.matrix { format!("; echo m${{x}} >> {to}") } else { String::new() };
        format!("{first}({reads}) | ({}) > {to}{last}", spec.op.filter())
    }

    /// The file.
    pub fn yaml(&self) -> String {
        let mut yaml = format!("params: {{ p: {} }}\nstages:\n", self.param);
        for (i, stage) in self.stages.iter().enumerate() {
            let _ = write!(yaml, "  {}: {{ ", self.name(i));
            if stage.matrix {
                let _ = write!(yaml, "matrix: {{ {}: [1, 2] }}, ", axis_name(i));
            }
            if stage.op == Op::Env {
                let _ = write!(yaml, "env: {{ V: '{}' }}, ", stage.env);
            }
            let inputs: Vec<String> =
                stage.inputs.iter().enumerate().map(|(k, input)| format!("i{k}: {}", self.reference(input))).collect();
            if !inputs.is_empty() {
                let _ = write!(yaml, "in: {{ {} }}, ", inputs.join(", "));
            }
            let script = self.script(i).replace("${x}", &format!("${{{}}}", axis_name(i)));
            let _ = writeln!(yaml, "run: {}, out: {{ o: o }} }}", serde_json::Value::from(script));
        }
        yaml
    }

    fn reference(&self, input: &Source) -> String {
        match *input {
            Source::File(source) => format!("./f{source}"),
            Source::Stage(up, Mode::Inherit) => self.name(up),
            Source::Stage(up, Mode::Gather) => format!("'{}[*]'", self.name(up)),
            Source::Stage(up, Mode::Pick(value)) => {
                let fixed: Vec<String> = self.axes(up).into_iter().map(|axis| format!("{}={value}", axis_name(axis))).collect();
                format!("'{}[{}]'", self.name(up), fixed.join(","))
            }
        }
    }
}

/// One letter, so that names sort as the stages do.
fn axis_name(stage: usize) -> char {
    char::from(b'a' + u8::try_from(stage).unwrap())
}
