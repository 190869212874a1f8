//! `kill -9` at random instants: every acknowledged session is there afterwards, none torn.
//!
//! The test starts itself as the process to be killed: [`child`], which keeps sessions as fast as it can on
//! a real file system while other threads write and read the same disk level, and prints what was
//! acknowledged. The long run:
//!
//! `cargo test --release -p neap-sim --test kill -- --ignored --exact many_kills --nocapture`

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use neap_memory::disk::format::Kind;
use neap_memory::disk::{Directory, DiskOptions, DiskStore, Meta};
use neap_memory::governor::Occasion;
use neap_memory::session::{KeepOptions, Sessions};
use neap_memory::{
    BlockHash, BlockTable, Budget, CacheOptions, Fingerprint, KvCache, KvPool, Namespace,
};
use neap_sim::world::Random;

const BLOCK_TOKENS: usize = 4;
const TOKEN_BYTES: usize = 1024;
const NAMES: u64 = 6;

fn fingerprint() -> Fingerprint {
    Fingerprint::of_parts(&[("model", b"fake")])
}

fn tenant() -> Namespace {
    Namespace::new(&[5; 32], "kill", &fingerprint())
}

/// A conversation that grows for eight versions and then begins anew.
fn tokens(name: u64, version: u64) -> Vec<u32> {
    let (talk, turn) = (version / 8, version % 8);
    let mut random = Random::new(name * 1_000_003 + talk);
    let len = 5 + turn * 9;
    (0..len).map(|_| random.below(50_000) as u32).collect()
}

/// Keys and values of each token: they depend on every token up to it.
fn values(tokens: &[u32]) -> impl Iterator<Item = [u8; TOKEN_BYTES]> {
    let mut hash = 1u64;
    tokens.iter().map(move |&token| {
        hash = (hash ^ u64::from(token))
            .wrapping_mul(0x0100_0000_01B3)
            .rotate_left(23);
        let mut random = Random::new(hash);
        let mut bytes = [0; TOKEN_BYTES];
        for pair in bytes.chunks_exact_mut(2) {
            pair.copy_from_slice(&[random.below(256) as u8, 0x38]);
        }
        bytes
    })
}

/// A memory core over a folder.
struct Core {
    pool: KvPool,
    disk: Arc<DiskStore>,
    cache: KvCache,
    sessions: Sessions,
}

impl Core {
    fn open(folder: &Path) -> Self {
        let options = DiskOptions {
            limit_bytes: 3 << 20,
            segment_bytes: 128 << 10,
        };
        let storage = Arc::new(Directory::open(folder).expect("a folder"));
        let disk = Arc::new(DiskStore::open(storage, options).expect("a disk level"));
        let budget = Budget::new(60 * (BLOCK_TOKENS * TOKEN_BYTES) as u64);
        let pool = KvPool::new(&budget, BLOCK_TOKENS * TOKEN_BYTES, BLOCK_TOKENS);
        let options = CacheOptions {
            disk: Some(Arc::clone(&disk)),
            ..CacheOptions::new(fingerprint())
        };
        Self {
            cache: KvCache::new(&pool, options).expect("room"),
            sessions: Sessions::open(&disk, fingerprint(), BLOCK_TOKENS),
            pool,
            disk,
        }
    }

    /// Computes what is not cached, and caches it.
    fn compute(&mut self, tokens: &[u32], now_ms: u64) {
        let mut table = BlockTable::new(&self.pool);
        let cached = self.cache.attach(&tenant(), tokens, &mut table, now_ms);
        if table.reserve(tokens.len() - cached).is_err() {
            self.cache.free(u64::MAX, Occasion::Admission, now_ms);
            table
                .reserve(tokens.len() - cached)
                .expect("an empty cache has room");
        }
        for (t, bytes) in values(tokens).enumerate().skip(cached) {
            let at = t % BLOCK_TOKENS * TOKEN_BYTES;
            table.block_mut(t / BLOCK_TOKENS)[at..at + TOKEN_BYTES].copy_from_slice(&bytes);
        }
        table.advance(tokens.len() - cached);
        self.cache.insert(&tenant(), tokens, &mut table, now_ms);
    }

    /// The version of a session that is held, after checking that all of it comes back as it was.
    fn version(&mut self, name: u64, last: u64) -> Option<u64> {
        let found = self
            .sessions
            .restore(&mut self.cache, &tenant(), &name.to_string(), 0);
        let held = found.ok()?.tokens.clone();
        let version = (0..=last)
            .rev()
            .find(|&version| tokens(name, version) == held)
            .unwrap_or_else(|| panic!("session {name} is none of the versions up to {last}"));
        let mut table = BlockTable::new(&self.pool);
        let cached = self.cache.attach(&tenant(), &held, &mut table, 0);
        assert_eq!(cached, held.len(), "session {name} is torn");
        for (t, bytes) in values(&held).enumerate() {
            let at = t % BLOCK_TOKENS * TOKEN_BYTES;
            assert_eq!(
                table.block(t / BLOCK_TOKENS)[at..at + TOKEN_BYTES],
                bytes,
                "session {name}, token {t}"
            );
        }
        Some(version)
    }
}

