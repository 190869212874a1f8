//! Events of the engine to the bodies that clients read.

use neap_engine::{Event, FinishReason, TokenLogprob, Usage};
use neap_model::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::calls::{CallReader, Piece};
use super::{Generation, now_s, random};
use crate::error::ApiError;

/// Which of the two bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `chat.completion`.
    Chat,
    /// `text_completion`.
    Completion,
    /// `response`, which has its own body.
    Response,
}

/// What every body of one answer begins with.
pub struct Head {
    /// Which body.
    pub shape: Shape,
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// A new answer's.
    pub fn new(shape: Shape, model: &str) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Completion => "cmpl",
            Shape::Response => "resp",
        };
        Self {
            shape,
            id: format!("{prefix}-{:016x}", random()),
            created: now_s(),
            model: model.to_owned(),
        }
    }

    /// A body, or a chunk of a stream.
    pub fn body(&self, is_chunk: bool, choices: Vec<Value>) -> Map<String, Value> {
        let object = match (self.shape, is_chunk) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Completion, _) => "text_completion",
            (Shape::Response, _) => "response",
        };
        let mut body = Map::new();
        body.insert("id".into(), self.id.as_str().into());
        body.insert("object".into(), object.into());
        body.insert("created".into(), self.created.into());
        body.insert("model".into(), self.model.as_str().into());
        body.insert("choices".into(), choices.into());
        body
    }
}

/// A function that the model calls.
#[derive(Debug, Clone)]
pub struct Call {
    /// A name for this very call.
    pub id: String,
    /// The function's.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

impl Call {
    /// A call that begins.
    pub fn new(name: String) -> Self {
        Self {
            id: format!("call_{:016x}", random()),
            name,
            arguments: String::new(),
        }
    }

    /// As chats have it.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }
}

/// One choice as far as it has come.
#[derive(Default)]
pub struct Choice {
    /// What is said.
    pub text: String,
    /// What is called.
    pub calls: Vec<Call>,
    pub(super) reader: Option<CallReader>,
    pub(super) logprobs: Vec<Vec<TokenLogprob>>,
    /// How it ended, and what it took.
    pub finish: Option<(&'static str, Usage)>,
}

impl Choice {
    fn take_text(&mut self, text: &str) {
        match &mut self.reader {
            None => self.text.push_str(text),
            Some(reader) => {
                let pieces = reader.push(text);
                pieces.into_iter().for_each(|piece| self.take_piece(piece));
            }
        }
    }

    fn take_piece(&mut self, piece: Piece) {
        match piece {
            Piece::Text(text) => self.text.push_str(&text),
            Piece::Call(name) => self.calls.push(Call::new(name)),
            Piece::Arguments(more) => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&more);
                }
            }
        }
    }

    fn end(&mut self, reason: FinishReason, usage: Usage) -> Result<(), ApiError> {
        if let Some(piece) = self.reader.as_mut().and_then(CallReader::finish) {
            self.take_piece(piece);
        }
        self.finish = Some((finish_reason(reason, !self.calls.is_empty())?, usage));
        Ok(())
    }

    fn message(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.text, "refusal": null});
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.iter().map(Call::to_json).collect();
            if self.text.is_empty() {
                message["content"] = Value::Null;
            }
        }
        message
    }
}

/// A whole answer as far as it has come.
pub struct Answer {
    /// In the order of their index.
    pub choices: Vec<Choice>,
    n: usize,
    wants_logprobs: bool,
}

impl Answer {
    /// Nothing yet, but for the echo.
    pub fn new(generation: &Generation) -> Self {
        let n = generation.params.n;
        let choice = |index: usize| Choice {
            text: generation.echo.get(index / n).cloned().unwrap_or_default(),
            reader: generation.calls.map(CallReader::new),
            ..Choice::default()
        };
        Self {
            choices: (0..generation.prompts.len() * n).map(choice).collect(),
            n,
            wants_logprobs: generation.top_logprobs.is_some(),
        }
    }

    /// Takes an event of the choice `index` in.
    pub fn take(&mut self, index: usize, event: Event) -> Result<(), ApiError> {
        let choice = &mut self.choices[index];
        match event {
            Event::Token { text, logprobs, .. } => {
                choice.take_text(&text);
                if self.wants_logprobs {
                    choice.logprobs.push(logprobs);
                }
                Ok(())
            }
            Event::Finished {
                reason,
                text,
                usage,
                ..
            } => {
                choice.take_text(&text);
                choice.end(reason, usage)
            }
        }
    }

