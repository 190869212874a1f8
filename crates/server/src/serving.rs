//! The model that is served now, and the leases that requests have on it.
//!
//! A request was read with one model's tokenizer and must be answered by the same: it holds a [`Lease`] from before it
//! is read until its answer has gone out. A change of the model waits until all leases are back, and whoever asks for
//! one meanwhile waits for the change.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use crate::app::ServedModel;

/// See the [module's description](self).
pub struct Serving {
    model: RwLock<Arc<ServedModel>>,
    /// Fair: a change that waits is not passed by those who come after it.
    gate: Arc<tokio::sync::RwLock<()>>,
}

/// The right to be answered by this model.
#[derive(Clone)]
pub struct Lease {
    model: Arc<ServedModel>,
    _pass: Option<Arc<OwnedRwLockReadGuard<()>>>,
}

/// All leases are back, and nobody gets one while this lives.
pub struct Closed(#[allow(dead_code, reason = "held, not read")] OwnedRwLockWriteGuard<()>);

impl Serving {
    /// Serves `model`.
    pub fn new(model: ServedModel) -> Self {
        Self {
            model: RwLock::new(Arc::new(model)),
            gate: Arc::default(),
        }
    }

    /// The model of this moment, to be looked at.
    pub fn now(&self) -> Arc<ServedModel> {
        let model = self.model.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&model)
    }

    /// A lease on the model, once no change of it is under way.
    pub async fn lease(&self) -> Lease {
        let pass = Arc::clone(&self.gate).read_owned().await;
        Lease {
            model: self.now(),
            _pass: Some(Arc::new(pass)),
        }
    }

    /// Waits until all leases are back, at most `patience`; `None` if they are not, and all goes on as before.
    pub async fn close(&self, patience: Duration) -> Option<Closed> {
        let closing = Arc::clone(&self.gate).write_owned();
        let closed = tokio::time::timeout(patience, closing).await;
        closed.ok().map(Closed)
    }

    /// Serves another model from now on.
    pub fn replace(&self, model: ServedModel, _all_are_back: &Closed) {
        let model = Arc::new(model);
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = model;
    }
}

impl Lease {
    /// What it is a lease on.
    pub fn model(&self) -> &Arc<ServedModel> {
        &self.model
    }

    /// On a model that nobody changes.
    pub fn alone(model: Arc<ServedModel>) -> Self {
        Self { model, _pass: None }
    }
}

impl Deref for Lease {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}
