//! Codecs: from the bytes of a hot block to those of a lower level, and back.
#![forbid(unsafe_code)]

use crate::level::Level;

pub mod packed;
mod rans;

pub use packed::Packed;

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
/// Implementations bound what they write by [`max_encoded_bytes`](Self::max_encoded_bytes), so that a
/// caller can charge scratch before it encodes, and never panic on bytes that they did not write.
pub trait BlockCodec: Send + Sync {
    /// Name in messages.
    fn name(&self) -> &'static str;

    /// Number in stored records; never reused for another form.
    fn id(&self) -> u16;

    /// The level that its output is held at.
    fn level(&self) -> Level;

    /// Whether decoding gives back the very bytes.
    fn is_lossless(&self) -> bool;

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

    /// Decodes `encoded` into all of `hot`.
    ///
    /// # Errors
    /// If the bytes are not an encoding of exactly `hot.len()` bytes. `hot` then holds nothing of use.
    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError>;
}

/// The bytes as they are: what hot blocks are stored as when packing does not pay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl BlockCodec for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn id(&self) -> u16 {
        0
    }

    fn level(&self) -> Level {
        Level::Hot
    }

    fn is_lossless(&self) -> bool {
        true
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
