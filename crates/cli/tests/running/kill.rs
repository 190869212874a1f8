//! `kill -9` while conversations are kept: what was acknowledged is there afterwards, and goes on as it would
//! have gone on without the kills, to the word.
//!
//! Twenty kills: `cargo test -p neap-cli --test running -- --ignored --exact kill::twenty_kills --nocapture`

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::server::text;

/// Conversations that take turns.
const TALKS: usize = 4;
/// Questions that wait for an answer when the process is killed.
const QUESTIONS: usize = 12;

fn question(talk: usize, turn: usize) -> String {
    format!("Friend {talk} has {turn} red apples. Tell me more.\n")
}

fn chat(store: &Path, talk: usize) -> Child {
    Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(["chat", "--greedy", "-n", "8", "-v", "--memory", "48MiB"])
        .args([
            "--store-limit",
            "24MiB",
            "--session",
            &format!("talk{talk}"),
        ])
        .arg("--store")
        .arg(store)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// What `/show` prints of a conversation: its messages, one a line.
fn messages(store: &Path, talk: usize) -> Vec<String> {
    let mut child = chat(store, talk);
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"/show\n")
        .expect("written");
    let output = child.wait_with_output().expect("it ends");
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    log.lines()
        .filter(|line| line.starts_with("[user]") || line.starts_with("[assistant]"))
        .map(str::to_owned)
        .collect()
}

/// Tokens of a block: keys and values of full ones are found again.
const BLOCK_TOKENS: usize = 32;

/// What a process told before it ended.
#[derive(Debug, Default)]
struct Told {
    /// Messages kept, and tokens whose keys and values were.
    kept: Option<(usize, usize)>,
    /// Tokens from cache of its first prompt.
    first_cached: Option<usize>,
}

impl Told {
    fn take(&mut self, line: &str) {
        let numbers: Vec<usize> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        if line.starts_with("kept:") && line.ends_with("tokens") {
            self.kept = Some((numbers[0], numbers[1]));
        } else if let (true, &[_, cached]) = (line.starts_with("prompt:"), &numbers[..]) {
            self.first_cached.get_or_insert(cached);
        }
        assert!(!line.contains("not kept"), "{line}");
    }
}

/// Asks questions from `turn` on and kills the process a while after it kept `enough` answers.
fn ask_and_kill(
    store: &Path,
    talk: usize,
    turn: usize,
    (enough, pause): (usize, Duration),
) -> Told {
    let mut child = chat(store, talk);
    let mut input = child.stdin.take().expect("piped");
    for turn in turn..turn + QUESTIONS {
        input
            .write_all(question(talk, turn).as_bytes())
            .expect("written");
    }
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut told = Told::default();
    let mut answers = 0;
    while answers < enough {
        let line = lines.next().expect("it goes on").expect("text");
        answers += usize::from(line.starts_with("kept:"));
        told.take(&line);
    }
    std::thread::sleep(pause);
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
    // What it told before it was killed counts, read or not.
    lines
        .map_while(Result::ok)
        .for_each(|line| told.take(&line));
    told
}

fn kills(rounds: usize) {
    let folder = std::env::temp_dir().join(format!("neap-kill-{}-{rounds}", std::process::id()));
    let store = folder.join("killed");
    std::fs::create_dir_all(&store).expect("a folder");
    let (mut turns, mut kept_tokens) = ([0; TALKS], [0; TALKS]);
    let (mut random, mut acknowledged, mut cached) = (rounds as u64, 0, 0);
    for round in 0..rounds {
        let talk = round % TALKS;
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let instant = (
            (random >> 60) as usize % 4,
            Duration::from_micros((random >> 33) % 60_000),
        );
        let told = ask_and_kill(&store, talk, turns[talk], instant);
        if let Some(found) = told.first_cached {
            let full = kept_tokens[talk] / BLOCK_TOKENS * BLOCK_TOKENS;
            assert!(found >= full, "round {round}: {found} of {full} tokens");
            cached += found;
        }
        let (messages_kept, tokens) = told.kept.unwrap_or((turns[talk] * 2, kept_tokens[talk]));
        acknowledged += messages_kept - turns[talk] * 2;
        let found = messages(&store, talk).len();
        // One more answer may have been kept at the instant of the kill.
        assert!(
            found == messages_kept || found == messages_kept + 2,
            "round {round}: {messages_kept} messages were kept, {found} are there"
        );
        (turns[talk], kept_tokens[talk]) = (found / 2, tokens);
    }
    println!(
        "{rounds} kills, {acknowledged} messages acknowledged and found; {cached} tokens of them came from cache"
    );
    assert!(acknowledged > rounds && cached > 0);
    compare(&folder.join("whole"), &store, &turns);
    let _ = std::fs::remove_dir_all(&folder);
}

/// The same questions to processes that nobody kills.
fn compare(whole: &Path, store: &Path, turns: &[usize; TALKS]) {
    for (talk, &turns) in turns.iter().enumerate().filter(|(_, turns)| **turns > 0) {
        let mut child = chat(whole, talk);
        let mut input = child.stdin.take().expect("piped");
        for turn in 0..turns {
            input
                .write_all(question(talk, turn).as_bytes())
                .expect("written");
        }
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(messages(store, talk), messages(whole, talk), "talk {talk}");
    }
}

#[test]
fn a_few_kills() {
    kills(6);
}

#[test]
#[ignore = "takes a minute"]
fn twenty_kills() {
    kills(20);
}
