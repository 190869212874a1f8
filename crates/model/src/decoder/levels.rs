//! The lossy levels of KV blocks: the kernels' formats as the memory's codecs.

use std::sync::Arc;

use neap_kernels::Isa;
use neap_kernels::kv::{self, KvBlock, KvFormat, KvLayout};
use neap_memory::codec::{BlockCodec, CodecError, QuantizedLevels, lossy_id};
use neap_memory::level::Level;

use super::weights::KV_FORMAT;

/// The codecs of int8 and int4 for blocks of `layout`.
pub fn quantized_levels(layout: KvLayout, isa: Isa) -> QuantizedLevels {
    let codec =
        |level| -> Option<Arc<dyn BlockCodec>> { Some(Arc::new(KvCodec { layout, isa, level })) };
    QuantizedLevels {
        int8: codec(Level::Int8),
        int4: codec(Level::Int4),
    }
}

/// How the kernels read a block that is held at an attendable level.
///
/// # Panics
/// If the level is not attendable.
pub(super) fn format_of(level: Level) -> KvFormat {
    match level {
        Level::Hot => KV_FORMAT,
        Level::Int8 => KvFormat::Int8,
        Level::Int4 => KvFormat::Int4,
        other => panic!("attention reads no {other} blocks"),
    }
}

/// One lossy level of one model's blocks.
struct KvCodec {
    layout: KvLayout,
    isa: Isa,
    level: Level,
}

impl KvCodec {
    fn format(&self) -> KvFormat {
        format_of(self.level)
    }

    fn error(&self, reason: &'static str) -> CodecError {
        CodecError {
            codec: self.level.name(),
            offset: 0,
            reason,
        }
    }

    fn convert(
        &self,
        from: (KvFormat, &[u8]),
        to: KvFormat,
        out: &mut [u8],
    ) -> Result<usize, CodecError> {
        let (format, bytes) = from;
        if bytes.len() != self.layout.block_bytes(format) {
            return Err(self.error("another length than the block's"));
        }
        let out = out
            .get_mut(..self.layout.block_bytes(to))
            .ok_or_else(|| self.error("too little room"))?;
        kv::convert_block(self.isa, &self.layout, KvBlock { format, bytes }, to, out);
        Ok(out.len())
    }
}

impl BlockCodec for KvCodec {
    fn id(&self) -> u16 {
        lossy_id(self.level)
    }

    fn level(&self) -> Level {
        self.level
    }

    fn max_encoded_bytes(&self, _hot_bytes: usize) -> usize {
        self.layout.block_bytes(self.format())
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        self.convert((KV_FORMAT, hot), self.format(), out)
    }

    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        match level {
            Level::Hot => self.encode(bytes, out),
            Level::Int8 if self.level == Level::Int4 => {
                self.convert((KvFormat::Int8, bytes), KvFormat::Int4, out)
            }
            _ => Err(self.error("takes no block of this level")),
        }
    }

    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError> {
        if hot.len() != self.layout.block_bytes(KV_FORMAT) {
            return Err(self.error("another length than the block's"));
        }
        self.convert((self.format(), encoded), KV_FORMAT, hot)?;
        Ok(())
    }
}
