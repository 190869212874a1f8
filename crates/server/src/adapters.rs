//! Adapters while the server runs: added and removed by the paths that vLLM has, chosen by the model's name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use neap_engine::{AdapterState, Engine};
use neap_model::adapter::{AdapterError, AdapterFile};
use neap_model::decoder::Decoder;
use serde_json::Value;

use crate::app::{App, ServedModel};
use crate::auth::Peer;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::{blocking, now_s};

/// Longest name of an adapter.
const MAX_NAME_BYTES: usize = 256;

/// What the admin wants of the engine's adapters.
pub enum Ask {
    /// A new one; with `replace`, also in the place of another of its name.
    Add {
        name: String,
        file: Box<AdapterFile>,
        replace: bool,
    },
    Remove(String),
}

impl Ask {
    /// Does it.
    ///
    /// # Errors
    /// If the name is taken, or not there.
    pub fn carry_out<D: Decoder>(self, engine: &mut Engine<D>) -> Result<(), ApiError> {
        match self {
            Self::Add {
                name,
                file,
                replace,
            } => {
                if replace {
                    engine.remove_adapter(&name);
                }
                let added = engine.add_adapter(&name, *file);
                added.map_err(|why| ApiError::field("lora_name", why.to_string()))
            }
            Self::Remove(name) => match engine.remove_adapter(&name) {
                true => Ok(()),
                false => Err(unknown(&name)),
            },
        }
    }
}

fn unknown(name: &str) -> ApiError {
    let mut error = ApiError::not_found(format!("there is no adapter {name:?}"));
    error.param = Some("lora_name".into());
    error
}

/// An adapter that clients can name.
struct Known {
    /// Seconds since 1970 at which it came.
    created: u64,
    /// Its file, of one that was added by a request.
    path: Option<String>,
}

/// The adapters that clients can name.
#[derive(Default)]
pub struct Names(RwLock<BTreeMap<String, Known>>);

impl Names {
    /// Those of an engine.
    pub fn of(adapters: &[AdapterState]) -> Self {
        let known = |adapter: &AdapterState| {
            let created = now_s();
            let path = None;
            (adapter.name.clone(), Known { created, path })
        };
        Self(RwLock::new(adapters.iter().map(known).collect()))
    }

    /// Names and the seconds since 1970 at which they came.
    pub fn list(&self) -> Vec<(String, u64)> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let name = |(name, known): (&String, &Known)| (name.clone(), known.created);
        names.iter().map(name).collect()
    }

    /// Names and files of those that were added by requests.
    fn added(&self) -> Vec<(String, String)> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let added = |(name, known): (&String, &Known)| Some((name.clone(), known.path.clone()?));
        names.iter().filter_map(added).collect()
    }

    pub fn created(&self, name: &str) -> Option<u64> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(name).map(|known| known.created)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Known>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A model as a request names it: the one that is served, or with an adapter, by the adapter's name or as `MODEL:ADAPTER`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// As the client calls it.
    pub id: String,
    /// The adapter.
    pub adapter: Option<String>,
}

impl ServedModel {
    /// What `model` in a body means; left out, it is the served model.
    ///
    /// # Errors
    /// 404 for a name that is not known.
    pub(crate) fn choose(&self, fields: &Fields<'_>) -> Result<Chosen, ApiError> {
        let Some(asked) = fields.string("model")? else {
            return Ok(self.chosen(&self.id, None));
        };
        if asked == self.id {
            return Ok(self.chosen(asked, None));
        }
        let after = asked.strip_prefix(self.id.as_str());
        let after = after.and_then(|rest| rest.strip_prefix(':'));
        for name in [Some(asked), after].into_iter().flatten() {
            if self.adapters.created(name).is_some() {
                return Ok(self.chosen(asked, Some(name)));
            }
        }
        Err(crate::openai::models::unknown(asked, &self.id))
    }

