//! The last resort before recomputing: blocks that other processes, or earlier ones, wrote to the remote level.

use std::time::{Duration, Instant};

use super::attach::Undecoded;
use super::{Held, KvCache};
use crate::codec::{BlockCodec, Packed};
use crate::disk::Meta;
use crate::governor::Occasion;
use crate::hash::{BlockHash, Namespace};
use crate::pool::Block;
use crate::prefix::NodeId;
use crate::remote::{Next, Reading, Run};

#[cfg(test)]
mod tests;

/// A store that lost to recomputing is tried again after so long: it may have become faster.
const TRY_AGAIN_MS: u64 = 60_000;
/// Longest time that one prompt waits for the store.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long blocks that have come are entered at once: running sequences wait for it.
const MOST_AT_ONCE: Duration = Duration::from_millis(20);

/// Blocks of a prompt that the remote level was asked for. Dropping it ends the reads.
#[derive(Debug)]
pub struct Asked {
    namespace: Namespace,
    /// Up to the last block that is asked for.
    tokens: Vec<u32>,
    /// Blocks before the first that is asked for.
    known: usize,
    reading: Reading,
    began: Instant,
    bytes: u64,
}

impl KvCache {
    /// Asks the remote level for the full blocks of `tokens` that follow what is cached, if that is expected to be faster
    /// than computing them. They are read behind the caller's back: [`take_remote`](Self::take_remote) enters what has
    /// come.
    pub fn ask_remote(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        now_ms: u64,
    ) -> Option<Asked> {
        let remote = self.options.remote.clone()?;
        self.adopt(namespace, tokens, now_ms);
        let block_tokens = self.pool.block_tokens();
        let path = self.tree.peek(namespace, tokens).full;
        let known = self.known_blocks(&path);
        let mut hash = match known.checked_sub(1).map(|last| self.tree.info(path[last])) {
            Some(Some(info)) => info.hash,
            _ => namespace.root(),
        };
        let chunks = tokens.chunks_exact(block_tokens).skip(known);
        let keys: Vec<BlockHash> = chunks
            .map(|chunk| {
                hash = hash.child(chunk);
                hash
            })
            .collect();
        let end = (known + keys.len()) * block_tokens;
        let run = Run {
            fingerprint: self.options.fingerprint,
            deadline: self.worth_waiting(keys.len(), now_ms)?,
            keys,
            max_payload_bytes: Packed.max_encoded_bytes(self.pool.block_bytes()),
        };
        let began = Instant::now();
        let reading = remote.begin(run, now_ms)?;
        self.remote_asked_ms = Some(now_ms);
        Some(Asked {
            namespace: *namespace,
            tokens: tokens[..end].to_vec(),
            known,
            reading,
            began,
            bytes: 0,
        })
    }

    /// Enters blocks that have come into the tree: as many as take about 20 ms. Waits no longer than `patience` for the
    /// first. Whether there may come more; the reads end by the time that computing the blocks would take.
    pub fn take_remote(&mut self, asked: &mut Asked, now_ms: u64, patience: Duration) -> bool {
        let start = Instant::now();
        let mut blocks = Vec::new();
        let mut goes_on = true;
        // Making room must not let go of the prefix that these blocks follow.
        let path = self.tree.peek(&asked.namespace, &asked.tokens).full;
        let claims: Vec<_> = path.iter().map(|&node| self.claim(node)).collect();
        while goes_on && start.elapsed() < MOST_AT_ONCE {
            let wait = if blocks.is_empty() {
                patience
            } else {
                Duration::ZERO
            };
            match asked.reading.next(wait) {
                Next::Later => break,
                Next::Over => goes_on = false,
                Next::Block(object) => {
                    let (meta, payload) = (object.meta(), object.payload());
                    let block = self.block_from_remote(&asked.namespace, meta, payload, now_ms);
                    goes_on = block.is_some();
                    asked.bytes += if goes_on { meta.payload_bytes } else { 0 };
                    blocks.extend(block);
                }
            }
        }
        drop(claims);
        let before = asked.known;
        asked.known += blocks.len();
        if !blocks.is_empty() {
            let end = asked.known * self.pool.block_tokens();
            self.enter_remote(
                &asked.namespace,
                &asked.tokens[..end],
                (before, &blocks),
                now_ms,
            );
        }
        goes_on &= asked.known * self.pool.block_tokens() < asked.tokens.len();
        if self.measures && !goes_on {
            let us = asked.began.elapsed().as_secs_f64() * 1e6;
            self.costs.remote_read.observe(asked.bytes, us);
        }
        goes_on
    }

    /// Asks the remote level and waits until all has come that will: for callers that have nothing else to do.
    pub fn adopt_remote(&mut self, namespace: &Namespace, tokens: &[u32], now_ms: u64) {
        if let Some(mut asked) = self.ask_remote(namespace, tokens, now_ms) {
            while self.take_remote(&mut asked, now_ms, LONGEST_WAIT) {}
        }
    }

    /// Blocks of a path that are held somewhere, up to the first that is not.
    fn known_blocks(&self, path: &[NodeId]) -> usize {
        let is_held = |node: &&_| {
            let entry = self.tree.get(**node);
            entry.is_some_and(|entry| !matches!(entry.held, Held::Gone))
        };
        path.iter().take_while(is_held).count()
    }

    /// Enters `blocks`, the first of which is block `known` of `tokens`; they end where `tokens` end.
    fn enter_remote(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        (known, blocks): (usize, &[Block]),
        now_ms: u64,
    ) {
        let block_tokens = self.pool.block_tokens();
        self.stats.remote_tokens += (blocks.len() * block_tokens) as u64;
        let (entered, first_use) =
            self.enter(namespace, tokens, known * block_tokens, now_ms, |index| {
                let block = blocks.get(index.wrapping_sub(known));
                (block.map_or(Held::Gone, |b| Held::Ram(b.clone())), false)
            });
        // Names of blocks that were let go of were there already, without the bytes.
        for (&node, block) in entered.iter().skip(known).zip(blocks) {
            let entry = self.tree.get(node);
            if entry.is_some_and(|entry| matches!(entry.held, Held::Gone)) {
                self.hold(node, Held::Ram(block.clone()));
            }
        }
        self.rank(&entered, first_use);
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
