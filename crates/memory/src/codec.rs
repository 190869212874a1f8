//! Codecs: from the bytes of a hot block to those of a lower level, and back.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::hash::Fingerprint;
use crate::level::Level;

pub mod fake;
pub mod packed;

pub use packed::Packed;

/// Number of [`Plain`] in stored records.
pub const PLAIN_ID: u16 = 0;
/// Number of [`Packed`] in stored records; 1 was an earlier one.
pub const PACKED_ID: u16 = 5;
/// Number of the codec of [`Level::Int8`] in stored records.
pub const INT8_ID: u16 = 2;
/// Number of the codec of [`Level::Int4`] in stored records.
pub const INT4_ID: u16 = 3;
/// Number of the codec of packed blocks of four-bit values in stored records.
pub const INT4_PACKED_ID: u16 = 4;

/// The [`id`](BlockCodec::id) of a codec of a lossy level: [`INT8_ID`] or [`INT4_ID`].
#[must_use]
pub fn lossy_id(level: Level) -> u16 {
    if level == Level::Int8 {
        INT8_ID
    } else {
        INT4_ID
    }
}

/// Encoded bytes that are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("codec {codec}: {reason} at byte {offset}")]
pub struct CodecError {
    /// The codec's name.
    pub codec: &'static str,
    /// Where in the encoded bytes.
    pub offset: usize,
    /// What is wrong.
    pub reason: &'static str,
}

/// Turns hot blocks into another form and back.
///
/// Of a block that may be [trimmed](crate::pool::Window), a codec of an attendable level encodes the head to the first
/// bytes of what it encodes the whole to: [`max_encoded_bytes`](Self::max_encoded_bytes) of the head.
///
/// Implementations bound what they write by [`max_encoded_bytes`](Self::max_encoded_bytes), so that a
/// caller can charge scratch before it encodes, and never panic on bytes that they did not write.
pub trait BlockCodec: Send + Sync {
    /// Name in messages: its level's, unless there are several of that.
    fn name(&self) -> &'static str {
        self.level().name()
    }

    /// Number in stored records; never reused for another form.
    fn id(&self) -> u16;

    /// Version of its form: what another one wrote is a miss, since it is part of the [`Fingerprint`].
    fn version(&self) -> u16 {
        1
    }

    /// The level that its output is held at.
    fn level(&self) -> Level;

    /// The level of the blocks that decoding gives: hot, unless they are to be attended to at a lossy level.
    fn decodes_to(&self) -> Level {
        Level::Hot
    }

    /// Bytes that encoding `hot_bytes` takes at most.
    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize;

    /// Bytes that encoding or decoding allocates for itself meanwhile, for the caller to charge.
    fn scratch_bytes(&self, _hot_bytes: usize) -> usize {
        0
    }

    /// Encodes `hot` into the start of `out` and returns the bytes written.
    ///
    /// # Errors
    /// If `out` is shorter than [`max_encoded_bytes`](Self::max_encoded_bytes).
    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError>;

    /// Encodes a block that is at `level` already: to sink further.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or if the codec does not take that level.
    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        if level == Level::Hot {
            return self.encode(bytes, out);
        }
        Err(CodecError {
            codec: self.name(),
            offset: 0,
            reason: "encodes hot blocks only",
        })
    }

    /// Decodes `encoded` into all of `block`, of the level that it [`decodes_to`](Self::decodes_to).
    ///
    /// # Errors
    /// If the bytes are not an encoding of exactly `block.len()` bytes. `block` then holds nothing of use.
    fn decode(&self, encoded: &[u8], block: &mut [u8]) -> Result<(), CodecError>;
}

/// The codecs of the levels that are attended to and lossy, each there or not. Their encodings of one block
/// size all have one length: [`max_encoded_bytes`](BlockCodec::max_encoded_bytes).
///
/// Whoever knows what the bytes of a block mean makes them; this crate does not.
#[derive(Clone, Default)]
pub struct QuantizedLevels {
    /// Codec of [`Level::Int8`], numbered [`INT8_ID`].
    pub int8: Option<Arc<dyn BlockCodec>>,
    /// Codec of [`Level::Int4`], numbered [`INT4_ID`]; it takes hot and int8 blocks.
    pub int4: Option<Arc<dyn BlockCodec>>,
    /// Codec that packs blocks of four-bit values, numbered [`INT4_PACKED_ID`]: it takes blocks of every attendable level
    /// and decodes to int4. Not among those of [`iter`](Self::iter).
    pub packed: Option<Arc<dyn BlockCodec>>,
}

impl QuantizedLevels {
    /// The codec of `level`.
    #[must_use]
    pub fn at(&self, level: Level) -> Option<&Arc<dyn BlockCodec>> {
        match level {
            Level::Int8 => self.int8.as_ref(),
            Level::Int4 => self.int4.as_ref(),
            _ => None,
        }
    }

    /// Those of the attendable levels that are there, from dear to cheap.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn BlockCodec>> {
        self.int8.iter().chain(&self.int4)
    }
}

impl fmt::Debug for QuantizedLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.iter().chain(&self.packed);
        f.debug_list().entries(all.map(|c| c.id())).finish()
    }
}

/// What the bytes of stored blocks depend on: a model, the order of its layers in a block where that is not their own, and
/// the forms that blocks are stored in.
#[must_use]
pub fn fingerprint(model: &[u8; 32], order: &[u8], levels: &QuantizedLevels) -> Fingerprint {
    let mut forms = Vec::new();
    let lossless: [&dyn BlockCodec; 2] = [&Plain, &Packed];
    let lossy = levels.iter().chain(&levels.packed).map(|codec| &**codec);
    for codec in lossless.into_iter().chain(lossy) {
        forms.extend_from_slice(&codec.id().to_le_bytes());
        forms.extend_from_slice(&codec.version().to_le_bytes());
    }
    let (model, forms) = (("model", &model[..]), ("codecs", &forms[..]));
    match order {
        [] => Fingerprint::of_parts(&[model, forms]),
        order => Fingerprint::of_parts(&[model, ("order", order), forms]),
    }
}

/// The bytes as they are: what hot blocks are stored as when packing does not pay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl BlockCodec for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn id(&self) -> u16 {
        PLAIN_ID
    }

    fn level(&self) -> Level {
        Level::Hot
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        hot_bytes
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        let Some(out) = out.get_mut(..hot.len()) else {
            return Err(CodecError {
                codec: self.name(),
                offset: 0,
                reason: "too little room to encode",
            });
        };
        out.copy_from_slice(hot);
        Ok(hot.len())
    }

    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError> {
        if encoded.len() != hot.len() {
            return Err(CodecError {
                codec: self.name(),
                offset: encoded.len().min(hot.len()),
                reason: "another length than the block's",
            });
        }
        hot.copy_from_slice(encoded);
        Ok(())
    }
}
