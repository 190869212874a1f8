//! What a server writes to its log.

use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Server, ask};

#[test]
fn a_request_is_a_line_for_programs() {
    let (sender, lines) = channel();
    let server = Server::logging(&["--log", "info", "--log-format", "json"], move |line| {
        let _ = sender.send(line);
    });
    let body = json!({"prompt": "one two three", "max_tokens": 4, "ignore_eos": true});
    let (status, answer) = ask(&server.url, ("POST", "/v1/completions"), "", &body);
    assert_eq!(status, 200, "{answer}");
    let line = loop {
        let line = lines.recv_timeout(Duration::from_secs(20)).expect("a line");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        if line["message"] == "a request has ended" {
            break line;
        }
    };
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["new_tokens"], 4);
    assert_eq!(line["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    assert_eq!(line["reason"], "token limit reached");
    assert!(line["total_ms"].as_u64() >= line["first_token_ms"].as_u64());
    assert!(line["first_token_ms"].is_u64(), "{line}");
}
