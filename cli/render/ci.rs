//! Plain lines, and beside them annotations that say why stages run and what failed: for CI.

use trestle_engine::event::Event;

use super::Render;
use super::plain::Plain;
use super::words;
use crate::github::{Annotation, Level};
use crate::plan::MOST_NOTICES;

/// See the module.
#[derive(Default)]
pub struct Ci {
    plain: Plain,
    notices: usize,
}

impl Render for Ci {
    fn event(&mut self, event: &Event) {
        self.plain.event(event);
        match event {
            // What was executed is in the log; more notices than these are not shown anyway.
            Event::Running { stage, reasons, .. } if self.notices < MOST_NOTICES - 1 => {
                self.notices += 1;
                let message = format!("stage {stage} runs because\n{}", words::reason_lines(reasons));
                self.annotate(Level::Notice, &format!("{stage} has to run"), &message);
            }
            Event::Failed { stage, failure } => self.annotate(Level::Error, &format!("{stage} failed"), &words::failure(stage, failure)),
            Event::Summary(summary) => self.annotate(Level::Notice, "trestle run", &words::summary(summary)),
            _ => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.plain.note(text);
    }
}

impl Ci {
    fn annotate(&mut self, level: Level, title: &str, message: &str) {
        self.plain.note(&Annotation { level, place: None, title, message }.to_string());
    }
}
