//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use neap_engine::Grammar;
use neap_model::chat::{ChatMessage, RenderOptions};
use neap_model::tokenizer::EncodeOptions;
use serde_json::{Map, Value};

use super::answer::Shape;
use super::format::Format;
use super::params::{Params, refuse_unsupported};
use super::tools::{self, Style, Tools};
use super::{Caller, Generation, blocking, compile, respond};
use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::ApiError;
use crate::fields::Fields;

/// Most likely tokens that can be asked for at most.
const MAX_TOP_LOGPROBS: u64 = 20;

/// `POST /v1/chat/completions`.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&app, request.headers())?;
    let peer = request.extensions().get::<Peer>().cloned();
    let body = app.read_json(request).await?;
    let model = app.serving.lease().await;
    let reader = model.clone();
    let generation = blocking(move || read(&reader, &body, caller)).await?;
    respond((app, model), generation, peer).await
}

/// What a body asks for.
///
/// # Errors
/// What is wrong with it, by name.
pub fn read(model: &ServedModel, body: &Value, caller: Caller) -> Result<Generation, ApiError> {
    let fields = Fields::of(body)?;
    let params = Params::read(&fields, model)?;
    refuse_unsupported(
        &fields,
        &["functions", "function_call", "audio", "web_search_options"],
    )?;
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let top_logprobs = match (fields.flag("logprobs")?, top) {
        (true, top) => Some(top.unwrap_or(0) as usize),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(fields.wrong("top_logprobs", "left out without `logprobs`")),
    };
    let messages = messages(&fields)?;
    let format = Format::read(&fields, "response_format")?;
    let wishes = Wishes::read(model, &fields, &format, "response_format")?;
    Ok(Generation {
        shape: Shape::Chat,
        params,
        prompts: vec![wishes.prompt(model, messages)?],
        top_logprobs,
        echo: Vec::new(),
        caller,
        calls: wishes.tools.as_ref().map(Tools::style),
        grammar: wishes.grammar,
    })
}

/// What an answer may be besides text.
pub struct Wishes {
    pub tools: Option<Tools>,
    pub grammar: Option<Grammar>,
}

impl Wishes {
    /// Reads the tools, and makes the grammar of answers; `format_name` is the field that `format` came from.
    pub fn read(
        model: &ServedModel,
        fields: &Fields<'_>,
        format: &Format,
        format_name: &str,
    ) -> Result<Self, ApiError> {
        let tools = Tools::read(fields, Style::of(&model.template))?;
        let has_form = *format != Format::Text;
        if has_form && tools.as_ref().is_some_and(|t| !t.allows_form()) {
            let message = "with this model, an answer has either a form or may call functions as it likes: \
                           leave one out, or set `tool_choice` to \"required\" or \"none\"";
            let error = ApiError::field(format_name, message);
            return Err(error.with_code("unsupported_parameter"));
        }
        let grammar = match &tools {
            Some(tools) => Some(compile(model, &tools.grammar(format), "tools")?),
            None => format
                .grammar()
                .map(|lark| compile(model, &lark, format_name))
                .transpose()?,
        };
        Ok(Self { tools, grammar })
    }

    /// The conversation as the model reads it.
    pub fn prompt(
        &self,
        model: &ServedModel,
        mut messages: Vec<ChatMessage>,
    ) -> Result<Vec<u32>, ApiError> {
        tools::rewrite_history(&mut messages, Style::of(&model.template));
        let told = match &self.tools {
            Some(tools) => {
                tools.introduce(&mut messages);
                tools.for_template()
            }
            None => Vec::new(),
        };
        prompt_tokens(model, &messages, told)
    }
}

/// The conversation.
pub fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let list = fields
        .list("messages")?
        .filter(|list| !list.is_empty())
        .ok_or_else(|| fields.wrong("messages", "a list of at least one message"))?;
    list.iter().enumerate().map(message).collect()
}

fn message((index, value): (usize, &Value)) -> Result<ChatMessage, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let wrong = |field: &str, must: &str| {
        let name = at(field);
        let message = format!("`{name}` must be {must}");
        ApiError::field(name, message)
    };
    let map = value.as_object().ok_or_else(|| wrong("", "an object"))?;
    let role = map
        .get("role")
        .and_then(Value::as_str)
        .ok_or_else(|| wrong(".role", "a string"))?;
    let content = match map.get("content") {
        Some(Value::String(text)) => text.clone(),
        // An answer that only called tools has none.
        None | Some(Value::Null) if role == "assistant" => String::new(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(text_part);
            texts
                .collect::<Option<String>>()
                .ok_or_else(|| wrong(".content", "a string or a list of text parts"))?
        }
        _ => return Err(wrong(".content", "a string or a list of text parts")),
    };
    // Newer clients call the system's role so; templates know the older name.
    let role = if role == "developer" { "system" } else { role };
    let mut message = ChatMessage::new(role, content);
    message.fields = other_fields(map);
    Ok(message)
}

pub fn text_part(part: &Value) -> Option<&str> {
    match part.get("type")?.as_str()? {
        "text" | "input_text" | "output_text" => part.get("text")?.as_str(),
        _ => None,
    }
}

fn other_fields(map: &Map<String, Value>) -> Map<String, Value> {
    let others = map
        .iter()
        .filter(|(name, value)| !matches!(name.as_str(), "role" | "content") && !value.is_null());
    others.map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The conversation as the model reads it.
pub fn prompt_tokens(
    model: &ServedModel,
    messages: &[ChatMessage],
    tools: Vec<Value>,
) -> Result<Vec<u32>, ApiError> {
    let options = RenderOptions {
        add_generation_prompt: true,
        tools,
        ..RenderOptions::default()
    };
    let refuse = |why: String| ApiError::field("messages", why);
    let prompt = model
        .template
        .render(messages, &options)
        .map_err(|why| refuse(why.to_string()))?;
    let options = EncodeOptions {
        add_bos: true,
        parse_special: true,
    };
    model
        .tokenizer
        .encode(&prompt, options)
        .map_err(|why| refuse(why.to_string()))
}
