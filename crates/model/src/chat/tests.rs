use super::*;
use crate::tokenizer::{ByteStrings, VocabularyData};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

fn data(folder: &Path, name: &str) -> Json {
    let path = folder.join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat")
}

fn options(conversation: &Json) -> RenderOptions {
    let mut variables = conversation.as_object().unwrap().clone();
    let generation = variables.remove("add_generation_prompt");
    variables.remove("messages");
    RenderOptions {
        add_generation_prompt: generation.is_none_or(|value| value == true),
        tools: match variables.remove("tools") {
            Some(Json::Array(tools)) => tools,
            _ => Vec::new(),
        },
        now: variables
            .remove("now")
            .map(|_| UNIX_EPOCH + Duration::from_secs(1_722_036_645)),
        variables,
    }
}

/// What rendering every template on every conversation came to.
#[derive(Default)]
struct Compared {
    prompts: usize,
    /// What came out otherwise than by Jinja2.
    different: Vec<String>,
    /// Where Jinja2 failed, as on a loop over null, and a prompt came out.
    beyond: Vec<String>,
}

/// Renders what `tests/data/make_chat_goldens.py` wrote to a folder.
fn compare(folder: &Path) -> Compared {
    let conversations = data(folder, "conversations");
    let (templates, goldens) = (data(folder, "templates"), data(folder, "goldens"));
    let mut compared = Compared::default();
    for (name, expected) in goldens.as_object().unwrap() {
        let source = templates[name].as_str().unwrap();
        let template = match ChatTemplate::new(source, "<s>", "</s>") {
            Ok(template) => template,
            Err(why) => {
                compared.different.push(format!("{name}: {why}"));
                continue;
            }
        };
        for (title, conversation) in conversations.as_object().unwrap() {
            let messages: Vec<ChatMessage> =
                serde_json::from_value(conversation["messages"].clone()).unwrap();
            let got = template.render(&messages, &options(conversation));
            let expected = &expected[title];
            let same = match (&got, &expected["prompt"], &expected["refused"]) {
                (Ok(got), Json::String(prompt), _) => got == prompt,
                (Err(ChatError::Refused { message }), _, Json::String(said)) => message == said,
                (Err(ChatError::Render { line, .. }), Json::Null, Json::Null) => *line > 0,
                _ => false,
            };
            let line = || format!("{name}: {title}: {got:?}, expected {expected}");
            match (same, got.is_ok() && expected["failed"].is_string()) {
                (true, _) => {}
                (false, true) => compared.beyond.push(line()),
                (false, false) => compared.different.push(line()),
            }
            compared.prompts += 1;
        }
    }
    compared
}

#[test]
fn renders_as_jinja2_does() {
    let compared = compare(&golden());
    let unlike = [compared.different, compared.beyond].concat();
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
    assert!(compared.prompts >= 70);
}

