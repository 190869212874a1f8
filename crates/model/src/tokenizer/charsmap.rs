//! SentencePiece's normalization table: a trie of byte sequences and what each becomes.
//!
//! The layout is that of `normalizer.cc` and Darts-clone: the length in bytes of the trie as a little-endian `u32`;
//! the trie, a double array of `u32` units; then the replacements, each ended by a zero byte.

use super::error::{TokenizerError, invalid};

const FIELD: &str = "tokenizer.ggml.precompiled_charsmap";

/// A parsed table.
pub(crate) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// Takes the table apart. What the trie's units say is checked as they are followed.
    pub fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let fail = |reason: &str| invalid(FIELD, reason);
        let (length, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| fail("is shorter than its own header"))?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > rest.len() || !length.is_multiple_of(4) {
            return Err(fail("its trie does not fit into it"));
        }
        let (trie, replacements) = rest.split_at(length);
        let units = trie
            .as_chunks::<4>()
            .0
            .iter()
            .map(|unit| u32::from_le_bytes(*unit));
        Ok(Self {
            units: units.collect(),
            replacements: replacements.to_vec(),
        })
    }

    /// `text` with the longest sequence of the table at each place replaced.
    pub fn normalize(&self, text: &str) -> Result<String, TokenizerError> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            match self.longest_match(rest.as_bytes()) {
                // A table may end a sequence inside a character; such a match is none.
                Some((length, at)) if rest.is_char_boundary(length) => {
                    out.push_str(self.replacement(at)?);
                    rest = &rest[length..];
                }
                _ => {
                    out.push(char);
                    rest = &rest[char.len_utf8()..];
                }
            }
        }
        Ok(out)
    }

    /// Length of the longest sequence that `text` begins with, and where its replacement is.
    fn longest_match(&self, text: &[u8]) -> Option<(usize, usize)> {
        let mut found = None;
        let mut node = offset(*self.units.first()?);
        for (index, byte) in text.iter().enumerate() {
            if *byte == 0 {
                break;
            }
            node ^= u32::from(*byte);
            let Some(unit) = self.units.get(node as usize) else {
                break;
            };
            if unit & (1 << 31 | 0xff) != u32::from(*byte) {
                break;
            }
            node ^= offset(*unit);
            if unit >> 8 & 1 == 1 {
                let value = self.units.get(node as usize)?;
                found = Some((index + 1, (value & !(1 << 31)) as usize));
            }
        }
        found
    }

    fn replacement(&self, at: usize) -> Result<&str, TokenizerError> {
        let rest = self.replacements.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0);
        end.and_then(|end| std::str::from_utf8(&rest[..end]).ok())
            .ok_or_else(|| invalid(FIELD, format!("has no replacement at offset {at}")))
    }
}

/// Where the children of a unit begin, to be combined with their byte by exclusive or.
fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}
