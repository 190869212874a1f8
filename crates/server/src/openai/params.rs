//! The fields that chat and plain completions share.

use neap_engine::SamplingParams;
use serde_json::Value;

use super::{models, random};
use crate::error::ApiError;
use crate::fields::Fields;

/// Choices for one prompt at most.
const MAX_CHOICES: u64 = 16;
/// Stop strings at most, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// Tokens with a bias at most.
const MAX_BIASES: usize = 4096;

/// What both kinds of completion can say.
#[derive(Debug)]
pub struct Params {
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub sampling: SamplingParams,
}

impl Params {
    /// Reads them; `served` is the name of the model.
    pub fn read(fields: &Fields<'_>, served: &str) -> Result<Self, ApiError> {
        if let Some(model) = fields.string("model")?
            && model != served
        {
            return Err(models::unknown(model, served));
        }
        let stream = fields.flag("stream")?;
        let options = fields.object("stream_options", "stream_options.")?;
        let include_usage = match options {
            Some(_) if !stream => {
                return Err(fields.wrong("stream_options", "left out without `stream`"));
            }
            Some(options) => options.flag("include_usage")?,
            None => false,
        };
        Ok(Self {
            n: fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1) as usize,
            stream,
            include_usage,
            max_tokens: max_tokens(fields)?,
            stop: stop(fields)?,
            sampling: sampling(fields)?,
        })
    }
}

fn max_tokens(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    // The newer name first.
    let tokens = match fields.integer("max_completion_tokens", 1..=u64::MAX)? {
        Some(tokens) => Some(tokens),
        None => fields.integer("max_tokens", 1..=u64::MAX)?,
    };
    // More than any context: the engine's own limits apply.
    Ok(tokens.map(|t| t.min(u64::from(u32::MAX)) as usize))
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let must = format!(
        "a string, or a list of at most {MAX_STOPS} strings, none empty or longer than {MAX_STOP_BYTES} bytes"
    );
    let wrong = || fields.wrong("stop", &must);
    let texts: Vec<&str> = match fields.value("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(Value::as_str);
            texts.collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let is_good = |text: &&str| (1..=MAX_STOP_BYTES).contains(&text.len());
    if texts.len() > MAX_STOPS || !texts.iter().all(is_good) {
        return Err(wrong());
    }
    Ok(texts.into_iter().map(str::to_owned).collect())
}

fn sampling(fields: &Fields<'_>) -> Result<SamplingParams, ApiError> {
    let default = SamplingParams::default();
    let penalty = |name| fields.number(name, -2.0..=2.0);
    let window = fields.integer("repetition_penalty_window", 0..=u64::from(u32::MAX))?;
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        // 0 means the most likely token alone, as the smallest set that has any probability.
        top_p: fields
            .number("top_p", 0.0..=1.0)?
            .map_or(default.top_p, |p| p.max(f32::MIN_POSITIVE)),
        // -1 is how some clients write "all".
        top_k: match fields.value("top_k").and_then(Value::as_i64) {
            Some(-1) => 0,
            _ => fields
                .integer("top_k", 0..=u64::from(u32::MAX))?
                .unwrap_or(0) as usize,
        },
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=100.0)?
            .unwrap_or(default.repetition_penalty),
        penalty_window_tokens: window.map_or(default.penalty_window_tokens, |w| w as usize),
        frequency_penalty: penalty("frequency_penalty")?.unwrap_or(0.0),
        presence_penalty: penalty("presence_penalty")?.unwrap_or(0.0),
        seed: seed(fields)?,
        logit_bias: logit_bias(fields)?,
    })
}

fn seed(fields: &Fields<'_>) -> Result<u64, ApiError> {
    let Some(value) = fields.value("seed") else {
        return Ok(random());
    };
    let negative = || value.as_i64().map(i64::cast_unsigned);
    value
        .as_u64()
        .or_else(negative)
        .ok_or_else(|| fields.wrong("seed", "a whole number"))
}

fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let must = "an object of token ids and numbers from -100 to 100";
    let Some(value) = fields.value("logit_bias") else {
        return Ok(Vec::new());
    };
    let wrong = || fields.wrong("logit_bias", must);
    let map = value.as_object().filter(|m| m.len() <= MAX_BIASES);
    let pairs = map.ok_or_else(wrong)?.iter().map(|(id, bias)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))?;
        Some((id.parse().ok()?, bias as f32))
    });
    pairs.collect::<Option<_>>().ok_or_else(wrong)
}

/// Refuses what would be ignored silently though it changes the answer.
pub fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ApiError> {
    let refuse = |name: &str| {
        let message = format!("`{name}` is not supported by this server yet: leave it out");
        Err(ApiError::field(name, message).with_code("unsupported_parameter"))
    };
    if let Some(format) = fields.object("response_format", "response_format.")?
        && format.string("type")? != Some("text")
    {
        return refuse("response_format");
    }
    for name in ["tools", "functions"] {
        let given = fields.list(name)?.is_some_and(|tools| !tools.is_empty());
        let is_off = fields.value("tool_choice").and_then(Value::as_str) == Some("none");
        if given && !is_off {
            return refuse(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Params, ApiError> {
        Params::read(&Fields::of(&body)?, "tiny")
    }

    #[test]
    fn reads_what_clients_send() {
        let params = read(json!({
            "model": "tiny", "temperature": 0.5, "top_p": 0, "top_k": -1, "seed": -1, "stop": "x",
            "logit_bias": {"5": -100}, "max_tokens": 9, "max_completion_tokens": 7, "unknown": [1],
            "n": 2, "presence_penalty": null,
        }))
        .unwrap();
        assert_eq!(params.max_tokens, Some(7));
        assert_eq!(params.sampling.logit_bias, [(5, -100.0)]);
        assert_eq!(params.sampling.seed, u64::MAX);
        assert_eq!((params.n, params.sampling.top_k), (2, 0));
        assert!(params.sampling.validate(10).is_ok());
        assert_eq!(params.stop, ["x"]);
    }

    #[test]
    fn refuses_by_name() {
        for (name, body) in [
            ("temperature", json!({"temperature": "hot"})),
            ("temperature", json!({"temperature": 2.5})),
            ("n", json!({"n": 0})),
            ("stop", json!({"stop": [1]})),
            ("stop", json!({"stop": ""})),
            ("seed", json!({"seed": 1.5})),
            ("logit_bias", json!({"logit_bias": {"x": 1}})),
            ("logit_bias", json!({"logit_bias": {"1": 101}})),
            ("max_tokens", json!({"max_tokens": -1})),
            ("model", json!({"model": "other"})),
            ("stream_options", json!({"stream_options": {}})),
            (
                "stream_options.include_usage",
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
            ),
        ] {
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
