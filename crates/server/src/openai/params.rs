//! The fields that chat and plain completions share.

use std::time::Duration;

use neap_engine::SamplingParams;
use neap_memory::KvQuality;
use serde_json::Value;

use super::random;
use crate::adapters::Chosen;
use crate::app::ServedModel;
use crate::error::ApiError;
use crate::fields::Fields;

/// Choices for one prompt at most.
const MAX_CHOICES: u64 = 16;
/// Stop strings at most, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
/// The longest deadline: a day.
const MAX_TIMEOUT_S: f64 = 86_400.0;
/// Priorities go so far up and down.
const MAX_PRIORITY: i64 = 100;
/// Longest `prompt_cache_key`.
const MAX_SESSION_NAME_BYTES: usize = 512;
/// Tokens with a bias at most.
const MAX_BIASES: usize = 4096;

/// What both kinds of completion can say.
#[derive(Debug)]
pub struct Params {
    /// The model that is asked for.
    pub model: Chosen,
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub sampling: SamplingParams,
    /// Go on past the model's own end.
    pub ignore_eos: bool,
    /// From arrival until the request fails.
    pub timeout: Option<Duration>,
    /// The engine's: the greatest first.
    pub priority: i32,
    /// How much keys and values may lose; the server's setting bounds it.
    pub quality: Option<KvQuality>,
    /// The session that the conversation belongs to.
    pub session: Option<SessionWish>,
}

/// The conversation has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionWish {
    /// `prompt_cache_key`.
    pub name: String,
    /// Keep it on disk for so long, in milliseconds: `prompt_cache_retention`.
    pub keep_ms: Option<u64>,
}

impl Params {
    /// Reads them, for the model that is served.
    pub fn read(fields: &Fields<'_>, served: &ServedModel) -> Result<Self, ApiError> {
        Self::of(fields, served.choose(fields)?)
    }

    fn of(fields: &Fields<'_>, model: Chosen) -> Result<Self, ApiError> {
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
            model,
            n: fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1) as usize,
            stream,
            include_usage,
            max_tokens: max_tokens(fields)?,
            stop: stop(fields)?,
            sampling: sampling(fields)?,
            ignore_eos: fields.flag("ignore_eos")?,
            timeout: timeout(fields)?,
            priority: priority(fields)?,
            quality: quality(fields)?,
            session: session(fields)?,
        })
    }
}

/// Seconds of a deadline, if they make sense.
pub fn timeout_of(seconds: f64) -> Option<Duration> {
    (0.001..=MAX_TIMEOUT_S)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

fn timeout(fields: &Fields<'_>) -> Result<Option<Duration>, ApiError> {
    let must = format!("a number of seconds from 0.001 to {MAX_TIMEOUT_S}");
    let Some(value) = fields.value("timeout") else {
        return Ok(None);
    };
    let timeout = value.as_f64().and_then(timeout_of);
    timeout
        .map(Some)
        .ok_or_else(|| fields.wrong("timeout", &must))
}

/// As vLLM has it, the least goes first.
fn priority(fields: &Fields<'_>) -> Result<i32, ApiError> {
    let must = format!("a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}");
    let Some(value) = fields.value("priority") else {
        return Ok(0);
    };
    let priority = value.as_i64().filter(|p| p.abs() <= MAX_PRIORITY);
    let priority = priority.and_then(|p| i32::try_from(-p).ok());
    priority.ok_or_else(|| fields.wrong("priority", &must))
}

fn quality(fields: &Fields<'_>) -> Result<Option<KvQuality>, ApiError> {
    let Some(name) = fields.string("kv_quality")? else {
        return Ok(None);
    };
    let must = "\"exact\", \"high\", \"balanced\" or \"small\"";
    let quality = name.parse().map_err(|_| fields.wrong("kv_quality", must))?;
    Ok(Some(quality))
}

fn session(fields: &Fields<'_>) -> Result<Option<SessionWish>, ApiError> {
    let keep_ms = match fields.string("prompt_cache_retention")? {
        None | Some("in_memory" | "in-memory") => None,
        Some("24h") => Some(24 * 3600 * 1000),
        Some(_) => {
            return Err(fields.wrong("prompt_cache_retention", "\"in_memory\" or \"24h\""));
        }
    };
    let Some(name) = fields.string("prompt_cache_key")? else {
        return match keep_ms {
            None => Ok(None),
            Some(_) => Err(fields.wrong(
                "prompt_cache_retention",
                "\"in_memory\" without `prompt_cache_key`, which names what is kept",
            )),
        };
    };
    if !(1..=MAX_SESSION_NAME_BYTES).contains(&name.len()) {
        let must = format!("1 to {MAX_SESSION_NAME_BYTES} bytes long");
        return Err(fields.wrong("prompt_cache_key", &must));
    }
    Ok(Some(SessionWish {
        name: name.to_owned(),
        keep_ms,
    }))
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
pub fn refuse_unsupported(fields: &Fields<'_>, names: &[&str]) -> Result<(), ApiError> {
    for &name in names {
        let is_off = match fields.value(name) {
            None => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(value) => *value == Value::Bool(false) || value == "none",
        };
        if !is_off {
            let message = format!("`{name}` is not supported by this server: leave it out");
            return Err(ApiError::field(name, message).with_code("unsupported_parameter"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Params, ApiError> {
        Params::of(&Fields::of(&body)?, Chosen::default())
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
            ("timeout", json!({"timeout": 0})),
            ("timeout", json!({"timeout": "soon"})),
            ("priority", json!({"priority": 101})),
            ("priority", json!({"priority": 0.5})),
            ("kv_quality", json!({"kv_quality": "best"})),
            ("prompt_cache_key", json!({"prompt_cache_key": ""})),
            (
                "prompt_cache_retention",
                json!({"prompt_cache_key": "a", "prompt_cache_retention": "7d"}),
            ),
            (
                "prompt_cache_retention",
                json!({"prompt_cache_retention": "24h"}),
            ),
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
