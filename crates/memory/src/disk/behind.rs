//! Appends gathered in large aligned buffers and written behind the caller's back.
//!
//! There are two buffers: while a thread writes one, the other is filled. What was appended is read from the buffer
//! until it is on disk, and is on stable storage when [`flush`](Behind::flush) and the file's own sync have returned: a
//! kill before that loses it. A write that fails fails the next append to the file or its next flush.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::directory::{DIRECT_BYTES, Opened};
use crate::budget::{Budget, ChargeKind};
use crate::buffer::Buffer;

/// Least bytes of a buffer: smaller ones are not worth a thread.
const LEAST_BYTES: usize = 64 << 10;
/// Share of the budget that one buffer may take.
const BUDGET_SHARE: u64 = 64;

/// A file that is appended to.
struct Run {
    name: String,
    file: Arc<Opened>,
    buffer: Buffer<u8>,
    /// Where in the file the buffer begins: whole units.
    base: u64,
    /// Bytes of the buffer in use.
    filled: usize,
    /// Of these, on disk already.
    flushed: usize,
}

impl Run {
    fn end(&self) -> u64 {
        self.base + self.filled as u64
    }

    /// Writes what is not on disk, with zeros up to a whole unit, and keeps the last unit to go on in it.
    fn flush(&mut self) -> io::Result<()> {
        if self.flushed == self.filled {
            return Ok(());
        }
        let whole = self.filled.next_multiple_of(DIRECT_BYTES);
        self.buffer[self.filled..whole].fill(0);
        self.file.write_units(self.base, &self.buffer[..whole])?;
        let done = self.filled / DIRECT_BYTES * DIRECT_BYTES;
        self.buffer.copy_within(done..self.filled, 0);
        self.base += done as u64;
        self.filled -= done;
        self.flushed = self.filled;
        Ok(())
    }
}

/// A full buffer to be written.
struct Job {
    name: String,
    file: Arc<Opened>,
    buffer: Buffer<u8>,
    offset: u64,
}

#[derive(Default)]
struct State {
    run: Option<Run>,
    /// Buffers that nobody uses.
    spare: Vec<Buffer<u8>>,
    job: Option<Job>,
    is_writing: bool,
    /// Files of which something could not be written since their last flush.
    failed: BTreeSet<String>,
    is_closing: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the [module's description](self).
pub(super) struct Behind {
    shared: Arc<Shared>,
    buffer_bytes: usize,
    thread: Option<JoinHandle<()>>,
}

impl Behind {
    /// Starts the thread; `None` where `budget` has no room for the buffers, or the system no thread.
    pub(super) fn start(budget: &Budget, buffer_bytes: usize) -> Option<Self> {
        let share = usize::try_from(budget.limit() / BUDGET_SHARE).unwrap_or(usize::MAX);
        let buffer_bytes = buffer_bytes.min(share) / DIRECT_BYTES * DIRECT_BYTES;
        if buffer_bytes < LEAST_BYTES {
            return None;
        }
        let buffer = || Buffer::zeroed(budget, ChargeKind::Io, buffer_bytes).ok();
        let shared = Arc::new(Shared::default());
        // Both, or none.
        let (first, second) = (buffer()?, buffer()?);
        shared.lock().spare = vec![first, second];
        let working = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("neap-write".into())
            .spawn(move || working.write_jobs())
            .ok()?;
        Some(Self {
            shared,
            buffer_bytes,
            thread: Some(thread),
        })
    }

    /// Takes `bytes` that go to the end of a file. `false`: they do not go on where this file's last ones ended, and
    /// everything that came before is on disk.
    pub(super) fn append(
        &self,
        (name, file): (&str, &Arc<Opened>),
        offset: u64,
        mut bytes: &[u8],
    ) -> io::Result<bool> {
        let mut state = self.shared.lock();
        if state.failed.contains(name) {
            return Err(failed(name));
        }
        let goes_on = |run: &Run| run.name == name && run.end() == offset;
        if !state.run.as_ref().is_some_and(goes_on) {
            state = self.shared.end_run(state);
            if !offset.is_multiple_of(DIRECT_BYTES as u64) {
                return Ok(false);
            }
            let Some(buffer) = state.spare.pop() else {
                return Ok(false);
            };
            state.run = Some(Run {
                name: name.to_owned(),
                file: Arc::clone(file),
                buffer,
                base: offset,
                filled: 0,
                flushed: 0,
            });
        }
        while !bytes.is_empty() {
            let Some(run) = &mut state.run else {
                return Err(failed(name));
            };
            let fits = bytes.len().min(self.buffer_bytes - run.filled);
            run.buffer[run.filled..][..fits].copy_from_slice(&bytes[..fits]);
            run.filled += fits;
            bytes = &bytes[fits..];
            if run.filled == self.buffer_bytes {
                state = self.shared.hand_over(state);
            }
        }
        Ok(true)
    }

    /// Copies the end of a range to the end of `out` if it is not on disk yet. Gives how many bytes are to be read from the file.
    pub(super) fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let end = offset + out.len() as u64;
        let mut state = self.shared.lock();
        if state.is_on_disk(name, end) {
            return Ok(out.len());
        }
        state = self.shared.settle(state);
        let Some(run) = state.run.as_ref().filter(|run| run.name == name) else {
            return Ok(out.len());
        };
        if end <= run.base {
            return Ok(out.len());
        }
        let from = run.base.max(offset);
        let on_disk = (from - offset) as usize;
        let begin = (from - run.base) as usize;
        let held = run.buffer[..run.filled].get(begin..begin + out.len() - on_disk);
        out[on_disk..].copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(on_disk)
    }

    /// Whether all of a file before `end` is on disk.
    pub(super) fn is_on_disk(&self, name: &str, end: u64) -> bool {
        self.shared.lock().is_on_disk(name, end)
    }

    /// Returns when all that was appended to a file is written.
    pub(super) fn flush(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.settle(self.shared.lock());
        if let Some(run) = state.run.as_mut().filter(|run| run.name == name)
            && let Err(why) = run.flush()
        {
            state.give_up(name);
            state.failed.remove(name);
            return Err(why);
        }
        match state.failed.remove(name) {
            true => Err(failed(name)),
            false => Ok(()),
        }
    }

    /// The file is going to be removed.
    pub(super) fn forget(&self, name: &str) {
        let mut state = self.shared.settle(self.shared.lock());
        state.give_up(name);
        state.failed.remove(name);
    }
}

fn failed(name: &str) -> io::Error {
    io::Error::other(format!("an earlier write to {name} failed"))
}

impl State {
    fn is_on_disk(&self, name: &str, end: u64) -> bool {
        let is_waiting = self.job.is_some() || self.is_writing;
        match &self.run {
            Some(run) if run.name == name => !is_waiting && end <= run.base,
            _ => !is_waiting,
        }
    }

