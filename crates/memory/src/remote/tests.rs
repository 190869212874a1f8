use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake::{FakeRemote, Lie};
use super::format::{HEAD_BYTES, mac_key, object_name, open, seal};
use super::*;
use crate::budget::Budget;
use crate::disk::fake::FakeStorage;
use crate::disk::format::Kind;
use crate::disk::{DiskOptions, DiskStore, Meta};
use crate::hash::{BlockHash, Fingerprint};

const PAYLOAD_BYTES: usize = 700;

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([3; 32])
}

fn keys(count: u32) -> Vec<BlockHash> {
    (0..count)
        .map(|n| BlockHash::from_bytes([0; 32]).child(&[n]))
        .collect()
}

fn meta(payload: &[u8]) -> Meta {
    Meta {
        codec: 1,
        payload_bytes: payload.len() as u64,
        hot_bytes: 4096,
        tokens: 32,
        fingerprint: fingerprint(),
    }
}

/// A process: its own disk and budget, and the store that it shares.
struct Process {
    disk: Arc<DiskStore>,
    budget: Budget,
    level: Arc<RemoteLevel>,
}

impl Process {
    fn start(store: Arc<dyn RemoteStore>, options: RemoteOptions) -> Self {
        let disk = DiskStore::open(
            Arc::new(FakeStorage::default()),
            DiskOptions::with_limit(1 << 20),
        )
        .unwrap();
        let budget = Budget::new(1 << 20);
        Self {
            level: Arc::new(RemoteLevel::start(store, &budget, options).unwrap()),
            disk: Arc::new(disk),
            budget,
        }
    }

    /// Stores block `n` on disk and offers it.
    fn offer(&self, n: u32) {
        let (key, payload) = (keys(n + 1)[n as usize], vec![n as u8; PAYLOAD_BYTES]);
        self.disk
            .put(Kind::Block, key, &meta(&payload), &payload)
            .unwrap();
        self.level.offer(key, fingerprint(), &self.disk);
    }

    /// How many of the first `count` blocks come back, each with its own bytes.
    fn fetch(&self, count: u32, now_ms: u64, deadline: Duration) -> usize {
        let run = Run {
            fingerprint: fingerprint(),
            keys: keys(count),
            max_payload_bytes: PAYLOAD_BYTES,
            deadline,
        };
        let got = self.level.fetch(run, now_ms, |index, found, payload| {
            assert_eq!(payload, vec![index as u8; PAYLOAD_BYTES]);
            assert_eq!(*found, meta(payload));
            true
        });
        assert_eq!(got.bytes, (got.blocks * PAYLOAD_BYTES) as u64);
        got.blocks
    }
}

