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
    said: HashMap<String, Instant>,
}

impl Render for Plain {
    fn event(&mut self, event: &Event) {
        let line = match event {
            Event::Started { pipeline, stages, cpus } => format!("{pipeline}: {stages} stages, {cpus} threads"),
            Event::Cached { .. } => return,
            Event::Running { stage, reasons, .. } => {
                self.said.insert(stage.clone(), Instant::now());
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
        if said.elapsed() < INTERVAL {
            return None;
        }
        *said = Instant::now();
        let loss = progress.loss.map(|loss| format!("  loss {loss:.4}")).unwrap_or_default();
        Some(format!("        {stage}  {}/{}{loss}", progress.step, progress.total))
    }
}
