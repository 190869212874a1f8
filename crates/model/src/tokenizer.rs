//! Text to tokens and back.
//!
//! A [`Tokenizer`] is built from the vocabulary in a GGUF file ([`Tokenizer::from_gguf_metadata`]) or from plain data
//! ([`Tokenizer::from_vocabulary`]). It is cheap to clone and shared between threads. [`Detokenizer`] turns tokens
//! back into text as they come, never splitting a character.
//!
//! Where implementations differ, this one follows llama.cpp for GGUF files, since their vocabularies are written for
//! it, except that control and byte tokens can never come out of merging ordinary text: as in SentencePiece, a
//! user who writes `<s>` gets text unless special tokens are asked for.

mod bpe;
mod charsmap;
mod detokenizer;
mod error;
mod hf;
mod metadata;
mod pretokenize;
mod special;
mod spelling;
mod spm;
mod stop;
mod unigram;
mod vocabulary;
mod wordpiece;

use std::sync::Arc;

pub use detokenizer::{DetokenizeOptions, Detokenizer};
pub use error::TokenizerError;
pub use hf::HfTokenizerFiles;
pub use metadata::{MetaLookup, MetaValue, vocabulary_from_gguf, vocabulary_from_gguf_metadata};
pub use vocabulary::{ByteStrings, MAX_TOKENS, TokenType, VocabularyData};

use crate::gguf::GgufFile;
use crate::safetensors::{HfFolder, read_json};
use crate::source::{ModelFileError, ModelSource};
use bpe::{Alphabet, Bpe};
use hf::HfEncoder;
use pretokenize::Family;
pub(crate) use pretokenize::splitter_name;
use special::{Fragment, SpecialMatcher};
use spm::Spm;
use unigram::Unigram;
use vocabulary::{TextIndex, Vocabulary};

/// How a text is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put around the text what the vocabulary says belongs there: BOS before it ([`Tokenizer::adds_bos`]), and for
    /// some vocabularies EOS or a separator after it. A text that already begins with BOS gets no second one.
    pub add_bos: bool,
    /// Take the texts of control tokens, such as `<|im_start|>`, for those tokens. Set it for prompts that a chat
    /// template made; leave it off for text from outside, which could otherwise forge a turn.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// Ordinary text at the beginning of a sequence.
    fn default() -> Self {
        Self {
            add_bos: true,
            parse_special: false,
        }
    }
}

/// A vocabulary and the algorithm that it belongs to. Cloning shares them.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    model: String,
    pre: Option<String>,
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    special: SpecialMatcher,
    ids: SpecialIds,
    adds: Additions,
}

enum Algorithm {
    Spm(Spm),
    Bpe(Bpe),
    Unigram(Unigram),
    /// Finds special tokens itself, as the following does.
    WordPiece(HfEncoder),
    /// Adds BOS and the like itself, too.
    Hf(HfEncoder),
}

impl Algorithm {
    /// The algorithm that `data.model` names, its vocabulary, and what it adds where the file does not say.
    fn new(
        data: &VocabularyData,
        index: &TextIndex,
        types: Vec<TokenType>,
    ) -> Result<(Self, Vocabulary, Additions), TokenizerError> {
        let mut default = Additions::default();
        let byte_pair = |alphabet, pre: &str, default: &mut Additions| {
            let family = Family::by_name(pre)?;
            default.bos = family.add_bos;
            Bpe::new(data, index, types.clone(), alphabet, &family)
        };
        let (algorithm, vocabulary) = match data.model.as_str() {
            "llama" => {
                (default.bos, default.space_prefix) = (true, true);
                let (spm, vocabulary) = Spm::new(data, types)?;
                (Self::Spm(spm), vocabulary)
            }
            "gpt2" => {
                let pre = data.pre.as_deref();
                let pre = pre.ok_or_else(|| TokenizerError::Missing {
                    field: "tokenizer.ggml.pre".into(),
                })?;
                let (bpe, vocabulary) = byte_pair(Alphabet::Bytes, pre, &mut default)?;
                (Self::Bpe(bpe), vocabulary)
            }
            "gemma4" => {
                let (bpe, vocabulary) = byte_pair(Alphabet::Characters, "gemma4", &mut default)?;
                default.bos = true;
                (Self::Bpe(bpe), vocabulary)
            }
            "t5" => {
                (default.eos, default.space_prefix) = (true, true);
                let (unigram, vocabulary) = Unigram::new(data, types)?;
                (Self::Unigram(unigram), vocabulary)
            }
            "bert" => {
                (default.bos, default.sep, default.space_prefix) = (true, true, true);
                let (encoder, vocabulary) = wordpiece::build(data, types)?;
                (Self::WordPiece(encoder), vocabulary)
            }
            other => {
                return Err(TokenizerError::UnknownModel {
                    model: other.into(),
                    known: "llama, gpt2, gemma4, t5, bert",
                });
            }
        };
        Ok((algorithm, vocabulary, default))
    }
}

struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unk: Option<u32>,
    sep: Option<u32>,
    pad: Option<u32>,
    stop: Vec<u32>,
}

/// What encoding adds to a text.
#[derive(Clone, Copy, Default)]
struct Additions {
    bos: bool,
    eos: bool,
    sep: bool,
    space_prefix: bool,
}

impl Additions {
    fn new(data: &VocabularyData, default: Additions) -> Result<Self, TokenizerError> {
        let need = |wanted: Option<bool>, id: Option<u32>, field: &str| match (wanted, id) {
            (Some(true), None) => Err(TokenizerError::Missing {
                field: field.into(),
            }),
            _ => Ok(()),
        };
        need(data.add_bos, data.bos, "tokenizer.ggml.bos_token_id")?;
        need(data.add_eos, data.eos, "tokenizer.ggml.eos_token_id")?;
        Ok(Self {
            bos: data.add_bos.unwrap_or(default.bos) && data.bos.is_some(),
            eos: data.add_eos.unwrap_or(default.eos) && data.eos.is_some(),
            sep: data.add_sep.unwrap_or(default.sep) && data.sep.is_some(),
            space_prefix: data.add_space_prefix.unwrap_or(default.space_prefix),
        })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("model", &self.inner.model)
            .field("pre", &self.inner.pre)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of an open GGUF file.
    ///
    /// A splitter (`tokenizer.ggml.pre`) that is not known is an error. To use another one in its place, take
    /// [`vocabulary_from_gguf`], set [`VocabularyData::pre`], and build with [`Self::from_vocabulary`].
    ///
    /// # Errors
    /// As [`Self::from_vocabulary`], and for keys that are missing or of the wrong type.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        Self::from_vocabulary(&vocabulary_from_gguf(file)?)
    }

