//! Tools that a model may call: how they are told to it, the grammar that its calls follow, and past calls in a
//! conversation.
//!
//! A model was taught one notation, which its chat template shows. Three are known:
//!
//! | style | a call | whose |
//! |---|---|---|
//! | Hermes | `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, anywhere | Hermes, Qwen |
//! | Llama | `{"name": …, "parameters": …}`, the whole answer | Llama 3 |
//! | generic | `{"tool_calls": [{"name": …, "arguments": …}, …]}`, the whole answer, told in a system message | any other |

use std::fmt::Write;

use neap_model::chat::{ChatMessage, ChatTemplate};
use serde_json::{Map, Value, json};

use super::format::{Format, json_rule};
use crate::error::ApiError;
use crate::fields::Fields;

/// Tools of one request at most.
const MAX_TOOLS: usize = 128;
/// Longest name of a function.
const MAX_NAME_BYTES: usize = 64;
/// What begins a call in the Hermes style, and what ends it.
pub const HERMES_BEGINS: &str = "<tool_call>\n";
/// See [`HERMES_BEGINS`].
pub const HERMES_ENDS: &str = "\n</tool_call>";
/// What begins the calls in the generic style.
pub const GENERIC_BEGINS: &str = "{\"tool_calls\": [";

/// Tokens that some vocabularies call special though they are part of what is said.
pub const AS_TEXT: [&str; 2] = ["<tool_call>", "</tool_call>"];

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Hermes,
    Llama,
    Generic,
}

impl Style {
    /// The style that a chat template shows.
    pub fn of(template: &ChatTemplate) -> Self {
        let source = template.source();
        if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains("<|python_tag|>") || source.contains("Environment: ipython") {
            Self::Llama
        } else {
            Self::Generic
        }
    }

    /// Under which name arguments stand.
    pub fn arguments_key(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            Self::Hermes | Self::Generic => "arguments",
        }
    }
}

/// Whether a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// As the model sees fit.
    Auto,
    /// At least one.
    Required,
}

struct Function {
    name: String,
    /// A JSON schema of an object.
    parameters: Value,
    is_strict: bool,
    /// As the client described it.
    described: Value,
}

