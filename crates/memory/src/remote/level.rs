//! The level: reads with a deadline, writes behind the caller's back, and counts.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::format::{HEAD_BYTES, mac_key, object_name, open, seal};
use super::{RemoteError, RemoteStore};
use crate::budget::{Budget, ChargeKind};
use crate::buffer::Buffer;
use crate::disk::{DiskStore, Meta};
use crate::hash::{BlockHash, Fingerprint};

/// How a level works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteOptions {
    /// Shared by the processes that share blocks, and known to nobody else: not to the store either.
    pub secret: [u8; 32],
    /// Reads in flight (at most 16). With none, reads and writes are done on the caller's thread, one after
    /// the other: for simulations, whose every run must follow from its seed.
    pub readers: usize,
    /// Blocks that wait to be written at most; more are not written.
    pub waiting_blocks: usize,
}

impl RemoteOptions {
    /// Four reads in flight; 4,096 blocks may wait.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            readers: 4,
            waiting_blocks: 4096,
        }
    }
}

/// Counters of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Blocks that came back whole.
    pub hits: u64,
    /// Blocks that were not there.
    pub misses: u64,
    /// Objects that were not what was written under their name.
    pub damaged: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that took too long.
    pub timed_out: u64,
    /// Reads and writes that were not tried, so shortly after failures.
    pub skipped: u64,
    /// Payload bytes that came back whole.
    pub read_bytes: u64,
    /// Blocks written.
    pub written_blocks: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Blocks that another process, or this one, had written already.
    pub already_there: u64,
    /// Blocks not written because too many waited.
    pub dropped_writes: u64,
    /// Whether the store is left alone for a while, after failures in a row.
    pub is_left_alone: bool,
}

