//! Byte-pair encoding with ranked merges (Sennrich et al., 2016, <https://arxiv.org/abs/1508.07909>), on bytes as
//! GPT-2 has it or on characters with byte tokens for the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::error::TokenizerError;
use super::pretokenize::{Family, PreTokenizer};
use super::spm::{ESCAPED_SPACE, unescape_spaces, word_ends};
use super::vocabulary::{
    ByteStrings, TextIndex, TokenType, Vocabulary, VocabularyData, WholeWords, parse_byte_token,
};

/// No token, or no symbol.
const NONE: u32 = u32::MAX;
/// Words up to this many symbols are merged by looking at all pairs each time, longer ones with a heap.
const SCAN_SYMBOLS: usize = 32;

/// How texts are spelt in the file, and what the symbols are that merging begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Each byte is a symbol, written as one of 256 visible characters.
    Bytes,
    /// Each character is a symbol; spaces are written U+2581, and bytes `<0x0A>` stand in for missing characters.
    Characters,
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    merged: u32,
}

/// A byte-pair model; the vocabulary is held by the tokenizer.
pub(crate) struct Bpe {
    alphabet: Alphabet,
    pre_tokenizer: PreTokenizer,
    ignore_merges: bool,
    /// By the two tokens, the left one in the upper half.
    merges: HashMap<u64, Merge>,
    /// Token of each single byte, or [`NONE`].
    byte_tokens: Box<[u32; 256]>,
    unk: Option<u32>,
    whole: WholeWords,
    /// On characters, the words of the splitter are whole lines. Where no merge makes a token that has a space after
    /// another character, they can be taken apart further.
    splits_before_spaces: bool,
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Bpe {
    /// Checks the vocabulary and takes it apart. `index` finds `data.tokens`.
    pub fn new(
        data: &VocabularyData,
        index: &TextIndex,
        types: Vec<TokenType>,
        alphabet: Alphabet,
        family: &Family,
    ) -> Result<(Self, Vocabulary), TokenizerError> {
        if data.merges.is_empty() {
            return Err(TokenizerError::Missing {
                field: "tokenizer.ggml.merges".into(),
            });
        }
        let (surfaces, spelt) = surfaces(&data.tokens, &types, alphabet)?;
        let vocabulary = Vocabulary::new(surfaces, types, |id, kind| {
            kind.is_piece() && spelt[id as usize]
        });
        let mut byte_tokens = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            let id = match alphabet {
                Alphabet::Bytes => vocabulary.piece(&[byte]),
                Alphabet::Characters => vocabulary.byte(byte),
            };
            byte_tokens[usize::from(byte)] = id.unwrap_or(NONE);
        }
        let merges = read_merges(data, index)?;
        let reaches_over_space = |merge: &Merge| {
            let text = data.tokens.get(merge.merged as usize).unwrap_or_default();
            let text = unescape_spaces(text);
            text.windows(2).any(|w| w[0] != b' ' && w[1] == b' ')
        };
        let bpe = Self {
            splits_before_spaces: alphabet == Alphabet::Characters
                && !merges.values().any(reaches_over_space),
            alphabet,
            pre_tokenizer: PreTokenizer::new(family)?,
            ignore_merges: family.ignore_merges,
            merges,
            byte_tokens,
            unk: data.unk,
            whole: WholeWords::new(vocabulary.len()),
        };
        Ok((bpe, vocabulary))
    }

    /// Appends the tokens of `text`, whose first byte has the offset `offset` in what the caller was given.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        offset: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut session = Session {
            bpe: self,
            vocabulary,
            symbols: Vec::new(),
            queue: BinaryHeap::new(),
        };
        let plain;
        let text = match self.alphabet {
            Alphabet::Bytes => text,
            Alphabet::Characters => {
                plain = text.replace(ESCAPED_SPACE, " ");
                &plain
            }
        };
        // Words are handed out in order, and joined they are the text.
        let mut at = offset;
        self.pre_tokenizer.split(text, &mut |word| {
            let mut start = 0;
            if self.splits_before_spaces {
                for end in word_ends(word.as_bytes()) {
                    session.encode_word(&word[start..end], at + start, out)?;
                    start = end;
                }
            } else {
                session.encode_word(word, at, out)?;
            }
            at += word.len();
            Ok(())
        })
    }
}

