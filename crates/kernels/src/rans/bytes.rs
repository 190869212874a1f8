//! Parts of bytes, each coded by a table of its own.
//!
//! ```text
//! [0]   what follows: 0 four states and 1024 slots, 1 sixty-four states and 4096 slots
//! then for each part its table:
//!       [0]       values that occur, less one
//!       values    if at most 32: one byte each, ascending; else a bit for each of 256, the least first
//!       shares    unless there is one value: of each its frequency less one, below 128 in a byte, else in two:
//!                 [128 + high bits][low eight bits]; they sum to the number of slots
//! then the states, u32 little-endian, each at least 2^16
//! then the words that refill them, u16 little-endian
//! ```
//!
//! Symbol `i` of a part is coded by state `i` modulo their number; each part begins with the first. Parts of one value
//! take no more than their table. How many bytes a part has the caller knows.

use super::{RansError, ahead, bad};
use crate::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

const LOW: u32 = 1 << 16;
/// Values that are listed rather than marked.
const LISTED: usize = 32;

/// Of [`Width::Narrow`].
const NARROW_LANES: usize = 4;
const NARROW_SCALE_BITS: u32 = 10;
/// Of [`Width::Wide`], which registers are filled by.
const WIDE_LANES: usize = 64;
const WIDE_SCALE_BITS: u32 = 12;

/// How many states there are, and how fine frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Narrow,
    Wide,
}

impl Width {
    fn of(bytes: usize) -> Self {
        // Of less, tables and states would be too large a share.
        if bytes < 4096 {
            Self::Narrow
        } else {
            Self::Wide
        }
    }

    fn lanes(self) -> usize {
        match self {
            Self::Narrow => NARROW_LANES,
            Self::Wide => WIDE_LANES,
        }
    }

    fn scale_bits(self) -> u32 {
        match self {
            Self::Narrow => NARROW_SCALE_BITS,
            Self::Wide => WIDE_SCALE_BITS,
        }
    }
}

/// How often each value occurs, in slots.
type Frequencies = [u16; 256];

/// How often each value occurs. Four counters of each, so that equal bytes in a row do not wait for each other.
fn count(part: &[u8]) -> [u64; 256] {
    let mut counts = [[0_u64; 256]; 4];
    let (fours, rest) = part.as_chunks::<4>();
    for four in fours {
        for (counts, &byte) in counts.iter_mut().zip(four) {
            counts[usize::from(byte)] += 1;
        }
    }
    for &byte in rest {
        counts[0][usize::from(byte)] += 1;
    }
    let [a, b, c, d] = &counts;
    std::array::from_fn(|i| a[i] + b[i] + c[i] + d[i])
}

/// Frequencies that sum to 2^`scale_bits`, at least 1 for each value that occurs.
fn frequencies(counts: &[u64; 256], scale_bits: u32) -> Frequencies {
    let total = counts.iter().sum::<u64>().max(1);
    let slots = 1_i64 << scale_bits;
    let mut scaled = [0; 256];
    for (out, &count) in scaled.iter_mut().zip(counts) {
        if count > 0 {
            *out = (((count << scale_bits) + total / 2) / total).max(1) as u16;
        }
    }
    // Settle the rounding with the most frequent values, which notice it least.
    loop {
        let sum: i64 = scaled.iter().map(|&f| i64::from(f)).sum();
        let largest = (0..256).max_by_key(|&i| scaled[i]).unwrap_or(0);
        let excess = (sum - slots).min(i64::from(scaled[largest]) / 2);
        if excess == 0 {
            return scaled;
        }
        scaled[largest] = (i64::from(scaled[largest]) - excess) as u16;
    }
}

/// Bits that values which occur so often take.
fn information(counts: &[u64; 256], table: &Frequencies, width: Width) -> f64 {
    let pairs = counts.iter().zip(table).filter(|&(&count, _)| count > 0);
    let bits = |(&count, &frequency): (&u64, &u16)| {
        count as f64 * (f64::from(width.scale_bits()) - f64::from(frequency).log2())
    };
    pairs.map(bits).sum()
}

