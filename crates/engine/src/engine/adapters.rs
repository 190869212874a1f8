//! Adapters that requests choose by name. Their weights are read when they are used, and let go of when the room is
//! needed: the file is still there.

use std::path::PathBuf;

use neap_memory::governor::Occasion;
use neap_memory::{Budget, Fingerprint, KvQuality, Namespace};
use neap_model::adapter::{Adapter, AdapterError, AdapterFile};
use neap_model::decoder::Decoder;

use super::Engine;
use crate::request::{AdmissionError, Event, FinishReason, Request, RequestId};

/// Names one adapter within an engine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AdapterId(u64);

/// What there is to know of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterState {
    /// Its name.
    pub name: String,
    /// Where its files are.
    pub path: PathBuf,
    /// Bytes that its weights take while they are loaded.
    pub bytes: u64,
    /// Whether they are.
    pub is_loaded: bool,
}

/// An adapter of this name is there already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an adapter {name:?} is there already: remove it first, or give another name")]
pub struct AdapterNameTaken {
    /// The name.
    pub name: String,
}

struct Known {
    id: AdapterId,
    name: String,
    file: AdapterFile,
    weights: Option<Adapter>,
    used_ms: u64,
    /// No request can choose it any more.
    is_removed: bool,
}

/// The adapters of an engine.
#[derive(Default)]
pub(crate) struct Adapters {
    known: Vec<Known>,
    next_id: u64,
}

impl Adapters {
    fn by_name(&self, name: &str) -> Option<&Known> {
        self.known.iter().find(|k| !k.is_removed && k.name == name)
    }

    fn by_id(&self, id: AdapterId) -> Option<&Known> {
        self.known.iter().find(|k| k.id == id)
    }

    /// The weights of one that was loaded for this step.
    pub fn loaded(&self, id: AdapterId) -> &Adapter {
        let known = self.by_id(id);
        let weights = known.and_then(|known| known.weights.as_ref());
        weights.expect("every adapter of a step is loaded before it")
    }

    /// Lets weights go that `in_use` does not name, the longest unused first, until `bytes` are free. Returns the bytes
    /// freed.
    fn release(&mut self, bytes: u64, in_use: &[AdapterId]) -> u64 {
        let mut freed = 0;
        while freed < bytes {
            let idle = self.known.iter_mut().filter(|k| !in_use.contains(&k.id));
            let oldest = idle
                .filter(|k| k.weights.is_some())
                .min_by_key(|k| k.used_ms);
            let Some(oldest) = oldest else { break };
            freed += oldest.weights.take().map_or(0, |w| w.charged_bytes());
            tracing::info!(adapter = oldest.name, "an adapter gives way");
        }
        freed
    }

    fn load(&mut self, id: AdapterId, budget: &Budget, now_ms: u64) -> Result<(), AdapterError> {
        let Some(known) = self.known.iter_mut().find(|k| k.id == id) else {
            unreachable!("kept as long as a sequence uses it")
        };
        known.used_ms = now_ms;
        if known.weights.is_none() {
            known.weights = Some(known.file.load(budget)?);
        }
        Ok(())
    }
}

/// Why a sequence of a step is left out of it.
enum Missing {
    /// There is no room for its adapter while others run.
    Room { needed_bytes: u64 },
    /// Its adapter cannot be read.
    Broken(String),
}

