//! What hurts servers whose memory is fixed: more conversations at once than there is room for, which all come back;
//! and many clients with one long beginning.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{BLOCK_BYTES, BLOCK_TOKENS, Folder, Setup, serve};

const PATH: &str = "/v1/completions";
const CONVERSATIONS: u64 = 16;
const PROMPT_TOKENS: usize = 640;
const ANSWER_TOKENS: usize = 40;

/// Tokens that differ from conversation to conversation.
fn words(of: u64, len: usize) -> Vec<u64> {
    (0..len as u64)
        .map(|i| 300 + (of * 31 + i * 7) % 500)
        .collect()
}

fn ask(prompt: &[u64]) -> Value {
    json!({"prompt": prompt, "temperature": 0, "max_tokens": ANSWER_TOKENS})
}

fn cached(answer: &Value) -> u64 {
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap()
}

fn texts(answers: &[Value]) -> Vec<&str> {
    let texts = answers.iter().map(|a| a["choices"][0]["text"].as_str());
    texts.map(Option::unwrap).collect()
}

/// Both turns of all conversations, on a server with room for `blocks`, over a disk or not.
async fn two_turns(blocks: u64, disk: Option<&Folder>) -> (Vec<Value>, Vec<Value>) {
    let server = serve(Setup {
        blocks,
        parallel: CONVERSATIONS as usize,
        disk: disk.map(|folder| folder.0.clone()),
        // Much dearer to compute than to read: else nothing would be kept on disk.
        token: Duration::from_micros(if disk.is_some() { 500 } else { 0 }),
        ..Setup::default()
    })
    .await;
    let first: Vec<Vec<u64>> = (0..CONVERSATIONS)
        .map(|c| words(c, PROMPT_TOKENS))
        .collect();
    let answers = server
        .post_all(PATH, first.iter().map(|p| ask(p)).collect())
        .await;
    let second = first.iter().enumerate().map(|(c, prompt)| {
        let more = words(c as u64 + 100, 50);
        ask(&[&prompt[..], &more[..]].concat())
    });
    let returns = server.post_all(PATH, second.collect()).await;
    assert!(server.budget.charged() <= server.budget.limit());
    let room = server.fixed_bytes + blocks * BLOCK_BYTES as u64;
    let memory = server.memory_when(|m| m["engine"]["running"] == 0).await;
    let peak = memory["budget"]["peak_charged_bytes"].as_u64().unwrap();
    assert!(peak <= room, "{peak} bytes were charged of {room}");
    let levels = memory["cache"]["levels"].as_array().unwrap();
    let on_disk = levels.iter().find(|l| l["level"] == "disk").unwrap();
    assert_eq!(on_disk["blocks"].as_u64() > Some(0), disk.is_some());
    (answers, returns)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_for_which_half_the_room_is_there_return_with_hardly_anything_computed_again()
{
    let whole = (PROMPT_TOKENS + 2 * ANSWER_TOKENS + 50).div_ceil(BLOCK_TOKENS) as u64;
    let (calm_first, calm_second) = two_turns(CONVERSATIONS * (whole + 2), None).await;
    let folder = Folder::new();
    let (first, second) = two_turns(CONVERSATIONS * whole / 2, Some(&folder)).await;
    assert_eq!(texts(&first), texts(&calm_first));
    assert_eq!(texts(&second), texts(&calm_second));
    // Where reading is slow at this moment, a few blocks are computed while others are read.
    let found: Vec<u64> = second.iter().map(cached).collect();
    let all = CONVERSATIONS * PROMPT_TOKENS as u64;
    assert!(found.iter().sum::<u64>() >= all / 10 * 9, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_level_to_sink_to_they_are_still_all_served() {
    let whole = (PROMPT_TOKENS + 2 * ANSWER_TOKENS + 50).div_ceil(BLOCK_TOKENS) as u64;
    let (calm_first, calm_second) = two_turns(CONVERSATIONS * (whole + 2), None).await;
    let (first, second) = two_turns(CONVERSATIONS * whole / 4, None).await;
    assert_eq!(texts(&first), texts(&calm_first));
    assert_eq!(texts(&second), texts(&calm_second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_common_beginning_is_computed_once_however_many_come_with_it() {
    const BEGINNING: usize = 3000;
    let server = serve(Setup::default()).await;
    let beginning = words(7, BEGINNING);
    let of = |client: u64| ask(&[&beginning[..], &words(client + 50, 9)[..]].concat());
    // Nobody has seen it: one computes, six wait for it.
    let burst = server.post_all(PATH, (0..7).map(of).collect()).await;
    let mut found: Vec<u64> = burst.iter().map(cached).collect();
    found.sort_unstable();
    assert_eq!(found[0], 0);
    assert!(
        found[1..].iter().all(|&f| f >= BEGINNING as u64),
        "{found:?}"
    );
    // It has just been computed: nobody computes it again.
    let later = server.post_all(PATH, (10..17).map(of).collect()).await;
    assert!(later.iter().all(|a| cached(a) >= BEGINNING as u64));
}
