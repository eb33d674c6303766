//! A live picture for a terminal: finished stages scroll up, running ones show a bar with step, loss and the time that is left.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use trestle_engine::event::Event;
use trestle_engine::stage::Progress;

use super::Render;
use super::colour::{Colour, Colours};
use super::words;

const TICK: Duration = Duration::from_millis(120);

/// See the module.
pub struct Live {
    bars: MultiProgress,
    total: ProgressBar,
    running: HashMap<String, ProgressBar>,
    cached: u64,
}

impl Live {
    /// An empty picture.
    pub fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let total = bars.add(ProgressBar::new(0));
        total.set_style(style("{bar:30.green/dim} {pos}/{len} stages  {elapsed}  {msg:.dim}"));
        Self { bars, total, running: HashMap::new(), cached: 0 }
    }

    fn line(&self, line: &str) {
        // A terminal that is gone shows nothing.
        let _ = self.bars.println(line);
    }

    fn begin(&mut self, stage: &str, reasons: &str) {
        let bar = self.bars.insert_before(&self.total, ProgressBar::new_spinner());
        bar.set_style(style("{spinner:.cyan} {prefix:.bold}  {msg:.dim}  {elapsed:.dim}"));
        bar.set_prefix(stage.to_owned());
        bar.set_message(reasons.to_owned());
        bar.enable_steady_tick(TICK);
        self.running.insert(stage.to_owned(), bar);
    }

    fn progress(&self, stage: &str, progress: &Progress) {
        let Some(bar) = self.running.get(stage) else { return };
        if bar.length() != Some(progress.total) {
            bar.set_length(progress.total);
            bar.set_style(style("{spinner:.cyan} {prefix:.bold}  {bar:20.cyan/dim} {pos}/{len}  {msg}  {eta:.dim} left"));
            // What was done before, by a run that was killed, says nothing of the speed of this one.
            bar.set_position(progress.step);
            bar.reset_eta();
        }
        bar.set_position(progress.step);
        let loss = progress.loss.map(|loss| format!("loss {loss:.4}"));
        bar.set_message(loss.or_else(|| progress.note.clone()).unwrap_or_default());
    }

    fn end(&mut self, stage: &str, line: &str) {
        if let Some(bar) = self.running.remove(stage) {
            bar.finish_and_clear();
        }
        self.line(line);
        self.total.inc(1);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("━━╌").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "))
}

fn paint(colour: Colour, text: &str) -> String {
    Colours::stdout().paint(colour, text)
}

impl Render for Live {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { stages, .. } => {
                self.total.set_length(*stages as u64);
                self.total.enable_steady_tick(TICK);
            }
            Event::Cached { .. } => {
                self.cached += 1;
                self.total.inc(1);
                self.total.set_message(format!("{} cached", self.cached));
            }
            Event::Running { stage, reasons, .. } => self.begin(stage, &words::reasons(reasons)),
            Event::Progress { stage, progress } => self.progress(stage, progress),
            Event::Output { stage, line } => self.line(&format!("{} {line}", paint(Colour::Faint, &format!("{stage} |")))),
            Event::Done { stage, seconds, metrics, .. } => {
                let time = words::duration(Duration::from_secs_f64(*seconds));
                let line = format!("{} {stage}  {}  {}", paint(Colour::Good, "✔"), paint(Colour::Faint, &time), words::metrics(metrics));
                self.end(stage, line.trim_end());
            }
            Event::Failed { stage, failure } => {
                let line = format!("{} {}", paint(Colour::Bad, "✘"), words::failure(stage, failure));
                self.end(stage, &line);
            }
            Event::Retrying { stage, failure, seconds, .. } => {
                let line = format!("{} {}", paint(Colour::Open, "↻"), words::retry(stage, failure, *seconds));
                if let Some(bar) = self.running.remove(stage) {
                    bar.finish_and_clear();
                }
                self.line(&line);
            }
            Event::Skipped { stage, because } => self.end(stage, &format!("{} {stage}: {because} failed", paint(Colour::Open, "–"))),
            Event::Cancelled { stage } => self.end(stage, &format!("{} {stage}: interrupted", paint(Colour::Open, "–"))),
            Event::Summary(summary) => {
                self.total.finish_and_clear();
                self.line(&words::summary(summary));
            }
        }
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }
}
