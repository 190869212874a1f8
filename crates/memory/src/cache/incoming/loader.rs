//! Reads the blocks of an incoming prefix from the last to the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::Source;
use crate::budget::ChargeKind;
use crate::cache::attach::decode_stored;
use crate::codec::{BlockCodec, Packed, QuantizedLevels};
use crate::disk::{DiskStore, Meta, prefetch};
use crate::hash::{BlockHash, Fingerprint};
use crate::level::Level;
use crate::pool::{Block, KvPool};
use crate::remote::{RemoteLevel, Run};

/// Longest time that one read of the remote level may take.
const LONGEST_READ: Duration = Duration::from_secs(10);
/// Blocks of the remote level that are asked for at once.
const REMOTE_RUN: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) index: usize,
    pub(super) key: BlockHash,
    pub(super) source: Source,
}

/// A block that came, or did not.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) index: usize,
    pub(super) key: BlockHash,
    pub(super) block: Option<Block>,
    /// Where it was read from, how many bytes, and the microseconds that took.
    pub(super) read: Option<(Source, u64, f64)>,
}

/// Reads blocks, on a thread or on the caller's.
#[derive(Debug)]
pub(super) enum Loader {
    Thread {
        results: Receiver<Loaded>,
        is_cancelled: Arc<AtomicBool>,
    },
    Caller(Box<Reader>, Vec<Job>),
}

impl Loader {
    /// None if no thread can be started, or there is no room for its scratch.
    pub(super) fn start(reader: Reader, jobs: Vec<Job>, on_a_thread: bool) -> Option<Self> {
        if !on_a_thread {
            let jobs = jobs.into_iter().rev().collect();
            return Some(Self::Caller(Box::new(reader), jobs));
        }
        let budget = reader.pool.budget();
        let block_bytes = reader.pool.block_bytes();
        let packed = reader.quantized.packed.iter();
        let codec_bytes = packed
            .map(|codec| codec.scratch_bytes(block_bytes))
            .fold(Packed.scratch_bytes(block_bytes), usize::max) as u64;
        let scratch = budget.try_charge(ChargeKind::Scratch, codec_bytes).ok()?;
        let is_cancelled = Arc::<AtomicBool>::default();
        // What waits in it is blocks, which are charged: no more than there are jobs.
        let (sender, results) = channel();
        let cancelled = Arc::clone(&is_cancelled);
        std::thread::Builder::new()
            .name("neap-load".into())
            .spawn(move || {
                reader.read_all(jobs, &sender, &cancelled);
                drop(scratch);
            })
            .ok()?;
        Some(Self::Thread {
            results,
            is_cancelled,
        })
    }

    /// What has come, and whether that was all.
    pub(super) fn take(&mut self, most_blocks: usize) -> (Vec<Loaded>, bool) {
        let mut loaded = Vec::new();
        match self {
            Self::Thread { results, .. } => loop {
                match results.try_recv() {
                    Ok(one) => loaded.push(one),
                    Err(TryRecvError::Empty) => return (loaded, false),
                    Err(TryRecvError::Disconnected) => return (loaded, true),
                }
            },
            Self::Caller(reader, jobs) => {
                for _ in 0..most_blocks {
                    let Some(job) = jobs.pop() else { break };
                    reader.read(&[job], &mut |one| loaded.push(one));
                }
                (loaded, jobs.is_empty())
            }
        }
    }
}

