//! HTTP in front of the engine: OpenAI's API, metrics, and the memory that can be looked at and changed.
//!
//! The only crate with async code. The engine runs on a thread of its own (`worker`); connections hand it
//! requests by a bounded channel and get events back by bounded channels, so that neither a burst nor a slow
//! reader holds memory without limit. A response that is dropped takes its requests back.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod app;
mod auth;
mod connection;
mod error;
mod fields;
mod memory;
mod metrics;
mod openai;
mod reading;
mod report;
mod running;
mod sessions;
mod status;
mod tokens;
mod worker;

pub use app::ServedModel;
pub use auth::tenant_of_key;
pub use openai::embeddings::EmbeddingModel;
pub use reading::prompt_tokens_of;
pub use running::{Options, Running, ServeError, run, start};
