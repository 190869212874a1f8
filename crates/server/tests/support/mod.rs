//! A server on a fake model, and a client that reads what really goes over the wire.

#![allow(dead_code, reason = "not every test file uses everything")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use neap_engine::{Engine, EngineConfig};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::disk::{Directory, DiskOptions, DiskStore};
use neap_memory::session::Sessions;
use neap_memory::{Budget, Fingerprint, KvPool, KvQuality};
use neap_model::chat::ChatTemplate;
use neap_model::decoder::{Decoder, DecoderLimits, SequenceChunk, StepError};
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;
use neap_server::{Configuration, Live, Loaded, Options, Running, ServedModel, start};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const BLOCK_TOKENS: usize = 32;
pub const BLOCK_BYTES: usize = 64 << 10;
pub const CONTEXT: usize = 4096;

/// Its next token is a hash of every token that it reads back from the KV blocks: a wrong, stale or lost block
/// changes what follows.
pub struct FakeDecoder {
    ids: Vec<u32>,
    salt: u64,
    vocab_size: usize,
    logits: Vec<f32>,
    step: Duration,
    token: Duration,
}

impl Decoder for FakeDecoder {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_tokens(&self) -> usize {
        CONTEXT
    }

    fn limits(&self) -> DecoderLimits {
        DecoderLimits {
            batch_tokens: 512,
            logit_rows: 32,
        }
    }

    fn forward(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&mut [f32], StepError> {
        let tokens: usize = batch.iter().map(|chunk| chunk.tokens.len()).sum();
        std::thread::sleep(self.step + self.token * tokens as u32);
        self.logits.clear();
        for chunk in batch.iter_mut() {
            let start = chunk.table.len_tokens();
            for (i, &token) in chunk.tokens.iter().enumerate() {
                let (block, slot) = ((start + i) / BLOCK_TOKENS, (start + i) % BLOCK_TOKENS);
                chunk.table.block_mut(block)[slot * 4..slot * 4 + 4]
                    .copy_from_slice(&token.to_le_bytes());
            }
            let end = start + chunk.tokens.len();
            let hash = (0..end).fold(0xcbf2_9ce4_8422_2325_u64 ^ self.salt, |h, i| {
                let bytes = &chunk.table.block(i / BLOCK_TOKENS)[i % BLOCK_TOKENS * 4..][..4];
                let token = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                (h ^ u64::from(token)).wrapping_mul(0x100_0000_01b3)
            });
            let next = self.ids[(hash >> 33) as usize % self.ids.len()];
            for _ in 0..chunk.logits.rows(chunk.tokens.len()) {
                let first = self.logits.len();
                self.logits.resize(first + self.vocab_size, 0.0);
                self.logits[first + next as usize] = 12.0;
            }
            chunk.table.advance(chunk.tokens.len());
        }
        Ok(&mut self.logits)
    }
}

pub type Source = Box<dyn Configuration<FakeDecoder>>;

pub struct Setup {
    pub live: Live,
    /// How long a step takes, beside its tokens.
    pub step: Duration,
    /// How long a token takes: where nothing costs anything, nothing is worth keeping.
    pub token: Duration,
    pub parallel: usize,
    pub blocks: u64,
    pub quality: KvQuality,
    /// A folder for the disk level.
    pub disk: Option<PathBuf>,
    /// What a reload reads, made with the server's budget.
    pub configuration: Option<fn(Budget) -> Source>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            live: Live::default(),
            step: Duration::ZERO,
            token: Duration::ZERO,
            parallel: 8,
            blocks: 1024,
            quality: KvQuality::Exact,
            disk: None,
            configuration: None,
        }
    }
}

pub struct Server {
    pub running: Running,
    pub address: SocketAddr,
    pub budget: Budget,
    /// Charged before anything ran: what is no cached block.
    pub fixed_bytes: u64,
}

