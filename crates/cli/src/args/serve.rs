//! The arguments of `neap serve`, and of what measures it.

use std::path::PathBuf;

use clap::Args;

use super::{ModelArgs, RemoteArgs};
use crate::adapters::NamedAdapter;
use crate::bytes;

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen on; 0.0.0.0 for every machine that can reach this one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(short, long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Sequences that run at once at most.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub parallel: u32,
    /// Requests that wait for their turn at most; more are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queue: u32,
    /// A key that may use the API; cached prefixes of different keys are apart. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// A file of keys that may use the API, one a line: other users of the machine can see a command line.
    #[arg(long, value_name = "PATH")]
    pub api_key_file: Option<PathBuf>,
    /// The key for /memory and all below it; without one, only this machine may.
    #[arg(long, value_name = "KEY")]
    pub admin_key: Option<String>,
    /// Name of the model in the API; that of its file if left out.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// A LoRA adapter that requests can choose as their model: a folder in PEFT's layout, or a GGUF file. May be
    /// repeated; POST /v1/load_lora_adapter adds more while the server runs.
    #[arg(long, value_name = "NAME=PATH", value_parser = crate::adapters::parse)]
    pub lora: Vec<NamedAdapter>,
    /// A model for /v1/embeddings, /v1/rerank and /v1/score: a GGUF file or a Hugging Face folder, in the same budget.
    #[arg(long, value_name = "PATH")]
    pub embedding_model: Option<PathBuf>,
    /// A classifier for /v1/classify, or a cross-encoder for /v1/rerank and /v1/score: a GGUF file or a Hugging Face
    /// folder, in the same budget.
    #[arg(long, value_name = "PATH")]
    pub classifier_model: Option<PathBuf>,
    /// A folder for blocks of the prefix cache that RAM has no room for; they outlive a restart.
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,
    /// Disk space for --disk.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "4GiB", requires = "disk")]
    pub disk_limit: u64,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Send traces of requests to an OpenTelemetry collector (OTLP over HTTP as JSON), such as http://127.0.0.1:4318; a
    /// request with a `traceparent` joins its trace.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
    /// Size of a request's body at most.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "8MiB")]
    pub max_body: u64,
    /// Cancel a stream whose client takes nothing for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub slow_client: u64,
    /// Time that a step should take at most: prompts are computed in smaller chunks where they must be. Shorter keeps
    /// the pauses of running answers short, longer computes long prompts a little faster.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..))]
    pub step_ms: u64,
    /// Once nothing has run for so long, cached keys and values go to disk, or are packed without loss where there is
    /// no --disk, so that their memory is the system's again; 0 never.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub idle_sink: u64,
    /// Time for running requests to finish when the server is asked to end, or to change its model.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
    /// Take flags from a TOML file: its keys are these flags' names; the command line goes first.
    ///
    /// SIGHUP and POST /admin/reload read it again: keys, limits and the budget change at once, the model and what it
    /// runs with when what runs has finished. What needs a restart is named in the answer and the log.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
}

#[derive(Debug, Args)]
pub struct BenchServeArgs {
    /// The server; TLS is not spoken.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Its API key.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Name of the model; the first that the server lists if left out.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Conversations to hold.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub conversations: usize,
    /// Conversations that begin each second on average, at random (Poisson); all at once if left out.
    #[arg(long, value_name = "R", value_parser = positive)]
    pub rate: Option<f64>,
    /// Questions of each conversation.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub turns: usize,
    /// Seconds between an answer and the next question, on average.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub pause: f64,
    /// All conversations have had their answer before any asks again.
    #[arg(long)]
    pub together: bool,
    /// Tokens of the first question, about.
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prompt_tokens: usize,
    /// Tokens of each later question, about.
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    pub next_tokens: usize,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub max_tokens: usize,
    /// Ask the server to go on where the model would end.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Tokens that conversations begin with in common, about.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub prefix_tokens: usize,
    /// Different common beginnings.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub prefixes: usize,
    /// Send the common beginnings once before.
    #[arg(long, requires = "prefix_tokens")]
    pub warm: bool,
    /// Replay a trace instead: .jsonl as Mooncake's (timestamp in ms, input_length, output_length) or .csv as Azure's
    /// (time, prompt tokens, answer tokens).
    #[arg(long, value_name = "PATH", conflicts_with_all = ["rate", "turns", "together"])]
    pub trace: Option<PathBuf>,
    /// Replay so many times as fast.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive, requires = "trace")]
    pub speed: f64,
    /// Take only so many conversations.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Time to first token that counts as good.
    #[arg(long, value_name = "MS", default_value_t = 2000.0)]
    pub goal_ttft: f64,
    /// Mean time from token to token that counts as good.
    #[arg(long, value_name = "MS", default_value_t = 200.0)]
    pub goal_itl: f64,
    /// Watch the resident memory of this process.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Look at it once more so long after the last answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "pid")]
    pub settle: u64,
    /// Give an answer up that says nothing for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Equal seeds give equal loads.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchLoadArgs {
    /// The server; TLS is not spoken.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Its API key.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Its admin key, if it has one.
    #[arg(long, value_name = "KEY")]
    pub admin_key: Option<String>,
    /// Clients at once at most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub clients: usize,
    /// How long.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub seconds: u64,
    /// How long the server's capacity is measured before.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub measure: u64,
    /// Share of the capacity that is asked for.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = positive)]
    pub share: f64,
    /// The lower budget, as a share of the server's.
    #[arg(long, value_name = "SHARE", default_value_t = 0.4, value_parser = positive)]
    pub low: f64,
    /// Time between two changes of the budget.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub change_every: u64,
    /// Resident memory beyond what is charged may grow by so much.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse, default_value = "32MiB")]
    pub growth: u64,
    /// Equal seeds give equal loads.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    let number = number.filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number over 0"))
}
