//! Models with more parts than the one for text, as Gemma 3 with an encoder for images: what `config.json` says of the
//! part for text, which is all that is read.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// What files of Gemma 3 leave out of `text_config`: the library's defaults.
const GEMMA3: &str = r#"{
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0
}"#;

/// Fields that may stand beside `text_config` and hold for it too.
const SHARED: [&str; 5] = [
    "_name_or_path",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
];

/// A `config.json` as a model of text alone would have it: the same, unless it has a `text_config`.
pub(super) fn text_part(contents: &[u8]) -> Cow<'_, [u8]> {
    match serde_json::from_slice(contents) {
        Ok(Value::Object(whole)) => match within(whole) {
            Some(part) => Cow::Owned(Value::Object(part).to_string().into_bytes()),
            None => Cow::Borrowed(contents),
        },
        // Who reads it on says what is wrong with it.
        _ => Cow::Borrowed(contents),
    }
}

fn within(mut whole: Map<String, Value>) -> Option<Map<String, Value>> {
    let Some(Value::Object(text)) = whole.remove("text_config") else {
        return None;
    };
    let mut part: Map<String, Value> = match text.get("model_type")?.as_str()? {
        "gemma3_text" => serde_json::from_str(GEMMA3).unwrap_or_default(),
        _ => Map::new(),
    };
    let shared = SHARED.map(|field| (field.to_owned(), whole.remove(field)));
    let shared = shared
        .into_iter()
        .filter_map(|(field, value)| Some((field, value?)));
    part.extend(shared);
    part.extend(text.into_iter().filter(|(_, value)| !value.is_null()));
    // The output matrix is a part of the whole: what is said there goes first.
    if let Some(tied @ Value::Bool(_)) = whole.remove("tie_word_embeddings") {
        part.insert("tie_word_embeddings".to_owned(), tied);
    }
    // Where all layers' rotary embedding stands together, it is the whole of it.
    if part.contains_key("rope_parameters") {
        part.remove("rope_theta");
        part.remove("rope_local_base_freq");
    }
    Some(part)
}
