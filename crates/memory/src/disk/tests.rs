use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::fake::FakeStorage;
use super::format::{Kind, segment_name};
use super::*;
use crate::budget::Budget;
use crate::hash::{BlockHash, Fingerprint};

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([3; 32])
}

fn key(n: u64) -> BlockHash {
    BlockHash::from_bytes([0; 32]).child(&[n as u32])
}

fn meta(bytes: usize) -> Meta {
    Meta {
        codec: 0,
        payload_bytes: bytes as u64,
        hot_bytes: bytes as u64,
        tokens: 32,
        fingerprint: fingerprint(),
    }
}

fn options() -> DiskOptions {
    DiskOptions {
        limit_bytes: 1 << 20,
        segment_bytes: 1 << 20,
    }
}

fn open(storage: &Arc<FakeStorage>, options: DiskOptions) -> DiskStore {
    DiskStore::open(Arc::clone(storage) as Arc<dyn Storage>, options).unwrap()
}

fn put(store: &DiskStore, n: u64, payload: &[u8]) -> Result<(), DiskError> {
    store.put(Kind::Block, key(n), &meta(payload.len()), payload)
}

fn get(store: &DiskStore, n: u64) -> Option<Vec<u8>> {
    let meta = store.meta(&key(n), &fingerprint())?;
    let mut payload = vec![0; meta.payload_bytes as usize];
    store
        .read(&key(n), &fingerprint(), &mut payload)
        .then_some(payload)
}

