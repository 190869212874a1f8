//! What can be changed while the server runs, without anybody noticing but those it concerns.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::auth::Keys;

/// Settings that a running server can take over.
#[derive(Clone, Debug)]
pub struct Live {
    /// Keys that may generate; none: everybody may.
    pub api_keys: Vec<String>,
    /// The key for `/memory` and `/admin`; none: only this machine may.
    pub admin_key: Option<String>,
    /// Requests in the engine at most, running and waiting; more are answered with 429.
    pub max_active: usize,
    /// Connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// Bytes of a body at most.
    pub max_body_bytes: usize,
    /// A stream whose client takes nothing for so long is cancelled.
    pub slow_client: Duration,
    /// Time that a step of the engine should take at most, in milliseconds; `None`: as long as it takes.
    pub step_ms: Option<u64>,
    /// Cached blocks sink as far as they can without loss once the engine has been idle for so long; `None`: never.
    pub idle_sink: Option<Duration>,
    /// Time for running requests to finish when the server is asked to end, or to change its model.
    pub grace: Duration,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            admin_key: None,
            max_active: 264,
            max_connections: 1024,
            max_body_bytes: 8 << 20,
            slow_client: Duration::from_secs(30),
            step_ms: None,
            idle_sink: None,
            grace: Duration::from_secs(30),
        }
    }
}

/// The settings in force.
pub struct InForce {
    both: RwLock<(Arc<Live>, Arc<Keys>)>,
}

fn hashed(live: &Live) -> Arc<Keys> {
    Arc::new(Keys::new(&live.api_keys, live.admin_key.as_deref()))
}

impl InForce {
    /// Begins with these.
    pub fn new(live: Live) -> Self {
        let keys = hashed(&live);
        Self {
            both: RwLock::new((Arc::new(live), keys)),
        }
    }

    /// The settings.
    pub fn settings(&self) -> Arc<Live> {
        let both = self.both.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&both.0)
    }

    /// The keys among them.
    pub fn keys(&self) -> Arc<Keys> {
        let both = self.both.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&both.1)
    }

    /// Others from now on.
    pub fn set(&self, live: Live) {
        let keys = hashed(&live);
        *self.both.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(live), keys);
    }
}
