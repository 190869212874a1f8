use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::cache::CacheOptions;
use crate::costs::LinearCost;
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, DiskStore};
use crate::governor::Occasion;
use crate::remote::fake::FakeRemote;
use crate::remote::{RemoteLevel, RemoteOptions, RemoteStore};
use crate::{Budget, Fingerprint, KvPool};

const BLOCK_TOKENS: usize = 4;
const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 40;

struct Process {
    pool: KvPool,
    cache: KvCache,
    tenant: Namespace,
    storage: Arc<FakeStorage>,
}

fn start(store: Option<&Arc<FakeRemote>>, readers: usize) -> Process {
    let budget = Budget::new(200 * BLOCK_BYTES as u64);
    let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
    let remote = store.map(|store| {
        let options = RemoteOptions {
            readers,
            ..RemoteOptions::new([1; 32])
        };
        let store = Arc::clone(store) as Arc<dyn RemoteStore>;
        Arc::new(RemoteLevel::start(store, &budget, options).unwrap())
    });
    let storage = Arc::new(FakeStorage::default());
    let disk = DiskStore::open(Arc::clone(&storage) as _, DiskOptions::with_limit(16 << 20));
    let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
    let options = CacheOptions {
        disk: Some(Arc::new(disk.unwrap())),
        remote,
        ..CacheOptions::new(fingerprint)
    };
    Process {
        cache: KvCache::new(&pool, options).unwrap(),
        pool,
        tenant: Namespace::new(&[1; 32], "a", &fingerprint),
        storage,
    }
}

fn talk() -> Vec<u32> {
    (0..(BLOCKS * BLOCK_TOKENS) as u32 + 2)
        .map(|t| t * 7 % 251)
        .collect()
}

/// A token's bytes. They do not pack, so that a stored block takes as much as a hot one.
fn noise(token: u32, i: usize) -> u8 {
    let mixed = (token * 1024 + i as u32).wrapping_mul(0x9E37_79B1);
    ((mixed ^ (mixed >> 15)).wrapping_mul(0x85EB_CA6B) >> 24) as u8
}

fn compute(table: &mut BlockTable, tokens: &[u32], end: usize) {
    let begin = table.len_tokens();
    table.reserve(end - begin).unwrap();
    for (t, &token) in tokens.iter().enumerate().take(end).skip(begin) {
        let bytes = &mut table.block_mut(t / BLOCK_TOKENS)[t % BLOCK_TOKENS * 1024..][..1024];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = noise(token, i);
        }
    }
    table.advance(end - begin);
}

fn check(table: &BlockTable, tokens: &[u32]) {
    for (t, &token) in tokens[..table.len_tokens()].iter().enumerate() {
        let block = table.block(t / BLOCK_TOKENS);
        let read = &block[t % BLOCK_TOKENS * 1024..][..1024];
        let is_right = |(i, &byte): (usize, &u8)| byte == noise(token, i);
        assert!(read.iter().enumerate().all(is_right), "token {t}");
    }
}

impl Process {
    /// Computes all of it and keeps it on disk alone; the store gets it too, if there is one.
    fn learn(&mut self, tokens: &[u32]) {
        let mut table = BlockTable::new(&self.pool);
        compute(&mut table, tokens, tokens.len());
        self.cache.insert(&self.tenant, tokens, &mut table, 1);
        drop(table);
        assert_eq!(self.cache.store(&self.tenant.clone(), tokens), tokens.len());
        self.cache.free(u64::MAX, Occasion::Shrink, 1);
    }

