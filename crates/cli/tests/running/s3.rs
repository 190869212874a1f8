//! Servers over one bucket, and what a bad store costs them: a recomputation and no more.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::s3_server::{Fault, KEY, S3Server, SECRET};
use crate::server::Server;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server with an empty disk of its own beside the store.
fn start(folder: &Folder, store: &S3Server, name: &str) -> Server {
    let at = |name: &str| folder.0.join(name).to_str().expect("UTF-8").to_owned();
    let url = format!("s3://bucket/neap?endpoint={}", store.url());
    Server::start(&[
        "--memory",
        "64MiB",
        "--disk",
        &at(name),
        "--remote",
        &url,
        "--remote-secret-file",
        &at("secret"),
        "--remote-credentials",
        &at("credentials"),
    ])
}

/// The answer, tokens that came from the cache, and how long it took.
fn ask(server: &Server, text: &str) -> (String, u64, Duration) {
    let body = json!({
        "messages": [{"role": "user", "content": text.repeat(12)}],
        "temperature": 0, "max_tokens": 6, "prompt_cache_key": text, "prompt_cache_retention": "24h",
    });
    let start = Instant::now();
    let url = format!("{}/v1/chat/completions", server.url);
    let mut answer = ureq::post(url).send(body.to_string()).expect("an answer");
    let answer = answer.body_mut().read_to_string().expect("text");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let said = answer["choices"][0]["message"]["content"].as_str();
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    (
        said.expect("text").to_owned(),
        cached.expect("a count"),
        start.elapsed(),
    )
}

/// What the server says of its store.
fn remote_of(server: &Server) -> Value {
    // The figures are published after a step.
    std::thread::sleep(Duration::from_millis(300));
    let url = format!("{}/memory", server.url);
    let mut answer = ureq::get(url).call().expect("an answer");
    let memory = answer.body_mut().read_to_string().expect("text");
    let memory: Value = serde_json::from_str(&memory).expect("JSON");
    memory["remote"].clone()
}

/// Waits until the store holds at least so many objects, and no more come.
fn wait_for(store: &S3Server, least: usize) -> usize {
    let mut before = 0;
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(50));
        let found = store.objects().len();
        if found >= least && found == before {
            return found;
        }
        before = found;
    }
    panic!("{before} of {least} objects in time");
}

#[test]
fn servers_share_a_bucket_and_a_bad_one_costs_a_recomputation() {
    let path = std::env::temp_dir().join(format!("neap-s3-serve-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder");
    let folder = Folder(path);
    let keys = format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(folder.0.join("credentials"), keys).expect("written");
    let store = S3Server::start();
    let text = "My name is Anna and I like the sea. ";
    let one = start(&folder, &store, "one");
    let (told, cached, _) = ask(&one, text);
    assert_eq!(cached, 0);
    wait_for(&store, 3);

    let two = start(&folder, &store, "two");
    let (again, cached, _) = ask(&two, text);
    assert!(
        cached >= 64 && again == told,
        "{cached} tokens, {again} for {told}"
    );
    let remote = remote_of(&two);
    assert!(remote["store"].as_str().expect("a name").contains("bucket"));
    assert!(remote["tokens"].as_u64() >= Some(64), "{remote}");
    assert!(remote["read_blocks"].as_u64() >= Some(2), "{remote}");
    assert_eq!(remote["failed_calls"], 0, "{remote}");

    for (name, bad) in ["lies", "fails", "hangs up", "is slow"]
        .into_iter()
        .enumerate()
    {
        store.lie(bad == "lies");
        store.fail_always(match bad {
            "fails" => Some(Fault::Status(503)),
            "hangs up" => Some(Fault::Hangup),
            _ => None,
        });
        let other = start(&folder, &store, &format!("other{name}"));
        if bad == "is slow" {
            store.delay(Duration::from_secs(20));
        }
        let (again, cached, took) = ask(&other, text);
        assert_eq!((again, cached), (told.clone(), 0), "a store that {bad}");
        assert!(
            took < Duration::from_secs(15),
            "{took:?} with a store that {bad}"
        );
        let remote = remote_of(&other);
        let count = |name: &str| remote[name].as_u64().expect("a count");
        let troubles = count("failed_calls") + count("timed_out_calls") + count("damaged_blocks");
        // A slow one is asked for a while behind the answer.
        assert!(troubles > 0 || bad == "is slow", "{bad}: {remote}");
        store.delay(Duration::ZERO);
    }
}
