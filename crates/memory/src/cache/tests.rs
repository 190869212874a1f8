use super::*;
use crate::budget::Budget;
use crate::disk::fake::FakeStorage;
use crate::disk::{DiskOptions, Storage};
use crate::governor::Occasion;

const BLOCK_TOKENS: usize = 4;
const BLOCK_BYTES: usize = 32 << 10;

struct World {
    budget: Budget,
    pool: KvPool,
    cache: KvCache,
    storage: Arc<FakeStorage>,
    tenant: Namespace,
    now_ms: u64,
}

impl World {
    fn new(blocks: u64, with_disk: bool) -> Self {
        let storage = Arc::new(FakeStorage::default());
        Self::open(blocks, with_disk.then_some(&storage).cloned(), storage)
    }

    fn open(blocks: u64, disk: Option<Arc<FakeStorage>>, storage: Arc<FakeStorage>) -> Self {
        let budget = Budget::new(u64::MAX);
        let pool = KvPool::new(&budget, BLOCK_BYTES, BLOCK_TOKENS);
        let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
        let disk = disk.map(|storage| {
            let options = DiskOptions {
                limit_bytes: 64 << 20,
                segment_bytes: 1 << 20,
            };
            Arc::new(DiskStore::open(storage as Arc<dyn Storage>, options).unwrap())
        });
        let options = CacheOptions {
            disk,
            ..CacheOptions::new(fingerprint)
        };
        let cache = KvCache::new(&pool, options).unwrap();
        budget.set_limit(budget.charged() + blocks * BLOCK_BYTES as u64);
        Self {
            cache,
            tenant: Namespace::new(&[1; 32], "t", &fingerprint),
            budget,
            pool,
            storage,
            now_ms: 0,
        }
    }

    /// Runs a prompt as an engine would; returns the cached tokens. Every byte attached is checked.
    fn run(&mut self, tokens: &[u32]) -> Result<usize, OverBudget> {
        self.now_ms += 1000;
        let mut table = BlockTable::new(&self.pool);
        let cached = self.cache.attach(
            &self.tenant,
            &tokens[..tokens.len() - 1],
            &mut table,
            self.now_ms,
        );
        check(&table, &tokens[..cached]);
        while let Err(refusal) = table.reserve(tokens.len() - cached) {
            let missing = refusal.needed - refusal.available;
            if self.cache.free(missing, Occasion::Admission, self.now_ms) == 0 {
                return Err(refusal);
            }
        }
        for (t, &token) in tokens.iter().enumerate().skip(cached) {
            write(table.block_mut(t / BLOCK_TOKENS), t % BLOCK_TOKENS, token);
        }
        table.advance(tokens.len() - cached);
        self.cache
            .insert(&self.tenant, tokens, &mut table, self.now_ms);
        check(&table, tokens);
        self.cache.check_conservation().unwrap();
        assert!(self.budget.excess() == 0);
        Ok(cached)
    }
}

fn write(block: &mut [u8], slot: usize, token: u32) {
    let slot_bytes = BLOCK_BYTES / BLOCK_TOKENS;
    let out = &mut block[slot * slot_bytes..(slot + 1) * slot_bytes];
    for (i, pair) in out.chunks_exact_mut(2).enumerate() {
        pair.copy_from_slice(&[(token as usize * 31 + i * 7) as u8, 0x3C + (i % 3) as u8]);
    }
}

fn check(table: &BlockTable, tokens: &[u32]) {
    let mut expected = vec![0; BLOCK_BYTES];
    for (t, &token) in tokens.iter().enumerate() {
        write(&mut expected, t % BLOCK_TOKENS, token);
        let slot_bytes = BLOCK_BYTES / BLOCK_TOKENS;
        let at = t % BLOCK_TOKENS * slot_bytes;
        assert!(
            table.block(t / BLOCK_TOKENS)[at..at + slot_bytes] == expected[at..at + slot_bytes],
            "token {t}"
        );
    }
}

fn prompt(talk: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| if i < 5 { i } else { talk * 1000 + i })
        .collect()
}

