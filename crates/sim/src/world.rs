//! A whole memory core under load and faults, from one seed.
//!
//! The decoder is a fake: the keys and values of a token are bytes that depend on every token up to it and on the
//! namespace, and the "logits" of a sequence are a hash of every byte that attention would read. So any block that
//! is wrong, stale, swapped or somebody else's is seen at once. A quarter of the conversations is exact; the blocks of the
//! others may sink to lossy levels, and then exactly those bytes may be lost that the lowest level of their
//! quality loses. Faults: a full disk, failing reads and syncs, flipped bits, a remote store
//! that fails, is slow or lies, a lost disk beside it, kills and power cuts, also in the middle of an
//! operation, budgets that change, requests that are cancelled.
//!
//! In every second world half of the model's layers have a sliding window: attention reads their part of a token, the
//! second half of its bytes, within the window alone, and blocks behind it may be trimmed.
//!
//! One seed is one run: the same steps, the same faults, the same outcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use neap_memory::cache::Trim;
use neap_memory::codec::fake;
use neap_memory::disk::fake::{CutAt, FakeStorage};
use neap_memory::disk::{DiskOptions, DiskStore, Storage};
use neap_memory::governor::Occasion;
use neap_memory::hash::{Fingerprint, Namespace};
use neap_memory::remote::fake::{FakeRemote, Lie};
use neap_memory::remote::{RemoteLevel, RemoteOptions, RemoteStore};
use neap_memory::session::{KeepOptions, Sessions};
use neap_memory::{BlockTable, Budget, CacheOptions, KvCache, KvPool, KvQuality, Level, Window};

mod checks;
mod decoder;
mod incoming;

use decoder::{compute, reads_right};

/// Tokens of a block: of four pages, so that int8 takes two of them and int4 one.
const BLOCK_TOKENS: usize = 16;
/// Bytes of a token's keys and values.
const TOKEN_BYTES: usize = 1024;
const BLOCK_BYTES: usize = BLOCK_TOKENS * TOKEN_BYTES;
/// Of these, those of layers without a window; in a block they stand before all others.
const HEAD_TOKEN_BYTES: usize = TOKEN_BYTES / 2;
/// Tokens that layers with a window see: conversations are longer by enough that blocks are trimmed.
const WINDOW: Window = Window {
    tokens: 24,
    head_bytes: BLOCK_TOKENS * HEAD_TOKEN_BYTES,
};
/// Conversations of a run.
const TALKS: u64 = 12;
/// Tokens that conversations of different namespaces begin with: a block and some of the next.
const START_TOKENS: usize = 22;
/// Longest conversation, in tokens: blocks of a running sequence sink beyond the newest 128.
const MAX_TOKENS: usize = 240;

/// What a run did; all of it follows from the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Prompts run to their end.
    pub finished: u64,
    /// Prompts that the budget had no room for.
    pub refused: u64,
    /// Tokens found in the cache.
    pub cached_tokens: u64,
    /// Of these, loaded while tokens before them were computed.
    pub loaded_tokens: u64,
    /// Tokens computed.
    pub computed_tokens: u64,
    /// Sessions acknowledged.
    pub sessions_saved: u64,
    /// Sessions found again after a kill or a power cut.
    pub sessions_restored: u64,
    /// Blocks brought up ahead of need.
    pub promoted_blocks: u64,
    /// Blocks that sank to a lossy level.
    pub sunk_blocks: u64,
    /// Blocks trimmed to what is read beyond the window.
    pub trimmed_blocks: u64,
    /// Kills and power cuts.
    pub restarts: u64,
    /// Of these, in the middle of an operation.
    pub crashes: u64,
    /// Faults injected.
    pub faults: u64,
    /// Starts on an empty disk beside a remote store.
    pub lost_disks: u64,
    /// Tokens that the remote store brought back.
    pub remote_tokens: u64,
}

/// A source of numbers: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is positive.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    /// Whether one of `chances` happened.
    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// How low the blocks of a conversation may sink.
fn quality_of(talk: u64) -> KvQuality {
    KvQuality::ALL[(talk % 4) as usize]
}

/// A sequence that runs.
struct Running {
    table: BlockTable,
    tokens: Vec<u32>,
    talk: u64,
}

