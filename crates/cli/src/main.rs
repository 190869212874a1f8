//! `neap`: the command line.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod bytes;
mod chat;
mod disk_speed;
mod eval;
mod failure;
mod generate;
mod http;
mod inspect;
mod interrupt;
mod keep;
mod loading;
mod memory;
mod remote;
mod report;
mod run;
mod sampling;
mod serve;
mod shipped;
mod sinker;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(cli.log)
        .with_writer(std::io::stderr)
        .init();
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Eval(command) => eval::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Memory(command) => memory::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
