//! SentencePiece's byte-pair encoding: the pair whose merged piece has the best score is merged first.
//!
//! The algorithm is that of SentencePiece's `bpe_model.cc` (Kudo and Richardson, 2018,
//! <https://arxiv.org/abs/1808.06226>): a heap of candidate pairs and a linked list of symbols, O(n log n) in the
//! length of the text. Spaces are written U+2581 in the file; here pieces hold a plain space, and a U+2581 in the
//! text counts as one, as it does in SentencePiece.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::error::TokenizerError;
use super::vocabulary::{
    ByteStrings, TokenType, Vocabulary, VocabularyData, WholeWords, parse_byte_token,
};

/// U+2581, the space of SentencePiece.
pub(crate) const ESCAPED_SPACE: &str = "\u{2581}";
/// No symbol: the end of the list.
const NONE: u32 = u32::MAX;

/// A SentencePiece BPE model: the vocabulary is held by the tokenizer, the scores here.
pub(crate) struct Spm {
    scores: Vec<f32>,
    unk: Option<u32>,
    has_unused: bool,
    /// The text can be taken word by word.
    splits_before_spaces: bool,
    whole: WholeWords,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Spm {
    /// Checks the vocabulary and takes it apart.
    pub fn new(
        data: &VocabularyData,
        types: Vec<TokenType>,
    ) -> Result<(Self, Vocabulary), TokenizerError> {
        let scores = data.checked_scores()?;
        let surfaces = surfaces(&data.tokens, &types)?;
        let is_piece = |id: u32, kind: TokenType| {
            let raw = data.tokens.get(id as usize).unwrap_or_default();
            kind.is_piece() && !raw.contains(&b' ')
        };
        let vocabulary = Vocabulary::new(surfaces, types, is_piece);
        let spm = Self {
            scores,
            unk: data.unk,
            has_unused: vocabulary.types().contains(&TokenType::Unused),
            splits_before_spaces: vocabulary.splits_before_spaces(),
            whole: WholeWords::new(vocabulary.len()),
        };
        Ok((spm, vocabulary))
    }

    /// Appends the tokens of `text`, whose first byte has the offset `offset` in what the caller was given.
    pub fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        space_prefix: bool,
        offset: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut plain = String::with_capacity(text.len() + 1);
        if space_prefix {
            plain.push(' ');
        }
        for (index, part) in text.split(ESCAPED_SPACE).enumerate() {
            if index > 0 {
                plain.push(' ');
            }
            plain.push_str(part);
        }
        if u32::try_from(plain.len()).is_err() {
            return Err(TokenizerError::TooLarge {
                what: "bytes of text",
                found: plain.len(),
                limit: u32::MAX as usize - 1,
            });
        }
        let mut session = Session {
            spm: self,
            vocabulary,
            text: plain.as_bytes(),
            symbols: Vec::new(),
            queue: BinaryHeap::new(),
            unused: HashMap::new(),
        };
        let encoded = match self.splits_before_spaces {
            true => session.encode_words(&plain, out),
            false => session.encode_span(&plain, 0, out),
        };
        // Offsets in `plain` are not those of the text given; the first such character in it is meant.
        encoded.map_err(|error| match error {
            TokenizerError::Unencodable { piece, .. } => TokenizerError::Unencodable {
                offset: offset + text.find(&piece).unwrap_or(0),
                piece,
            },
            other => other,
        })
    }
}

/// The bytes that each token contributes to a text.
pub(crate) fn surfaces(
    tokens: &ByteStrings,
    types: &[TokenType],
) -> Result<ByteStrings, TokenizerError> {
    let mut out = ByteStrings::new();
    for (id, (text, kind)) in tokens.iter().zip(types).enumerate() {
        match kind {
            TokenType::Byte => {
                let byte = parse_byte_token(text).ok_or_else(|| {
                    super::error::invalid(
                        format!("tokenizer.ggml.tokens[{id}]"),
                        format!(
                            "{:?} has the type byte but is not of the form <0x0A>",
                            String::from_utf8_lossy(text)
                        ),
                    )
                })?;
                out.push(&[byte])?;
            }
            TokenType::Normal | TokenType::Unused => out.push(&unescape_spaces(text))?,
            _ => out.push(text)?,
        }
    }
    Ok(out)
}

/// `text` with a space for each U+2581.
pub(crate) fn unescape_spaces(text: &[u8]) -> Vec<u8> {
    let escaped = ESCAPED_SPACE.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.first() {
        match rest.strip_prefix(escaped) {
            Some(after) => {
                out.push(b' ');
                rest = after;
            }
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
        }
    }
    out
}

/// Ends of the words of `text`: a word starts with the spaces before it.
pub(crate) fn word_ends(text: &[u8]) -> impl Iterator<Item = usize> {
    (1..=text.len()).filter(move |&i| i == text.len() || (text[i] == b' ' && text[i - 1] != b' '))
}