/// Appends to a slice.
struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    fn put_table(&mut self, table: &Frequencies) -> Option<()> {
        let values: Vec<u8> = (0..=255).filter(|&v| table[usize::from(v)] > 0).collect();
        self.put(&[values.len().saturating_sub(1) as u8])?;
        if values.len() <= LISTED {
            self.put(&values)?;
        } else {
            let mut marks = [0; 32];
            for &value in &values {
                marks[usize::from(value / 8)] |= 1 << (value % 8);
            }
            self.put(&marks)?;
        }
        if values.len() == 1 {
            return Some(());
        }
        for value in values {
            let less_one = table[usize::from(value)] - 1;
            if less_one < 128 {
                self.put(&[less_one as u8])?;
            } else {
                self.put(&[128 | (less_one >> 8) as u8, less_one as u8])?;
            }
        }
        Some(())
    }
}

/// Encodes parts, none of them empty, into the start of `out`. Returns the bytes written; `None` if they do not fit, as
/// where `out` is no larger than bytes that are random. The same bytes on every instruction set.
pub fn encode(isa: Isa, parts: &[&[u8]], out: &mut [u8]) -> Option<usize> {
    let width = Width::of(parts.iter().map(|part| part.len()).sum());
    let counts: Vec<_> = parts.iter().map(|part| count(part)).collect();
    let tables: Vec<Frequencies> = counts
        .iter()
        .map(|counts| frequencies(counts, width.scale_bits()))
        .collect();
    let mut writer = Writer { out, at: 0 };
    writer.put(&[u8::from(width == Width::Wide)])?;
    for table in &tables {
        writer.put_table(table)?;
    }
    let lanes = width.lanes();
    let (head, out) = (writer.at + 4 * lanes, writer.out);
    let mut states = vec![LOW; lanes];
    // Written backwards from the end, then moved to its place.
    let body = out.get_mut(head..)?;
    let pairs = counts.iter().zip(&tables);
    let bits: f64 = pairs
        .map(|(counts, table)| information(counts, table, width))
        .sum();
    // The states hold at most two bytes of it each. What can't fit, as noise can't, is not worth the attempt.
    if bits / 8.0 > (body.len() + 2 * lanes) as f64 {
        return None;
    }
    let mut at = body.len();
    for (part, table) in parts.iter().zip(&tables).rev() {
        at = encode_part(isa, part, table, (width, &mut states), &mut body[..at])?;
    }
    let stream_bytes = body.len() - at;
    body.copy_within(at.., 0);
    for (slot, state) in out[head - 4 * lanes..head].chunks_exact_mut(4).zip(states) {
        slot.copy_from_slice(&state.to_le_bytes());
    }
    Some(head + stream_bytes)
}

/// A part's table for encoding: by value its frequency in the low half and its start above, and a reciprocal.
struct Ranges {
    scale_bits: u32,
    ranges: [u32; 256],
    /// 2^32 / frequency, rounded down, or the largest number below that.
    reciprocals: [u32; 256],
}

impl Ranges {
    fn new(table: &Frequencies, scale_bits: u32) -> Self {
        let (mut ranges, mut reciprocals) = ([0; 256], [0; 256]);
        let mut start = 0;
        for (value, &frequency) in table.iter().enumerate() {
            let frequency = u32::from(frequency);
            ranges[value] = start << 16 | frequency;
            reciprocals[value] = match frequency {
                0 | 1 => u32::MAX,
                _ => ((1_u64 << 32) / u64::from(frequency)) as u32,
            };
            start += frequency;
        }
        Self {
            scale_bits,
            ranges,
            reciprocals,
        }
    }

