//! What `neap inspect` shows: what is in a model file, and what running it will cost in memory.

mod text;
mod tokenizer;

use std::path::{Path, PathBuf};

use neap_memory::cache::SLACK_TOKENS;
use serde::Serialize;

use crate::config::{ModelConfig, architecture_name};
use crate::decoder::kv_window;
use crate::gguf::GgufFile;
use crate::safetensors::HfFolder;
use crate::source::{ModelFileError, ModelSource, TensorInfo};
pub use tokenizer::TokenizerSummary;

/// Tokens of a KV block, to which contexts are rounded up.
const BLOCK_TOKENS: u64 = 32;

/// The contents of a model file or folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// What was opened.
    pub path: PathBuf,
    /// `GGUF 3` or `safetensors`.
    pub container: String,
    /// Number of weight files.
    pub files: usize,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// The architecture, as the file calls it.
    pub architecture: String,
    /// Shape and options; none if they cannot be read.
    pub config: Option<ModelConfig>,
    /// Why Neap cannot run the model; none if it can.
    pub problem: Option<String>,
    /// Values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// The formats in use, the one with the most bytes first.
    pub formats: Vec<FormatShare>,
    /// All tensors in the order of the files.
    pub tensors: Vec<TensorLine>,
    /// The tokenizer; none if the file has none.
    pub tokenizer: Option<TokenizerSummary>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// What running the model costs, if asked for with [`Inspection::set_memory`].
    pub memory: Option<MemoryCost>,
    /// How it would run in a budget, if asked for with [`Inspection::set_budget`].
    pub budget: Option<BudgetOutlook>,
}

/// How a model runs in a budget: layers that find no room are read from the file at each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BudgetOutlook {
    /// The budget.
    pub budget_bytes: u64,
    /// Bytes of weights that each step reads; none if the budget is too small to run the model at all.
    pub streamed_bytes_per_step: Option<u64>,
    /// What the file's disk gives, if the caller measured it.
    pub disk_bytes_per_s: Option<f64>,
    /// Steps a second that the disk allows: tokens a second of one sequence. None where nothing is read.
    pub steps_per_s_at_most: Option<f64>,
}

/// How much of a model is in one weight format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FormatShare {
    /// Name of the format.
    pub format: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Values in them.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    /// Name in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Name of the weight format.
    pub format: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// What running a model costs, with keys and values in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryCost {
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences at a time.
    pub batch: u64,
    /// Weights that are used, as in the file.
    pub weight_bytes: u64,
    /// Keys and values of one token in all layers.
    pub kv_bytes_per_token: u64,
    /// Keys and values of all sequences at full length, in whole blocks of 32 tokens.
    pub kv_bytes: u64,
    /// The least that they can take without losing any, where layers with a sliding window keep theirs alone.
    pub kv_bytes_trimmed: Option<u64>,
    /// Working memory, as estimated by the caller.
    pub scratch_bytes: u64,
    /// The sum.
    pub total_bytes: u64,
}

impl MemoryCost {
    /// The cost of `batch` sequences of `context` tokens. Sums that pass `u64::MAX` stay there.
    pub fn new(
        config: &ModelConfig,
        weight_bytes: u64,
        context: u64,
        batch: u64,
        scratch_bytes: u64,
    ) -> Self {
        const KEY_AND_VALUE: u64 = 2;
        const VALUE_BYTES: u64 = 2;
        let kv_bytes_per_token = [config.layers, config.kv_heads, config.head_dim]
            .into_iter()
            .fold(KEY_AND_VALUE * VALUE_BYTES, |bytes, size| {
                bytes.saturating_mul(size as u64)
            });
        let block_bytes = kv_bytes_per_token.saturating_mul(BLOCK_TOKENS);
        let kv_bytes = block_bytes
            .saturating_mul(context.div_ceil(BLOCK_TOKENS))
            .saturating_mul(batch);
        Self {
            context,
            batch,
            weight_bytes,
            kv_bytes_per_token,
            kv_bytes,
            kv_bytes_trimmed: trimmed_bytes(config, context, block_bytes)
                .map(|bytes| bytes.saturating_mul(batch)),
            scratch_bytes,
            total_bytes: weight_bytes
                .saturating_add(kv_bytes)
                .saturating_add(scratch_bytes),
        }
    }
}

