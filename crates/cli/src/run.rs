//! `neap run`: continues a text.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use neap_engine::{FinishReason, Request};
use neap_model::tokenizer::EncodeOptions;

use crate::args::RunArgs;
use crate::failure::Failure;
use crate::loading::{self, Below};
use crate::{adapters, generate, interrupt, report, sampling};

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let prompt = read_prompt(args)?;
    let mut loaded = loading::load(&args.model, 1, &Below::default())?;
    adapters::add(&mut loaded.engine, &loaded.source, args.lora.as_slice())?;
    let options = EncodeOptions {
        add_bos: true,
        parse_special: args.special,
    };
    let tokens = loaded.tokenizer.encode(&prompt, options)?;
    let params = sampling::params(&args.sampling);
    let seed = params.seed;
    let request = Request {
        prompt: tokens,
        max_new_tokens: (args.max_tokens > 0).then_some(args.max_tokens),
        sampling: params,
        stop_strings: args.stop.clone(),
        ignore_stop_ids: args.ignore_eos,
        show_special: args.special,
        adapter: args.lora.as_ref().map(|lora| lora.name.clone()),
        ..Request::default()
    };
    interrupt::install();
    let mut out = io::stdout().lock();
    let echo = if args.no_echo { "" } else { &prompt };
    let outcome = generate::generate(&mut loaded.engine, request, echo, |text| {
        out.write_all(text.as_bytes())?;
        out.flush()
    })?;
    let _ = writeln!(out);
    if args.verbose {
        report::print(&outcome, seed, loaded.engine.budget());
    }
    match outcome.reason {
        FinishReason::Cancelled => Err(Failure::interrupted()),
        FinishReason::OutOfBudget { .. } | FinishReason::Failed(_) => Err(Failure::new(format!(
            "stopped after {} tokens: {}",
            outcome.usage.new_tokens, outcome.reason
        ))),
        _ => Ok(()),
    }
}

fn read_prompt(args: &RunArgs) -> Result<String, Failure> {
    let prompt = match (&args.prompt, &args.file) {
        (Some(prompt), _) => prompt_argument(prompt)?,
        (None, Some(path)) if path.as_os_str() != "-" => {
            let bytes = std::fs::read(path).map_err(|why| {
                Failure::new(format!(
                    "the prompt file {} can't be read: {why}",
                    path.display()
                ))
            })?;
            utf8(bytes, &path.display())?
        }
        (None, None) if io::stdin().is_terminal() => {
            return Err(Failure::new(
                "there is no prompt: give one as an argument, with --file, or on standard input",
            ));
        }
        _ => {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes)?;
            utf8(bytes, &Path::new("standard input").display())?
        }
    };
    if prompt.is_empty() {
        return Err(Failure::new(
            "the prompt is empty: give at least one character",
        ));
    }
    Ok(prompt)
}

fn prompt_argument(prompt: &OsStr) -> Result<String, Failure> {
    utf8(prompt.as_encoded_bytes().to_vec(), &"the prompt")
}

fn utf8(bytes: Vec<u8>, name: &dyn std::fmt::Display) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|why| {
        let offset = why.utf8_error().valid_up_to();
        Failure::new(format!(
            "{name} is not UTF-8 text: the byte at offset {offset} begins no character"
        ))
    })
}
