//! A small server that speaks as S3 does, path-style: GET, HEAD and PUT of objects, with signatures verified as
//! Amazon's documentation describes them, and faults on demand.

#![allow(dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub const KEY: &str = "AKIDEXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// What goes wrong with the next request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Status(u16),
    /// The connection is closed without a word.
    Hangup,
    /// Half of the body is sent.
    CutBody,
    /// No HTTP.
    Nonsense,
}

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<VecDeque<Fault>>,
    /// All requests fail so.
    always: Mutex<Option<Fault>>,
    /// Every answer waits so long.
    delay_ms: AtomicU64,
    /// Bodies have one bit flipped.
    lies: AtomicBool,
    gets: AtomicU64,
    is_over: AtomicBool,
}

pub struct S3Server {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                if let Ok(stream) = stream {
                    std::thread::spawn(move || serve(&shared, stream));
                }
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn objects(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().cloned().collect()
    }

    pub fn gets(&self) -> u64 {
        self.state.gets.load(Ordering::Relaxed)
    }

    pub fn inject(&self, fault: Fault) {
        self.state.faults.lock().unwrap().push_back(fault);
    }

    pub fn fail_always(&self, fault: Option<Fault>) {
        *self.state.always.lock().unwrap() = fault;
    }

    pub fn delay(&self, delay: Duration) {
        let ms = delay.as_millis() as u64;
        self.state.delay_ms.store(ms, Ordering::Relaxed);
    }

    pub fn lie(&self, lies: bool) {
        self.state.lies.store(lies, Ordering::Relaxed);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Asked {
    method: String,
    path: String,
    query: String,
    host: String,
    body: Vec<u8>,
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut host, mut length, mut is_chunked) = (String::new(), 0, false);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        match &*name.to_ascii_lowercase() {
            "host" => value.trim().clone_into(&mut host),
            "content-length" => length = value.trim().parse().ok()?,
            "transfer-encoding" => is_chunked = true,
            _ => {}
        }
    }
    // S3 refuses bodies whose length isn't told.
    if is_chunked {
        return None;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        host,
        body,
    })
}

fn serve(state: &State, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader) {
        if state.is_over.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(
            state.delay_ms.load(Ordering::Relaxed),
        ));
        let fault = state.faults.lock().unwrap().pop_front();
        let fault = fault.or(*state.always.lock().unwrap());
        let (status, mut body) = answer(state, &asked);
        if state.lies.load(Ordering::Relaxed) && asked.method == "GET" && !body.is_empty() {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        let out = reader.get_mut();
        let (status, cut) = match fault {
            Some(Fault::Hangup) => return,
            Some(Fault::Nonsense) => {
                let _ = out.write_all(b"220 smtp ready\r\n\r\n");
                return;
            }
            Some(Fault::Status(status)) => (status, false),
            Some(Fault::CutBody) => (status, true),
            None => (status, false),
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let sent = match (cut, &*asked.method) {
            (true, _) => &body[..body.len() / 2],
            (false, "HEAD") => &[],
            (false, _) => &body[..],
        };
        if out
            .write_all(head.as_bytes())
            .and_then(|()| out.write_all(sent))
            .is_err()
            || cut
        {
            return;
        }
    }
}

fn answer(state: &State, asked: &Asked) -> (u16, Vec<u8>) {
    if !is_signed(asked) {
        let body = "<Error><Code>SignatureDoesNotMatch</Code></Error>";
        return (403, body.into());
    }
    let mut objects = state.objects.lock().unwrap();
    match &*asked.method {
        "PUT" => {
            objects.insert(asked.path.clone(), asked.body.clone());
            (200, Vec::new())
        }
        "GET" | "HEAD" => {
            state
                .gets
                .fetch_add(u64::from(asked.method == "GET"), Ordering::Relaxed);
            let missing = || (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec());
            objects
                .get(&asked.path)
                .map_or_else(missing, |body| (200, body.clone()))
        }
        _ => (405, Vec::new()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Signature Version 4 in the query.
fn is_signed(asked: &Asked) -> bool {
    let mut pairs: Vec<&str> = asked.query.split('&').collect();
    pairs.sort_unstable();
    let value = |name: &str| {
        let pair = pairs
            .iter()
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        pair.unwrap_or_default().replace("%2F", "/")
    };
    let (date, credential) = (value("X-Amz-Date"), value("X-Amz-Credential"));
    let Some(scope) = credential.strip_prefix(&format!("{KEY}/")) else {
        return false;
    };
    let signed: Vec<&str> = pairs
        .iter()
        .filter(|pair| !pair.starts_with("X-Amz-Signature="))
        .copied()
        .collect();
    let canonical = format!(
        "{}\n{}\n{}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD",
        asked.method,
        asked.path,
        signed.join("&"),
        asked.host
    );
    let canonical = hex(&Sha256::digest(canonical.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        key = sign(&key, part);
    }
    hex(&sign(&key, &text)) == value("X-Amz-Signature")
}