/// Templates as they are published, which are not ours to copy: llama.cpp's folder `models/templates` has some thirty.
/// Set `NEAP_CHAT_TEMPLATES` to what `make_chat_goldens.py TEMPLATES FOLDER` wrote to `FOLDER`.
#[test]
fn published_templates_render_as_by_jinja2() {
    let Ok(folder) = std::env::var("NEAP_CHAT_TEMPLATES") else {
        println!("skipped: NEAP_CHAT_TEMPLATES is not set");
        return;
    };
    let compared = compare(Path::new(&folder));
    let (different, beyond) = (compared.different, compared.beyond.len());
    println!(
        "{} prompts, {} different, {beyond} where Jinja2 fails",
        compared.prompts,
        different.len()
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn render(source: &str) -> Result<String, ChatError> {
    ChatTemplate::new(source, "<s>", "</s>")?
        .render(&[ChatMessage::new("user", "hi")], &RenderOptions::default())
}

#[test]
fn syntax_errors_name_the_line() {
    match render("fine\n{% if %}") {
        Err(ChatError::Syntax { line: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn templates_cannot_run_or_grow_without_end() {
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    assert_eq!(render(endless), Err(ChatError::TooMuchWork));
    // Doubles a string 60 times.
    let doubling = "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}\
                    {% endfor %}{{ ns.s|length }}";
    assert_eq!(render(doubling), Err(ChatError::TooMuchWork));
    assert_eq!(
        render("{{ 'x' * 100000000000 }}"),
        Err(ChatError::TooMuchWork)
    );
    let recursing = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(
        render(recursing),
        Err(ChatError::Render { .. } | ChatError::TooMuchWork)
    ));
    let nested = "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}\
                  {{ ns.l | tojson }}";
    assert!(matches!(render(nested), Err(ChatError::Render { .. })));
}

#[test]
fn a_long_conversation_has_work_enough() {
    let source = data(&golden(), "templates")["qwen2.5"]
        .as_str()
        .unwrap()
        .to_owned();
    let template = ChatTemplate::new(&source, "", "").unwrap();
    let messages = vec![ChatMessage::new("user", "word ".repeat(200)); 5_000];
    let prompt = template
        .render(&messages, &RenderOptions::default())
        .unwrap();
    assert_eq!(prompt.matches("<|im_start|>user").count(), 5_000);
}

#[test]
fn templates_reach_no_files() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% import 'chat' as x %}",
        "{% extends 'chat' %}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn values_stay_what_the_caller_set() {
    let template =
        ChatTemplate::new("{{ bos_token }}{{ messages|length }}{{ extra }}", "<s>", "").unwrap();
    let mut options = RenderOptions::default();
    for name in ["bos_token", "messages", "extra"] {
        options.variables.insert(name.into(), Json::from("forged"));
    }
    let prompt = template.render(&[ChatMessage::new("user", "hi")], &options);
    assert_eq!(prompt.as_deref(), Ok("<s>1forged"));
}

#[test]
fn json_is_pythons() {
    let cases = [
        ("{{ {'b': [], 'a': {}} | tojson }}", r#"{"b": [], "a": {}}"#),
        (
            "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
            r#"{"a": 2, "b": 1}"#,
        ),
        (
            "{{ [1, [2]] | tojson(indent=2) }}",
            "[\n  1,\n  [\n    2\n  ]\n]",
        ),
        (
            "{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}",
            r#"[1,{"a":2}]"#,
        ),
        (
            "{{ 'é\u{1f600}\u{1}' | tojson(ensure_ascii=true) }}",
            r#""\u00e9\ud83d\ude00\u0001""#,
        ),
        ("{{ '</b>\t' | tojson }}", r#""</b>\t""#),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

fn tokenizer(extra: &[&str]) -> Tokenizer {
    let tokens = ["<unk>", "<s>", "</s>"].iter().chain(extra);
    let tokens = ByteStrings::collect(tokens).unwrap();
    let mut token_types = vec![3; tokens.len()];
    token_types[0] = 2;
    let data = VocabularyData {
        model: "llama".into(),
        scores: vec![0.0; tokens.len()],
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..VocabularyData::default()
    };
    Tokenizer::from_vocabulary(&data).unwrap()
}

#[test]
fn models_without_a_template_get_one() {
    let messages = [
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "Hi"),
    ];
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let plain = ChatTemplate::fallback(&tokenizer(&[])).unwrap();
    assert_eq!(
        plain.render(&messages, &options).unwrap(),
        "<s>Be brief.\n\nUser: Hi\nAssistant:"
    );
    let chatml = ChatTemplate::fallback(&tokenizer(&["<|im_start|>", "<|im_end|>"])).unwrap();
    assert_eq!(
        chatml.render(&messages, &options).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn messages_keep_fields_that_are_not_known() {
    let json = r#"{"role": "tool", "tool_call_id": "7"}"#;
    let message: ChatMessage = serde_json::from_str(json).unwrap();
    assert_eq!(message.content, Json::Null);
    let template = "{{ messages[0].tool_call_id }} {{ messages[0].content is none }}";
    let template = ChatTemplate::new(template, "", "").unwrap();
    let prompt = template.render(&[message], &RenderOptions::default());
    assert_eq!(prompt.as_deref(), Ok("7 True"));
}