    /// Lets go of what is appended to a file.
    fn give_up(&mut self, name: &str) {
        if let Some(run) = self.run.take_if(|run| run.name == name) {
            self.spare.push(run.buffer);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no full buffer is on its way.
    fn settle<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.job.is_some() || state.is_writing {
            state = self.wait(state);
        }
        state
    }

    /// Writes what is gathered for the file that was appended to last; another one follows.
    fn end_run<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut state = self.settle(state);
        if let Some(mut run) = state.run.take() {
            if run.flush().is_err() {
                state.failed.insert(run.name);
            }
            state.spare.push(run.buffer);
        }
        state
    }

    /// Gives the full buffer to the thread and goes on in the other one, once that is free.
    fn hand_over<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut state = self.settle(state);
        let Some(mut run) = state.run.take() else {
            return state;
        };
        let next = match state.failed.contains(&run.name) {
            // What came before is missing: this would stand behind a hole.
            true => None,
            false => state.spare.pop(),
        };
        let Some(next) = next else {
            state.failed.insert(run.name);
            state.spare.push(run.buffer);
            return state;
        };
        let (offset, bytes) = (run.base, run.filled as u64);
        let job = Job {
            name: run.name.clone(),
            file: Arc::clone(&run.file),
            buffer: std::mem::replace(&mut run.buffer, next),
            offset,
        };
        run.base += bytes;
        (run.filled, run.flushed) = (0, 0);
        (state.job, state.run) = (Some(job), Some(run));
        self.changed.notify_all();
        state
    }

