//! Errors on their way to the terminal, and the exit code that they mean.

use std::process::ExitCode;

use miette::{Diagnostic, NamedSource, Report};
use trestle_engine::problem::Problems;

/// The pipeline, the command line or the place is wrong.
pub const WRONG: u8 = 2;

/// A stage failed, or is not what it should be.
pub const FAILED: u8 = 1;

/// Why a command ends early.
pub enum Fail {
    /// Mistakes in a pipeline file, with its name and text.
    Pipeline { name: String, text: String, problems: Problems },
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

    /// Prints it; the exit code says that something is wrong.
    pub fn print(self) -> ExitCode {
        match self {
            Self::Pipeline { name, text, problems } => {
                let count = problems.iter().count();
                for problem in problems {
                    let report = Report::new(problem).with_source_code(NamedSource::new(&name, text.clone()).with_language("YAML"));
                    eprintln!("{report:?}");
                }
                if count > 1 {
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
