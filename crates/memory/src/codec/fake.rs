//! Stand-ins for the codecs of int8 and int4, for tests and simulations: they keep every second, or every
//! fourth, byte of a block. What is lost is known, and an int8 block sinks to the very int4 block that the
//! hot one does.

use std::sync::Arc;

use super::{BlockCodec, CodecError, INT4_PACKED_ID, QuantizedLevels, lossy_id};
use crate::level::Level;

/// Keeps every `stride`-th byte.
#[derive(Clone, Copy, Debug)]
pub struct EveryNth {
    level: Level,
    stride: usize,
}

/// Both stand-ins.
#[must_use]
pub fn levels() -> QuantizedLevels {
    QuantizedLevels {
        int8: Some(Arc::new(EveryNth::INT8)),
        int4: Some(Arc::new(EveryNth::INT4)),
        packed: None,
    }
}

/// Both stand-ins, and one for packed int4 blocks.
#[must_use]
pub fn levels_and_packed() -> QuantizedLevels {
    QuantizedLevels {
        packed: Some(Arc::new(Trimmed)),
        ..levels()
    }
}

/// Int4 blocks without the zeros at their end.
#[derive(Clone, Copy, Debug)]
pub struct Trimmed;

impl BlockCodec for Trimmed {
    fn id(&self) -> u16 {
        INT4_PACKED_ID
    }

    fn level(&self) -> Level {
        Level::Packed
    }

    fn decodes_to(&self) -> Level {
        Level::Int4
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        EveryNth::INT4.max_encoded_bytes(hot_bytes)
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        self.encode_from(Level::Hot, hot, out)
    }

    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        let len = match level {
            Level::Int4 => EveryNth::INT4.take(bytes, 1, out)?,
            _ => EveryNth::INT4.encode_from(level, bytes, out)?,
        };
        let zeros = out[..len].iter().rev().take_while(|&&byte| byte == 0);
        // A block of nothing is none.
        Ok((len - zeros.count()).max(1))
    }

    fn decode(&self, encoded: &[u8], block: &mut [u8]) -> Result<(), CodecError> {
        let Some((start, zeros)) = block.split_at_mut_checked(encoded.len()) else {
            return Err(EveryNth::INT4.error(encoded.len(), "longer than the block"));
        };
        start.copy_from_slice(encoded);
        zeros.fill(0);
        Ok(())
    }
}

impl EveryNth {
    /// Every second byte.
    pub const INT8: Self = Self {
        level: Level::Int8,
        stride: 2,
    };
    /// Every fourth byte.
    pub const INT4: Self = Self {
        level: Level::Int4,
        stride: 4,
    };

    /// Byte `at` of a hot block as it reads at this level: one that was lost reads as 0.
    #[must_use]
    pub fn read(self, encoded: &[u8], at: usize) -> u8 {
        if at.is_multiple_of(self.stride) {
            encoded[at / self.stride]
        } else {
            0
        }
    }

    fn error(&self, offset: usize, reason: &'static str) -> CodecError {
        CodecError {
            codec: self.name(),
            offset,
            reason,
        }
    }

    fn take(&self, bytes: &[u8], step: usize, out: &mut [u8]) -> Result<usize, CodecError> {
        let len = bytes.len().div_ceil(step);
        let Some(out) = out.get_mut(..len) else {
            return Err(self.error(0, "too little room to encode"));
        };
        for (out, byte) in out.iter_mut().zip(bytes.iter().step_by(step)) {
            *out = *byte;
        }
        Ok(len)
    }
}

impl BlockCodec for EveryNth {
    fn id(&self) -> u16 {
        lossy_id(self.level)
    }

    fn level(&self) -> Level {
        self.level
    }

    fn max_encoded_bytes(&self, hot_bytes: usize) -> usize {
        hot_bytes.div_ceil(self.stride)
    }

    fn encode(&self, hot: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        self.take(hot, self.stride, out)
    }

    fn encode_from(&self, level: Level, bytes: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        match (level, self.level) {
            (Level::Hot, _) => self.encode(bytes, out),
            (Level::Int8, Level::Int4) => self.take(bytes, 2, out),
            _ => Err(self.error(0, "takes no block of this level")),
        }
    }

    fn decode(&self, encoded: &[u8], hot: &mut [u8]) -> Result<(), CodecError> {
        if encoded.len() != self.max_encoded_bytes(hot.len()) {
            return Err(self.error(encoded.len(), "another length than the block's"));
        }
        for (at, out) in hot.iter_mut().enumerate() {
            *out = self.read(encoded, at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_int4_give_the_same_bytes() {
        let hot: Vec<u8> = (0..64).collect();
        let (mut int8, mut direct, mut further) = (vec![0; 32], vec![0; 16], vec![0; 16]);
        assert_eq!(EveryNth::INT8.encode(&hot, &mut int8), Ok(32));
        assert_eq!(EveryNth::INT4.encode(&hot, &mut direct), Ok(16));
        let further_bytes = EveryNth::INT4.encode_from(Level::Int8, &int8, &mut further);
        assert_eq!((further_bytes, &further), (Ok(16), &direct));
        let mut back = vec![0xEE; 64];
        EveryNth::INT4.decode(&direct, &mut back).unwrap();
        assert!((0..64).all(|i| back[i] == if i % 4 == 0 { i as u8 } else { 0 }));
        assert!(
            EveryNth::INT8
                .encode_from(Level::Int4, &direct, &mut int8)
                .is_err()
        );
        assert!(EveryNth::INT8.decode(&direct, &mut back).is_err());
    }
}
