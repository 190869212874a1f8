//! Conversations to prompts, by the Jinja template that a model brings.
//!
//! Templates are programs from a file that nobody has checked: they run with a bounded amount of work and memory,
//! can read no files, and cannot reach anything but the messages they are given.

mod json;
mod time;

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::source::ModelSource;
use crate::tokenizer::Tokenizer;

/// The prompt that a template may make at most.
const MAX_PROMPT_BYTES: usize = 64 << 20;
/// Work that every template may do: about this many steps, or 64 bytes handled for each.
const BASE_FUEL: u64 = 2_000_000;
/// Further work for each message.
const FUEL_PER_MESSAGE: u64 = 4_000;

/// The format that ChatML models share (`<|im_start|>role\n…<|im_end|>\n`).
const CHATML: &str = "{% for message in messages %}\
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// For models that were never taught a format: roles in words.
const PLAIN: &str = "{{ bos_token }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content + '\n\n' }}\
{% else %}{{ message.role|capitalize + ': ' + message.content + '\n' }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// Why a template could not be read or a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is not valid Jinja, or uses something that is not built.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The file that holds the template cannot be read.
    #[error("{reason}")]
    File {
        /// What went wrong, with the name of the file.
        reason: String,
    },
    /// The template itself refused the conversation, with `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// What the template said.
        message: String,
    },
    /// The template failed on this conversation.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// What went wrong.
        reason: String,
    },
    /// The template did more work than a conversation of this size can need.
    #[error("the chat template was stopped: it does too much work for this conversation")]
    TooMuchWork,
    /// The prompt became too long.
    #[error("the chat template was stopped: its prompt is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said: usually a string; null beside tool calls; a list of parts where a template takes those.
    #[serde(default)]
    pub content: serde_json::Value,
    /// Everything else: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    #[serde(flatten)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl ChatMessage {
    /// A message that is just text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: serde_json::Value::String(content.into()),
            fields: serde_json::Map::new(),
        }
    }
}

/// What a template is given besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// End the prompt with the beginning of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Descriptions of tools, as the OpenAI API has them; empty: none.
    pub tools: Vec<serde_json::Value>,
    /// The time for templates that print a date. `None`: they use the date that they were written with, so that the
    /// same conversation always gives the same prompt.
    pub now: Option<SystemTime>,
    /// Further variables, such as `enable_thinking`. They cannot replace those that are set here.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// A chat template, compiled. Cloning shares it.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &self.inner.source)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`. `bos_token` and `eos_token` are the texts that templates know under these names.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] with the line.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, ChatError> {
        let mut environment = environment();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        syntax
            .and_then(|syntax| {
                environment.set_syntax(syntax);
                environment.add_template_owned("chat", drop_generation_tags(source))
            })
            .map_err(|error| ChatError::Syntax {
                line: error.line().unwrap_or(0),
                reason: describe(&error),
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                environment,
                source: source.into(),
                bos_token: bos_token.into(),
                eos_token: eos_token.into(),
            }),
        })
    }

    /// Compiles `source` with the BOS and EOS texts of `tokenizer`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_text(id))
                .unwrap_or_default()
        };
        Self::new(source, &text(tokenizer.bos()), &text(tokenizer.eos()))
    }

    /// The template that a model brings, or [`Self::fallback`] where it brings none. `tokenizer` is the model's.
    ///
    /// # Errors
    /// As [`Self::new`], and [`ChatError::File`] if the template cannot be read.
    pub fn from_source(source: &ModelSource, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let template = source.chat_template().map_err(|error| ChatError::File {
            reason: error.to_string(),
        })?;
        match template {
            Some(template) => Self::for_tokenizer(&template, tokenizer),
            None => Self::fallback(tokenizer),
        }
    }

    /// The template for a model that brings none: ChatML where the vocabulary has its tokens, else roles in words
    /// (`User: …`), which any model can follow and none is promised to.
    ///
    /// # Errors
    /// None in practice: the templates are constants.
    pub fn fallback(tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let chatml = tokenizer.token_id("<|im_start|>").is_some()
            && tokenizer.token_id("<|im_end|>").is_some();
        Self::for_tokenizer(if chatml { CHATML } else { PLAIN }, tokenizer)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// The prompt for a conversation. Encode it with special tokens on.
    ///
    /// # Errors
    /// [`ChatError::Refused`] where the template does not take such a conversation (roles that do not alternate, no
    /// system message allowed); the other variants where the template fails or is stopped.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
    ) -> Result<String, ChatError> {
        let inner = &*self.inner;
        let mut environment = inner.environment.clone();
        environment.set_fuel(Some(fuel(messages, options)));
        if let Some(now) = options.now {
            environment.add_function("strftime_now", move |format: String| {
                time::strftime(&format, now)
            });
        }
        let tools = match options.tools.is_empty() {
            true => Value::from(()),
            false => Value::from(Serde(&options.tools)),
        };
        let own = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => inner.bos_token.as_str(),
            eos_token => inner.eos_token.as_str(),
            tools => tools,
        };
        let variables = Value::from(Serde(&options.variables));
        let mut prompt = Bounded(Vec::new());
        environment
            .get_template("chat")
            .and_then(|template| {
                template.render_captured_to(context! { ..own, ..variables }, &mut prompt)
            })
            .map_err(|error| render_error(&error))?;
        String::from_utf8(prompt.0).map_err(|_| ChatError::Render {
            line: 0,
            reason: "the prompt is not UTF-8".into(),
        })
    }
}

/// The environment that Hugging Face templates are written for.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::tojson);
    // None is not iterable in Python; templates ask `tools is iterable and tools | length > 0`.
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone())
                .with_source(Raised(message)))
        },
    );
    environment
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Work allowed for a conversation: what it needs grows with its size.
fn fuel(messages: &[ChatMessage], options: &RenderOptions) -> u64 {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Values made of JSON can always be written as JSON.
    let _ = serde_json::to_writer(&mut count, messages);
    let _ = serde_json::to_writer(&mut count, &options.tools);
    let _ = serde_json::to_writer(&mut count, &options.variables);
    BASE_FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + count.0 / 4
}

/// Collects output up to the limit.
struct Bounded(Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("the prompt is too long")]
struct PromptTooLong;

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(std::io::Error::other(PromptTooLong));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn render_error(error: &Error) -> ChatError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return ChatError::Refused {
                message: message.clone(),
            };
        }
        let io = current.downcast_ref::<std::io::Error>();
        if io
            .and_then(|io| io.get_ref())
            .is_some_and(|inner| inner.is::<PromptTooLong>())
        {
            return ChatError::TooLong {
                limit: MAX_PROMPT_BYTES,
            };
        }
        if let Some(error) = current.downcast_ref::<Error>()
            && error.kind() == ErrorKind::OutOfFuel
        {
            return ChatError::TooMuchWork;
        }
        source = current.source();
    }
    ChatError::Render {
        line: error.line().unwrap_or(0),
        reason: describe(error),
    }
}

fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// `{% generation %}` marks what to train on; it prints nothing. Replaced by blocks that do the same.
fn drop_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find("%}").map_or(rest.len(), |end| end + 2);
        let tag = &rest[..end];
        let name = tag.trim_matches(|c: char| "{%-+}".contains(c) || c.is_whitespace());
        match name {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
