//! `tokenizer.json` as the metadata of GGUF files.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::config::ModelConfig;
use crate::gguf::{Array, Value};
use crate::safetensors::{HfFolder, read_json};
use crate::tokenizer::{TokenType, Tokenizer, TokenizerError, splitter_name};

use super::ConvertError;
use super::unigram::Unigram;

/// The entries `tokenizer.ggml.*` for the tokenizer of `folder`.
///
/// # Errors
/// If there is none, it is of a kind that GGUF files have no name for, or has tokens that the model has not.
pub(super) fn metadata(
    folder: &HfFolder,
    config: &ModelConfig,
) -> Result<Vec<(String, Value)>, ConvertError> {
    let tokenizer = Tokenizer::from_hf_folder(folder)?;
    tokenizer.check_model(config.vocab_size)?;
    let path = folder.tokenizer_json().unwrap_or_default();
    let refuse = |reason: String| TokenizerError::File {
        path: path.clone(),
        reason,
    };
    let contents = read_json(&path)?;
    let json: Json = serde_json::from_slice(&contents).map_err(|why| refuse(why.to_string()))?;
    let file = File {
        json: &json,
        size: config.vocab_size,
    };
    let mut out = Vec::new();
    let mut put = |key: &str, value: Value| out.push((format!("tokenizer.ggml.{key}"), value));
    let kind = json["model"]["type"].as_str().unwrap_or("BPE");
    let (mut tokens, types) = file.tokens(&tokenizer).map_err(refuse)?;
    match kind {
        "BPE" if file.is_byte_level() => {
            let name = file.splitter().ok_or_else(|| {
                refuse("splits text in a way that GGUF files have no name for".to_owned())
            })?;
            put("model", Value::from("gpt2"));
            put("pre", Value::from(name));
            let merges = file.merges().into_iter().collect();
            put("merges", Value::Array(Array::String(merges)));
        }
        "BPE" => {
            put("model", Value::from("llama"));
            put("pre", Value::from("default"));
            put("scores", Value::Array(Array::F32(file.scores(&tokens))));
        }
        "WordPiece" => {
            put("model", Value::from("bert"));
            put("pre", Value::from("default"));
            let prefix = json["model"]["continuing_subword_prefix"].as_str();
            mark_beginnings(&mut tokens, &types, prefix.unwrap_or("##"));
        }
        "Unigram" => {
            let unigram = Unigram::read(&json, tokens.len()).map_err(refuse)?;
            unigram.put(&mut put);
            put("add_eos_token", Value::Bool(tokenizer.adds_eos()));
        }
        other => return Err(refuse(format!("its model '{other}' is not converted")).into()),
    }
    put(
        "tokens",
        Value::Array(Array::String(tokens.into_iter().collect())),
    );
    put("token_type", Value::Array(Array::I32(types)));
    put_ids(&tokenizer, &mut put);
    if kind == "WordPiece" {
        if let Some(cls) = tokenizer.bos() {
            put("cls_token_id", Value::U32(cls));
        }
    } else {
        put("add_bos_token", Value::Bool(tokenizer.adds_bos()));
        let prefix = tokenizer.adds_space_prefix();
        put("add_space_prefix", Value::Bool(prefix));
    }
    if !config.causal {
        let types = config.token_types.unwrap_or(1) as u32;
        put("token_type_count", Value::U32(types));
    }
    Ok(out)
}

/// The ids of tokens with a role.
fn put_ids(tokenizer: &Tokenizer, put: &mut impl FnMut(&str, Value)) {
    let ids = [
        ("bos", tokenizer.bos()),
        ("eos", tokenizer.eos()),
        ("eot", tokenizer.eot()),
        ("unknown", tokenizer.unk()),
        ("seperator", tokenizer.sep()), // the format's spelling
        ("padding", tokenizer.pad()),
    ];
    for (name, id) in ids {
        if let Some(id) = id {
            put(&format!("{name}_token_id"), Value::U32(id));
        }
    }
}

/// WordPiece vocabularies mark what continues a word; those in GGUF files what begins one.
fn mark_beginnings(tokens: &mut [String], types: &[i32], prefix: &str) {
    for (token, &kind) in tokens.iter_mut().zip(types) {
        if kind == TokenType::Control.number() || (token.starts_with('[') && token.ends_with(']')) {
            continue;
        }
        *token = match token.strip_prefix(prefix) {
            Some(rest) => rest.to_owned(),
            None => format!("\u{2581}{token}"),
        };
    }
}

struct File<'a> {
    json: &'a Json,
    /// Tokens of the model.
    size: usize,
}