/// The rules by the ids that they are about.
fn read_merges(
    data: &VocabularyData,
    index: &TextIndex,
) -> Result<HashMap<u64, Merge>, TokenizerError> {
    let mut merges = HashMap::with_capacity(data.merges.len());
    let mut merged_text = Vec::new();
    for (rank, text) in data.merges.iter().enumerate() {
        let fail = |reason: &'static str| TokenizerError::InvalidMerge {
            index: rank,
            text: String::from_utf8_lossy(text).into_owned(),
            reason,
        };
        // The space between the two is not the first character: that may be a space itself.
        let space = text.iter().skip(1).position(|byte| *byte == b' ');
        let space = space.ok_or_else(|| fail("there is no space between two texts"))? + 1;
        let (left, right) = (&text[..space], &text[space + 1..]);
        merged_text.clear();
        merged_text.extend_from_slice(left);
        merged_text.extend_from_slice(right);
        let find = |text: &[u8], reason| index.find(&data.tokens, text).ok_or_else(|| fail(reason));
        let left = find(left, "its left part is not a token")?;
        let right = find(right, "its right part is not a token")?;
        let merged = find(&merged_text, "what it makes is not a token")?;
        // Of two rules for one pair the better rank counts.
        merges.entry(pair(left, right)).or_insert(Merge {
            rank: rank as u32,
            merged,
        });
    }
    Ok(merges)
}

/// The bytes that each token contributes to a text, and whether its text is spelt in the alphabet.
fn surfaces(
    tokens: &ByteStrings,
    types: &[TokenType],
    alphabet: Alphabet,
) -> Result<(ByteStrings, Vec<bool>), TokenizerError> {
    let mut out = ByteStrings::new();
    let mut spelt = Vec::with_capacity(tokens.len());
    let bytes_of = byte_alphabet();
    for (text, kind) in tokens.iter().zip(types) {
        let surface = match (kind, alphabet) {
            (TokenType::Normal | TokenType::Unused, Alphabet::Bytes) => {
                decode_bytes(text, &bytes_of)
            }
            (TokenType::Normal | TokenType::Unused, Alphabet::Characters) => {
                (!text.contains(&b' ')).then(|| unescape_spaces(text))
            }
            (TokenType::Byte, _) => parse_byte_token(text).map(|byte| vec![byte]),
            _ => None,
        };
        spelt.push(surface.is_some());
        out.push(surface.as_deref().unwrap_or(text))?;
    }
    Ok((out, spelt))
}

/// The byte that each character of GPT-2's alphabet stands for: printable ones for themselves, the others in order
/// from U+0100 on.
pub(crate) fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100u32;
    let mut map = HashMap::new();
    for byte in 0..=255u8 {
        let char = match printable(byte) {
            true => char::from(byte),
            false => {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default()
            }
        };
        map.insert(char, byte);
    }
    map
}

pub(crate) fn decode_bytes(text: &[u8], bytes_of: &HashMap<char, u8>) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars()
        .map(|char| bytes_of.get(&char).copied())
        .collect()
}

/// Bytes of a word, and the token that they have become; a list in the order of the word.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    token: u32,
    prev: u32,
    next: u32,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    // The order of the fields is the order of candidates: by rank, then from left to right.
    rank: u32,
    left: u32,
    right: u32,
    merged: u32,
    pair: u64,
}

