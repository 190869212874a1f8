use std::sync::Arc;

use super::super::{CacheOptions, KvCache};
use super::*;
use crate::budget::Budget;
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, DiskStore, Storage};
use crate::governor::Occasion;
use crate::hash::{Fingerprint, Namespace};
use crate::pool::KvPool;
use crate::table::BlockTable;

const BLOCK_BYTES: usize = 4096;
const BLOCK_TOKENS: usize = 32;

struct World {
    budget: Budget,
    pool: KvPool,
    cache: KvCache,
    tenant: Namespace,
    now_ms: u64,
}

impl World {
    fn new(blocks: usize, disk_bytes: Option<u64>) -> Self {
        let budget = Budget::new(u64::MAX);
        let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
        let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
        let disk = disk_bytes.map(|limit_bytes| {
            let storage: Arc<dyn Storage> = Arc::new(FakeStorage::default());
            let options = DiskOptions {
                limit_bytes,
                segment_bytes: 256 << 10,
            };
            Arc::new(DiskStore::open(storage, options).unwrap())
        });
        let options = CacheOptions {
            disk,
            may_pack: false,
            ..CacheOptions::new(fingerprint)
        };
        let cache = KvCache::new(&pool, options).unwrap();
        budget.set_limit(budget.charged() + (blocks * BLOCK_BYTES) as u64);
        Self {
            budget,
            pool,
            cache,
            tenant: Namespace::new(&[1; 32], "t", &fingerprint),
            now_ms: 0,
        }
    }

    /// Runs a prompt of whole blocks of its own; returns how many of them were found.
    fn run(&mut self, text: u32, blocks: usize) -> usize {
        self.now_ms += 1000;
        let tokens: Vec<u32> = (0..blocks * BLOCK_TOKENS)
            .map(|t| text * 100_000 + t as u32)
            .collect();
        let mut table = BlockTable::new(&self.pool);
        let found = self
            .cache
            .attach(&self.tenant, &tokens, &mut table, self.now_ms);
        while let Err(refused) = table.reserve(tokens.len() - found) {
            let missing = refused.needed - refused.available;
            let freed = self.cache.free(missing, Occasion::Admission, self.now_ms);
            assert!(freed > 0, "{refused}");
        }
        for t in (found..tokens.len()).step_by(BLOCK_TOKENS) {
            // Nothing that packs.
            let seed = u64::from(tokens[t]);
            let noise = (seed << 32..).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8);
            let block = table.block_mut(t / BLOCK_TOKENS);
            block
                .iter_mut()
                .zip(noise)
                .for_each(|(byte, noise)| *byte = noise);
        }
        table.advance(tokens.len() - found);
        self.cache
            .insert(&self.tenant, &tokens, &mut table, self.now_ms);
        drop(table);
        self.cache.check_conservation().unwrap();
        assert_eq!(self.budget.excess(), 0);
        found / BLOCK_TOKENS
    }
}

/// Talks of four blocks come back in turn, and between any two a text of twenty blocks comes once: more than there is
/// room for until a talk comes back, so that by age alone no talk is ever found.
#[test]
fn what_comes_once_is_learned_to_go_first() {
    let mut world = World::new(110, None);
    let (mut asked, mut found) = (0, 0);
    for round in 0..60 {
        for talk in 0..20 {
            let here = world.run(talk, 4);
            if round >= 40 {
                asked += 4;
                found += here;
            }
            world.run(1000 + round * 20 + talk, 20);
        }
    }
    assert!(5 * found > 4 * asked, "{found} of {asked} blocks of talks");
}

#[test]
fn what_is_learned_is_kept_apart_for_ram_and_not_spoiled_by_a_disk() {
    let mut world = World::new(110, Some(128 << 20));
    for round in 0..25 {
        for talk in 0..20 {
            world.run(talk, 4);
            world.run(1000 + round * 20 + talk, 20);
        }
    }
    let stats = world.cache.stats();
    let from_ram = stats.hot_hit_tokens as f64;
    let share = from_ram / (from_ram + stats.disk_hit_tokens as f64);
    assert!(share > 0.5, "{share} of what was found was in RAM");
}

#[test]
fn blocks_that_come_back_before_they_are_used_count_no_use() {
    let mut world = World::new(40, Some(4 << 20));
    world.run(1, 8);
    world.cache.free(u64::MAX, Occasion::Shrink, world.now_ms);
    assert_eq!(world.cache.policy.len(), 0);
    let tokens: Vec<u32> = (0..8 * BLOCK_TOKENS as u32).map(|t| 100_000 + t).collect();
    while world.cache.promote(&world.tenant, &tokens, 0) {}
    assert_eq!(world.cache.policy.len(), 8);
    world.cache.check_conservation().unwrap();
    assert_eq!(world.run(1, 8), 8);
}

#[test]
fn names_that_lead_nowhere_are_removed_and_the_others_charged() {
    // The disk holds some 250 blocks, RAM 40.
    let mut world = World::new(40, Some(1 << 20));
    for text in 0..1000 {
        world.run(text, 8);
    }
    let names = world.cache.len_blocks();
    assert!(names < 1000, "{names} names of some 300 blocks");
    world.cache.sweep_all();
    let names = world.cache.len_blocks();
    assert!(names < 500, "{names} names after a sweep");
}

#[test]
fn names_take_room_from_blocks_and_no_more_than_their_share() {
    let mut world = World::new(8000, Some(256 << 20));
    for text in 0..700 {
        world.run(text, 20);
    }
    let charged = world
        .budget
        .snapshot()
        .of_kind(crate::budget::ChargeKind::Index);
    let bytes = world.cache.names_bytes().min(world.budget.limit() / 8);
    assert!(
        charged > 0 && charged + (1 << 20) > bytes,
        "{charged} of {bytes}"
    );
    let in_ram = world.cache.nodes.len();
    assert!(
        world.cache.len_blocks() < in_ram + 20_000,
        "names of blocks on disk are bounded: {}",
        world.cache.len_blocks()
    );
}
