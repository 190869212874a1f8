//! Order-0 range asymmetric numeral systems (Duda 2013; the byte-wise form of Giesen's `ryg_rans`), four
//! states interleaved so that a CPU can work on them side by side.
//!
//! ```text
//! [0, 512)            frequency of each byte value, u16 little-endian, summing to 4096
//! [512, 528)          four initial states, u32 little-endian
//! [528, …)            the stream, read forwards
//! ```

const SCALE_BITS: u32 = 12;
const SCALE: u32 = 1 << SCALE_BITS;
const LOW: u32 = 1 << 23;
const STATES: usize = 4;
const TABLE_BYTES: usize = 512;
const HEAD_BYTES: usize = TABLE_BYTES + 4 * STATES;

/// Offset and reason of a failure.
pub(super) type Bad = (usize, &'static str);

/// Frequencies that sum to [`SCALE`], at least 1 for each value that occurs.
fn frequencies(plane: &[u8]) -> [u32; 256] {
    let mut counts = [0u64; 256];
    for &byte in plane {
        counts[usize::from(byte)] += 1;
    }
    let total = plane.len().max(1) as u64;
    let mut scaled = [0u32; 256];
    for (out, &count) in scaled.iter_mut().zip(&counts) {
        if count > 0 {
            *out = ((count * u64::from(SCALE) / total) as u32).max(1);
        }
    }
    // Settle the rounding with the most frequent values, which notice it least.
    loop {
        let sum: u32 = scaled.iter().sum();
        let largest = (0..256).max_by_key(|&i| scaled[i]).unwrap_or(0);
        match sum.cmp(&SCALE) {
            std::cmp::Ordering::Equal => return scaled,
            std::cmp::Ordering::Less => scaled[largest] += SCALE - sum,
            std::cmp::Ordering::Greater => {
                let excess = (sum - SCALE).min(scaled[largest] / 2);
                scaled[largest] -= excess;
            }
        }
    }
}

/// Encodes `plane` into the start of `out`; `None` if it does not fit, as with bytes that are random.
pub(super) fn encode(plane: &[u8], out: &mut [u8]) -> Option<usize> {
    if plane.is_empty() || out.len() < HEAD_BYTES {
        return None;
    }
    let frequencies = frequencies(plane);
    let mut starts = [0u32; 256];
    let mut sum = 0;
    for (start, frequency) in starts.iter_mut().zip(&frequencies) {
        *start = sum;
        sum += frequency;
    }
    // The stream is written backwards from the end, then moved to its place.
    let mut states = [LOW; STATES];
    let mut at = out.len();
    for (index, &byte) in plane.iter().enumerate().rev() {
        let state = &mut states[index % STATES];
        let (frequency, start) = (frequencies[usize::from(byte)], starts[usize::from(byte)]);
        let limit = ((LOW >> SCALE_BITS) << 8) * frequency;
        while *state >= limit {
            if at <= HEAD_BYTES {
                return None;
            }
            at -= 1;
            out[at] = *state as u8;
            *state >>= 8;
        }
        *state = ((*state / frequency) << SCALE_BITS) + *state % frequency + start;
    }
    let stream_bytes = out.len() - at;
    out.copy_within(at.., HEAD_BYTES);
    for (slot, frequency) in out.chunks_exact_mut(2).zip(&frequencies) {
        // 4096 itself, of a plane with one value, fits too.
        slot.copy_from_slice(&(*frequency as u16).to_le_bytes());
    }
    for (slot, state) in out[TABLE_BYTES..HEAD_BYTES].chunks_exact_mut(4).zip(states) {
        slot.copy_from_slice(&state.to_le_bytes());
    }
    Some(HEAD_BYTES + stream_bytes)
}

/// What a state's low bits say.
#[derive(Clone, Copy, Default)]
struct Entry {
    frequency: u16,
    /// Distance from the start of the value's range.
    bias: u16,
    value: u8,
}

/// Decodes all of `bytes` into all of `plane`.
pub(super) fn decode(bytes: &[u8], plane: &mut [u8]) -> Result<(), Bad> {
    if bytes.len() < HEAD_BYTES {
        return Err((bytes.len(), "the tables are cut off"));
    }
    let table = read_table(&bytes[..TABLE_BYTES])?;
    let mut states = [0u32; STATES];
    for (state, slot) in states
        .iter_mut()
        .zip(bytes[TABLE_BYTES..HEAD_BYTES].chunks_exact(4))
    {
        *state = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
        if *state < LOW || *state >= LOW << 8 {
            return Err((TABLE_BYTES, "a state is out of range"));
        }
    }
    let mut at = HEAD_BYTES;
    for (index, out) in plane.iter_mut().enumerate() {
        let state = &mut states[index % STATES];
        let entry = table[(*state & (SCALE - 1)) as usize];
        *out = entry.value;
        *state = u32::from(entry.frequency) * (*state >> SCALE_BITS) + u32::from(entry.bias);
        while *state < LOW {
            let Some(&byte) = bytes.get(at) else {
                return Err((at, "the stream is cut off"));
            };
            *state = *state << 8 | u32::from(byte);
            at += 1;
        }
    }
    if at != bytes.len() || states != [LOW; STATES] {
        return Err((at, "the stream does not end where it should"));
    }
    Ok(())
}

fn read_table(bytes: &[u8]) -> Result<Vec<Entry>, Bad> {
    let mut table = Vec::with_capacity(SCALE as usize);
    for (value, slot) in bytes.chunks_exact(2).enumerate() {
        let frequency = u16::from_le_bytes([slot[0], slot[1]]);
        if table.len() + usize::from(frequency) > SCALE as usize {
            return Err((value * 2, "the frequencies sum to too much"));
        }
        table.extend((0..frequency).map(|bias| Entry {
            frequency,
            bias,
            value: value as u8,
        }));
    }
    if table.len() != SCALE as usize {
        return Err((TABLE_BYTES, "the frequencies sum to too little"));
    }
    Ok(table)
}
