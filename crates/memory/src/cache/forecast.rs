//! What a scheduler asks before it decides: what a prompt would find, and what could be freed.

use super::{Held, KvCache};
use crate::hash::Namespace;
use crate::pool::KvPool;

/// What the cache holds of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Tokens that [`KvCache::attach`] would find, if nothing has to be let go of and nothing is damaged.
    pub tokens: usize,
    /// Full blocks among these that tables use at this moment: attaching them takes no room.
    pub shared_blocks: usize,
}

impl KvCache {
    /// What [`attach`](Self::attach) would find. Counts as no use.
    #[must_use]
    pub fn forecast(&self, namespace: &Namespace, tokens: &[u32]) -> Forecast {
        let found = self.tree.peek(namespace, tokens);
        let held = |&node: &_| self.tree.get(node).map(|entry| &entry.held);
        let usable = |held: &Held| !matches!(held, Held::Gone);
        let full = found
            .full
            .iter()
            .map_while(|node| held(node).filter(|h| usable(h)));
        let mut forecast = Forecast::default();
        let mut whole = 0;
        for held in full {
            whole += 1;
            if let Held::Ram(block) = held
                && block.is_shared()
            {
                forecast.shared_blocks += 1;
            }
        }
        forecast.tokens = whole * self.pool.block_tokens();
        if whole == found.full.len()
            && let Some(partial) = found.partial
            && held(&partial.node).is_some_and(usable)
        {
            forecast.tokens += partial.tokens;
        }
        forecast
    }

    /// Bytes in RAM of cached blocks that no table uses: what [`free`](Self::free) could give back at
    /// most.
    #[must_use]
    pub fn freeable_bytes(&self) -> u64 {
        let bytes = |node| match self.tree.get(node).map(|entry| &entry.held) {
            Some(Held::Ram(block)) if !block.is_shared() => block.charged_bytes(),
            _ => 0,
        };
        self.tree.nodes().map(bytes).sum()
    }

    /// The pool whose blocks are cached.
    #[must_use]
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }
}
