//! `tokenizer.json` of Hugging Face folders, by the `tokenizers` crate, which defines the format.
//!
//! The crate encodes. Decoding is this module's own, from a table of what each token contributes, since the crate's
//! streaming decoder needs the whole text so far.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token,
    TokenizerImpl,
};

use super::error::TokenizerError;
use super::spelling::Spelling;
use super::vocabulary::{ByteStrings, MAX_TOKENS, TokenType, VocabularyData, parse_byte_token};
use super::{Additions, EncodeOptions};

/// The contents of the files of a Hugging Face folder that make its tokenizer.
#[derive(Debug, Clone, Default)]
pub struct HfTokenizerFiles<'a> {
    /// Where `tokenizer.json` came from, for messages.
    pub path: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, which names BOS and EOS.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `generation_config.json`, which lists the tokens that end a text.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`, which may list them too.
    pub config: Option<&'a [u8]>,
}

pub(crate) type Encoder = TokenizerImpl<
    SharedModel,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Two encoders over one vocabulary: whether special tokens are looked for is fixed in each.
pub(crate) struct HfEncoder {
    parsing_special: Encoder,
    taking_all_as_text: Encoder,
    bos: Option<u32>,
}

/// What was read of a folder.
pub(crate) struct HfParts {
    pub encoder: HfEncoder,
    /// Token texts and ids in the form that GGUF files have them, as far as it goes.
    pub data: VocabularyData,
    pub surfaces: ByteStrings,
    pub types: Vec<TokenType>,
    /// Further tokens that end a text.
    pub stop: Vec<u32>,
    pub adds: Additions,
}

impl HfEncoder {
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let encoder = match options.parse_special {
            true => &self.parsing_special,
            false => &self.taking_all_as_text,
        };
        let encoded = guarded(|| encoder.encode_fast(text, options.add_bos))?;
        let encoded = encoded.map_err(|error| TokenizerError::Split {
            reason: error.to_string(),
        })?;
        let ids = encoded.get_ids();
        let doubled = options.add_bos && self.bos.is_some();
        Ok(match ids {
            [first, rest @ ..]
                if doubled && Some(*first) == self.bos && rest.first() == Some(first) =>
            {
                rest.to_vec()
            }
            _ => ids.to_vec(),
        })
    }
}

impl HfEncoder {
    /// Two texts as the file's template joins them, and where segment 1 begins.
    pub fn encode_pair(
        &self,
        first: &str,
        second: &str,
    ) -> Result<(Vec<u32>, Option<usize>), TokenizerError> {
        let encoded = guarded(|| self.taking_all_as_text.encode((first, second), true))?;
        let encoded = encoded.map_err(|error| TokenizerError::Split {
            reason: error.to_string(),
        })?;
        let second_segment = encoded.get_type_ids().iter().position(|&id| id == 1);
        Ok((encoded.get_ids().to_vec(), second_segment))
    }
}

/// Reads the files.
///
/// # Errors
/// Files that are not what they should be; ids far beyond the number of tokens.
pub(crate) fn read(files: &HfTokenizerFiles<'_>) -> Result<HfParts, TokenizerError> {
    let fail = |reason: String| TokenizerError::File {
        path: files.path.clone(),
        reason,
    };
    let raw: RawTokenizer =
        serde_json::from_slice(files.tokenizer).map_err(|error| fail(error.to_string()))?;
    let parsed = guarded(|| tokenizers::Tokenizer::from_bytes(files.tokenizer))?
        .map_err(|error| fail(error.to_string()))?;
    let names = Names::read(files, &parsed, &raw)?;
    let table = Table::new(&parsed, &raw, &names, &fail)?;
    let stop = stop_ids(files, table.types.len())?;
    let encoder = HfEncoder::of_file(&parsed, names.bos).map_err(fail)?;
    let adds = additions(&encoder, &names, table.strips_space)?;
    let data = VocabularyData {
        model: raw.model.kind.unwrap_or_else(|| "tokenizer.json".into()),
        tokens: table.texts,
        bos: names.bos,
        eos: names.eos,
        unk: names.unk,
        sep: names.sep,
        pad: names.pad,
        ..VocabularyData::default()
    };
    Ok(HfParts {
        encoder,
        data,
        surfaces: table.surfaces,
        types: table.types,
        stop,
        adds,
    })
}

impl HfEncoder {
    fn of_file(parsed: &tokenizers::Tokenizer, bos: Option<u32>) -> Result<Self, String> {
        Self::new(parsed.get_model().clone(), bos, &|encoder| {
            encoder
                .with_normalizer(parsed.get_normalizer().cloned())
                .map_err(|error| error.to_string())?
                .with_pre_tokenizer(parsed.get_pre_tokenizer().cloned())
                .with_post_processor(parsed.get_post_processor().cloned())
                .with_added_vocabulary(parsed.get_added_vocabulary().clone());
            Ok(())
        })
    }

    /// Both encoders over `model`, each completed by `complete`.
    pub fn new(
        model: ModelWrapper,
        bos: Option<u32>,
        complete: &dyn Fn(&mut Encoder) -> Result<(), String>,
    ) -> Result<Self, String> {
        let model = SharedModel(Arc::new(model));
        let build = |as_text: bool| -> Result<Encoder, String> {
            let mut encoder = Encoder::new(model.clone());
            complete(&mut encoder)?;
            encoder.set_encode_special_tokens(as_text);
            Ok(encoder)
        };
        Ok(Self {
            parsing_special: build(false)?,
            taking_all_as_text: build(true)?,
            bos,
        })
    }
}

/// What the encoder puts around a text, found by asking it.
fn additions(
    encoder: &HfEncoder,
    names: &Names,
    space_prefix: bool,
) -> Result<Additions, TokenizerError> {
    let empty = encoder.encode("", EncodeOptions::default())?;
    Ok(Additions {
        bos: names.bos.is_some() && empty.first() == names.bos.as_ref(),
        eos: names.eos.is_some() && empty.len() > 1 && empty.last() == names.eos.as_ref(),
        sep: names.sep.is_some() && empty.len() > 1 && empty.last() == names.sep.as_ref(),
        space_prefix,
    })
}

/// The parts of `tokenizer.json` that decoding needs.
#[derive(Deserialize)]
struct RawTokenizer {
    #[serde(default)]
    decoder: Option<serde_json::Value>,
    model: RawModel,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u32>,
}

/// `tokenizer_config.json`.
#[derive(Deserialize, Default)]
struct RawConfig {
    bos_token: Option<RawToken>,
    eos_token: Option<RawToken>,
    unk_token: Option<RawToken>,
    sep_token: Option<RawToken>,
    pad_token: Option<RawToken>,
    cls_token: Option<RawToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawToken {
    Text(String),
    Token { content: String },
    Other(serde::de::IgnoredAny),
}

impl RawToken {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Token { content: text } => Some(text),
            Self::Other(_) => None,
        }
    }
}

/// `generation_config.json` and `config.json`.
#[derive(Deserialize, Default)]
struct RawGeneration {
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
    Other(serde::de::IgnoredAny),
}

impl Ids {
    fn all(&self) -> &[i64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
            Self::Other(_) => &[],
        }
    }
}

fn parse_json<T: serde::de::DeserializeOwned + Default>(
    path: &Path,
    name: &str,
    contents: Option<&[u8]>,
) -> Result<T, TokenizerError> {
    let Some(contents) = contents else {
        return Ok(T::default());
    };
    serde_json::from_slice(contents).map_err(|error| TokenizerError::File {
        path: path.with_file_name(name),
        reason: error.to_string(),
    })
}

/// Ids of tokens with a role.
struct Names {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    sep: Option<u32>,
    pad: Option<u32>,
}

impl Names {
    fn read(
        files: &HfTokenizerFiles<'_>,
        parsed: &tokenizers::Tokenizer,
        raw: &RawTokenizer,
    ) -> Result<Self, TokenizerError> {
        let name = "tokenizer_config.json";
        let config: RawConfig = parse_json(&files.path, name, files.tokenizer_config)?;
        let generation = generation_configs(files)?;
        let named = |token: &Option<RawToken>| {
            let text = token.as_ref()?.text()?;
            parsed.token_to_id(text)
        };
        let listed = |ids: &Option<Ids>| {
            let first = *ids.as_ref()?.all().first()?;
            let id = u32::try_from(first).ok()?;
            parsed.id_to_token(id).map(|_| id)
        };
        let first_listed = |pick: fn(&RawGeneration) -> &Option<Ids>| {
            generation.iter().find_map(|config| listed(pick(config)))
        };
        let model_unk = raw.model.unk_token.as_deref();
        Ok(Self {
            bos: named(&config.bos_token)
                .or_else(|| named(&config.cls_token))
                .or_else(|| first_listed(|config| &config.bos_token_id)),
            eos: named(&config.eos_token).or_else(|| first_listed(|config| &config.eos_token_id)),
            unk: model_unk
                .and_then(|text| parsed.token_to_id(text))
                .or(raw.model.unk_id)
                .or_else(|| named(&config.unk_token)),
            sep: named(&config.sep_token),
            pad: named(&config.pad_token),
        })
    }
}

fn generation_configs(files: &HfTokenizerFiles<'_>) -> Result<[RawGeneration; 2], TokenizerError> {
    Ok([
        parse_json(
            &files.path,
            "generation_config.json",
            files.generation_config,
        )?,
        parse_json(&files.path, "config.json", files.config)?,
    ])
}

/// Tokens that end a text, from both configurations.
fn stop_ids(files: &HfTokenizerFiles<'_>, vocab_size: usize) -> Result<Vec<u32>, TokenizerError> {
    let mut out = Vec::new();
    for config in generation_configs(files)? {
        for id in config.eos_token_id.iter().flat_map(Ids::all) {
            // Negative: none. Beyond the vocabulary: an output that is never chosen, as it has no text.
            if let Ok(id) = u32::try_from(*id)
                && (id as usize) < vocab_size
            {
                out.push(id);
            }
        }
    }
    Ok(out)
}

/// Every token by id.
struct Table {
    texts: ByteStrings,
    surfaces: ByteStrings,
    types: Vec<TokenType>,
    strips_space: bool,
}

impl Table {
    fn new(
        parsed: &tokenizers::Tokenizer,
        raw: &RawTokenizer,
        names: &Names,
        fail: &impl Fn(String) -> TokenizerError,
    ) -> Result<Self, TokenizerError> {
        let spelling = Spelling::read(raw.decoder.as_ref()).map_err(fail)?;
        let added = parsed.get_added_tokens_decoder();
        let by_id: BTreeMap<u32, String> = parsed
            .get_vocab(true)
            .into_iter()
            .map(|(text, id)| (id, text))
            .collect();
        let highest = by_id.last_key_value().map_or(0, |(id, _)| *id as usize);
        // Gaps between ids are allowed, but not a table that the file's own length does not pay for.
        let limit = (4 * by_id.len() + 65_536).min(MAX_TOKENS);
        if highest >= limit {
            return Err(fail(format!(
                "a token has the id {highest}, but there are only {} tokens",
                by_id.len()
            )));
        }
        let mut table = Self {
            texts: ByteStrings::new(),
            surfaces: ByteStrings::new(),
            types: Vec::new(),
            strips_space: spelling.strips_space,
        };
        for (id, text) in by_id {
            while table.types.len() < id as usize {
                table.push("", b"", TokenType::Unused)?;
            }
            match added.get(&id) {
                Some(token) => {
                    let kind = match token.special {
                        true => TokenType::Control,
                        false => TokenType::UserDefined,
                    };
                    table.push(&token.content, token.content.as_bytes(), kind)?;
                }
                None if Some(id) == names.unk => {
                    table.push(&text, text.as_bytes(), TokenType::Unknown)?;
                }
                None => match parse_byte_token(text.as_bytes()) {
                    Some(byte) if spelling.byte_fallback => {
                        table.push(&text, &[byte], TokenType::Byte)?;
                    }
                    _ => table.push(&text, &spelling.surface(&text), TokenType::Normal)?,
                },
            }
        }
        Ok(table)
    }

    fn push(&mut self, text: &str, surface: &[u8], kind: TokenType) -> Result<(), TokenizerError> {
        self.texts.push(text.as_bytes())?;
        self.surfaces.push(surface)?;
        self.types.push(kind);
        Ok(())
    }
}

/// Runs code of the `tokenizers` crate, which does not promise to survive every file, and makes an error of a panic.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, TokenizerError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        TokenizerError::Split {
            reason: format!("the tokenizers library panicked: {text}"),
        }
    })
}

/// A model that several encoders share, so that its vocabulary is held once.
#[derive(Clone)]
pub(crate) struct SharedModel(Arc<ModelWrapper>);

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        self.0.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn get_vocab(&self) -> std::collections::HashMap<String, u32> {
        self.0.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }

    fn get_trainer(&self) -> TrainerWrapper {
        self.0.get_trainer()
    }
}
