//! Prefixes that are loaded from their end while their beginning is computed.

use neap_model::decoder::Decoder;

use super::Engine;

impl<D: Decoder> Engine<D> {
    /// Attaches what was loaded, where sequences have come to it.
    pub(super) fn attach_incoming(&mut self) {
        for sequence in &mut self.running {
            sequence.attach_incoming(&mut self.cache, self.now_ms);
        }
    }

    /// Lets go of what was loaded and no sequence has come to: it is computed. Whether there was anything.
    pub(super) fn let_incoming_go(&mut self) -> bool {
        let had = self.running.iter_mut().map(|s| s.incoming.take().is_some());
        had.fold(false, |any, had| any | had)
    }
}
