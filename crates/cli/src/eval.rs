//! `neap eval`: how good a model's memory and its guesses are.

mod kv;
mod perplexity;
mod plot;
mod recall;

use crate::args::EvalCommand;
use crate::failure::Failure;

pub fn run(command: &EvalCommand) -> Result<(), Failure> {
    match command {
        EvalCommand::Recall(args) => recall::run(args),
        EvalCommand::Kv(args) => kv::run(args),
        EvalCommand::Perplexity(args) => perplexity::run(args),
    }
}
