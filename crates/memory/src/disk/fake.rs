//! A file system in memory that fails on demand: the disk of tests and simulations.
//!
//! It keeps two images, after the crash tests of redb: what a reader sees (*live*) and what a power cut
//! would leave (*durable*). A write reaches the live image at once, and the durable one with the next
//! sync; at a cut, any part of what was not synced may be there or not.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::storage::Storage;

#[derive(Clone, Debug, Default)]
struct FakeFile {
    live: Vec<u8>,
    durable: Option<Vec<u8>>,
}

/// What is counted until a [cut](FakeStorage::cut_after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutAt {
    /// Every change: a write, a sync, a new or a removed file.
    Change,
    /// Syncs: what came before one is most at risk.
    Sync,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, FakeFile>,
    /// Bytes that may still be written.
    room: Option<u64>,
    failing_syncs: u32,
    failing_reads: u32,
    /// Changes, or syncs only, until the files are remembered as they are.
    cut_in: Option<(u64, CutAt)>,
    cut: Option<BTreeMap<String, FakeFile>>,
}

/// See the [module's description](self).
#[derive(Debug, Default)]
pub struct FakeStorage {
    state: Mutex<State>,
}

impl FakeStorage {
    /// A disk with these files, all of them durable.
    #[must_use]
    pub fn with_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let storage = Self::default();
        for (name, live) in files {
            let durable = Some(live.clone());
            storage
                .lock()
                .files
                .insert(name, FakeFile { live, durable });
        }
        storage
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live files.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.lock()
            .files
            .iter()
            .map(|(name, file)| (name.clone(), file.live.clone()))
            .collect()
    }

    /// The disk after the process was killed: all that was written is there, synced or not.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        Self::with_files(self.files())
    }

    /// The disk after a power cut. `random` decides, by numbers below its argument, how much of what was
    /// not synced is there: by runs of 512 bytes, in any order.
    #[must_use]
    pub fn after_power_cut(&self, mut random: impl FnMut(u64) -> u64) -> Self {
        let state = self.lock();
        let mut files = Vec::new();
        for (name, file) in &state.files {
            let Some(durable) = &file.durable else {
                // Never synced: the directory may not know it.
                if random(2) == 0 {
                    continue;
                }
                let cut = random(file.live.len() as u64 + 1) as usize;
                files.push((name.clone(), file.live[..cut].to_vec()));
                continue;
            };
            let mut bytes = durable.clone();
            let longest = file.live.len().max(bytes.len());
            // The file's new length is one thing, the bytes in it another.
            let longer = (longest - bytes.len()) as u64;
            let longer = match random(2) {
                0 => longer,
                _ => random(longer + 1),
            };
            bytes.resize(bytes.len() + longer as usize, 0);
            for (sector, live) in bytes.chunks_mut(512).zip(file.live.chunks(512)) {
                if random(2) == 0 {
                    let len = sector.len().min(live.len());
                    sector[..len].copy_from_slice(&live[..len]);
                }
            }
            files.push((name.clone(), bytes));
        }
        Self::with_files(files)
    }

    /// Lets `bytes` more be written; then the disk is full. `None`: no bound.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Lets the next `count` syncs fail.
    pub fn fail_syncs(&self, count: u32) {
        self.lock().failing_syncs = count;
    }

    /// Lets the next `count` reads fail.
    pub fn fail_reads(&self, count: u32) {
        self.lock().failing_reads = count;
    }

    /// Cuts the power in the middle of what comes: before the change or sync that comes after `count` others. All
    /// goes on as if nothing were; [`take_cut`](Self::take_cut) gives what was there.
    pub fn cut_after(&self, count: u64, at: CutAt) {
        let mut state = self.lock();
        (state.cut_in, state.cut) = (Some((count, at)), None);
    }

    /// The disk as it was at the cut, if it came to that; no cut is due afterwards.
    pub fn take_cut(&self) -> Option<Self> {
        let mut state = self.lock();
        state.cut_in = None;
        let files = state.cut.take()?;
        let state = State {
            files,
            ..State::default()
        };
        Some(Self {
            state: Mutex::new(state),
        })
    }

    /// Flips one bit of a file, counted from its start; whether there is one.
    pub fn flip_bit(&self, name: &str, bit: u64) -> bool {
        let mut state = self.lock();
        let byte = usize::try_from(bit / 8).ok();
        let found = state
            .files
            .get_mut(name)
            .and_then(|file| file.live.get_mut(byte?));
        found.map(|byte| *byte ^= 1 << (bit % 8)).is_some()
    }
}

impl State {
    /// Every change begins here.
    fn begin_change(&mut self, is_sync: bool) {
        match &mut self.cut_in {
            Some((_, CutAt::Sync)) if !is_sync => {}
            Some((0, _)) => {
                self.cut_in = None;
                self.cut = Some(self.files.clone());
            }
            Some((count, _)) => *count -= 1,
            None => {}
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&mut FakeFile> {
        self.files
            .get_mut(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for FakeStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().files.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.lock().file(name)?.live.len() as u64)
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_change(false);
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(name.to_owned(), FakeFile::default());
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_change(false);
        let fits = state
            .room
            .map_or(bytes.len() as u64, |room| room.min(bytes.len() as u64));
        if let Some(room) = &mut state.room {
            *room -= fits;
        }
        let file = state.file(name)?;
        let begin = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = begin + fits as usize;
        if file.live.len() < end {
            file.live.resize(end, 0);
        }
        file.live[begin..end].copy_from_slice(&bytes[..fits as usize]);
        if fits < bytes.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn read_at(&self, name: &str, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err(io::Error::other("injected read error"));
        }
        let file = state.file(name)?;
        let begin = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let found = begin
            .checked_add(bytes.len())
            .and_then(|end| file.live.get(begin..end));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_change(true);
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::other("injected sync error"));
        }
        let file = state.file(name)?;
        file.durable = Some(file.live.clone());
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.begin_change(false);
        let removed = state.files.remove(name);
        removed
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