struct Session<'a> {
    bpe: &'a Bpe,
    vocabulary: &'a Vocabulary,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Session<'_> {
    fn encode_word(
        &mut self,
        word: &str,
        offset: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let piece = self.vocabulary.piece(word.as_bytes());
        let Some(id) = piece else {
            return self.merge_word(word, offset, out);
        };
        // A run of new lines is a token of its own in vocabularies on characters, without merges that lead to it.
        let new_lines = || word.bytes().all(|byte| byte == b'\n');
        if self.bpe.ignore_merges || (self.bpe.alphabet == Alphabet::Characters && new_lines()) {
            out.push(id);
            return Ok(());
        }
        let bpe = self.bpe;
        bpe.whole
            .encode(id, out, |out| self.merge_word(word, offset, out))
    }

    fn merge_word(
        &mut self,
        word: &str,
        offset: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if word.len() >= NONE as usize {
            return Err(TokenizerError::TooLarge {
                what: "bytes of a word",
                found: word.len(),
                limit: NONE as usize - 1,
            });
        }
        self.list_symbols(word);
        if self.symbols.len() <= SCAN_SYMBOLS {
            self.merge_by_scanning();
        } else {
            self.merge_by_heap();
        }
        let symbols = std::mem::take(&mut self.symbols);
        let emitted = symbols
            .iter()
            .filter(|symbol| symbol.len > 0)
            .try_for_each(|symbol| self.emit(symbol, word, offset, out));
        self.symbols = symbols;
        emitted
    }

    fn list_symbols(&mut self, word: &str) {
        self.symbols.clear();
        let byte_tokens = &self.bpe.byte_tokens;
        let mut push = |start: usize, len: usize, token: u32| {
            let index = self.symbols.len() as u32;
            self.symbols.push(Symbol {
                start: start as u32,
                len: len as u32,
                token,
                prev: index.wrapping_sub(1),
                next: index + 1,
            });
        };
        match self.bpe.alphabet {
            Alphabet::Bytes => {
                for (at, byte) in word.bytes().enumerate() {
                    push(at, 1, byte_tokens[usize::from(byte)]);
                }
            }
            Alphabet::Characters => {
                for (at, char) in word.char_indices() {
                    let len = char.len_utf8();
                    let token = self.vocabulary.piece(&word.as_bytes()[at..at + len]);
                    push(at, len, token.unwrap_or(NONE));
                }
            }
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
    }

    fn merge_of(&self, left: u32, right: u32) -> Option<Merge> {
        if left == NONE || right == NONE {
            return None;
        }
        self.bpe.merges.get(&pair(left, right)).copied()
    }

    /// Merges the best pair, the leftmost of equals, until none is left: O(n²), for short words.
    fn merge_by_scanning(&mut self) {
        let mut ranks = [NONE; SCAN_SYMBOLS];
        let mut merged = [NONE; SCAN_SYMBOLS];
        let mut count = self.symbols.len();
        let set = |this: &Self, ranks: &mut [u32], merged: &mut [u32], i: usize| {
            let found = this.merge_of(this.symbols[i].token, this.symbols[i + 1].token);
            (ranks[i], merged[i]) = found.map_or((NONE, NONE), |m| (m.rank, m.merged));
        };
        for i in 0..count.saturating_sub(1) {
            set(self, &mut ranks, &mut merged, i);
        }
        while count > 1 {
            let pairs = &ranks[..count - 1];
            let Some((best, rank)) = pairs.iter().enumerate().min_by_key(|(_, rank)| **rank) else {
                break;
            };
            if *rank == NONE {
                break;
            }
            self.symbols[best].len += self.symbols[best + 1].len;
            self.symbols[best].token = merged[best];
            self.symbols.remove(best + 1);
            ranks.copy_within(best + 1..count - 1, best);
            merged.copy_within(best + 1..count - 1, best);
            count -= 1;
            if best + 1 < count {
                set(self, &mut ranks, &mut merged, best);
            }
            if best > 0 {
                set(self, &mut ranks, &mut merged, best - 1);
            }
        }
    }

    /// The same with a heap and a linked list: O(n log n).
    fn merge_by_heap(&mut self) {
        self.queue.clear();
        for left in 1..self.symbols.len() as u32 {
            self.offer(left - 1, left);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            let left = self.symbols[candidate.left as usize];
            let right = self.symbols[candidate.right as usize];
            if left.len == 0 || right.len == 0 || pair(left.token, right.token) != candidate.pair {
                continue; // One of the two was merged with another symbol meanwhile.
            }
            self.symbols[candidate.right as usize].len = 0;
            let symbol = &mut self.symbols[candidate.left as usize];
            symbol.len += right.len;
            symbol.token = candidate.merged;
            symbol.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = candidate.left;
                self.offer(candidate.left, right.next);
            }
            if left.prev != NONE {
                self.offer(left.prev, candidate.left);
            }
        }
    }

    fn offer(&mut self, left: u32, right: u32) {
        let (a, b) = (
            self.symbols[left as usize].token,
            self.symbols[right as usize].token,
        );
        if let Some(merge) = self.merge_of(a, b) {
            self.queue.push(Reverse(Candidate {
                rank: merge.rank,
                left,
                right,
                merged: merge.merged,
                pair: pair(a, b),
            }));
        }
    }

    /// Appends a symbol's token, or what stands for it where the vocabulary has none.
    fn emit(
        &self,
        symbol: &Symbol,
        word: &str,
        offset: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if symbol.token != NONE {
            out.push(symbol.token);
            return Ok(());
        }
        let start = symbol.start as usize;
        let bytes = &word.as_bytes()[start..start + symbol.len as usize];
        let tokens = || bytes.iter().map(|b| self.bpe.byte_tokens[usize::from(*b)]);
        if tokens().all(|token| token != NONE) {
            out.extend(tokens());
            return Ok(());
        }
        let unk = self.bpe.unk.ok_or_else(|| TokenizerError::Unencodable {
            piece: String::from_utf8_lossy(bytes).into_owned(),
            offset: offset + start,
        })?;
        out.push(unk);
        Ok(())
    }
}