#[test]
fn prefixes_are_shared_and_partial_blocks_continued() {
    let mut world = World::new(100, false);
    assert_eq!(world.run(&prompt(1, 10)).unwrap(), 0);
    assert_eq!(world.run(&prompt(1, 15)).unwrap(), 10);
    assert_eq!(
        world.run(&prompt(2, 12)).unwrap(),
        5,
        "the common start, within a block"
    );
    assert_eq!(world.run(&prompt(1, 15)).unwrap(), 14);
}

#[test]
fn equal_blocks_computed_twice_are_held_once() {
    let mut world = World::new(100, false);
    let tokens = prompt(1, 12);
    let mut tables: Vec<BlockTable> = (0..2).map(|_| BlockTable::new(&world.pool)).collect();
    for table in &mut tables {
        table.reserve(12).unwrap();
        (0..12).for_each(|t| write(table.block_mut(t / 4), t % 4, tokens[t]));
        table.advance(12);
        world.cache.insert(&world.tenant, &tokens, table, 1);
    }
    assert_eq!(world.pool.stats().held_blocks, 3);
    check(&tables[1], &tokens);
}

#[test]
fn a_small_budget_serves_many_talks_by_dropping() {
    let mut world = World::new(12, false);
    for round in 0..60 {
        world.run(&prompt(round % 7, 20 + round % 3)).unwrap();
    }
    assert!(world.cache.stats().dropped_blocks > 0);
}

#[test]
fn what_is_spilled_comes_back_and_survives_a_restart() {
    let mut world = World::new(12, true);
    world.cache.costs_mut().recompute.observe(1, 1, 1e6);
    for round in 0..40 {
        world.run(&prompt(round % 6, 20)).unwrap();
    }
    let stats = world.cache.stats();
    assert!(
        stats.spilled_blocks > 10 && stats.disk_hit_tokens > 100,
        "{stats:?}"
    );
    assert_eq!(stats.failed_blocks, 0);
    world.budget.set_limit(0);
    let _ = world.cache.shrink(world.now_ms);
    let storage = Arc::new(world.storage.after_kill());
    let mut world = World::open(12, Some(Arc::clone(&storage)), storage);
    assert!(world.run(&prompt(3, 20)).unwrap() >= 16, "from disk alone");
}

#[test]
fn blocks_are_promoted_a_few_at_a_time_where_there_is_room() {
    let mut world = World::new(100, true);
    let tokens = prompt(1, 40);
    world.run(&tokens).unwrap();
    world.cache.free(u64::MAX, Occasion::Shrink, 1);
    let tenant = world.tenant;
    let all = world.budget.limit();
    assert!(
        !world.cache.promote(&tenant, &tokens, all),
        "no room to spare"
    );
    assert_eq!(world.cache.stats().promoted_blocks, 0);
    let mut calls = 1;
    while world.cache.promote(&tenant, &tokens, 0) {
        calls += 1;
        assert!(calls < 20);
    }
    assert_eq!(world.cache.stats().promoted_blocks, 10);
    assert!(
        !world.cache.promote(&tenant, &tokens, 0),
        "nothing is left to do"
    );
    world.cache.check_conservation().unwrap();
    let before = world.cache.stats();
    assert_eq!(world.run(&prompt(1, 41)).unwrap(), 40);
    let after = world.cache.stats();
    assert_eq!(after.hot_hit_tokens - before.hot_hit_tokens, 40);
    assert_eq!(after.disk_hit_tokens, before.disk_hit_tokens);
}

#[test]
fn an_idle_cache_gives_memory_back_and_loses_nothing() {
    for with_disk in [false, true] {
        let mut world = World::new(100, with_disk);
        for talk in 0..5 {
            world.run(&prompt(talk, 40)).unwrap();
        }
        let before = world.pool.stats().held_bytes;
        let mut slices = 0;
        while world
            .cache
            .sink_unused(4 * BLOCK_BYTES as u64, world.now_ms)
            > 0
        {
            slices += 1;
            assert!(slices < 100);
        }
        assert!(slices > 1, "a little at a time");
        let after = world.pool.stats().held_bytes;
        if with_disk {
            assert_eq!(after, 0);
        } else {
            assert!(after < before, "{after} of {before}");
        }
        assert_eq!(world.cache.stats().dropped_blocks, 0);
        for talk in 0..5 {
            assert_eq!(world.run(&prompt(talk, 40)).unwrap(), 39);
        }
    }
}

