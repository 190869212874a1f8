//! The API as clients see it.

mod support;

use neap_server::Live;
use serde_json::{Value, json};
use support::{CONTEXT, Setup, serve};

fn greedy(text: &str, tokens: usize) -> Value {
    json!({
        "model": "tiny", "temperature": 0, "max_tokens": tokens,
        "messages": [{"role": "user", "content": text}],
    })
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_how_it_is() {
    let server = serve(Setup::default()).await;
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(
        server.get("/v1/models/tiny").await.json()["object"],
        "model"
    );
    assert_eq!(server.get("/v1/models/huge").await.status, 404);
    for path in ["/health", "/ready", "/version"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let page = server.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/html"));

    server
        .post("/v1/chat/completions", greedy("hello", 5))
        .await;
    let metrics = server.get("/metrics").await;
    for line in [
        "vllm:num_requests_running 0",
        "neap_generation_tokens_total 5",
        "vllm:generation_tokens_total 5",
        "neap_requests_finished_total{finished_reason=\"length\"} 1",
        "neap_time_to_first_token_seconds_count 1",
        "vllm:inter_token_latency_seconds_count 4",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        "# TYPE neap_charged_bytes gauge",
    ] {
        let found = metrics.body.lines().any(|l| l == line);
        assert!(found, "{line} is not in\n{}", metrics.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_an_answer_says() {
    let server = serve(Setup::default()).await;
    let whole = server
        .post("/v1/chat/completions", greedy("hello", 40))
        .await
        .json();
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 40);

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = server
        .post("/v1/chat/completions", with(greedy("hello", 40), more))
        .await;
    assert!(answer.head.contains("text/event-stream"));
    let chunks = answer.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(choice["message"]["content"], text);
    let [.., last, usage] = &chunks[..] else {
        panic!("too few chunks");
    };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        usage["usage"]["total_tokens"],
        whole["usage"]["total_tokens"]
    );
    // The second asks for what the first has left in the cache.
    let cached = usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let prompt = usage["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached, Some(prompt - 1));
    assert!(chunks.iter().all(|c| c["id"] == chunks[0]["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_and_is_not_given_out() {
    let server = serve(Setup::default()).await;
    let whole = server
        .post("/v1/chat/completions", greedy("hello", 40))
        .await
        .json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let stop = &text[text.len() / 2..text.len() / 2 + 6];
    for stream in [false, true] {
        let more = json!({"stop": [stop], "stream": stream});
        let answer = server
            .post("/v1/chat/completions", with(greedy("hello", 40), more))
            .await;
        let (said, reason) = if stream {
            let chunks = answer.chunks();
            let texts = chunks.iter();
            let said: String = texts
                .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
                .collect();
            let last = chunks.last().unwrap();
            (said, last["choices"][0]["finish_reason"].clone())
        } else {
            let choice = answer.json()["choices"][0].clone();
            let said = choice["message"]["content"].as_str().unwrap().to_owned();
            (said, choice["finish_reason"].clone())
        };
        assert_eq!(reason, "stop");
        assert_eq!(said, text[..text.find(stop).unwrap()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_their_log_probabilities() {
    let server = serve(Setup::default()).await;
    let more = json!({"n": 3, "logprobs": true, "top_logprobs": 2});
    let answer = server
        .post("/v1/chat/completions", with(greedy("hello", 4), more))
        .await
        .json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    for choice in choices {
        assert_eq!(choice["message"], choices[0]["message"]);
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), 4);
        for token in content {
            assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
            assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
            assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        }
    }

    let body = json!({
        "prompt": ["one", "two"], "max_tokens": 3, "temperature": 0, "logprobs": 1, "echo": true,
    });
    let answer = server.post("/v1/completions", body).await.json();
    assert_eq!(answer["object"], "text_completion");
    for (index, prompt) in ["one", "two"].iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        let text = choice["text"].as_str().unwrap();
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        let joined: String = tokens.iter().filter_map(Value::as_str).collect();
        assert_eq!(text, format!("{prompt}{joined}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_seeds_give_equal_draws() {
    let server = serve(Setup::default()).await;
    let body = |seed| with(greedy("hello", 30), json!({"temperature": 2, "seed": seed}));
    let mut texts = Vec::new();
    for seed in [1, 1, 2] {
        let answer = server.post("/v1/chat/completions", body(seed)).await.json();
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Posts what is wrong and looks at the status, the field and the code of the refusal.
async fn refused(path: &str, body: Value, status: u16, param: Option<&str>, code: Option<&str>) {
    let live = Live {
        max_body_bytes: 64 << 10,
        ..Live::default()
    };
    let server = serve(Setup {
        live,
        ..Setup::default()
    })
    .await;
    let answer = server.post(path, body.clone()).await;
    let error = &answer.json()["error"];
    assert_eq!(answer.status, status, "{body} {error}");
    assert_eq!(error["param"].as_str(), param, "{error}");
    assert_eq!(error["code"].as_str(), code, "{error}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert!(error["type"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chat_is_refused_in_openais_words() {
    let hot = with(greedy("x", 1), json!({"temperature": "hot"}));
    let tools = with(greedy("x", 1), json!({"tools": [{}]}));
    let functions = with(greedy("x", 1), json!({"functions": [{"name": "f"}]}));
    let bias = with(greedy("x", 1), json!({"logit_bias": {"99999999": 1}}));
    let other = with(greedy("x", 1), json!({"model": "huge"}));
    let number = json!({"messages": [{"role": "user", "content": 5}]});
    refused(CHAT, json!([]), 400, None, None).await;
    refused(CHAT, json!({}), 400, Some("messages"), None).await;
    refused(CHAT, number, 400, Some("messages[0].content"), None).await;
    refused(CHAT, hot, 400, Some("temperature"), None).await;
    refused(CHAT, tools, 400, Some("tools[0].type"), None).await;
    let code = Some("unsupported_parameter");
    refused(CHAT, functions, 400, Some("functions"), code).await;
    refused(CHAT, bias, 400, Some("logit_bias"), None).await;
    refused(CHAT, other, 404, Some("model"), Some("model_not_found")).await;
    let large = greedy(&"x".repeat(65 << 10), 1);
    refused(CHAT, large, 413, None, Some("request_too_large")).await;
    let long = greedy(&"x y z ".repeat(9000), 1);
    let code = Some("context_length_exceeded");
    refused(CHAT, long, 400, Some("messages"), code).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_completion_is_refused_in_openais_words() {
    let long: Vec<u32> = vec![300; CONTEXT];
    let code = Some("context_length_exceeded");
    refused(
        COMPLETIONS,
        json!({"prompt": long}),
        400,
        Some("prompt"),
        code,
    )
    .await;
    refused(
        COMPLETIONS,
        json!({"prompt": [99_999_999]}),
        400,
        Some("prompt"),
        None,
    )
    .await;
    refused(
        COMPLETIONS,
        json!({"prompt": []}),
        400,
        Some("prompt"),
        None,
    )
    .await;
    refused("/v1/nothing", json!({}), 404, None, Some("unknown_url")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_or_no_post_is_refused() {
    let server = serve(Setup::default()).await;
    let answer = server.send("POST", CHAT, "", "{\"messages\":").await;
    assert_eq!(answer.status, 400);
    let error = answer.json()["error"]["message"].clone();
    assert!(error.as_str().unwrap().contains("JSON"));
    assert_eq!(server.get(CHAT).await.status, 405);
}

/// A body that nobody wants is read to its end all the same: else the connection would be reset under the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_that_is_refused_gets_its_answer() {
    let live = Live {
        admin_key: Some("boss".into()),
        max_body_bytes: 1 << 20,
        ..Live::default()
    };
    let server = serve(Setup {
        live,
        ..Setup::default()
    })
    .await;
    let body = "x".repeat(16 << 20);
    for (path, status) in [
        ("/memory/sessions/import", 401),
        ("/nowhere", 404),
        (CHAT, 413),
    ] {
        let answer = server.send("POST", path, "", &body).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json()["error"]["message"].is_string(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_tenants_apart() {
    let live = Live {
        api_keys: vec!["one".into(), "two".into()],
        admin_key: Some("boss".into()),
        ..Live::default()
    };
    let server = serve(Setup {
        live,
        ..Setup::default()
    })
    .await;
    let body = greedy(
        "what is it that the others have asked before me, and how often",
        4,
    );
    let body = body.to_string();
    let cached = async |key: &str| {
        let head = format!("Authorization: Bearer {key}\r\n");
        let answer = server
            .send("POST", "/v1/chat/completions", &head, &body)
            .await;
        let details = answer.json()["usage"]["prompt_tokens_details"].clone();
        details["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("one").await, 0);
    assert!(cached("one").await > 0);
    assert_eq!(cached("two").await, 0);

    for head in [
        "",
        "Authorization: Bearer boss\r\n",
        "Authorization: Bearer \r\n",
    ] {
        let answer = server
            .send("POST", "/v1/chat/completions", head, &body)
            .await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    for path in ["/v1/models", "/v1/models/tiny"] {
        assert_eq!(server.get(path).await.status, 401);
    }
    assert_eq!(
        server
            .post("/tokenize", json!({"prompt": "x"}))
            .await
            .status,
        401
    );
    assert_eq!(server.get("/memory").await.status, 401);
    let with_key = "Authorization: Bearer boss\r\n";
    assert_eq!(
        server.send("GET", "/memory", with_key, "").await.status,
        200
    );
    assert_eq!(
        server.send("PUT", "/memory/budget", "", "{}").await.status,
        401
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_tokens_and_texts_again() {
    let server = serve(Setup::default()).await;
    let text = "Grüße, world";
    let body = json!({"prompt": text, "add_special_tokens": false});
    let tokens = server.post("/tokenize", body).await.json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(tokens["max_model_len"], CONTEXT);
    let back = server
        .post("/detokenize", json!({"tokens": tokens["tokens"]}))
        .await;
    assert_eq!(back.json()["prompt"], text);
    for bad in [
        json!({"tokens": [-1]}),
        json!({"tokens": [99_999_999]}),
        json!({}),
    ] {
        assert_eq!(server.post("/detokenize", bad).await.status, 400);
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/tokenize", chat).await.status, 200);
    assert_eq!(
        server.post("/tokenize", json!({"prompt": 5})).await.status,
        400
    );
}