fn inline(secret: u8) -> RemoteOptions {
    RemoteOptions {
        readers: 0,
        ..RemoteOptions::new([secret; 32])
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_one_process_wrote_another_reads_and_writes_no_more() {
    let store = Arc::new(FakeRemote::default());
    let one = Process::start(store.clone(), RemoteOptions::new([1; 32]));
    (0..40).for_each(|n| one.offer(n));
    assert!(one.level.flush(PATIENCE));
    let stats = one.level.stats();
    assert_eq!((stats.written_blocks, store.objects().len()), (40, 40));

    let other = Process::start(store.clone(), RemoteOptions::new([1; 32]));
    assert_eq!(other.fetch(50, 0, PATIENCE), 40);
    let stats = other.level.stats();
    assert_eq!((stats.hits, stats.misses, stats.damaged), (40, 1, 0));
    (0..40).for_each(|n| other.offer(n));
    assert!(other.level.flush(PATIENCE));
    let stats = other.level.stats();
    assert_eq!((stats.already_there, stats.written_blocks), (40, 0));
    // Reads that nobody waits for any more may still be ending.
    let end = Instant::now() + PATIENCE;
    while other.budget.charged() > 0 && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(other.budget.charged(), 0);

    // Without the secret nothing is believed.
    let stranger = Process::start(store, inline(2));
    assert_eq!(stranger.fetch(40, 0, PATIENCE), 0);
    assert_eq!(stranger.level.stats().damaged, 1);
}

#[test]
fn every_flipped_bit_and_every_cut_is_found_out() {
    let (key, payload) = (keys(1)[0], [7u8; 40]);
    let mac_key = mac_key(&[1; 32]);
    let mut object = [&[0; HEAD_BYTES][..], &payload].concat();
    seal(&mac_key, &key, &meta(&payload), &mut object);
    let open = |object: &[u8]| open(&mac_key, &key, &fingerprint(), object);
    assert_eq!(open(&object), Some(meta(&payload)));
    for bit in 0..object.len() * 8 {
        object[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(&object), None, "bit {bit}");
        object[bit / 8] ^= 1 << (bit % 8);
    }
    for cut in 0..object.len() {
        assert_eq!(open(&object[..cut]), None, "cut at {cut}");
    }
    object.push(0);
    assert_eq!(open(&object), None, "a byte more");
}

#[test]
fn the_golden_object_of_version_1_is_written() {
    let (key, payload) = (keys(1)[0], [7u8; 40]);
    let mut object = [&[0; HEAD_BYTES][..], &payload].concat();
    seal(&mac_key(&[1; 32]), &key, &meta(&payload), &mut object);
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1/remote-object");
    let golden = std::fs::read(&path).unwrap_or_default();
    assert!(
        golden == object,
        "{} differs from what is written: {object:02x?}",
        path.display()
    );
    let name = object_name(&key, &fingerprint());
    assert!(
        name.starts_with("v1/0303") && name.len() == 3 + 64 + 1 + 2 + 1 + 64,
        "{name}"
    );
}

#[test]
fn lies_cost_a_miss_each_and_then_the_store_is_left_alone() {
    let store = Arc::new(FakeRemote::default());
    let process = Process::start(store.clone(), inline(1));
    (0..3).for_each(|n| process.offer(n));
    let lies = [
        Lie::Flip(99),
        Lie::Flip(5000),
        Lie::Swap,
        Lie::Cut(0),
        Lie::Cut(150),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        store.lie(lie);
        assert_eq!(process.fetch(3, 0, PATIENCE), 0, "{lie:?}");
        assert_eq!(process.level.stats().damaged, n as u64 + 1);
        // A good answer between forgives.
        assert_eq!(process.fetch(3, 0, PATIENCE), 3);
    }
    store.lie(Lie::Deny);
    assert_eq!(process.fetch(3, 0, PATIENCE), 0);
    assert_eq!(process.level.stats().misses, 1);
    for _ in 0..breaker::FAILURES {
        store.lie(Lie::Flip(1));
        assert_eq!(process.fetch(3, 10, PATIENCE), 0);
    }
    let calls = store.calls();
    assert_eq!(process.fetch(3, 11, PATIENCE), 0);
    process.offer(4);
    assert_eq!(store.calls(), calls, "not asked at all");
    assert_eq!(process.level.stats().skipped, 2);
    assert_eq!(process.fetch(3, 10 + breaker::FIRST_PAUSE_MS, PATIENCE), 3);
}

#[test]
fn failures_open_the_breaker_for_reads_and_writes() {
    let store = Arc::new(FakeRemote::default());
    let process = Process::start(store.clone(), inline(1));
    process.offer(0);
    store.fail(2);
    store.time_out(1);
    process.offer(1);
    assert_eq!(process.fetch(1, 0, PATIENCE), 0);
    assert_eq!(process.fetch(1, 0, PATIENCE), 0);
    let stats = process.level.stats();
    assert_eq!(
        (stats.failed, stats.timed_out, stats.written_blocks),
        (2, 1, 1)
    );
    assert!(!process.level.is_available(999) && process.level.is_available(1000));
}

#[test]
fn a_stuck_store_is_waited_for_until_the_deadline_and_not_longer() {
    let store = Arc::new(FakeRemote::default());
    let process = Process::start(store.clone(), RemoteOptions::new([1; 32]));
    (0..3).for_each(|n| process.offer(n));
    assert!(process.level.flush(PATIENCE));
    store.set_stuck(true);
    let start = Instant::now();
    for _ in 0..breaker::FAILURES {
        assert_eq!(process.fetch(3, 0, Duration::from_millis(30)), 0);
    }
    assert_eq!(process.fetch(3, 0, PATIENCE), 0, "not asked any more");
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert_eq!(process.level.stats().timed_out, 3);
    // Offers do not wait either.
    (3..9).for_each(|n| process.offer(n));
    store.set_stuck(false);
    assert!(process.level.flush(PATIENCE));
    // The readers are free again once their calls have ended.
    let found = (1..200).any(|n| {
        std::thread::sleep(Duration::from_millis(5));
        process.fetch(3, 100_000 * n, PATIENCE) == 3
    });
    assert!(found, "{:?}", process.level.stats());
}

#[test]
fn a_caller_with_other_work_only_looks_at_what_has_come() {
    let store = Arc::new(FakeRemote::default());
    let process = Process::start(store.clone(), RemoteOptions::new([1; 32]));
    (0..20).for_each(|n| process.offer(n));
    assert!(process.level.flush(PATIENCE));
    store.set_stuck(true);
    let run = Run {
        fingerprint: fingerprint(),
        keys: keys(30),
        max_payload_bytes: PAYLOAD_BYTES,
        deadline: PATIENCE,
    };
    let mut reading = process.level.begin(run, 0).unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(reading.next(Duration::ZERO), Next::Later));
    }
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    store.set_stuck(false);
    let mut found = 0;
    loop {
        match reading.next(Duration::from_millis(5)) {
            Next::Block(object) => {
                assert_eq!(object.payload(), vec![found; PAYLOAD_BYTES]);
                found += 1;
            }
            Next::Later => assert!(start.elapsed() < PATIENCE),
            Next::Over => break,
        }
    }
    assert_eq!(found, 20);
    assert!(
        matches!(reading.next(Duration::ZERO), Next::Over),
        "and stays over"
    );
}