    /// Runs a prompt from both ends, `most_blocks` loaded for each turn of computing; (computed, loaded) tokens.
    fn run(&mut self, tokens: &[u32], most_blocks: usize) -> (usize, usize) {
        let mut table = BlockTable::new(&self.pool);
        let known = &tokens[..tokens.len() - 1];
        let begun = self
            .cache
            .attach_or_load(&self.tenant, known, &mut table, 2);
        let mut incoming = begun.expect("loading alone is not sooner");
        let mut computed = 0;
        while self
            .cache
            .attach_incoming(&mut incoming, &mut table, most_blocks)
        {
            check(&table, tokens);
            let before = table.len_tokens();
            let end = self.cache.meeting_tokens(&incoming, before).unwrap();
            assert!(end > before && end.is_multiple_of(BLOCK_TOKENS));
            compute(&mut table, tokens, end);
            computed += end - before;
        }
        let loaded = table.len_tokens() - computed;
        drop(incoming);
        compute(&mut table, tokens, tokens.len());
        self.cache.insert(&self.tenant, tokens, &mut table, 3);
        check(&table, tokens);
        drop(table);
        self.cache.check_conservation().unwrap();
        (computed, loaded)
    }

    fn set_remote_cost(&mut self, us_a_block: f64) {
        let us_a_byte = us_a_block / BLOCK_BYTES as f64;
        self.cache.costs_mut().remote_read = LinearCost::guess(us_a_byte);
    }

    fn set_disk_cost(&mut self, us_a_block: f64) {
        let us_a_byte = us_a_block / BLOCK_BYTES as f64;
        self.cache.costs_mut().disk_read = LinearCost::guess(us_a_byte);
    }
}

/// A block costs 20 ms to compute.
fn slow_disk(us_a_block: f64) -> Process {
    let mut process = start(None, 0);
    process.cache.fix_costs();
    process.learn(&talk());
    process.set_disk_cost(us_a_block);
    process
}

#[test]
fn both_ends_meet_where_they_end_together() {
    // As slow as computing: a half each. Three times as fast: a quarter is computed.
    for (us_a_block, computed_blocks) in [(20_000.0, 20), (6_667.0, 10)] {
        let mut process = slow_disk(us_a_block);
        // What was packed to be stored takes less than a hot block.
        let table = &mut BlockTable::new(&process.pool);
        let known = &talk()[..BLOCKS * BLOCK_TOKENS];
        let tenant = process.tenant;
        let incoming = process
            .cache
            .attach_or_load(&tenant, known, table, 2)
            .unwrap();
        let bytes = |slot: &Slot| match slot {
            Slot::Expected(Source::Disk, bytes) => *bytes,
            _ => panic!("{slot:?}"),
        };
        let stored: u64 = incoming.slots.iter().map(bytes).sum();
        let hot = (BLOCKS * BLOCK_BYTES) as u64;
        process.set_disk_cost(us_a_block * hot as f64 / stored as f64);
        let meeting = process.cache.meeting_tokens(&incoming, 0).unwrap() / BLOCK_TOKENS;
        assert!(meeting.abs_diff(computed_blocks) <= 1, "{meeting}");
    }
}

#[test]
fn what_is_quickly_loaded_is_loaded() {
    let mut process = slow_disk(1.0);
    let mut table = BlockTable::new(&process.pool);
    let tokens = talk();
    let incoming = process
        .cache
        .attach_or_load(&process.tenant, &tokens, &mut table, 2);
    assert!(incoming.is_none() && table.len_tokens() == tokens.len());
}

#[test]
fn a_prefix_from_both_ends_is_right_at_every_pace() {
    for most_blocks in [0, 1, 2, 7, 100] {
        let mut process = slow_disk(20_000.0);
        let (computed, loaded) = process.run(&talk(), most_blocks);
        assert_eq!(computed + loaded, BLOCKS * BLOCK_TOKENS, "{most_blocks}");
        assert_eq!(loaded == 0, most_blocks == 0);
        assert_eq!(computed == 0, most_blocks == 100);
        // All of it is in RAM now.
        let mut table = BlockTable::new(&process.pool);
        let again = process
            .cache
            .attach_or_load(&process.tenant, &talk(), &mut table, 4);
        assert!(again.is_none() && table.len_tokens() == talk().len());
    }
}