/// A run under way.
pub struct World {
    random: Random,
    storage: Arc<FakeStorage>,
    /// The store that outlives machines, in two of three worlds.
    remote: Option<Arc<FakeRemote>>,
    budget: Budget,
    pool: KvPool,
    disk: Arc<DiskStore>,
    cache: KvCache,
    sessions: Sessions,
    tenant: Namespace,
    fingerprint: Fingerprint,
    window: Option<Window>,
    disk_limit_bytes: u64,
    talks: Vec<Vec<u32>>,
    /// Acknowledged and not deleted since.
    acknowledged: BTreeMap<String, Vec<u32>>,
    /// Saved since without being acknowledged: may have survived as well.
    attempted: BTreeMap<String, Vec<Vec<u32>>>,
    /// A running sequence that holds its blocks through the steps of others.
    running: Option<Running>,
    /// After damage on disk a session may be incomplete.
    is_damaged: bool,
    /// A bit was flipped that nothing may have noticed yet: a session saved later may rest on that record,
    /// which saving does not read again.
    has_rot: bool,
    may_rot: bool,
    now_ms: u64,
    report: Report,
}

impl World {
    /// A fresh world.
    ///
    /// # Errors
    /// A description of what could not be made.
    pub fn new(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let blocks = 20 + random.below(200);
        let fingerprint = Fingerprint::of_parts(&[("model", b"fake")]);
        let tenant = Namespace::new(&[5; 32], "sim", &fingerprint);
        let budget = Budget::new(blocks * BLOCK_BYTES as u64);
        let remote = (!seed.is_multiple_of(3)).then(Arc::<FakeRemote>::default);
        let storage = Arc::new(FakeStorage::default());
        // With the least, segments go all the time.
        let disk_limit_bytes = (3 + seed % 4 * 2) << 20;
        let below = (storage, remote.as_ref(), disk_limit_bytes);
        let window = (seed / 2).is_multiple_of(2).then_some(WINDOW);
        let parts = open(below, &budget, (fingerprint, window))?;
        let talks = (0..TALKS)
            .map(|talk| {
                let start = 0..START_TOKENS as u32 - 1;
                start.chain([(talk / 4) as u32]).collect()
            })
            .collect();
        Ok(Self {
            random,
            storage: parts.storage,
            remote,
            budget,
            pool: parts.pool,
            disk: parts.disk,
            cache: parts.cache,
            sessions: parts.sessions,
            tenant,
            fingerprint,
            window,
            disk_limit_bytes,
            talks,
            acknowledged: BTreeMap::new(),
            attempted: BTreeMap::new(),
            running: None,
            is_damaged: false,
            has_rot: false,
            may_rot: seed.is_multiple_of(2),
            now_ms: 0,
            report: Report::default(),
        })
    }

