//! Lets the blocks of tables sink that no engine looks after.

use std::sync::Arc;

use neap_memory::{BlockCodec, BlockTable, Budget, Buffer, ChargeKind, Level, OverBudget};

use crate::loading::Parts;

/// Holds the old blocks of tables at one level.
pub struct Sinker {
    codec: Option<Arc<dyn BlockCodec>>,
    /// One encoded block.
    scratch: Buffer<u8>,
}

impl Sinker {
    /// Lets blocks sink to `level`; none if it is hot.
    pub fn new(parts: &Parts, level: Level) -> Result<Self, OverBudget> {
        let budget: &Budget = &parts.budget;
        let codec = parts.quantized.at(level).cloned();
        let bytes = codec
            .as_ref()
            .map_or(0, |codec| codec.max_encoded_bytes(parts.kv.block_bytes()));
        Ok(Self {
            codec,
            scratch: Buffer::zeroed(budget, ChargeKind::Scratch, bytes)?,
        })
    }

    /// Whether anything sinks.
    pub fn is_lossy(&self) -> bool {
        self.codec.is_some()
    }

    /// Lets all blocks sink but the first and those of the newest tokens.
    pub fn sink(&mut self, table: &mut BlockTable) {
        if let Some(codec) = &self.codec {
            table.sink(table.sinkable_blocks(), &**codec, &mut self.scratch);
        }
    }
}
