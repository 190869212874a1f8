//! Proof and measurement of the memory core.
//!
//! - [`trace`]: reads request traces, and [`replay`] runs them against every policy at several sizes.
#![forbid(unsafe_code)]

pub mod replay;
pub mod trace;
