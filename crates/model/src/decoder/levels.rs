//! The lossy levels of KV blocks: the kernels' formats as the memory's codecs.
//!
//! A block may hold fewer layers than the model has: the first so many, what is left of one that was trimmed. Its length
//! tells how many, at every level, and as layers are outermost in all formats, what is encoded of them begins what is
//! encoded of all.

use std::sync::Arc;

use neap_kernels::Isa;
use neap_kernels::kv::{self, CodeBits, KvBlock, KvFormat, KvLayout};
use neap_memory::codec::{BlockCodec, CodecError, INT4_PACKED_ID, QuantizedLevels, lossy_id};
use neap_memory::level::Level;

use super::weights::KV_FORMAT;

/// The codecs of int8 and int4 for blocks of `layout`.
pub fn quantized_levels(layout: KvLayout, isa: Isa) -> QuantizedLevels {
    let codec =
        |level| -> Option<Arc<dyn BlockCodec>> { Some(Arc::new(KvCodec { layout, isa, level })) };
    QuantizedLevels {
        int8: codec(Level::Int8),
        int4: codec(Level::Int4),
        packed: Some(Arc::new(PackedInt4 { layout, isa })),
    }
}

/// The layout of the first so many layers, which blocks of `bytes` bytes have; none if that is no whole number of them.
fn layout_of(layout: &KvLayout, format: KvFormat, bytes: usize) -> Option<KvLayout> {
    let layers = bytes / layout.layer_range(format, 0).len();
    let part = KvLayout::new(layers, layout.kv_heads(), layout.head_dim()).ok()?;
    (layers <= layout.layers() && part.block_bytes(format) == bytes).then_some(part)
}

/// Packed blocks of four-bit values. Blocks whose codes pack to [`PACKED_BITS`] a value keep them; others are made coarser,
/// once: they come back as int4 blocks that pack so from then on.
struct PackedInt4 {
    layout: KvLayout,
    isa: Isa,
}

/// Bits a value, all counted, above which codes are made coarser.
const PACKED_BITS: f64 = 3.2;
/// Information of coarser codes. Chosen by what perplexity and recall of the shipped model lose (`neap eval kv`): what
/// stands beside the codes takes the rest of [`PACKED_BITS`].
const COARSE: CodeBits = CodeBits {
    keys: 2.8,
    values: 2.8,
};

impl PackedInt4 {
    fn error(&self, offset: usize, reason: &'static str) -> CodecError {
        CodecError {
            codec: "packed int4",
            offset,
            reason,
        }
    }

    fn pack(&self, layout: &KvLayout, block: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        kv::pack_int4(self.isa, layout, block, out).ok_or_else(|| self.error(0, "too little room"))
    }

    fn layout(&self, format: KvFormat, bytes: usize) -> Result<KvLayout, CodecError> {
        layout_of(&self.layout, format, bytes)
            .ok_or_else(|| self.error(0, "another length than the block's"))
    }
}

impl BlockCodec for PackedInt4 {
    fn name(&self) -> &'static str {
        "packed int4"
    }

    fn id(&self) -> u16 {
        INT4_PACKED_ID
    }

    fn version(&self) -> u16 {
        u16::from(kv::PACK_VERSION)
    }

    fn level(&self) -> Level {
        Level::Packed
    }

    fn decodes_to(&self) -> Level {
        Level::Int4
    }

    fn max_encoded_bytes(&self, _hot_bytes: usize) -> usize {
        kv::max_packed_bytes(&self.layout)
    }

    fn scratch_bytes(&self, _hot_bytes: usize) -> usize {
        kv::packing_scratch_bytes(&self.layout) + self.layout.block_bytes(KvFormat::Int4)
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        self.encode_from(Level::Hot, hot, out)
    }

    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        if !level.is_attendable() {
            return Err(self.error(0, "takes no block of this level"));
        }
        let format = format_of(level);
        let layout = self.layout(format, bytes.len())?;
        if format == KvFormat::Int4 {
            let len = self.pack(&layout, bytes, out)?;
            let values = 2 * layout.layers() * layout.width() * kv::BLOCK_TOKENS;
            if 8.0 * len as f64 <= PACKED_BITS * values as f64 {
                return Ok(len);
            }
        }
        let mut coarse = vec![0; layout.block_bytes(KvFormat::Int4)];
        let block = KvBlock { format, bytes };
        kv::coarsen_block(self.isa, &layout, block, COARSE, &mut coarse);
        self.pack(&layout, &coarse, out)
    }

    fn decode(&self, encoded: &[u8], block: &mut [u8]) -> Result<(), CodecError> {
        let layout = self.layout(KvFormat::Int4, block.len())?;
        kv::unpack_int4(self.isa, &layout, encoded, block)
            .map_err(|error| self.error(error.offset, error.reason))
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
        let layout = layout_of(&self.layout, format, bytes.len())
            .ok_or_else(|| self.error("another length than the block's"))?;
        let out = out
            .get_mut(..layout.block_bytes(to))
            .ok_or_else(|| self.error("too little room"))?;
        kv::convert_block(self.isa, &layout, KvBlock { format, bytes }, to, out);
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

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        let layout = layout_of(&self.layout, KV_FORMAT, hot_bytes).unwrap_or(self.layout);
        layout.block_bytes(self.format())
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
        let layers = |format, bytes: &[u8]| layout_of(&self.layout, format, bytes.len());
        if layers(KV_FORMAT, hot).is_none()
            || layers(KV_FORMAT, hot) != layers(self.format(), encoded)
        {
            return Err(self.error("another length than the block's"));
        }
        self.convert((self.format(), encoded), KV_FORMAT, hot)?;
        Ok(())
    }
}
