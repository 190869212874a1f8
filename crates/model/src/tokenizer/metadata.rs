//! Reads a vocabulary from the metadata of a GGUF file.

use super::error::{TokenizerError, invalid};
use super::vocabulary::{ByteStrings, VocabularyData};
use crate::gguf::{Array, GgufFile, Value};

/// A metadata value, as much of it as a tokenizer needs to tell apart.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue<'a> {
    /// A truth value.
    Bool(bool),
    /// Any integer type.
    Integer(i64),
    /// A string; GGUF does not promise UTF-8.
    String(&'a [u8]),
    /// An array of strings.
    Strings(Vec<&'a [u8]>),
    /// An array of any integer type.
    Integers(Vec<i64>),
    /// An array of any floating-point type.
    Floats(Vec<f32>),
    /// Anything else; the name of its type, for errors.
    Other(&'static str),
}

impl MetaValue<'_> {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a truth value",
            Self::Integer(_) => "an integer",
            Self::String(_) => "a string",
            Self::Strings(_) => "an array of strings",
            Self::Integers(_) => "an array of integers",
            Self::Floats(_) => "an array of floats",
            Self::Other(name) => name,
        }
    }
}

impl<'a> From<&'a Value> for MetaValue<'a> {
    fn from(value: &'a Value) -> Self {
        let whole =
            |value: Option<i64>| value.map_or(Self::Other("an integer over 2^63"), Self::Integer);
        match value {
            Value::U8(v) => Self::Integer((*v).into()),
            Value::I8(v) => Self::Integer((*v).into()),
            Value::U16(v) => Self::Integer((*v).into()),
            Value::I16(v) => Self::Integer((*v).into()),
            Value::U32(v) => Self::Integer((*v).into()),
            Value::I32(v) => Self::Integer((*v).into()),
            Value::U64(v) => whole(i64::try_from(*v).ok()),
            Value::I64(v) => Self::Integer(*v),
            Value::Bool(v) => Self::Bool(*v),
            Value::String(v) => Self::String(v.as_bytes()),
            Value::Array(array) => Self::from(array),
            Value::F32(_) | Value::F64(_) => Self::Other("a float"),
        }
    }
}

impl<'a> From<&'a Array> for MetaValue<'a> {
    fn from(array: &'a Array) -> Self {
        fn integers<T: Copy + Into<i64>>(values: &[T]) -> MetaValue<'static> {
            MetaValue::Integers(values.iter().map(|v| (*v).into()).collect())
        }
        match array {
            Array::U8(v) => integers(v),
            Array::I8(v) => integers(v),
            Array::U16(v) => integers(v),
            Array::I16(v) => integers(v),
            Array::U32(v) => integers(v),
            Array::I32(v) => integers(v),
            Array::I64(v) => integers(v),
            Array::F32(v) => Self::Floats(v.clone()),
            Array::String(v) => Self::Strings(v.iter().map(str::as_bytes).collect()),
            Array::U64(_) => Self::Other("an array of u64"),
            Array::F64(_) => Self::Other("an array of f64"),
            Array::Bool(_) => Self::Other("an array of truth values"),
            Array::Array(_) => Self::Other("an array of arrays"),
        }
    }
}

/// Reads the vocabulary of an open GGUF file; what it means is not yet checked.
///
/// # Errors
/// As [`vocabulary_from_gguf_metadata`].
pub fn vocabulary_from_gguf(file: &GgufFile) -> Result<VocabularyData, TokenizerError> {
    vocabulary_from_gguf_metadata(&|key| file.metadata(key).map(MetaValue::from))
}

/// Looks a metadata key up.
pub type MetaLookup<'f, 'a> = &'f dyn Fn(&str) -> Option<MetaValue<'a>>;

/// Reads the `tokenizer.ggml.*` keys into a [`VocabularyData`]; what it means is not yet checked.
///
/// # Errors
/// A key that has another type than it must have, or that must be there and is not.
pub fn vocabulary_from_gguf_metadata(
    get: MetaLookup<'_, '_>,
) -> Result<VocabularyData, TokenizerError> {
    let reader = Reader { get };
    let model = reader
        .string("tokenizer.ggml.model")?
        .ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let tokens = reader
        .strings("tokenizer.ggml.tokens")?
        .ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let mut data = VocabularyData {
        pre: reader.string("tokenizer.ggml.pre")?,
        scores: reader.floats("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: reader.types()?,
        merges: reader.strings("tokenizer.ggml.merges")?.unwrap_or_default(),
        bos: reader.id("tokenizer.ggml.bos_token_id")?,
        eos: reader.id("tokenizer.ggml.eos_token_id")?,
        eot: reader.id("tokenizer.ggml.eot_token_id")?,
        eom: reader.id("tokenizer.ggml.eom_token_id")?,
        unk: reader.id("tokenizer.ggml.unknown_token_id")?,
        // The key is misspelt in the format itself.
        sep: reader.id("tokenizer.ggml.seperator_token_id")?,
        pad: reader.id("tokenizer.ggml.padding_token_id")?,
        add_bos: reader.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: reader.bool("tokenizer.ggml.add_eos_token")?,
        add_sep: reader.bool("tokenizer.ggml.add_sep_token")?,
        add_space_prefix: reader.bool("tokenizer.ggml.add_space_prefix")?,
        remove_extra_whitespaces: reader
            .bool("tokenizer.ggml.remove_extra_whitespaces")?
            .unwrap_or(false),
        lowercase: reader.bool("tokenizer.ggml.normalizer.lowercase")?,
        strip_accents: reader.bool("tokenizer.ggml.normalizer.strip_accents")?,
        precompiled_charsmap: reader.bytes("tokenizer.ggml.precompiled_charsmap")?,
        model,
        tokens,
        ..VocabularyData::default()
    };
    default_ids(&mut data);
    if data.pre.is_none() && data.model == "gpt2" {
        data.pre = splitter_of_architecture(&reader)?.map(str::to_owned);
    }
    strip_by_name(&mut data, &reader)?;
    Ok(data)
}

/// Ids that files leave out because every vocabulary of the kind has them.
fn default_ids(data: &mut VocabularyData) {
    let count = data.tokens.len();
    let fill = |slot: &mut Option<u32>, id: u32| {
        if (id as usize) < count {
            slot.get_or_insert(id);
        }
    };
    match data.model.as_str() {
        "llama" => {
            fill(&mut data.unk, 0);
            fill(&mut data.bos, 1);
            fill(&mut data.eos, 2);
        }
        "bert" => {
            fill(&mut data.pad, 0);
            fill(&mut data.unk, 100);
            fill(&mut data.bos, 101);
            fill(&mut data.sep, 102);
        }
        "t5" => {
            fill(&mut data.pad, 0);
            fill(&mut data.eos, 1);
            fill(&mut data.unk, 2);
        }
        _ => {}
    }
}

/// Files older than `tokenizer.ggml.pre` do not name the splitter. Of these architectures all models share one.
fn splitter_of_architecture(
    reader: &Reader<'_, '_>,
) -> Result<Option<&'static str>, TokenizerError> {
    let architecture = reader.string("general.architecture")?.unwrap_or_default();
    Ok(match architecture.as_str() {
        "gpt2" | "gptneox" | "mpt" | "phi2" => Some("gpt-2"),
        "falcon" => Some("falcon"),
        "qwen2" | "qwen2moe" => Some("qwen2"),
        "refact" | "starcoder" | "starcoder2" => Some("starcoder"),
        _ => None,
    })
}

