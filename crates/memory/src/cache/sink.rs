//! Blocks that change their level in RAM, also while sequences attend to them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;

use super::free::Scope;
use super::trim::trimmable_blocks;
use super::{Held, KvCache};
use crate::codec::{BlockCodec, PACKED_ID, Packed};
use crate::governor::Occasion;
use crate::hash::Namespace;
use crate::level::Level;
use crate::pool::Block;
use crate::prefix::NodeId;
use crate::table::BlockTable;

/// The tables of running sequences, and where each block stands in them.
pub(super) struct Running<'r, 't> {
    tables: &'r mut [&'t mut BlockTable],
    places: HashMap<usize, Places>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Tables and places in them.
    at: Vec<(usize, usize)>,
    /// One of the tables needs the block hot: it is its first, or among its newest.
    stays_hot: bool,
    /// One of the tables reads the block whole, or may soon.
    stays_whole: bool,
}

impl<'r, 't> Running<'r, 't> {
    pub(super) fn new(tables: &'r mut [&'t mut BlockTable]) -> Self {
        let mut places: HashMap<usize, Places> = HashMap::default();
        for (number, table) in tables.iter().enumerate() {
            let (sinkable, trimmable) = (table.sinkable_blocks(), trimmable_blocks(table));
            for (index, block) in table.blocks().iter().enumerate() {
                let here = places.entry(block.key()).or_default();
                here.at.push((number, index));
                here.stays_hot |= !sinkable.contains(&index);
                here.stays_whole |= !trimmable.contains(&index);
            }
        }
        Self { tables, places }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// One block of one table, to sink whatever its place.
    fn of_one(tables: &'r mut [&'t mut BlockTable], index: usize) -> Self {
        let places = Places {
            at: vec![(0, index)],
            stays_hot: false,
            stays_whole: true,
        };
        let places = HashMap::from_iter([(tables[0].blocks()[index].key(), places)]);
        Self { tables, places }
    }

    /// Whether the tree and these tables are all that claim the block, and none needs it hot.
    pub(super) fn may_sink(&self, block: &Block) -> bool {
        self.places
            .get(&block.key())
            .is_some_and(|places| !places.stays_hot && block.claims() == places.at.len() + 1)
    }

    /// Whether the tree and these tables are all that claim the block, and none reads it whole again.
    pub(super) fn may_trim(&self, block: &Block) -> bool {
        self.places
            .get(&block.key())
            .is_some_and(|places| !places.stays_whole && block.claims() == places.at.len() + 1)
    }

    pub(super) fn count(&self, block: &Block) -> usize {
        self.places.get(&block.key()).map_or(0, |p| p.at.len())
    }

    /// Lets go of the tables' claims on a block, until [`fill`](Self::fill) puts another in its place; the
    /// first block of each table stands there meanwhile.
    pub(super) fn take(&mut self, block: &Block) -> Places {
        let places = self.places.remove(&block.key()).unwrap_or_default();
        for &(table, index) in &places.at {
            drop(self.tables[table].take_block(index));
        }
        places
    }

    pub(super) fn fill(&mut self, places: Places, block: &Block) {
        for &(table, index) in &places.at {
            drop(self.tables[table].swap_block(index, block.clone()));
        }
        self.places.insert(block.key(), places);
    }
}

impl KvCache {
    /// Frees about `bytes` of what `running` tables hold by letting old blocks sink, where their quality
    /// allows it; cached blocks that no table uses stay. Returns the bytes given back to the budget.
    pub fn sink_running(
        &mut self,
        bytes: u64,
        now_ms: u64,
        running: &mut [&mut BlockTable],
    ) -> u64 {
        let wanted = (bytes, Occasion::Admission);
        self.free_within(Scope::Running, wanted, now_ms, running)
    }

    /// Lets `blocks` of `table`, which holds `tokens` in order and whose full blocks were inserted, sink to
    /// `level`, or as far as the namespace's quality allows. A form that is cached already is taken over.
    /// A block for which there is no room, or no codec, stays as it is.
    ///
    /// # Panics
    /// If one of them is not a full block of the table.
    pub fn sink(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        table: &mut BlockTable,
        blocks: Range<usize>,
        level: Level,
    ) {
        assert!(
            blocks.end <= table.len_full_blocks(),
            "only full blocks sink"
        );
        let level = level.min(namespace.quality().lowest(true));
        let end = (blocks.end * self.pool.block_tokens()).min(tokens.len());
        if !level.is_lossy() {
            return;
        }
        let path = self.tree.peek(namespace, &tokens[..end]).full;
        for index in blocks {
            let Some(&node) = path.get(index) else {
                return;
            };
            match self.claim(node) {
                Some(cached)
                    if cached.level().is_attendable() && cached.covers(&table.blocks()[index]) =>
                {
                    if !cached.is_same(&table.blocks()[index]) {
                        drop(table.swap_block(index, cached));
                    }
                }
                _ => {
                    self.take_over(node, &table.share_block(index));
                    self.rank_unused(node);
                }
            }
            if table.blocks()[index].level() < level {
                let mut tables = [&mut *table];
                self.demote(
                    node,
                    (level, Level::Hot),
                    &mut Running::of_one(&mut tables, index),
                );
            }
        }
    }

