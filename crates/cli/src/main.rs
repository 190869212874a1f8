//! `neap`: the command line.
#![forbid(unsafe_code)]

mod adapters;
mod args;
mod bench;
mod blocks;
mod bytes;
mod chat;
mod client;
mod config;
mod convert;
mod disk_speed;
mod docs;
mod embed;
mod eval;
mod failure;
mod generate;
mod http;
mod hub;
mod inspect;
mod interrupt;
mod keep;
mod loading;
mod memory;
mod pipe;
mod pull;
mod remote;
mod report;
mod run;
mod sampling;
mod serve;
mod session;
mod shipped;
mod sinker;
mod tune;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, LogFormat};

fn main() -> ExitCode {
    pipe::end_quietly();
    let args = match config::expand(std::env::args_os().collect(), &Cli::command()) {
        Ok(args) => args,
        Err(failure) => return failure.report(),
    };
    let cli = Cli::parse_from(args);
    let log = tracing_subscriber::fmt()
        .with_max_level(cli.log)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Eval(command) => eval::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Memory(command) => memory::run(command),
        Command::Session(command) => session::run(command),
        Command::Completions(args) => docs::completions(args),
        Command::Man(args) => docs::man(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