/// A run of blocks to be read in order.
#[derive(Clone, Debug)]
pub struct Run {
    /// What their bytes depend on.
    pub fingerprint: Fingerprint,
    /// Their names.
    pub keys: Vec<BlockHash>,
    /// Largest payload of a block.
    pub max_payload_bytes: usize,
    /// Time for all of them; what has not come by then is a miss.
    pub deadline: Duration,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Got {
    /// Blocks taken.
    pub blocks: usize,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Whether the store was asked at all.
    pub was_asked: bool,
}

/// See the [module's description](super).
pub struct RemoteLevel {
    shared: Arc<Shared>,
    readers: usize,
    jobs: Option<SyncSender<Job>>,
    offers: Option<SyncSender<Offer>>,
}

struct Shared {
    store: Arc<dyn RemoteStore>,
    budget: Budget,
    mac_key: [u8; 32],
    stats: Mutex<RemoteStats>,
    breaker: Mutex<Breaker>,
    /// The caller's clock when it last read.
    now_ms: AtomicU64,
    /// Offers that are not done.
    pending: AtomicUsize,
    is_closing: AtomicBool,
}

struct Job {
    key: BlockHash,
    fingerprint: Fingerprint,
    max_payload_bytes: usize,
    answer: SyncSender<Answer>,
    is_cancelled: Arc<AtomicBool>,
}

struct Offer {
    key: BlockHash,
    fingerprint: Fingerprint,
    disk: Arc<DiskStore>,
}

enum Answer {
    /// An object whose payload follows the head.
    Found(Meta, Buffer<u8>),
    Missing,
    /// The budget has no room for the object.
    NoRoom,
    /// Failed, lied or took too long, and how; counted already.
    Failed(String),
}

impl RemoteLevel {
    /// Starts the threads. Objects being read or written are charged to `budget` as I/O.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(
        store: Arc<dyn RemoteStore>,
        budget: &Budget,
        options: RemoteOptions,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store,
            budget: budget.clone(),
            mac_key: mac_key(&options.secret),
            stats: Mutex::default(),
            breaker: Mutex::default(),
            now_ms: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
        });
        let mut level = Self {
            shared,
            readers: options.readers.min(16),
            jobs: None,
            offers: None,
        };
        if level.readers == 0 {
            return Ok(level);
        }
        let (jobs, inbox) = sync_channel(level.readers);
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..level.readers {
            let (shared, inbox) = (Arc::clone(&level.shared), Arc::clone(&inbox));
            spawn("neap-remote-read", move || read_jobs(&shared, &inbox))?;
        }
        let (offers, inbox) = sync_channel(options.waiting_blocks.max(1));
        let shared = Arc::clone(&level.shared);
        spawn("neap-remote-write", move || write_offers(&shared, &inbox))?;
        (level.jobs, level.offers) = (Some(jobs), Some(offers));
        Ok(level)
    }

    /// Where the store is, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared.store.name()
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> RemoteStats {
        let is_left_alone = self.shared.breaker().is_open();
        RemoteStats {
            is_left_alone,
            ..*self.shared.stats()
        }
    }

    /// Whether the store would be asked now: not shortly after failures.
    #[must_use]
    pub fn is_available(&self, now_ms: u64) -> bool {
        self.shared.breaker().allows(now_ms)
    }

    /// Begins to read a run in order, behind the caller's back; `None` shortly after failures, or if there is nothing to
    /// read.
    pub fn begin(self: &Arc<Self>, run: Run, now_ms: u64) -> Option<Reading> {
        self.shared.now_ms.store(now_ms, Ordering::Relaxed);
        if run.keys.is_empty() {
            return None;
        }
        if !self.is_available(now_ms) {
            self.shared.stats().skipped += 1;
            return None;
        }
        let mut reading = Reading {
            level: Arc::clone(self),
            end: Instant::now() + run.deadline,
            run,
            now_ms,
            asked: 0,
            waiting: VecDeque::new(),
            taken: 0,
            is_over: false,
            is_cancelled: Arc::default(),
        };
        reading.ask();
        Some(reading)
    }

    /// [Begins](Self::begin) a run and gives each block to `take` (index, what is known of it, payload) until one is
    /// missing, damaged or too late, or `take` wants no more. Returns by the deadline; reads that are stuck
    /// then go on behind the scenes, and what they bring is thrown away.
    pub fn fetch(
        self: &Arc<Self>,
        run: Run,
        now_ms: u64,
        mut take: impl FnMut(usize, &Meta, &[u8]) -> bool,
    ) -> Got {
        let mut got = Got::default();
        let Some(mut reading) = self.begin(run, now_ms) else {
            return got;
        };
        got.was_asked = true;
        while let Next::Block(object) = reading.next(Duration::MAX) {
            if !take(got.blocks, object.meta(), object.payload()) {
                break;
            }
            got.blocks += 1;
            got.bytes += object.meta().payload_bytes;
        }
        got
    }

    /// Has a block that `disk` holds written to the store, soon and behind the caller's back, if the store
    /// has not got it. Never waits: where too many wait already, the block is not written.
    pub fn offer(&self, key: BlockHash, fingerprint: Fingerprint, disk: &Arc<DiskStore>) {
        let disk = Arc::clone(disk);
        let offer = Offer {
            key,
            fingerprint,
            disk,
        };
        let Some(offers) = &self.offers else {
            return self.shared.upload(&offer);
        };
        self.shared.pending.fetch_add(1, Ordering::AcqRel);
        if offers.try_send(offer).is_err() {
            self.shared.pending.fetch_sub(1, Ordering::AcqRel);
            self.shared.stats().dropped_writes += 1;
        }
    }

    /// Waits until all that was offered is written or given up, but no longer than `patience`. Whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.shared.pending.load(Ordering::Acquire) > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

impl Drop for RemoteLevel {
    /// Threads end by themselves: one may be stuck in a call to the store.
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for RemoteLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteLevel")
            .field("store", &self.name())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
}

