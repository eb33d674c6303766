//! Plain lines, for pipes and logs: what starts, what is done, and now and then how far it is.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use trestle_engine::event::Event;
use trestle_engine::stage::Progress;

use super::Render;
use super::words;

/// How often a running stage says how far it is.
const INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub struct Plain {
    said: HashMap<String, Said>,
}

/// What was said of a running stage.
struct Said {
    last: Instant,
    /// When it first told how far it was, and how far that was.
    first: Option<(Instant, u64)>,
}

impl Render for Plain {
    fn event(&mut self, event: &Event) {
        let line = match event {
            Event::Started { pipeline, stages, cpus } => {
                format!("{pipeline}: {}, {}", words::count(*stages, "stage"), words::count(*cpus, "thread"))
            }
            Event::Cached { .. } => return,
            Event::Running { stage, reasons, .. } => {
                self.said.insert(stage.clone(), Said { last: Instant::now(), first: None });
                format!("run     {stage}: {}", words::reasons(reasons))
            }
            Event::Progress { stage, progress } => match self.progress(stage, progress) {
                Some(line) => line,
                None => return,
            },
            Event::Output { stage, line } => format!("{stage} | {line}"),
            Event::Done { stage, seconds, metrics, .. } => {
                format!("done    {stage}  {}  {}", words::duration(Duration::from_secs_f64(*seconds)), words::metrics(metrics))
                    .trim_end()
                    .to_owned()
            }
            Event::Failed { stage, failure } => words::failure(stage, failure),
            Event::Retrying { stage, failure, seconds, .. } => words::retry(stage, failure, *seconds),
            Event::Skipped { stage, because } => format!("skipped {stage}: {because} failed"),
            Event::Cancelled { stage } => format!("cancelled {stage}"),
            Event::Summary(summary) => words::summary(summary),
        };
        // A reader that has gone does not stop the run.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

impl Plain {
    fn progress(&mut self, stage: &str, progress: &Progress) -> Option<String> {
        let said = self.said.get_mut(stage)?;
        let (began, at) = *said.first.get_or_insert((Instant::now(), progress.step));
        if said.last.elapsed() < INTERVAL {
            return None;
        }
        said.last = Instant::now();
        let left = left(began.elapsed(), progress.step.saturating_sub(at), progress.total.saturating_sub(progress.step));
        let left = left.map(|left| format!("  about {} left", words::duration(left))).unwrap_or_default();
        let loss = progress.loss.map(|loss| format!("  loss {loss:.4}")).unwrap_or_default();
        Some(format!("        {stage}  {}/{}{loss}{left}", progress.step, progress.total))
    }
}

/// How long the steps that are left will take if each takes as long as those that are done.
fn left(took: Duration, done: u64, left: u64) -> Option<Duration> {
    (done > 0 && left > 0).then(|| took.mul_f64(left as f64 / done as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_a_step_as_what_is_done() {
        assert_eq!(left(Duration::from_secs(10), 20, 60), Some(Duration::from_secs(30)));
        assert_eq!((left(Duration::from_secs(10), 0, 60), left(Duration::from_secs(10), 20, 0)), (None, None));
    }
}