    /// The thread.
    fn write_jobs(&self) {
        let mut state = self.lock();
        loop {
            let Some(job) = state.job.take() else {
                if state.is_closing {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            state.is_writing = true;
            drop(state);
            let written = job.file.write_units(job.offset, &job.buffer);
            state = self.lock();
            state.is_writing = false;
            if written.is_err() {
                state.failed.insert(job.name);
            }
            state.spare.push(job.buffer);
            self.changed.notify_all();
        }
    }
}

impl Drop for Behind {
    /// What was not synced is written even so: only a crash loses it.
    fn drop(&mut self) {
        let mut state = self.shared.end_run(self.shared.lock());
        state.is_closing = true;
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind")
            .field("buffer_bytes", &self.buffer_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::{Directory, DirectoryOptions};
    use super::super::storage::Storage;
    use super::*;
    use proptest::prelude::*;

    fn folder(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("neap-behind-{name}-{}", std::process::id()))
    }

    fn open(path: &std::path::Path, is_direct: bool) -> Directory {
        let options = DirectoryOptions {
            is_direct,
            buffer_bytes: 64 << 10,
        };
        let directory = Directory::open_with(path, options).unwrap();
        directory.reserve(&Budget::new(1 << 30));
        directory
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append {
            file: usize,
            bytes: usize,
        },
        Sync {
            file: usize,
        },
        Read {
            file: usize,
            from: usize,
            bytes: usize,
        },
        ReadInto {
            file: usize,
            from: usize,
            bytes: usize,
        },
        Reopen,
    }

    fn op() -> impl Strategy<Value = Op> {
        let (file, from) = (0..2usize, 0..400_000usize);
        let bytes = prop_oneof![0..300usize, 0..200_000usize];
        let place = (file.clone(), from, bytes.clone());
        prop_oneof![
            6 => (file.clone(), bytes).prop_map(|(file, bytes)| Op::Append { file, bytes }),
            1 => file.prop_map(|file| Op::Sync { file }),
            3 => place.clone().prop_map(|(file, from, bytes)| Op::Read { file, from, bytes }),
            3 => place.prop_map(|(file, from, bytes)| Op::ReadInto { file, from, bytes }),
            1 => Just(Op::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Beside a naive model: a vector for each file. After opening again, appends go to where the model ends.
        #[test]
        fn what_was_appended_is_read_at_once_and_after_opening_again(
            ops in proptest::collection::vec(op(), 1..40), is_direct in any::<bool>()
        ) {
            let path = folder(&format!("{is_direct}"));
            let _ = std::fs::remove_dir_all(&path);
            let mut directory = open(&path, is_direct);
            let mut model = [Vec::<u8>::new(), Vec::new()];
            for name in ["a", "b"] {
                directory.create(name).unwrap();
            }
            let name = |file: usize| ["a", "b"][file];
            for (n, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Append { file, bytes } => {
                        let new: Vec<u8> = (0..bytes).map(|i| (i * 7 + n) as u8).collect();
                        directory.write_at(name(file), model[file].len() as u64, &new).unwrap();
                        model[file].extend(new);
                    }
                    Op::Sync { file } => directory.sync(name(file)).unwrap(),
                    Op::Read { file, from, bytes } => {
                        let Some(wanted) = model[file].get(from..from + bytes) else { continue };
                        let mut out = vec![1; bytes];
                        directory.read_at(name(file), from as u64, &mut out).unwrap();
                        prop_assert!(out == wanted);
                    }
                    Op::ReadInto { file, from, bytes } => {
                        let Some(wanted) = model[file].get(from..from + bytes) else { continue };
                        let budget = Budget::new(1 << 30);
                        let mut out = Buffer::<u8>::zeroed(&budget, ChargeKind::Io, bytes + directory.slack_bytes()).unwrap();
                        let at = directory.read_into(name(file), from as u64, bytes, &mut out).unwrap();
                        prop_assert!(&out[at] == wanted);
                    }
                    Op::Reopen => {
                        drop(directory);
                        directory = open(&path, is_direct);
                    }
                }
            }
            drop(directory);
            for (file, model) in model.iter().enumerate() {
                let found = std::fs::read(path.join(name(file))).unwrap();
                prop_assert!(found.len() < model.len() + DIRECT_BYTES);
                prop_assert!(found.starts_with(model));
                prop_assert!(found[model.len()..].iter().all(|&b| b == 0));
            }
            std::fs::remove_dir_all(&path).unwrap();
        }
    }

    #[test]
    fn a_budget_without_room_writes_through() {
        let path = folder("small");
        let directory = Directory::open(&path).unwrap();
        let budget = Budget::new(100 << 10);
        directory.reserve(&budget);
        assert_eq!(budget.charged(), 0);
        directory.create("a").unwrap();
        directory.write_at("a", 0, &[5; 100]).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), [5; 100]);
        let budget = Budget::new(64 << 20);
        let directory = Directory::open(&path).unwrap();
        directory.reserve(&budget);
        assert_eq!(budget.charged(), 2 << 20, "a sixty-fourth each");
        drop(directory);
        assert_eq!(budget.charged(), 0);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
