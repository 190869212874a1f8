use std::sync::Arc;

use super::*;
use crate::budget::Budget;
use crate::cache::CacheOptions;
use crate::codec::fake;
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, DiskStore, Storage};
use crate::governor::Occasion;
use crate::hash::{Fingerprint, Namespace};
use crate::level::KvQuality;
use crate::pool::{KvPool, Window};
use crate::session::{KeepOptions, Sessions};

const BLOCK_TOKENS: usize = 32;
/// As of Gemma 3 with six layers: five have a window.
const LAYER_BYTES: usize = 16 << 10;
const BLOCK_BYTES: usize = 6 * LAYER_BYTES;
const WINDOW: Window = Window {
    tokens: 512,
    head_bytes: LAYER_BYTES,
};

struct World {
    budget: Budget,
    pool: KvPool,
    disk: Option<Arc<DiskStore>>,
    cache: KvCache,
    tenant: Namespace,
}

impl World {
    fn new(quality: KvQuality) -> Self {
        let storage = Arc::new(FakeStorage::default()) as Arc<dyn Storage>;
        let disk = DiskStore::open(storage, DiskOptions::with_limit(1 << 30)).unwrap();
        Self::above(quality, Some(Arc::new(disk)))
    }

    fn above(quality: KvQuality, disk: Option<Arc<DiskStore>>) -> Self {
        let budget = Budget::new(u64::MAX);
        let pool = KvPool::with_window(&budget, BLOCK_BYTES, BLOCK_TOKENS, Some(WINDOW));
        let fingerprint = Fingerprint::of_parts(&[("model", b"windowed")]);
        let options = CacheOptions {
            disk: disk.clone(),
            quantized: fake::levels_and_packed(),
            ..CacheOptions::new(fingerprint)
        };
        Self {
            cache: KvCache::new(&pool, options).unwrap(),
            tenant: Namespace::new(&[1; 32], "t", &fingerprint).with_quality(quality),
            budget,
            pool,
            disk,
        }
    }

    /// A table that holds `tokens`, computed from where the cache ends, and how many that had.
    fn run(&mut self, tokens: &[u32]) -> (BlockTable, usize) {
        let mut table = BlockTable::new(&self.pool);
        let known = &tokens[..tokens.len() - 1];
        let found = self.cache.attach(&self.tenant, known, &mut table, 0);
        self.check(&table, &tokens[..found]);
        table.reserve(tokens.len() - found).unwrap();
        for (t, &token) in tokens.iter().enumerate().skip(found) {
            let block = table.block_mut(t / BLOCK_TOKENS);
            block[t % BLOCK_TOKENS * 8..][..8].fill(token as u8);
            block[WINDOW.head_bytes + t % BLOCK_TOKENS * 8..][..8].fill(!token as u8);
        }
        table.advance(tokens.len() - found);
        self.cache.insert(&self.tenant, tokens, &mut table, 0);
        self.check(&table, tokens);
        (table, found)
    }

    /// Every token reads right as the next one sees it; blocks of the fake levels keep the bytes that are looked at.
    fn check(&self, table: &BlockTable, tokens: &[u32]) {
        table.check_conservation().unwrap();
        self.cache.check_conservation().unwrap();
        for (t, &token) in tokens.iter().enumerate() {
            let view = table.view(t / BLOCK_TOKENS);
            let stride = match view.level {
                Level::Int8 => 2,
                Level::Int4 => 4,
                _ => 1,
            };
            let slot = t % BLOCK_TOKENS * 8;
            assert_eq!(view.bytes[slot / stride], token as u8, "token {t}");
            if t + WINDOW.tokens > tokens.len() {
                let tail = (WINDOW.head_bytes + slot) / stride;
                assert_eq!(view.bytes[tail], !token as u8, "token {t} in the window");
            }
        }
    }

