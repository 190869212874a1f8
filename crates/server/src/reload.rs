//! Reads the configuration again while the server runs: settings change at once, the model when what runs has finished.
//!
//! A change is made whole or not at all. The new model is opened and checked while the old one serves. Then requests
//! that come wait, those that run finish, the old model gives back what it can (cached blocks to disk, weights to
//! their file), and the new one is loaded in the same budget. Only when it is ready the old one is dropped; where it
//! can't be, the old one goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use neap_engine::Engine;
use neap_memory::session::Sessions;
use serde_json::{Value, json};

use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::{ApiError, json_response};
use crate::live::Live;
use crate::worker::Settings;
use crate::{adapters, memory};

/// A model that is ready to serve.
pub struct Loaded<D> {
    /// What computes.
    pub engine: Engine<D>,
    /// What it is called, reads and writes.
    pub model: ServedModel,
    /// Conversations on the disk level, if there is one.
    pub sessions: Option<Sessions>,
    /// How many of the charged bytes are mapped files, which the system can take back by itself.
    pub mapped_bytes: u64,
}

/// Loads a model that was opened and checked.
pub type Load<D> = Box<dyn FnOnce() -> Result<Loaded<D>, String> + Send>;

/// What a configuration, read again, says other than before.
pub struct Change<D> {
    /// All settings that can change at once.
    pub live: Live,
    /// The budget, if it is another.
    pub budget_bytes: Option<u64>,
    /// The model, if it is another, or is to run otherwise.
    pub model: Option<Load<D>>,
    /// Names of what has changed and will be in force.
    pub changed: Vec<String>,
    /// Names of what has changed and needs a restart.
    pub needs_restart: Vec<String>,
}

/// Where a server's configuration comes from.
pub trait Configuration<D>: Send + Sync + 'static {
    /// Reads it again and compares; changes nothing. Opens and checks a new model.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    fn read(&self) -> Result<Change<D>, String>;

    /// What was read last is in force now.
    fn keep(&self);
}

/// A [`Change`] without what only the engine's thread may know.
pub struct Reread {
    live: Live,
    budget_bytes: Option<u64>,
    has_model: bool,
    changed: Vec<String>,
    needs_restart: Vec<String>,
}

/// The engine's thread takes what it is to load from here.
pub type Slot<D> = Arc<Mutex<Option<Load<D>>>>;

/// A [`Configuration`] of whatever decoder.
pub trait Source: Send + Sync {
    /// As [`Configuration::read`]; a model that is to be loaded waits in the slot.
    fn read(&self) -> Result<Reread, String>;

    /// As [`Configuration::keep`].
    fn keep(&self);
}

/// A configuration whose models wait in a slot.
pub struct Slotted<D> {
    /// What is read.
    pub configuration: Box<dyn Configuration<D>>,
    /// Where the engine's thread looks.
    pub slot: Slot<D>,
}

impl<D: 'static> Source for Slotted<D> {
    fn read(&self) -> Result<Reread, String> {
        let change = self.configuration.read()?;
        let has_model = change.model.is_some();
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = change.model;
        Ok(Reread {
            live: change.live,
            budget_bytes: change.budget_bytes,
            has_model,
            changed: change.changed,
            needs_restart: change.needs_restart,
        })
    }

    fn keep(&self) {
        self.configuration.keep();
    }
}

/// `POST /admin/reload`.
pub async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Peer>();
    app.keys().admin(request.headers(), peer)?;
    // A client that leaves must not leave a change half made.
    let answer = tokio::spawn(reload(app))
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the configuration could not be read")))?;
    Ok(json_response(StatusCode::OK, &answer))
}

/// Reads the configuration again and makes the change.
///
/// # Errors
/// Why nothing was changed.
pub async fn reload(app: Arc<App>) -> Result<Value, ApiError> {
    let result = try_reload(&app).await;
    match &result {
        Ok(done) if done["needs_restart"] != json!([]) => {
            tracing::warn!(%done, "the configuration was read again; some of it needs a restart");
        }
        Ok(done) => tracing::info!(%done, "the configuration was read again"),
        Err(why) => tracing::error!(why = why.message, "the configuration stays as it was"),
    }
    result
}

async fn try_reload(app: &Arc<App>) -> Result<Value, ApiError> {
    let Some(source) = app.configuration.clone() else {
        return Err(ApiError::conflict(
            "this server has no configuration to read",
        ));
    };
    let Ok(_alone) = app.reloading.try_lock() else {
        return Err(ApiError::conflict("a change is under way already"));
    };
    let refused = |why: String| ApiError::conflict(format!("nothing was changed: {why}"));
    let read = Arc::clone(&source);
    let reread = tokio::task::spawn_blocking(move || read.read())
        .await
        .map_err(|_| ApiError::internal("the configuration could not be read"))?
        .map_err(refused)?;
    let budget_before = memory::limit_set(app);
    if let Some(bytes) = reread.budget_bytes {
        let least = memory::least_bytes(app);
        if bytes < least && !reread.has_model {
            return Err(refused(format!(
                "the budget must be at least {least} bytes"
            )));
        }
        memory::set_limit(app, bytes).await;
    }
    let mut done = json!({"changed": reread.changed, "needs_restart": reread.needs_restart});
    if reread.has_model {
        match change_model(app).await {
            Ok(changed) => done["model"] = changed,
            Err(why) => {
                if reread.budget_bytes.is_some() {
                    memory::set_limit(app, budget_before).await;
                }
                return Err(refused(why));
            }
        }
    }
    app.set_live(reread.live).await;
    source.keep();
    Ok(done)
}

/// Serves the model that waits in the slot. Tells how long requests had to wait.
async fn change_model(app: &Arc<App>) -> Result<Value, String> {
    let begin = Instant::now();
    let grace = app.live().grace;
    let Some(closed) = app.serving.close(grace).await else {
        return Err(format!(
            "requests still run after {} s: ask again, or raise --grace",
            grace.as_secs()
        ));
    };
    let (model, mapped_bytes) = app.engine.change().await?;
    if let Some(pressure) = &app.pressure {
        pressure.set_mapped_bytes(mapped_bytes);
    }
    let (id, before) = (model.id.clone(), app.serving.now());
    app.serving.replace(model, &closed);
    let (adapters, dropped) = adapters::add_again(app, &before).await;
    for (name, why) in &dropped {
        tracing::warn!(name, why, "an adapter does not go with the new model");
    }
    let dropped: Vec<Value> = dropped
        .into_iter()
        .map(|(name, why)| json!({"name": name, "reason": why}))
        .collect();
    let waited_ms = begin.elapsed().as_millis() as u64;
    Ok(json!({
        "id": id,
        "requests_waited_ms": waited_ms,
        "adapters_added_again": adapters,
        "adapters_dropped": dropped,
    }))
}

impl From<&Live> for Settings {
    fn from(live: &Live) -> Self {
        Self {
            max_active: live.max_active,
            step_ms: live.step_ms,
            idle_sink_ms: live.idle_sink.map(|time| time.as_millis() as u64),
        }
    }
}
