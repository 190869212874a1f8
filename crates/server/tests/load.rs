//! Many at once, clients that leave or sleep, and a budget that changes meanwhile.

mod support;

use std::time::{Duration, Instant};

use neap_server::Live;
use serde_json::{Value, json};
use support::{BLOCK_BYTES, Server, Setup, serve};
use tokio::io::AsyncReadExt;

fn body(client: usize, tokens: usize) -> Value {
    // A common beginning of some blocks, then something of its own.
    let common = "all of us begin with the same words about the same things ".repeat(6);
    json!({
        "model": "tiny", "temperature": 0, "max_tokens": tokens,
        "messages": [{"role": "user", "content": format!("{common} {client}")}],
    })
}

async fn text(server: &Server, client: usize, tokens: usize) -> Value {
    let answer = server
        .post("/v1/chat/completions", body(client, tokens))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0]["message"]["content"].clone()
}

/// What every client gets when all ask at the same time.
async fn all(server: &Server, clients: usize, tokens: usize) -> Vec<Value> {
    let mut texts = vec![Value::Null; clients];
    std::thread::scope(|scope| {
        let runtime = tokio::runtime::Handle::current();
        for (client, slot) in texts.iter_mut().enumerate() {
            let runtime = runtime.clone();
            scope.spawn(move || *slot = runtime.block_on(text(server, client, tokens)));
        }
    });
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_hears_what_each_would_hear_alone() {
    let alone = serve(Setup {
        parallel: 1,
        ..Setup::default()
    })
    .await;
    let mut expected = Vec::new();
    for client in 0..12 {
        expected.push(text(&alone, client, 80).await);
    }
    let crowd = serve(Setup::default()).await;
    let texts = tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(all(&crowd, 12, 80))
    });
    assert_eq!(texts, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_budget_that_shrinks_and_grows_loses_nothing() {
    let calm = serve(Setup::default()).await;
    let mut expected = Vec::new();
    for client in 0..6 {
        expected.push(text(&calm, client, 160).await);
    }
    let server = serve(Setup {
        step: Duration::from_millis(2),
        blocks: 100,
        ..Setup::default()
    })
    .await;
    let changes = async {
        // Room for all, for one, and for all again.
        for blocks in [100_u64, 16, 60, 14, 100] {
            tokio::time::sleep(Duration::from_millis(80)).await;
            let bytes = server.fixed_bytes + blocks * BLOCK_BYTES as u64;
            let body = json!({"bytes": bytes}).to_string();
            let answer = server.send("PUT", "/memory/budget", "", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(answer.json()["budget"]["limit_bytes"], bytes);
        }
    };
    let clients = async {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(all(&server, 6, 160))
        })
    };
    let ((), texts) = tokio::join!(changes, clients);
    assert_eq!(texts, expected);
    assert!(server.budget.charged() <= server.budget.limit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_too_small_is_refused() {
    let server = serve(Setup::default()).await;
    for bad in [
        json!({"bytes": 1}),
        json!({"bytes": "x"}),
        json!({"bytes": -1}),
        json!({}),
    ] {
        let answer = server
            .send("PUT", "/memory/budget", "", &bad.to_string())
            .await;
        assert_eq!(answer.status, 400, "{bad}");
        assert_eq!(answer.json()["error"]["param"], "bytes");
    }
    let answer = server
        .send("PUT", "/memory/budget", "", r#"{"bytes": "2GiB"}"#)
        .await;
    assert_eq!(answer.json()["budget"]["limit_bytes"], 2_u64 << 30);
    assert_eq!(server.budget.limit(), 2 << 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_gives_back_what_the_budget_takes() {
    let server = serve(Setup::default()).await;
    text(&server, 0, 200).await;
    let held = server.budget.charged() - server.fixed_bytes;
    assert!(held >= 4 * BLOCK_BYTES as u64);
    let bytes = server.fixed_bytes + BLOCK_BYTES as u64;
    let body = json!({"bytes": bytes}).to_string();
    server.send("PUT", "/memory/budget", "", &body).await;
    let memory = server
        .memory_when(|m| m["budget"]["charged_bytes"].as_u64() <= Some(bytes))
        .await;
    assert_eq!(memory["decisions"][0]["reason"], "the budget was lowered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_sequence() {
    let server = serve(Setup {
        step: Duration::from_millis(5),
        ..Setup::default()
    })
    .await;
    for stream in [true, false] {
        let mut body = body(0, 3000);
        body["stream"] = stream.into();
        let path = "/v1/chat/completions";
        let mut client = server.open("POST", path, "", &body.to_string()).await;
        if stream {
            let mut first = [0; 64];
            client.read_exact(&mut first).await.unwrap();
        }
        server.memory_when(|m| m["engine"]["running"] == 1).await;
        drop(client);
        let memory = server.memory_when(|m| m["engine"]["running"] == 0).await;
        assert_eq!(memory["engine"]["requests"], json!([]));
    }
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("neap_requests_finished_total{finished_reason=\"abort\"} 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off() {
    let live = Live {
        slow_client: Duration::from_millis(200),
        ..Live::default()
    };
    let server = serve(Setup {
        live,
        parallel: 16,
        blocks: 4096,
        ..Setup::default()
    })
    .await;
    let mut body = body(0, 3500);
    // Much to send for each token.
    for (name, value) in [
        ("stream", json!(true)),
        ("n", json!(16)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(20)),
    ] {
        body[name] = value;
    }
    let path = "/v1/chat/completions";
    let client = server.open("POST", path, "", &body.to_string()).await;
    server.memory_when(|m| m["engine"]["running"] == 16).await;
    let memory = server.memory_when(|m| m["engine"]["running"] == 0).await;
    let produced = memory["engine"]["generation_tokens"].as_u64().unwrap();
    assert!(produced < 16 * 3500, "it ran to its end: {produced}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_queue_is_said_at_once() {
    let live = Live {
        max_active: 2,
        ..Live::default()
    };
    let server = serve(Setup {
        live,
        parallel: 1,
        step: Duration::from_millis(5),
        ..Setup::default()
    })
    .await;
    let path = "/v1/chat/completions";
    let long = body(0, 3000).to_string();
    let first = server.open("POST", path, "", &long).await;
    let second = server.open("POST", path, "", &long).await;
    server
        .memory_when(|m| m["engine"]["running"] == 1 && m["engine"]["waiting"] == 1)
        .await;
    let third = server.post(path, body(1, 1)).await;
    assert_eq!(third.status, 429);
    assert_eq!(third.json()["error"]["type"], "rate_limit_error");
    assert!(third.head.to_ascii_lowercase().contains("retry-after"));
    drop((first, second));
    server.memory_when(|m| m["engine"]["running"] == 0).await;
    assert_eq!(server.post(path, body(1, 1)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ending_lets_the_running_finish_within_its_grace() {
    for (tokens, grace, status) in [(60, 20_000, 200), (3500, 100, 503)] {
        let server = serve(Setup {
            step: Duration::from_millis(5),
            ..Setup::default()
        })
        .await;
        let path = "/v1/chat/completions";
        let mut client = server
            .open("POST", path, "", &body(0, tokens).to_string())
            .await;
        server.memory_when(|m| m["engine"]["running"] == 1).await;
        let start = Instant::now();
        let grace = Duration::from_millis(grace);
        server.running.stop(grace, std::future::pending()).await;
        assert!(start.elapsed() < Duration::from_secs(10));
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(support::parse(&bytes).status, status);
        assert!(
            tokio::net::TcpStream::connect(server.address)
                .await
                .is_err()
        );
    }
}