    /// Runs `steps` steps, checking every law after each.
    ///
    /// # Errors
    /// The step and the law that it broke.
    pub fn run(mut self, steps: u64) -> Result<Report, String> {
        for step in 0..steps {
            let (before, records) = (self.cache.stats(), self.lost_records());
            self.now_ms += 1 + self.random.below(5000);
            self.step().map_err(|e| format!("step {step}: {e}"))?;
            self.check()
                .and_then(|()| self.check_records(records))
                .map_err(|e| format!("after step {step}: {e}"))?;
            let after = self.cache.stats();
            // A restart begins to count anew.
            let sunk = (after.int8_blocks + after.int4_blocks)
                .saturating_sub(before.int8_blocks + before.int4_blocks);
            self.report.sunk_blocks += sunk;
            let trimmed = after.trimmed_blocks;
            self.report.trimmed_blocks += trimmed.saturating_sub(before.trimmed_blocks);
            let promoted = after.promoted_blocks;
            self.report.promoted_blocks += promoted.saturating_sub(before.promoted_blocks);
            self.report.remote_tokens += after.remote_tokens.saturating_sub(before.remote_tokens);
        }
        Ok(self.report)
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..=59 => self.prompt(),
            60..=63 => self.hold_one(),
            64..=66 => self.promote(),
            67..=73 => self.save(),
            74..=75 => self.delete(),
            76..=84 => self.change_budget(),
            85..=91 => {
                self.inject();
                Ok(())
            }
            92..=93 => self.restart(),
            94..=95 => self.crash(),
            96..=97 => {
                self.sink();
                Ok(())
            }
            98 => {
                let mut running = self.running.take();
                let mut tables: Vec<_> = running.iter_mut().map(|r| &mut r.table).collect();
                self.trim(&mut tables);
                self.running = running;
                Ok(())
            }
            _ if self.random.one_in(2) => self.go_on(),
            _ => {
                self.running = None;
                Ok(())
            }
        }
    }

    fn namespace(&self, talk: u64) -> Namespace {
        self.tenant.with_quality(quality_of(talk))
    }

    /// The running sequence's old blocks sink at once.
    fn sink(&mut self) {
        let level = if self.random.one_in(2) {
            Level::Int8
        } else {
            Level::Int4
        };
        if let Some(running) = &mut self.running {
            let namespace = self.tenant.with_quality(quality_of(running.talk));
            let (tokens, table) = (&running.tokens, &mut running.table);
            let blocks = table.sinkable_blocks();
            self.cache.sink(&namespace, tokens, table, blocks, level);
        }
    }

    /// A running sequence gives some of what is behind its window.
    fn trim(&mut self, running: &mut [&mut BlockTable]) {
        let bytes = (1 + self.random.below(12)) * BLOCK_BYTES as u64;
        let which = match self.random.one_in(2) {
            true => Trim::Unbranched,
            false => Trim::All,
        };
        self.cache.trim_running(bytes, which, running);
    }

    /// The running sequence computes some tokens more.
    fn go_on(&mut self) -> Result<(), String> {
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        let new = 1 + self.random.below(30);
        for _ in 0..new {
            running.tokens.push(self.random.below(1000) as u32);
        }
        let (namespace, quality) = (self.namespace(running.talk), quality_of(running.talk));
        if self.reserve(&mut running.table, new as usize) {
            compute(&mut running.table, &running.tokens, quality);
            let (tokens, table) = (&running.tokens, &mut running.table);
            self.cache.insert(&namespace, tokens, table, self.now_ms);
            self.running = Some(running);
        }
        Ok(())
    }

    /// A conversation grows by a few tokens, or begins anew; or an earlier part of it is asked for again, often one
    /// that ends a token into a block.
    fn next_prompt(&mut self, talk: usize) -> Vec<u32> {
        if self.talks[talk].len() > MAX_TOKENS || self.random.one_in(12) {
            self.talks[talk].truncate(START_TOKENS);
        }
        if self.random.one_in(8) {
            let all = &self.talks[talk];
            let mut len = 2 + self.random.below(all.len() as u64 - 1) as usize;
            if self.random.one_in(2) && len > BLOCK_TOKENS {
                len = len / BLOCK_TOKENS * BLOCK_TOKENS + 1;
            }
            return all[..len.min(all.len())].to_vec();
        }
        for _ in 0..=self.random.below(40) {
            let token = self.random.below(1000) as u32;
            self.talks[talk].push(token);
        }
        self.talks[talk].clone()
    }

    /// A prompt runs to its end; now and then it is cancelled half-way.
    fn prompt(&mut self) -> Result<(), String> {
        let number = self.random.below(TALKS);
        let (talk, quality) = (number as usize, quality_of(number));
        let namespace = self.namespace(number);
        let tokens = self.next_prompt(talk);
        let mut table = BlockTable::new(&self.pool);
        let known = tokens.len() - 1;
        let found = self.attach_or_load((number, &tokens, known), &mut table)?;
        let (Some(cached), held) = (found, table.len_tokens()) else {
            return Ok(());
        };
        if !reads_right(&table, &tokens[..held], quality) {
            return Err(format!(
                "wrong keys or values among {cached} cached tokens of talk {talk}"
            ));
        }
        if !self.reserve(&mut table, tokens.len() - held) {
            self.report.refused += 1;
            return Ok(());
        }
        if self.random.one_in(15) {
            return Ok(());
        }
        compute(&mut table, &tokens, quality);
        self.cache
            .insert(&namespace, &tokens, &mut table, self.now_ms);
        if !reads_right(&table, &tokens, quality) {
            return Err(format!("wrong keys or values after talk {talk} was cached"));
        }
        if self.random.one_in(4) {
            self.trim(&mut [&mut table]);
            if !reads_right(&table, &tokens, quality) {
                return Err(format!("talk {talk} was trimmed too far"));
            }
        }
        if self.cache.held(&namespace, &tokens).is_none() {
            return Err(format!(
                "talk {talk} is not found whole after it was cached"
            ));
        }
        self.report.finished += 1;
        self.report.cached_tokens += cached as u64;
        self.report.computed_tokens += (tokens.len() - cached) as u64;
        Ok(())
    }

    fn reserve(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        for _ in 0..3 {
            let Err(refusal) = table.reserve(tokens) else {
                return true;
            };
            let missing = (tokens.div_ceil(BLOCK_TOKENS) + 1) as u64 * BLOCK_BYTES as u64;
            let missing = missing.saturating_sub(refusal.available).max(1) + self.budget.excess();
            let mut running: Vec<&mut BlockTable> =
                self.running.iter_mut().map(|r| &mut r.table).collect();
            let occasion = Occasion::Admission;
            let freed = self
                .cache
                .free_with(missing, occasion, self.now_ms, &mut running);
            if freed == 0 {
                return false;
            }
        }
        table.reserve(tokens).is_ok()
    }

    /// Leaves a sequence running through the following steps.
    fn hold_one(&mut self) -> Result<(), String> {
        let talk = self.random.below(TALKS);
        let tokens = self.talks[talk as usize].clone();
        let (namespace, quality) = (self.namespace(talk), quality_of(talk));
        let mut table = BlockTable::new(&self.pool);
        self.cache.adopt_remote(&namespace, &tokens, self.now_ms);
        let cached = self
            .cache
            .attach(&namespace, &tokens, &mut table, self.now_ms);
        if self.reserve(&mut table, tokens.len() - cached) {
            compute(&mut table, &tokens, quality);
            self.cache
                .insert(&namespace, &tokens, &mut table, self.now_ms);
            self.running = Some(Running {
                table,
                tokens,
                talk,
            });
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), String> {
        let talk = self.random.below(TALKS);
        let namespace = self.namespace(talk);
        let name = format!("talk {talk}");
        let tokens = self.talks[talk as usize].clone();
        let keep = KeepOptions {
            priority: self.random.below(4) as u8,
            ttl_ms: None,
        };
        let saved = self.sessions.save(
            &mut self.cache,
            (&namespace, &name, &tokens),
            keep,
            self.now_ms,
        );
        if saved.is_ok() {
            self.report.sessions_saved += 1;
            self.attempted.remove(&name);
            self.acknowledged.insert(name, tokens);
        } else {
            self.attempted.entry(name).or_default().push(tokens);
        }
        // A session of lower priority may have given way.
        let namespaces = KvQuality::ALL.map(|quality| self.tenant.with_quality(quality));
        let left: Vec<String> = namespaces
            .iter()
            .flat_map(|namespace| self.sessions.list(namespace, self.now_ms))
            .map(|s| s.name.clone())
            .collect();
        self.acknowledged.retain(|name, _| left.contains(name));
        Ok(())
    }

    fn delete(&mut self) -> Result<(), String> {
        let talk = self.random.below(TALKS);
        let name = format!("talk {talk}");
        let deleted = self.sessions.delete(&self.namespace(talk), &name);
        if self.acknowledged.remove(&name).is_some() && deleted.is_err() {
            // Not acknowledged: it may be there again after a restart, or not.
            self.report.faults += 1;
        }
        Ok(())
    }

    fn change_budget(&mut self) -> Result<(), String> {
        let limit = (10 + self.random.below(240)) * BLOCK_BYTES as u64;
        self.budget.set_limit(limit);
        let mut running: Vec<&mut BlockTable> =
            self.running.iter_mut().map(|r| &mut r.table).collect();
        let excess = self.cache.shrink_with(self.now_ms, &mut running);
        let held = self
            .running
            .as_ref()
            .map_or(0, |running| running.table.len_blocks() + 1);
        // What is left above the limit is what running sequences hold.
        let most = (held * BLOCK_BYTES) as u64;
        if excess > most {
            return Err(format!(
                "{excess} bytes above the limit after a shrink, {most} are in use"
            ));
        }
        Ok(())
    }

    fn inject(&mut self) {
        self.report.faults += 1;
        if let Some(remote) = self.remote.clone().filter(|_| self.random.one_in(2)) {
            return self.inject_remote(&remote);
        }
        // Half of the seeds have no rot, so that completeness is checked to their end.
        match self.random.below(if self.may_rot { 5 } else { 4 }) {
            0 => {
                let room = self.random.below(160_000);
                self.storage.set_room(Some(room));
            }
            1 => self.storage.set_room(None),
            2 => self.storage.fail_syncs(1),
            3 => {
                self.storage.fail_reads(1);
                // A record that could not be read is forgotten, like one that is damaged.
                self.is_damaged = true;
            }
            _ => {
                let files = self.storage.files();
                let file = self.random.below(files.len().max(1) as u64) as usize;
                if let Some((name, bytes)) = files.get(file).filter(|f| !f.1.is_empty()) {
                    let bit = self.random.below(bytes.len() as u64 * 8);
                    self.storage.flip_bit(name, bit);
                    self.is_damaged = true;
                    self.has_rot = true;
                }
            }
        }
    }

    /// A store that fails, is slow, or lies.
    fn inject_remote(&mut self, remote: &FakeRemote) {
        let number = self.random.below(1 << 20);
        match self.random.below(6) {
            0 => remote.fail(1 + number as u32 % 8),
            1 => remote.time_out(1 + number as u32 % 8),
            2 => remote.lie(Lie::Flip(number)),
            3 => remote.lie(Lie::Swap),
            4 => remote.lie(Lie::Cut(number as usize % BLOCK_BYTES)),
            _ => remote.lie(Lie::Deny),
        }
    }

    /// What a restart finds: the disk after a kill or a power cut, or, where there is a remote store, the empty disk
    /// of another machine.
    fn storage_after(&mut self) -> FakeStorage {
        if self.remote.is_some() && self.random.one_in(4) {
            self.acknowledged.clear();
            self.report.lost_disks += 1;
            return FakeStorage::default();
        }
        let random = &mut self.random;
        if random.one_in(2) {
            self.storage.after_power_cut(|below| random.below(below))
        } else {
            self.storage.after_kill()
        }
    }

    /// A kill or a power cut, and a start from what is left.
    fn restart(&mut self) -> Result<(), String> {
        let storage = self.storage_after();
        self.start_from(storage)
    }

    /// The power is cut, or the process killed, in the middle of keeping a conversation or of a prompt for which
    /// blocks sink.
    fn crash(&mut self) -> Result<(), String> {
        let (acknowledged, mut attempted) = (self.acknowledged.clone(), self.attempted.clone());
        if self.random.one_in(2) {
            self.storage.cut_after(self.random.below(15), CutAt::Change);
        } else {
            self.storage.cut_after(self.random.below(2), CutAt::Sync);
        }
        if self.random.one_in(3) {
            self.prompt()?;
        } else {
            self.save()?;
        }
        let Some(cut) = self.storage.take_cut() else {
            return Ok(());
        };
        let now = std::mem::replace(&mut self.acknowledged, acknowledged);
        // What gave way may be gone already.
        self.acknowledged.retain(|name, _| now.contains_key(name));
        for (name, tokens) in now {
            // Acknowledged after the cut: not at all, but it may be there.
            if self.acknowledged.get(&name) != Some(&tokens) {
                attempted.entry(name).or_default().push(tokens);
            }
        }
        for (name, tokens) in std::mem::take(&mut self.attempted) {
            attempted.entry(name).or_default().extend(tokens);
        }
        self.attempted = attempted;
        self.report.crashes += 1;
        let random = &mut self.random;
        let storage = if random.one_in(4) {
            cut.after_kill()
        } else {
            cut.after_power_cut(|below| random.below(below))
        };
        self.start_from(storage)
    }

    fn start_from(&mut self, storage: FakeStorage) -> Result<(), String> {
        self.report.restarts += 1;
        self.running = None;
        self.budget = Budget::new((20 + self.random.below(200)) * BLOCK_BYTES as u64);
        let below = (
            Arc::new(storage),
            self.remote.as_ref(),
            self.disk_limit_bytes,
        );
        let parts = open(below, &self.budget, (self.fingerprint, self.window))?;
        self.storage = parts.storage;
        self.pool = parts.pool;
        self.disk = parts.disk;
        self.cache = parts.cache;
        self.sessions = parts.sessions;
        for (name, tokens) in self.acknowledged.clone() {
            self.restore(&name, &tokens)?;
        }
        self.attempted.clear();
        if self.is_damaged {
            // From here on only what is acknowledged anew counts.
            self.acknowledged.clear();
            self.is_damaged = false;
        }
        self.storage.set_room(None);
        Ok(())
    }

    fn restore(&mut self, name: &str, tokens: &[u32]) -> Result<(), String> {
        let talk = name.trim_start_matches("talk ").parse().unwrap_or(0);
        let namespace = self.namespace(talk);
        let found = self
            .sessions
            .restore(&mut self.cache, &namespace, name, self.now_ms);
        let restored = match found {
            Ok(session) => session.tokens.clone(),
            Err(_) if self.is_damaged || self.has_rot => return Ok(()),
            Err(error) => return Err(format!("acknowledged: {error}")),
        };
        let mut table = BlockTable::new(&self.pool);
        self.cache.adopt_remote(&namespace, &restored, self.now_ms);
        let cached = self
            .cache
            .attach(&namespace, &restored, &mut table, self.now_ms);
        if !reads_right(&table, &restored[..cached], quality_of(talk)) {
            return Err(format!(
                "session {name:?} came back with wrong keys or values"
            ));
        }
        let attempts = self
            .attempted
            .get(name)
            .is_some_and(|all| all.contains(&restored));
        let is_known = restored == tokens || attempts;
        if !self.is_damaged && !self.has_rot && (!is_known || cached != restored.len()) {
            return Err(format!(
                "session {name:?}: {cached} of {} tokens came back",
                tokens.len()
            ));
        }
        self.acknowledged.insert(name.to_owned(), restored);
        self.report.sessions_restored += 1;
        Ok(())
    }
}

