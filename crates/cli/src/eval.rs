//! `neap eval`: how good a model's memory and its guesses are.

mod classify;
mod kv;
mod needle;
mod ner;
mod perplexity;
mod plot;
mod recall;
mod scorer;
mod scores;

use crate::args::EvalCommand;
use crate::failure::Failure;

pub fn run(command: &EvalCommand) -> Result<(), Failure> {
    match command {
        EvalCommand::Recall(args) => recall::run(args),
        EvalCommand::Needle(args) => needle::run(args),
        EvalCommand::Classify(args) => classify::run(args),
        EvalCommand::Ner(args) => ner::run(args),
        EvalCommand::Kv(args) => kv::run(args),
        EvalCommand::Perplexity(args) => perplexity::run(args),
    }
}
