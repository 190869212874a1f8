//! Conversations with a name (`prompt_cache_key`): kept on the disk level when a client asks for it
//! (`prompt_cache_retention`), listed, pinned and deleted by the admin.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_memory::cache::KvCache;
use neap_memory::session::{KeepOptions, SessionError, Sessions};
use neap_memory::{BlockHash, Namespace};
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::openai::params::SessionWish;

/// Names that are remembered at most, beside those on disk.
const MAX_KNOWN: usize = 256;
/// Tokens of these together at most.
const MAX_KNOWN_TOKENS: usize = 4 << 20;
/// While there is other work, one session is written in this time: making it last takes the disk a moment.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Of a session that the admin has pinned: it goes last where the disk level is too small.
const PINNED_PRIORITY: u8 = 255;

/// What the admin asks of the sessions.
pub enum Ask {
    /// All of them.
    List,
    /// Keep this one without end.
    Pin(String),
    /// Forget this one.
    Delete(String),
}

/// How long a session is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// Not at all: only as the cache sees fit.
    No,
    For(u64),
    Pinned,
}

struct Known {
    tenant: String,
    namespace: Namespace,
    name: String,
    /// Of the latest turn.
    tokens: Vec<u32>,
    used_ms: u64,
    keep: Keep,
    /// There is something to write.
    is_dirty: bool,
}

/// The sessions, on the engine's thread.
pub struct Keeper {
    kept: Option<Sessions>,
    known: HashMap<String, Known>,
    saved: Instant,
}

