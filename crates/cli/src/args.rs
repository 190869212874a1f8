//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use neap_memory::{KvQuality, Level};

use crate::adapters::NamedAdapter;
use crate::bytes;

mod eval;
mod serve;
mod session;
mod tune;

pub use eval::{
    EvalClassifyArgs, EvalCommand, EvalKvArgs, EvalNeedleArgs, EvalNerArgs, EvalPerplexityArgs,
    EvalRecallArgs,
};
pub use serve::{BenchLoadArgs, BenchServeArgs, ServeArgs};
pub use session::{
    SessionCommand, SessionDeleteArgs, SessionExportArgs, SessionImportArgs, SessionListArgs,
    SessionPinArgs, SessionPlace,
};
pub use tune::TuneArgs;

/// Runs language models inside a memory budget.
#[derive(Debug, Parser)]
#[command(name = "neap", version, propagate_version = true)]
pub struct Cli {
    /// Print the log of this level and above to stderr: error, warn, info, debug or trace.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn")]
    pub log: tracing_subscriber::filter::LevelFilter,
    /// How a line of the log is written: text for people, json for programs.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a text.
    ///
    /// The prompt is given as an argument, by --file, or on standard input. The text is streamed to
    /// standard output; everything else goes to standard error.
    Run(RunArgs),
    /// Talk with a model in the terminal.
    ///
    /// A message ends with the line. End a line with \ to go on in the next, or put several lines
    /// between """ and """. Ctrl-C stops an answer, Ctrl-D leaves. /help lists the commands.
    Chat(ChatArgs),
    /// Serve a model over HTTP, with OpenAI's API.
    ///
    /// Without arguments, the small model inside neap is served on http://127.0.0.1:8080/, where a page shows what
    /// the memory holds. SIGINT or SIGTERM end the server once what runs has finished.
    Serve(ServeArgs),
    /// Show what a model file holds and what it will cost in memory.
    Inspect(InspectArgs),
    /// Write a Hugging Face folder as a GGUF file.
    Convert(ConvertArgs),
    /// Get a model from the Hugging Face hub, or another hub with its API, into the cache.
    ///
    /// What was cut off goes on where it ended, and checksums are verified. `--model OWNER/NAME` finds it then. The path of
    /// the model is printed.
    Pull(PullArgs),
    /// Turn texts into vectors: one JSON object for each, on standard output.
    Embed(EmbedArgs),
    /// Teach a small model a task from examples, on the CPU: a LoRA adapter in PEFT's layout.
    ///
    /// Ctrl-C stores the run, and the same command goes on, also after a kill. `neap run --lora` takes the adapter.
    Tune(TuneArgs),
    /// Measure speed and memory.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Look at the memory of a running server, and change its budget.
    #[command(subcommand)]
    Memory(MemoryCommand),
    /// The conversations that are kept: list, export, import, delete, pin.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Measure how good a model is at remembering and at guessing.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Print what a shell needs to complete this command line.
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command.
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// A folder for the pages, instead of standard output.
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
}

/// The model and what it may use.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct ModelArgs {
    /// A GGUF file, a Hugging Face folder, or OWNER/NAME:FILE of a model that `neap pull` got; the small model inside
    /// neap if left out.
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Memory budget for weights, KV cache and scratch, such as 512MiB or 4GiB.
    ///
    /// Left out, it is what the container's limit and the system's available memory leave.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    pub memory: Option<u64>,
    /// Threads that compute; as many as the process may use if left out.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Tokens of context; what the model was made for if left out.
    #[arg(short, long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Tokens of a prompt that are computed in one step.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub chunk: u32,
    /// How low keys and values may sink when room is short: exact, high (int8), balanced (int8, and int4 where
    /// nothing uses them) or small (int4).
    ///
    /// `neap eval kv` measures what each level loses. Left out, it is exact, or what --kv-level needs.
    #[arg(long, value_name = "QUALITY")]
    pub kv_quality: Option<KvQuality>,
    /// Level of keys and values but for the first 32 and the newest 128 tokens: auto (hot until room is short), int8
    /// or int4.
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = KvLevel::Auto)]
    pub kv_level: KvLevel,
    /// Whether weights are rearranged for speed at load.
    #[arg(long, value_enum, default_value_t = Repack::Auto)]
    pub repack: Repack,
    /// Quantize 16- and 32-bit weights as they are loaded: q4_0 or q8_0.
    #[arg(long, value_name = "FORMAT", value_parser = crate::convert::parse_quantize)]
    pub quantize: Option<neap_kernels::format::WeightFormat>,
    /// Instruction set to use instead of the best one (for tests): scalar, avx2, avx512, avx512vnni, …
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub isa: Option<neap_kernels::Isa>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KvLevel {
    /// Hot until room is short, then as the quality allows.
    Auto,
    /// Eight bits a value.
    Int8,
    /// Four bits a value.
    Int4,
}

