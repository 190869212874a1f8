//! What the fields that steer sampling do to the tokens of an answer.

mod support;

use serde_json::{Value, json};
use support::{Server, Setup, serve};

/// The tokens of an answer, in which two tokens are far more likely than the model's own choice: the first a little
/// more than the second.
async fn tokens(server: &Server, more: Value) -> Vec<String> {
    let ids = [id(server, "a").await, id(server, "b").await];
    let mut body = json!({
        "prompt": "x", "max_tokens": 6, "temperature": 0, "logprobs": 0,
        "logit_bias": {ids[0].to_string(): 40, ids[1].to_string(): 39.5},
    });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    let answer = server.post("/v1/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let tokens = answer.json()["choices"][0]["logprobs"]["tokens"].clone();
    let tokens = tokens.as_array().unwrap().iter();
    tokens.map(|t| t.as_str().unwrap().to_owned()).collect()
}

async fn id(server: &Server, text: &str) -> u64 {
    let body = json!({"prompt": text, "add_special_tokens": false});
    let tokens = server.post("/tokenize", body).await.json();
    tokens["tokens"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_u64()
        .unwrap()
}

/// The pattern of an answer, whose first token is A.
async fn pattern(server: &Server, more: Value) -> String {
    let tokens = tokens(server, more).await;
    let first = tokens[0].clone();
    let letter = |t: &String| if *t == first { 'A' } else { 'B' };
    tokens.iter().map(letter).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn penalties_push_tokens_down() {
    let server = serve(Setup::default()).await;
    assert_eq!(pattern(&server, json!({})).await, "AAAAAA");
    // Each time it is produced, a token loses one: they take turns.
    let frequency = json!({"frequency_penalty": 1});
    assert_eq!(pattern(&server, frequency).await, "ABABAB");
    // Once both have been produced, the first leads again.
    let presence = json!({"presence_penalty": 1});
    assert_eq!(pattern(&server, presence).await, "ABAAAA");
    let repetition = json!({"repetition_penalty": 1.1, "repetition_penalty_window": 8});
    assert_eq!(pattern(&server, repetition).await, "ABAAAA");
    // Looking back on one token, each is forgotten while the other is said.
    let repetition = json!({"repetition_penalty": 1.1, "repetition_penalty_window": 1});
    assert_eq!(pattern(&server, repetition).await, "ABABAB");
    // A negative one makes the first ever more likely.
    let frequency = json!({"frequency_penalty": -1});
    assert_eq!(pattern(&server, frequency).await, "AAAAAA");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_k_min_p_and_top_p_cut_the_tail() {
    let server = serve(Setup::default()).await;
    let drawn = async |more: Value| {
        let mut all = String::new();
        for seed in 0..8 {
            let mut body = json!({"temperature": 2, "seed": seed});
            let more = more.as_object().unwrap().clone();
            body.as_object_mut().unwrap().extend(more);
            all.extend(tokens(&server, body).await);
        }
        all
    };
    let has_both = |text: &str| text.contains('a') && text.contains('b');
    assert!(has_both(&drawn(json!({})).await), "both are drawn");
    for cut in [
        json!({"top_k": 1}),
        json!({"min_p": 0.9}),
        json!({"top_p": 0.1}),
    ] {
        let text = drawn(cut.clone()).await;
        assert!(!text.contains('b'), "{cut}: {text}");
    }
    for wide in [
        json!({"top_k": 2}),
        json!({"min_p": 0.5}),
        json!({"top_k": -1}),
    ] {
        assert!(has_both(&drawn(wide.clone()).await), "{wide}");
    }
}