/// Which special tokens swallow white space is not in the file; it is known for a few families by name.
fn strip_by_name(data: &mut VocabularyData, reader: &Reader<'_, '_>) -> Result<(), TokenizerError> {
    let name = reader
        .string("general.name")
        .ok()
        .flatten()
        .unwrap_or_default()
        .to_lowercase();
    if data.model == "llama" && (name.contains("phi-3") || name.contains("phi3")) {
        let keep: [&[u8]; 3] = [b"<unk>", b"<s>", b"<|endoftext|>"];
        // Types: unknown, control, user-defined.
        let special = |id: usize| matches!(data.token_types.get(id), Some(2..=4));
        data.strip_right = (0u32..)
            .zip(data.tokens.iter())
            .filter(|(id, text)| {
                (special(*id as usize) || *text == b"</s>") && !keep.contains(text)
            })
            .map(|(id, _)| id)
            .collect();
    }
    Ok(())
}

fn missing(field: &str) -> TokenizerError {
    TokenizerError::Missing {
        field: field.into(),
    }
}

struct Reader<'f, 'a> {
    get: MetaLookup<'f, 'a>,
}

impl<'a> Reader<'_, 'a> {
    fn value<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&MetaValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, TokenizerError> {
        let Some(value) = (self.get)(key) else {
            return Ok(None);
        };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(TokenizerError::WrongType {
                field: key.into(),
                expected,
                found: value.type_name().into(),
            }),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        self.value(key, "a truth value", |value| match value {
            MetaValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    fn string(&self, key: &str) -> Result<Option<String>, TokenizerError> {
        let bytes = self.value(key, "a string", |value| match value {
            MetaValue::String(bytes) => Some(*bytes),
            _ => None,
        })?;
        let decode = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| invalid(key, "is not UTF-8"))
        };
        bytes.map(decode).transpose()
    }

    fn strings(&self, key: &str) -> Result<Option<ByteStrings>, TokenizerError> {
        let strings = self.value(key, "an array of strings", |value| match value {
            MetaValue::Strings(strings) => Some(ByteStrings::collect(strings)),
            _ => None,
        })?;
        strings.transpose()
    }

    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, TokenizerError> {
        self.value(key, "an array of floats", |value| match value {
            MetaValue::Floats(floats) => Some(floats.clone()),
            // Some converters wrote whole numbers.
            MetaValue::Integers(integers) => Some(integers.iter().map(|i| *i as f32).collect()),
            _ => None,
        })
    }

    fn types(&self) -> Result<Vec<i32>, TokenizerError> {
        let key = "tokenizer.ggml.token_type";
        let types = self.value(key, "an array of integers", |value| match value {
            // An integer that does not fit is no type either way.
            MetaValue::Integers(integers) => Some(
                integers
                    .iter()
                    .map(|i| i32::try_from(*i).unwrap_or(-1))
                    .collect(),
            ),
            _ => None,
        })?;
        Ok(types.unwrap_or_default())
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, TokenizerError> {
        let bytes = self.value(key, "an array of bytes", |value| match value {
            // Written as signed or as unsigned bytes.
            MetaValue::Integers(integers) => integers
                .iter()
                .map(|i| (-128..256).contains(i).then_some(*i as u8))
                .collect(),
            _ => None,
        })?;
        Ok(bytes.unwrap_or_default())
    }

    fn id(&self, key: &str) -> Result<Option<u32>, TokenizerError> {
        let id = self.value(key, "an integer", |value| match value {
            MetaValue::Integer(id) => Some(*id),
            _ => None,
        })?;
        match id {
            // -1 stands for "none"; as an unsigned number it reads 2^32 - 1.
            None | Some(-1) | Some(0xffff_ffff) => Ok(None),
            Some(id) => u32::try_from(id)
                .map(Some)
                .map_err(|_| invalid(key, format!("{id} is not a token id"))),
        }
    }
}