    /// Builds a tokenizer from metadata; `get` looks a key up.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub fn from_gguf_metadata(get: MetaLookup<'_, '_>) -> Result<Self, TokenizerError> {
        Self::from_vocabulary(&vocabulary_from_gguf_metadata(get)?)
    }

    /// Builds the tokenizer of a Hugging Face folder from the contents of its files.
    ///
    /// # Errors
    /// [`TokenizerError::File`] where a file is not what it should be.
    pub fn from_hf_files(files: &HfTokenizerFiles<'_>) -> Result<Self, TokenizerError> {
        let mut parts = hf::read(files)?;
        let index = TextIndex::of_first(&parts.data.tokens);
        let mut stop = stop::find_stop_ids(&parts.data, &index, &mut parts.types);
        stop.extend(parts.stop);
        stop.sort_unstable();
        stop.dedup();
        let vocabulary = Vocabulary::new(parts.surfaces, parts.types, |_, kind| kind.is_piece());
        Self::assemble(
            &parts.data,
            &index,
            stop,
            Algorithm::Hf(parts.encoder),
            vocabulary,
            parts.adds,
        )
    }

    /// Builds the tokenizer of a Hugging Face folder that is open.
    ///
    /// # Errors
    /// As [`Self::from_hf_files`]; also if the folder has no `tokenizer.json`.
    pub fn from_hf_folder(folder: &HfFolder) -> Result<Self, TokenizerError> {
        let file_error = |error: &ModelFileError| TokenizerError::File {
            path: folder.path().to_owned(),
            reason: error.to_string(),
        };
        let path = folder
            .tokenizer_json()
            .ok_or_else(|| TokenizerError::File {
                path: folder.path().to_owned(),
                reason: "there is no tokenizer.json".into(),
            })?;
        let tokenizer = read_json(&path).map_err(|error| file_error(&error))?;
        let config_path = folder.tokenizer_config_json();
        let tokenizer_config = config_path
            .map(|path| read_json(&path))
            .transpose()
            .map_err(|error| file_error(&error))?;
        Self::from_hf_files(&HfTokenizerFiles {
            path,
            tokenizer: &tokenizer,
            tokenizer_config: tokenizer_config.as_deref(),
            generation_config: folder.generation_config_json(),
            config: Some(folder.config_json()),
        })
    }

    /// Builds the tokenizer that a model brings, in a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// As [`Self::from_gguf`] and [`Self::from_hf_folder`]; also as [`Self::check_model`].
    pub fn from_source(source: &ModelSource) -> Result<Self, TokenizerError> {
        let tokenizer = match (source.gguf(), source.folder()) {
            (Some(file), _) => Self::from_gguf(file),
            (None, Some(folder)) => Self::from_hf_folder(folder),
            (None, None) => Err(TokenizerError::Missing {
                field: "tokenizer".into(),
            }),
        }?;
        tokenizer.check_model(source.config().vocab_size)?;
        Ok(tokenizer)
    }

    /// Checks that a model of so many tokens has all that encoding may give. It may have more, as models padded to a
    /// round size do: outputs without a token are no text.
    ///
    /// # Errors
    /// [`TokenizerError::BeyondModel`] with the first token that the model has not.
    pub fn check_model(&self, model_tokens: usize) -> Result<(), TokenizerError> {
        let first = (model_tokens..self.vocab_size())
            .map(|id| id as u32)
            .find(|&id| {
                self.token_type(id)
                    .is_some_and(|kind| kind != TokenType::Unused)
            });
        match first {
            None => Ok(()),
            Some(id) => Err(TokenizerError::BeyondModel {
                id,
                text: self.token_text(id).unwrap_or_default(),
                model_tokens,
            }),
        }
    }

    /// Checks a vocabulary and builds the tokenizer for it.
    ///
    /// # Errors
    /// An algorithm or a text splitter that is not known; arrays whose lengths differ; scores that are NaN; two
    /// tokens with one text; ids outside the vocabulary; rules that refer to tokens that do not exist.
    pub fn from_vocabulary(data: &VocabularyData) -> Result<Self, TokenizerError> {
        data.check_ids()?;
        let mut types = data.types()?;
        let index = TextIndex::of_all(&data.tokens)?;
        let stop = stop::find_stop_ids(data, &index, &mut types);
        let (algorithm, vocabulary, default) = Algorithm::new(data, &index, types)?;
        let adds = Additions::new(data, default)?;
        Self::assemble(data, &index, stop, algorithm, vocabulary, adds)
    }

    fn assemble(
        data: &VocabularyData,
        index: &TextIndex,
        stop: Vec<u32>,
        algorithm: Algorithm,
        vocabulary: Vocabulary,
        adds: Additions,
    ) -> Result<Self, TokenizerError> {
        let ids = SpecialIds {
            bos: data.bos,
            eos: data.eos,
            eot: stop::find_eot(data, index),
            unk: data.unk,
            sep: data.sep,
            pad: data.pad,
            stop,
        };
        let (left, right) = (data.strip_left.clone(), data.strip_right.clone());
        let special = SpecialMatcher::new(&vocabulary, left, right)?;
        Ok(Self {
            inner: Arc::new(Inner {
                model: data.model.clone(),
                pre: data.pre.clone(),
                vocabulary,
                algorithm,
                special,
                ids,
                adds,
            }),
        })
    }

    /// The tokens of `text`.
    ///
    /// # Errors
    /// [`TokenizerError::Unencodable`] where the vocabulary cannot express the text, which vocabularies with byte
    /// tokens or an unknown token always can.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let Inner { adds, ids, .. } = &*self.inner;
        let mut out = match &self.inner.algorithm {
            Algorithm::Hf(encoder) => return encoder.encode(text, options),
            Algorithm::WordPiece(encoder) => encoder.encode(text, options)?,
            _ => self.encode_fragments(text, options.parse_special)?,
        };
        if options.add_bos {
            match ids.bos {
                Some(bos) if adds.bos && out.first() != Some(&bos) => out.insert(0, bos),
                _ => {}
            }
            out.extend(ids.sep.filter(|_| adds.sep));
            out.extend(ids.eos.filter(|_| adds.eos));
        }
        Ok(out)
    }

    /// The tokens of two texts that are judged together, and where the second segment begins, for models that tell two
    /// apart: as the tokenizer's own file has it, or as BERT and RoBERTa do.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
    ) -> Result<(Vec<u32>, Option<usize>), TokenizerError> {
        let Inner {
            adds,
            ids,
            algorithm,
            ..
        } = &*self.inner;
        if let Algorithm::Hf(encoder) = algorithm {
            return encoder.encode_pair(first, second);
        }
        let mut tokens = self.encode(first, EncodeOptions::default())?;
        let second_segment = tokens.len();
        let second = self.encode(second, EncodeOptions::default())?;
        let begins = ids.bos.is_some_and(|bos| second.first() == Some(&bos));
        // RoBERTa puts EOS between the texts twice.
        let roberta = adds.bos && adds.eos && !matches!(algorithm, Algorithm::WordPiece(_));
        tokens.extend(ids.eos.filter(|_| roberta));
        tokens.extend(&second[usize::from(begins)..]);
        Ok((tokens, Some(second_segment)))
    }

    /// The tokens of `text`, which must be UTF-8.
    ///
    /// # Errors
    /// [`TokenizerError::NotUtf8`] with the offset of the first invalid byte; else as [`Self::encode`].
    pub fn encode_bytes(
        &self,
        text: &[u8],
        options: EncodeOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        let text = std::str::from_utf8(text).map_err(|error| TokenizerError::NotUtf8 {
            offset: error.valid_up_to(),
        })?;
        self.encode(text, options)
    }

    fn encode_fragments(
        &self,
        text: &str,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let Inner {
            vocabulary,
            algorithm,
            special,
            adds,
            ..
        } = &*self.inner;
        let mut encoded = Vec::with_capacity(text.len() / 4 + 2);
        let out = &mut encoded;
        let mut after_special = true;
        special.split(text, parse_special, |fragment| {
            match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    after_special = true;
                }
                Fragment::Text { text, offset } => {
                    let prefix = adds.space_prefix && std::mem::take(&mut after_special);
                    match algorithm {
                        Algorithm::Spm(spm) => spm.encode(vocabulary, text, prefix, offset, out)?,
                        Algorithm::Bpe(bpe) => bpe.encode(vocabulary, text, offset, out)?,
                        Algorithm::Unigram(unigram) => unigram.encode(text, prefix, out)?,
                        Algorithm::WordPiece(_) | Algorithm::Hf(_) => {}
                    }
                }
            }
            Ok(())
        })?;
        Ok(encoded)
    }

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32], options: DetokenizeOptions) -> String {
        let mut detokenizer = Detokenizer::new(self, options);
        let mut out = String::new();
        for id in tokens {
            detokenizer.push_to(*id, &mut out);
        }
        out.push_str(&detokenizer.finish());
        out
    }

    /// A [`Detokenizer`] of this vocabulary.
    pub fn detokenizer(&self, options: DetokenizeOptions) -> Detokenizer {
        Detokenizer::new(self, options)
    }

    /// The bytes that token `id` contributes to a text, a special token its own name; `None` for an id that does not
    /// exist. One token's bytes need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.vocabulary.surface(id)
    }

    /// [`Self::token_bytes`] for people: what is not UTF-8 becomes U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.token_bytes(id)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The id of the token whose bytes are exactly `text`, whether text or special.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let special = self.inner.special.find(text);
        special.or_else(|| self.inner.vocabulary.piece(text.as_bytes()))
    }

    /// Number of tokens. A model may have more outputs than this.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocabulary.len()
    }

    /// What the token is for.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.inner.vocabulary.token_type(id)
    }

    /// Whether `id` is a control or unknown token, which is left out of text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(
            self.token_type(id),
            Some(TokenType::Control | TokenType::Unknown)
        )
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.inner.ids.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.inner.ids.eos
    }

    /// End of turn: the file's, or one known by its text.
    pub fn eot(&self) -> Option<u32> {
        self.inner.ids.eot
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.inner.ids.unk
    }

    /// The separator of sentence pairs.
    pub fn sep(&self) -> Option<u32> {
        self.inner.ids.sep
    }

    /// The padding token.
    pub fn pad(&self) -> Option<u32> {
        self.inner.ids.pad
    }

    /// Tokens after which a model has nothing more to say: EOS, EOT and those known by their text. Ascending.
    pub fn stop_ids(&self) -> &[u32] {
        &self.inner.ids.stop
    }

    /// Whether `id` is one of [`Self::stop_ids`].
    pub fn is_stop(&self, id: u32) -> bool {
        self.inner.ids.stop.binary_search(&id).is_ok()
    }

    /// Whether encoding with [`EncodeOptions::add_bos`] puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.inner.adds.bos
    }

    /// Whether encoding with [`EncodeOptions::add_bos`] puts EOS last.
    pub fn adds_eos(&self) -> bool {
        self.inner.adds.eos
    }

    /// Whether encoding puts a space before a text.
    pub fn adds_space_prefix(&self) -> bool {
        self.inner.adds.space_prefix
    }

    /// The algorithm by the name that GGUF gives it, such as `llama` or `gpt2`.
    pub fn model(&self) -> &str {
        &self.inner.model
    }

    /// The text splitter by the name that GGUF gives it.
    pub fn pre(&self) -> Option<&str> {
        self.inner.pre.as_deref()
    }
}

#[cfg(test)]
mod tests;
