//! SIMD kernels of Neap: the only home of SIMD in the workspace.
#![deny(missing_docs)]

pub mod attention;
pub mod bench;
pub mod format;
pub mod isa;
pub mod kv;
pub mod matmul;
pub mod matrix;
pub mod norm;
pub mod ops;
pub mod pool;
pub mod rans;
pub mod rope;

mod simd;

pub use isa::Isa;
pub use pool::{ThreadPool, WorkerPanic};

/// What every kernel needs to run: the instruction set and the threads.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Instruction set chosen at run time.
    pub isa: Isa,
    /// Threads that share the work.
    pub pool: &'a ThreadPool,
}
