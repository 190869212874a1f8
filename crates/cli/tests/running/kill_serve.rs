//! `kill -9` of a server under load: every session that was listed as kept is there after the next start, whole, and
//! goes on to the word as it would have without the kills.
//!
//! Twenty kills: `cargo test -p neap-cli --test running -- --ignored --exact kill_serve::twenty_kills --nocapture`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;

use crate::server::{Server, neap, text};

/// Conversations at once.
const TALKS: usize = 4;
/// Rounds after which conversations begin anew, so that they stay within the context.
const ROUNDS_OF_A_TALK: usize = 3;
/// Most turns of a conversation.
const TURNS: usize = 24;
const PATIENCE: Duration = Duration::from_secs(60);

/// What was said, as a client remembers it.
#[derive(Clone, Default)]
struct Talk {
    messages: Vec<Value>,
}

/// Tokens and time of a session that was listed as kept.
type Acknowledged = BTreeMap<String, (u64, u64)>;

fn agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .proxy(None);
    config.build().into()
}

fn get(agent: &Agent, url: &str) -> Option<Value> {
    let mut answer = agent.get(url).call().ok()?;
    serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()
}

/// The answer to the next question, if the server lives to give it.
fn ask(agent: &Agent, url: &str, name: &str, talk: &mut Talk) -> Option<String> {
    let turn = talk.messages.len() / 2;
    let question = format!("Friend {name} has {turn} red apples. Tell me more.");
    talk.messages
        .push(json!({"role": "user", "content": question}));
    let body = json!({
        "messages": talk.messages, "temperature": 0, "max_tokens": 8,
        "prompt_cache_key": name, "prompt_cache_retention": "24h",
    });
    let answer = (|| {
        let url = format!("{url}/v1/chat/completions");
        let mut answer = agent.post(url).send(body.to_string()).ok()?;
        let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()?;
        let said = &answer["choices"][0]["message"]["content"];
        Some(
            said.as_str()
                .unwrap_or_else(|| panic!("{answer}"))
                .to_owned(),
        )
    })();
    match &answer {
        Some(said) => talk
            .messages
            .push(json!({"role": "assistant", "content": said})),
        // Nobody knows whether it was heard.
        None => drop(talk.messages.pop()),
    }
    answer
}

fn start(disk: &Path) -> Server {
    let disk = disk.to_str().expect("a plain path");
    Server::start(&[
        "--memory",
        "48MiB",
        "--disk",
        disk,
        "--disk-limit",
        "256MiB",
    ])
}

/// Talks until the server is gone.
fn talk_on(url: &str, name: String, mut talk: Talk) -> JoinHandle<(String, Talk)> {
    let url = url.to_owned();
    thread::spawn(move || {
        let agent = agent();
        while talk.messages.len() < 2 * TURNS && ask(&agent, &url, &name, &mut talk).is_some() {}
        (name, talk)
    })
}

/// Notes which sessions are listed as kept, until `is_over`.
fn watch(
    url: &str,
    acknowledged: &Arc<Mutex<Acknowledged>>,
    is_over: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let url = format!("{url}/memory/sessions");
    let (acknowledged, is_over) = (Arc::clone(acknowledged), Arc::clone(is_over));
    thread::spawn(move || {
        let agent = agent();
        while !is_over.load(Ordering::Relaxed) {
            for (name, kept) in get(&agent, &url).iter().flat_map(kept) {
                acknowledged.lock().unwrap().insert(name, kept);
            }
            thread::sleep(Duration::from_millis(3));
        }
    })
}

fn kept(listed: &Value) -> Acknowledged {
    let all = listed["sessions"].as_array().into_iter().flatten();
    all.filter(|s| s["is_kept"] == true)
        .map(|s| {
            let number = |field: &str| s[field].as_u64().expect("a number");
            let name = s["name"].as_str().expect("a name").to_owned();
            (name, (number("tokens"), number("saved_ms")))
        })
        .collect()
}

/// All that was acknowledged is there, at that version or a later one, and each of its checksums matches.
fn check(server: &Server, folder: &Path, acknowledged: &Acknowledged) {
    let listed = get(&agent(), &format!("{}/memory/sessions", server.url)).expect("sessions");
    let found = kept(&listed);
    for (name, (tokens, saved_ms)) in acknowledged {
        let (found_tokens, found_ms) = found
            .get(name)
            .unwrap_or_else(|| panic!("{name} of {tokens} tokens is gone: {listed}"));
        assert!(
            found_ms >= saved_ms && found_tokens >= tokens,
            "{name}: {tokens} tokens of {saved_ms} were kept, {found_tokens} of {found_ms} are there"
        );
    }
    for session in listed["sessions"].as_array().expect("a list") {
        let id = session["id"].as_str().expect("an ID");
        let file = folder.join("exported");
        let file = file.to_str().expect("a plain path");
        let exported = neap(&[
            "session",
            "export",
            id,
            "--url",
            &server.url,
            "-o",
            file,
            "--force",
        ]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    }
}

fn kills(rounds: usize) {
    let folder =
        std::env::temp_dir().join(format!("neap-kill-serve-{}-{rounds}", std::process::id()));
    let disk = folder.join("disk");
    std::fs::create_dir_all(&folder).expect("a folder");
    let acknowledged = Arc::new(Mutex::new(Acknowledged::new()));
    let mut talks: BTreeMap<String, Talk> = BTreeMap::new();
    let mut random = rounds as u64;
    let mut versions = 0;
    for round in 0..rounds {
        let mut server = start(&disk);
        check(&server, &folder, &acknowledged.lock().unwrap().clone());
        let before = acknowledged.lock().unwrap().clone();
        let is_over = Arc::new(AtomicBool::new(false));
        let watching = watch(&server.url, &acknowledged, &is_over);
        let talking: Vec<_> = (0..TALKS)
            .map(|talk| {
                let name = format!("{talk} of {}", round / ROUNDS_OF_A_TALK);
                let said = talks.get(&name).cloned().unwrap_or_default();
                talk_on(&server.url, name, said)
            })
            .collect();
        // At any instant, but not before something new was acknowledged.
        let end = Instant::now() + PATIENCE;
        while *acknowledged.lock().unwrap() == before && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_micros((random >> 33) % 400_000));
        server.kill();
        is_over.store(true, Ordering::Relaxed);
        watching.join().expect("it watches");
        for talking in talking {
            let (name, talk) = talking.join().expect("it talks");
            talks.insert(name, talk);
        }
        let after = acknowledged.lock().unwrap();
        versions += after
            .iter()
            .filter(|(name, kept)| before.get(*name) != Some(kept))
            .count();
    }
    let server = start(&disk);
    let acknowledged = acknowledged.lock().unwrap().clone();
    check(&server, &folder, &acknowledged);
    println!(
        "{rounds} kills: {versions} versions of {} sessions acknowledged, all there",
        acknowledged.len()
    );
    assert!(versions >= rounds);
    // To the word as a server says it that knows nothing.
    let fresh = Server::start(&["--memory", "48MiB"]);
    for (name, talk) in talks.iter_mut().rev().take(TALKS) {
        let [mut here, mut there] = [talk.clone(), talk.clone()];
        let restored = ask(&agent(), &server.url, name, &mut here).expect("an answer");
        assert_eq!(
            ask(&agent(), &fresh.url, name, &mut there),
            Some(restored),
            "{name}"
        );
    }
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_few_kills() {
    kills(3);
}

#[test]
#[ignore = "takes minutes"]
fn twenty_kills() {
    kills(20);
}
