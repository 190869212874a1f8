//! What a client asks for and what it gets back.

use std::fmt;

use neap_memory::KvQuality;

use crate::grammar::Grammar;
use crate::sampling::SamplingParams;

/// Names one request within an engine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// One generation to run.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The prompt, as token ids; at least one.
    pub prompt: Vec<u32>,
    /// Stop after this many new tokens; `None` runs to the end of the context.
    pub max_new_tokens: Option<usize>,
    /// How the next token is chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; none of them is given out.
    pub stop_strings: Vec<String>,
    /// Token ids that end the generation, besides the model's own.
    pub stop_ids: Vec<u32>,
    /// Go on past the model's end-of-text tokens.
    pub ignore_stop_ids: bool,
    /// Give the text of special tokens too.
    pub show_special: bool,
    /// With each token its log probability and those of this many most likely tokens.
    pub top_logprobs: Option<usize>,
    /// Tokens that the answer consists of, whatever the model would choose: to learn their log probabilities.
    pub forced: Vec<u32>,
    /// How low the keys and values may sink, but never below what the engine allows; `None`: as low as that.
    pub quality: Option<KvQuality>,
    /// Whose request it is: cached prefixes are shared within a tenant only.
    pub tenant: String,
    /// The adapter to use, by its name.
    pub adapter: Option<String>,
    /// Orders the requests of one tenant: each step up counts as if the request had come
    /// [`PRIORITY_STEP_MS`](crate::schedule::PRIORITY_STEP_MS) earlier, so that none waits for ever.
    pub priority: i32,
    /// What the answer must follow; its end is the answer's end.
    pub grammar: Option<Grammar>,
    /// The request fails where it has not finished at this time of the caller's clock.
    pub deadline_ms: Option<u64>,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its text with this token.
    EndOfText(u32),
    /// This stop string was produced.
    StopString(String),
    /// `max_new_tokens` were produced.
    Length,
    /// The model's context is full.
    ContextFull,
    /// The memory budget has no room for the next block, or for what the grammar grew by, and nothing else could give
    /// way.
    OutOfBudget {
        /// Bytes that this takes.
        needed_bytes: u64,
        /// Bytes that the budget had left.
        available_bytes: u64,
    },
    /// The grammar allows nothing more.
    GrammarComplete,
    /// The grammar takes too much work at this point of the answer.
    GrammarFailed(String),
    /// The request's deadline has passed.
    DeadlineExceeded,
    /// The client took the request back.
    Cancelled,
    /// The forward pass failed; the request is lost, the engine goes on.
    Failed(String),
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfText(id) => write!(f, "end of text (token {id})"),
            Self::StopString(text) => write!(f, "stop string {text:?}"),
            Self::Length => f.write_str("token limit reached"),
            Self::ContextFull => f.write_str("the model's context is full"),
            Self::OutOfBudget {
                needed_bytes,
                available_bytes,
            } => write!(
                f,
                "the memory budget is used up: going on needs {needed_bytes} bytes and \
                 {available_bytes} are free; give more memory, or shorten the context"
            ),
            Self::GrammarComplete => f.write_str("the grammar is complete"),
            Self::GrammarFailed(why) => write!(f, "the grammar can't be followed further: {why}"),
            Self::DeadlineExceeded => f.write_str("the request's deadline has passed"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// The log probability of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the model, before sampling parameters.
    pub logprob: f32,
}

/// What a step produced for one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new token; `text` may be empty while a character or a stop string is incomplete.
    Token {
        /// Whose.
        request: RequestId,
        /// The token.
        id: u32,
        /// Text that became certain with this token.
        text: String,
        /// The token's own log probability first, then the most likely ones, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The generation is over; nothing follows for this request.
    Finished {
        /// Whose.
        request: RequestId,
        /// Why.
        reason: FinishReason,
        /// Text that was held back and belongs to the answer.
        text: String,
        /// What the request took.
        usage: Usage,
    },
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens produced.
    pub new_tokens: usize,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: usize,
}

/// Why a request was not taken in.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdmissionError {
    /// Nothing to continue from.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error(
        "token {id} at position {position} of the prompt is not in the vocabulary of {vocab_size} tokens"
    )]
    UnknownToken {
        /// The token.
        id: u32,
        /// Where it stands.
        position: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// More than the model can look back on.
    #[error(
        "the prompt has {prompt_tokens} tokens, the model's context holds {context_tokens}: \
         shorten the prompt to at most {} tokens", context_tokens - 1
    )]
    PromptTooLong {
        /// Length of the prompt.
        prompt_tokens: usize,
        /// Length of the context.
        context_tokens: usize,
    },
    /// More than the budget can ever hold.
    #[error(
        "{tokens} tokens of context need {needed_bytes} bytes of KV cache, and the memory budget of \
         {limit_bytes} bytes leaves {free_bytes} beside weights and scratch: raise --memory by at \
         least {} bytes, or ask for fewer tokens (at most {fitting_tokens} fit)",
        needed_bytes.saturating_sub(*free_bytes)
    )]
    DoesNotFit {
        /// Prompt and new tokens together.
        tokens: usize,
        /// Bytes that these take.
        needed_bytes: u64,
        /// Bytes that the budget can give to the KV cache.
        free_bytes: u64,
        /// The whole budget.
        limit_bytes: u64,
        /// Tokens for which `free_bytes` are enough.
        fitting_tokens: usize,
    },
    /// The budget has no room for the grammar now.
    #[error(
        "following the grammar needs {needed_bytes} bytes more, and {available_bytes} of the memory budget can be \
         given: raise --memory, or try again when less runs"
    )]
    GrammarDoesNotFit {
        /// Bytes that it takes.
        needed_bytes: u64,
        /// Bytes that are left.
        available_bytes: u64,
    },
    /// An adapter that is not there, or no longer.
    #[error("there is no adapter {name:?}")]
    UnknownAdapter {
        /// What the request calls it.
        name: String,
    },
    /// A sampling parameter outside its range.
    #[error("{0}")]
    Sampling(#[from] crate::sampling::SamplingError),
}
