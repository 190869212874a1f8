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
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod models;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::best_model as best_model_avx2;
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
pub fn best_model(counts: &[u8; SYMBOLS]) -> (u8, u16) {
    models().best(counts)
}

/// Encodes rows by the models chosen for them into the start of `out`. Returns the bytes written; `None` if they do not
/// fit with a row's room to spare. The same bytes on every instruction set.
///
/// # Panics
/// If there are not as many models as rows, one does not exist, or a symbol is none.
pub fn encode(isa: Isa, rows: &[Row], chosen: &[u8], out: &mut [u8]) -> Option<usize> {
    assert_eq!(rows.len(), chosen.len(), "a model for each row");
    if out.len() < HEAD_BYTES {
        return None;
    }
    let mut states = [LOW; LANES];
    // Written backwards from the end, then moved to its place.
    let body = &mut out[HEAD_BYTES..];
    let end = body.len();
    let at = encode_rows(isa, rows, chosen, &mut states, body)?;
    body.copy_within(at.., 0);
    for (slot, state) in out[..HEAD_BYTES].chunks_exact_mut(2).zip(states) {
        slot.copy_from_slice(&state.to_le_bytes());
    }
    Some(HEAD_BYTES + end - at)
}

/// Encodes rows into the end of `out`; where they begin then.
fn encode_rows(
    isa: Isa,
    rows: &[Row],
    chosen: &[u8],
    states: &mut [u16; LANES],
    out: &mut [u8],
) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if isa.includes_avx2() {
        // SAFETY: the machine has AVX2.
        return unsafe { avx2::encode(rows, chosen, states, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if isa.includes_neon() {
        // SAFETY: the machine has NEON.
        return unsafe { neon::encode(rows, chosen, states, out) };
    }
    let _ = isa;
    encode_plain(rows, chosen, states, out)
}

/// The reference.
fn encode_plain(
    rows: &[Row],
    chosen: &[u8],
    states: &mut [u16; LANES],
    out: &mut [u8],
) -> Option<usize> {
    encode_each(rows, chosen, out, |row, model, room| {
        encode_row(row, model, states, room)
    })
}

/// Encodes rows into the end of `out`, the last first, each by what writes one to the end of its room and says how many
/// bytes it has taken; where they begin then.
#[inline(always)]
fn encode_each(
    rows: &[Row],
    chosen: &[u8],
    out: &mut [u8],
    mut encode_row: impl FnMut(&Row, &Model, &mut [u8; LANES]) -> usize,
) -> Option<usize> {
    let models = models();
    let mut at = out.len();
    for (row, &model) in rows.iter().zip(chosen).rev() {
        let room = out[..at].last_chunk_mut()?;
        at -= encode_row(row, models.get(model), room);
    }
    Some(at)
}

/// Writes a row to the end of `room`; how many bytes. What stands before them there is lost.
fn encode_row(
    row: &Row,
    model: &Model,
    states: &mut [u16; LANES],
    room: &mut [u8; LANES],
) -> usize {
    let mut at = LANES;
    for (&symbol, state) in row.iter().zip(states).rev() {
        let symbol = usize::from(symbol);
        let frequency = u32::from(model.frequencies[symbol]);
        let mut rest = u32::from(*state);
        let is_large = rest >> SCALE_BITS >= frequency;
        // Counts only if it is taken off; what stands there otherwise is written over.
        room[at - 1] = rest as u8;
        at -= usize::from(is_large);
        rest >>= 8 * u32::from(is_large);
        let [low, high] = model.reciprocals;
        let reciprocal = u32::from(u16::from_le_bytes([low[symbol], high[symbol]]));
        // At most one too little, since a state is below 2^16.
        let mut quotient = (rest * reciprocal) >> 16;
        quotient += u32::from(rest - quotient * frequency >= frequency);
        rest -= quotient * frequency;
        *state = ((quotient << SCALE_BITS) + rest + u32::from(model.starts[symbol])) as u16;
    }
    LANES - at
}

/// Decodes rows in the order in which they were given to [`encode`].
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    states: [u16; LANES],
    isa: Isa,
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
            isa,
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
        let largest = chosen.iter().fold(0, |largest, &model| model.max(largest));
        if usize::from(largest) >= MODELS {
            return Err(bad(self.at, "a row has a model that does not exist"));
        }
        #[cfg(target_arch = "x86_64")]
        if is_wide(self.isa) {
            // SAFETY: `is_wide` says that the machine has AVX-512 F, BW, VL, VBMI and VBMI2.
            unsafe { avx512::decode(self, chosen, rows) };
            return self.check_end();
        } else if self.isa.includes_avx2() {
            // SAFETY: the machine has AVX2.
            unsafe { avx2::decode(self, chosen, rows) };
            return self.check_end();
        }
        #[cfg(target_arch = "aarch64")]
        if self.isa.includes_neon() {
            // SAFETY: the machine has NEON.
            unsafe { neon::decode(self, chosen, rows) };
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
                // Without a branch, which would often be guessed wrongly.
                let next = self.bytes.get(self.at).copied().unwrap_or(0);
                let is_small = *state < LOW;
                let refilled = *state << 8 | u16::from(next);
                *state = if is_small { refilled } else { *state };
                self.at += usize::from(is_small);
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

/// Whether the machine has what the widest decoder needs and `isa` allows it.
#[cfg(target_arch = "x86_64")]
fn is_wide(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512 | Isa::Avx512Vnni)
        && isa.is_available()
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
}