/// The tools of one request, of which one at least may be called.
pub struct Tools {
    style: Style,
    choice: Choice,
    in_parallel: bool,
    functions: Vec<Function>,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`; `None` if nothing may be called.
    ///
    /// # Errors
    /// What is wrong, by name.
    pub fn read(fields: &Fields<'_>, style: Style) -> Result<Option<Self>, ApiError> {
        let functions = fields.list("tools")?.unwrap_or_default();
        if functions.len() > MAX_TOOLS {
            return Err(fields.wrong("tools", &format!("a list of at most {MAX_TOOLS}")));
        }
        let mut functions: Vec<Function> = functions
            .iter()
            .enumerate()
            .map(function)
            .collect::<Result<_, _>>()?;
        for (index, function) in functions.iter().enumerate() {
            if functions[..index].iter().any(|f| f.name == function.name) {
                let must = format!(
                    "functions of different names, and {:?} comes twice",
                    function.name
                );
                return Err(fields.wrong("tools", &must));
            }
        }
        let choice = choice(fields, &mut functions)?;
        let in_parallel = match fields.value("parallel_tool_calls") {
            None => true,
            Some(_) => fields.flag("parallel_tool_calls")?,
        };
        let Some((choice, is_one)) = choice.filter(|_| !functions.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            style,
            choice,
            // Llama 3's template refuses a conversation with two calls at once.
            in_parallel: in_parallel && !is_one && style != Style::Llama,
            functions,
        }))
    }

    /// How calls are written.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Whether an answer that calls nothing may have a form: only calls that begin like no JSON can be told from it.
    pub fn allows_form(&self) -> bool {
        self.style == Style::Hermes || self.choice == Choice::Required
    }

    /// What the template is given as `tools`.
    pub fn for_template(&self) -> Vec<Value> {
        match self.style {
            Style::Generic => Vec::new(),
            Style::Hermes | Style::Llama => {
                self.functions.iter().map(|f| f.described.clone()).collect()
            }
        }
    }

    /// Tells a model about the tools whose template has no place for them.
    pub fn introduce(&self, messages: &mut Vec<ChatMessage>) {
        if self.style != Style::Generic {
            return;
        }
        let mut text = String::from("You can call these functions:\n");
        for function in &self.functions {
            let described = function.described.get("function").unwrap_or(&Value::Null);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{described}");
        }
        text.push_str(
            "To call functions, answer with nothing but JSON of this form: \
             {\"tool_calls\": [{\"name\": NAME, \"arguments\": {...}}]}",
        );
        match messages.first_mut().filter(|m| m.role == "system") {
            Some(system) => {
                let said = system.content.as_str().unwrap_or_default();
                system.content = format!("{said}\n\n{text}").into();
            }
            None => messages.insert(0, ChatMessage::new("system", text)),
        }
    }

    /// The grammar of an answer: calls, and what else is allowed beside them.
    pub fn grammar(&self, format: &Format) -> String {
        let mut rules = String::new();
        for (index, function) in self.functions.iter().enumerate() {
            let key = self.style.arguments_key();
            let begins = format!("{{\"name\": \"{}\", \"{key}\": ", function.name);
            let schema = json_rule(&function.parameters, function.is_strict);
            let _ = writeln!(rules, "call_{index}: {} {schema} \"}}\"", quoted(&begins));
        }
        let names: Vec<String> = (0..self.functions.len())
            .map(|i| format!("call_{i}"))
            .collect();
        let _ = writeln!(rules, "call: {}", names.join(" | "));
        let start = match self.style {
            Style::Hermes => self.hermes(format, &mut rules),
            Style::Llama => self.whole("call", format, &mut rules),
            Style::Generic => {
                let more = if self.in_parallel {
                    " (\", \" call)*"
                } else {
                    ""
                };
                let _ = writeln!(
                    rules,
                    "calls: {} call{more} \"]}}\"",
                    quoted(GENERIC_BEGINS)
                );
                self.whole("calls", format, &mut rules)
            }
        };
        format!("start: {start}\n{rules}")
    }

    fn hermes(&self, format: &Format, rules: &mut String) -> String {
        let (begins, ends) = (quoted(HERMES_BEGINS), quoted(HERMES_ENDS));
        let _ = writeln!(rules, "first: {begins} call {ends}");
        let more = if self.in_parallel {
            " (\"\\n\" first)*"
        } else {
            ""
        };
        match (self.choice, format.schema_rule()) {
            (Choice::Required, _) => format!("first{more}"),
            (Choice::Auto, Some(json)) => format!("first{more} | {json}"),
            (Choice::Auto, None) => {
                let _ = writeln!(rules, "head[lazy]: TEXT {begins}");
                let _ = writeln!(rules, "later: head call {ends}");
                let _ = writeln!(rules, "tail: TEXT\nTEXT: /(\\n|.)*/");
                match self.in_parallel {
                    true => "later* tail".to_owned(),
                    false => "later | tail".to_owned(),
                }
            }
        }
    }

    /// For calls that are the whole answer: the first character tells them from text.
    fn whole(&self, calls: &str, format: &Format, rules: &mut String) -> String {
        match (self.choice, format.schema_rule()) {
            (Choice::Required, _) => calls.to_owned(),
            // Both begin with a brace; `Wishes` refuses it.
            (Choice::Auto, Some(json)) => json,
            (Choice::Auto, None) => {
                let _ = writeln!(rules, "text: TEXT\nTEXT: /([^{{](\\n|.)*)?/");
                format!("{calls} | text")
            }
        }
    }
}

/// A string of a grammar.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn function((index, tool): (usize, &Value)) -> Result<Function, ApiError> {
    let wrong = |at: &str, must: &str| {
        let name = format!("tools[{index}]{at}");
        let message = format!("`{name}` must be {must}");
        ApiError::field(name, message)
    };
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(
            ".type",
            "\"function\": other tools are not supported",
        ));
    }
    // Chats nest the function, responses do not.
    let function = tool.get("function").unwrap_or(tool);
    let name = function
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        let must = format!("1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` or `.`");
        return Err(wrong(".function.name", &must));
    }
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => {
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        Some(Value::Object(schema)) => object_schema(schema)
            .ok_or_else(|| wrong(".function.parameters", "the JSON schema of an object"))?,
        Some(_) => return Err(wrong(".function.parameters", "a JSON schema")),
    };
    let mut described = function.clone();
    if let Some(map) = described.as_object_mut() {
        for not_told in ["strict", "type"] {
            map.remove(not_told);
        }
    }
    Ok(Function {
        name: name.to_owned(),
        parameters,
        is_strict: function
            .get("strict")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        described: json!({"type": "function", "function": described}),
    })
}

