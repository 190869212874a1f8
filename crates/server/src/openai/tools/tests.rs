use std::path::Path;
use std::sync::OnceLock;

use neap_engine::{Grammar, Grammars};
use neap_model::source::ModelSource;
use neap_model::tokenizer::{EncodeOptions, Tokenizer};

use super::*;
use crate::openai::calls::{CallReader, Piece};

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
        Tokenizer::from_source(&ModelSource::open(&path).unwrap()).unwrap()
    })
}

fn tools(more: Value, style: Style) -> Result<Option<Tools>, ApiError> {
    let mut body = json!({"tools": [
        {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
            "additionalProperties": false}}},
        {"type": "function", "function": {"name": "time"}},
    ]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    Tools::read(&Fields::of(&body)?, style)
}

fn grammar(more: Value, style: Style, format: &Format) -> Grammar {
    let lark = tools(more, style).unwrap().unwrap().grammar(format);
    let grammars = Grammars::new(tokenizer(), &AS_TEXT).unwrap();
    grammars
        .compile(&lark)
        .unwrap_or_else(|why| panic!("{why} in {lark}"))
}

/// Whether the text may be said, and whether it may end there.
fn takes(grammar: &Grammar, text: &str) -> Option<bool> {
    let mut grammar = grammar.clone();
    let tokenizer = tokenizer();
    let options = EncodeOptions {
        add_bos: false,
        parse_special: false,
    };
    let allowed = |grammar: &mut Grammar| {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        grammar.mask(&mut logits).unwrap();
        logits
    };
    for id in tokenizer.encode(text, options).unwrap() {
        if grammar.is_complete() || allowed(&mut grammar)[id as usize] != 0.0 {
            return None;
        }
        grammar.push(id).unwrap();
    }
    if grammar.is_complete() {
        return Some(true);
    }
    let end = tokenizer.stop_ids()[0];
    Some(allowed(&mut grammar)[end as usize] == 0.0)
}

const HERMES: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
const LLAMA: &str = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Ulm\"}}";
const GENERIC: &str =
    "{\"tool_calls\": [{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}]}";

#[test]
fn answers_may_call_or_say_something() {
    for (style, call) in [
        (Style::Hermes, HERMES),
        (Style::Llama, LLAMA),
        (Style::Generic, GENERIC),
    ] {
        let auto = grammar(json!({}), style, &Format::Text);
        assert_eq!(takes(&auto, call), Some(true), "{style:?}");
        assert_eq!(takes(&auto, "It rains."), Some(true), "{style:?}");
        assert_eq!(takes(&auto, ""), Some(true), "{style:?}");
        let other = call.replace("weather", "whatever");
        assert_eq!(takes(&auto, &other), None, "{style:?}");
        let wrong = call.replace("city", "town");
        assert_eq!(takes(&auto, &wrong), None, "{style:?}");

        let required = grammar(json!({"tool_choice": "required"}), style, &Format::Text);
        assert_eq!(takes(&required, "It rains."), None, "{style:?}");
        assert_eq!(takes(&required, call), Some(true), "{style:?}");

        let named = json!({"tool_choice": {"type": "function", "function": {"name": "time"}}});
        let named = grammar(named, style, &Format::Text);
        assert_eq!(takes(&named, call), None, "{style:?}");
        let time = call
            .replace("weather", "time")
            .replace("{\"city\": \"Ulm\"}", "{}");
        assert_eq!(takes(&named, &time), Some(true), "{style:?}");
    }
}

#[test]
fn calls_may_be_several_unless_told_otherwise() {
    let two = format!("Wait.\n{HERMES}\n{HERMES}");
    let many = grammar(json!({}), Style::Hermes, &Format::Text);
    assert_eq!(takes(&many, &two), Some(true));
    let one = json!({"parallel_tool_calls": false});
    let one = grammar(one, Style::Hermes, &Format::Text);
    assert_eq!(takes(&one, &two), None);
    let first = format!("Wait.\n{HERMES}");
    assert_eq!(takes(&one, &first), Some(true));
}

#[test]
fn beside_calls_an_answer_may_have_a_form() {
    let format = Format::Json {
        schema: json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        is_strict: true,
    };
    let grammar = grammar(json!({}), Style::Hermes, &format);
    assert_eq!(takes(&grammar, "{\"a\": 5}"), Some(true));
    assert_eq!(takes(&grammar, HERMES), Some(true));
    assert_eq!(takes(&grammar, "It rains."), None);
    let allows = |more: Value, style| tools(more, style).unwrap().unwrap().allows_form();
    assert!(allows(json!({}), Style::Hermes) && !allows(json!({}), Style::Llama));
    assert!(allows(json!({"tool_choice": "required"}), Style::Generic));
}

#[test]
fn what_the_grammar_takes_the_reader_reads() {
    for (style, call) in [
        (Style::Hermes, HERMES),
        (Style::Llama, LLAMA),
        (Style::Generic, GENERIC),
    ] {
        let mut reader = CallReader::new(style);
        let pieces = reader.push(call);
        assert_eq!(pieces[0], Piece::Call("weather".into()));
        assert_eq!(pieces[1], Piece::Arguments("{\"city\": \"Ulm\"}".into()));
    }
}

#[test]
fn wrong_tools_are_refused_by_name() {
    let refused = |more: Value| tools(more, Style::Hermes).map(drop).unwrap_err().param;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (param, more) in [
        ("tools[0].function.name", json!({"tools": [tool("a b")]})),
        ("tools", json!({"tools": [tool("a"), tool("a")]})),
        ("tools[0].type", json!({"tools": [{"type": "web_search"}]})),
        ("tool_choice", json!({"tool_choice": "maybe"})),
        (
            "tool_choice",
            json!({"tool_choice": {"type": "function", "function": {"name": "x"}}}),
        ),
        (
            "tool_choice",
            json!({"tools": [], "tool_choice": "required"}),
        ),
        ("parallel_tool_calls", json!({"parallel_tool_calls": 1})),
        (
            "tools[0].function.parameters",
            json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}),
        ),
    ] {
        assert_eq!(refused(more.clone()).as_deref(), Some(param), "{more}");
    }
    assert!(
        tools(json!({"tool_choice": "none"}), Style::Hermes)
            .unwrap()
            .is_none()
    );
}

#[test]
fn history_is_told_in_words_where_a_template_knows_no_tools() {
    let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
    let mut asked = ChatMessage::new("assistant", "");
    asked.fields.insert("tool_calls".into(), call);
    let talk = vec![
        ChatMessage::new("user", "go"),
        asked,
        ChatMessage::new("tool", "7"),
        ChatMessage::new("tool", "8"),
    ];
    let mut messages = talk.clone();
    rewrite_history(&mut messages, Style::Generic);
    let said: Vec<(&str, &str)> = messages
        .iter()
        .map(|m| (m.role.as_str(), m.content.as_str().unwrap()))
        .collect();
    assert_eq!(said[1].0, "assistant");
    assert_eq!(
        said[1].1,
        "{\"tool_calls\": [{\"name\": \"f\", \"arguments\": {\"a\":1}}]}"
    );
    assert_eq!(
        said[2],
        ("user", "Result of the call: 7\nResult of the call: 8")
    );

    let mut messages = talk;
    rewrite_history(&mut messages, Style::Hermes);
    assert_eq!(
        messages[1].fields["tool_calls"][0]["function"]["arguments"],
        json!({"a": 1})
    );
    assert_eq!(messages[2].role, "tool");
}
