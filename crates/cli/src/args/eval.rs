//! The arguments of `neap eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ModelArgs;
use crate::adapters::NamedAdapter;

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Whether facts are found again after a given distance.
    Recall(EvalRecallArgs),
    /// How well a model guesses a text, as llama.cpp's perplexity defines it.
    Perplexity(EvalPerplexityArgs),
    /// Whether a sentence hidden in a long text is found again: for any model.
    Needle(EvalNeedleArgs),
    /// Accuracy and F1 of a model that chooses among labels.
    Classify(EvalClassifyArgs),
    /// Precision, recall and F1 of named entities in CoNLL files.
    Ner(EvalNerArgs),
    /// What each level of keys and values costs in quality: bits, perplexity, KL divergence and recall.
    Kv(EvalKvArgs),
}

#[derive(Debug, Args)]
pub struct EvalRecallArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tasks as lines of JSON with prompt, answer, distance_tokens and kind; those inside neap if left out.
    #[arg(long, value_name = "PATH")]
    pub tasks: Option<PathBuf>,
    /// Tasks that are computed together.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub parallel: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalPerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A LoRA adapter: a folder in PEFT's layout, or a GGUF file.
    #[arg(long, value_name = "PATH", value_parser = crate::adapters::parse)]
    pub lora: Option<NamedAdapter>,
    /// The text.
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,
    /// Tokens of a window; the second half of each is scored.
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    pub window: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalKvArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text; the one inside neap that its model was not trained on, if left out.
    #[arg(short, long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Tokens of a window; the second half of each is scored.
    #[arg(short, long, value_name = "TOKENS", default_value_t = 2048)]
    pub window: usize,
    /// Windows of the text at most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub windows: usize,
    /// Draw quality against bits into an SVG file.
    #[arg(long, value_name = "PATH")]
    pub plot: Option<PathBuf>,
    /// Write the first window's blocks into this folder, as each level has them, to try other coders on.
    #[arg(long, value_name = "FOLDER")]
    pub dump: Option<PathBuf>,
    /// Do not ask for facts; the tasks inside neap are in the language of its own model.
    #[arg(long)]
    pub no_recall: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalNeedleArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to hide sentences in; the one inside neap that its model was not trained on, if left out.
    #[arg(short, long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Lengths of the texts; the model's context and three halvings of it, 16,384 at most, if left out.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub lengths: Vec<usize>,
    /// Places in each text, evenly from its beginning to its end.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=101))]
    pub depths: u16,
    /// Sentences hidden at each place, one at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub repeat: u16,
    /// Texts that are computed together.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub parallel: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalClassifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A LoRA adapter: a folder in PEFT's layout, or a GGUF file.
    #[arg(long, value_name = "PATH", value_parser = crate::adapters::parse)]
    pub lora: Option<NamedAdapter>,
    /// Lines of JSON with text and label.
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,
    /// The labels to choose among; those in the file if left out.
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// What the model continues with a label; {text} stands for the text.
    #[arg(long, value_name = "TEXT", default_value = "{text}\nLabel:")]
    pub prompt: String,
    /// Compare labels by the mean over their tokens instead of the sum.
    #[arg(long)]
    pub per_token: bool,
    /// Only the first lines.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EvalNerArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A LoRA adapter: a folder in PEFT's layout, or a GGUF file.
    #[arg(long, value_name = "PATH", value_parser = crate::adapters::parse)]
    pub lora: Option<NamedAdapter>,
    /// A CoNLL file: a token a line with its true tag last (O, B-TYPE, I-TYPE, E-TYPE, S-TYPE), an empty line after each
    /// sentence.
    #[arg(short, long, value_name = "PATH")]
    pub file: PathBuf,
    /// Take the tags from this file, of the same tokens, instead of asking a model.
    #[arg(long, value_name = "PATH")]
    pub predicted: Option<PathBuf>,
    /// What the model continues with a tag; {text} stands for the sentence and {word} for the token.
    #[arg(long, value_name = "TEXT", default_value = "{text}\nTag of {word}:")]
    pub prompt: String,
    /// Only the first sentences.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
