//! The graphs that every tool gets: wide, chain and layered.

use std::collections::BTreeSet;

use crate::mersenne::Random;

/// Seed of the layered graph's edges.
const SEED: u32 = 7;
/// Layers of the layered graph.
const LAYERS: usize = 10;
/// The source that only the last stage reads.
pub const LEAF: &str = "leaf";
/// The source that one stage in the middle reads.
pub const MID: &str = "mid";

/// How stages hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Each stage copies a source of its own.
    Wide,
    /// Each stage copies what the one before it wrote.
    Chain,
    /// Ten layers; each stage hashes two random outputs of the layer before.
    Layered,
}

impl Shape {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Chain => "chain",
            Self::Layered => "layered",
        }
    }
}

/// What a stage reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file of the project: `src/<name>.txt`.
    Source(String),
    /// What another stage wrote.
    Output(usize),
}

impl Input {
    /// The name of the source, if it is one.
    pub fn source(&self) -> Option<&str> {
        match self {
            Self::Source(name) => Some(name),
            Self::Output(_) => None,
        }
    }

    /// Its path in the projects of tools that write in place.
    pub fn path(&self) -> String {
        match self {
            Self::Source(name) => format!("src/{name}.txt"),
            Self::Output(stage) => output(*stage),
        }
    }
}

/// Where a stage's output is in the projects of tools that write in place.
pub fn output(stage: usize) -> String {
    format!("out/{stage}.txt")
}

/// A graph of stages, each after those that it reads from.
#[derive(Debug)]
pub struct Dag {
    /// Its shape.
    pub shape: Shape,
    /// Inputs of each stage.
    pub stages: Vec<Vec<Input>>,
}

impl Dag {
    /// The graph of this shape with `n` stages; says why where there is none.
    pub fn new(shape: Shape, n: usize) -> Result<Self, String> {
        if n < 20 || !n.is_multiple_of(LAYERS) {
            return Err(format!("a graph of {n} stages: give a multiple of {LAYERS} from 20 up"));
        }
        let mut stages = match shape {
            Shape::Wide => (0..n).map(|i| vec![source(i)]).collect(),
            Shape::Chain => (0..n).map(|i| vec![if i == 0 { source(0) } else { Input::Output(i - 1) }]).collect(),
            Shape::Layered => layered(n / LAYERS),
        };
        for (stage, name) in [(n - 1, LEAF), (n / 2, MID)] {
            if shape == Shape::Wide {
                stages[stage].clear();
            }
            stages[stage].push(Input::Source(name.to_owned()));
        }
        Ok(Self { shape, stages })
    }

    /// Names of all sources, sorted.
    pub fn sources(&self) -> BTreeSet<&str> {
        self.stages.iter().flatten().filter_map(Input::source).collect()
    }

    /// How many stages hang on a source, directly or not.
    pub fn cone(&self, source: &str) -> usize {
        let mut reached = vec![false; self.stages.len()];
        for (stage, inputs) in self.stages.iter().enumerate() {
            reached[stage] = inputs.iter().any(|input| match input {
                Input::Source(name) => name == source,
                Input::Output(earlier) => reached[*earlier],
            });
        }
        reached.iter().filter(|reached| **reached).count()
    }

    /// The command of a stage whose inputs and output have these paths.
    pub fn command(&self, inputs: &[String], output: &str) -> String {
        let words = inputs.join(" ");
        match self.shape {
            Shape::Layered => format!("md5sum {words} > {output}"),
            _ if inputs.len() == 1 => format!("cp {words} {output}"),
            _ => format!("cat {words} > {output}"),
        }
    }
}

fn source(i: usize) -> Input {
    Input::Source(i.to_string())
}

fn layered(width: usize) -> Vec<Vec<Input>> {
    let mut random = Random::new(SEED);
    let first = (0..width).map(|w| ["a", "b"].map(|side| Input::Source(format!("{w}{side}"))).to_vec());
    let mut stages: Vec<_> = first.collect();
    for layer in 1..LAYERS {
        for _ in 0..width {
            stages.push(random.pair(width).map(|k| Input::Output((layer - 1) * width + k)).to_vec());
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cone(shape: Shape, n: usize, source: &str) -> usize {
        Dag::new(shape, n).unwrap().cone(source)
    }

    #[test]
    fn a_leaf_is_read_by_one_stage() {
        for shape in [Shape::Wide, Shape::Chain, Shape::Layered] {
            assert_eq!(cone(shape, 100, LEAF), 1, "{shape:?}");
        }
    }

    #[test]
    fn the_middle_reaches_what_it_reached_in_earlier_measurements() {
        assert_eq!(cone(Shape::Wide, 1000, MID), 1);
        assert_eq!(cone(Shape::Chain, 1000, MID), 500);
        assert_eq!(cone(Shape::Layered, 1000, MID), 83);
        assert_eq!(cone(Shape::Layered, 10_000, MID), 47);
    }

    #[test]
    fn every_stage_is_after_what_it_reads() {
        let dag = Dag::new(Shape::Layered, 1000).unwrap();
        for (stage, inputs) in dag.stages.iter().enumerate() {
            assert!(inputs.iter().all(|input| !matches!(input, Input::Output(earlier) if *earlier >= stage)));
        }
        assert_eq!(dag.sources().len(), 202);
    }

    #[test]
    fn graphs_that_do_not_come_out_even_are_refused() {
        assert!(Dag::new(Shape::Layered, 105).is_err());
        assert!(Dag::new(Shape::Wide, 0).is_err());
    }
}