    fn trim(&mut self, which: Trim, table: &mut BlockTable) -> u64 {
        let freed = self.cache.trim_running(u64::MAX, which, &mut [table]);
        table.check_conservation().unwrap();
        self.cache.check_conservation().unwrap();
        freed
    }
}

fn talk(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|i| seed * 100_000 + i * 7 % 5003).collect()
}

#[test]
fn a_long_sequence_keeps_its_window_and_a_sixth_of_the_rest() {
    let mut world = World::new(KvQuality::Exact);
    let before = world.budget.charged();
    let tokens = talk(1, 8192);
    let (mut table, _) = world.run(&tokens);
    assert_eq!(world.budget.charged() - before, 256 * BLOCK_BYTES as u64);
    world.trim(Trim::Unbranched, &mut table);
    world.check(&table, &tokens);
    // The window and the slack are 18 blocks, and the next token is in none of them yet.
    assert_eq!(table.trimmed_blocks(), 256 - 18);
    let kv = (18 * BLOCK_BYTES + 238 * LAYER_BYTES) as u64;
    assert_eq!(world.budget.charged() - before, kv);
    assert!(kv as f64 / (256 * BLOCK_BYTES) as f64 <= 0.226);
    assert_eq!(world.trim(Trim::All, &mut table), 0);
}

#[test]
fn a_conversation_is_found_where_it_ended_and_not_before() {
    let mut world = World::new(KvQuality::Exact);
    let mut tokens = talk(2, 3000);
    let (mut table, _) = world.run(&tokens);
    world.trim(Trim::Unbranched, &mut table);
    drop(table);
    // Asked for again, as after a preemption.
    assert_eq!(world.run(&tokens).1, 2999);
    let edited = [&tokens[..2000], &talk(3, 900)].concat();
    let forecast = world.cache.forecast(&world.tenant, &edited);
    assert_eq!(
        forecast.tokens, 0,
        "block 61 and those before it are trimmed"
    );
    let (table, found) = world.run(&edited);
    assert_eq!(found, 0);
    // What was computed anew is whole again, for the edited one and for that which was trimmed.
    assert_eq!(table.trimmed_blocks(), 0);
    drop(table);
    assert_eq!(world.run(&edited[..1500]).1, 1499);
    tokens.extend(talk(4, 500));
    assert_eq!(world.run(&tokens).1, 3000);
    assert_eq!(world.cache.forecast(&world.tenant, &tokens).tokens, 3500);
}

#[test]
fn where_two_part_a_window_is_kept_while_there_is_something_else() {
    let mut world = World::new(KvQuality::Exact);
    let system = talk(5, 2048);
    let first = [&system[..], &talk(6, 3000)].concat();
    let second = [&system[..], &talk(7, 3000)].concat();
    let (mut table, _) = world.run(&first);
    let (other, found) = world.run(&second);
    assert_eq!(found, 2048);
    drop(other);
    world.trim(Trim::Unbranched, &mut table);
    // Where they part, 64 blocks from the start, 18 are whole; at the end, another 18, and one that is not full.
    let whole = |table: &BlockTable| table.len_blocks() - table.trimmed_blocks();
    assert_eq!(whole(&table), 2 * 18 + 1);
    assert_eq!(world.run(&[&system[..], &[1, 2, 3]].concat()).1, 2048);
    // A sequence that runs gets its room.
    world.trim(Trim::All, &mut table);
    assert_eq!(whole(&table), 18 + 1);
    assert_eq!(world.run(&[&system[..], &[4, 5, 6]].concat()).1, 0);
}

#[test]
fn what_another_sequence_reads_whole_stays() {
    let mut world = World::new(KvQuality::Exact);
    let tokens = talk(8, 2000);
    let (short, _) = world.run(&tokens[..1000]);
    let (mut long, found) = world.run(&tokens);
    assert_eq!(found, 1000);
    // The short one is not known: what both claim stays.
    world.trim(Trim::All, &mut long);
    assert!(long.blocks()[..31].iter().all(|block| !block.is_trimmed()));
    let mut short = short;
    let mut tables = [&mut short, &mut long];
    world.cache.trim_running(u64::MAX, Trim::All, &mut tables);
    world.check(&short, &tokens[..1000]);
    world.check(&long, &tokens);
    assert!(
        long.blocks()[20..31]
            .iter()
            .all(|block| !block.is_trimmed())
    );
    assert!(short.trimmed_blocks() > 0 && short.trimmed_blocks() < long.trimmed_blocks());
}

