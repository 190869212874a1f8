//! A server of the shipped model that ends with its test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

pub struct Server {
    child: Child,
    pub url: String,
}

impl Server {
    /// Starts `neap serve` on a free port and waits until it serves.
    pub fn start(args: &[&str]) -> Self {
        Self::logging(args, |_| {})
    }

    /// The same; `line` is told what it logs from then on.
    pub fn logging(args: &[&str], mut line: impl FnMut(String) + Send + 'static) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_neap"))
            .args(["serve", "--port", "0"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let url = loop {
            let line = lines
                .next()
                .expect("the server tells its address")
                .expect("text");
            if let Some((_, url)) = line.split_once(" on http://") {
                break format!("http://{}", url.trim_end_matches('/'));
            }
        };
        // Someone must read on, or the server could block on its log.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(&mut line));
        Self { child, url }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Server {
    /// The status and the JSON of an answer.
    pub fn get(&self, path: &str) -> (u16, Value) {
        ask(&self.url, ("GET", path), "", &Value::Null)
    }

    /// The same, to a body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        ask(&self.url, ("POST", path), "", body)
    }

    /// As `kill -9` does it.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it has ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status and the JSON of an answer, a string if it is plain text; an empty key and a body that is null are left out.
pub fn ask(url: &str, (method, path): (&str, &str), key: &str, body: &Value) -> (u16, Value) {
    let address = url.trim_start_matches("http://");
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    if !key.is_empty() {
        head.push_str(&format!("Authorization: Bearer {key}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
    (status.expect("a status"), body)
}

/// A small model with known outputs.
pub fn golden(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden");
    tests.join(name)
}

/// Runs `neap` to its end.
pub fn neap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
