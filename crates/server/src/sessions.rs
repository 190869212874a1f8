//! Conversations with a name (`prompt_cache_key`): kept on the disk level when a client asks for it
//! (`prompt_cache_retention`), listed, pinned, exported, imported and deleted by the admin.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use neap_memory::cache::KvCache;
use neap_memory::disk::DiskStore;
use neap_memory::session::{Export, Imported, KeepOptions, Session, SessionError, Sessions};
use neap_memory::{BlockHash, Fingerprint, KvQuality, Namespace};
use serde_json::{Value, json};

use crate::app::App;
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::openai::params::SessionWish;

mod transfer;

pub use transfer::{export, import};

/// Names that are remembered at most, beside those on disk.
const MAX_KNOWN: usize = 256;
/// Tokens of these together at most.
const MAX_KNOWN_TOKENS: usize = 4 << 20;
/// While there is other work, one session is written in this time: making it last takes the disk a moment.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Of a session that the admin has pinned and said no more: it goes last where the disk level is too small.
const PINNED_PRIORITY: u8 = 255;

/// Longest time that a session can be given to live: a hundred years.
const MAX_TTL_S: u64 = 100 * 365 * 86_400;

/// What the admin asks of the sessions.
pub enum Ask {
    /// All of them.
    List,
    /// Keep this one so.
    Pin(String, KeepOptions),
    /// Forget this one.
    Delete(String),
    /// This one, to be written to a file.
    Export(String),
    /// Where to put one that comes from a file and becomes this tenant's.
    Place(String),
    /// Hold this one of this tenant with all others.
    Take(Imported, String),
}

/// What the engine's thread answers.
pub enum Answer {
    /// JSON.
    Value(Value),
    /// See [`Ask::Export`].
    Export(Box<Export>),
    /// See [`Ask::Place`].
    Place(Place),
}

/// Where sessions of a tenant go.
pub struct Place {
    disk: Arc<DiskStore>,
    fingerprint: Fingerprint,
    block_tokens: usize,
    /// By quality.
    namespaces: [Namespace; 4],
}