fn id_of(namespace: &Namespace, name: &str) -> String {
    let key: BlockHash = namespace.session_key(name);
    key.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

impl Keeper {
    /// `kept` is what the disk level holds, if there is one.
    pub fn new(kept: Option<Sessions>) -> Self {
        Self {
            kept,
            known: HashMap::new(),
            saved: Instant::now(),
        }
    }

    /// A turn of a conversation has ended: `tokens` are prompt and answer.
    pub fn turn(
        &mut self,
        (namespace, tenant): (Namespace, String),
        wish: SessionWish,
        tokens: Vec<u32>,
        now_ms: u64,
    ) {
        let id = id_of(&namespace, &wish.name);
        let before = self.known.get(&id).map_or(Keep::No, |k| k.keep);
        let keep = match (before, wish.keep_ms) {
            (Keep::Pinned, _) => Keep::Pinned,
            (_, Some(ms)) => Keep::For(ms),
            (before, None) if self.is_kept(&namespace, &wish.name, now_ms) => before,
            (_, None) => Keep::No,
        };
        let known = Known {
            tenant,
            namespace,
            name: wish.name,
            tokens,
            used_ms: now_ms,
            keep,
            is_dirty: keep != Keep::No && self.kept.is_some(),
        };
        self.known.insert(id, known);
        self.forget_some();
    }

    /// A turn of a conversation begins: what the disk holds of it is found from now on, also where the question ends
    /// within a block.
    pub fn begin(&self, namespace: &Namespace, name: &str, cache: &mut KvCache, now_ms: u64) {
        if let Some(kept) = &self.kept {
            // One that is not there is new.
            let _ = kept.restore(cache, namespace, name, now_ms);
        }
    }

    fn is_kept(&self, namespace: &Namespace, name: &str, now_ms: u64) -> bool {
        let kept = self.kept.as_ref();
        kept.is_some_and(|k| k.list(namespace, now_ms).any(|s| s.name == name))
    }

    fn forget_some(&mut self) {
        loop {
            let tokens: usize = self.known.values().map(|k| k.tokens.len()).sum();
            if self.known.len() <= MAX_KNOWN && tokens <= MAX_KNOWN_TOKENS {
                return;
            }
            let clean = self.known.iter().filter(|(_, k)| !k.is_dirty);
            let oldest = clean
                .min_by_key(|(_, k)| k.used_ms)
                .map(|(id, _)| id.clone());
            let Some(id) = oldest else {
                return;
            };
            self.known.remove(&id);
        }
    }

    /// Writes what is to be kept: all of it when there is nothing else to do, else a little at a time.
    pub fn save_some(&mut self, cache: &mut KvCache, is_idle: bool, now_ms: u64) {
        if !is_idle && self.saved.elapsed() < SAVE_EVERY {
            return;
        }
        loop {
            let dirty = self.known.iter().find(|(_, k)| k.is_dirty);
            let Some(id) = dirty.map(|(id, _)| id.clone()) else {
                return;
            };
            if let Err(why) = self.save(&id, cache, now_ms) {
                tracing::warn!(%why, session = id, "a session could not be kept");
            }
            self.saved = Instant::now();
            if !is_idle {
                return;
            }
        }
    }

    /// As much of it as is cached: the rest would have to be computed to be kept.
    fn save(&mut self, id: &str, cache: &mut KvCache, now_ms: u64) -> Result<(), SessionError> {
        let (Some(kept), Some(known)) = (&mut self.kept, self.known.get_mut(id)) else {
            return Ok(());
        };
        known.is_dirty = false;
        let cached = cache.forecast(&known.namespace, &known.tokens).tokens;
        let options = match known.keep {
            Keep::No => return Ok(()),
            Keep::For(ms) => KeepOptions {
                priority: 0,
                ttl_ms: Some(ms),
            },
            Keep::Pinned => KeepOptions {
                priority: PINNED_PRIORITY,
                ttl_ms: None,
            },
        };
        let session = (
            &known.namespace,
            known.name.as_str(),
            &known.tokens[..cached],
        );
        kept.save(cache, session, options, now_ms)
    }

    /// Answers the admin.
    ///
    /// # Errors
    /// 404 for a session that is not there, 409 where there is no disk level to keep it on.
    pub fn answer(
        &mut self,
        ask: Ask,
        cache: &mut KvCache,
        now_ms: u64,
    ) -> Result<Value, ApiError> {
        match ask {
            Ask::List => Ok(self.list(cache, now_ms)),
            Ask::Pin(id) => self.pin(&id, cache, now_ms),
            Ask::Delete(id) => self.delete(&id, now_ms),
        }
    }

    fn list(&self, cache: &KvCache, now_ms: u64) -> Value {
        let mut all: Vec<Value> = Vec::new();
        let on_disk = self.kept.iter().flat_map(|kept| kept.iter(now_ms));
        for session in on_disk {
            let id = id_of(&session.namespace, &session.name);
            let known = self.known.get(&id);
            all.push(json!({
                "id": id,
                "name": session.name,
                "tenant": known.and_then(tenant_of),
                "tokens": session.tokens.len(),
                "cached_tokens": cache.forecast(&session.namespace, &session.tokens).tokens,
                "is_kept": true,
                "is_pinned": session.priority == PINNED_PRIORITY && session.expires_ms.is_none(),
                "saved_ms": session.saved_ms,
                "expires_ms": session.expires_ms,
                "used_ms": known.map(|k| k.used_ms),
            }));
        }
        for (id, known) in &self.known {
            if all.iter().any(|s| s["id"] == *id) {
                continue;
            }
            all.push(json!({
                "id": id,
                "name": known.name,
                "tenant": tenant_of(known),
                "tokens": known.tokens.len(),
                "cached_tokens": cache.forecast(&known.namespace, &known.tokens).tokens,
                "is_kept": false,
                "is_pinned": false,
                "saved_ms": null,
                "expires_ms": null,
                "used_ms": known.used_ms,
            }));
        }
        all.sort_by_key(|s| std::cmp::Reverse(s["used_ms"].as_u64().or(s["saved_ms"].as_u64())));
        json!({"sessions": all, "can_keep": self.kept.is_some()})
    }

    fn pin(&mut self, id: &str, cache: &mut KvCache, now_ms: u64) -> Result<Value, ApiError> {
        let Some(kept) = &self.kept else {
            let message =
                "there is no disk level to keep a session on: start the server with --disk";
            return Err(ApiError::conflict(message));
        };
        if !self.known.contains_key(id) {
            let session = kept
                .iter(now_ms)
                .find(|s| id_of(&s.namespace, &s.name) == id)
                .ok_or_else(|| unknown(id))?
                .clone();
            // What is on disk is found there again, and need not be written twice.
            cache.adopt(&session.namespace, &session.tokens, now_ms);
            let known = Known {
                tenant: String::new(),
                namespace: session.namespace,
                name: session.name,
                tokens: session.tokens,
                used_ms: session.saved_ms,
                keep: Keep::No,
                is_dirty: false,
            };
            self.known.insert(id.to_owned(), known);
        }
        let before = self.known.get_mut(id).map(|known| {
            let before = known.keep;
            known.keep = Keep::Pinned;
            before
        });
        if let Err(why) = self.save(id, cache, now_ms) {
            if let (Some(known), Some(before)) = (self.known.get_mut(id), before) {
                known.keep = before;
            }
            return Err(ApiError::conflict(format!(
                "the session can't be kept: {why}"
            )));
        }
        Ok(json!({"id": id, "is_pinned": true}))
    }

    fn delete(&mut self, id: &str, now_ms: u64) -> Result<Value, ApiError> {
        let was_known = self.known.remove(id).is_some();
        let mut was_kept = false;
        if let Some(kept) = &mut self.kept {
            let found = kept
                .iter(now_ms)
                .find(|s| id_of(&s.namespace, &s.name) == id);
            if let Some((namespace, name)) = found.map(|s| (s.namespace, s.name.clone())) {
                was_kept = true;
                kept.delete(&namespace, &name)
                    .map_err(|why| ApiError::internal(why.to_string()))?;
            }
        }
        if was_known || was_kept {
            Ok(json!({"id": id, "deleted": true}))
        } else {
            Err(unknown(id))
        }
    }
}

/// Enough of a tenant's name to tell it from others: it is a hash of its key.
fn tenant_of(known: &Known) -> Option<String> {
    let short: String = known.tenant.chars().take(12).collect();
    (!short.is_empty()).then_some(short)
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no session {id:?}")).with_code("session_not_found")
}

/// What the admin asks, answered; a request's head is looked at before.
async fn answer(
    app: Arc<App>,
    allowed: Result<(), ApiError>,
    ask: Ask,
) -> Result<Response, ApiError> {
    allowed?;
    let answer = app.engine.ask(ask).await?;
    Ok(json_response(StatusCode::OK, &answer))
}

fn allowed(app: &App, request: &Request) -> Result<(), ApiError> {
    let peer = request.extensions().get::<Peer>();
    app.keys().admin(request.headers(), peer)
}

/// `GET /memory/sessions`.
pub async fn list(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let allowed = allowed(&app, &request);
    answer(app, allowed, Ask::List).await
}

/// `POST /memory/sessions/ID/pin`.
pub async fn pin(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let allowed = allowed(&app, &request);
    answer(app, allowed, Ask::Pin(id)).await
}

/// `DELETE /memory/sessions/ID`.
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let allowed = allowed(&app, &request);
    answer(app, allowed, Ask::Delete(id)).await
}
