//! `neap bench`: measures speed and memory.

mod kernels;
mod model;

pub use kernels::parse_format;

use crate::args::BenchCommand;
use crate::failure::Failure;

pub fn run(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Model(args) => model::run(args),
        BenchCommand::Kernels(args) => kernels::run(args),
    }
}
