//! Answers that must have a form: JSON, a schema, calls of functions; responses; deadlines; sessions.

mod support;

use neap_memory::KvQuality;
use serde_json::{Value, json};
use support::{Folder, Server, Setup, serve};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

fn chat(more: Value) -> Value {
    let mut body = json!({
        "temperature": 1, "seed": 5, "max_tokens": 300,
        "messages": [{"role": "user", "content": "hello"}],
    });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "kind": {"enum": ["one", "two"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "kind", "tags"],
        "additionalProperties": false,
    })
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert!(value["name"].as_str().unwrap().chars().count() <= 8);
    assert!(["one", "two"].contains(&value["kind"].as_str().unwrap()));
    assert!((1..=3).contains(&value["tags"].as_array().unwrap().len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_follows_its_schema() {
    let server = serve(Setup::default()).await;
    let format = json!({"type": "json_schema",
        "json_schema": {"name": "thing", "strict": true, "schema": schema()}});
    for seed in 0..6 {
        let body = chat(json!({"seed": seed, "response_format": format, "n": 2}));
        let answer = server.post(CHAT, body).await.json();
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop");
            check(choice["message"]["content"].as_str().unwrap());
        }
    }
    let body = json!({"prompt": "x", "max_tokens": 300, "response_format": format});
    let answer = server.post("/v1/completions", body).await.json();
    check(answer["choices"][0]["text"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_cannot_be_followed_is_refused_by_name() {
    let server = serve(Setup::default()).await;
    let format = |schema: Value| {
        json!({"response_format": {"type": "json_schema",
            "json_schema": {"name": "n", "strict": true, "schema": schema}}})
    };
    let large: Vec<String> = (0..40_000).map(|i| format!("value-{i}")).collect();
    for schema in [
        json!({"type": "nothing"}),
        json!({"$ref": "https://example.com/x.json"}),
        json!({"$ref": "#/definitions/missing"}),
        json!({"enum": large}),
    ] {
        let answer = server.post(CHAT, chat(format(schema))).await;
        assert_eq!(answer.status, 400);
        let error = answer.json()["error"].clone();
        assert_eq!(error["param"], "response_format", "{error}");
        assert_eq!(error["code"], "unsupported_grammar");
    }
}

fn tools() -> Value {
    json!([{"type": "function", "function": {
        "name": "get_weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": false,
        },
    }}])
}

fn check_arguments(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert!(value["city"].is_string() && value["days"].as_u64().unwrap() <= 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_call_is_made_and_streams_as_it_comes() {
    let server = serve(Setup::default()).await;
    let more = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
    let body = chat(more);
    let answer = server.post(CHAT, body.clone()).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let message = &choice["message"];
    assert_eq!(message["content"], Value::Null);
    let call = &message["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"]["name"], "get_weather");
    let whole = call["function"]["arguments"].as_str().unwrap();
    check_arguments(whole);

    let mut streamed = body;
    streamed["stream"] = true.into();
    let chunks = server.post(CHAT, streamed).await.chunks();
    let (mut name, mut arguments) = (String::new(), String::new());
    for chunk in &chunks {
        let delta = &chunk["choices"][0]["delta"];
        assert!(delta["content"].as_str().unwrap_or_default().is_empty());
        let call = &delta["tool_calls"][0];
        name.push_str(call["function"]["name"].as_str().unwrap_or_default());
        arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
    }
    assert_eq!((name.as_str(), arguments.as_str()), ("get_weather", whole));
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
    assert!(chunks.len() > 5, "the arguments come in pieces");

    // The result goes back.
    let mut body = chat(json!({"tools": tools(), "max_tokens": 8}));
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(message.clone());
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "rain"}));
    assert_eq!(server.post(CHAT, body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_say_call_and_go_on() {
    let server = serve(Setup::default()).await;
    let ask = |more: Value| {
        let mut body = json!({"input": "hello", "max_output_tokens": 12, "temperature": 0});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let first = server.post(RESPONSES, ask(json!({}))).await.json();
    assert_eq!(first["object"], "response");
    assert_eq!(first["status"], "incomplete");
    assert_eq!(first["incomplete_details"]["reason"], "max_output_tokens");
    let text = first["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(first["usage"]["output_tokens"], 12);

    let next = ask(json!({"input": "and then?", "previous_response_id": first["id"]}));
    let second = server.post(RESPONSES, next).await.json();
    let cached = second["usage"]["input_tokens_details"]["cached_tokens"].as_u64();
    assert!(
        cached > first["usage"]["input_tokens"].as_u64().map(|n| n / 2),
        "{second}"
    );

    let unkept = server
        .post(RESPONSES, ask(json!({"store": false})))
        .await
        .json();
    for id in [unkept["id"].as_str().unwrap(), "resp_0"] {
        let answer = server
            .post(RESPONSES, ask(json!({"previous_response_id": id})))
            .await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], "previous_response_id");
        let path = format!("{RESPONSES}/{id}");
        assert_eq!(server.get(&path).await.status, 404);
    }
    let path = format!("{RESPONSES}/{}", first["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), first);
    assert_eq!(server.send("DELETE", &path, "", "").await.status, 200);
    assert_eq!(server.get(&path).await.status, 404);

    let tool = json!([{"type": "function", "name": "get_weather", "parameters": tools()[0]["function"]["parameters"]}]);
    let more = json!({"tools": tool, "tool_choice": "required", "parallel_tool_calls": false,
        "max_output_tokens": 300, "temperature": 1, "seed": 3});
    let called = server.post(RESPONSES, ask(more)).await.json();
    assert_eq!(called["status"], "completed");
    assert_eq!(called["output"][0]["type"], "function_call");
    check_arguments(called["output"][0]["arguments"].as_str().unwrap());
}

/// The names and the data of a response's events.
async fn told(server: &Server, body: Value) -> Vec<(String, Value)> {
    let answer = server.post(RESPONSES, body).await;
    let events = answer.body.split("\n\n").filter(|e| !e.is_empty());
    let events = events.map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_response_tells_what_a_whole_one_says() {
    let server = serve(Setup::default()).await;
    let body = json!({"input": "hello", "max_output_tokens": 12, "temperature": 0, "stream": true});
    let events = told(&server, body).await;
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["type"], *name);
        assert_eq!(data["sequence_number"], number);
    }
    let names: Vec<&str> = events.iter().map(|e| e.0.as_str()).collect();
    assert_eq!(
        names[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
    );
    assert_eq!(
        names[names.len() - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let deltas = events
        .iter()
        .filter(|e| e.0 == "response.output_text.delta");
    let text: String = deltas.map(|e| e.1["delta"].as_str().unwrap()).collect();
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], text);

    let tool = json!([{"type": "function", "name": "get_weather", "parameters": tools()[0]["function"]["parameters"]}]);
    let body = json!({"input": "hello", "tools": tool, "tool_choice": "required", "stream": true,
        "parallel_tool_calls": false, "max_output_tokens": 300, "temperature": 1, "seed": 3});
    let events = told(&server, body).await;
    let deltas = events
        .iter()
        .filter(|e| e.0 == "response.function_call_arguments.delta");
    let arguments: String = deltas.map(|e| e.1["delta"].as_str().unwrap()).collect();
    check_arguments(&arguments);
    let (name, data) = &events[events.len() - 1];
    assert_eq!(name, "response.completed");
    assert_eq!(data["response"]["output"][0]["arguments"], arguments);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_by_field_and_by_header() {
    let server = serve(Setup {
        step: std::time::Duration::from_millis(20),
        ..Setup::default()
    })
    .await;
    let long = chat(json!({"max_tokens": 2000, "timeout": 0.3}));
    let answer = server.post(CHAT, long).await;
    assert_eq!(answer.status, 408);
    assert_eq!(answer.json()["error"]["code"], "deadline_exceeded");
    let long = chat(json!({"max_tokens": 2000})).to_string();
    let head = "X-Request-Timeout: 0.3\r\n";
    assert_eq!(server.send("POST", CHAT, head, &long).await.status, 408);
    let answer = server
        .send("POST", CHAT, "X-Request-Timeout: soon\r\n", &long)
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        server
            .post(CHAT, chat(json!({"max_tokens": 2, "timeout": 30})))
            .await
            .status,
        200
    );
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("neap_requests_finished_total{finished_reason=\"timeout\"} 2"));
}

async fn sessions_when(server: &Server, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..200 {
        let sessions = server.get("/memory/sessions").await.json();
        if wanted(&sessions) {
            return sessions;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not in time: {}", server.get("/memory/sessions").await.body);
}

/// The session of this name.
fn of(sessions: &Value, name: &str) -> Value {
    let mut all = sessions["sessions"].as_array().unwrap().iter();
    all.find(|s| s["name"] == name).cloned().unwrap_or_default()
}

/// A question of the conversation of this name.
fn named(key: &str, more: Value) -> Value {
    let mut body = chat(json!({"prompt_cache_key": key, "temperature": 0, "max_tokens": 40}));
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_with_a_name_are_listed_kept_pinned_and_deleted() {
    let folder = Folder::new();
    let setup = || Setup {
        disk: Some(folder.0.clone()),
        ..Setup::default()
    };
    let server = serve(setup()).await;
    server.post(CHAT, named("loose", json!({}))).await;
    server
        .post(
            CHAT,
            named("kept", json!({"prompt_cache_retention": "24h"})),
        )
        .await;
    let sessions = sessions_when(&server, |s| {
        s["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["is_kept"] == true)
    })
    .await;
    assert!(of(&sessions, "kept")["expires_ms"].is_u64());
    let loose = of(&sessions, "loose");
    assert_eq!(loose["is_kept"], false);
    assert!(loose["cached_tokens"].as_u64() > Some(0));

    let path = format!("/memory/sessions/{}", loose["id"].as_str().unwrap());
    let pinned = server.send("POST", &format!("{path}/pin"), "", "").await;
    assert_eq!(pinned.status, 200, "{}", pinned.body);
    let sessions = server.get("/memory/sessions").await.json();
    let loose = of(&sessions, "loose");
    assert_eq!(
        (&loose["is_kept"], &loose["is_pinned"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(loose["expires_ms"], Value::Null);

    // Over a restart.
    server
        .running
        .stop(std::time::Duration::ZERO, std::future::pending())
        .await;
    let server = serve(setup()).await;
    let sessions = server.get("/memory/sessions").await.json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 2);
    let answer = server.post(CHAT, named("loose", json!({}))).await.json();
    let usage = &answer["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert_eq!(
        cached,
        usage["prompt_tokens"].as_u64().unwrap() - 1,
        "{usage}"
    );

    assert_eq!(server.send("DELETE", &path, "", "").await.status, 200);
    assert_eq!(server.send("DELETE", &path, "", "").await.status, 404);
    let sessions = server.get("/memory/sessions").await.json();
    assert_eq!(of(&sessions, "loose"), Value::Null);
    let nobody = "/memory/sessions/00/pin";
    assert_eq!(server.send("POST", nobody, "", "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_keeps_the_quality_that_it_asked_for() {
    let folder = Folder::new();
    let setup = || Setup {
        disk: Some(folder.0.clone()),
        quality: KvQuality::Small,
        ..Setup::default()
    };
    let server = serve(setup()).await;
    let keep = json!({"prompt_cache_retention": "24h"});
    let mut exact = keep.clone();
    exact["kv_quality"] = json!("exact");
    let all_but_one = |answer: &Value| {
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        cached == usage["prompt_tokens"].as_u64().map(|tokens| tokens - 1)
    };
    server.post(CHAT, named("careful", exact)).await;
    server.post(CHAT, named("careless", keep.clone())).await;
    for name in ["careful", "careless"] {
        let answer = server.post(CHAT, named(name, keep.clone())).await.json();
        assert!(all_but_one(&answer), "{name}: {answer}");
    }
    let is_kept = |s: &Value| s["is_kept"] == true;
    let sessions = sessions_when(&server, |s| {
        s["sessions"].as_array().unwrap().iter().all(is_kept)
    })
    .await;
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(of(&sessions, "careful")["quality"], "exact");
    assert_eq!(of(&sessions, "careless")["quality"], "small");

    // Over a restart, and until it asks for another.
    server
        .running
        .stop(std::time::Duration::ZERO, std::future::pending())
        .await;
    let server = serve(setup()).await;
    let answer = server.post(CHAT, named("careful", json!({}))).await.json();
    assert!(all_but_one(&answer), "{answer}");
    let high = json!({"kv_quality": "high"});
    let answer = server.post(CHAT, named("careful", high)).await.json();
    assert!(!all_but_one(&answer), "{answer}");
    let answer = server.post(CHAT, named("careful", json!({}))).await.json();
    assert!(all_but_one(&answer), "{answer}");
    let memory = server.get("/memory").await.json();
    let share = &memory["attended_share"];
    assert_eq!((&share["hot"], &share["int4"]), (&json!(1.0), &json!(0.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_disk_there_is_nothing_to_pin_on() {
    let server = serve(Setup::default()).await;
    server
        .post(
            CHAT,
            chat(json!({"prompt_cache_key": "k", "max_tokens": 2})),
        )
        .await;
    let sessions = server.get("/memory/sessions").await.json();
    assert_eq!(sessions["can_keep"], false);
    let id = sessions["sessions"][0]["id"].as_str().unwrap();
    let answer = server
        .send("POST", &format!("/memory/sessions/{id}/pin"), "", "")
        .await;
    assert_eq!(answer.status, 409);
    assert!(answer.body.contains("--disk"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself() {
    let server = serve(Setup::default()).await;
    let described = server.get("/openapi.json").await.json();
    assert_eq!(described["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(described["paths"]["/v1/responses"]["post"].is_object());
    let answer = server.post("/v1/embeddings", json!({"input": "x"})).await;
    assert!((400..500).contains(&answer.status));
    assert!(answer.body.contains("--embedding-model"), "{}", answer.body);
}