#[test]
fn too_many_offers_and_too_small_a_budget_cost_only_the_blocks() {
    let store = Arc::new(FakeRemote::default());
    let options = RemoteOptions {
        waiting_blocks: 4,
        ..RemoteOptions::new([1; 32])
    };
    let process = Process::start(store.clone(), options);
    store.set_stuck(true);
    (0..20).for_each(|n| process.offer(n));
    let dropped = process.level.stats().dropped_writes;
    assert!(
        (15..=16).contains(&dropped),
        "one under way, four wait: {dropped}"
    );
    store.set_stuck(false);
    assert!(process.level.flush(PATIENCE));
    assert_eq!(process.level.stats().written_blocks + dropped, 20);

    process.budget.set_limit(100);
    assert_eq!(process.fetch(1, 0, PATIENCE), 0);
    assert_eq!(
        process.level.stats().timed_out + process.level.stats().failed,
        0
    );
    process.budget.set_limit(1 << 20);
    assert_eq!(process.fetch(1, 0, PATIENCE), 1);
}

#[test]
fn a_folder_keeps_whole_objects() {
    let path = std::env::temp_dir().join(format!("neap-remote-{}", std::process::id()));
    let folder = Folder::open(&path).unwrap();
    let mut out = [0; 10];
    assert_eq!(folder.get("v1/a/b", &mut out).unwrap(), None);
    assert!(!folder.has("v1/a/b").unwrap());
    folder.put("v1/a/b", b"0123456789").unwrap();
    folder.put("v1/a/b", b"abcdefghij").unwrap();
    assert_eq!(folder.get("v1/a/b", &mut out).unwrap(), Some(10));
    assert_eq!(&out, b"abcdefghij");
    assert!(matches!(
        folder.get("v1/a/b", &mut out[..9]),
        Err(RemoteError::TooLarge { limit_bytes: 9 })
    ));
    assert!(folder.has("v1/a/b").unwrap());
    let files = std::fs::read_dir(path.join("v1/a")).unwrap().count();
    assert_eq!(files, 1, "nothing half-written is left");
    // Two processes over one folder.
    let store: Arc<dyn RemoteStore> = Arc::new(folder);
    let one = Process::start(Arc::clone(&store), RemoteOptions::new([1; 32]));
    (0..10).for_each(|n| one.offer(n));
    assert!(one.level.flush(PATIENCE));
    let other = Process::start(
        Arc::new(Folder::open(&path).unwrap()),
        RemoteOptions::new([1; 32]),
    );
    assert_eq!(other.fetch(20, 0, PATIENCE), 10);
    std::fs::remove_dir_all(&path).unwrap();
}
