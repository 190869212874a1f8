//! A response as it comes: named events, numbered.

use std::sync::Arc;

use neap_engine::Event;
use serde_json::{Value, json};

use super::body::{call_item, text_part};
use super::{Asked, Store};
use crate::error::ApiError;
use crate::openai::answer::{Answer, Call};
use crate::openai::stream::Frames;
use crate::serving::Lease;

/// A response that is being told.
pub struct Told {
    kept: Arc<Store>,
    /// Until all has been told.
    _model: Lease,
    tenant: String,
    asked: Asked,
    answer: Answer,
    number: u64,
    /// Items that have begun.
    items: usize,
    /// Where the message stands among the items, and how much of its text was told.
    message: Option<(usize, usize)>,
    message_is_over: bool,
    /// The latest call's item, and how many of its arguments' bytes were told.
    call: Option<(usize, usize)>,
    calls_begun: usize,
}

impl Told {
    /// For the answer to `asked`.
    pub fn new((kept, model): (Arc<Store>, Lease), tenant: String, asked: Asked) -> Self {
        Self {
            kept,
            _model: model,
            tenant,
            answer: Answer::new(&asked.generation),
            asked,
            number: 0,
            items: 0,
            message: None,
            message_is_over: false,
            call: None,
            calls_begun: 0,
        }
    }

    fn event(&mut self, name: &str, mut body: Value, out: &mut Vec<String>) {
        body["type"] = name.into();
        body["sequence_number"] = self.number.into();
        self.number += 1;
        out.push(format!("event: {name}\ndata: {body}\n\n"));
    }

    fn next_item(&mut self) -> usize {
        self.items += 1;
        self.items - 1
    }

    /// Tells what of the text is new.
    fn tell_text(&mut self, out: &mut Vec<String>) {
        let text = self.answer.choices[0].text.clone();
        let (item, told) = match self.message {
            Some(at) => at,
            None if text.is_empty() => return,
            None => (self.begin_message(out), 0),
        };
        if text.len() > told {
            let delta = &text[told..];
            let body = self.of_message(item, json!({"delta": delta, "logprobs": []}));
            self.event("response.output_text.delta", body, out);
        }
        self.message = Some((item, text.len()));
    }

    fn of_message(&self, item: usize, mut body: Value) -> Value {
        body["item_id"] = self.asked.head.message_id.as_str().into();
        body["output_index"] = item.into();
        body["content_index"] = 0.into();
        body
    }

    fn begin_message(&mut self, out: &mut Vec<String>) -> usize {
        let item = self.next_item();
        let message = self.asked.head.message("", "in_progress");
        let body = json!({"output_index": item, "item": message});
        self.event("response.output_item.added", body, out);
        let body = self.of_message(item, json!({"part": text_part("")}));
        self.event("response.content_part.added", body, out);
        self.message = Some((item, 0));
        item
    }

    fn end_message(&mut self, status: &str, out: &mut Vec<String>) {
        let Some((item, _)) = self.message.filter(|_| !self.message_is_over) else {
            return;
        };
        self.message_is_over = true;
        let text = self.answer.choices[0].text.clone();
        let body = self.of_message(item, json!({"text": text, "logprobs": []}));
        self.event("response.output_text.done", body, out);
        let body = self.of_message(item, json!({"part": text_part(&text)}));
        self.event("response.content_part.done", body, out);
        let message = self.asked.head.message(&text, status);
        let body = json!({"output_index": item, "item": message});
        self.event("response.output_item.done", body, out);
    }

    /// Tells what of the calls is new.
    fn tell_calls(&mut self, out: &mut Vec<String>) {
        while self.calls_begun < self.answer.choices[0].calls.len() {
            self.tell_arguments(out);
            self.end_call(out);
            let call = Call {
                arguments: String::new(),
                ..self.answer.choices[0].calls[self.calls_begun].clone()
            };
            self.calls_begun += 1;
            let item = self.next_item();
            self.call = Some((item, 0));
            let body = json!({"output_index": item, "item": call_item(&call, "in_progress")});
            self.event("response.output_item.added", body, out);
        }
        self.tell_arguments(out);
    }

    fn tell_arguments(&mut self, out: &mut Vec<String>) {
        let Some((item, told)) = self.call else {
            return;
        };
        let call = &self.answer.choices[0].calls[self.calls_begun - 1];
        let length = call.arguments.len();
        if length > told {
            let body = json!({
                "item_id": call_item(call, "")["id"],
                "output_index": item,
                "delta": call.arguments[told..],
            });
            self.event("response.function_call_arguments.delta", body, out);
        }
        self.call = Some((item, length));
    }

    fn end_call(&mut self, out: &mut Vec<String>) {
        let Some((item, _)) = self.call.take() else {
            return;
        };
        let call = call_item(
            &self.answer.choices[0].calls[self.calls_begun - 1],
            "completed",
        );
        let body = json!({
            "item_id": call["id"],
            "output_index": item,
            "name": call["name"],
            "arguments": call["arguments"],
        });
        self.event("response.function_call_arguments.done", body, out);
        let body = json!({"output_index": item, "item": call});
        self.event("response.output_item.done", body, out);
    }
}

impl Frames for Told {
    fn begin(&mut self, out: &mut Vec<String>) {
        for name in ["response.created", "response.in_progress"] {
            let body = json!({"response": self.asked.head.begun()});
            self.event(name, body, out);
        }
    }

    fn take(&mut self, index: usize, event: Event, out: &mut Vec<String>) -> Result<(), ApiError> {
        self.answer.take(index, event)?;
        self.tell_text(out);
        self.tell_calls(out);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.answer.is_complete()
    }

    fn end(&mut self, out: &mut Vec<String>) {
        if self.items == 0 {
            self.begin_message(out);
        }
        let body = self.asked.head.finished(&self.answer.choices[0]);
        let status = body["status"].as_str().unwrap_or_default().to_owned();
        self.end_message(&status, out);
        self.end_call(out);
        if self.asked.head.is_stored {
            let messages = std::mem::take(&mut self.asked.messages);
            let choice = &self.answer.choices[0];
            self.kept.keep(&self.tenant, body.clone(), messages, choice);
        }
        let name = format!("response.{status}");
        self.event(&name, json!({"response": body}), out);
    }

    fn fail(&mut self, why: &ApiError, out: &mut Vec<String>) {
        let mut body = self.asked.head.begun();
        body["status"] = "failed".into();
        body["error"] = json!({
            "code": why.code.unwrap_or("server_error"),
            "message": why.message,
        });
        self.event("response.failed", json!({"response": body}), out);
    }
}
