//! `neap bench`: measures speed and memory.

mod disk;
mod kernels;
mod load;
mod model;
mod restore;
mod serve;
mod trace;

pub use kernels::parse_format;
pub use trace::{Room, parse_policy, parse_room};

use crate::args::BenchCommand;
use crate::failure::Failure;

pub fn run(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Model(args) => model::run(args),
        BenchCommand::Kernels(args) => kernels::run(args),
        BenchCommand::Trace(args) => trace::run(args),
        BenchCommand::Restore(args) => restore::run(args),
        BenchCommand::Disk(args) => disk::run(args),
        BenchCommand::Serve(args) => serve::run(args),
        BenchCommand::Load(args) => load::run(args),
    }
}
