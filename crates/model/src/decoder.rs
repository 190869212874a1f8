//! The decoder: token ids to logits.
//!
//! [`Decoder`] is what the engine drives; [`CpuDecoder`] is the real one, and its `forward` is the
//! whole of a model, to be read from top to bottom.

mod adapt;
mod angles;
mod attend;
mod cpu;
mod feed_forward;
mod kv_order;
mod layer;
mod levels;
mod loader;
mod residency;
mod scratch;
mod weights;

use neap_kernels::WorkerPanic;
use neap_memory::BlockTable;

use crate::adapter::Adapter;

pub use angles::rope_table;
pub use cpu::CpuDecoder;
pub use kv_order::{kv_order, kv_places, kv_pool, kv_window};
pub use levels::quantized_levels;
pub use weights::{
    LoadError, LoadOptions, LoadProgress, Model, Repack, kv_block_bytes, kv_layout,
    least_weight_bytes, streamed_bytes_within,
};

/// Tokens in a KV block.
pub const BLOCK_TOKENS: usize = 32;

/// Which rows of a chunk give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: the chunk only fills the KV blocks.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

impl LogitsWanted {
    /// Rows of logits that a chunk of `tokens` gives.
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// The next tokens of one sequence.
pub struct SequenceChunk<'a> {
    /// The tokens; they follow those that `table` already holds.
    pub tokens: &'a [u32],
    /// The sequence's KV blocks, with room reserved for the tokens.
    pub table: &'a mut BlockTable,
    /// Which rows of logits to compute.
    pub logits: LogitsWanted,
    /// What is added to the products of the sequence. It must have been opened for the decoder's model. Chunks of one
    /// adapter are computed together where they follow each other.
    pub adapter: Option<&'a Adapter>,
    /// The tokens from this index on are of a second segment, for encoders that tell two apart.
    pub second_segment: Option<usize>,
}

/// The largest batch that a decoder was set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Tokens over all sequences of a step.
    pub batch_tokens: usize,
    /// Rows of logits of a step.
    pub logit_rows: usize,
}

/// A step that could not be computed. The tables are as they were before it.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// More tokens, rows of logits or context than the decoder was set up for.
    #[error("the step has {asked} {what}, the decoder was set up for {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many the step has.
        asked: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A token that the model does not have.
    #[error("token {id} is not in the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A table without room for its chunk.
    #[error("a block table holds {capacity} tokens, the chunk ends at {needed}")]
    NotReserved {
        /// Tokens that the table has room for.
        capacity: usize,
        /// Tokens after the chunk.
        needed: usize,
    },
    /// A task of a kernel panicked.
    #[error(transparent)]
    Worker(#[from] WorkerPanic),
}

/// Token ids to logits: the real decoder, or a fake one that tests the engine.
pub trait Decoder {
    /// Size of the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Tokens that one sequence may have.
    fn context_tokens(&self) -> usize;

    /// The largest batch.
    fn limits(&self) -> DecoderLimits;

    /// Computes the chunks, writes their keys and values into their tables and advances these.
    /// Gives the rows of logits that were asked for, in order, `[rows, vocab_size]`.
    ///
    /// # Errors
    /// The tables are not advanced then.
    fn forward(&mut self, batch: &mut [SequenceChunk<'_>]) -> Result<&mut [f32], StepError>;

    /// Bytes that [`Decoder::release_weights`] can free.
    fn releasable_weight_bytes(&self) -> u64 {
        0
    }

    /// Lets go of weights until `bytes` are free, or all that can be: they are read from the model's file
    /// again at each use. Returns the bytes freed. Changes no result.
    fn release_weights(&mut self, _bytes: u64) -> u64 {
        0
    }

    /// Holds some of the weights that were let go of again, if that takes at most `spare_bytes`. Whether
    /// it did.
    ///
    /// # Errors
    /// If a worker panics at it; the weights are as they were.
    fn take_weights_back(&mut self, _spare_bytes: u64) -> Result<bool, StepError> {
        Ok(false)
    }
}