/// An object that came back whole.
#[derive(Debug)]
pub struct Object {
    meta: Meta,
    bytes: Buffer<u8>,
}

impl Object {
    /// What is known of the block.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its stored bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEAD_BYTES..][..self.meta.payload_bytes as usize]
    }
}

/// What comes next of a run.
#[derive(Debug)]
pub enum Next {
    /// A block.
    Block(Object),
    /// Nothing yet.
    Later,
    /// Nothing any more: all were read, or one is missing, damaged or too late.
    Over,
}

/// The reads of one run: as many in flight as there are readers, so that what waits to be taken is bounded. Dropping it
/// ends them.
pub struct Reading {
    level: Arc<RemoteLevel>,
    run: Run,
    end: Instant,
    /// The caller's clock when it began.
    now_ms: u64,
    asked: usize,
    waiting: VecDeque<Receiver<Answer>>,
    taken: usize,
    is_over: bool,
    is_cancelled: Arc<AtomicBool>,
}

impl Reading {
    /// The next block, for which it waits no longer than `patience`.
    pub fn next(&mut self, patience: Duration) -> Next {
        if self.is_over || self.taken == self.run.keys.len() {
            return Next::Over;
        }
        let Some(answer) = self.answer(patience) else {
            return Next::Later;
        };
        let shared = &self.level.shared;
        match answer {
            Answer::Found(meta, bytes) => {
                shared.succeeded();
                let mut stats = shared.stats();
                stats.hits += 1;
                stats.read_bytes += meta.payload_bytes;
                drop(stats);
                self.taken += 1;
                return Next::Block(Object { meta, bytes });
            }
            Answer::Missing => {
                shared.succeeded();
                shared.stats().misses += 1;
            }
            Answer::NoRoom => {}
            Answer::Failed(why) => shared.failed(&why, self.now_ms),
        }
        self.is_over = true;
        Next::Over
    }

