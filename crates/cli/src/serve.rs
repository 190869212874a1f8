//! `neap serve`: many conversations at once, over HTTP.

mod below;
mod reload;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neap_engine::{Engine, EngineConfig};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::pressure::watch::{Watch, WatchOptions};
use neap_memory::session::Sessions;
use neap_memory::{Budget, Fingerprint};
use neap_model::chat::ChatTemplate;
use neap_model::classify::Classifier;
use neap_model::decoder::{CpuDecoder, Decoder};
use neap_model::embed::{Embedder, Pooling};
use neap_model::tokenizer::Tokenizer;
use neap_server::{
    ClassifierModel, EmbeddingModel, Live, Loaded, Options, SendTraces, ServedModel, Traces,
};

use crate::adapters;
use crate::args::{ModelArgs, ServeArgs};
use crate::bytes::show;
use crate::failure::Failure;
use crate::http::Target;
use crate::loading::{self, Parts};
use below::Below;
use reload::CommandLine;

/// Connections at once, besides those that generate.
const SPARE_CONNECTIONS: usize = 256;

pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let live = live(args)?;
    warn_if_open(&args.host, &live);
    let budget = loading::budget(&args.model);
    let checked = Checked::open(args, budget.limit())?;
    let fingerprint = checked.fingerprint;
    let below = Arc::new(Below::open(args, &budget)?);
    let loaded = load(args, checked, &budget, &below)?;
    let about = format!(
        "{} in a budget of {}",
        loaded.model.id,
        show(budget.limit())
    );
    let embedding = match &args.embedding_model {
        Some(path) => Some(embedding_model(args, path, &budget)?),
        None => None,
    };
    let classifier = match &args.classifier_model {
        Some(path) => Some(classifier_model(args, path, &budget)?),
        None => None,
    };
    let options = Options {
        host: args.host.clone(),
        port: args.port,
        embedding,
        classifier,
        pressure: Some(Watch::begin(&budget, WatchOptions::default())?),
        traces: args.otlp.as_deref().map(traces).transpose()?,
        live,
    };
    let again = CommandLine::new(args, fingerprint, (budget, Arc::clone(&below)));
    neap_server::run(loaded, Some(Box::new(again)), options, |address| {
        eprintln!("neap: serving {about} on http://{address}/");
    })?;
    below.finish()
}

/// Traces that go to the collector at `url`.
fn traces(url: &str) -> Result<Traces, Failure> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let target =
        Target::parse(url, None, TIMEOUT).map_err(|why| Failure::new(format!("--otlp: {why}")))?;
    let send: SendTraces =
        Box::new(
            move |body| match target.whole("POST", "/v1/traces", Some(body)) {
                Ok((200..300, _)) => Ok(()),
                Ok((status, answer)) => Err(format!("status {status}: {answer}")),
                Err(why) => Err(why.to_string()),
            },
        );
    Ok(Traces::begin(send)?)
}

/// What can be changed while it runs.
fn live(args: &ServeArgs) -> Result<Live, Failure> {
    let max_active = args.parallel as usize + args.max_queue as usize;
    Ok(Live {
        api_keys: api_keys(args)?,
        admin_key: args.admin_key.clone(),
        max_active,
        max_connections: SPARE_CONNECTIONS + max_active,
        max_body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        slow_client: Duration::from_secs(args.slow_client),
        step_ms: Some(args.step_ms),
        idle_sink: (args.idle_sink > 0).then(|| Duration::from_secs(args.idle_sink)),
        grace: Duration::from_secs(args.grace),
    })
}

/// The model behind `/v1/embeddings`, in the budget of the other.
fn embedding_model(
    args: &ServeArgs,
    path: &Path,
    budget: &Budget,
) -> Result<EmbeddingModel, Failure> {
    let parts = encoder(args, path, budget)?;
    let pooling = Pooling::of(&parts.source)?;
    Ok(EmbeddingModel {
        id: model_id(path),
        tokenizer: Tokenizer::from_source(&parts.source)?,
        embedder: Mutex::new(Embedder::new(parts.decoder, parts.kv, pooling)),
    })
}

/// The model behind `/v1/classify`, or that judges pairs.
fn classifier_model(
    args: &ServeArgs,
    path: &Path,
    budget: &Budget,
) -> Result<ClassifierModel, Failure> {
    let parts = encoder(args, path, budget)?;
    let tokenizer = Tokenizer::from_source(&parts.source)?;
    let classifier = Classifier::new(parts.decoder, parts.kv)?;
    Ok(ClassifierModel::new(model_id(path), tokenizer, classifier))
}

