//! `neap session`, with a running server and in folders.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::server::{Server, neap, text};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("neap-session-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs it and expects it to succeed; gives what it printed.
fn done(args: &[&str]) -> String {
    let output = neap(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn refused(args: &[&str]) -> String {
    let output = neap(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    text(&output.stderr)
}

fn listed(place: &[&str]) -> Vec<Value> {
    let list = done(&[&["session", "list", "--json"], place].concat());
    serde_json::from_str(&list).expect("JSON")
}

/// Holds a conversation of one turn; tokens of its prompt that came from the cache, and the answer.
fn talk(server: &Server, key: Option<&str>) -> (u64, Value) {
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a long story of a fox, a hen, a dog and the red apples that they found."}],
        "temperature": 0, "max_tokens": 8, "prompt_cache_key": "talk", "prompt_cache_retention": "24h",
    });
    let mut request = ureq::post(format!("{}/v1/chat/completions", server.url));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut answer = request.send(body.to_string()).expect("an answer");
    let answer = answer.body_mut().read_to_string().expect("text");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    (
        cached.as_u64().expect("a count"),
        answer["choices"][0]["message"].clone(),
    )
}

/// Waits until the conversation is on disk.
fn wait_until_kept(place: &[&str]) -> Value {
    for _ in 0..300 {
        if let Some(kept) = listed(place).into_iter().find(|s| s["is_kept"] == true) {
            return kept;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("not kept in time");
}

#[test]
fn a_session_moves_from_server_to_server_and_through_folders() {
    let folder = Folder::new("move");
    let (one, file) = (folder.at("one"), folder.at("file"));
    let server = Server::start(&["--memory", "64MiB", "--disk", &one]);
    let at = ["--url", server.url.as_str()];
    let (_, said) = talk(&server, None);
    let kept = wait_until_kept(&at);
    assert_eq!(
        (&kept["name"], &kept["priority"]),
        (&json!("talk"), &json!(0))
    );
    assert!(kept["expires_ms"].is_u64());

    done(
        &[
            &["session", "pin", "talk", "--priority", "7", "--ttl", "2h"],
            &at[..],
        ]
        .concat(),
    );
    let kept = wait_until_kept(&at);
    assert_eq!(kept["priority"], 7);
    // A later turn keeps it as the admin wanted it.
    talk(&server, None);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(wait_until_kept(&at)["priority"], 7);

    done(&[&["session", "export", "talk", "-o", &file], &at[..]].concat());
    let again = refused(&[&["session", "export", "talk", "-o", &file], &at[..]].concat());
    assert!(again.contains("--force"), "{again}");
    // The folder is the server's as long as it runs.
    let used = refused(&["session", "list", "--disk", &one]);
    assert!(used.contains("another neap uses it"), "{used}");
    drop(server);
    assert_eq!(listed(&["--disk", &one])[0]["priority"], 7, "after a kill");

    into_a_server_with_keys(&folder, &file, &said);
    offline(&folder, &one, &file);
}

/// Whose it is must be said there.
fn into_a_server_with_keys(folder: &Folder, file: &str, said: &Value) {
    let server = Server::start(&[
        "--memory",
        "64MiB",
        "--disk",
        &folder.at("two"),
        "--api-key",
        "alice",
        "--api-key",
        "bob",
    ]);
    let import = ["session", "import", file, "--url", server.url.as_str()];
    let nobodys = refused(&import);
    assert!(nobodys.contains("X-Session-Key"), "{nobodys}");
    done(&[&import[..], &["--session-key", "alice"]].concat());
    let (cached, again) = talk(&server, Some("alice"));
    assert!(
        cached > 0 && again == *said,
        "{cached} tokens, {again} for {said}"
    );
    assert_eq!(talk(&server, Some("bob")).0, 0, "it is not his");

    let damaged = folder.at("damaged");
    let mut bytes = std::fs::read(file).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("written");
    let refusal = refused(&[
        "session",
        "import",
        &damaged,
        "--url",
        server.url.as_str(),
        "--session-key",
        "alice",
    ]);
    assert!(refusal.contains("checksum"), "{refusal}");
    drop(server);
}

/// Without a server: delete, import, and a server finds it again.
fn offline(folder: &Folder, one: &str, file: &str) {
    let copy = folder.at("copy");
    done(&["session", "export", "talk", "-o", &copy, "--disk", one]);
    assert_eq!(
        std::fs::read(&copy).expect("a file").len(),
        std::fs::read(file).expect("a file").len()
    );
    done(&["session", "delete", "talk", "--disk", one]);
    assert!(listed(&["--disk", one]).is_empty());
    assert!(refused(&["session", "delete", "talk", "--disk", one]).contains("no session"));
    done(&["session", "import", &copy, "--disk", one]);
    done(&["session", "pin", "talk", "--disk", one]);
    let server = Server::start(&["--memory", "64MiB", "--disk", one]);
    let listed = listed(&["--url", &server.url]);
    assert_eq!(
        (&listed[0]["priority"], &listed[0]["expires_ms"]),
        (&json!(255), &Value::Null)
    );
    assert!(talk(&server, None).0 > 0);
    let table = done(&["session", "list", "--url", &server.url]);
    assert!(table.contains("never") && table.contains("talk"), "{table}");
}

fn chat(store: &Path, lines: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_neap"))
        .args([
            "chat",
            "--greedy",
            "-n",
            "8",
            "-v",
            "--memory",
            "48MiB",
            "--session",
            "apples",
        ])
        .arg("--store")
        .arg(store)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(lines.as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn a_chat_moves_with_its_words() {
    let folder = Folder::new("chat");
    let (here, there, file) = (
        folder.0.join("here"),
        folder.0.join("there"),
        folder.at("file"),
    );
    let story = "A friend has three red apples and likes the sea. ".repeat(4);
    chat(&here, &format!("{story}\n"));
    let at = here.to_str().expect("a plain path");
    done(&["session", "export", "apples", "-o", &file, "--disk", at]);
    // A folder that holds a conversation already, and one that holds none.
    std::fs::create_dir_all(there.join("blocks")).expect("a folder");
    done(&[
        "session",
        "import",
        &file,
        "--disk",
        there.to_str().expect("a plain path"),
    ]);
    let log = chat(&there, "And then?\n");
    assert!(log.contains("Going on with 2 messages"), "{log}");
    let prompt = log
        .lines()
        .find(|line| line.starts_with("prompt:"))
        .expect("figures");
    assert!(!prompt.contains("(0 from cache)"), "{prompt}");
    done(&["session", "delete", "apples", "--disk", at]);
    assert!(
        chat(&here, "/show\n")
            .lines()
            .all(|line| !line.contains("[user]"))
    );
    assert!(
        refused(&["session", "list", "--disk", &folder.at("nowhere")])
            .contains("holds no sessions")
    );
}
