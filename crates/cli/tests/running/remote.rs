//! Two processes over one remote store.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::server::text;

/// Tells one process a long story and asks for the tokens that the other finds of it.
#[test]
fn what_one_process_computed_another_reads() {
    let folder = std::env::temp_dir().join(format!("neap-remote-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let chat = |store: &str, secret: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_neap"))
            .args(["chat", "--greedy", "-n", "12", "-v", "--session", "x"])
            .args(["--store", &path(store), "--remote", &path("shared")])
            .args(["--remote-secret-file", &path(secret)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let story = "My name is Anna and I like the sea. ".repeat(12) + "\n";
        let mut input = child.stdin.take().expect("piped");
        input.write_all(story.as_bytes()).expect("written");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let log = text(&output.stderr);
        assert!(output.status.success(), "{log}");
        let cached = log
            .split(" from cache)")
            .next()
            .and_then(|t| t.rsplit('(').next());
        let cached: usize = cached.and_then(|n| n.parse().ok()).expect("a number");
        (text(&output.stdout), cached)
    };
    let (told, cached) = chat("one", "secret");
    assert_eq!(cached, 0);
    let (again, cached) = chat("two", "secret");
    assert!(cached >= 64, "{cached} tokens");
    assert_eq!(again, told, "what came back is what was computed");
    let (stranger, cached) = chat("three", "another");
    assert_eq!(
        (stranger, cached),
        (told, 0),
        "without the secret nothing is believed"
    );
    let _ = std::fs::remove_dir_all(&folder);
}
