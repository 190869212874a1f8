//! A server that is told to read its configuration again: settings, then models, while clients talk.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use neap_memory::Budget;
use neap_server::{Change, Configuration, Live, Load};
use serde_json::{Value, json};
use support::{FakeDecoder, Server, Setup, Source, load, serve};
use tokio::io::AsyncReadExt;

const PATH: &str = "/v1/completions";
/// Milliseconds of a step of the models here.
const STEP: Duration = Duration::from_millis(4);

/// Says something else each time it is read.
struct Script {
    budget: Budget,
    read: AtomicUsize,
    /// Index of the change, and what the server is to be told.
    changes: fn(usize, &Budget) -> Result<Change<FakeDecoder>, String>,
}

impl Configuration<FakeDecoder> for Script {
    fn read(&self) -> Result<Change<FakeDecoder>, String> {
        let index = self.read.fetch_add(1, Ordering::Relaxed);
        (self.changes)(index, &self.budget)
    }

    fn keep(&self) {}
}

fn change(live: Live, model: Option<Load<FakeDecoder>>) -> Result<Change<FakeDecoder>, String> {
    Ok(Change {
        live,
        budget_bytes: None,
        model,
        changed: vec!["something".into()],
        needs_restart: vec!["port".into()],
    })
}

fn keyed(key: &str) -> Live {
    Live {
        api_keys: vec![key.into()],
        ..Live::default()
    }
}

/// Serves with a step that takes a while.
async fn scripted(make: fn(Budget) -> Source) -> Server {
    serve(Setup {
        step: STEP,
        configuration: Some(make),
        ..Setup::default()
    })
    .await
}

async fn reload(server: &Server) -> (u16, Value) {
    let answer = server.send("POST", "/admin/reload", "", "").await;
    (answer.status, answer.json())
}

fn ask(tokens: usize) -> Value {
    json!({"prompt": "the sea and the moon", "temperature": 0, "max_tokens": tokens})
}