struct Session<'a> {
    spm: &'a Spm,
    vocabulary: &'a Vocabulary,
    text: &'a [u8],
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
    /// Length of the left part of each merged span that became an unused piece, by its start and length.
    unused: HashMap<(u32, u32), u32>,
}

impl Session<'_> {
    fn encode_words(&mut self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut start = 0;
        let (spm, vocabulary) = (self.spm, self.vocabulary);
        for end in word_ends(text.as_bytes()) {
            let word = &text[start..end];
            match vocabulary.piece(word.as_bytes()) {
                Some(id) => {
                    let merge = |out: &mut Vec<u32>| self.encode_span(word, start, out);
                    spm.whole.encode(id, out, merge)?;
                }
                None => self.encode_span(word, start, out)?,
            }
            start = end;
        }
        Ok(())
    }

    /// Encodes the span of the text that is `span` and starts at `start`.
    fn encode_span(
        &mut self,
        span: &str,
        start: usize,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        self.symbols.clear();
        self.queue.clear();
        self.unused.clear();
        self.list_symbols(span, start);
        for left in 1..self.symbols.len() as u32 {
            self.offer(left - 1, left);
        }
        while let Some(candidate) = self.queue.pop() {
            self.merge(&candidate);
        }
        let mut index = 0;
        while index != NONE {
            let symbol = self.symbols[index as usize];
            self.emit(symbol.start, symbol.len, out)?;
            index = symbol.next;
        }
        Ok(())
    }

    fn list_symbols(&mut self, span: &str, start: usize) {
        let count = span.chars().count() as u32;
        for (index, (at, char)) in (0u32..).zip(span.char_indices()) {
            self.symbols.push(Symbol {
                start: (start + at) as u32,
                len: char.len_utf8() as u32,
                prev: index.wrapping_sub(1),
                next: if index + 1 == count { NONE } else { index + 1 },
            });
        }
    }

    fn bytes(&self, start: u32, len: u32) -> &[u8] {
        &self.text[start as usize..(start + len) as usize]
    }

    /// Puts the pair into the queue if it makes a piece.
    fn offer(&mut self, left: u32, right: u32) {
        let (a, b) = (self.symbols[left as usize], self.symbols[right as usize]);
        let len = a.len + b.len;
        let Some(id) = self.vocabulary.piece(self.bytes(a.start, len)) else {
            return;
        };
        self.queue.push(Candidate {
            score: self.spm.scores[id as usize],
            left,
            right,
            len,
        });
        if self.spm.has_unused && self.vocabulary.token_type(id) == Some(TokenType::Unused) {
            self.unused.insert((a.start, len), a.len);
        }
    }

    fn merge(&mut self, candidate: &Candidate) {
        let left = self.symbols[candidate.left as usize];
        let right = self.symbols[candidate.right as usize];
        if left.len == 0 || right.len == 0 || left.len + right.len != candidate.len {
            return; // One of the two was merged with another symbol meanwhile.
        }
        self.symbols[candidate.right as usize].len = 0;
        let merged = &mut self.symbols[candidate.left as usize];
        merged.len = candidate.len;
        merged.next = right.next;
        if right.next != NONE {
            self.symbols[right.next as usize].prev = candidate.left;
            self.offer(candidate.left, right.next);
        }
        if left.prev != NONE {
            self.offer(left.prev, candidate.left);
        }
    }

    /// Appends the token of a span: the piece, the parts of an unused piece, its bytes, or the unknown token.
    fn emit(&self, start: u32, len: u32, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if self.unused.is_empty() {
            return self.emit_piece(start, len, out);
        }
        let mut stack = vec![(start, len)];
        while let Some((start, len)) = stack.pop() {
            match self.unused.get(&(start, len)) {
                Some(&left) => stack.extend([(start + left, len - left), (start, left)]),
                None => self.emit_piece(start, len, out)?,
            }
        }
        Ok(())
    }

    fn emit_piece(&self, start: u32, len: u32, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self.vocabulary.piece(self.bytes(start, len)) {
            Some(id) => {
                out.push(id);
                Ok(())
            }
            None => self.emit_bytes(start, len, out),
        }
    }

    fn emit_bytes(&self, start: u32, len: u32, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let bytes = self.bytes(start, len);
        if bytes.iter().all(|b| self.vocabulary.byte(*b).is_some()) {
            out.extend(bytes.iter().filter_map(|b| self.vocabulary.byte(*b)));
            return Ok(());
        }
        let Some(unk) = self.spm.unk else {
            return Err(TokenizerError::Unencodable {
                piece: String::from_utf8_lossy(bytes).into_owned(),
                offset: start as usize,
            });
        };
        // SentencePiece makes one unknown token of a run of unknown characters.
        if out.last() != Some(&unk) {
            out.push(unk);
        }
        Ok(())
    }
}
