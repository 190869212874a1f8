//! Read-ahead along a block table: several reads in flight, results in order.

use std::ops::{Deref, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::store::{DiskStore, Meta};
use crate::budget::{Budget, ChargeKind};
use crate::buffer::Buffer;
use crate::hash::{BlockHash, Fingerprint};

/// One block that was read, or missed.
#[derive(Debug)]
pub struct Fetched {
    /// Its key.
    pub key: BlockHash,
    /// What is known of it, and its payload; `None` is a miss.
    pub payload: Option<(Meta, Payload)>,
}

/// The bytes of a record, wherever in a buffer they came to lie.
#[derive(Debug)]
pub struct Payload {
    buffer: Buffer<u8>,
    place: Range<usize>,
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.place.clone()]
    }
}

/// Reads a run of blocks ahead of their use. Iterate to get them in order; drop it to stop.
///
/// At most `in_flight` payloads are being read, wait, or are the one handed out last, each charged to the
/// budget as I/O. One that is kept beyond the next call comes on top. A payload for which the budget has no room counts as a miss.
#[derive(Debug)]
pub struct Prefetch {
    results: std::vec::IntoIter<Receiver<Fetched>>,
    threads: Vec<JoinHandle<()>>,
    taken: Mutex<Receiver<()>>,
    has_handed_out: bool,
}

type Job = (BlockHash, SyncSender<Fetched>);

impl Prefetch {
    /// Starts to read `keys` in order, by `in_flight` threads (1 to 16).
    ///
    /// # Errors
    /// When not a single thread can be started.
    pub fn start(
        store: &Arc<DiskStore>,
        budget: &Budget,
        fingerprint: Fingerprint,
        keys: &[BlockHash],
        in_flight: usize,
    ) -> std::io::Result<Self> {
        let in_flight = in_flight.clamp(1, 16);
        let (jobs, results): (Vec<Job>, Vec<_>) = keys
            .iter()
            .map(|&key| {
                let (sender, receiver) = sync_channel(1);
                ((key, sender), receiver)
            })
            .unzip();
        let jobs = Arc::new(Mutex::new(jobs.into_iter()));
        // A token in this channel is a payload in flight; taking a result takes a token out.
        let (permits, taken) = sync_channel(in_flight);
        let mut prefetch = Self {
            results: results.into_iter(),
            threads: Vec::new(),
            taken: Mutex::new(taken),
            has_handed_out: false,
        };
        for _ in 0..in_flight.min(keys.len()) {
            let (store, budget) = (Arc::clone(store), budget.clone());
            let (jobs, permits) = (Arc::clone(&jobs), permits.clone());
            let started = std::thread::Builder::new()
                .name("neap-read".into())
                .spawn(move || read_jobs(&store, &budget, &fingerprint, &jobs, &permits));
            match started {
                Ok(thread) => prefetch.threads.push(thread),
                Err(error) if prefetch.threads.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(prefetch)
    }
}

fn read_jobs(
    store: &DiskStore,
    budget: &Budget,
    fingerprint: &Fingerprint,
    jobs: &Mutex<std::vec::IntoIter<Job>>,
    permits: &SyncSender<()>,
) {
    loop {
        let mut next = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // Waiting for the permit under the lock keeps the order: the earliest job has the next permit.
        if next.len() == 0 || permits.send(()).is_err() {
            return;
        }
        let Some((key, sender)) = next.next() else {
            return;
        };
        drop(next);
        let payload = fetch(store, budget, fingerprint, &key);
        // Nobody waits for it any more: the reader was dropped.
        if sender.send(Fetched { key, payload }).is_err() {
            return;
        }
    }
}

/// One block's payload, charged to the budget as I/O; `None` is a miss, or no room.
pub(crate) fn fetch(
    store: &DiskStore,
    budget: &Budget,
    fingerprint: &Fingerprint,
    key: &BlockHash,
) -> Option<(Meta, Payload)> {
    let meta = store.meta(key, fingerprint)?;
    let bytes = usize::try_from(meta.payload_bytes).ok()?;
    let room = bytes.checked_add(store.slack_bytes())?;
    let mut buffer = Buffer::zeroed(budget, ChargeKind::Io, room).ok()?;
    let place = store.read_into(key, fingerprint, &mut buffer)?;
    Some((meta, Payload { buffer, place }))
}

impl Iterator for Prefetch {
    type Item = Fetched;

    fn next(&mut self) -> Option<Fetched> {
        let result = self.results.next()?;
        if std::mem::replace(&mut self.has_handed_out, true) {
            // Whoever asks for the next one is done with the last.
            let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = taken.try_recv();
        }
        result.recv().ok()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // Closes the results, and lets threads that wait for a permit go on to find that out.
        self.results = Vec::new().into_iter();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = taken.recv_timeout(std::time::Duration::from_millis(1));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