async fn text(server: &Server, tokens: usize) -> String {
    let answer = server.post(PATH, ask(tokens)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0]["text"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn other_model(budget: &Budget) -> Load<FakeDecoder> {
    let budget = budget.clone();
    Box::new(move || {
        let setup = Setup {
            step: STEP,
            ..Setup::default()
        };
        load("other", &budget, &setup)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_at_once_or_not_at_all() {
    fn changes(index: usize, _: &Budget) -> Result<Change<FakeDecoder>, String> {
        match index {
            0 => change(keyed("new"), None),
            1 => Err("line 3: there is no flag for the key `prot`".into()),
            _ => change(
                Live {
                    max_body_bytes: 40,
                    max_active: 0,
                    ..Live::default()
                },
                None,
            ),
        }
    }
    let make = |budget| -> Source {
        Box::new(Script {
            budget,
            read: AtomicUsize::new(0),
            changes,
        })
    };
    let server = scripted(make).await;
    assert_eq!(server.post(PATH, ask(1)).await.status, 200);
    let (status, told) = reload(&server).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["changed"], json!(["something"]));
    assert_eq!(told["needs_restart"], json!(["port"]));
    assert_eq!(told["model"], Value::Null);
    assert_eq!(server.post(PATH, ask(1)).await.status, 401);
    let with_key = "Authorization: Bearer new\r\n";
    let body = ask(1).to_string();
    assert_eq!(server.send("POST", PATH, with_key, &body).await.status, 200);

    let (status, told) = reload(&server).await;
    assert_eq!(status, 409);
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("nothing was changed: line 3"), "{message}");
    assert_eq!(
        server.post(PATH, ask(1)).await.status,
        401,
        "the keys of before"
    );

    assert_eq!(reload(&server).await.0, 200);
    assert_eq!(server.post(PATH, ask(1)).await.status, 413);
    let short = json!({"prompt": "x", "max_tokens": 1});
    assert_eq!(
        server.post(PATH, short).await.status,
        429,
        "no places are left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_model_changes_under_clients_that_lose_nothing() {
    let make = |budget| -> Source {
        Box::new(Script {
            budget,
            read: AtomicUsize::new(0),
            changes: |_, budget| change(Live::default(), Some(other_model(budget))),
        })
    };
    let server = scripted(make).await;
    let before = text(&server, 120).await;
    let fixed = server.fixed_bytes;
    // One runs when the change is asked for, others come while it waits.
    let mut stream = ask(120);
    stream["stream"] = true.into();
    let stream = stream.to_string();
    let mut running = server.open("POST", PATH, "", &stream).await;
    server.memory_when(|m| m["engine"]["running"] == 1).await;
    let changing = reload(&server);
    let later = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let answers = server.post_all(PATH, vec![ask(120); 5]).await;
        let looks = server.get("/health").await.status;
        (answers, looks)
    };
    let ((status, told), (answers, looks)) = tokio::join!(changing, later);
    assert_eq!((status, looks), (200, 200), "{told}");
    assert_eq!(told["model"]["id"], "other");
    assert!(told["model"]["requests_waited_ms"].as_u64().unwrap() >= 100);

    let mut bytes = Vec::new();
    running.read_to_end(&mut bytes).await.unwrap();
    let streamed = support::parse(&bytes);
    let said: String = streamed
        .chunks()
        .iter()
        .map(|c| c["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, before, "it ended on the model that it began on");
    for answer in &answers {
        assert_eq!(answer["model"], "other");
        assert_ne!(answer["choices"][0]["text"], json!(before));
        assert_eq!(answer["choices"][0], answers[0]["choices"][0]);
    }
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "other");
    // What the old one held has been given back.
    let memory = server.memory_when(|m| m["engine"]["running"] == 0).await;
    let held = memory["budget"]["by_kind"]["kv"].as_u64().unwrap();
    assert_eq!(server.budget.charged() - held, fixed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_cant_be_loaded_leaves_the_old_one() {
    let make = |budget| -> Source {
        Box::new(Script {
            budget,
            read: AtomicUsize::new(0),
            changes: |index, _| match index {
                0 => change(keyed("new"), Some(Box::new(|| Err("no room".into())))),
                1 => Err("other.gguf: not a GGUF file".into()),
                _ => change(
                    Live::default(),
                    Some(Box::new(|| panic!("a model that breaks its loader"))),
                ),
            },
        })
    };
    let server = scripted(make).await;
    let before = text(&server, 40).await;
    for said in ["no room", "not a GGUF file", "broke"] {
        let (status, told) = reload(&server).await;
        assert_eq!(status, 409, "{told}");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
        // Neither the model nor the settings that came with it.
        assert_eq!(text(&server, 40).await, before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_end_keeps_its_model() {
    let make = |budget| -> Source {
        Box::new(Script {
            budget,
            read: AtomicUsize::new(0),
            changes: |_, budget| change(Live::default(), Some(other_model(budget))),
        })
    };
    let server = serve(Setup {
        step: STEP,
        configuration: Some(make),
        live: Live {
            grace: Duration::from_millis(100),
            ..Live::default()
        },
        ..Setup::default()
    })
    .await;
    let long = server.open("POST", PATH, "", &ask(3500).to_string()).await;
    server.memory_when(|m| m["engine"]["running"] == 1).await;
    let (status, told) = reload(&server).await;
    assert_eq!(status, 409);
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("--grace"), "{message}");
    // Nobody waits any more.
    assert_eq!(server.post(PATH, ask(1)).await.json()["model"], "tiny");
    drop(long);
    server.memory_when(|m| m["engine"]["running"] == 0).await;
    assert_eq!(reload(&server).await.0, 200);
    assert_eq!(server.post(PATH, ask(1)).await.json()["model"], "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_there_is_nothing_to_read() {
    let server = serve(Setup::default()).await;
    assert_eq!(reload(&server).await.0, 409);
    let elsewhere = "X-Forwarded-For: 10.0.0.1\r\n";
    let answer = server.send("POST", "/admin/reload", elsewhere, "").await;
    assert_eq!(answer.status, 403);
}
