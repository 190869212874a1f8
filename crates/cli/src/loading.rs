//! Opens a model inside a budget.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use neap_engine::{Engine, EngineConfig};
use neap_kernels::kv::KvLayout;
use neap_kernels::{Isa, ThreadPool, pool};
use neap_memory::cache::{CacheOptions, KvCache};
use neap_memory::disk::DiskStore;
use neap_memory::pressure::Bound;
use neap_memory::pressure::watch::{Watch, WatchOptions};
use neap_memory::remote::RemoteLevel;
use neap_memory::{Budget, Fingerprint, KvPool, KvQuality, Level, OverBudget, QuantizedLevels};
use neap_model::chat::ChatTemplate;
use neap_model::decoder::{self, CpuDecoder, Decoder, DecoderLimits, LoadOptions, Model};
use neap_model::source::ModelSource;
use neap_model::tokenizer::Tokenizer;

use crate::args::{ModelArgs, Repack};
use crate::bytes::show;
use crate::failure::Failure;
use crate::hub;
use crate::remote::Remote;
use crate::shipped;

/// KV blocks that a load leaves room for in any case.
pub const LEAST_BLOCKS: usize = 8;

/// Tokens that an encoder reads at once at most.
const MOST_AT_ONCE: usize = 8192;

/// Everything that computes, without an engine around it.
pub struct Parts {
    pub name: String,
    pub source: Arc<ModelSource>,
    pub decoder: CpuDecoder,
    pub kv: KvPool,
    pub budget: Budget,
    /// Codecs of the lossy levels.
    pub quantized: QuantizedLevels,
    pub quality: KvQuality,
    /// The level that blocks sink to at once; hot: none.
    pub level: Level,
    pub threads: usize,
    pub isa: Isa,
}

impl Parts {
    /// See [`fingerprint`].
    pub fn fingerprint(&self) -> Result<Fingerprint, Failure> {
        fingerprint_of(&self.source, &self.quantized)
    }
}

/// What the contents of a stored block depend on: the model, and the forms that blocks are stored in.
pub fn fingerprint(args: &ModelArgs, source: &ModelSource) -> Result<Fingerprint, Failure> {
    let layout = decoder::kv_layout(source.config())?;
    let quantized = decoder::quantized_levels(layout, args.isa.unwrap_or_else(Isa::best));
    fingerprint_of(source, &quantized)
}

fn fingerprint_of(
    source: &ModelSource,
    quantized: &QuantizedLevels,
) -> Result<Fingerprint, Failure> {
    let model = source.fingerprint()?.0;
    let order = decoder::kv_order(source.config());
    Ok(neap_memory::fingerprint(&model, &order, quantized))
}

/// A model ready to generate.
pub struct Loaded {
    pub name: String,
    pub source: Arc<ModelSource>,
    pub engine: Engine<CpuDecoder>,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    /// What the contents of a KV block depend on.
    pub fingerprint: Fingerprint,
    pub remote: Option<Arc<RemoteLevel>>,
    _pressure: Watch,
}

/// A model by name, opened and not loaded.
pub type Opened = (String, Arc<ModelSource>);

/// Opens the model that `args` name, or the shipped one, with the context that they ask for.
pub fn open(args: &ModelArgs) -> Result<Opened, Failure> {
    let (name, mut source) = match &args.model {
        Some(path) => (
            path.display().to_string(),
            ModelSource::open(hub::find(path)?)?,
        ),
        None => (shipped::NAME.to_owned(), shipped::source()?),
    };
    if let Some(format) = args.quantize {
        source.set_quantize(format);
    }
    let made_for = source.config().context_length;
    match args.context {
        Some(0) => return Err(Failure::new("--context must be at least 1")),
        Some(context) if context > made_for => {
            eprintln!(
                "neap: a context of {context} tokens is more than the {made_for} that the model was made for"
            );
        }
        _ => {}
    }
    source.set_context_length(args.context.unwrap_or(made_for));
    Ok((name, Arc::new(source)))
}

/// Opens a model that writes, in as far as `limit_bytes` can ever hold it.
pub fn open_writer(
    args: &ModelArgs,
    sequences: usize,
    limit_bytes: u64,
) -> Result<Opened, Failure> {
    let (name, source) = open(args)?;
    if !source.config().has_output {
        let what = match source.config().causal {
            true => "has no output matrix, so that it writes no text: use neap embed, or",
            false => "is an encoder, which writes no text: use neap embed, or",
        };
        return Err(Failure::new(format!(
            "{name} {what} neap serve with --embedding-model or --classifier-model"
        )));
    }
    let needs = Needs::of(args, &source, sequences)?;
    check_least(&source, limit_bytes, needs.reserve_bytes)?;
    Ok((name, source))
}