/// Blocks that nobody needs, so that segments are moved all the time.
fn make_load(disk: &DiskStore, thread: u64) {
    let mut random = Random::new(thread);
    let key = |n: u64| BlockHash::from_bytes([thread as u8; 32]).child(&[n as u32]);
    let meta = |bytes: usize| Meta {
        codec: 0,
        payload_bytes: bytes as u64,
        hot_bytes: bytes as u64,
        tokens: 4,
        fingerprint: fingerprint(),
    };
    loop {
        let bytes = 1 + random.below(9000) as usize;
        let _ = disk.put(
            Kind::Block,
            key(random.below(500)),
            &meta(bytes),
            &vec![7; bytes],
        );
        let wanted = key(random.below(500));
        if let Some(meta) = disk.meta(&wanted, &fingerprint()) {
            let mut payload = vec![0; meta.payload_bytes as usize];
            if disk.read(&wanted, &fingerprint(), &mut payload) {
                assert!(payload.iter().all(|&b| b == 7));
            }
        }
    }
}

/// The process to be killed. Reads its folder, a seed and the versions to go on from, from standard input.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).expect("text");
    let mut lines = input.lines();
    let folder = lines.next().expect("a folder").to_owned();
    let mut random = Random::new(lines.next().expect("a seed").parse().expect("a number"));
    let mut versions: Vec<u64> = lines.map(|v| v.parse().expect("a number")).collect();
    let mut core = Core::open(Path::new(&folder));
    for thread in 0..2 {
        let disk = Arc::clone(&core.disk);
        std::thread::spawn(move || make_load(&disk, thread));
    }
    let mut out = std::io::stdout();
    for now_ms in 0.. {
        let name = random.below(NAMES);
        let version = &mut versions[name as usize];
        if random.one_in(8) {
            let _ = writeln!(out, "\ndrop {name} {version}");
            if core.sessions.delete(&tenant(), &name.to_string()).is_ok() {
                let _ = writeln!(out, "\ngone {name} {version}");
            }
            continue;
        }
        *version += 1;
        let _ = writeln!(out, "\ntry {name} {version}");
        let tokens = tokens(name, *version);
        core.compute(&tokens, now_ms);
        let name_text = name.to_string();
        let session = (&tenant(), name_text.as_str(), &tokens[..]);
        core.sessions
            .save(&mut core.cache, session, KeepOptions::default(), now_ms)
            .expect("there is room for all sessions");
        let _ = writeln!(out, "\nkept {name} {version}");
    }
}

/// What the child told of one session: versions, `None` being its absence.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The last version that it began to keep.
    tried: u64,
    /// What was acknowledged last.
    acknowledged: Option<u64>,
    /// What was begun since.
    begun: Option<Option<u64>>,
}

impl Told {
    fn take(&mut self, what: &str, version: u64) {
        match what {
            "try" => (self.tried, self.begun) = (version, Some(Some(version))),
            "drop" => self.begun = Some(None),
            "kept" => (self.acknowledged, self.begun) = (Some(version), None),
            "gone" => (self.acknowledged, self.begun) = (None, None),
            _ => {}
        }
    }
}

/// Lets a child work until it is killed, and takes in what it told.
fn run_and_kill(folder: &Path, told: &mut BTreeMap<u64, Told>, random: &mut Random) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut input = format!("{}\n{}\n", folder.display(), random.below(u64::MAX));
    for name in 0..NAMES {
        input += &format!("{}\n", told.entry(name).or_default().tried);
    }
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("written");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    // Some work, then an instant of no significance.
    let mut acknowledged = 0;
    let enough = 5 + random.below(60);
    let mut take = |line: &str, told: &mut BTreeMap<u64, Told>| {
        let words: Vec<&str> = line.split(' ').collect();
        let &[what, name, version] = &words[..] else {
            return;
        };
        let (Ok(name), Ok(version)) = (name.parse::<u64>(), version.parse::<u64>()) else {
            return;
        };
        told.entry(name).or_default().take(what, version);
        acknowledged += u64::from(what == "kept");
    };
    for _ in 0..enough {
        match lines.next() {
            Some(Ok(line)) => take(&line, told),
            _ => panic!("the child ended by itself"),
        }
    }
    std::thread::sleep(Duration::from_micros(random.below(20_000)));
    child.kill().expect("it runs");
    child.wait().expect("it has ended");
    // What it told before it was killed counts, read or not; the last line may be cut.
    for line in lines.map_while(Result::ok) {
        take(&line, told);
    }
    acknowledged
}

fn kills(rounds: u64, seed: u64) {
    let folder = std::env::temp_dir().join(format!("neap-kill-{}-{seed}", std::process::id()));
    let mut random = Random::new(seed);
    let mut told: BTreeMap<u64, Told> = BTreeMap::new();
    let (mut acknowledged, mut found) = (0, 0);
    for round in 0..rounds {
        acknowledged += run_and_kill(&folder, &mut told, &mut random);
        let mut core = Core::open(&folder);
        for (&name, told) in &mut told {
            let version = core.version(name, told.tried);
            let is_right = version == told.acknowledged || Some(version) == told.begun;
            assert!(
                is_right,
                "round {round}, session {name}: {told:?}, found {version:?}"
            );
            found += u64::from(version.is_some());
            (told.acknowledged, told.begun) = (version, None);
        }
        core.disk
            .check_conservation()
            .expect("the disk level's laws");
    }
    println!(
        "{rounds} kills, {acknowledged} sessions acknowledged, {found} found whole afterwards"
    );
    assert!(acknowledged > rounds * 3);
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn a_few_kills() {
    kills(4, 1);
}

#[test]
#[ignore = "takes a minute"]
fn many_kills() {
    kills(100, 2);
}