    /// Encodes a value before what stands at `at`, where there is room for a word; where it begins then.
    fn encode(&self, value: u8, state: &mut u32, out: &mut [u8], at: usize) -> Option<usize> {
        let range = self.ranges[usize::from(value)];
        let (frequency, start) = (range & 0xFFFF, range >> 16);
        let mut at = at;
        let mut rest = *state;
        if rest >> (32 - self.scale_bits) >= frequency {
            at = at.checked_sub(2)?;
            out[at..at + 2].copy_from_slice(&(rest as u16).to_le_bytes());
            rest >>= 16;
        }
        let reciprocal = u64::from(self.reciprocals[usize::from(value)]);
        // At most one too little, since a state is below 2^32.
        let mut quotient = ((u64::from(rest) * reciprocal) >> 32) as u32;
        quotient += u32::from(rest - quotient * frequency >= frequency);
        rest -= quotient * frequency;
        *state = (quotient << self.scale_bits) + rest + start;
        Some(at)
    }
}

/// Encodes a part into the end of `out`; where it begins then.
fn encode_part(
    isa: Isa,
    part: &[u8],
    table: &Frequencies,
    (width, states): (Width, &mut [u32]),
    out: &mut [u8],
) -> Option<usize> {
    let is_constant = |&value: &u8| u32::from(table[usize::from(value)]) == 1 << width.scale_bits();
    let mut at = out.len();
    if part.first().is_none_or(is_constant) {
        return Some(at);
    }
    let ranges = Ranges::new(table, width.scale_bits());
    let (groups, rest) = part.split_at(part.len() / states.len() * states.len());
    for (&value, state) in rest.iter().zip(states.iter_mut()).rev() {
        at = ranges.encode(value, state, out, at)?;
    }
    let mut groups = groups;
    #[cfg(target_arch = "x86_64")]
    if isa.includes_avx2()
        && let Ok(states) = states.try_into()
    {
        // SAFETY: the machine has AVX2.
        (groups, at) = unsafe { avx2::encode(&ranges, groups, states, &mut out[..at]) };
    }
    #[cfg(target_arch = "aarch64")]
    if isa.includes_neon()
        && let Ok(states) = states.try_into()
    {
        // SAFETY: the machine has NEON.
        (groups, at) = unsafe { neon::encode(&ranges, groups, states, &mut out[..at]) };
    }
    let _ = isa;
    for group in groups.chunks_exact(states.len()).rev() {
        for (&value, state) in group.iter().zip(states.iter_mut()).rev() {
            at = ranges.encode(value, state, out, at)?;
        }
    }
    Some(at)
}

/// What a state's low bits say: the value, in the next twelve bits the first slot of its range, and above its frequency,
/// which is waited for and so costs one shift only.
type Entry = u32;

/// Slots that are filled at once. A table has as many behind its end.
const FILL: usize = 16;

/// Gives each value its slots. `values` are those of a table, in order.
fn fill(values: &[Entry], slots: &mut [Entry]) {
    for &value in values {
        let first = (value >> 8 & 0xFFF) as usize;
        let end = first + (value >> 20) as usize;
        // What is too much the next value is written over.
        for first in (first..end).step_by(FILL) {
            slots[first..first + FILL].fill(value);
        }
    }
}