#[test]
fn what_was_put_is_read_also_after_opening_again() {
    let path = std::env::temp_dir().join(format!("neap-disk-{}", std::process::id()));
    let open = || DiskStore::open(Arc::new(Directory::open(&path).unwrap()), options()).unwrap();
    let store = open();
    put(&store, 1, &[1; 5000]).unwrap();
    put(&store, 2, &[2; 70]).unwrap();
    put(&store, 1, &[9; 64]).unwrap();
    put(&store, 3, &[3; 10]).unwrap();
    assert!(store.remove(&key(3)).unwrap());
    store.sync().unwrap();
    for store in [store, open()] {
        assert_eq!(get(&store, 1), Some(vec![9; 64]), "the last one counts");
        assert_eq!(get(&store, 2), Some(vec![2; 70]));
        assert_eq!(get(&store, 3), None);
        store.check_conservation().unwrap();
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn another_model_is_a_miss() {
    let storage = Arc::new(FakeStorage::default());
    let store = open(&storage, options());
    put(&store, 1, &[1; 10]).unwrap();
    let other = Fingerprint::from_bytes([4; 32]);
    assert!(store.meta(&key(1), &other).is_none());
    assert!(!store.read(&key(1), &other, &mut [0; 10]));
    assert!(!store.read(&key(1), &fingerprint(), &mut [0; 9]));
}

/// A small file of three records, and their payloads.
fn small_file() -> (String, Vec<u8>, Vec<Vec<u8>>) {
    let storage = Arc::new(FakeStorage::default());
    let store = open(&storage, options());
    let payloads: Vec<Vec<u8>> = (1..4u8).map(|n| vec![n; 20 + usize::from(n)]).collect();
    for (n, payload) in payloads.iter().enumerate() {
        put(&store, n as u64, payload).unwrap();
    }
    let (name, bytes) = storage.files().remove(0);
    (name, bytes, payloads)
}

#[test]
fn no_flipped_bit_is_served_and_one_costs_one_record() {
    let (name, bytes, payloads) = small_file();
    for bit in 0..bytes.len() as u64 * 8 {
        let storage = Arc::new(FakeStorage::with_files([(name.clone(), bytes.clone())]));
        assert!(storage.flip_bit(&name, bit));
        let store = open(&storage, options());
        let mut lost = 0;
        for (n, payload) in payloads.iter().enumerate() {
            match get(&store, n as u64) {
                Some(found) => assert_eq!(&found, payload, "bit {bit}"),
                None => lost += 1,
            }
        }
        assert!(
            lost <= if bit < 512 { 3 } else { 1 },
            "bit {bit} cost {lost} records"
        );
        store.check_conservation().unwrap();
    }
}

#[test]
fn a_torn_record_is_not_relied_on() {
    let storage = Arc::new(FakeStorage::default());
    let store = open(&storage, options());
    put(&store, 1, &[1; 9000]).unwrap();
    put(&store, 2, &[2; 9000]).unwrap();
    assert!(store.is_sound(&key(1), &fingerprint()), "written here");
    drop(store);
    // A power cut left the head and the length, not all of the payload.
    let (name, _) = storage.files().remove(0);
    storage.write_at(&name, 8000, &[0; 64]).unwrap();
    let store = open(&storage, options());
    assert!(
        store.meta(&key(1), &fingerprint()).is_some(),
        "not read yet"
    );
    assert!(!store.is_sound(&key(1), &fingerprint()));
    assert!(store.meta(&key(1), &fingerprint()).is_none(), "forgotten");
    assert!(store.is_sound(&key(2), &fingerprint()));
    assert!(!store.is_sound(&key(3), &fingerprint()), "never there");
    put(&store, 1, &[1; 9000]).unwrap();
    assert!(store.is_sound(&key(1), &fingerprint()));
}

#[test]
fn a_torn_tail_costs_only_itself() {
    let (name, bytes, payloads) = small_file();
    for cut in 0..bytes.len() {
        let storage = Arc::new(FakeStorage::with_files([(
            name.clone(),
            bytes[..cut].to_vec(),
        )]));
        let store = open(&storage, options());
        for (n, payload) in payloads.iter().enumerate() {
            let end = 64 + (n + 1) * 192;
            let found = get(&store, n as u64);
            assert_eq!(
                found.as_ref(),
                (cut >= end).then_some(payload),
                "cut at {cut}"
            );
        }
        // What comes after goes into a segment of its own.
        put(&store, 9, &[9; 9]).unwrap();
        assert_eq!(get(&open(&storage, options()), 9), Some(vec![9; 9]));
    }
}

#[test]
fn the_golden_file_of_version_1_is_read_and_written() {
    let (name, bytes, payloads) = small_file();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/v1")
        .join(&name);
    let golden = std::fs::read(&path).unwrap_or_default();
    assert!(
        golden == bytes,
        "{} differs from what is written",
        path.display()
    );
    let store = open(
        &Arc::new(FakeStorage::with_files([(name, golden)])),
        options(),
    );
    for (n, payload) in payloads.iter().enumerate() {
        assert_eq!(get(&store, n as u64).as_ref(), Some(payload));
    }
}

#[test]
fn an_unknown_version_is_left_alone() {
    let (name, mut bytes, _) = small_file();
    bytes[8] = 2;
    let storage = Arc::new(FakeStorage::with_files([(name.clone(), bytes)]));
    let store = open(&storage, options());
    assert_eq!(store.stats().segments, 0);
    put(&store, 1, &[1]).unwrap();
    assert_eq!(storage.files().len(), 2);
    assert!(storage.files().iter().any(|(n, _)| *n == name));
}

#[test]
fn the_limit_holds_and_pins_and_uses_survive() {
    let storage = Arc::new(FakeStorage::default());
    let options = DiskOptions {
        limit_bytes: 64 << 10,
        segment_bytes: 8 << 10,
    };
    let store = open(&storage, options);
    store.pin(key(0));
    for n in 0..400 {
        put(&store, n, &[n as u8; 1000]).unwrap();
        assert!(
            store.stats().bytes <= options.limit_bytes,
            "{:?}",
            store.stats()
        );
        assert_eq!(get(&store, 5).is_some(), n >= 5, "read all the time");
    }
    assert_eq!(get(&store, 0), Some(vec![0; 1000]), "pinned");
    assert_eq!(get(&store, 100), None, "neither");
    store.check_conservation().unwrap();
    assert!(store.stats().evicted > 200 && store.stats().kept_on > 10);
    let bytes: usize = storage.files().iter().map(|f| f.1.len()).sum();
    assert_eq!(bytes as u64, store.stats().bytes);
    for n in 0..400 {
        store.pin(key(n));
    }
    let mut refused = 0;
    for n in 1000..1100 {
        store.pin(key(n));
        refused += u32::from(matches!(
            put(&store, n, &[0; 1000]),
            Err(DiskError::Full { .. })
        ));
    }
    assert!(refused > 50, "what is pinned is not pushed out");
    assert!(matches!(
        put(&store, 1, &[0; 70 << 10]),
        Err(DiskError::TooLarge { .. })
    ));
}

#[test]
fn what_is_pinned_outlives_a_power_cut_while_segments_go() {
    let storage = Arc::new(FakeStorage::default());
    let options = DiskOptions {
        limit_bytes: 64 << 10,
        segment_bytes: 8 << 10,
    };
    let store = open(&storage, options);
    store.pin(key(0));
    put(&store, 0, &[7; 1000]).unwrap();
    store.sync().unwrap();
    for n in 1..300 {
        put(&store, n, &[n as u8; 1000]).unwrap();
        // Nothing that was not synced is left.
        let after = open(&Arc::new(storage.after_power_cut(|_| 1)), options);
        assert_eq!(get(&after, 0), Some(vec![7; 1000]), "after {n} more");
    }
    assert!(store.stats().kept_on > 3, "it was moved");
}

#[test]
fn a_full_disk_is_an_error_and_then_goes_on() {
    let storage = Arc::new(FakeStorage::default());
    let store = open(&storage, options());
    put(&store, 1, &[1; 100]).unwrap();
    for room in 0..400 {
        storage.set_room(Some(room));
        let result = put(&store, 2, &[2; 100]);
        assert_eq!(get(&store, 2).is_some(), result.is_ok());
        storage.set_room(None);
        assert_eq!(get(&store, 1), Some(vec![1; 100]));
        put(&store, 3, &[room as u8; 50]).unwrap();
        assert_eq!(
            get(&open(&storage, options()), 3),
            Some(vec![room as u8; 50])
        );
        let _ = store.remove(&key(2)).unwrap();
    }
}

#[test]
fn a_failed_sync_acknowledges_nothing_later() {
    let storage = Arc::new(FakeStorage::default());
    let store = open(&storage, options());
    put(&store, 1, &[1; 10]).unwrap();
    store.sync().unwrap();
    put(&store, 2, &[2; 10]).unwrap();
    storage.fail_syncs(1);
    assert!(store.sync().is_err());
    assert_eq!((get(&store, 1), get(&store, 2)), (Some(vec![1; 10]), None));
    store.sync().unwrap();
    put(&store, 3, &[3; 10]).unwrap();
    store.sync().unwrap();
    let after = open(&Arc::new(storage.after_power_cut(|_| 1)), options());
    assert_eq!(
        (get(&after, 1), get(&after, 3)),
        (Some(vec![1; 10]), Some(vec![3; 10]))
    );
}

#[test]
fn read_ahead_is_in_order_bounded_and_stops() {
    let storage = Arc::new(FakeStorage::default());
    let store = Arc::new(open(&storage, options()));
    for n in 0..50 {
        put(&store, n, &[n as u8; 4096]).unwrap();
    }
    let budget = Budget::new(4 * 4096);
    let keys: Vec<_> = (0..60).map(key).collect();
    let fetched: Vec<_> = Prefetch::start(&store, &budget, fingerprint(), &keys, 4)
        .unwrap()
        .map(|f| f.payload.map(|(_, bytes)| bytes[7]))
        .collect();
    let expected: Vec<_> = (0..60u8).map(|n| (n < 50).then_some(n)).collect();
    assert_eq!(fetched, expected);
    assert_eq!(budget.charged(), 0);
    assert!(budget.snapshot().peak_charged <= 4 * 4096);
    for taken in 0..5 {
        let mut some = Prefetch::start(&store, &budget, fingerprint(), &keys, 3).unwrap();
        assert_eq!(some.by_ref().take(taken).count(), taken);
    }
    assert_eq!(budget.charged(), 0);
}

#[derive(Clone, Debug)]
enum Op {
    Put(u64, usize),
    Remove(u64),
    Read(u64),
    Sync,
    Reopen,
    PowerCut(u64),
    Flip(u64),
    FailSync,
    Room(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..12u64, 1..3000usize).prop_map(|(n, bytes)| Op::Put(n, bytes)),
        2 => (0..12u64).prop_map(Op::Remove),
        6 => (0..12u64).prop_map(Op::Read),
        3 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::PowerCut),
        1 => any::<u64>().prop_map(Op::Flip),
        1 => Just(Op::FailSync),
        1 => (0..4000u64).prop_map(Op::Room),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// The store against a map of versions. A read gives a version that was put under that key and not
    /// superseded by an acknowledged one; without faults it gives the last one.
    #[test]
    fn agrees_with_a_naive_map(
        ops in prop::collection::vec(op(), 1..80),
        limit in prop_oneof![Just(1u64 << 20), Just(16u64 << 10)],
    ) {
        let mut pair = Pair::new(limit);
        for (step, op) in ops.into_iter().enumerate() {
            pair.run(op, step as u8)?;
            pair.store.check_conservation().map_err(TestCaseError::fail)?;
        }
    }
}

/// A store and the naive map that it is compared with.
struct Pair {
    options: DiskOptions,
    storage: Arc<FakeStorage>,
    store: DiskStore,
    /// Per key: every version since the last acknowledged state, oldest first; `None` is absence.
    versions: HashMap<u64, Vec<Option<u8>>>,
    /// A fault, or too small a limit, may have cost records.
    may_miss: bool,
}

impl Pair {
    fn new(limit_bytes: u64) -> Self {
        let options = DiskOptions {
            limit_bytes,
            segment_bytes: 6 << 10,
        };
        let storage = Arc::new(FakeStorage::default());
        Self {
            options,
            store: open(&storage, options),
            storage,
            versions: HashMap::new(),
            may_miss: limit_bytes < 1 << 20,
        }
    }

    fn versions_of(&mut self, n: u64) -> &mut Vec<Option<u8>> {
        self.versions.entry(n).or_insert_with(|| vec![None])
    }

    fn run(&mut self, op: Op, mark: u8) -> Result<(), TestCaseError> {
        match op {
            Op::Put(n, bytes) => match put(&self.store, n, &vec![mark; bytes]) {
                Ok(()) => self.versions_of(n).push(Some(mark)),
                Err(_) => self.may_miss = true,
            },
            Op::Remove(n) => {
                self.may_miss |= self.store.remove(&key(n)).is_err();
                self.versions_of(n).push(None);
            }
            Op::Sync if self.store.sync().is_ok() => {
                for all in self.versions.values_mut() {
                    all.drain(..all.len() - 1);
                }
            }
            Op::Sync => self.may_miss = true,
            Op::Reopen => self.start_from(self.storage.after_kill()),
            Op::PowerCut(seed) => return self.cut_power(seed),
            Op::Flip(seed) => self.flip(seed),
            Op::FailSync => self.storage.fail_syncs(1),
            Op::Room(bytes) => self.storage.set_room((bytes < 2000).then_some(bytes)),
            Op::Read(n) => return self.check_read(n),
        }
        Ok(())
    }

    fn start_from(&mut self, storage: FakeStorage) {
        self.storage = Arc::new(storage);
        self.store = open(&self.storage, self.options);
    }

    fn flip(&mut self, seed: u64) {
        self.may_miss = true;
        let files = self.storage.files();
        let file = files.get(seed as usize % files.len().max(1));
        if let Some((name, bytes)) = file.filter(|f| !f.1.is_empty()) {
            self.storage
                .flip_bit(name, seed / 7 % (bytes.len() as u64 * 8));
        }
    }

    /// Any version since the acknowledged one may have survived; from now on it counts.
    fn cut_power(&mut self, seed: u64) -> Result<(), TestCaseError> {
        let mut state = seed | 1;
        self.start_from(self.storage.after_power_cut(|below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (state >> 33) % below
        }));
        for (n, all) in &mut self.versions {
            let found = get(&self.store, *n).and_then(|p| p.first().copied());
            prop_assert!(
                self.may_miss || all.contains(&found),
                "key {n}: {found:?} is none of {all:?}"
            );
            *all = vec![found];
        }
        Ok(())
    }

    fn check_read(&mut self, n: u64) -> Result<(), TestCaseError> {
        let found = get(&self.store, n);
        let may_miss = self.may_miss;
        let all = self.versions_of(n);
        match found {
            Some(payload) => {
                prop_assert!(payload.windows(2).all(|w| w[0] == w[1]), "mixed payload");
                if let Some(&mark) = payload.first() {
                    let is_known = all.contains(&Some(mark)) || may_miss;
                    prop_assert!(is_known, "{mark} is none of {all:?}");
                }
            }
            None => prop_assert!(may_miss || all.contains(&None), "{n} is gone"),
        }
        Ok(())
    }
}

#[test]
#[ignore = "writes the golden file: run once per version, by hand"]
fn write_golden_file() {
    let (name, bytes, _) = small_file();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
    assert_eq!(segment_name(0), "seg-0000000000000000.neap");
}
