//! LoRA fine-tuning (Hu et al. 2021, arXiv:2106.09685) of small models on the CPU.
//!
//! [`Trainer`] holds a model's weights as they are and learns two thin matrices beside each chosen one, from
//! [`Example`]s. [`Run`] is a training run in a folder: it writes the adapter in PEFT's layout, and what it takes to go on
//! after a kill. Derivatives are candle's.
#![forbid(unsafe_code)]

mod adam;
mod adapter;
pub mod conll;
mod data;
mod network;
mod plan;
mod run;
mod supported;
mod trainer;

pub use adapter::Target;
pub use data::{Example, Reader, TextError};
pub use run::{Options, Progress, Run};
pub use supported::unsupported;
pub use trainer::Trainer;

use std::path::PathBuf;

/// Why a model is not tuned.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The model has what training cannot compute.
    #[error("{0} cannot be tuned yet")]
    Unsupported(String),
    /// The model's file is at fault.
    #[error(transparent)]
    Model(#[from] neap_model::source::ModelFileError),
    /// A tensor operation failed.
    #[error("computing failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The options make no training.
    #[error("{0}")]
    Options(String),
    /// The loss is no number any more.
    #[error("step {step}: the loss is {loss}; a smaller learning rate may help")]
    Diverged {
        /// The step.
        step: usize,
        /// Its loss.
        loss: f32,
    },
    /// A file could not be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: std::io::Error,
    },
    /// What an earlier run left in the folder cannot be gone on with.
    #[error("{}: {reason}; begin anew with --restart, or in another folder", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}
