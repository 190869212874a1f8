//! `neap serve`: many conversations at once, over HTTP.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neap_engine::{Engine, EngineConfig};
use neap_memory::Fingerprint;
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::pressure::watch::{Watch, WatchOptions};
use neap_memory::remote::RemoteLevel;
use neap_memory::session::Sessions;
use neap_model::chat::ChatTemplate;
use neap_model::decoder::{CpuDecoder, Decoder};
use neap_model::embed::{Embedder, Pooling};
use neap_model::tokenizer::Tokenizer;
use neap_server::{EmbeddingModel, Options, ServedModel};

use crate::args::{ModelArgs, ServeArgs};
use crate::blocks::BlockFolder;
use crate::bytes::show;
use crate::failure::Failure;
use crate::loading::{self, Parts};
use crate::remote::{self, Remote, random_secret, secret};

/// Connections at once, besides those that generate.
const SPARE_CONNECTIONS: u32 = 256;

pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let api_keys = api_keys(args)?;
    let disk = args
        .disk
        .as_deref()
        .map(|folder| Disk::open(folder, args.disk_limit))
        .transpose()?;
    let remote = Remote::from_args(&args.remote)?;
    let parallel = args.parallel as usize;
    let parts = loading::load_parts(&args.model, parallel)?;
    let pressure = Watch::begin(&parts.budget, WatchOptions::default())?;
    pressure.set_mapped_bytes(parts.decoder.model().mapped_bytes());
    let model = served_model(args, &parts)?;
    let embedding = match &args.embedding_model {
        Some(path) => Some(embedding_model(args, path, &parts)?),
        None => None,
    };
    let max_active = parallel + args.max_queue as usize;
    let mut options = Options {
        host: args.host.clone(),
        port: args.port,
        max_active,
        max_connections: SPARE_CONNECTIONS + u32::try_from(max_active).unwrap_or(u32::MAX / 2),
        max_body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        slow_client: Duration::from_secs(args.slow_client),
        api_keys,
        admin_key: args.admin_key.clone(),
        embedding,
        pressure: Some(pressure),
        sessions: None,
        grace: Duration::from_secs(args.grace),
    };
    warn_if_open(&options);
    let fingerprint = Fingerprint::from_bytes(parts.source.fingerprint()?.0);
    let block_tokens = parts.kv.block_tokens();
    let about = format!("{} in a budget of {}", model.id, show(parts.budget.limit()));
    let below = Below {
        disk: disk.as_ref(),
        secret: remote.as_ref().map(|remote| remote.secret),
        remote: remote.map(|r| r.level(&parts.budget)).transpose()?,
    };
    let written = below.remote.clone();
    let engine = engine(parts, &model.tokenizer, below, args)?;
    // Once the disk level is charged to the budget.
    options.sessions = disk
        .as_ref()
        .map(|d| Sessions::open(&d.blocks.store, fingerprint, block_tokens));
    neap_server::run(engine, model, options, |address| {
        eprintln!("neap: serving {about} on http://{address}/");
    })?;
    remote::finish(written.as_ref());
    if let Some(disk) = disk {
        disk.blocks.store.sync()?;
    }
    Ok(())
}

/// The model behind `/v1/embeddings`, in the budget of the other.
fn embedding_model(
    args: &ServeArgs,
    path: &Path,
    beside: &Parts,
) -> Result<EmbeddingModel, Failure> {
    let model = ModelArgs {
        model: Some(path.to_owned()),
        context: None,
        ..args.model.clone()
    };
    let parts = loading::load_embedder(&model, Some(&beside.budget))?;
    let pooling = Pooling::of(&parts.source)?;
    Ok(EmbeddingModel {
        id: model_id(path),
        tokenizer: Tokenizer::from_source(&parts.source)?,
        embedder: Mutex::new(Embedder::new(parts.decoder, parts.kv, pooling)),
    })
}

/// A model's name in the API: that of its file or folder.
fn model_id(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let stem = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    stem.map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned())
}

fn served_model(args: &ServeArgs, parts: &Parts) -> Result<ServedModel, Failure> {
    let tokenizer = Tokenizer::from_source(&parts.source)?;
    let id = match (&args.model_name, &args.model.model) {
        (Some(name), _) => name.clone(),
        (None, None) => "neap-tiny".to_owned(),
        (None, Some(path)) => model_id(path),
    };
    let template = ChatTemplate::from_source(&parts.source, &tokenizer)?;
    let context_tokens = parts.decoder.context_tokens();
    Ok(ServedModel::new(id, context_tokens, tokenizer, template))
}

fn engine(
    parts: Parts,
    tokenizer: &Tokenizer,
    below: Below<'_>,
    args: &ServeArgs,
) -> Result<Engine<CpuDecoder>, Failure> {
    let fingerprint = Fingerprint::from_bytes(parts.source.fingerprint()?.0);
    let options = CacheOptions {
        disk: below.disk.map(|d| Arc::clone(&d.blocks.store)),
        remote: below.remote,
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
        max_running: args.parallel as usize,
        fingerprint,
        secret: match (below.secret, below.disk) {
            (Some(secret), _) => secret,
            (None, Some(disk)) => disk.secret,
            (None, None) => random_secret()?,
        },
        quality: parts.quality,
        level: parts.level,
    };
    Ok(Engine::new(
        parts.decoder,
        Some(tokenizer.clone()),
        cache,
        config,
    ))
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

fn warn_if_open(options: &Options) {
    let is_local = options.host == "localhost"
        || options
            .host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if !is_local && options.api_keys.is_empty() {
        eprintln!(
            "neap: whoever reaches {} may use the model: give --api-key to change that",
            options.host
        );
    }
}

/// What lies below RAM.
struct Below<'a> {
    disk: Option<&'a Disk>,
    remote: Option<Arc<RemoteLevel>>,
    /// That of the processes that share the remote store: with another one they would not meet.
    secret: Option<[u8; 32]>,
}

/// The disk level under the prefix cache.
struct Disk {
    blocks: BlockFolder,
    /// Names of blocks are keyed with it, so it must be the same after a restart.
    secret: [u8; 32],
}

impl Disk {
    fn open(folder: &Path, limit_bytes: u64) -> Result<Self, Failure> {
        let blocks = BlockFolder::open(folder, limit_bytes)?;
        let secret = secret(&folder.join("secret"))?;
        Ok(Self { blocks, secret })
    }
}