/// Reads a stream's tables.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RansError> {
        let end = self.at + count;
        let taken = self
            .bytes
            .get(self.at..end)
            .ok_or(bad(self.bytes.len(), "a table is cut off"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, RansError> {
        Ok(self.take(1)?[0])
    }

    /// The values that occur, ascending, at the start of `values`; how many.
    fn values(&mut self, values: &mut [u8; 256]) -> Result<usize, RansError> {
        let at = self.at;
        let wrong = bad(at, "the values of a table are not what it says");
        let count = usize::from(self.byte()?) + 1;
        if count <= LISTED {
            values[..count].copy_from_slice(self.take(count)?);
            let is_ascending = values[..count].windows(2).all(|pair| pair[0] < pair[1]);
            return is_ascending.then_some(count).ok_or(wrong);
        }
        let mut found = 0;
        for (i, &eight) in self.take(32)?.iter().enumerate() {
            let mut marks = eight;
            while marks != 0 {
                values[found] = 8 * i as u8 + marks.trailing_zeros() as u8;
                found += 1;
                marks &= marks - 1;
            }
        }
        (found == count).then_some(count).ok_or(wrong)
    }

    /// Appends the values of a table; of one alone the frequency is zero.
    fn table(&mut self, scale_bits: u32, table: &mut Vec<Entry>) -> Result<(), RansError> {
        let mut values = [0; 256];
        let count = self.values(&mut values)?;
        if count == 1 {
            table.push(Entry::from(values[0]));
            return Ok(());
        }
        let slots = 1 << scale_bits;
        let mut start = 0;
        for &value in &values[..count] {
            let at = self.at;
            let first = u32::from(self.byte()?);
            let less_one = match first {
                0..128 => first,
                _ => (first - 128) << 8 | u32::from(self.byte()?),
            };
            if start + less_one >= slots {
                return Err(bad(at, "the frequencies sum to too much"));
            }
            table.push((less_one + 1) << 20 | start << 8 | u32::from(value));
            start += less_one + 1;
        }
        if start != slots {
            return Err(bad(self.at, "the frequencies sum to too little"));
        }
        Ok(())
    }
}

/// States, and the stream that refills them.
struct Stream<'a> {
    bytes: &'a [u8],
    at: usize,
    scale_bits: u32,
    states: Vec<u32>,
}

/// Decodes what [`encode`] wrote of parts of these lengths. They then hold nothing of use if it fails.
///
/// # Errors
/// If `bytes` are no such encoding.
pub fn decode(isa: Isa, bytes: &[u8], parts: &mut [&mut [u8]]) -> Result<(), RansError> {
    let mut reader = Reader { bytes, at: 0 };
    let width = match reader.byte()? {
        0 => Width::Narrow,
        1 => Width::Wide,
        _ => return Err(bad(0, "unknown number of states")),
    };
    // All values, and where those of each part end.
    let mut values = Vec::with_capacity(LISTED * parts.len());
    let mut ends = Vec::with_capacity(parts.len());
    for _ in &*parts {
        reader.table(width.scale_bits(), &mut values)?;
        ends.push(values.len());
    }
    let at = reader.at;
    let states = reader.take(4 * width.lanes())?.as_chunks::<4>().0;
    let mut stream = Stream {
        bytes,
        at: reader.at,
        scale_bits: width.scale_bits(),
        states: states.iter().map(|s| u32::from_le_bytes(*s)).collect(),
    };
    if stream.states.iter().any(|&state| state < LOW) {
        return Err(bad(at, "a state is out of range"));
    }
    // One table for all parts, so that it stays in the nearest cache.
    let mut slots = vec![0; (1 << width.scale_bits()) + FILL];
    let mut first = 0;
    for (part, end) in parts.iter_mut().zip(ends) {
        match &values[first..end] {
            [value] => part.fill(*value as u8),
            values => {
                fill(values, &mut slots);
                stream.decode(isa, &slots, part);
            }
        }
        first = end;
        if stream.at > bytes.len() {
            return Err(bad(bytes.len(), "the stream is cut off"));
        }
    }
    if stream.at != bytes.len() || stream.states.iter().any(|&state| state != LOW) {
        return Err(bad(stream.at, "the stream does not end where it should"));
    }
    Ok(())
}