impl KvLevel {
    /// The level that blocks sink to at once; hot: none.
    pub fn level(self) -> Level {
        match self {
            Self::Auto => Level::Hot,
            Self::Int8 => Level::Int8,
            Self::Int4 => Level::Int4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Repack {
    /// All layers that the budget has room for; the others are read from the model's file at each step.
    Auto,
    /// Always; refused if it does not fit.
    Always,
    /// Never: weights stay in the mapped file and can be dropped by the system.
    Never,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 always takes the most likely token; 1 draws from the model's own distribution.
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw only from the K most likely tokens; 0 takes all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Draw only from the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Draw only from tokens at least this many times as likely as the most likely one.
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Make tokens less likely that were seen lately; 1 does nothing.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Tokens that the repetition penalty looks back on.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub penalty_window: usize,
    /// Lower a token's logit by this for each time it was produced.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Lower a token's logit by this if it was produced at all.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Equal seeds give equal texts; drawn afresh if left out (-v shows it).
    #[arg(long)]
    pub seed: Option<u64>,
    /// Add BIAS to a token's logit, as ID=BIAS; -inf bans it. May be repeated.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Always take the most likely token: the same as --temperature 0.
    #[arg(long)]
    pub greedy: bool,
}

/// A store of keys and values that several processes share.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RemoteArgs {
    /// A folder that several processes see (a path, or file:///PATH), or s3://BUCKET/PREFIX: what one computed, the
    /// others need not.
    ///
    /// What goes to disk is written to it too; it is read where it is faster than computing. A bucket may be followed by
    /// ?endpoint=URL for stores that speak as Amazon's does, region=NAME, style=path or host, profile=NAME and
    /// anonymous=true, joined by &. Its keys need leave to get, put and list.
    #[arg(long, value_name = "URL", requires = "remote_secret_file")]
    pub remote: Option<String>,
    /// The keys of a bucket, in the form of ~/.aws/credentials, which is read if this is left out.
    #[arg(long, value_name = "PATH", requires = "remote")]
    pub remote_credentials: Option<PathBuf>,
    /// The file of 32 bytes that only these processes know, without which nothing in the store is believed; made if it
    /// is not there.
    #[arg(long, value_name = "PATH", requires = "remote")]
    pub remote_secret_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The text to continue.
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<OsString>,
    /// Read the prompt from a file; - is standard input.
    #[arg(short, long, value_name = "PATH", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Tokens to produce at most; 0 goes on to the end of the context.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 256)]
    pub max_tokens: usize,
    /// End when this text is produced. May be repeated.
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on when the model ends its text.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Read special tokens in the prompt as such, and show those produced.
    #[arg(long)]
    pub special: bool,
    /// Do not print the prompt before its continuation.
    #[arg(long)]
    pub no_echo: bool,
    /// Print tokens, speed, time to first token and peak memory at the end.
    #[arg(short, long)]
    pub verbose: bool,
    /// A LoRA adapter: a folder in PEFT's layout, or a GGUF file.
    #[arg(long, value_name = "PATH", value_parser = crate::adapters::parse)]
    pub lora: Option<NamedAdapter>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Instructions that come before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens of one answer at most; 0 goes on to the end of the context.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 512)]
    pub max_tokens: usize,
    /// Print tokens, speed and memory after each answer.
    #[arg(short, long)]
    pub verbose: bool,
    /// Keep the conversation under this name: it goes on where it ended, without being computed again.
    #[arg(long, value_name = "NAME", value_parser = parse_session)]
    pub session: Option<String>,
    /// Folder for conversations that are kept, instead of the usual place.
    #[arg(long, value_name = "PATH", requires = "session")]
    pub store: Option<PathBuf>,
    /// Disk space for the keys and values of conversations that are kept.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "4GiB", requires = "session")]
    pub store_limit: u64,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Keep the lines typed in this file, instead of the usual place.
    #[arg(long, value_name = "PATH")]
    pub history: Option<PathBuf>,
    /// A LoRA adapter: a folder in PEFT's layout, or a GGUF file.
    #[arg(long, value_name = "PATH", value_parser = crate::adapters::parse)]
    pub lora: Option<NamedAdapter>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The Hugging Face folder.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The GGUF file to write.
    #[arg(value_name = "OUT.gguf")]
    pub output: PathBuf,
    /// Quantize 16- and 32-bit matrices: q4_0 or q8_0; embeddings and the output matrix always to q8_0.
    #[arg(long, value_name = "FORMAT", value_parser = crate::convert::parse_quantize)]
    pub quantize: Option<neap_kernels::format::WeightFormat>,
    /// Write over a file that is there.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model, and of one with several GGUF files which: its name, or a part of it such as Q4_K_M.
    #[arg(value_name = "OWNER/NAME[:FILE]", value_parser = crate::hub::ModelName::parse)]
    pub model: crate::hub::ModelName,
    /// Branch, tag or commit.
    #[arg(long, value_name = "NAME", default_value = crate::hub::MAIN)]
    pub revision: String,
    /// Folder of the cache, instead of ~/.cache/huggingface/hub.
    #[arg(long, value_name = "PATH")]
    pub cache: Option<PathBuf>,
    /// Address of the hub.
    #[arg(long, value_name = "URL", default_value = crate::hub::HUB)]
    pub endpoint: String,
    /// A file with the key for models that need one.
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Only look into the cache.
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// The texts; lines of standard input if left out.
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// How a text's rows become one vector: mean, cls or last; what the model's files say if left out.
    #[arg(long, value_name = "NAME", value_parser = crate::embed::parse_pooling)]
    pub pooling: Option<neap_model::embed::Pooling>,
    /// Only the first N numbers, brought to length 1 again.
    #[arg(long, value_name = "N")]
    pub dimensions: Option<usize>,
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A GGUF file or a Hugging Face folder; the small model inside neap if left out.
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// Tokens of context for the memory estimate; the model's own if left out.
    #[arg(short, long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Sequences at once for the memory estimate.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Tell how the model would run in this budget: how much would have to be read from its file at each step,
    /// and how fast its disk is.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    pub memory: Option<u64>,
    /// List every tensor.
    #[arg(short, long)]
    pub tensors: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum MemoryCommand {
    /// Show what the memory holds, and the latest decisions with their reasons.
    Show(MemoryShowArgs),
    /// Change the budget while the server runs; nothing that runs fails.
    Set(MemorySetArgs),
}

/// Which server.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Address of the server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// The server's --admin-key, if it has one.
    #[arg(long, value_name = "KEY")]
    pub admin_key: Option<String>,
}

