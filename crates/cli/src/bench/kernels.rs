//! `neap bench kernels`: each kernel against what the machine allows.

use crate::args::BenchKernelsArgs;
use crate::failure::Failure;

pub fn run(_args: &BenchKernelsArgs) -> Result<(), Failure> {
    Err(Failure::new("not built in yet"))
}