/// Another model in the budget of the one that is served.
fn encoder(args: &ServeArgs, path: &Path, budget: &Budget) -> Result<Parts, Failure> {
    let model = ModelArgs {
        model: Some(path.to_owned()),
        context: None,
        ..args.model.clone()
    };
    loading::load_embedder(&model, Some(budget))
}

/// A model's name in the API: that of its file or folder.
fn model_id(path: &Path) -> String {
    if !path.exists() {
        // A model of the cache.
        return path.to_string_lossy().into_owned();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    stem.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned())
}

/// A model that is open and sound as far as that can be told without loading it.
struct Checked {
    id: String,
    opened: loading::Opened,
    fingerprint: Fingerprint,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Checked {
    fn open(args: &ServeArgs, limit_bytes: u64) -> Result<Self, Failure> {
        let id = match (&args.model_name, &args.model.model) {
            (Some(name), _) => name.clone(),
            (None, None) => "neap-tiny".to_owned(),
            (None, Some(path)) => model_id(path),
        };
        let opened = loading::open_writer(&args.model, args.parallel as usize, limit_bytes)?;
        let source = &opened.1;
        let tokenizer = loading::tokenizer(source)?;
        Ok(Self {
            id,
            fingerprint: loading::fingerprint(&args.model, source)?,
            template: loading::template(source, &tokenizer)?,
            tokenizer,
            opened,
        })
    }
}

/// Loads a model within what the budget has left.
fn load(
    args: &ServeArgs,
    checked: Checked,
    budget: &Budget,
    below: &Below,
) -> Result<Loaded<CpuDecoder>, Failure> {
    let fingerprint = checked.fingerprint;
    let sequences = args.parallel as usize;
    let parts = loading::load_opened(&args.model, checked.opened, sequences, budget)?;
    let disk = below.disk.as_ref().map(|disk| &disk.blocks.store);
    let block_tokens = parts.kv.block_tokens();
    let options = CacheOptions {
        disk: disk.cloned(),
        remote: below.remote.clone(),
        quantized: parts.quantized.clone(),
        ..CacheOptions::new(fingerprint)
    };
    let cache = KvCache::new(&parts.kv, options).map_err(|why| {
        Failure::new(format!(
            "the prefix cache does not fit: {why}; raise --memory or lower --chunk"
        ))
    })?;
    let config = EngineConfig {
        batch_tokens: parts.decoder.limits().batch_tokens,
        step_ms: Some(args.step_ms),
        max_running: sequences,
        fingerprint,
        secret: below.secret,
        quality: parts.quality,
        level: parts.level,
    };
    let (tokenizer, context_tokens) = (checked.tokenizer, parts.decoder.context_tokens());
    let source = Arc::clone(&parts.source);
    let mapped_bytes = parts.decoder.model().mapped_bytes();
    let mut engine = Engine::new(parts.decoder, Some(tokenizer.clone()), cache, config);
    adapters::add(&mut engine, &source, &args.lora)?;
    let mut model = ServedModel::new(checked.id, context_tokens, tokenizer, checked.template);
    model.source = Some(source);
    Ok(Loaded {
        sessions: disk.map(|disk| Sessions::open(disk, fingerprint, block_tokens)),
        mapped_bytes,
        engine,
        model,
    })
}

/// The keys of the command line and of the file.
fn api_keys(args: &ServeArgs) -> Result<Vec<String>, Failure> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path)
            .map_err(|why| Failure::new(format!("--api-key-file {}: {why}", path.display())))?;
        let lines = text.lines().map(str::trim);
        let in_file = keys.len();
        keys.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
        if keys.len() == in_file {
            // An empty file would open the server to everybody.
            return Err(Failure::new(format!(
                "--api-key-file {} holds no key: write one a line",
                path.display()
            )));
        }
    }
    if keys.iter().any(|key| key.trim().is_empty()) {
        return Err(Failure::new("an API key must not be empty"));
    }
    Ok(keys)
}

fn warn_if_open(host: &str, live: &Live) {
    let is_local = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if !is_local && live.api_keys.is_empty() {
        eprintln!("neap: whoever reaches {host} may use the model: give --api-key to change that");
    }
}