impl Drop for Loader {
    /// The thread ends by itself: it may be stuck in a call to the store.
    fn drop(&mut self) {
        if let Self::Thread { is_cancelled, .. } = self {
            is_cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// All that reading takes.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) pool: KvPool,
    pub(super) quantized: QuantizedLevels,
    pub(super) disk: Option<Arc<DiskStore>>,
    pub(super) remote: Option<Arc<RemoteLevel>>,
    pub(super) fingerprint: Fingerprint,
    pub(super) lowest: Level,
    pub(super) now_ms: u64,
}

impl Reader {
    fn read_all(&self, jobs: Vec<Job>, results: &Sender<Loaded>, is_cancelled: &AtomicBool) {
        let is_remote = |job: &Job| job.source == Source::Remote;
        let from_remote = jobs.iter().take_while(|job| is_remote(job)).count();
        let jobs = self.probe_store(jobs, from_remote, results);
        let mut rest = &jobs[..];
        while let Some(first) = rest.first() {
            if is_cancelled.load(Ordering::Relaxed) {
                return;
            }
            let run = match first.source {
                Source::Remote => rest
                    .iter()
                    .take(REMOTE_RUN)
                    .take_while(|j| is_remote(j))
                    .count(),
                _ => 1,
            };
            // The receiver may be gone, which the next round sees.
            self.read(&rest[..run], &mut |one| drop(results.send(one)));
            rest = &rest[run..];
        }
    }

    /// Finds by halves how far the store holds the first `from_remote` of `jobs`, since it can't be asked for a
    /// list: they go from the last block to the first. Tells of those that it read meanwhile and those that are
    /// missing, and returns the others.
    fn probe_store(
        &self,
        jobs: Vec<Job>,
        from_remote: usize,
        results: &Sender<Loaded>,
    ) -> Vec<Job> {
        // Jobs before `beyond` are missing; those from `held` on are there.
        let (mut beyond, mut held) = (0, from_remote);
        let mut is_read = vec![false; jobs.len()];
        // The first block before all: mostly the store holds nothing of it.
        let mut probe = held;
        while beyond < held {
            let mut is_held = false;
            self.read(&jobs[probe - 1..probe], &mut |one| {
                is_held = one.block.is_some();
                drop(results.send(one));
            });
            is_read[probe - 1] = true;
            if is_held {
                held = probe - 1;
            } else {
                beyond = probe;
            }
            probe = beyond + (held - beyond).div_ceil(2);
        }
        let jobs = jobs.into_iter().zip(is_read).enumerate();
        let unread = jobs.filter(|(_, (_, is_read))| !is_read);
        let rest = unread.filter_map(|(place, (job, _))| {
            let is_missing = place < beyond;
            if is_missing {
                drop(results.send(Loaded::missing(&job)));
            }
            (!is_missing).then_some(job)
        });
        rest.collect()
    }

    /// Reads a run of one source and tells of each block.
    fn read(&self, run: &[Job], tell: &mut impl FnMut(Loaded)) {
        match run.first().map(|job| job.source) {
            Some(Source::Disk) => run.iter().for_each(|job| tell(self.read_disk(job))),
            Some(Source::Remote) => self.read_remote(run, tell),
            _ => {}
        }
    }

    fn read_disk(&self, job: &Job) -> Loaded {
        let start = Instant::now();
        let read = || {
            let (disk, budget) = (self.disk.as_ref()?, self.pool.budget());
            let (meta, payload) = prefetch::fetch(disk, budget, &self.fingerprint, &job.key)?;
            let block = self.decode(&meta, &payload)?;
            Some((block, meta.payload_bytes))
        };
        let Some((block, bytes)) = read() else {
            return Loaded::missing(job);
        };
        let us = start.elapsed().as_secs_f64() * 1e6;
        Loaded {
            index: job.index,
            key: job.key,
            block: Some(block),
            read: Some((Source::Disk, bytes, us)),
        }
    }

    fn read_remote(&self, mut run: &[Job], tell: &mut impl FnMut(Loaded)) {
        let Some(remote) = &self.remote else {
            return run.iter().for_each(|job| tell(Loaded::missing(job)));
        };
        while !run.is_empty() {
            let keys: Vec<BlockHash> = run.iter().map(|job| job.key).collect();
            let asked = Run {
                fingerprint: self.fingerprint,
                keys,
                max_payload_bytes: Packed.max_encoded_bytes(self.pool.block_bytes()),
                deadline: LONGEST_READ,
            };
            let mut start = Instant::now();
            let got = remote.fetch(asked, self.now_ms, |index, meta, payload| {
                let block = self.decode(meta, payload);
                let is_taken = block.is_some();
                let us = start.elapsed().as_secs_f64() * 1e6;
                start = Instant::now();
                if is_taken {
                    tell(Loaded {
                        index: run[index].index,
                        key: run[index].key,
                        block,
                        read: Some((Source::Remote, meta.payload_bytes, us)),
                    });
                }
                is_taken
            });
            // A run ends at the first that does not come; a store that is not asked has none.
            let ends = if got.was_asked {
                got.blocks + 1
            } else {
                run.len()
            };
            let ends = ends.min(run.len());
            for job in &run[got.blocks.min(ends)..ends] {
                tell(Loaded::missing(job));
            }
            run = &run[ends..];
        }
    }

    fn decode(&self, meta: &Meta, payload: &[u8]) -> Option<Block> {
        if meta.tokens as usize != self.pool.block_tokens() {
            return None;
        }
        decode_stored(&self.pool, &self.quantized, self.lowest, meta, payload).ok()
    }
}

impl Loaded {
    fn missing(job: &Job) -> Self {
        Self {
            index: job.index,
            key: job.key,
            block: None,
            read: None,
        }
    }
}
