//! Requests to tokens: admission, scheduling and sampling.
//!
//! A request goes through [`Engine::submit`] (admission), [`schedule::plan`] (what the next step
//! computes), the decoder's forward pass and [`sampling::Sampler`] (which token comes next), and
//! comes back as [`Event`]s.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod engine;
pub mod fairness;
pub mod grammar;
pub mod request;
pub mod sampling;
pub mod schedule;
mod sequence;
pub mod stop;

pub use engine::{AdapterNameTaken, AdapterState, Engine, EngineConfig, PRESSED_PAUSE};
pub use grammar::{Grammar, GrammarError, Grammars};
pub use request::{AdmissionError, Event, FinishReason, Request, RequestId, TokenLogprob, Usage};
pub use sampling::{SamplingError, SamplingParams};
pub use sequence::AttendedTokens;