    fn chosen(&self, id: &str, adapter: Option<&str>) -> Chosen {
        Chosen {
            id: id.to_owned(),
            adapter: adapter.map(str::to_owned),
        }
    }
}

/// `POST /v1/load_lora_adapter` with `lora_name`, `lora_path` and perhaps `load_inplace`.
pub async fn load(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = read(&app, request).await?;
    let fields = Fields::of(&body)?;
    let name = name(&fields)?;
    let model = app.serving.lease().await;
    let beside = [
        app.embedding.as_ref().map(|model| &model.id),
        app.classifier.as_ref().map(|model| &model.id),
    ];
    if name == model.id || beside.contains(&Some(&name)) {
        return Err(fields.wrong("lora_name", "another name than a model's"));
    }
    let path = fields.string("lora_path")?.filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| fields.wrong("lora_path", "the path of an adapter"))?;
    add(
        &app,
        model.model(),
        &name,
        path,
        fields.flag("load_inplace")?,
    )
    .await?;
    Ok(told(format!(
        "Success: LoRA adapter '{name}' added successfully."
    )))
}

/// Adds an adapter of a file to the model that is served.
async fn add(
    app: &App,
    model: &Arc<ServedModel>,
    name: &str,
    path: &str,
    replace: bool,
) -> Result<(), ApiError> {
    let (opened, opened_path) = (Arc::clone(model), path.to_owned());
    let file = blocking(move || open(&opened, &opened_path)).await?;
    let ask = Ask::Add {
        name: name.to_owned(),
        file: Box::new(file),
        replace,
    };
    app.engine.adapters(ask).await?;
    let known = Known {
        created: now_s(),
        path: Some(path.to_owned()),
    };
    model.adapters.change(|names| {
        names.insert(name.to_owned(), known);
    });
    Ok(())
}

/// Adds what requests had added to the model `before` to the one that is served now, from the same files. Tells the
/// names, and of those that do not fit any more, why.
pub async fn add_again(app: &App, before: &ServedModel) -> (Vec<String>, Vec<(String, String)>) {
    let model = app.serving.now();
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for (name, path) in before.adapters.added() {
        if model.adapters.created(&name).is_some() {
            // The configuration has one of this name by now.
            continue;
        }
        match add(app, &model, &name, &path, false).await {
            Ok(()) => kept.push(name),
            Err(why) => dropped.push((name, why.message)),
        }
    }
    (kept, dropped)
}

/// `POST /v1/unload_lora_adapter` with `lora_name`.
pub async fn unload(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = read(&app, request).await?;
    let name = name(&Fields::of(&body)?)?;
    let model = app.serving.lease().await;
    app.engine.adapters(Ask::Remove(name.clone())).await?;
    model.adapters.change(|names| {
        names.remove(&name);
    });
    Ok(told(format!(
        "Success: LoRA adapter '{name}' removed successfully."
    )))
}

async fn read(app: &App, request: Request) -> Result<Value, ApiError> {
    let peer = request.extensions().get::<Peer>();
    app.keys().admin(request.headers(), peer)?;
    app.read_json(request).await
}

fn name(fields: &Fields<'_>) -> Result<String, ApiError> {
    let must = format!("a name of 1 to {MAX_NAME_BYTES} bytes without control characters");
    let name = fields.string("lora_name")?.filter(|name| {
        (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
    });
    let name = name.ok_or_else(|| fields.wrong("lora_name", &must))?;
    Ok(name.to_owned())
}

fn open(model: &ServedModel, path: &str) -> Result<AdapterFile, ApiError> {
    let Some(source) = &model.source else {
        return Err(ApiError::invalid("this model takes no adapters"));
    };
    AdapterFile::open(path, source).map_err(|why| match why {
        AdapterError::OverBudget(why) => ApiError::unavailable(why.to_string()),
        why => ApiError::field("lora_path", why.to_string()),
    })
}

fn told(text: String) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = StatusCode::OK;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