/// What a process holds.
struct Parts {
    storage: Arc<FakeStorage>,
    pool: KvPool,
    disk: Arc<DiskStore>,
    cache: KvCache,
    sessions: Sessions,
}

fn open(
    (storage, remote, limit_bytes): (Arc<FakeStorage>, Option<&Arc<FakeRemote>>, u64),
    budget: &Budget,
    (fingerprint, window): (Fingerprint, Option<Window>),
) -> Result<Parts, String> {
    let options = DiskOptions {
        limit_bytes,
        segment_bytes: 256 << 10,
    };
    let disk = DiskStore::open(Arc::clone(&storage) as Arc<dyn Storage>, options)
        .map_err(|e| e.to_string())?;
    let disk = Arc::new(disk);
    let pool = KvPool::with_window(budget, BLOCK_BYTES, BLOCK_TOKENS, window);
    let remote = remote.map(|store| {
        // No threads: the order of calls must follow from the seed.
        let options = RemoteOptions {
            readers: 0,
            ..RemoteOptions::new([5; 32])
        };
        RemoteLevel::start(Arc::clone(store) as Arc<dyn RemoteStore>, budget, options)
    });
    let options = CacheOptions {
        disk: Some(Arc::clone(&disk)),
        remote: remote.transpose().map_err(|e| e.to_string())?.map(Arc::new),
        quantized: fake::levels(),
        // One read at a time: the order of faults must follow from the seed.
        reads_in_flight: 1,
        ..CacheOptions::new(fingerprint)
    };
    let mut cache = KvCache::new(&pool, options).map_err(|e| e.to_string())?;
    // Fixed costs: measured ones would make decisions depend on the clock.
    cache.fix_costs();
    Ok(Parts {
        storage,
        sessions: Sessions::open(&disk, fingerprint, BLOCK_TOKENS),
        pool,
        disk,
        cache,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 150;

    #[test]
    fn every_law_holds_on_many_seeds() {
        let mut total = Report::default();
        for seed in 0..60 {
            let report = World::new(seed)
                .unwrap()
                .run(STEPS)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            total.finished += report.finished;
            total.loaded_tokens += report.loaded_tokens;
            total.cached_tokens += report.cached_tokens;
            total.sessions_restored += report.sessions_restored;
            total.faults += report.faults;
            total.crashes += report.crashes;
            total.lost_disks += report.lost_disks;
            total.remote_tokens += report.remote_tokens;
            total.sunk_blocks += report.sunk_blocks;
            total.promoted_blocks += report.promoted_blocks;
            total.trimmed_blocks += report.trimmed_blocks;
        }
        // The runs did what they are for.
        assert!(
            total.finished > 2_000 && total.cached_tokens > 10_000 && total.loaded_tokens > 2_000,
            "{total:?}"
        );
        assert!(
            total.sessions_restored > 100 && total.faults > 400 && total.sunk_blocks > 1_000,
            "{total:?}"
        );
        assert!(
            total.lost_disks > 20 && total.crashes > 15 && total.remote_tokens > 1_000,
            "{total:?}"
        );
        assert!(
            total.promoted_blocks > 30 && total.trimmed_blocks > 300,
            "{total:?}"
        );
    }

    #[test]
    fn one_seed_is_one_run() {
        for seed in 0..10 {
            let run = || World::new(seed).unwrap().run(STEPS).unwrap();
            assert_eq!(run(), run());
        }
    }
}
