//! `neap pull` against a stand-in for a hub that redirects, cuts off, lies and refuses.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn shipped() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    std::fs::read(path).unwrap()
}

/// What the stand-in does wrong.
#[derive(Default)]
struct Faults {
    /// Bytes after which a body ends, each time.
    cut_after: usize,
    /// Whether `Range` is overlooked.
    no_ranges: bool,
    /// Whether contents differ from their checksums.
    corrupt: bool,
}

struct Hub {
    address: String,
    files: HashMap<String, (Vec<u8>, String)>,
    faults: Mutex<Faults>,
    /// Heads of requests for contents, in order.
    asked: Mutex<Vec<String>>,
    served_bytes: AtomicUsize,
}

impl Hub {
    fn start(files: &[(&str, Vec<u8>, &str)], faults: Faults) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let files = files.iter();
        let hub = Arc::new(Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files: files
                .map(|(name, contents, etag)| {
                    ((*name).to_owned(), (contents.clone(), (*etag).to_owned()))
                })
                .collect(),
            faults: Mutex::new(faults),
            asked: Mutex::default(),
            served_bytes: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who leaves early gets no more.
                let _ = shared.answer(stream);
            }
        });
        hub
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let mut head = Vec::new();
        while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
            head.push(line);
        }
        let first = head.first().cloned().unwrap_or_default();
        let (method, path) = (
            first.split(' ').next().unwrap_or_default(),
            first.split(' ').nth(1).unwrap_or_default(),
        );
        let close = "Connection: close\r\n";
        if path.starts_with("/api/models/some/private") {
            return write!(
                stream,
                "HTTP/1.1 401 No\r\n{close}Content-Length: 0\r\n\r\n"
            );
        }
        if path.starts_with("/api/models/some/thing/revision/main") {
            let list: Vec<String> = self
                .files
                .iter()
                .map(|(name, (contents, _))| {
                    format!(r#"{{"rfilename":"{name}","size":{}}}"#, contents.len())
                })
                .collect();
            let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, list.join(","));
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\n{close}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        let resolve = format!("/some/thing/resolve/{COMMIT}/");
        if let Some((contents, etag)) = path
            .strip_prefix(&resolve)
            .and_then(|name| self.files.get(name))
        {
            // Large files lie elsewhere.
            let name = &path[resolve.len()..];
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\n{close}Location: /cdn/{name}\r\nX-Linked-Etag: \"{etag}\"\r\n\
                 X-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: 0\r\n\r\n",
                contents.len()
            );
        }
        match path
            .strip_prefix("/cdn/")
            .and_then(|name| self.files.get(name))
        {
            Some((contents, _)) if method == "GET" => self.serve(stream, &head, contents.clone()),
            _ => write!(
                stream,
                "HTTP/1.1 404 No\r\n{close}Content-Length: 0\r\n\r\n"
            ),
        }
    }

    fn serve(
        &self,
        mut stream: TcpStream,
        head: &[String],
        mut contents: Vec<u8>,
    ) -> std::io::Result<()> {
        let (cut_after, no_ranges, corrupt) = {
            let faults = self.faults.lock().unwrap();
            (faults.cut_after, faults.no_ranges, faults.corrupt)
        };
        self.asked.lock().unwrap().push(head.join("\n"));
        if corrupt {
            contents[0] ^= 1;
        }
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
            name.eq_ignore_ascii_case("range")
                .then(|| value.parse::<usize>().unwrap())
        });
        let from = range.filter(|_| !no_ranges);
        let status = match from {
            Some(from) => format!(
                "206 Part\r\nContent-Range: bytes {from}-{}/{}",
                contents.len() - 1,
                contents.len()
            ),
            None => "200 OK".to_owned(),
        };
        let body = &contents[from.unwrap_or(0)..];
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        let sent = match cut_after {
            0 => body.len(),
            most => most.min(body.len()),
        };
        self.served_bytes.fetch_add(sent, Ordering::Relaxed);
        stream.write_all(&body[..sent])
    }

    fn pull(&self, cache: &Path, more: &[&str]) -> Output {
        let fixed = [
            "pull",
            "--cache",
            cache.to_str().unwrap(),
            "--endpoint",
            &self.address,
        ];
        Command::new(env!("CARGO_BIN_EXE_neap"))
            .args(fixed)
            .args(more)
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("neap-pull-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// By `sha256sum models/neap-tiny.gguf`.
const TINY_SHA256: &str = "4c3f6cf131f1d79d826ef01c32f82590e469fddaf2293f39f3795cb8e20a4eff";
/// By `git hash-object`, of `{"a": 1}` and a line end.
const CONFIG_SHA1: &str = "cb5b2f69babc53f9145b45ad20b9a075d48717ef";
const CONFIG: &[u8] = b"{\"a\": 1}\n";

#[test]
fn a_file_that_is_cut_off_is_gone_on_with_and_checked() {
    let (cache, tiny) = (folder("cut"), shipped());
    let faults = Faults {
        cut_after: tiny.len() / 3,
        ..Faults::default()
    };
    let hub = Hub::start(&[("tiny.gguf", tiny.clone(), TINY_SHA256)], faults);
    let got = hub.pull(&cache, &["some/thing"]);
    assert!(got.status.success(), "{}", text(&got.stderr));
    let path = PathBuf::from(text(&got.stdout).trim());
    assert_eq!(std::fs::read(&path).unwrap(), tiny);
    assert_eq!(
        hub.served_bytes.load(Ordering::Relaxed),
        tiny.len(),
        "nothing came twice"
    );
    assert!(hub.asked.lock().unwrap().len() >= 3);
    let model = cache.join("models--some--thing");
    assert_eq!(path, model.join("snapshots").join(COMMIT).join("tiny.gguf"));
    assert_eq!(
        std::fs::read_to_string(model.join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(model.join("blobs").join(TINY_SHA256).is_file());
    assert_eq!(std::fs::read_dir(model.join("blobs")).unwrap().count(), 1);
    // Again: nothing comes; and without the hub.
    assert!(hub.pull(&cache, &["some/thing"]).status.success());
    assert_eq!(hub.served_bytes.load(Ordering::Relaxed), tiny.len());
    let offline = [
        "pull",
        "--offline",
        "--cache",
        cache.to_str().unwrap(),
        "some/thing",
    ];
    let offline = Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(offline)
        .output()
        .unwrap();
    assert_eq!(text(&offline.stdout), text(&got.stdout));
    std::fs::remove_dir_all(cache).unwrap();
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with_also_by_hubs_without_ranges() {
    for no_ranges in [false, true] {
        let (cache, tiny) = (folder("left"), shipped());
        let blobs = cache.join("models--some--thing/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(format!("{TINY_SHA256}.incomplete"));
        std::fs::write(&part, &tiny[..1000]).unwrap();
        let faults = Faults {
            no_ranges,
            ..Faults::default()
        };
        let hub = Hub::start(&[("tiny.gguf", tiny.clone(), TINY_SHA256)], faults);
        let got = hub.pull(&cache, &["some/thing:tiny.gguf"]);
        assert!(got.status.success(), "{}", text(&got.stderr));
        assert_eq!(std::fs::read(text(&got.stdout).trim()).unwrap(), tiny);
        let came = hub.served_bytes.load(Ordering::Relaxed);
        assert_eq!(came, tiny.len() - if no_ranges { 0 } else { 1000 });
        assert!(!part.exists());
        std::fs::remove_dir_all(cache).unwrap();
    }
}

#[test]
fn what_is_not_what_was_promised_is_thrown_away() {
    let (cache, tiny) = (folder("corrupt"), shipped());
    let faults = Faults {
        corrupt: true,
        ..Faults::default()
    };
    let hub = Hub::start(&[("tiny.gguf", tiny, TINY_SHA256)], faults);
    let got = hub.pull(&cache, &["some/thing"]);
    assert_eq!(got.status.code(), Some(1));
    assert!(
        text(&got.stderr).contains("checksum"),
        "{}",
        text(&got.stderr)
    );
    let model = cache.join("models--some--thing");
    assert_eq!(std::fs::read_dir(model.join("blobs")).unwrap().count(), 0);
    assert!(!model.join("refs").exists());
    hub.faults.lock().unwrap().corrupt = false;
    assert!(hub.pull(&cache, &["some/thing"]).status.success());
    std::fs::remove_dir_all(cache).unwrap();
}

#[test]
fn what_can_not_be_got_is_said() {
    let cache = folder("refused");
    let tiny = shipped();
    let hub = Hub::start(
        &[
            ("a-Q4_0.gguf", tiny.clone(), TINY_SHA256),
            ("a-Q8_0.gguf", tiny, TINY_SHA256),
            ("../../out.gguf", b"x".to_vec(), CONFIG_SHA1),
            ("config.json", CONFIG.to_vec(), CONFIG_SHA1),
        ],
        Faults::default(),
    );
    for (args, named) in [
        (&["some/thing"][..], "a-Q4_0.gguf"),
        (&["some/thing:Q5"], "Q5"),
        (&["some/other"], "404"),
        (&["some/private"], "--token-file"),
        (&["nothing"], "OWNER/NAME"),
        (&["some/../thing"], "OWNER/NAME"),
        (&["some/thing", "--revision", "../x"], "--revision"),
        (&["some/thing", "--offline"], "not in the cache"),
    ] {
        let got = hub.pull(&cache, args);
        let message = text(&got.stderr);
        assert!(
            !got.status.success() && message.contains(named),
            "{args:?}: {message}"
        );
    }
    let nowhere = [
        "pull",
        "--cache",
        cache.to_str().unwrap(),
        "--endpoint",
        "http://127.0.0.1:9",
        "a/b",
    ];
    let got = Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(nowhere)
        .output()
        .unwrap();
    assert!(
        text(&got.stderr).contains("can't be reached"),
        "{}",
        text(&got.stderr)
    );
    // A small file has git's checksum.
    let got = hub.pull(&cache, &["some/thing:config.json"]);
    assert!(got.status.success(), "{}", text(&got.stderr));
    let blob = cache.join("models--some--thing/blobs").join(CONFIG_SHA1);
    assert_eq!(std::fs::read(blob).unwrap(), CONFIG);
    std::fs::remove_dir_all(cache).unwrap();
}

#[test]
fn models_of_the_cache_run_by_name() {
    let home = folder("home");
    let cache = home.join(".cache/huggingface/hub");
    let hub = Hub::start(&[("tiny.gguf", shipped(), TINY_SHA256)], Faults::default());
    let run = |model: &str| {
        Command::new(env!("CARGO_BIN_EXE_neap"))
            .env("HOME", &home)
            .args(["run", "Once", "-n", "4", "--greedy", "--model", model])
            .output()
            .unwrap()
    };
    let before = run("some/thing");
    assert!(
        text(&before.stderr).contains("neap pull some/thing"),
        "{}",
        text(&before.stderr)
    );
    assert!(hub.pull(&cache, &["some/thing"]).status.success());
    for model in ["some/thing", "some/thing:tiny"] {
        let ran = run(model);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        assert!(text(&ran.stdout).starts_with("Once"));
    }
    assert!(text(&run("some/thing:Q8").stderr).contains("Q8"));
    std::fs::remove_dir_all(home).unwrap();
}
