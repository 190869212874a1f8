//! A server of the shipped model that ends with its test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

pub struct Server {
    child: Child,
    pub url: String,
}

impl Server {
    /// Starts `neap serve` on a free port and waits until it serves.
    pub fn start(args: &[&str]) -> Self {
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
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }
}

impl Server {
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