#[derive(Debug, Args)]
pub struct MemoryShowArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show it again every so many seconds, until Ctrl-C.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
}

#[derive(Debug, Args)]
pub struct MemorySetArgs {
    /// The new budget, such as 512MiB or 4GiB.
    #[arg(value_name = "SIZE", value_parser = bytes::parse)]
    pub budget: u64,
    #[command(flatten)]
    pub server: ServerArgs,
    /// Print what the memory holds then, as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Prefill and decode speed of a model, with memory.
    Model(BenchModelArgs),
    /// Each kernel against what the machine allows.
    Kernels(BenchKernelsArgs),
    /// Replay request traces against every replacement policy, at several sizes of RAM and disk.
    ///
    /// Traces are JSON lines in the form of Mooncake's, or CSV in the form of Azure's.
    Trace(BenchTraceArgs),
    /// Time to the first token of a conversation on disk, and after a restart, beside computing it anew.
    Restore(BenchRestoreArgs),
    /// What the disk level writes and reads a second, beside dd with direct I/O on the same file system.
    Disk(BenchDiskArgs),
    /// Load a server that speaks OpenAI's API, Neap's or another, and time its answers.
    ///
    /// Requests are sent when they are due, however slow the answers are. Goodput counts those that kept both goals.
    Serve(serve::BenchServeArgs),
    /// Load a Neap server with clients that behave badly while its budget falls and rises, and check that nothing
    /// that was admitted fails, answers differ by nothing, memory does not grow and no block is lost.
    ///
    /// First the server's capacity is measured with clients that behave.
    Load(serve::BenchLoadArgs),
}