impl Inspection {
    /// Looks into a GGUF file (or split model) or a Hugging Face folder. A model that is well-formed but cannot be run
    /// is no error: [`Inspection::problem`] says why.
    ///
    /// # Errors
    /// If the files cannot be read or break their format's rules.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelFileError> {
        let path = path.as_ref();
        match ModelSource::folder_of(path) {
            Some(folder) => Self::of_folder(HfFolder::open(folder)?),
            None => Self::of_gguf(GgufFile::open(path)?),
        }
    }

    /// Looks into an open GGUF model.
    ///
    /// # Errors
    /// As [`Inspection::open`].
    pub fn of_gguf(file: GgufFile) -> Result<Self, ModelFileError> {
        let mut inspection = Self::of_tensors(file.path(), file.tensors());
        inspection.container = format!("GGUF {}", file.version());
        inspection.files = file.file_count();
        inspection.file_bytes = (0..file.file_count())
            .map(|i| file.file_bytes(i).len() as u64)
            .sum();
        inspection.architecture = architecture_name(&file)?.to_owned();
        inspection.tokenizer = TokenizerSummary::of_gguf(&file);
        inspection.chat_template = file.metadata("tokenizer.chat_template").is_some();
        inspection.judge(ModelConfig::from_gguf(&file), || {
            ModelSource::from_gguf(file)
        });
        Ok(inspection)
    }

    /// Looks into an open Hugging Face folder.
    ///
    /// # Errors
    /// If the configuration does not name its architecture, or the tokenizer cannot be read.
    pub fn of_folder(folder: HfFolder) -> Result<Self, ModelFileError> {
        let weights = folder.weights();
        let mut inspection = Self::of_tensors(folder.path(), weights.tensors());
        inspection.container = "safetensors".to_owned();
        inspection.files = weights.file_count();
        inspection.file_bytes = (0..weights.file_count())
            .map(|i| weights.file_bytes(i).len() as u64)
            .sum();
        inspection.architecture = folder.model_type()?;
        inspection.tokenizer = TokenizerSummary::of_folder(&folder)?;
        inspection.chat_template = folder.chat_template()?.is_some();
        inspection.judge(folder.config(), || ModelSource::from_folder(folder));
        Ok(inspection)
    }

    fn of_tensors(path: &Path, tensors: &[TensorInfo]) -> Self {
        let line = |info: &TensorInfo| TensorLine {
            name: info.name.clone(),
            shape: info.shape.clone(),
            format: info.type_name(),
            bytes: info.bytes as u64,
        };
        Self {
            path: path.to_owned(),
            container: String::new(),
            files: 0,
            file_bytes: 0,
            architecture: String::new(),
            config: None,
            problem: None,
            parameters: tensors.iter().map(TensorInfo::parameters).sum(),
            tensor_bytes: tensors.iter().map(|info| info.bytes as u64).sum(),
            formats: format_shares(tensors),
            tensors: tensors.iter().map(line).collect(),
            tokenizer: None,
            chat_template: false,
            memory: None,
            budget: None,
        }
    }

    /// Notes the configuration, and what keeps the model from being loaded.
    fn judge(
        &mut self,
        config: Result<ModelConfig, ModelFileError>,
        load: impl FnOnce() -> Result<ModelSource, ModelFileError>,
    ) {
        let outcome = config.and_then(|config| {
            self.config = Some(config);
            load()
        });
        self.problem = outcome.err().map(|error| error.to_string());
    }

    /// Adds the cost of `batch` sequences of `context` tokens; `scratch_bytes` is the decoder's estimate. Does nothing
    /// where there is no configuration.
    pub fn set_memory(&mut self, context: u64, batch: u64, scratch_bytes: u64) {
        let config = self.config.as_ref();
        self.memory = config.map(|config| {
            MemoryCost::new(config, self.tensor_bytes, context, batch, scratch_bytes)
        });
    }
}

/// What the blocks of a sequence take once those behind the window are trimmed.
fn trimmed_bytes(config: &ModelConfig, context: u64, block_bytes: u64) -> Option<u64> {
    let window = kv_window(config).ok()??;
    let blocks = context.div_ceil(BLOCK_TOKENS);
    let whole = window.tokens.saturating_add(SLACK_TOKENS) as u64;
    let whole = (whole.div_ceil(BLOCK_TOKENS) + 1).min(blocks);
    let trimmed = (blocks - whole).saturating_mul(window.head_bytes as u64);
    Some(whole.saturating_mul(block_bytes).saturating_add(trimmed))
}

impl Inspection {
    /// Adds what a budget means: `streamed_bytes_per_step` as [`crate::decoder::streamed_bytes_within`] tells.
    pub fn set_budget(
        &mut self,
        budget_bytes: u64,
        streamed_bytes_per_step: Option<u64>,
        disk_bytes_per_s: Option<f64>,
    ) {
        let streamed = streamed_bytes_per_step.filter(|&bytes| bytes > 0);
        let steps = |(disk, bytes): (f64, u64)| disk / bytes as f64;
        self.budget = Some(BudgetOutlook {
            budget_bytes,
            streamed_bytes_per_step,
            disk_bytes_per_s,
            steps_per_s_at_most: disk_bytes_per_s.zip(streamed).map(steps),
        });
    }
}

fn format_shares(tensors: &[TensorInfo]) -> Vec<FormatShare> {
    let mut shares: Vec<FormatShare> = Vec::new();
    for info in tensors {
        let format = info.type_name();
        let at = match shares.iter().position(|share| share.format == format) {
            Some(at) => at,
            None => {
                shares.push(FormatShare {
                    format,
                    tensors: 0,
                    parameters: 0,
                    bytes: 0,
                });
                shares.len() - 1
            }
        };
        let share = &mut shares[at];
        share.tensors += 1;
        share.parameters += info.parameters();
        share.bytes += info.bytes as u64;
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}