impl File<'_> {
    /// Text and type of every token of the model; those without a text are unused.
    fn tokens(&self, tokenizer: &Tokenizer) -> Result<(Vec<String>, Vec<i32>), String> {
        let mut texts: Vec<Option<String>> = vec![None; self.size];
        let mut put = |text: &str, id: Option<u64>| {
            let place = id.and_then(|id| texts.get_mut(id as usize));
            let place = place.ok_or_else(|| format!("token {text:?} has no id of the model"))?;
            *place = Some(text.to_owned());
            Ok::<(), String>(())
        };
        if let Some(vocab) = self.json["model"]["vocab"].as_object() {
            for (text, id) in vocab {
                put(text, id.as_u64())?;
            }
        }
        let pieces = self.json["model"]["vocab"].as_array();
        for (id, piece) in (0..).zip(pieces.into_iter().flatten()) {
            put(piece[0].as_str().unwrap_or_default(), Some(id))?;
        }
        let added = self.json["added_tokens"].as_array();
        for token in added.into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            put(text, token["id"].as_u64())?;
        }
        let special: HashMap<u64, bool> = added
            .into_iter()
            .flatten()
            .filter_map(|token| Some((token["id"].as_u64()?, token["special"] == Json::Bool(true))))
            .collect();
        let is_special = |id: usize| special.get(&(id as u64)).copied();
        let types = texts.iter().enumerate().map(|(id, text)| {
            let kind = match (text, is_special(id)) {
                (None, _) => TokenType::Unused,
                (_, Some(true)) => match tokenizer.unk() == Some(id as u32) {
                    true => TokenType::Unknown,
                    false => TokenType::Control,
                },
                (_, Some(false)) => TokenType::UserDefined,
                _ => tokenizer
                    .token_type(id as u32)
                    .filter(|kind| *kind == TokenType::Byte)
                    .unwrap_or(TokenType::Normal),
            };
            kind.number()
        });
        let types = types.collect();
        let texts = texts
            .into_iter()
            .enumerate()
            .map(|(id, text)| text.unwrap_or_else(|| format!("[PAD{id}]")));
        Ok((texts.collect(), types))
    }

    fn parts(&self, name: &str) -> Vec<&Json> {
        let part = &self.json[name];
        match part["type"].as_str() {
            Some("Sequence") => {
                let list = part["pretokenizers"]
                    .as_array()
                    .or(part["decoders"].as_array());
                list.into_iter().flatten().collect()
            }
            Some(_) => vec![part],
            None => Vec::new(),
        }
    }

    fn is_byte_level(&self) -> bool {
        let is = |part: &&Json| part["type"] == "ByteLevel";
        self.parts("pre_tokenizer").iter().any(is) || self.parts("decoder").iter().any(is)
    }

    /// The name of what splits texts into words.
    fn splitter(&self) -> Option<&'static str> {
        const GPT2: &str =
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let mut patterns = Vec::new();
        for part in self.parts("pre_tokenizer") {
            match part["type"].as_str()? {
                "Split" => patterns.push(part["pattern"]["Regex"].as_str()?.to_owned()),
                "Digits" if part["individual_digits"] == Json::Bool(true) => {
                    patterns.push(r"\p{N}".to_owned());
                }
                "ByteLevel" if part["use_regex"] != Json::Bool(false) => {
                    patterns.push(GPT2.to_owned());
                }
                "ByteLevel" => {}
                _ => return None,
            }
        }
        let ignore_merges = self.json["model"]["ignore_merges"] == Json::Bool(true);
        splitter_name(&patterns, ignore_merges)
    }

    /// Merges as "left right".
    fn merges(&self) -> Vec<String> {
        let merges = self.json["model"]["merges"].as_array();
        let text = |merge: &Json| match merge {
            Json::String(text) => Some(text.clone()),
            Json::Array(pair) => Some(format!(
                "{} {}",
                pair.first()?.as_str()?,
                pair.get(1)?.as_str()?
            )),
            _ => None,
        };
        merges.into_iter().flatten().filter_map(text).collect()
    }

    /// Scores that make a SentencePiece encoder merge in the order of the merges.
    fn scores(&self, tokens: &[String]) -> Vec<f32> {
        let mut rank = HashMap::new();
        for (i, merge) in self.merges().into_iter().enumerate() {
            // Pieces of such vocabularies hold no spaces.
            rank.entry(merge.replace(' ', "")).or_insert(i);
        }
        let score = |token: &String| rank.get(token).map_or(0.0, |&i| -(i as f32) - 1.0);
        tokens.iter().map(score).collect()
    }
}