/// Loads weights and reserves scratch for `sequences` at once.
pub fn load_parts(args: &ModelArgs, sequences: usize) -> Result<Parts, Failure> {
    let budget = budget(args);
    let opened = open_writer(args, sequences, budget.limit())?;
    load_opened(args, opened, sequences, &budget)
}

/// The budget that `args` ask for, or what the machine leaves.
pub fn limit_bytes(args: &ModelArgs) -> u64 {
    args.memory
        .unwrap_or_else(|| neap_memory::default_budget().bytes)
}

/// A budget of [`limit_bytes`]; where the container or the system has less than that now, it begins with what these leave, and
/// grows when they leave more.
pub fn budget(args: &ModelArgs) -> Budget {
    let machine = neap_memory::default_budget();
    let allowed = args.memory.unwrap_or(machine.bytes);
    let budget = Budget::new(allowed);
    if machine.bound != Bound::Unknown && allowed > machine.available {
        eprintln!(
            "neap: --memory allows {}, of which {} can be had now: beginning with {}",
            show(allowed),
            show(machine.available),
            show(machine.bytes)
        );
        budget.set_limit_under_pressure(machine.bytes, allowed);
    }
    budget
}

/// Loads a model that makes vectors, encoders among them; within a budget that others share, if it is given one.
pub fn load_embedder(args: &ModelArgs, budget: Option<&Budget>) -> Result<Parts, Failure> {
    let budget = budget.cloned().unwrap_or_else(|| self::budget(args));
    load_opened(args, open(args)?, 1, &budget)
}

/// What a model takes besides its weights.
struct Needs {
    threads: usize,
    limits: DecoderLimits,
    layout: KvLayout,
    /// Scratch, and the blocks of a short conversation; where it grows longer, weights give way.
    reserve_bytes: u64,
}

impl Needs {
    fn of(args: &ModelArgs, source: &ModelSource, sequences: usize) -> Result<Self, Failure> {
        let threads = args
            .threads
            .map_or_else(pool::available_threads, usize::from);
        let config = source.config();
        // Encoders read a text in one step.
        let least = match config.causal {
            true => sequences,
            false => config.context_length.min(MOST_AT_ONCE),
        };
        let limits = DecoderLimits {
            batch_tokens: (args.chunk as usize).max(least),
            logit_rows: sequences,
        };
        let layout = decoder::kv_layout(config)?;
        let scratch = CpuDecoder::scratch_bytes(config, &layout, limits, threads);
        let kv_block_bytes = decoder::kv_block_bytes(config)?;
        let blocks = config.context_length.div_ceil(decoder::BLOCK_TOKENS) * sequences;
        let first_bytes = kv_block_bytes as u64 * blocks.min(LEAST_BLOCKS) as u64;
        Ok(Self {
            threads,
            limits,
            layout,
            reserve_bytes: scratch + first_bytes,
        })
    }
}

/// Loads the weights of a model that is open, within a budget.
pub fn load_opened(
    args: &ModelArgs,
    (name, source): Opened,
    sequences: usize,
    budget: &Budget,
) -> Result<Parts, Failure> {
    let quality = quality(args)?;
    let Needs {
        threads,
        limits,
        layout,
        reserve_bytes,
    } = Needs::of(args, &source, sequences)?;
    let pool = Arc::new(ThreadPool::new(threads));
    let isa = args.isa.unwrap_or_else(Isa::best);
    check_least(&source, budget.available(), reserve_bytes)?;
    let bar = progress_bar("loading");
    let model = Model::load(
        Arc::clone(&source),
        budget,
        LoadOptions {
            repack: match args.repack {
                Repack::Auto => decoder::Repack::Auto,
                Repack::Always => decoder::Repack::Always,
                Repack::Never => decoder::Repack::Never,
            },
            reserve_bytes,
            pool: &pool,
            isa,
            progress: &mut |p| {
                bar.set_length(p.total_bytes);
                bar.set_position(p.done_bytes);
            },
        },
    )?;
    bar.finish_and_clear();
    warn_of_streaming(&model);
    let model = Arc::new(model);
    let decoder = CpuDecoder::new(Arc::clone(&model), pool, isa, limits, budget)
        .map_err(|why| no_room(&why))?;
    let kv = decoder::kv_pool(budget, source.config())?;
    Ok(Parts {
        name,
        source,
        decoder,
        kv,
        budget: budget.clone(),
        quantized: decoder::quantized_levels(layout, isa),
        quality,
        level: args.kv_level.level(),
        threads,
        isa,
    })
}