#[test]
fn blocks_sink_and_are_stored_trimmed() {
    for quality in KvQuality::ALL {
        let mut world = World::new(quality);
        let tokens = talk(9, 3001);
        let (mut table, _) = world.run(&tokens);
        let level = quality.lowest(true);
        let full = &tokens[..93 * BLOCK_TOKENS];
        let sinkable = table.sinkable_blocks();
        world
            .cache
            .sink(&world.tenant, full, &mut table, sinkable, level);
        let trimmed = world.trim(Trim::All, &mut table);
        assert!(trimmed > 0 && table.trimmed_blocks() > 70);
        world.check(&table, &tokens);
        drop(table);
        // Down to disk, or packed, and up again.
        for occasion in [Occasion::Shrink, Occasion::Idle] {
            match occasion {
                Occasion::Idle => {
                    world.cache.sink_unused(u64::MAX, 1000);
                }
                _ => {
                    world.cache.free(u64::MAX, occasion, 1000);
                    assert_eq!(world.cache.freeable_bytes(), 0);
                }
            }
            let (table, found) = world.run(&tokens);
            assert!(found >= 2976, "{quality}: {found}");
            assert!(table.trimmed_blocks() > 70, "{quality}");
        }
        assert_eq!(world.cache.stats().failed_blocks, 0);
    }
}

#[test]
fn unused_blocks_are_trimmed_before_they_are_let_go_of() {
    let mut world = World::above(KvQuality::Exact, None);
    let tokens = talk(10, 4096);
    drop(world.run(&tokens));
    let whole = world.cache.freeable_bytes();
    // Blocks this small would pack sooner than a tenth of a second is risked.
    world.cache.costs_mut().recompute.per_token_us = 100.0;
    world.cache.free(whole / 2, Occasion::Admission, 1000);
    let stats = world.cache.stats();
    assert!(stats.trimmed_blocks > 60, "{stats:?}");
    assert_eq!(
        stats.dropped_blocks + stats.spilled_blocks + stats.packed_blocks,
        0
    );
    assert_eq!(world.run(&tokens).1, 4095);
}

#[test]
fn a_session_that_cannot_be_gone_on_with_is_not_acknowledged() {
    let mut world = World::new(KvQuality::Exact);
    let fingerprint = Fingerprint::of_parts(&[("model", b"windowed")]);
    let mut sessions = Sessions::open(world.disk.as_ref().unwrap(), fingerprint, BLOCK_TOKENS);
    let tokens = talk(11, 4000);
    let (mut table, _) = world.run(&tokens);
    world.trim(Trim::All, &mut table);
    let mut save = |world: &mut World, name: &str, tokens: &[u32]| {
        let session = (&world.tenant, name, tokens);
        sessions
            .save(&mut world.cache, session, KeepOptions::default(), 0)
            .is_ok()
    };
    assert!(save(&mut world, "whole", &tokens));
    assert!(!save(&mut world, "cut", &tokens[..1984]));
    drop(table);
    // Computed anew, it is whole, and the trimmed records are written over.
    assert_eq!(world.run(&tokens[..1984]).1, 0);
    assert!(save(&mut world, "cut", &tokens[..1984]));
    // A whole record stays when the block is trimmed again.
    let (mut table, found) = world.run(&tokens);
    assert_eq!(found, 3999);
    world.trim(Trim::All, &mut table);
    drop(table);
    world.cache.free(u64::MAX, Occasion::Shrink, 1000);
    assert_eq!(world.run(&tokens[..1984]).1, 1983);
}