#[test]
fn damage_on_disk_costs_a_recomputation_only() {
    let mut world = World::new(8, true);
    world.cache.costs_mut().recompute.observe(1, 1, 1e6);
    for round in 0..60u64 {
        world.run(&prompt(round as u32 % 5, 20)).unwrap();
        let files = world.storage.files().into_iter();
        for (name, bytes) in files.filter(|(_, bytes)| !bytes.is_empty()) {
            world
                .storage
                .flip_bit(&name, (round * 7919 * 64 + 1000) % (bytes.len() as u64 * 8));
        }
        world.storage.fail_reads(u32::from(round % 5 == 0));
        world.storage.set_room((round % 7 == 0).then_some(1000));
    }
    assert!(world.cache.stats().failed_blocks > 0);
}

#[test]
fn a_shrink_to_half_frees_at_once_and_loses_nothing_of_what_is_in_use() {
    let mut world = World::new(60, true);
    for talk in 0..9 {
        world.run(&prompt(talk, 24)).unwrap();
    }
    let mut table = BlockTable::new(&world.pool);
    let cached = world
        .cache
        .attach(&world.tenant, &prompt(4, 24), &mut table, world.now_ms);
    assert_eq!(cached, 24);
    world.budget.set_limit(world.budget.charged() / 2);
    assert_eq!(world.cache.shrink(world.now_ms), 0);
    check(&table, &prompt(4, 24));
    world.cache.check_conservation().unwrap();
    world.budget.set_limit(0);
    assert!(
        world.cache.shrink(world.now_ms) >= 6 * BLOCK_BYTES as u64,
        "the table keeps its own"
    );
    check(&table, &prompt(4, 24));
}

#[test]
fn packing_frees_bytes_while_nothing_is_granted() {
    let mut world = World::new(60, false);
    world.cache.costs_mut().recompute.observe(1, 1, 1e9);
    for talk in 0..9 {
        world.run(&prompt(talk, 24)).unwrap();
    }
    let charged = world.budget.charged();
    world.budget.set_limit(charged - charged / 8);
    assert_eq!(world.cache.shrink(world.now_ms), 0);
    let stats = world.cache.stats();
    assert!(
        stats.packed_blocks > 0 && stats.dropped_blocks == 0,
        "{stats:?}"
    );
    world.budget.set_limit(2 * charged);
    for talk in 0..9 {
        assert_eq!(world.run(&prompt(talk, 24)).unwrap(), 23);
    }
    assert!(world.cache.stats().packed_hit_tokens > 0);
}

#[test]
fn of_a_large_tree_little_is_weighed_and_it_can_still_be_freed_whole() {
    const TALKS: usize = 300;
    let budget = Budget::new(1 << 30);
    let pool = KvPool::new(&budget, 4096, 4);
    let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
    let tenant = Namespace::new(&[1; 32], "t", &fingerprint);
    let mut cache = KvCache::new(&pool, CacheOptions::new(fingerprint)).unwrap();
    for talk in 0..TALKS {
        let tokens: Vec<u32> = (0..40 * 4).map(|t| (talk * 1000 + t) as u32).collect();
        let mut table = BlockTable::new(&pool);
        table.reserve(tokens.len()).unwrap();
        table.advance(tokens.len());
        cache.insert(&tenant, &tokens, &mut table, 1000 * talk as u64);
    }
    assert_eq!(cache.len_blocks(), TALKS * 40);
    let freed = cache.free(4096, Occasion::Admission, 1_000_000);
    // One was asked for; a few go at once.
    assert_eq!(freed / 4096, 16);
    let weighed = cache.log().entries().last().unwrap().candidates;
    assert!(weighed < 300, "{weighed} of {}", TALKS * 40);
    // No chain is cut: what is left of every talk is found from its start.
    let mut found = 0;
    for talk in 0..TALKS {
        let tokens: Vec<u32> = (0..40 * 4).map(|t| (talk * 1000 + t) as u32).collect();
        found += cache.forecast(&tenant, &tokens).tokens / 4;
    }
    assert_eq!(found as u64, cache.freeable_bytes() / 4096);
    cache.check_conservation().unwrap();
    cache.free(u64::MAX, Occasion::Shrink, 2_000_000);
    assert_eq!(pool.stats().held_blocks, 0);
    cache.check_conservation().unwrap();
}