/// A fake model by the name `id`; models of other names say other things.
pub fn load(id: &str, budget: &Budget, setup: &Setup) -> Result<Loaded<FakeDecoder>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/neap-tiny.gguf");
    let tokenizer = Tokenizer::from_source(&ModelSource::open(&path).unwrap()).unwrap();
    let decoder = FakeDecoder {
        // Words of plain text, so that a stream and an answer can be told apart by nothing else.
        ids: (0..tokenizer.vocab_size() as u32)
            .filter(|&id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                !tokenizer.is_special(id) && bytes.iter().all(|b| matches!(b, b' ' | b'a'..=b'z'))
            })
            .collect(),
        salt: id.bytes().map(u64::from).sum(),
        vocab_size: tokenizer.vocab_size(),
        logits: Vec::new(),
        step: setup.step,
        token: setup.token,
    };
    let pool = KvPool::new(budget, BLOCK_BYTES, BLOCK_TOKENS);
    let config = EngineConfig {
        max_running: setup.parallel,
        quality: setup.quality,
        secret: [9; 32],
        fingerprint: Fingerprint::of_parts(&[("model", id.as_bytes())]),
        ..EngineConfig::default()
    };
    let disk = setup.disk.as_ref().map(|folder| {
        let storage = Directory::open(folder).unwrap();
        let limit = DiskOptions::with_limit(1 << 30);
        Arc::new(DiskStore::open(Arc::new(storage), limit).unwrap())
    });
    let sessions = disk
        .as_ref()
        .map(|disk| Sessions::open(disk, config.fingerprint, BLOCK_TOKENS));
    let cache_options = CacheOptions {
        disk,
        ..CacheOptions::new(config.fingerprint)
    };
    let cache = KvCache::new(&pool, cache_options).map_err(|why| why.to_string())?;
    let template = ChatTemplate::fallback(&tokenizer).unwrap();
    Ok(Loaded {
        engine: Engine::new(decoder, Some(tokenizer.clone()), cache, config),
        model: ServedModel::new(id, CONTEXT, tokenizer, template),
        sessions,
        mapped_bytes: 0,
    })
}

pub async fn serve(setup: Setup) -> Server {
    let budget = Budget::new(1 << 40);
    let loaded = load("tiny", &budget, &setup).unwrap();
    let fixed_bytes = budget.charged();
    budget.set_limit(fixed_bytes + setup.blocks * BLOCK_BYTES as u64);
    let options = Options {
        port: 0,
        live: setup.live,
        ..Options::default()
    };
    let configuration = setup.configuration.map(|make| make(budget.clone()));
    let running = start(loaded, configuration, options).await.unwrap();
    Server {
        address: running.address,
        running,
        budget,
        fixed_bytes,
    }
}

/// A folder that is gone when this is.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "neap-server-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|why| panic!("{why} in {} {}", self.status, self.body))
    }

    /// The data of each server-sent event.
    pub fn events(&self) -> Vec<&str> {
        let events = self.body.split("\n\n").filter(|e| !e.is_empty());
        events.map(|e| e.strip_prefix("data: ").unwrap()).collect()
    }

    /// The chunks of a stream that ended as it should.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body);
        let parse = |e: &str| serde_json::from_str(e).unwrap();
        events.into_iter().map(parse).collect()
    }
}

impl Server {
    pub async fn send(&self, method: &str, path: &str, head: &str, body: &str) -> Answer {
        let mut stream = self.open(method, path, head, body).await;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        parse(&bytes)
    }

    /// Sends a request and does not read the answer.
    pub async fn open(&self, method: &str, path: &str, head: &str, body: &str) -> TcpStream {
        open(self.address, method, path, head, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, "", &body.to_string()).await
    }

    /// The answers to all of these, sent at the same time.
    pub async fn post_all(&self, path: &str, bodies: Vec<Value>) -> Vec<Value> {
        let answers = bodies.into_iter().map(|body| {
            let (address, path) = (self.address, path.to_owned());
            tokio::spawn(async move {
                let mut stream = open(address, "POST", &path, "", &body.to_string()).await;
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                let answer = parse(&bytes);
                assert_eq!(answer.status, 200, "{}", answer.body);
                answer.json()
            })
        });
        let mut bodies = Vec::new();
        for answer in answers.collect::<Vec<_>>() {
            bodies.push(answer.await.unwrap());
        }
        bodies
    }

    /// What `/memory` says, once `wanted` holds of it.
    pub async fn memory_when(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..500 {
            let memory = self.get("/memory").await.json();
            if wanted(&memory) {
                return memory;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not in time: {}", self.get("/memory").await.body);
    }
}

async fn open(address: SocketAddr, method: &str, path: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{head}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

pub fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Answer {
        status: status.unwrap_or_else(|| panic!("no status in {text:?}")),
        head: head.to_owned(),
        body: if chunked {
            dechunk(body)
        } else {
            body.to_owned()
        },
    }
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}
