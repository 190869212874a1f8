//! Load and recompute at once: the end of a prefix is loaded while its beginning is computed.
//!
//! Keys and values can be computed from the first token on only, but be loaded from any block. So a prefix on a
//! slow level comes from both ends: the sequence computes forwards, a thread loads backwards, and where the two
//! meet nothing is left to do (after Jin et al., "Compute Or Load KV Cache? Why Not Both?", 2024). Nobody waits for
//! a load: a block that does not come, or is damaged, is computed like the others.
//!
//! What was loaded is held by [`Incoming`] alone until it is attached; the tree learns of it when the sequence's
//! blocks are inserted.

use super::ranking::Use;
use super::{Held, KvCache};
use crate::hash::{BlockHash, Namespace};
use crate::pool::Block;
use crate::prefix::NodeId;
use crate::table::BlockTable;

mod loader;
#[cfg(test)]
mod tests;

use loader::{Job, Loaded, Loader, Reader};

/// A load that takes no longer than this is waited for: computing meanwhile would gain little.
const WAITED_FOR_US: f64 = 50_000.0;
/// What coming from both ends must take of the time of loading alone to be worth it.
const WORTH: f64 = 0.9;

/// Where a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Disk,
    Remote,
    /// It was in RAM, behind others that are not.
    Ram,
}

#[derive(Debug)]
enum Slot {
    /// On its way, or will be; its expected bytes.
    Expected(Source, u64),
    Landed(Source, Block),
    /// To be computed.
    Missing,
}

/// Blocks of a prefix that are being loaded from its end; see the module's description. Dropping it lets
/// go of them.
#[derive(Debug)]
pub struct Incoming {
    /// Index of the first slot's block in the sequence.
    first: usize,
    slots: Vec<Slot>,
    loader: Option<Loader>,
}

impl Incoming {
    /// Blocks that have come and are not attached.
    #[must_use]
    pub fn landed_blocks(&self) -> usize {
        self.landed().count()
    }

    /// Bytes that dropping it frees, besides what is on its way.
    #[must_use]
    pub fn freeable_bytes(&self) -> u64 {
        let own = |block: &&Block| !block.is_shared();
        self.landed().filter(own).map(Block::charged_bytes).sum()
    }

    fn landed(&self) -> impl Iterator<Item = &Block> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Landed(_, block) => Some(block),
            _ => None,
        })
    }

    /// Whether nothing is to be had from it from `block` on.
    fn is_done(&self, block: usize) -> bool {
        let rest = self.slots.get(block.saturating_sub(self.first)..);
        rest.unwrap_or_default()
            .iter()
            .all(|slot| matches!(slot, Slot::Missing))
    }

    /// Index of the first block from which on everything was tried.
    fn tried_from(&self) -> usize {
        let is_expected = |slot: &Slot| matches!(slot, Slot::Expected(..));
        self.first
            + self
                .slots
                .iter()
                .rposition(is_expected)
                .map_or(0, |last| last + 1)
    }

    fn stop(&mut self) {
        self.loader = None;
        for slot in &mut self.slots {
            if matches!(slot, Slot::Expected(..)) {
                *slot = Slot::Missing;
            }
        }
    }
}

impl KvCache {
    /// Like [`attach`](Self::attach), but where what is found is on a slow level and loading its end while its
    /// beginning is computed ends sooner, only what is at hand is attached, and the rest is begun to be loaded.
    ///
    /// The caller then computes up to [`meeting_tokens`](Self::meeting_tokens), and takes what has come with
    /// [`attach_incoming`](Self::attach_incoming), by turns, until that says that it is done.
    ///
    /// # Panics
    /// If the table is not empty.
    pub fn attach_or_load(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        table: &mut BlockTable,
        now_ms: u64,
    ) -> Option<Incoming> {
        self.adopt(namespace, tokens, now_ms);
        let (known, keys, mut slots) = self.survey(namespace, tokens, now_ms);
        let is_remote = |slot: &Slot| matches!(slot, Slot::Expected(Source::Remote, _));
        let has_remote = slots.iter().any(is_remote);
        if !self.should_meet(known, &slots) {
            self.attach(namespace, tokens, table, now_ms);
            return None;
        }
        let block_tokens = self.pool.block_tokens();
        let near = &tokens[..known * block_tokens];
        let path = self.tree.peek(namespace, tokens).full;
        let turn = self.turn_after(path.last().copied());
        let of = Use {
            now_ms,
            turn,
            new_tokens: tokens.len() - path.len() * block_tokens,
        };
        self.touch(&path[known..], of);
        if self.attach_known(namespace, near, table, now_ms) < near.len() {
            return None;
        }
        self.stats.asked_tokens += (tokens.len() - near.len()) as u64;
        // All of them take room, computed or loaded.
        self.make_room(slots.len(), now_ms);
        let jobs = jobs_of(known, &keys, &slots);
        let reader = Reader {
            pool: self.pool.clone(),
            quantized: self.options.quantized.clone(),
            disk: self.options.disk.clone(),
            remote: self.options.remote.clone().filter(|_| has_remote),
            fingerprint: self.options.fingerprint,
            lowest: namespace.quality().lowest(true),
            now_ms,
        };
        if has_remote {
            self.remote_asked_ms = Some(now_ms);
        }
        let loader = Loader::start(reader, jobs, self.measures);
        if loader.is_none() {
            slots.clear();
        }
        Some(Incoming {
            first: known,
            slots,
            loader,
        })
    }