    /// Every choice has ended.
    pub fn is_complete(&self) -> bool {
        self.choices.iter().all(|c| c.finish.is_some())
    }

    /// The body.
    pub fn to_json(&self, head: &Head, tokenizer: &Tokenizer) -> Value {
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let logprobs = if self.wants_logprobs {
                logprobs_json(head.shape, &choice.logprobs, &mut 0, tokenizer)
            } else {
                Value::Null
            };
            let finish = choice.finish.map(|(reason, _)| reason);
            match head.shape {
                Shape::Chat => json!({
                    "index": index,
                    "message": choice.message(),
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }),
                Shape::Completion | Shape::Response => json!({
                    "index": index,
                    "text": choice.text,
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }),
            }
        });
        let mut body = head.body(false, choices.collect());
        let usages: Vec<Usage> = self
            .choices
            .iter()
            .filter_map(|c| Some(c.finish?.1))
            .collect();
        body.insert("usage".into(), usage_json(&usages, self.n));
        body.into()
    }
}

/// Usage of all choices, `n` for each prompt: prompts count once.
pub fn usage_json(usages: &[Usage], n: usize) -> Value {
    let firsts = || usages.iter().step_by(n);
    let prompt: usize = firsts().map(|u| u.prompt_tokens).sum();
    let cached: usize = firsts().map(|u| u.cached_tokens).sum();
    let new: usize = usages.iter().map(|u| u.new_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

/// The API's name for how a generation ended, or the error that it ended with.
pub fn finish_reason(reason: FinishReason, has_calls: bool) -> Result<&'static str, ApiError> {
    match reason {
        FinishReason::EndOfText(_)
        | FinishReason::StopString(_)
        | FinishReason::GrammarComplete => Ok(if has_calls { "tool_calls" } else { "stop" }),
        FinishReason::Length | FinishReason::ContextFull => Ok("length"),
        FinishReason::GrammarFailed(_) => {
            Err(ApiError::invalid(reason.to_string()).with_code("grammar_too_complex"))
        }
        FinishReason::DeadlineExceeded => Err(ApiError::too_late(reason.to_string())),
        FinishReason::Cancelled => Err(ApiError::unavailable("the request was cancelled")),
        FinishReason::OutOfBudget { .. } => {
            Err(ApiError::unavailable(reason.to_string()).with_code("out_of_memory_budget"))
        }
        FinishReason::Failed(_) => Err(ApiError::internal(reason.to_string())),
    }
}

/// The log probabilities of some tokens. `offset` is where their text begins, in characters, and moves on.
pub fn logprobs_json(
    shape: Shape,
    tokens: &[Vec<TokenLogprob>],
    offset: &mut usize,
    tokenizer: &Tokenizer,
) -> Value {
    match shape {
        Shape::Chat => {
            let content = tokens.iter().filter_map(|of| {
                let (own, top) = of.split_first()?;
                let mut entry = entry_json(own, tokenizer);
                let top: Vec<Value> = top
                    .iter()
                    .map(|t| entry_json(t, tokenizer).into())
                    .collect();
                entry.insert("top_logprobs".into(), top.into());
                Some(Value::from(entry))
            });
            json!({"content": content.collect::<Vec<_>>(), "refusal": null})
        }
        Shape::Completion | Shape::Response => {
            let (mut texts, mut own_logprobs, mut tops, mut offsets) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for (own, top) in tokens.iter().filter_map(|of| of.split_first()) {
                let text = token_text(own.id, tokenizer);
                offsets.push(*offset);
                *offset += text.chars().count();
                texts.push(text);
                own_logprobs.push(finite(own.logprob));
                let top = top
                    .iter()
                    .map(|t| (token_text(t.id, tokenizer), finite(t.logprob).into()));
                tops.push(top.collect::<Map<String, Value>>());
            }
            json!({
                "tokens": texts,
                "token_logprobs": own_logprobs,
                "top_logprobs": tops,
                "text_offset": offsets,
            })
        }
    }
}

fn entry_json(of: &TokenLogprob, tokenizer: &Tokenizer) -> Map<String, Value> {
    let bytes = tokenizer.token_bytes(of.id).unwrap_or_default();
    let mut entry = Map::new();
    entry.insert("token".into(), token_text(of.id, tokenizer).into());
    entry.insert("logprob".into(), finite(of.logprob).into());
    entry.insert("bytes".into(), bytes.into());
    entry
}

fn token_text(id: u32, tokenizer: &Tokenizer) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// JSON has no infinity; OpenAI writes this for what is all but impossible.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
