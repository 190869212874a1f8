//! The last resort before recomputing: blocks that other processes, or earlier ones, wrote to the remote level.

use std::time::{Duration, Instant};

use super::attach::Undecoded;
use super::{Held, KvCache};
use crate::codec::{BlockCodec, Packed};
use crate::disk::Meta;
use crate::governor::Occasion;
use crate::hash::{BlockHash, Namespace};
use crate::pool::Block;
use crate::remote::{RemoteLevel, Run};

#[cfg(test)]
mod tests;

/// A store that lost to recomputing is tried again after so long: it may have become faster.
const TRY_AGAIN_MS: u64 = 60_000;
/// Longest time that one prompt waits for the store.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl KvCache {
    /// Reads full blocks of `tokens` from the remote level where the match would end, for as long as that is
    /// faster than computing them, and enters them into the tree.
    pub(super) fn adopt_remote(&mut self, namespace: &Namespace, tokens: &[u32], now_ms: u64) {
        let Some(remote) = self.options.remote.clone() else {
            return;
        };
        let block_tokens = self.pool.block_tokens();
        let path = self.tree.peek(namespace, tokens).full;
        let is_held = |node: &&_| {
            let entry = self.tree.get(**node);
            entry.is_some_and(|entry| !matches!(entry.held, Held::Gone))
        };
        let known = path.iter().take_while(is_held).count();
        let mut hash = match known.checked_sub(1).map(|last| self.tree.info(path[last])) {
            Some(Some(info)) => info.hash,
            _ => namespace.root(),
        };
        let keys: Vec<BlockHash> = tokens
            .chunks_exact(block_tokens)
            .skip(known)
            .map(|chunk| {
                hash = hash.child(chunk);
                hash
            })
            .collect();
        let Some(deadline) = self.worth_waiting(keys.len(), now_ms) else {
            return;
        };
        // Making room must not let go of the prefix that these blocks follow.
        let claims: Vec<_> = path[..known].iter().map(|&n| self.claim(n)).collect();
        let blocks = self.fetch_remote(&remote, namespace, (&keys, deadline), now_ms);
        drop(claims);
        if blocks.is_empty() {
            return;
        }
        self.stats.remote_tokens += (blocks.len() * block_tokens) as u64;
        let end = (known + blocks.len()) * block_tokens;
        let entered = self.enter(
            namespace,
            &tokens[..end],
            known * block_tokens,
            now_ms,
            |index| {
                let block = blocks.get(index.wrapping_sub(known));
                (block.map_or(Held::Gone, |b| Held::Ram(b.clone())), false)
            },
        );
        // Names of blocks that were let go of were there already, without the bytes.
        for (&node, block) in entered.iter().skip(known).zip(&blocks) {
            let entry = self.tree.get(node);
            if entry.is_some_and(|entry| matches!(entry.held, Held::Gone)) {
                self.let_go(node, Held::Ram(block.clone()));
            }
        }
    }

    /// How long to wait for so many blocks: no longer than computing them would take. `None` if the store was
    /// slower than that lately.
    pub(super) fn worth_waiting(&self, blocks: usize, now_ms: u64) -> Option<Duration> {
        if blocks == 0 {
            return None;
        }
        let tokens = blocks * self.pool.block_tokens();
        let anew_us = self.costs.recompute.of(0, tokens as u64);
        let bytes = (blocks * self.pool.block_bytes()) as f64 * self.packed_ratio;
        let wait_us = self.costs.remote_read.of(bytes as u64);
        let was_asked_lately = self
            .remote_asked_ms
            .is_some_and(|asked| now_ms < asked.saturating_add(TRY_AGAIN_MS));
        (wait_us < anew_us || !was_asked_lately)
            .then(|| Duration::from_secs_f64(anew_us / 1e6).min(LONGEST_WAIT))
    }

    fn fetch_remote(
        &mut self,
        remote: &RemoteLevel,
        namespace: &Namespace,
        (keys, deadline): (&[BlockHash], Duration),
        now_ms: u64,
    ) -> Vec<Block> {
        let fingerprint = self.options.fingerprint;
        let run = Run {
            fingerprint: &fingerprint,
            keys,
            max_payload_bytes: Packed.max_encoded_bytes(self.pool.block_bytes()),
            deadline,
        };
        let mut blocks = Vec::new();
        let start = Instant::now();
        let got = remote.fetch(&run, now_ms, |_, meta, payload| {
            let block = self.block_from_remote(namespace, meta, payload, now_ms);
            let is_taken = block.is_some();
            blocks.extend(block);
            is_taken
        });
        if got.was_asked {
            self.remote_asked_ms = Some(now_ms);
        }
        if self.measures && got.was_asked {
            let us = start.elapsed().as_secs_f64() * 1e6;
            self.costs.remote_read.observe(got.bytes, us);
        }
        blocks
    }

    fn block_from_remote(
        &mut self,
        namespace: &Namespace,
        meta: &Meta,
        payload: &[u8],
        now_ms: u64,
    ) -> Option<Block> {
        if meta.tokens as usize != self.pool.block_tokens() {
            return None;
        }
        let lowest = namespace.quality().lowest(true);
        match self.decode_stored(lowest, meta, payload) {
            Ok(block) => Some(block),
            Err(Undecoded::Bad) => None,
            Err(Undecoded::NoRoom) => {
                let bytes = self.pool.charged_block_bytes();
                self.free(bytes, Occasion::Admission, now_ms);
                self.decode_stored(lowest, meta, payload).ok()
            }
        }
    }
}
