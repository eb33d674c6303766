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
use crate::project::Project;

/// Format of the outputs that are shown at the end of a run.
const TABLE: Format = Format("table");
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
pub fn tables(project: &Project, wanted: &[bool]) -> Result<(), Fail> {
    let readers = project.pipeline.downstream();
    let fates = trestle_engine::plan::plan(&project.pipeline, wanted, &project.cache, &project.last)?;
    for (id, fate) in fates {
        let is_last = readers[id].iter().all(|&reader| !wanted[reader]);
        let trestle_engine::plan::Fate::Hit(record) = fate else { continue };
        if !is_last {
            continue;
        }
        for (name, output) in &project.pipeline.stages[id].outputs {
            match record.outputs.get(name) {
                Some(Content::Blob { id, size, .. })
                    if output.format == TABLE && output.path.ends_with(".md") && *size <= MAX_TABLE_BYTES as u64 =>
                {
                    crate::print(&format!("\n{}", String::from_utf8_lossy(&project.cache.read_blob(id)?)))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}