impl<D: Decoder> Engine<D> {
    /// Lets requests choose an adapter. `file` must have been opened for the decoder's model.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add_adapter(&mut self, name: &str, file: AdapterFile) -> Result<(), AdapterNameTaken> {
        if self.adapters.by_name(name).is_some() {
            let name = name.to_owned();
            return Err(AdapterNameTaken { name });
        }
        self.forget_removed();
        let id = AdapterId(self.adapters.next_id);
        self.adapters.next_id += 1;
        self.adapters.known.push(Known {
            id,
            name: name.to_owned(),
            file,
            weights: None,
            used_ms: self.now_ms,
            is_removed: false,
        });
        Ok(())
    }

    /// No request can choose the adapter from now on; those that have go on. Whether it was there.
    pub fn remove_adapter(&mut self, name: &str) -> bool {
        let known = self.adapters.known.iter_mut();
        let mut named = known.filter(|k| !k.is_removed && k.name == name);
        let found = named.next().map(|known| known.is_removed = true).is_some();
        self.forget_removed();
        found
    }

    /// The adapters that requests can choose.
    pub fn adapters(&self) -> Vec<AdapterState> {
        let known = self.adapters.known.iter().filter(|k| !k.is_removed);
        let state = |k: &Known| AdapterState {
            name: k.name.clone(),
            path: k.file.path().to_owned(),
            bytes: k.file.charged_bytes(),
            is_loaded: k.weights.is_some(),
        };
        known.map(state).collect()
    }

    /// Under which names the cache holds what `request` computes: those of its tenant, its adapter and its quality.
    ///
    /// # Errors
    /// If there is no such adapter.
    pub fn namespace_of(&self, request: &Request) -> Result<Namespace, AdmissionError> {
        let id = self.adapter_of(request)?;
        let adapter = id.and_then(|id| self.adapters.by_id(id));
        let fingerprint = match adapter {
            None => self.config.fingerprint,
            Some(adapter) => Fingerprint::of_parts(&[
                ("model", self.config.fingerprint.as_bytes()),
                ("adapter", &adapter.file.hash()),
            ]),
        };
        Ok(self.namespace_under(&fingerprint, &request.tenant, request.quality))
    }

    /// Under which names the cache holds what requests of a tenant computed that asked for this quality and no adapter.
    pub fn namespace(&self, tenant: &str, quality: Option<KvQuality>) -> Namespace {
        self.namespace_under(&self.config.fingerprint, tenant, quality)
    }

    fn namespace_under(
        &self,
        fingerprint: &Fingerprint,
        tenant: &str,
        quality: Option<KvQuality>,
    ) -> Namespace {
        let namespace = Namespace::new(&self.config.secret, tenant, fingerprint);
        namespace.with_quality(self.quality_of(quality))
    }

    /// The adapter that a request names.
    pub(super) fn adapter_of(
        &self,
        request: &Request,
    ) -> Result<Option<AdapterId>, AdmissionError> {
        let Some(name) = &request.adapter else {
            return Ok(None);
        };
        let known = self.adapters.by_name(name);
        let unknown = || AdmissionError::UnknownAdapter { name: name.clone() };
        known.map(|k| Some(k.id)).ok_or_else(unknown)
    }

    fn adapters_in_use(&self) -> Vec<AdapterId> {
        self.running.iter().filter_map(|s| s.adapter).collect()
    }

    /// Bytes that [`Engine::release_adapters`] can free.
    pub(super) fn releasable_adapter_bytes(&self) -> u64 {
        let in_use = self.adapters_in_use();
        let idle = self
            .adapters
            .known
            .iter()
            .filter(|k| !in_use.contains(&k.id));
        let bytes = idle.filter_map(|k| k.weights.as_ref().map(Adapter::charged_bytes));
        bytes.sum()
    }

    /// Lets adapters go that nothing uses that runs, until `bytes` are free. Returns the bytes freed.
    pub(super) fn release_adapters(&mut self, bytes: u64) -> u64 {
        let in_use = self.adapters_in_use();
        self.adapters.release(bytes, &in_use)
    }

    fn forget_removed(&mut self) {
        let sequences = self.running.iter().chain(&self.waiting);
        let in_use: Vec<AdapterId> = sequences.filter_map(|s| s.adapter).collect();
        let known = &mut self.adapters.known;
        known.retain(|k| !k.is_removed || in_use.contains(&k.id));
    }

    /// Loads the adapters of a step's sequences, which are given as indices and tokens; those whose adapter finds no room
    /// sit the step out, unless nothing else would run, and those whose adapter cannot be read end.
    pub(super) fn load_adapters(
        &mut self,
        chunks: Vec<(usize, usize)>,
        events: &mut Vec<Event>,
    ) -> Vec<(usize, usize)> {
        let mut in_step: Vec<AdapterId> = Vec::new();
        let mut kept: Vec<(RequestId, usize)> = Vec::new();
        let mut ended: Vec<(RequestId, FinishReason)> = Vec::new();
        let mut first_without_room = None;
        for &(index, tokens) in &chunks {
            let (request, adapter) = (self.running[index].id, self.running[index].adapter);
            let loaded = adapter.map_or(Ok(()), |id| self.load_adapter(id, &mut in_step));
            match loaded {
                Ok(()) => kept.push((request, tokens)),
                Err(Missing::Broken(why)) => ended.push((request, FinishReason::Failed(why))),
                Err(Missing::Room { needed_bytes }) => {
                    first_without_room.get_or_insert((request, needed_bytes));
                }
            }
        }
        if let Some((request, needed_bytes)) = first_without_room.filter(|_| kept.is_empty()) {
            let available_bytes = self.budget.available();
            let reason = FinishReason::OutOfBudget {
                needed_bytes,
                available_bytes,
            };
            ended.push((request, reason));
        }
        for (request, reason) in ended {
            if let Some(at) = self.running.iter().position(|s| s.id == request) {
                let mut sequence = self.running.remove(at);
                sequence.leave_to(&mut self.cache, self.now_ms);
                events.push(sequence.finished(reason));
            }
        }
        let index = |request| self.running.iter().position(|s| s.id == request);
        let kept = kept.into_iter();
        kept.filter_map(|(request, tokens)| Some((index(request)?, tokens)))
            .collect()
    }

    /// Loads one adapter beside those of the step, `in_step`, for which others give way, then cached blocks, then weights.
    fn load_adapter(&mut self, id: AdapterId, in_step: &mut Vec<AdapterId>) -> Result<(), Missing> {
        let Some(known) = self.adapters.by_id(id) else {
            return Err(Missing::Broken("its adapter is gone".to_owned()));
        };
        let (name, needed_bytes) = (known.name.clone(), known.file.charged_bytes());
        if !in_step.contains(&id) {
            in_step.push(id);
        }
        if known.weights.is_none() {
            let missing = |budget: &Budget| needed_bytes.saturating_sub(budget.available());
            self.adapters.release(missing(&self.budget), in_step);
            if missing(&self.budget) > 0 {
                let bytes = missing(&self.budget);
                self.cache.free(bytes, Occasion::Admission, self.now_ms);
            }
            if missing(&self.budget) > 0 {
                self.release_weights(missing(&self.budget));
            }
        }
        match self.adapters.load(id, &self.budget, self.now_ms) {
            Ok(()) => Ok(()),
            Err(AdapterError::OverBudget(_)) => {
                in_step.retain(|other| *other != id);
                Err(Missing::Room { needed_bytes })
            }
            Err(why) => Err(Missing::Broken(format!("the adapter {name:?}: {why}"))),
        }
    }
}
