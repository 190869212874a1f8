//! When others leave so little memory that nobody can go on: then all wait, since what the operator allows is enough.

use std::time::Duration;

use neap_model::decoder::Decoder;

use super::Engine;

/// How long to wait before a step is tried again that [did nothing](Engine::is_pressed).
pub const PRESSED_PAUSE: Duration = Duration::from_millis(10);

impl<D: Decoder> Engine<D> {
    /// Whether the last step did nothing, since pressure from outside leaves no room for even one sequence: try again in a
    /// moment.
    pub fn is_pressed(&self) -> bool {
        self.is_pressed
    }

    /// Nobody can go on: is that for want of what is allowed, or for pressure from outside?
    pub(super) fn look_for_pressure(&mut self, is_starved: bool) {
        let was_pressed = self.is_pressed;
        let (limit_bytes, allowed_bytes) = (self.budget.limit(), self.budget.allowed());
        self.is_pressed = is_starved && limit_bytes < allowed_bytes;
        if self.is_pressed && !was_pressed {
            tracing::warn!(
                limit_bytes,
                allowed_bytes,
                "others leave too little memory for any sequence to go on: waiting until they leave more"
            );
        }
    }
}
