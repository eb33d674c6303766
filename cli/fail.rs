//! Errors on their way to the terminal, and the exit code that they mean.

use std::process::ExitCode;

use miette::{Diagnostic, NamedSource, Report};
use trestle_engine::problem::{Problem, Problems, Span};
use trestle_engine::source::Files;

/// The pipeline, the command line or the place is wrong.
pub const WRONG: u8 = 2;

/// A stage failed, or is not what it should be.
pub const FAILED: u8 = 1;

/// Why a command ends early.
pub enum Fail {
    /// Mistakes in a pipeline, with the files that it was read from.
    Pipeline { files: Files, problems: Problems },
    /// Results are not what the lock says.
    Locked(String),
    /// Any other error.
    Other(Report),
}

impl Fail {
    /// An error that is only a sentence.
    pub fn message(text: impl Into<String>) -> Self {
        Self::Other(miette::miette!("{}", text.into()))
    }

    /// A sentence with a way out.
    pub fn with_help(text: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other(miette::miette!(help = help.into(), "{}", text.into()))
    }

    /// Whether what an earlier run left of the pipeline is damaged: then the pipeline file itself still serves.
    pub fn is_damaged_plan(&self) -> bool {
        use trestle_engine::error::Error;
        matches!(self, Self::Other(report) if matches!(report.downcast_ref::<Error>(), Some(Error::Compiled(_))))
    }

    /// Prints it; the exit code says that something is wrong.
    pub fn print(self) -> ExitCode {
        match self {
            Self::Pipeline { files, problems } => {
                let count = problems.iter().count();
                for problem in problems {
                    eprintln!("{:?}", located(problem, &files));
                }
                if count > 1 {
                    let name = files.first().map_or("", |source| &source.name);
                    eprintln!("{name}: {count} mistakes; nothing was run");
                }
            }
            Self::Locked(complaint) => {
                let help = "`trestle run` without `--locked`, then `trestle lock`, makes this the locked state";
                eprintln!("{:?}", miette::miette!(help = help, "{complaint}"));
                return ExitCode::from(FAILED);
            }
            Self::Other(report) => eprintln!("{report:?}"),
        }
        ExitCode::from(WRONG)
    }
}

impl<E: Diagnostic + Send + Sync + 'static> From<E> for Fail {
    fn from(error: E) -> Self {
        Self::Other(Report::new(error))
    }
}

/// A mistake with the text that its main place lies in. Places in other texts are told in words.
fn located(mut problem: Problem, files: &Files) -> Report {
    let main = problem.labels.first().and_then(|(span, _)| files.locate(*span)).or_else(|| files.locate(Span::default()));
    let Some((source, _)) = main else { return Report::new(problem) };
    let mut elsewhere = Vec::new();
    for (span, text) in std::mem::take(&mut problem.labels) {
        match files.locate(span) {
            Some((other, inside)) if other.base == source.base => problem.labels.push((inside, text)),
            Some((other, inside)) => elsewhere.push(format!("{}:{}: {text}", other.name, line(&other.text, inside.start()))),
            None => {}
        }
    }
    if !elsewhere.is_empty() {
        problem.help = Some(problem.help.into_iter().chain(elsewhere).collect::<Vec<_>>().join("\n"));
    }
    Report::new(problem).with_source_code(NamedSource::new(&source.name, source.text.clone()).with_language("YAML"))
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}
