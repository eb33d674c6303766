//! Events to text: a live picture for a terminal, plain lines for a pipe, JSON lines for programs.

pub mod ci;
pub mod colour;
pub mod grid;
mod live;
mod plain;
pub mod words;

use std::io::{IsTerminal, Write};

use trestle_cache::Content;
use trestle_engine::event::Event;
use trestle_engine::stage::Format;

use crate::fail::Fail;
use crate::project::Session;

/// Larger tables are not shown.
const MAX_TABLE_BYTES: usize = 16 << 10;

/// Something that shows events.
pub trait Render: Send {
    /// Shows one.
    fn event(&mut self, event: &Event);
    /// Shows a remark that is no event.
    fn note(&mut self, text: &str);
}

/// One JSON value a line.
pub struct Json;

impl Render for Json {
    fn event(&mut self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // A reader that has gone does not stop the run.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }

    fn note(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

/// What suits the place where standard output goes.
pub fn human() -> Box<dyn Render> {
    if std::io::stdout().is_terminal() { Box::new(live::Live::new()) } else { Box::new(plain::Plain::default()) }
}

/// Shows the tables that the last stages of the run made: they are what it was for.
pub fn tables(session: &Session, wanted: &dyn Fn(usize) -> bool) -> Result<(), Fail> {
    for &id in session.compiled.shown().iter().filter(|&&id| wanted(id)) {
        let stage = session.compiled.stage(id).map_err(trestle_engine::error::Error::from)?;
        for (output, slot) in stage.outputs.values().zip(session.compiled.outputs_of(id)) {
            let is_text = output.format == Format::TABLE && output.path.ends_with(".md");
            match session.planner.output(slot) {
                Some(Content::Blob { id, size, .. }) if is_text && size <= MAX_TABLE_BYTES as u64 => {
                    crate::print(&format!("\n{}", String::from_utf8_lossy(&session.cache.read_blob(&id)?)))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}