    fn answer(&mut self, patience: Duration) -> Option<Answer> {
        let shared = &self.level.shared;
        if self.level.jobs.is_none() {
            let (key, run) = (&self.run.keys[self.taken], &self.run);
            return Some(shared.read(key, &run.fingerprint, run.max_payload_bytes));
        }
        self.ask();
        let left = self.end.saturating_duration_since(Instant::now());
        let patience = patience.min(left);
        let answer = match self.waiting.front() {
            Some(receiver) => receiver.recv_timeout(patience),
            // Readers are stuck in earlier runs.
            None => {
                std::thread::sleep(patience.min(Duration::from_millis(1)));
                Err(RecvTimeoutError::Timeout)
            }
        };
        match answer {
            Ok(answer) => {
                self.waiting.pop_front();
                // The reader that is free now has the next at once.
                self.ask();
                Some(answer)
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < self.end => None,
            Err(_) => {
                self.level.shared.stats().timed_out += 1;
                Some(Answer::Failed(RemoteError::TimedOut.to_string()))
            }
        }
    }

    /// Keeps the readers busy.
    fn ask(&mut self) {
        let Some(jobs) = &self.level.jobs else {
            return;
        };
        while self.waiting.len() < self.level.readers && self.asked < self.run.keys.len() {
            let (answer, receiver) = sync_channel(1);
            let job = Job {
                key: self.run.keys[self.asked],
                fingerprint: self.run.fingerprint,
                max_payload_bytes: self.run.max_payload_bytes,
                answer,
                is_cancelled: Arc::clone(&self.is_cancelled),
            };
            if jobs.try_send(job).is_err() {
                // Readers are stuck in earlier runs: what is under way may still come.
                break;
            }
            self.asked += 1;
            self.waiting.push_back(receiver);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("taken", &self.taken)
            .field("of", &self.run.keys.len())
            .finish_non_exhaustive()
    }
}

fn read_jobs(shared: &Shared, inbox: &Mutex<Receiver<Job>>) {
    loop {
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else {
            return;
        };
        if !job.is_cancelled.load(Ordering::Relaxed) {
            // Nobody may wait for it any more.
            let _ = job
                .answer
                .send(shared.read(&job.key, &job.fingerprint, job.max_payload_bytes));
        }
    }
}

fn write_offers(shared: &Shared, inbox: &Receiver<Offer>) {
    for offer in inbox {
        if !shared.is_closing.load(Ordering::Relaxed) {
            shared.upload(&offer);
        }
        shared.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, RemoteStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, key: &BlockHash, fingerprint: &Fingerprint, max_payload_bytes: usize) -> Answer {
        let most = HEAD_BYTES + max_payload_bytes;
        let Ok(mut object) = Buffer::<u8>::zeroed(&self.budget, ChargeKind::Io, most) else {
            return Answer::NoRoom;
        };
        match self.store.get(&object_name(key, fingerprint), &mut object) {
            Ok(None) => Answer::Missing,
            Ok(Some(len)) => {
                let whole = object.get(..len).unwrap_or_default();
                match open(&self.mac_key, key, fingerprint, whole) {
                    Some(meta) => Answer::Found(meta, object),
                    None => {
                        self.stats().damaged += 1;
                        Answer::Failed("an object is not what was written under its name".into())
                    }
                }
            }
            Err(error) => {
                self.count_failure(&error);
                Answer::Failed(error.to_string())
            }
        }
    }

    fn count_failure(&self, error: &RemoteError) {
        let mut stats = self.stats();
        match error {
            RemoteError::TimedOut => stats.timed_out += 1,
            RemoteError::TooLarge { .. } => stats.damaged += 1,
            RemoteError::Failed(_) => stats.failed += 1,
        }
    }

    fn upload(&self, offer: &Offer) {
        let now_ms = self.now_ms.load(Ordering::Relaxed);
        if !self.breaker().allows(now_ms) {
            self.stats().skipped += 1;
            return;
        }
        match self.write(offer) {
            Ok(()) => self.succeeded(),
            Err(error) => {
                self.count_failure(&error);
                self.failed(&error.to_string(), now_ms);
            }
        }
    }

    fn succeeded(&self) {
        if self.breaker().succeeded() {
            tracing::info!(store = self.store.name(), "the remote store answers again");
        }
    }

    /// Tells the operator when the store is to be left alone, not of each failure.
    fn failed(&self, why: &str, now_ms: u64) {
        let store = self.store.name();
        let pause_ms = self.breaker().failed(now_ms);
        match pause_ms {
            Some(pause_ms) => tracing::warn!(
                store,
                why,
                pause_ms,
                "the remote store fails and is left alone for a while"
            ),
            None => tracing::debug!(store, why, "the remote store failed"),
        }
    }

    /// Writes a block; one that the disk level has not got any more, or the budget no room for, is left out.
    fn write(&self, offer: &Offer) -> Result<(), RemoteError> {
        let Some(meta) = offer.disk.meta(&offer.key, &offer.fingerprint) else {
            return Ok(());
        };
        let name = object_name(&offer.key, &offer.fingerprint);
        if self.store.has(&name)? {
            self.stats().already_there += 1;
            return Ok(());
        }
        let bytes = usize::try_from(meta.payload_bytes).unwrap_or(usize::MAX);
        let whole = bytes.saturating_add(HEAD_BYTES);
        let Ok(mut object) = Buffer::<u8>::zeroed(&self.budget, ChargeKind::Io, whole) else {
            return Ok(());
        };
        let payload = &mut object[HEAD_BYTES..];
        if !offer.disk.copy(&offer.key, &offer.fingerprint, payload) {
            return Ok(());
        }
        seal(&self.mac_key, &offer.key, &meta, &mut object);
        self.store.put(&name, &object)?;
        let mut stats = self.stats();
        stats.written_blocks += 1;
        stats.written_bytes += whole as u64;
        Ok(())
    }
}
