//! The fake decoder: what it writes, and what it would read.

use std::ops::Range;

use neap_memory::codec::fake::EveryNth;
use neap_memory::{Block, BlockTable, KvQuality, Level};

use super::{BLOCK_TOKENS, HEAD_TOKEN_BYTES, Random, TOKEN_BYTES};

/// State of the fake decoder after a run of tokens.
#[derive(Clone, Copy)]
struct Decoder(u64);

impl Decoder {
    /// At the start of a sequence of this quality, as if each had a model of its own.
    fn of(quality: KvQuality) -> Self {
        Self(1 + quality as u64)
    }

    /// Takes in one token; returns its keys and values.
    fn feed(&mut self, token: u32) -> [u8; TOKEN_BYTES] {
        self.0 = (self.0 ^ u64::from(token))
            .wrapping_mul(0x0100_0000_01B3)
            .rotate_left(23);
        let mut random = Random::new(self.0);
        let mut bytes = [0; TOKEN_BYTES];
        // A few random bytes among regular ones, so that packing has something to do.
        for (i, pair) in bytes.chunks_exact_mut(2).enumerate() {
            let value = random.below(1 << 16);
            pair.copy_from_slice(&[value as u8, 0x38 + (i % 4) as u8]);
        }
        bytes
    }
}

/// Hash over keys and values as attention reads them.
fn logits(hash: u64, bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(hash, |hash, word| {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        (hash ^ u64::from_le_bytes(eight))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
    })
}

/// Where in a block the bytes of a token stand: of layers without a window, and of those with one.
fn places(token: usize) -> [Range<usize>; 2] {
    let slot = token % BLOCK_TOKENS;
    let tail_bytes = TOKEN_BYTES - HEAD_TOKEN_BYTES;
    let tail = BLOCK_TOKENS * HEAD_TOKEN_BYTES + slot * tail_bytes;
    [
        slot * HEAD_TOKEN_BYTES..(slot + 1) * HEAD_TOKEN_BYTES,
        tail..tail + tail_bytes,
    ]
}

/// The first token of which the next one sees the layers with a window.
fn first_in_window(table: &BlockTable) -> usize {
    let window = table.pool().window();
    window.map_or(0, |w| (table.len_tokens() + 1).saturating_sub(w.tokens))
}

/// Parts of a token that the next one reads.
fn parts_read(table: &BlockTable, token: usize) -> usize {
    1 + usize::from(token >= first_in_window(table))
}

/// The logits of the token after `tokens`, which `table` holds.
fn expected_logits(table: &BlockTable, tokens: &[u32], quality: KvQuality) -> u64 {
    let mut decoder = Decoder::of(quality);
    let mut hash = 7;
    for (t, &token) in tokens.iter().enumerate() {
        let written = decoder.feed(token);
        let (head, tail) = written.split_at(HEAD_TOKEN_BYTES);
        for part in [head, tail].iter().take(parts_read(table, t)) {
            hash = logits(hash, part);
        }
    }
    hash
}

/// The logits of an exact sequence; `None` if one of its blocks is lossy, or lacks what is read.
fn read_logits(table: &BlockTable) -> Option<u64> {
    let is_hot = |b: &Block| b.level() == Level::Hot;
    let mut hash = 7;
    for t in 0..table.len_tokens() {
        for place in places(t).into_iter().take(parts_read(table, t)) {
            hash = logits(hash, table.block(t / BLOCK_TOKENS).get(place)?);
        }
    }
    table.blocks().iter().all(is_hot).then_some(hash)
}

/// Whether attention reads what was written for `tokens`, all that the table holds: every byte of it if the quality is
/// exact, or else those that its lowest level keeps.
pub(super) fn reads_right(table: &BlockTable, tokens: &[u32], quality: KvQuality) -> bool {
    assert_eq!(table.len_tokens(), tokens.len());
    let stride = match quality.lowest(true) {
        Level::Int8 => 2,
        Level::Int4 => 4,
        _ => return read_logits(table) == Some(expected_logits(table, tokens, quality)),
    };
    let mut decoder = Decoder::of(quality);
    tokens.iter().enumerate().all(|(t, &token)| {
        let view = table.view(t / BLOCK_TOKENS);
        let written = decoder.feed(token);
        let places = places(t).into_iter().take(parts_read(table, t));
        written.iter().zip(places.flatten()).all(|(&byte, at)| {
            let (held, codec) = match view.level {
                Level::Int8 => (at / 2, Some(EveryNth::INT8)),
                Level::Int4 => (at / 4, Some(EveryNth::INT4)),
                _ => (at, None),
            };
            if held >= view.bytes.len() {
                return false;
            }
            let read = codec.map_or(view.bytes[held], |codec| codec.read(view.bytes, at));
            read == byte || (read == 0 && !at.is_multiple_of(stride))
        })
    })
}

/// Writes the tokens that the table does not hold yet.
pub(super) fn compute(table: &mut BlockTable, tokens: &[u32], quality: KvQuality) {
    let from = table.len_tokens();
    let mut decoder = Decoder::of(quality);
    for (t, &token) in tokens.iter().enumerate() {
        let bytes = decoder.feed(token);
        if t >= from {
            let (head, tail) = bytes.split_at(HEAD_TOKEN_BYTES);
            for (place, part) in places(t).into_iter().zip([head, tail]) {
                table.block_mut(t / BLOCK_TOKENS)[place].copy_from_slice(part);
            }
        }
    }
    table.advance(tokens.len() - from);
}
