//! What can be wrong with a vocabulary or with a text to be encoded.

use std::path::PathBuf;

/// An error of a tokenizer: a vocabulary that cannot be used, or a text that cannot be encoded.
///
/// `field` is the name that the model file uses, such as `tokenizer.ggml.scores`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A field that the tokenizer cannot do without is absent.
    #[error("{field}: missing")]
    Missing {
        /// Name of the field.
        field: String,
    },
    /// A field has another type than it must have.
    #[error("{field}: expected {expected}, found {found}")]
    WrongType {
        /// Name of the field.
        field: String,
        /// What it must hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// An array has another length than the vocabulary.
    #[error("{field}: has {found} entries, the vocabulary has {expected} tokens")]
    WrongLength {
        /// Name of the field.
        field: String,
        /// Number of tokens.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// A single value cannot be used.
    #[error("{field}: {reason}")]
    InvalidValue {
        /// Name of the field, with the index of the entry where it is an array.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two tokens have the same text, so that the text has no single id.
    #[error("tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// Text of both.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A special token's id lies outside the vocabulary.
    #[error("{field}: token {id} does not exist, the vocabulary has {vocab_size} tokens")]
    IdOutOfRange {
        /// Name of the field.
        field: String,
        /// The id.
        id: i64,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// The tokenizer has tokens that the model beside it has not: one of the two is another model's.
    #[error(
        "the tokenizer has token {id} ({text:?}), the model only {model_tokens} tokens: take the tokenizer \
         that belongs to the model, or resize the model's embedding"
    )]
    BeyondModel {
        /// The first such token.
        id: u32,
        /// Its text.
        text: String,
        /// Tokens of the model.
        model_tokens: usize,
    },
    /// A rule of byte-pair encoding refers to something that is not there.
    #[error("tokenizer.ggml.merges[{index}] = {text:?}: {reason}")]
    InvalidMerge {
        /// Index of the rule.
        index: usize,
        /// The rule.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The vocabulary is of a kind that is not built.
    #[error("unknown tokenizer model {model:?}; known: {known}")]
    UnknownModel {
        /// The kind that was asked for.
        model: String,
        /// The kinds that exist.
        known: &'static str,
    },
    /// The text splitter that the vocabulary was trained with is not known.
    #[error(
        "unknown pre-tokenizer {name:?} (tokenizer.ggml.pre): its tokens would be wrong. \
         Known: {known}. Convert the model again with a newer converter, or choose one of these explicitly"
    )]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// The vocabulary is larger than anything that this implementation accepts.
    #[error("{what}: {found} is over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The largest size accepted.
        limit: usize,
    },
    /// The text to be encoded is not UTF-8.
    #[error("the text is not UTF-8: invalid byte at offset {offset}")]
    NotUtf8 {
        /// Offset of the first byte that is not part of a valid sequence.
        offset: usize,
    },
    /// The vocabulary has neither a token for a piece of the text, nor byte tokens, nor an unknown token.
    #[error(
        "the vocabulary has no token for {piece:?} at offset {offset} and no unknown token to stand for it"
    )]
    Unencodable {
        /// The piece.
        piece: String,
        /// Its offset in bytes in the text given.
        offset: usize,
    },
    /// A file of the tokenizer could not be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The text splitter gave up on a text.
    #[error("splitting the text failed: {reason}")]
    Split {
        /// What went wrong.
        reason: String,
    },
}

/// Makes an [`TokenizerError::InvalidValue`].
pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> TokenizerError {
    TokenizerError::InvalidValue {
        field: field.into(),
        reason: reason.into(),
    }
}