    /// Re-encodes the block of `node` at `level`, in the tree and in the `running` tables. Whether it did. What is
    /// packed may come back at `lowest`.
    pub(super) fn demote(
        &mut self,
        node: NodeId,
        (level, lowest): (Level, Level),
        running: &mut Running<'_, '_>,
    ) -> bool {
        let Some(block) = self.claim(node) else {
            return false;
        };
        let start = Instant::now();
        let packing = self.packing(lowest);
        let encoded = match level {
            Level::Packed if block.claims() != 2 => return false,
            Level::Packed => match &packing {
                Some(codec) => codec.encode_from(block.level(), block.bytes(), &mut self.scratch),
                None => Packed.encode_from(block.level(), block.bytes(), &mut self.scratch),
            },
            _ => match self.options.quantized.at(level) {
                Some(codec) if block.level() < level => {
                    codec.encode_from(block.level(), block.bytes(), &mut self.scratch)
                }
                _ => return false,
            },
        };
        let Ok(bytes) = encoded else {
            return false;
        };
        let us = start.elapsed().as_secs_f64() * 1e6;
        // The tree's claim, this one, and those of the tables.
        let sunk = if block.claims() == 2 + running.count(&block) {
            let places = running.take(&block);
            self.put(node, Held::Gone);
            let sunk = self.pool.replace(block, level, &self.scratch[..bytes]);
            let is_sunk = sunk.is_ok();
            let block = sunk.unwrap_or_else(|block| block);
            running.fill(places, &block);
            self.put(node, Held::Ram(block.clone()));
            is_sunk.then_some(block)
        } else {
            self.sink_copy(node, level, (bytes, &block), running)
        };
        let Some(sunk) = sunk else {
            return false;
        };
        let packed_by = packing.map_or(PACKED_ID, |codec| codec.id());
        if let Some(entry) = self.tree.get_mut(node) {
            entry.packed_by = packed_by;
        }
        self.count_sunk((level, packed_by), &sunk, us);
        true
    }

    /// The codec that packs blocks that may come back at `lowest`; `None` if only without loss.
    fn packing(&self, lowest: Level) -> Option<Arc<dyn BlockCodec>> {
        let codec = self.options.quantized.packed.clone()?;
        (lowest >= codec.decodes_to()).then_some(codec)
    }

    /// Somebody else attends to the block as it is: both forms are held until he lets go.
    fn sink_copy(
        &mut self,
        node: NodeId,
        level: Level,
        (bytes, block): (usize, &Block),
        running: &mut Running<'_, '_>,
    ) -> Option<Block> {
        let form = (level, block.is_trimmed());
        let mut sunk = self.pool.allocate_form(form, bytes).ok()?;
        sunk.bytes_mut()?.copy_from_slice(&self.scratch[..bytes]);
        let places = running.take(block);
        running.fill(places, &sunk);
        self.put(node, Held::Ram(sunk.clone()));
        Some(sunk)
    }

    fn count_sunk(&mut self, (level, packed_by): (Level, u16), sunk: &Block, us: f64) {
        match level {
            Level::Int8 => self.stats.int8_blocks += 1,
            Level::Int4 => self.stats.int4_blocks += 1,
            _ => self.stats.packed_blocks += 1,
        }
        if level == Level::Packed {
            let hot_bytes = self.charged_hot_bytes(sunk);
            let ratio = sunk.charged_bytes() as f64 / hot_bytes as f64;
            let mean = match packed_by {
                PACKED_ID => &mut self.packed_ratio,
                _ => &mut self.packed_int4_ratio,
            };
            *mean += 0.1 * (ratio - *mean);
        }
        let hot_bytes = sunk.hot_bytes() as u64;
        match level {
            _ if !self.measures => {}
            Level::Packed => self.costs.pack.observe(hot_bytes, us),
            _ => self.costs.quantize.observe(hot_bytes, us),
        }
    }
}
