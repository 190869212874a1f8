//! Lets the blocks of tables sink that no engine looks after.

use std::sync::Arc;

use neap_memory::codec::CodecError;
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
        Self::by(parts, parts.quantized.at(level).cloned())
    }

    /// Lets blocks sink to what `codec` makes of them; none without one.
    pub fn by(parts: &Parts, codec: Option<Arc<dyn BlockCodec>>) -> Result<Self, OverBudget> {
        let budget: &Budget = &parts.budget;
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

/// Int4 blocks as they come back after they were packed.
pub struct PackedAndBack {
    packed: Arc<dyn BlockCodec>,
    int4: Arc<dyn BlockCodec>,
}

impl PackedAndBack {
    /// Of a model's codecs.
    pub fn new(parts: &Parts) -> Option<Self> {
        Some(Self {
            packed: parts.quantized.packed.clone()?,
            int4: parts.quantized.at(Level::Int4)?.clone(),
        })
    }
}

impl BlockCodec for PackedAndBack {
    fn id(&self) -> u16 {
        self.int4.id()
    }

    fn level(&self) -> Level {
        Level::Int4
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        self.int4.max_encoded_bytes(hot_bytes)
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        self.encode_from(Level::Hot, hot, out)
    }

    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        let mut packed = vec![0; self.packed.max_encoded_bytes(0)];
        let len = self.packed.encode_from(level, bytes, &mut packed)?;
        let bytes = self.int4.max_encoded_bytes(0);
        let out = out.get_mut(..bytes).ok_or(CodecError {
            codec: self.name(),
            offset: 0,
            reason: "too little room",
        })?;
        self.packed.decode(&packed[..len], out)?;
        Ok(bytes)
    }

    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError> {
        self.int4.decode(encoded, hot)
    }
}