#[derive(Debug, Args)]
pub struct BenchModelArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Lengths of prompts to prefill.
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "512"
    )]
    pub prompt: Vec<usize>,
    /// Tokens to decode.
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub generate: usize,
    /// Tokens already in the context before the measured part.
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "0"
    )]
    pub depth: Vec<usize>,
    /// Sequences that decode together.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Measurements of each case; the median is printed with the spread.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchKernelsArgs {
    /// Threads that compute; as many as the process may use if left out.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Only these weight formats, such as Q4_0,Q8_0.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = crate::bench::parse_format)]
    pub format: Vec<neap_kernels::format::WeightFormat>,
    /// Measure weights in the mapped file's layout too.
    #[arg(long)]
    pub mapped: bool,
    /// Measure attention and the conversion of its blocks only, no products.
    #[arg(long)]
    pub attention: bool,
    /// How long each product is repeated, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub time_ms: u64,
    /// Instruction set to use instead of the best one.
    #[arg(long, value_name = "NAME")]
    pub isa: Option<neap_kernels::Isa>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchTraceArgs {
    /// A trace. May be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    pub trace: Vec<PathBuf>,
    /// RAM, or RAM+disk, in bytes or in per cent of the trace's distinct blocks.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = crate::bench::parse_room,
        default_value = "1%,2%,5%,10%,20%,40%,2%+10%,5%+20%")]
    pub sizes: Vec<crate::bench::Room>,
    /// Only these policies besides Belady's bound: cost, s3-fifo, sieve, lru, fifo; hindsight and whether know part of
    /// the future.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = crate::bench::parse_policy)]
    pub policy: Vec<String>,
    /// Bytes of keys and values that a token takes.
    #[arg(long, value_name = "BYTES", default_value_t = 32_768, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub bytes_per_token: u64,
    /// Only the first requests of each trace.
    #[arg(long, value_name = "N")]
    pub requests: Option<usize>,
    /// Guess which requests continue which in traces that do not say; without it such prompts share nothing.
    #[arg(long)]
    pub link_turns: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchRestoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of the conversation.
    #[arg(long, value_name = "TOKENS", default_value_t = 4000)]
    pub tokens: usize,
    /// An empty folder for its blocks; one of its own, removed at the end, if left out.
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The process after the restart.
    #[arg(long, hide = true, requires = "disk")]
    pub resume: bool,
}

#[derive(Debug, Args)]
pub struct BenchDiskArgs {
    /// A folder on the file system to measure.
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub disk: PathBuf,
    /// Bytes to write and read.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "1GiB")]
    pub bytes: u64,
    /// Bytes of a block.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "1MiB")]
    pub block_bytes: u64,
    /// Go through the page cache, as on file systems without direct I/O.
    #[arg(long)]
    pub buffered: bool,
    /// Reads in flight.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8"
    )]
    pub in_flight: Vec<usize>,
    /// Measurements of each case; the best is printed.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl BenchTraceArgs {
    /// Whether a policy takes part.
    pub fn takes(&self, policy: &str) -> bool {
        self.policy.is_empty() || policy == "belady" || self.policy.iter().any(|p| p == policy)
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let refused = || format!("{text:?} is not ID=BIAS, for example 42=-5 or 42=-inf");
    let (id, bias) = text.split_once('=').ok_or_else(refused)?;
    let id = id.trim().parse().map_err(|_| refused())?;
    let bias = bias.trim().parse().map_err(|_| refused())?;
    Ok((id, bias))
}

/// A name that is a file name on every system.
pub fn parse_session(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(
            "use letters, digits, '-', '_' and '.', at most 100, not beginning with '.'".to_owned(),
        );
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn session_names_are_plain() {
        assert!(parse_session("my-chat_2.a").is_ok());
        for bad in ["", "..", "a/b", ".hidden", "a b", &"x".repeat(101)] {
            assert!(parse_session(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_logit_bias() {
        assert_eq!(parse_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        assert!(parse_bias("7").is_err());
        assert!(parse_bias("x=1").is_err());
    }
}