impl Stream<'_> {
    /// Reads zeros behind the end, and counts them.
    fn decode(&mut self, isa: Isa, slots: &[Entry], part: &mut [u8]) {
        if isa == Isa::Scalar {
            return self.decode_plain(slots, part);
        }
        #[cfg(target_arch = "x86_64")]
        if isa.includes_avx2()
            && let (Ok(states), Some(slots)) =
                (self.states.as_mut_slice().try_into(), slots.first_chunk())
        {
            let (whole, rest) = part.as_chunks_mut();
            let stream = (self.bytes, self.at);
            self.at = if matches!(isa, Isa::Avx512 | Isa::Avx512Vnni) {
                // SAFETY: the machine has AVX-512 F, BW and VL.
                unsafe { avx512::decode(slots, stream, states, whole) }
            } else {
                // SAFETY: the machine has AVX2.
                unsafe { avx2::decode(slots, stream, states, whole) }
            };
            return self.decode_plain(slots, rest);
        }
        #[cfg(target_arch = "aarch64")]
        if isa.includes_neon()
            && let (Ok(states), Some(slots)) =
                (self.states.as_mut_slice().try_into(), slots.first_chunk())
        {
            let (whole, rest) = part.as_chunks_mut();
            // SAFETY: the machine has NEON.
            self.at = unsafe { neon::decode(slots, (self.bytes, self.at), states, whole) };
            return self.decode_plain(slots, rest);
        }
        let part = match (self.states.as_mut_slice().try_into(), slots.first_chunk()) {
            (Ok(states), Some(slots)) => {
                let (whole, rest) = part.as_chunks_mut();
                self.at = decode_four(slots, (self.bytes, self.at), states, whole);
                rest
            }
            _ => part,
        };
        self.decode_plain(slots, part);
    }

    /// The reference.
    fn decode_plain(&mut self, slots: &[Entry], part: &mut [u8]) {
        let lanes = self.states.len();
        for group in part.chunks_mut(lanes) {
            for (byte, state) in group.iter_mut().zip(&mut self.states) {
                let slot = *state & ((1 << self.scale_bits) - 1);
                let entry = slots[slot as usize];
                *byte = entry as u8;
                // At most 2^32 - 1: a frequency is below the number of slots, or its part is constant.
                *state =
                    (entry >> 20) * (*state >> self.scale_bits) + (slot - (entry >> 8 & 0xFFF));
                // Without a branch, which would often be guessed wrongly.
                let word = *ahead(self.bytes, self.at, &mut [0; 2]);
                let refilled = *state << 16 | u32::from(u16::from_le_bytes(word));
                let is_small = *state < LOW;
                *state = if is_small { refilled } else { *state };
                self.at += 2 * usize::from(is_small);
            }
        }
    }
}

/// [`Stream::decode_plain`] of whole groups of four states, which do not wait for the words of each other: all are read at
/// once. Where the stream is read next.
fn decode_four(
    slots: &[Entry; 1 << NARROW_SCALE_BITS],
    (bytes, mut at): (&[u8], usize),
    states: &mut [u32; NARROW_LANES],
    groups: &mut [[u8; NARROW_LANES]],
) -> usize {
    // In 64 bits, for which compilers find no vectors: four lanes of one would wait for being put together.
    let [mut a, mut b, mut c, mut d] = states.map(u64::from);
    let mut filled = [0; 2 * NARROW_LANES];
    for group in groups {
        let words = u64::from_le_bytes(*ahead(bytes, at, &mut filled));
        let mut bits = 0;
        for (state, byte) in [&mut a, &mut b, &mut c, &mut d].into_iter().zip(group) {
            let slot = *state & ((1 << NARROW_SCALE_BITS) - 1);
            let entry = u64::from(slots[slot as usize]);
            *byte = entry as u8;
            let grown = (entry >> 20) * (*state >> NARROW_SCALE_BITS);
            let next = grown + (slot - (entry >> 8 & 0xFFF));
            let refilled = next << 16 | (words >> bits & 0xFFFF);
            let is_small = next < u64::from(LOW);
            *state = if is_small { refilled } else { next };
            bits += 16 * u32::from(is_small);
        }
        at += (bits / 8) as usize;
    }
    *states = [a, b, c, d].map(|state| state as u32);
    at
}
