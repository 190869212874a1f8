//! The arguments of `neap tune`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use neap_tune::Target;

use crate::bytes;

#[derive(Debug, Args)]
pub struct TuneArgs {
    /// What to learn from: JSON lines, or a CoNLL file (named .conll, or with --conll).
    ///
    /// A line is {"prompt": "…", "completion": "…"}, {"messages": […]} or {"text": "…"}.
    #[arg(short, long, value_name = "PATH")]
    pub data: PathBuf,
    /// Measure the loss on these examples, which are not learned from, whenever the run stores itself.
    #[arg(long, value_name = "PATH")]
    pub held_out: Option<PathBuf>,
    /// The folder for the adapter; a run that was stopped in it goes on.
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,
    /// A GGUF file, a Hugging Face folder, or OWNER/NAME:FILE of a model that `neap pull` got; the small model inside
    /// neap if left out.
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Memory budget; what the container's limit and the system's available memory leave if left out.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    pub memory: Option<u64>,
    /// Matrices that are adapted.
    #[arg(long, value_parser = targets(), value_delimiter = ',', default_value = "q,k,v,o,gate,up,down")]
    pub targets: Vec<Target>,
    /// Rank of the adapter.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub rank: u16,
    /// The adapter counts ALPHA / rank times; twice the rank if left out.
    #[arg(long, value_name = "ALPHA")]
    pub alpha: Option<f64>,
    /// The highest learning rate; it rises at first, then falls to nothing.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    pub learning_rate: f64,
    /// How often every example is seen.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub epochs: usize,
    /// Tokens of a step.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub batch_tokens: usize,
    /// Longer examples are cut.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub max_tokens: usize,
    /// Steps after which the run stores itself.
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    pub save_every: usize,
    /// For the order of the examples and the first values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The data are CoNLL files, whatever they are called.
    #[arg(long)]
    pub conll: bool,
    /// For CoNLL: what the model continues with a tag, as in `neap eval ner`.
    #[arg(long, value_name = "TEXT", default_value = "{text}\nTag of {word}:")]
    pub prompt: String,
    /// For CoNLL: of the tokens outside of all entities take one in so many.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub outside_one_in: usize,
    /// Begin anew where a run was stopped.
    #[arg(long)]
    pub restart: bool,
}

/// Names of [`Target`]s.
fn targets() -> impl TypedValueParser<Value = Target> {
    let named = |name: String| Target::ALL.into_iter().find(|target| target.name() == name);
    PossibleValuesParser::new(Target::ALL.map(Target::name))
        .map(move |name| named(name).expect("one of the possible values"))
}
