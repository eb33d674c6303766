//! What many stages have alike, kept once: names, places and whole sets of outputs.

use std::collections::HashSet;
use std::sync::Arc;

use crate::pipeline::Outputs;

/// The values so far. Nothing depends on their order.
#[derive(Debug, Default)]
pub struct Shared {
    texts: HashSet<Arc<str>>,
    outputs: HashSet<Arc<Outputs>>,
}

impl Shared {
    /// The one copy of a text.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    /// The one copy of a set of outputs.
    pub fn outputs(&mut self, outputs: Outputs) -> Arc<Outputs> {
        if let Some(known) = self.outputs.get(&outputs) {
            return Arc::clone(known);
        }
        let new = Arc::new(outputs);
        self.outputs.insert(Arc::clone(&new));
        new
    }
}
