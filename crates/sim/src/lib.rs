//! Proof and measurement of the memory core.
//!
//! - [`trace`]: reads request traces, and [`replay`] runs them against every policy at several sizes,
//!   beside policies that know part of the future ([`oracle`]).
//! - [`world`]: the whole memory core under load and faults, with a decoder that sees any wrong block.
#![forbid(unsafe_code)]

pub mod oracle;
pub mod replay;
pub mod trace;
pub mod world;
