//! `input`: a text, or a list of messages, calls and their results.

use neap_model::chat::ChatMessage;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::chat::text_part;

/// The conversation that the input is.
///
/// # Errors
/// What is wrong, by name.
pub fn read(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let must = "a text, or a list of at least one item";
    match fields.value("input") {
        Some(Value::String(text)) => Ok(vec![ChatMessage::new("user", text.as_str())]),
        Some(Value::Array(items)) if !items.is_empty() => {
            let mut messages = Vec::new();
            for (index, value) in items.iter().enumerate() {
                item(index, value, &mut messages)?;
            }
            Ok(messages)
        }
        _ => Err(fields.wrong("input", must)),
    }
}

fn wrong(index: usize, field: &str, must: &str) -> ApiError {
    let name = format!("input[{index}]{field}");
    let message = format!("`{name}` must be {must}");
    ApiError::field(name, message)
}

fn item(index: usize, value: &Value, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let map = value
        .as_object()
        .ok_or_else(|| wrong(index, "", "an object"))?;
    let kind = map.get("type").and_then(Value::as_str).unwrap_or("message");
    match kind {
        "message" => messages.push(message(index, map)?),
        "function_call" => call(index, map, messages)?,
        "function_call_output" => messages.push(result(index, map)?),
        // How an earlier answer was thought of is not told again.
        "reasoning" => {}
        _ => {
            let must = "\"message\", \"function_call\", \"function_call_output\" or \"reasoning\"";
            return Err(wrong(index, ".type", must));
        }
    }
    Ok(())
}

fn text_of(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(text_part).collect(),
        _ => None,
    }
}

fn string(index: usize, map: &Map<String, Value>, name: &str) -> Result<String, ApiError> {
    let text = map.get(name).and_then(Value::as_str);
    text.map(str::to_owned)
        .ok_or_else(|| wrong(index, &format!(".{name}"), "a string"))
}

fn message(index: usize, map: &Map<String, Value>) -> Result<ChatMessage, ApiError> {
    let role = string(index, map, "role")?;
    let text = text_of(map.get("content"))
        .ok_or_else(|| wrong(index, ".content", "a string or a list of text parts"))?;
    let role = if role == "developer" {
        "system".into()
    } else {
        role
    };
    Ok(ChatMessage::new(role, text))
}

/// A call belongs to the assistant's latest message.
fn call(
    index: usize,
    map: &Map<String, Value>,
    messages: &mut Vec<ChatMessage>,
) -> Result<(), ApiError> {
    let call = json!({
        "id": string(index, map, "call_id")?,
        "type": "function",
        "function": {
            "name": string(index, map, "name")?,
            "arguments": string(index, map, "arguments")?,
        },
    });
    if messages.last().is_none_or(|last| last.role != "assistant") {
        messages.push(ChatMessage::new("assistant", ""));
    }
    if let Some(last) = messages.last_mut() {
        let calls = last.fields.entry("tool_calls").or_insert_with(|| json!([]));
        if let Some(calls) = calls.as_array_mut() {
            calls.push(call);
        }
    }
    Ok(())
}

fn result(index: usize, map: &Map<String, Value>) -> Result<ChatMessage, ApiError> {
    let text = text_of(map.get("output"))
        .ok_or_else(|| wrong(index, ".output", "a string or a list of text parts"))?;
    let mut message = ChatMessage::new("tool", text);
    let id = string(index, map, "call_id")?;
    message.fields.insert("tool_call_id".into(), id.into());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_a_conversation() {
        let body = json!({"input": [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        ]});
        let messages = read(&Fields::of(&body).unwrap()).unwrap();
        let roles: Vec<&str> = messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(
            messages[2].fields["tool_calls"].as_array().unwrap().len(),
            2
        );
        assert_eq!(messages[3].fields["tool_call_id"], "c1");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (param, input) in [
            ("input", json!(null)),
            ("input", json!([])),
            ("input[0]", json!(["x"])),
            ("input[0].type", json!([{"type": "computer_call"}])),
            (
                "input[0].content",
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
            ),
            ("input[0].call_id", json!([{"type": "function_call"}])),
            (
                "input[0].output",
                json!([{"type": "function_call_output", "call_id": "c"}]),
            ),
        ] {
            let body = json!({"input": input});
            let error = read(&Fields::of(&body).unwrap()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