/// How long a session is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// Not at all: only as the cache sees fit.
    No,
    For(u64),
    /// As the admin wants it.
    Pinned(KeepOptions),
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
        let on_disk = self.kept_session(&namespace, &wish.name, now_ms);
        let before = match self.known.get(&id).map(|known| known.keep) {
            None | Some(Keep::No) => on_disk.map_or(Keep::No, keep_of),
            Some(before) => before,
        };
        let keep = match (before, wish.keep_ms) {
            (Keep::Pinned(options), _) => Keep::Pinned(options),
            (_, Some(ms)) => Keep::For(ms),
            (before, None) if on_disk.is_some() => before,
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

    /// The quality of a conversation, that of its latest turn if it has had several, among those of these namespaces.
    pub fn quality_of(
        &self,
        namespaces: &[Namespace],
        name: &str,
        now_ms: u64,
    ) -> Option<KvQuality> {
        let used_ms = |namespace: &Namespace| {
            let known = self.known.get(&id_of(namespace, name)).map(|k| k.used_ms);
            let kept = || self.kept_session(namespace, name, now_ms);
            known.or_else(|| kept().map(|session| session.saved_ms))
        };
        let found = namespaces.iter().filter(|n| used_ms(n).is_some());
        found.max_by_key(|n| used_ms(n)).map(Namespace::quality)
    }

    fn kept_session(&self, namespace: &Namespace, name: &str, now_ms: u64) -> Option<&Session> {
        self.kept.as_ref()?.get(namespace, name, now_ms)
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
            Keep::Pinned(options) => options,
        };
        let session = (
            &known.namespace,
            known.name.as_str(),
            &known.tokens[..cached],
        );
        kept.save(cache, session, options, now_ms)
    }

    /// Answers the admin. `namespaces` are those of the tenant that is asked for, by quality.
    ///
    /// # Errors
    /// 404 for a session that is not there, 409 where there is no disk level to keep it on.
    pub fn answer(
        &mut self,
        ask: Ask,
        cache: &mut KvCache,
        namespaces: Option<[Namespace; 4]>,
        now_ms: u64,
    ) -> Result<Answer, ApiError> {
        match ask {
            Ask::List => Ok(Answer::Value(self.list(cache, now_ms))),
            Ask::Pin(id, options) => self.pin(&id, options, cache, now_ms).map(Answer::Value),
            Ask::Delete(id) => self.delete(&id, now_ms).map(Answer::Value),
            Ask::Export(id) => self.export(&id, now_ms).map(Answer::Export),
            Ask::Place(_) => {
                let (Some(kept), Some(namespaces)) = (&self.kept, namespaces) else {
                    return Err(no_disk());
                };
                Ok(Answer::Place(Place {
                    disk: Arc::clone(kept.disk()),
                    fingerprint: kept.fingerprint(),
                    block_tokens: kept.block_tokens(),
                    namespaces,
                }))
            }
            Ask::Take(imported, tenant) => self.take(imported, tenant).map(Answer::Value),
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
                "is_pinned": matches!(keep_of(session), Keep::Pinned(_)),
                "priority": session.priority,
                "quality": session.namespace.quality().name(),
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
                "priority": 0,
                "quality": known.namespace.quality().name(),
                "saved_ms": null,
                "expires_ms": null,
                "used_ms": known.used_ms,
            }));
        }
        all.sort_by_key(|s| std::cmp::Reverse(s["used_ms"].as_u64().or(s["saved_ms"].as_u64())));
        json!({"sessions": all, "can_keep": self.kept.is_some()})
    }

    fn pin(
        &mut self,
        id: &str,
        options: KeepOptions,
        cache: &mut KvCache,
        now_ms: u64,
    ) -> Result<Value, ApiError> {
        let kept = self.kept.as_mut().ok_or_else(no_disk)?;
        let on_disk = kept
            .iter(now_ms)
            .find(|s| id_of(&s.namespace, &s.name) == id);
        let on_disk = on_disk.map(|s| (s.namespace, s.name.clone()));
        if on_disk.is_none() && !self.known.contains_key(id) {
            return Err(unknown(id));
        }
        let failed =
            |why: SessionError| ApiError::conflict(format!("the session can't be kept: {why}"));
        if let Some((namespace, name)) = &on_disk {
            kept.set_keep(namespace, name, options, now_ms)
                .map_err(failed)?;
        }
        if let Some(known) = self.known.get_mut(id) {
            let before = std::mem::replace(&mut known.keep, Keep::Pinned(options));
            // Its latest turn may not be on disk yet.
            if on_disk.is_none() || known.is_dirty {
                let saved = self.save(id, cache, now_ms);
                if let (Err(_), Some(known)) = (&saved, self.known.get_mut(id)) {
                    known.keep = before;
                }
                saved.map_err(failed)?;
            }
        }
        Ok(json!({
            "id": id,
            "is_pinned": true,
            "priority": options.priority,
            "expires_ms": options.ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
        }))
    }

    fn export(&self, id: &str, now_ms: u64) -> Result<Box<Export>, ApiError> {
        let kept = self.kept.as_ref().ok_or_else(no_disk)?;
        let found = kept
            .iter(now_ms)
            .find(|s| id_of(&s.namespace, &s.name) == id);
        let Some(session) = found else {
            if self.known.contains_key(id) {
                let message = "the session is not on disk, only in RAM: pin it first";
                return Err(ApiError::conflict(message));
            }
            return Err(unknown(id));
        };
        let export = kept.exporter(&session.namespace, &session.name, now_ms);
        export.map(Box::new).map_err(of_session)
    }

    fn take(&mut self, imported: Imported, tenant: String) -> Result<Value, ApiError> {
        let kept = self.kept.as_mut().ok_or_else(no_disk)?;
        let session = imported.session.clone();
        kept.take(imported);
        let id = id_of(&session.namespace, &session.name);
        let answer = json!({
            "id": id,
            "name": session.name,
            "tokens": session.tokens.len(),
            "priority": session.priority,
            "expires_ms": session.expires_ms,
        });
        let known = Known {
            tenant,
            namespace: session.namespace,
            keep: keep_of(&session),
            name: session.name,
            tokens: session.tokens,
            used_ms: session.saved_ms,
            is_dirty: false,
        };
        self.known.insert(id, known);
        self.forget_some();
        Ok(answer)
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

/// How a session on disk is kept, by what was written with it: a client's has the least priority and an end.
fn keep_of(session: &Session) -> Keep {
    let ttl_ms = session
        .expires_ms
        .map(|expires| expires.saturating_sub(session.saved_ms));
    match (session.priority, ttl_ms) {
        (0, Some(ms)) => Keep::For(ms),
        (priority, ttl_ms) => Keep::Pinned(KeepOptions { priority, ttl_ms }),
    }
}

fn no_disk() -> ApiError {
    ApiError::conflict("there is no disk level to keep a session on: start the server with --disk")
}

/// What an error of a session says over HTTP.
fn of_session(why: SessionError) -> ApiError {
    let message = why.to_string();
    match why {
        SessionError::Malformed { .. } | SessionError::TooLong => ApiError::invalid(message),
        SessionError::Unknown(_) => ApiError::not_found(message),
        SessionError::NoRoom(_) => ApiError::unavailable(message),
        SessionError::Incomplete { .. } | SessionError::Disk(_) | SessionError::Io(_) => {
            ApiError::conflict(message)
        }
    }
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |t| t.as_millis() as u64)
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
    match app.engine.ask(ask).await? {
        Answer::Value(answer) => Ok(json_response(StatusCode::OK, &answer)),
        Answer::Export(_) | Answer::Place(_) => {
            Err(ApiError::internal("the engine answered something else"))
        }
    }
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

/// `POST /memory/sessions/ID/pin`. The body may say how.
pub async fn pin(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let allowed = allowed(&app, &request);
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH);
    let has_body = length.is_some_and(|length| length != "0")
        || headers.contains_key(header::TRANSFER_ENCODING);
    let body = match allowed.is_ok() && has_body {
        true => app.read_json(request).await?,
        false => json!({}),
    };
    answer(app, allowed, Ask::Pin(id, pin_options(&body)?)).await
}