/// What lies below RAM under a prefix cache.
#[derive(Clone, Default)]
pub struct Below {
    pub disk: Option<Arc<DiskStore>>,
    pub remote: Option<Remote>,
}

/// Loads a model for `sequences` at once. From here on the budget follows the pressure on the system.
pub fn load(args: &ModelArgs, sequences: usize, below: &Below) -> Result<Loaded, Failure> {
    with_engine(load_parts(args, sequences)?, sequences, below)
}

/// [`load`] of parts that are loaded already, for as many sequences.
pub fn with_engine(parts: Parts, sequences: usize, below: &Below) -> Result<Loaded, Failure> {
    let tokenizer = tokenizer(&parts.source)?;
    let template = template(&parts.source, &tokenizer)?;
    let limits = parts.decoder.limits();
    let fingerprint = parts.fingerprint()?;
    let remote = below.remote.as_ref();
    let remote = remote.map(|r| r.level(&parts.budget)).transpose()?;
    let options = CacheOptions {
        disk: below.disk.clone(),
        remote: remote.clone(),
        quantized: parts.quantized,
        ..CacheOptions::new(fingerprint)
    };
    let mapped_bytes = parts.decoder.model().mapped_bytes();
    let cache = KvCache::new(&parts.kv, options).map_err(|why| no_room(&why))?;
    let config = EngineConfig {
        batch_tokens: limits.batch_tokens,
        step_ms: None,
        max_running: sequences,
        fingerprint,
        // One user: there is nobody to keep anything from.
        secret: [0; 32],
        quality: parts.quality,
        level: parts.level,
    };
    let engine = Engine::new(parts.decoder, Some(tokenizer.clone()), cache, config);
    let pressure = Watch::begin(&parts.budget, WatchOptions::default())?;
    pressure.set_mapped_bytes(mapped_bytes);
    Ok(Loaded {
        name: parts.name,
        source: parts.source,
        fingerprint,
        engine,
        tokenizer,
        template,
        remote,
        _pressure: pressure,
    })
}

/// How low keys and values may sink: what is asked for, or what the level that is asked for needs.
fn quality(args: &ModelArgs) -> Result<KvQuality, Failure> {
    let level = args.kv_level.level();
    let allows = |quality: &KvQuality| quality.lowest(true) >= level;
    match args.kv_quality {
        Some(quality) if !allows(&quality) => Err(Failure::new(format!(
            "--kv-quality {quality} keeps keys and values above {level}: leave it out, or --kv-level"
        ))),
        Some(quality) => Ok(quality),
        None if level == Level::Int4 => Ok(KvQuality::Small),
        None => Ok(KvQuality::ALL.into_iter().find(allows).unwrap_or_default()),
    }
}

/// The tokenizer that comes with a model.
pub fn tokenizer(source: &ModelSource) -> Result<Tokenizer, Failure> {
    Ok(Tokenizer::from_source(source)?)
}

/// The chat template that comes with a model, or one that its tokens suggest.
pub fn template(source: &ModelSource, tokenizer: &Tokenizer) -> Result<ChatTemplate, Failure> {
    Ok(match source.chat_template()? {
        Some(template) => ChatTemplate::for_tokenizer(&template, tokenizer)?,
        None => ChatTemplate::fallback(tokenizer)?,
    })
}

/// Refuses a budget that can never hold the weights, the scratch and one block.
fn check_least(source: &ModelSource, limit: u64, other: u64) -> Result<(), Failure> {
    let weights = decoder::least_weight_bytes(source);
    let needed = weights + other;
    if needed <= limit {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the model needs at least {} of memory ({} for the layers in use, {} scratch and the first KV blocks), \
         and the budget is {}: give --memory {}MiB or more, a smaller --chunk, or a model quantized further",
        show(needed),
        show(weights),
        show(other),
        show(limit),
        needed.div_ceil(1 << 20),
    )))
}

fn warn_of_streaming(model: &Model) {
    let (streamed, layers) = model.streamed_layers();
    if streamed > 0 {
        // Of experts only those that are used.
        let up_to = match model.config().experts {
            Some(_) => "up to ",
            None => "",
        };
        eprintln!(
            "neap: the budget has no room for {streamed} of the model's {layers} layers: {up_to}{} are read from its \
             file at each step",
            show(model.streamed_bytes()),
        );
    }
}

fn no_room(why: &OverBudget) -> Failure {
    Failure::new(format!(
        "the scratch of a step does not fit: {why}; raise --memory or lower --chunk"
    ))
}

/// Shown only for loads that take a while, and only to people.
pub fn progress_bar(what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!(
        "{what} {{bar:30}} {{bytes}} of {{total_bytes}}, {{eta}} left"
    ));
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