    /// Whether [`attach_or_load`](Self::attach_or_load) would load the end while the beginning is computed.
    pub fn would_meet(&mut self, namespace: &Namespace, tokens: &[u32], now_ms: u64) -> bool {
        self.adopt(namespace, tokens, now_ms);
        let (known, _, slots) = self.survey(namespace, tokens, now_ms);
        self.should_meet(known, &slots)
    }

    /// How many full blocks of `tokens` are at hand, the keys of those behind them, and what is known of these.
    fn survey(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        now_ms: u64,
    ) -> (usize, Vec<BlockHash>, Vec<Slot>) {
        let block_tokens = self.pool.block_tokens();
        let path = self.tree.peek(namespace, tokens).full;
        let is_at_hand = |node: &&_| self.is_in_ram(**node);
        let known = path.iter().take_while(is_at_hand).count();
        let mut hash = namespace.root();
        let keys = tokens.chunks_exact(block_tokens).map(|chunk| {
            hash = hash.child(chunk);
            hash
        });
        let keys: Vec<BlockHash> = keys.skip(known).collect();
        let remote_bytes = (self.pool.block_bytes() as f64 * self.packed_ratio) as u64;
        let unknown = match self.worth_waiting(keys.len(), now_ms) {
            Some(_) if self.is_remote_available(now_ms) => Some(remote_bytes),
            _ => None,
        };
        let elsewhere = || unknown.map_or(Slot::Missing, |b| Slot::Expected(Source::Remote, b));
        let mut slots = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let held = path
                .get(known + index)
                .and_then(|&node| self.tree.get(node));
            slots.push(match held.map(|entry| &entry.held) {
                Some(Held::Ram(block)) if block.level().is_attendable() => {
                    Slot::Landed(Source::Ram, block.clone())
                }
                Some(Held::Disk) => match self.stored_bytes(key) {
                    Some(bytes) => Slot::Expected(Source::Disk, bytes),
                    None => elsewhere(),
                },
                _ => elsewhere(),
            });
        }
        while matches!(slots.last(), Some(Slot::Missing)) {
            slots.pop();
        }
        let is_trimmed = |block: usize| self.is_trimmed(path[block]);
        let near = known * block_tokens;
        if self.pool.startable_tokens(near, is_trimmed) < near {
            // Computing cannot begin behind them: what is there is attached, or nothing.
            slots.clear();
        }
        (known, keys, slots)
    }

    fn is_remote_available(&self, now_ms: u64) -> bool {
        let remote = self.options.remote.as_ref();
        remote.is_some_and(|remote| remote.is_available(now_ms))
    }

    fn stored_bytes(&self, key: &BlockHash) -> Option<u64> {
        let disk = self.options.disk.as_ref()?;
        let meta = disk.meta(key, &self.options.fingerprint)?;
        Some(meta.payload_bytes)
    }

    /// Whether coming from both ends is sooner than loading everything.
    fn should_meet(&self, known: usize, slots: &[Slot]) -> bool {
        let block_tokens = self.pool.block_tokens() as u64;
        let compute_us = |blocks: usize| {
            let (before, tokens) = (known as u64 * block_tokens, blocks as u64 * block_tokens);
            self.costs.recompute.of(before, tokens)
        };
        let load_us: f64 = slots.iter().map(|slot| self.load_us(slot)).sum();
        let both_us = compute_us(self.meeting(known, known, slots) - known);
        let is_long = load_us > WAITED_FOR_US && both_us < WORTH * load_us;
        !slots.is_empty() && (load_us > compute_us(slots.len()) || is_long)
    }

    fn load_us(&self, slot: &Slot) -> f64 {
        match slot {
            Slot::Expected(Source::Remote, bytes) => self.costs.remote_read.of(*bytes),
            Slot::Expected(_, bytes) => self.costs.disk_read.of(*bytes),
            Slot::Landed(..) | Slot::Missing => 0.0,
        }
    }

    /// The block at which computing from `block` on meets loading `slots`, of which the first is block `first`,
    /// from their end: at least one block further.
    fn meeting(&self, first: usize, block: usize, slots: &[Slot]) -> usize {
        let block_tokens = self.pool.block_tokens() as u64;
        let rest = &slots[(block - first).min(slots.len())..];
        let mut load_us: f64 = rest.iter().map(|slot| self.load_us(slot)).sum();
        let mut compute_us = 0.0;
        for (index, slot) in (block..).zip(rest) {
            if index > block && compute_us >= load_us {
                return index;
            }
            let before = index as u64 * block_tokens;
            compute_us += self.costs.recompute.of(before, block_tokens);
            load_us -= self.load_us(slot);
        }
        block + rest.len()
    }

    /// How far a sequence of `computed_tokens` tokens should compute before it looks for what has come: a block
    /// boundary; `None` if there is nothing to come.
    #[must_use]
    pub fn meeting_tokens(&self, incoming: &Incoming, computed_tokens: usize) -> Option<usize> {
        let block_tokens = self.pool.block_tokens();
        let block = computed_tokens.div_ceil(block_tokens).max(incoming.first);
        let tried = incoming.tried_from();
        let meeting = if block < tried {
            let untried = &incoming.slots[..tried - incoming.first];
            self.meeting(incoming.first, block, untried)
        } else {
            let rest = incoming.slots.get(block - incoming.first..)?;
            block
                + rest
                    .iter()
                    .position(|slot| matches!(slot, Slot::Landed(..)))?
        };
        Some(meeting * block_tokens)
    }

    /// Takes what has come, and attaches it if `table` ends where it begins. `most_blocks` are read at most where
    /// the cache does not measure (on the caller's thread, so that one seed is one run). Returns whether there is more
    /// to come.
    pub fn attach_incoming(
        &mut self,
        incoming: &mut Incoming,
        table: &mut BlockTable,
        most_blocks: usize,
    ) -> bool {
        self.land(incoming, most_blocks);
        let block_tokens = self.pool.block_tokens();
        while table.len_tokens() == table.capacity_tokens() {
            let index = table.len_tokens() / block_tokens;
            let slot = index
                .checked_sub(incoming.first)
                .and_then(|slot| incoming.slots.get_mut(slot));
            let Some(slot) = slot.filter(|slot| matches!(slot, Slot::Landed(..))) else {
                break;
            };
            let Slot::Landed(source, block) = std::mem::replace(slot, Slot::Missing) else {
                break;
            };
            let (stats, tokens) = (&mut self.stats, block_tokens as u64);
            match source {
                Source::Disk => stats.disk_hit_tokens += tokens,
                Source::Remote => stats.remote_tokens += tokens,
                Source::Ram if block.level().is_lossy() => stats.lossy_hit_tokens += tokens,
                Source::Ram => stats.hot_hit_tokens += tokens,
            }
            table.attach(block, block_tokens);
        }
        // Where it ended before its time, what is trimmed may be read whole: it is computed.
        table.truncate(table.startable_tokens());
        !incoming.is_done(table.len_tokens().div_ceil(block_tokens))
    }

    /// A block that did not come from disk: for want of room, if its record is still there, or else for good.
    fn note_lost(&mut self, node: NodeId) {
        if self.has_lost_record(node) {
            self.fail(node);
        }
    }

    /// Takes what the loader has.
    fn land(&mut self, incoming: &mut Incoming, most_blocks: usize) {
        let Some(loader) = &mut incoming.loader else {
            return;
        };
        let (loaded, has_ended) = loader.take(most_blocks);
        for Loaded {
            index,
            key,
            block,
            read,
        } in loaded
        {
            if let (true, Some((source, bytes, us))) = (self.measures, read) {
                match source {
                    Source::Remote => self.costs.remote_read.observe(bytes, us),
                    _ => self.costs.disk_read.observe(bytes, us),
                }
            }
            let Some(slot) = incoming.slots.get_mut(index - incoming.first) else {
                continue;
            };
            let source = match slot {
                Slot::Expected(source, _) => *source,
                _ => continue,
            };
            if let (None, Source::Disk, Some(node)) = (&block, source, self.tree.find(&key)) {
                self.note_lost(node);
            }
            *slot = block.map_or(Slot::Missing, |block| Slot::Landed(source, block));
        }
        if has_ended {
            incoming.stop();
        }
    }
}

/// What is to be read, from the last to the first.
fn jobs_of(known: usize, keys: &[BlockHash], slots: &[Slot]) -> Vec<Job> {
    let job = |(index, (slot, &key)): (usize, (&Slot, &BlockHash))| match slot {
        Slot::Expected(source, _) => Some(Job {
            index: known + index,
            key,
            source: *source,
        }),
        _ => None,
    };
    let jobs = slots.iter().zip(keys).enumerate().filter_map(job);
    let mut jobs: Vec<Job> = jobs.collect();
    jobs.reverse();
    jobs
}