/// `{"priority": 1 to 255, "ttl_seconds": N}`, both of which may be left out.
fn pin_options(body: &Value) -> Result<KeepOptions, ApiError> {
    let fields = body
        .as_object()
        .ok_or_else(|| ApiError::invalid("the body must be an object"))?;
    let mut options = KeepOptions {
        priority: PINNED_PRIORITY,
        ttl_ms: None,
    };
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("priority" | "ttl_seconds", Value::Null) => {}
            ("priority", value) => {
                let priority = value.as_u64().and_then(|p| u8::try_from(p).ok());
                options.priority = priority.filter(|&p| p > 0).ok_or_else(|| {
                    ApiError::field("priority", "priority must be a whole number from 1 to 255")
                })?;
            }
            ("ttl_seconds", value) => {
                let seconds = value.as_u64().filter(|&s| (1..=MAX_TTL_S).contains(&s));
                let seconds = seconds.ok_or_else(|| {
                    let range = format!("ttl_seconds must be a whole number from 1 to {MAX_TTL_S}");
                    ApiError::field("ttl_seconds", range)
                })?;
                options.ttl_ms = Some(seconds * 1000);
            }
            (name, _) => {
                return Err(ApiError::field(name, format!("{name} is not known here")));
            }
        }
    }
    Ok(options)
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
