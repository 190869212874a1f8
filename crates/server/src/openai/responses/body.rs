//! The body of a response, as it begins and as it ends.

use neap_engine::Usage;
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::openai::answer::{Call, Choice};
use crate::openai::{now_s, random};

/// Fields that a response repeats from its request, and what they are if left out.
const REPEATED: [(&str, Option<&str>); 12] = [
    ("instructions", None),
    ("max_output_tokens", None),
    ("metadata", Some("{}")),
    ("parallel_tool_calls", Some("true")),
    ("previous_response_id", None),
    ("reasoning", Some("{\"effort\": null, \"summary\": null}")),
    ("temperature", Some("1.0")),
    ("text", Some("{\"format\": {\"type\": \"text\"}}")),
    ("tool_choice", Some("\"auto\"")),
    ("tools", Some("[]")),
    ("top_p", Some("1.0")),
    ("truncation", Some("\"disabled\"")),
];

/// What every body of one response begins with.
pub struct Head {
    /// It can be asked for, and gone on from, later.
    pub is_stored: bool,
    /// Of the message in it.
    pub message_id: String,
    common: Value,
}

impl Head {
    /// A new response to a request.
    pub fn new(fields: &Fields<'_>, model: &str, is_stored: bool) -> Self {
        let mut common = json!({
            "id": format!("resp_{:016x}", random()),
            "object": "response",
            "created_at": now_s(),
            "status": "in_progress",
            "background": false,
            "error": null,
            "incomplete_details": null,
            "model": model,
            "output": [],
            "store": is_stored,
            "usage": null,
        });
        for (name, default) in REPEATED {
            let default = || default.and_then(|text| serde_json::from_str(text).ok());
            common[name] = fields
                .value(name)
                .cloned()
                .or_else(default)
                .unwrap_or(Value::Null);
        }
        Self {
            is_stored,
            message_id: format!("msg_{:016x}", random()),
            common,
        }
    }

    /// Before anything was said.
    pub fn begun(&self) -> Value {
        self.common.clone()
    }

    /// With all that was said.
    pub fn finished(&self, choice: &Choice) -> Value {
        let mut body = self.common.clone();
        let (reason, usage) = choice.finish.unwrap_or(("stop", Usage::default()));
        let is_cut = reason == "length";
        if is_cut {
            body["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let status = if is_cut { "incomplete" } else { "completed" };
        body["status"] = status.into();
        let mut output = Vec::new();
        if !choice.text.is_empty() || choice.calls.is_empty() {
            output.push(self.message(&choice.text, status));
        }
        output.extend(choice.calls.iter().map(|call| call_item(call, "completed")));
        body["output"] = output.into();
        body["usage"] = usage_json(&usage);
        body
    }

    /// The item that text is said in.
    pub fn message(&self, text: &str, status: &str) -> Value {
        let content = match status {
            "in_progress" => json!([]),
            _ => json!([text_part(text)]),
        };
        json!({
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        })
    }
}

/// The part of a message that is text.
pub fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The item that is a call.
pub fn call_item(call: &Call, status: &str) -> Value {
    json!({
        "id": call.id.replace("call_", "fc_"),
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    })
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
    })
}
