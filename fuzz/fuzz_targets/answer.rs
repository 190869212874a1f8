//! Any text as what a model says, in any pieces: what is streamed is what is answered at once, and every event is one
//! that clients can read.
//!
//! The first byte chooses what was asked; the others are the text, a byte 0xFF cuts it.
#![no_main]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use neap_model::chat::ChatTemplate;
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;
use neap_server::{ServedModel, answers_of};
use serde_json::{Value, json};

fn model() -> &'static Arc<ServedModel> {
    static MODEL: OnceLock<Arc<ServedModel>> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/neap-tiny.gguf");
        let source = ModelSource::open(&path).unwrap();
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        let template = ChatTemplate::from_source(&source, &tokenizer).unwrap();
        Arc::new(ServedModel::new("tiny", 2048, tokenizer, template))
    })
}

fn asked() -> &'static [(&'static str, String)] {
    static ASKED: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();
    ASKED.get_or_init(|| {
        let parameters = json!({"type": "object", "properties": {"q": {"type": "string"}}});
        let function = json!({"name": "f", "parameters": parameters});
        let tools = json!([{"type": "function", "function": function}]);
        let messages = json!([{"role": "user", "content": "hi"}]);
        let flat = json!([{"type": "function", "name": "f", "parameters": parameters}]);
        let (chat, plain, response) = ("/v1/chat/completions", "/v1/completions", "/v1/responses");
        [
            (chat, json!({"messages": messages, "stream": true, "n": 2})),
            (chat, json!({"messages": messages, "logprobs": true, "top_logprobs": 1})),
            (chat, json!({"messages": messages, "tools": tools, "tool_choice": "required"})),
            (chat, json!({"messages": messages, "tools": tools, "tool_choice": "auto"})),
            (plain, json!({"prompt": ["a", "b"], "echo": true, "logprobs": 1})),
            (response, json!({"input": "hi"})),
            (response, json!({"input": "hi", "tools": flat, "tool_choice": "required"})),
            (response, json!({"input": "hi", "tools": flat})),
        ]
        .map(|(path, body)| (path, body.to_string()))
        .into()
    })
}

/// The data of one event, as the standard has it: lines of `field: value`, then an empty one.
fn data(frame: &str) -> Option<Value> {
    let lines = frame.strip_suffix("\n\n").expect("an event ends with an empty line");
    let mut data = None;
    for line in lines.split('\n') {
        assert!(!line.contains('\r'), "{line:?}");
        match line.split_once(": ").expect("a field") {
            ("event", _) => {}
            ("data", value) => assert!(data.replace(value).is_none(), "one line of data"),
            (field, _) => panic!("{field:?}"),
        }
    }
    let data = data.expect("an event has data");
    (data != "[DONE]").then(|| serde_json::from_str(data).expect("data is JSON"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Texts and calls of each choice, put together again.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    calls: Vec<(String, String)>,
}

fn of_chunks(events: &[Value], choices: usize) -> Vec<Said> {
    let mut all: Vec<Said> = (0..choices).map(|_| Said::default()).collect();
    for choice in events.iter().flat_map(|e| e["choices"].as_array().unwrap()) {
        let said = &mut all[choice["index"].as_u64().unwrap() as usize];
        said.text.push_str(text(&choice["text"]));
        said.text.push_str(text(&choice["delta"]["content"]));
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            if index == said.calls.len() {
                said.calls.push((text(&function["name"]).to_owned(), String::new()));
            }
            said.calls[index].1.push_str(text(&function["arguments"]));
        }
    }
    all
}

fn of_whole(whole: &Value) -> Vec<Said> {
    let choices = whole["choices"].as_array().unwrap().iter();
    let call = |call: &Value| {
        let function = &call["function"];
        (text(&function["name"]).to_owned(), text(&function["arguments"]).to_owned())
    };
    choices
        .map(|choice| Said {
            text: [text(&choice["text"]), text(&choice["message"]["content"])].concat(),
            calls: choice["message"]["tool_calls"].as_array().into_iter().flatten().map(call).collect(),
        })
        .collect()
}

fn check_response(events: &[Value], whole: &Value) {
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let joined = |kind: &str| -> String {
        let of_kind = events.iter().filter(|e| e["type"] == kind);
        of_kind.map(|e| text(&e["delta"])).collect()
    };
    let items = || whole["output"].as_array().unwrap().iter();
    let texts = items().flat_map(|item| item["content"].as_array().into_iter().flatten());
    let said: String = texts.map(|part| text(&part["text"])).collect();
    assert_eq!(joined("response.output_text.delta"), said);
    let arguments: String = items().map(|item| text(&item["arguments"])).collect();
    assert_eq!(joined("response.function_call_arguments.delta"), arguments);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"].as_array().unwrap().len(), items().count());
    assert_eq!(last["status"], whole["status"]);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, said)) = bytes.split_first() else {
        return;
    };
    let (path, body) = &asked()[usize::from(*which) % asked().len()];
    let said: Vec<String> = said
        .split(|byte| *byte == 0xFF)
        .map(|piece| String::from_utf8_lossy(piece).into_owned())
        .collect();
    let tokens: Vec<&str> = said.iter().map(String::as_str).collect();
    let (frames, whole) = answers_of(model(), path, body.as_bytes(), &tokens).unwrap();
    let events: Vec<Value> = frames.iter().filter_map(|frame| data(frame)).collect();
    if *path == "/v1/responses" {
        check_response(&events, &whole);
    } else {
        let whole = of_whole(&whole);
        assert_eq!(of_chunks(&events, whole.len()), whole);
        assert_eq!(frames.last().map(String::as_str), Some("data: [DONE]\n\n"));
    }
});
