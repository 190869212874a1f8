//! HTTP in front of the engine: OpenAI's API, metrics, and the memory that can be looked at and changed.
//!
//! The only crate with async code. The engine runs on a thread of its own (`worker`); connections hand it
//! requests by a bounded channel and get events back by bounded channels, so that neither a burst nor a slow
//! reader holds memory without limit. A response that is dropped takes its requests back.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapters;
mod app;
mod auth;
mod connection;
mod error;
mod fields;
mod live;
mod memory;
mod metrics;
mod openai;
mod reading;
mod reload;
mod report;
mod running;
mod serving;
mod sessions;
mod status;
mod tokens;
mod traces;
mod unread;
mod worker;

pub use app::ServedModel;
pub use auth::tenant_of_key;
pub use live::Live;
pub use openai::embeddings::EmbeddingModel;
pub use openai::judging::ClassifierModel;
pub use reading::{answers_of, prompt_tokens_of};
pub use reload::{Change, Configuration, Load, Loaded};
pub use running::{Options, Running, ServeError, run, start};
pub use traces::{Send as SendTraces, Traces};
