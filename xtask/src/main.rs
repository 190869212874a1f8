//! Work on the Neap tree: `cargo xtask tidy`, `cargo xtask ci`, `cargo xtask licences`.
#![forbid(unsafe_code)]

mod ci;
mod licences;
mod scan;
mod tidy;
mod tree;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  tidy [--lower]   check the rules of the tree; --lower writes smaller numbers into xtask/ratchet.txt
  licences         check the licence and the source of every dependency against deny.toml
  ci               run the lanes of .ci/run
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["tidy"] => tidy::run(tidy::Ratchet::Check),
        ["tidy", "--lower"] => tidy::run(tidy::Ratchet::Lower),
        ["licences"] => licences::run(),
        ["ci"] => ci::run(),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(message) => {
            println!("{message}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
