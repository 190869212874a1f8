//! The tokens themselves: as a model file gives them ([`VocabularyData`]), and checked ([`Vocabulary`]).

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU8, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::error::{TokenizerError, invalid};

/// More tokens than any published vocabulary by a factor of about 50.
pub const MAX_TOKENS: usize = 1 << 24;

/// Many byte strings in two allocations.
///
/// A vocabulary is some hundred thousand short strings; one allocation each would cost several times their length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteStrings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl ByteStrings {
    /// No strings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds one at the end. Fails when all of them together would reach 4 GiB.
    pub fn push(&mut self, text: &[u8]) -> Result<(), TokenizerError> {
        let end = self.bytes.len() + text.len();
        let end = u32::try_from(end).map_err(|_| TokenizerError::TooLarge {
            what: "bytes of all tokens together",
            found: end,
            limit: u32::MAX as usize,
        })?;
        self.bytes.extend_from_slice(text);
        self.ends.push(end);
        Ok(())
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        };
        Some(&self.bytes[start..end])
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }

    /// Collects strings; the error of [`Self::push`].
    pub fn collect<T: AsRef<[u8]>>(
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Self, TokenizerError> {
        let mut out = Self::new();
        for text in texts {
            out.push(text.as_ref())?;
        }
        Ok(out)
    }
}

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type` (and of SentencePiece).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// A piece of text.
    Normal,
    /// Stands for text that the vocabulary cannot express.
    Unknown,
    /// Steers the model; is never text.
    Control,
    /// A piece of text that is always taken whole, before anything else is looked at.
    UserDefined,
    /// May be used while merging, but never appears in the result.
    Unused,
    /// One byte, for text that no other token covers.
    Byte,
}

impl TokenType {
    /// The number that GGUF files give it.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            // 0 is "undefined" in ggml: a token without a type is text.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether encoding ordinary text may produce it by merging.
    pub(crate) fn is_piece(self) -> bool {
        matches!(self, Self::Normal | Self::Unused)
    }
}

/// A vocabulary as a model file gives it, unchecked.
///
/// Every field is untrusted; [`super::Tokenizer::from_vocabulary`] checks them. Arrays that may be absent are empty.
#[derive(Debug, Clone, Default)]
pub struct VocabularyData {
    /// The algorithm: `llama` (SentencePiece BPE), `gpt2` (byte-level BPE), `gemma4` (BPE on UTF-8 with U+2581
    /// for spaces), `bert` (WordPiece) or `t5` (Unigram).
    pub model: String,
    /// Name of the text splitter (`tokenizer.ggml.pre`); needed by `gpt2`.
    pub pre: Option<String>,
    /// Text of each token; its index is its id.
    pub tokens: ByteStrings,
    /// Score of each token; needed by `llama` and `t5`.
    pub scores: Vec<f32>,
    /// Type of each token by number (see [`TokenType`]); empty: all are text.
    pub token_types: Vec<i32>,
    /// Rules of byte-pair encoding in order of rank, each two texts with a space between; needed by `gpt2`.
    pub merges: ByteStrings,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message, where it differs from the end of a turn.
    pub eom: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Separator (`bert`).
    pub sep: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Put `bos` before a text unless the caller asks otherwise; `None`: as the algorithm and `pre` have it.
    pub add_bos: Option<bool>,
    /// Put `eos` after a text; `None`: as the algorithm has it.
    pub add_eos: Option<bool>,
    /// Put `sep` after a text; `None`: as the algorithm has it.
    pub add_sep: Option<bool>,
    /// Put a space before a text and after each special token; `None`: as the algorithm has it.
    pub add_space_prefix: Option<bool>,
    /// Collapse runs of spaces (`t5`).
    pub remove_extra_whitespaces: bool,
    /// Turn text into lower case (`bert`).
    pub lowercase: Option<bool>,
    /// Remove accents (`bert`); `None`: as `lowercase`.
    pub strip_accents: Option<bool>,
    /// Normalization table of SentencePiece (`t5`); empty: none.
    pub precompiled_charsmap: Vec<u8>,
    /// Special tokens that swallow the white space before them.
    pub strip_left: Vec<u32>,
    /// Special tokens that swallow the white space after them.
    pub strip_right: Vec<u32>,
}

impl VocabularyData {
    /// The types of all tokens, checked.
    pub(crate) fn types(&self) -> Result<Vec<TokenType>, TokenizerError> {
        let count = self.tokens.len();
        if self.token_types.is_empty() {
            return Ok(vec![TokenType::Normal; count]);
        }
        check_length("tokenizer.ggml.token_type", count, self.token_types.len())?;
        let parse = |(id, number): (usize, &i32)| {
            TokenType::from_number(*number).ok_or_else(|| {
                invalid(
                    format!("tokenizer.ggml.token_type[{id}]"),
                    format!("{number} is not a token type"),
                )
            })
        };
        self.token_types.iter().enumerate().map(parse).collect()
    }

    /// The scores of all tokens, checked: as many as tokens, and none is NaN.
    pub(crate) fn checked_scores(&self) -> Result<Vec<f32>, TokenizerError> {
        check_length(
            "tokenizer.ggml.scores",
            self.tokens.len(),
            self.scores.len(),
        )?;
        if let Some(id) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(invalid(format!("tokenizer.ggml.scores[{id}]"), "is NaN"));
        }
        // Adding 0 turns -0 into 0, so that the total order of f32 agrees with `==`.
        Ok(self.scores.iter().map(|score| score + 0.0).collect())
    }

    /// Checks what holds for every algorithm: a number of tokens in bounds, and ids within it.
    pub(crate) fn check_ids(&self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(TokenizerError::Missing {
                field: "tokenizer.ggml.tokens".into(),
            });
        }
        if count > MAX_TOKENS {
            return Err(TokenizerError::TooLarge {
                what: "number of tokens",
                found: count,
                limit: MAX_TOKENS,
            });
        }
        let ids = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("unknown", self.unk),
            ("seperator", self.sep),
            ("padding", self.pad),
        ];
        for (name, id) in ids {
            check_id(&format!("tokenizer.ggml.{name}_token_id"), id, count)?;
        }
        for id in self.strip_left.iter().chain(&self.strip_right) {
            check_id("stripping tokens", Some(*id), count)?;
        }
        Ok(())
    }
}

fn check_length(field: &str, expected: usize, found: usize) -> Result<(), TokenizerError> {
    if expected == found {
        return Ok(());
    }
    Err(TokenizerError::WrongLength {
        field: field.into(),
        expected,
        found,
    })
}

fn check_id(field: &str, id: Option<u32>, vocab_size: usize) -> Result<(), TokenizerError> {
    match id {
        Some(id) if id as usize >= vocab_size => Err(TokenizerError::IdOutOfRange {
            field: field.into(),
            id: i64::from(id),
            vocab_size,
        }),
        _ => Ok(()),
    }
}

/// Finds ids by text without holding the texts a second time.
#[derive(Clone, Default)]
pub(crate) struct TextIndex {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl TextIndex {
    /// Room for `count` texts.
    pub fn with_capacity(count: usize) -> Self {
        Self {
            table: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The id of `text` in `texts`.
    pub fn find(&self, texts: &ByteStrings, text: &[u8]) -> Option<u32> {
        let same = |id: &u32| texts.get(*id as usize) == Some(text);
        self.table.find(self.hasher.hash_one(text), same).copied()
    }

    /// Adds `texts[id]`; the id that holds this text already, if one does.
    pub fn insert(&mut self, texts: &ByteStrings, id: u32) -> Result<(), u32> {
        let text = texts.get(id as usize).unwrap_or_default();
        if let Some(first) = self.find(texts, text) {
            return Err(first);
        }
        let hasher = &self.hasher;
        let rehash = |id: &u32| hasher.hash_one(texts.get(*id as usize).unwrap_or_default());
        self.table.insert_unique(hasher.hash_one(text), id, rehash);
        Ok(())
    }

    /// An index of all `texts`; of equal ones the first.
    pub fn of_first(texts: &ByteStrings) -> Self {
        let mut index = Self::with_capacity(texts.len());
        for (id, text) in (0u32..).zip(texts.iter()) {
            if !text.is_empty() {
                let _ = index.insert(texts, id);
            }
        }
        index
    }

    /// An index of all `texts`. Two that are equal are an error; empty ones are left out.
    pub fn of_all(texts: &ByteStrings) -> Result<Self, TokenizerError> {
        let mut index = Self::with_capacity(texts.len());
        for (id, text) in (0u32..).zip(texts.iter()) {
            if text.is_empty() {
                continue;
            }
            index
                .insert(texts, id)
                .map_err(|first| TokenizerError::DuplicateToken {
                    text: String::from_utf8_lossy(text).into_owned(),
                    first,
                    second: id,
                })?;
        }
        Ok(index)
    }
}

/// Tokens with the bytes that each contributes to a text, and the way back from bytes to a token.
pub(crate) struct Vocabulary {
    surfaces: ByteStrings,
    types: Vec<TokenType>,
    pieces: TextIndex,
    bytes: Box<[Option<u32>; 256]>,
    longest_piece: usize,
    splits_before_spaces: bool,
}

impl Vocabulary {
    /// Builds it from the surface of each token; `is_piece` says which of them merging may produce.
    ///
    /// Of two pieces with one surface the first wins (their spellings in the file differ, or they would have been
    /// refused before).
    pub fn new(
        surfaces: ByteStrings,
        types: Vec<TokenType>,
        is_piece: impl Fn(u32, TokenType) -> bool,
    ) -> Self {
        let mut pieces = TextIndex::with_capacity(surfaces.len());
        let mut bytes = Box::new([None; 256]);
        let mut longest_piece = 0;
        let mut splits_before_spaces = true;
        for (id, (surface, kind)) in (0u32..).zip(surfaces.iter().zip(&types)) {
            match (kind, surface) {
                (TokenType::Byte, [byte]) => {
                    bytes[usize::from(*byte)].get_or_insert(id);
                }
                _ if !surface.is_empty()
                    && is_piece(id, *kind)
                    && pieces.insert(&surfaces, id).is_ok() =>
                {
                    longest_piece = longest_piece.max(surface.len());
                    let inner = surface.windows(2).any(|w| w[0] != b' ' && w[1] == b' ');
                    splits_before_spaces &= !inner;
                }
                _ => {}
            }
        }
        Self {
            surfaces,
            types,
            pieces,
            bytes,
            longest_piece,
            splits_before_spaces,
        }
    }

    /// Whether no piece has a space after another character, so that none reaches from one word into the next.
    pub fn splits_before_spaces(&self) -> bool {
        self.splits_before_spaces
    }

    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// The bytes that token `id` contributes to a text.
    pub fn surface(&self, id: u32) -> Option<&[u8]> {
        self.surfaces.get(id as usize)
    }

    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    pub fn types(&self) -> &[TokenType] {
        &self.types
    }

    /// The token that ordinary text `text` is, if it is one.
    pub fn piece(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest_piece {
            return None;
        }
        self.pieces.find(&self.surfaces, text)
    }

    /// The token of type byte for `byte`.
    pub fn byte(&self, byte: u8) -> Option<u32> {
        self.bytes[usize::from(byte)]
    }
}

/// What is known of each token about whether a word that is its text becomes just it.
///
/// Nearly every token does, and most words of a text are tokens; finding it out once spares them the merging. Threads
/// may find out the same thing twice; they find the same.
pub(crate) struct WholeWords(Box<[AtomicU8]>);

impl WholeWords {
    const UNKNOWN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;

    pub fn new(vocab_size: usize) -> Self {
        Self(
            (0..vocab_size)
                .map(|_| AtomicU8::new(Self::UNKNOWN))
                .collect(),
        )
    }

    /// Appends the tokens of a word whose text is that of token `id`; `merge` appends them by merging.
    pub fn encode(
        &self,
        id: u32,
        out: &mut Vec<u32>,
        merge: impl FnOnce(&mut Vec<u32>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let known = &self.0[id as usize];
        match known.load(Ordering::Relaxed) {
            Self::YES => out.push(id),
            Self::NO => merge(out)?,
            _ => {
                let before = out.len();
                merge(out)?;
                let whole = out.get(before..) == Some(&[id]);
                known.store(if whole { Self::YES } else { Self::NO }, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// The byte that a text such as `<0x0A>` names.
pub(crate) fn parse_byte_token(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}