/// Arguments are an object, also where a schema does not say so.
fn object_schema(schema: &Map<String, Value>) -> Option<Value> {
    let mut schema = schema.clone();
    match schema.get("type") {
        Some(kind) => (kind == "object").then(|| schema.into()),
        None => {
            schema.insert("type".into(), "object".into());
            Some(schema.into())
        }
    }
}

/// What `tool_choice` says, and whether it is just one call; only the functions that may be called are left.
fn choice(
    fields: &Fields<'_>,
    functions: &mut Vec<Function>,
) -> Result<Option<(Choice, bool)>, ApiError> {
    let must = "\"none\", \"auto\", \"required\" or one of the functions in `tools`";
    let wrong = || fields.wrong("tool_choice", must);
    match fields.value("tool_choice") {
        None => Ok(Some((Choice::Auto, false))),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(None),
            "auto" => Ok(Some((Choice::Auto, false))),
            "required" if !functions.is_empty() => Ok(Some((Choice::Required, false))),
            _ => Err(wrong()),
        },
        Some(value) => {
            let named = value.get("function").unwrap_or(value).get("name");
            let name = named.and_then(Value::as_str).ok_or_else(wrong)?;
            functions.retain(|f| f.name == name);
            if functions.is_empty() {
                return Err(wrong());
            }
            Ok(Some((Choice::Required, true)))
        }
    }
}

/// Brings past calls and their results into the form that the model's template knows.
pub fn rewrite_history(messages: &mut Vec<ChatMessage>, style: Style) {
    for message in messages.iter_mut() {
        let calls = message
            .fields
            .get_mut("tool_calls")
            .and_then(Value::as_array_mut);
        // Clients send arguments as text; templates print them as JSON.
        for call in calls.into_iter().flatten() {
            let arguments = call.pointer_mut("/function/arguments");
            if let Some(arguments) = arguments
                && let Some(parsed) = arguments
                    .as_str()
                    .and_then(|t| serde_json::from_str::<Value>(t).ok())
                && parsed.is_object()
            {
                *arguments = parsed;
            }
        }
    }
    if style == Style::Generic {
        let taken = std::mem::take(messages);
        for message in taken {
            in_words(message, messages);
        }
    }
}

/// For templates that know nothing of tools: calls as the text that they were, results as a user's words.
fn in_words(mut message: ChatMessage, out: &mut Vec<ChatMessage>) {
    if let Some(Value::Array(calls)) = message.fields.remove("tool_calls") {
        let calls: Vec<String> = calls.iter().map(call_in_words).collect();
        let said = message.content.as_str().unwrap_or_default();
        let text = format!("{said}{GENERIC_BEGINS}{}]}}", calls.join(", "));
        message.content = text.into();
    }
    if message.role != "tool" {
        out.push(message);
        return;
    }
    let said = message.content.as_str().unwrap_or_default();
    let text = format!("Result of the call: {said}");
    match out.last_mut().filter(|last| last.role == "user") {
        // Roles take turns in many templates.
        Some(last) => {
            let before = last.content.as_str().unwrap_or_default();
            last.content = format!("{before}\n{text}").into();
        }
        None => out.push(ChatMessage::new("user", text)),
    }
}

fn call_in_words(call: &Value) -> String {
    let of = |key: &str| call.pointer(key).cloned().unwrap_or(Value::Null);
    format!(
        "{{\"name\": {}, \"arguments\": {}}}",
        of("/function/name"),
        of("/function/arguments")
    )
}

#[cfg(test)]
mod tests;
