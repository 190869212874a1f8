//! A server whose configuration file changes while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Server, ask};

struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("neap-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shipped() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    std::fs::read(path).expect("the shipped model")
}

fn complete(server: &Server, key: &str) -> (u16, Value) {
    let body = json!({"prompt": "The sea", "max_tokens": 4, "temperature": 0});
    ask(&server.url, ("POST", "/v1/completions"), key, &body)
}

fn reload(server: &Server) -> (u16, Value) {
    ask(&server.url, ("POST", "/admin/reload"), "boss", &Value::Null)
}

#[test]
fn the_file_is_read_again() {
    let files = Files::new("reload");
    let model = files.write("one.gguf", &shipped());
    let other = files.write("two.gguf", &shipped());
    let broken = files.write("three.gguf", &shipped()[..4000]);
    let config = |model: &str, more: &str| {
        let text = format!("model = \"{model}\"\nadmin-key = \"boss\"\n{more}");
        files.write("neap.toml", text.as_bytes())
    };
    let path = config(&model, "memory = \"96MiB\"");
    let server = Server::start(&["--config", &path]);
    let (_, before) = complete(&server, "");
    assert_eq!(before["model"], "one");

    let (status, told) = reload(&server);
    assert_eq!((status, &told["changed"]), (200, &json!([])), "{told}");

    config(
        &model,
        "memory = \"80MiB\"\napi-key = [\"k\"]\notlp = \"http://127.0.0.1:9\"\nmax-queue = 9",
    );
    let (status, told) = reload(&server);
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["changed"], json!(["api-key", "max-queue", "memory"]));
    assert_eq!(told["needs_restart"], json!(["otlp"]));
    assert_eq!(complete(&server, "").0, 401);
    let memory = ask(&server.url, ("GET", "/memory"), "boss", &Value::Null).1;
    assert_eq!(memory["budget"]["limit_bytes"], 80 << 20);

    config(&other, "api-key = [\"k\"]");
    let (status, told) = reload(&server);
    assert_eq!(status, 200, "{told}");
    assert_eq!(told["model"]["id"], "two");
    let (status, after) = complete(&server, "k");
    assert_eq!((status, &after["model"]), (200, &json!("two")));
    assert_eq!(after["choices"], before["choices"]);

    let refused = || {
        let (status, told) = reload(&server);
        assert_eq!(status, 409, "{told}");
        let (status, after) = complete(&server, "k");
        assert_eq!((status, &after["model"]), (200, &json!("two")));
        told["error"]["message"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    config(&broken, "");
    assert!(refused().contains("three.gguf"));
    files.write("neap.toml", b"prot = 1");
    assert!(refused().contains("`prot`"));
}

#[test]
#[cfg(unix)]
fn a_signal_has_it_read_again() {
    let files = Files::new("hangup");
    let path = files.write("neap.toml", b"");
    let server = Server::start(&["--config", &path]);
    assert_eq!(complete(&server, "").0, 200);
    files.write("neap.toml", b"api-key = \"k\"");
    let pid = server.pid().to_string();
    let sent = Command::new("kill").args(["-HUP", &pid]).status();
    assert!(sent.expect("kill runs").success());
    let end = Instant::now() + Duration::from_secs(20);
    while complete(&server, "").0 != 401 {
        assert!(Instant::now() < end, "not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(complete(&server, "k").0, 200);
}