#[test]
fn blocks_that_do_not_come_are_computed() {
    let mut process = slow_disk(20_000.0);
    for (name, bytes) in process.storage.files() {
        for eighth in 0..8 {
            process
                .storage
                .flip_bit(&name, bytes.len() as u64 * eighth + 999);
        }
    }
    let (computed, loaded) = process.run(&talk(), 100);
    assert!(loaded > 0 && computed + loaded == BLOCKS * BLOCK_TOKENS);
    assert!(process.cache.stats().failed_blocks > 0);
    process.storage.fail_reads(1000);
    process.cache.free(u64::MAX, Occasion::Shrink, 5);
    process.set_disk_cost(20_000.0);
    assert_eq!(process.run(&talk(), 100).1, 0);
}

#[test]
fn what_is_let_go_of_on_the_way_gives_its_room_back() {
    let mut process = slow_disk(20_000.0);
    let before = process.pool.budget().charged();
    let mut table = BlockTable::new(&process.pool);
    let known = talk();
    let mut incoming = process
        .cache
        .attach_or_load(&process.tenant, &known, &mut table, 2)
        .unwrap();
    assert!(process.cache.attach_incoming(&mut incoming, &mut table, 7));
    assert_eq!(incoming.landed_blocks(), 7);
    assert_eq!(incoming.freeable_bytes(), 7 * BLOCK_BYTES as u64);
    assert!(process.pool.budget().charged() >= before + 7 * BLOCK_BYTES as u64);
    drop(incoming);
    assert_eq!(process.pool.budget().charged(), before);
}

#[test]
fn a_thread_loads_while_the_caller_computes() {
    let store = Arc::new(FakeRemote::default());
    let mut one = start(Some(&store), 0);
    // The store has the first three quarters.
    let stored = &talk()[..BLOCKS * 3 / 4 * BLOCK_TOKENS];
    one.learn(stored);
    for readers in [0, 4] {
        let mut other = start(Some(&store), readers);
        let mut table = BlockTable::new(&other.pool);
        let tokens = talk();
        let calls = store.calls();
        other.set_remote_cost(10_000.0);
        let begun = other
            .cache
            .attach_or_load(&other.tenant, &tokens, &mut table, 2);
        let mut incoming = begun.expect("the store is asked");
        let mut computed = 0;
        for turn in 0.. {
            assert!(turn < 10_000, "it comes to an end");
            if !other.cache.attach_incoming(&mut incoming, &mut table, 0) {
                break;
            }
            // Slower than the thread: nothing is computed before something has come, but for one block.
            if turn == 0 || incoming.landed_blocks() == 0 && incoming.loader.is_none() {
                let end = table.len_tokens() + BLOCK_TOKENS;
                compute(&mut table, &tokens, end);
                computed += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        check(&table, &tokens);
        assert_eq!(table.len_tokens(), stored.len(), "{readers}");
        assert!(computed <= 1, "all may have come before the first turn");
        // Its 30 blocks, and a search for the last of them.
        let calls = store.calls() - calls;
        assert!((30..=37).contains(&calls), "{calls}");
        assert_eq!(
            other.cache.stats().remote_tokens as usize,
            stored.len() - computed * BLOCK_TOKENS
        );
        assert!(other.cache.costs().remote_read.observations > 0);
    }
}

#[test]
fn a_store_that_has_nothing_is_asked_once() {
    let store = Arc::new(FakeRemote::default());
    let mut process = start(Some(&store), 2);
    process.set_remote_cost(10_000.0);
    let mut table = BlockTable::new(&process.pool);
    let begun = process
        .cache
        .attach_or_load(&process.tenant, &talk(), &mut table, 2);
    let mut incoming = begun.unwrap();
    for _ in 0..10_000 {
        if !process.cache.attach_incoming(&mut incoming, &mut table, 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(store.calls(), 1);
    assert_eq!(process.cache.meeting_tokens(&incoming, 0), None);
}
