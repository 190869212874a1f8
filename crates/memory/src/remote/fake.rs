//! A store in memory that is slow, fails and lies on demand: the remote of tests and simulations.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{RemoteError, RemoteStore};

/// How a store lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// One bit of the object is another, counted from its start and around.
    Flip(u64),
    /// The object of another name.
    Swap,
    /// Only a part of the object, of as many bytes at most.
    Cut(usize),
    /// An object that is there is said not to be.
    Deny,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    failing: u32,
    timing_out: u32,
    lies: Vec<Lie>,
    /// Calls wait until it is let go.
    is_stuck: bool,
    calls: u64,
}

/// See the [module's description](self).
#[derive(Debug, Default)]
pub struct FakeRemote {
    state: Mutex<State>,
    released: Condvar,
}

impl FakeRemote {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next `count` calls fail.
    pub fn fail(&self, count: u32) {
        self.lock().failing = count;
    }

    /// Lets the next `count` calls end as if they had taken too long.
    pub fn time_out(&self, count: u32) {
        self.lock().timing_out = count;
    }

    /// Lets the next reading lie so.
    pub fn lie(&self, lie: Lie) {
        self.lock().lies.push(lie);
    }

    /// Lets calls wait until this is called again with `false`.
    pub fn set_stuck(&self, is_stuck: bool) {
        self.lock().is_stuck = is_stuck;
        self.released.notify_all();
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Names of all objects.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Every call begins here: it waits, or fails, as it was told to.
    fn begin(&self) -> Result<MutexGuard<'_, State>, RemoteError> {
        let mut state = self.lock();
        state.calls += 1;
        while state.is_stuck {
            state = self
                .released
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.failing > 0 {
            state.failing -= 1;
            return Err(RemoteError::Failed("injected".into()));
        }
        if state.timing_out > 0 {
            state.timing_out -= 1;
            return Err(RemoteError::TimedOut);
        }
        Ok(state)
    }
}

impl RemoteStore for FakeRemote {
    fn name(&self) -> String {
        "fake".into()
    }

    fn get(&self, object: &str, out: &mut [u8]) -> Result<Option<usize>, RemoteError> {
        let mut state = self.begin()?;
        let lie = state.lies.pop();
        let mut found = state.objects.get(object).cloned();
        match lie {
            Some(Lie::Flip(bit)) => {
                if let Some(bytes) = found.as_mut().filter(|bytes| !bytes.is_empty()) {
                    let bit = bit % (bytes.len() as u64 * 8);
                    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
                }
            }
            Some(Lie::Swap) => {
                let others = state.objects.iter().filter(|(name, _)| *name != object);
                found = others.map(|(_, bytes)| bytes.clone()).next();
            }
            Some(Lie::Cut(len)) => {
                if let Some(bytes) = &mut found {
                    bytes.truncate(len);
                }
            }
            Some(Lie::Deny) => found = None,
            None => {}
        }
        let Some(found) = found else {
            return Ok(None);
        };
        let limit_bytes = out.len();
        let out = out
            .get_mut(..found.len())
            .ok_or(RemoteError::TooLarge { limit_bytes })?;
        out.copy_from_slice(&found);
        Ok(Some(found.len()))
    }

    fn has(&self, object: &str) -> Result<bool, RemoteError> {
        Ok(self.begin()?.objects.contains_key(object))
    }

    fn put(&self, object: &str, bytes: &[u8]) -> Result<(), RemoteError> {
        let mut state = self.begin()?;
        state.objects.insert(object.to_owned(), bytes.to_vec());
        Ok(())
    }
}
