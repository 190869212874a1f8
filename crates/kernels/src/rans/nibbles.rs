//! Rows of thirty-two four-bit symbols, each row coded by one of [`MODELS`] models.
//!
//! Lane `i` of a vector holds the state that codes symbol `i` of every row, so a row is decoded by one step of a vector:
//! a symbol is looked up by the state's low byte in 256 slots, which four registers hold. A state has 16 bits and is
//! refilled byte by byte; the probabilities are multiples of 1/256. So coarse a state costs 0.005 bits a symbol.
//!
//! ```text
//! [0, 64)   32 states, u16 little-endian, each at least 256
//! [64, …)   the bytes that refill them, in the order of rows, then of lanes
//! ```
//!
//! A model gives symbol `s` a probability like that of a normal variable of a mean and a deviation, between `s - 1/2` and
//! `s + 1/2` roughly: by the density at `s`, and at least 1/256. Their tables are made in integers, so that they are the
//! same everywhere.

use super::{RansError, bad};
use crate::Isa;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod models;
#[cfg(test)]
mod tests;

pub use models::MODELS;
use models::{Model, Models, SHAPES};

/// Symbols of a row.
pub const LANES: usize = 32;
/// Values of a symbol.
pub const SYMBOLS: usize = 16;
/// One row of symbols, each below [`SYMBOLS`].
pub type Row = [u8; LANES];

const SCALE_BITS: u32 = 8;
/// The least state.
const LOW: u16 = 1 << 8;
/// Bytes of the states.
pub const HEAD_BYTES: usize = 2 * LANES;

fn models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| Models::new(&SHAPES))
}

/// The model that codes these symbols, counted by value, in the fewest bits, and their sixty-fourths.
#[inline(always)]
pub fn best_model(counts: &[u8; SYMBOLS]) -> (u8, u16) {
    models().best(counts)
}

/// Encodes rows by the models chosen for them into the start of `out`. Returns the bytes written; `None` if they do not
/// fit with a row's room to spare.
///
/// # Panics
/// If there are not as many models as rows, one does not exist, or a symbol is none.
pub fn encode(rows: &[Row], chosen: &[u8], out: &mut [u8]) -> Option<usize> {
    assert_eq!(rows.len(), chosen.len(), "a model for each row");
    if out.len() < HEAD_BYTES {
        return None;
    }
    let models = models();
    let mut states = [u32::from(LOW); LANES];
    // Written backwards from the end, then moved to its place.
    let mut at = out.len();
    for (row, &model) in rows.iter().zip(chosen).rev() {
        at = encode_row(
            row,
            models.get(model),
            &mut states,
            &mut out[HEAD_BYTES..],
            at - HEAD_BYTES,
        )? + HEAD_BYTES;
    }
    let stream_bytes = out.len() - at;
    out.copy_within(at.., HEAD_BYTES);
    for (slot, state) in out[..HEAD_BYTES].chunks_exact_mut(2).zip(states) {
        slot.copy_from_slice(&(state as u16).to_le_bytes());
    }
    Some(HEAD_BYTES + stream_bytes)
}

/// Encodes one row before what stands at `at`; where it begins then.
fn encode_row(
    row: &Row,
    model: &Model,
    states: &mut [u32; LANES],
    out: &mut [u8],
    mut at: usize,
) -> Option<usize> {
    if at < LANES {
        return None;
    }
    for lane in (0..LANES).rev() {
        let symbol = usize::from(row[lane]);
        let frequency = u32::from(model.frequencies[symbol]);
        let mut state = states[lane];
        if state >> SCALE_BITS >= frequency {
            at -= 1;
            out[at] = state as u8;
            state >>= 8;
        }
        // Exact: the state is below 2^16 and the reciprocal a 2^24th part, rounded up.
        let quotient = ((u64::from(state) * u64::from(model.reciprocals[symbol])) >> 24) as u32;
        let rest = state - quotient * frequency;
        states[lane] = (quotient << SCALE_BITS) + rest + u32::from(model.starts[symbol]);
    }
    Some(at)
}

/// Decodes rows in the order in which they were given to [`encode`].
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    states: [u16; LANES],
    is_wide: bool,
}

impl<'a> Decoder<'a> {
    /// Reads the states.
    ///
    /// # Errors
    /// If they are cut off, or one is too small to be one.
    pub fn new(isa: Isa, bytes: &'a [u8]) -> Result<Self, RansError> {
        let head = bytes
            .first_chunk::<HEAD_BYTES>()
            .ok_or(bad(bytes.len(), "the states are cut off"))?;
        let mut states = [0; LANES];
        for (i, (state, slot)) in states.iter_mut().zip(head.as_chunks::<2>().0).enumerate() {
            *state = u16::from_le_bytes(*slot);
            if *state < LOW {
                return Err(bad(2 * i, "a state is out of range"));
            }
        }
        Ok(Self {
            bytes,
            at: HEAD_BYTES,
            states,
            is_wide: is_wide(isa),
        })
    }

    /// Decodes the next rows, by their models.
    ///
    /// # Errors
    /// If the stream is cut off, or a model does not exist. The rows then hold nothing of use.
    ///
    /// # Panics
    /// If there are not as many models as rows.
    pub fn decode(&mut self, chosen: &[u8], rows: &mut [Row]) -> Result<(), RansError> {
        assert_eq!(rows.len(), chosen.len(), "a model for each row");
        if chosen.iter().any(|&model| usize::from(model) >= MODELS) {
            return Err(bad(self.at, "a row has a model that does not exist"));
        }
        #[cfg(target_arch = "x86_64")]
        if self.is_wide {
            // SAFETY: `is_wide` says that the machine has AVX-512 F, BW, VL, VBMI and VBMI2.
            unsafe { avx512::decode(self, chosen, rows) };
            return self.check_end();
        }
        self.decode_plain(chosen, rows);
        self.check_end()
    }

    fn check_end(&self) -> Result<(), RansError> {
        if self.at > self.bytes.len() {
            return Err(bad(self.bytes.len(), "the stream is cut off"));
        }
        Ok(())
    }

    /// The reference. Reads zeros behind the end, and counts them.
    fn decode_plain(&mut self, chosen: &[u8], rows: &mut [Row]) {
        let models = models();
        for (row, &model) in rows.iter_mut().zip(chosen) {
            let model = models.get(model);
            for (symbol, state) in row.iter_mut().zip(&mut self.states) {
                let slot = *state & 0xFF;
                *symbol = model.slots[usize::from(slot)];
                let frequency = u16::from(model.frequencies[usize::from(*symbol)]);
                let start = u16::from(model.starts[usize::from(*symbol)]);
                *state = frequency * (*state >> SCALE_BITS) + (slot - start);
                if *state < LOW {
                    let next = self.bytes.get(self.at).copied().unwrap_or(0);
                    *state = *state << 8 | u16::from(next);
                    self.at += 1;
                }
            }
        }
    }

    /// Ends decoding.
    ///
    /// # Errors
    /// If the stream does not end here.
    pub fn finish(self) -> Result<(), RansError> {
        if self.at != self.bytes.len() || self.states != [LOW; LANES] {
            return Err(bad(self.at, "the stream does not end where it should"));
        }
        Ok(())
    }
}

/// Whether the machine has what the vector decoder needs and `isa` allows it.
fn is_wide(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) && isa.is_available() {
        return is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512vbmi2");
    }
    let _ = isa;
    false
}
