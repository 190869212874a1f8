//! `neap tune`: a LoRA adapter for a model, learned on the CPU.

mod plot;

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use neap_memory::Budget;
use neap_model::source::ModelSource;
use neap_tune::{Example, Options, Progress, Reader, Run, unsupported};

use crate::args::TuneArgs;
use crate::bytes::show;
use crate::failure::Failure;
use crate::{hub, interrupt, loading, shipped};

pub fn run(args: &TuneArgs) -> Result<(), Failure> {
    let (name, source) = match &args.model {
        Some(path) => (
            path.display().to_string(),
            ModelSource::open(hub::find(path)?)?,
        ),
        None => (shipped::NAME.to_owned(), shipped::source()?),
    };
    if let Some(what) = unsupported(source.config()) {
        return Err(Failure::new(format!("{name}: {what} cannot be tuned yet")));
    }
    let options = options(args, &source);
    check_memory(args, &source, &options)?;
    let examples = read(args, &source, &options, &args.data)?;
    let held_out = match &args.held_out {
        Some(path) => read(args, &source, &options, path)?,
        None => Vec::new(),
    };
    let learned: usize = examples.iter().map(Example::learned_tokens).sum();
    eprintln!(
        "neap: {} examples, {learned} tokens to be learned in each of {} epochs",
        examples.len(),
        options.epochs
    );
    if args.restart {
        forget(&args.output)?;
    }
    let mut run = Run::open(
        &args.output,
        &source,
        &name,
        (&examples, &held_out),
        options,
    )?;
    if run.steps_done() > 0 {
        eprintln!("neap: goes on after step {}", run.steps_done());
    }
    train(args, &mut run)
}

fn train(args: &TuneArgs, run: &mut Run<'_>) -> Result<(), Failure> {
    interrupt::install();
    let bar = progress_bar(run.steps_done() as u64);
    let plot = args.output.join("training").join("loss.svg");
    let mut ended = false;
    run.train(&mut |run, progress| {
        report(&bar, progress);
        if progress.held_out.is_some() || progress.step == progress.steps {
            // A picture that cannot be written is no reason to end the run.
            let _ = fs::write(&plot, plot::svg(run.losses(), run.held_out()));
        }
        ended = progress.step == progress.steps;
        !interrupt::pressed()
    })?;
    bar.finish_and_clear();
    if !ended && interrupt::pressed() {
        eprintln!("neap: stopped and stored; the same command goes on");
        return Err(Failure::interrupted());
    }
    let last = run.losses().last().map_or(f32::NAN, |&(_, loss)| loss);
    let held_out = run.held_out().last();
    let held_out = held_out.map_or(String::new(), |(_, loss)| format!(", {loss:.4} held out"));
    eprintln!(
        "neap: {} holds the adapter; loss {last:.4}{held_out}, see {}",
        args.output.display(),
        plot.display()
    );
    Ok(())
}

fn report(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.steps as u64);
    bar.set_position(progress.step as u64);
    bar.set_message(format!("{:.4}", progress.loss));
    if let Some(loss) = progress.held_out {
        let line = format!(
            "neap: step {} of {}: loss {:.4}, {loss:.4} held out",
            progress.step, progress.steps, progress.loss
        );
        bar.suspend(|| eprintln!("{line}"));
    }
}

fn progress_bar(done: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "tuning {bar:30} {pos} of {len}, loss {msg}, {eta} left";
    let bar = ProgressBar::new(0).with_position(done);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn options(args: &TuneArgs, source: &ModelSource) -> Options {
    let rank = usize::from(args.rank);
    Options {
        targets: args.targets.clone(),
        rank,
        alpha: args.alpha.unwrap_or(2.0 * rank as f64),
        learning_rate: args.learning_rate,
        epochs: args.epochs,
        batch_tokens: args.batch_tokens,
        max_tokens: args.max_tokens.min(source.config().context_length),
        save_every: args.save_every,
        seed: args.seed,
    }
}

fn check_memory(args: &TuneArgs, source: &ModelSource, options: &Options) -> Result<(), Failure> {
    let limit = args
        .memory
        .unwrap_or_else(|| neap_memory::default_budget().bytes);
    let needed = options.bytes_needed(source.config());
    if Budget::new(limit).available() >= needed {
        return Ok(());
    }
    Err(Failure::new(format!(
        "tuning needs about {} of memory, and the budget is {}: give --memory {}MiB or more, fewer --batch-tokens, or \
         a smaller model",
        show(needed),
        show(limit),
        needed.div_ceil(1 << 20),
    )))
}

fn read(
    args: &TuneArgs,
    source: &ModelSource,
    options: &Options,
    path: &Path,
) -> Result<Vec<Example>, Failure> {
    let tokenizer = loading::tokenizer(source)?;
    let template = loading::template(source, &tokenizer)?;
    let mut reader = Reader {
        tokenizer: &tokenizer,
        template: &template,
        max_tokens: options.max_tokens,
        left_out: 0,
    };
    let named = |why: &dyn std::fmt::Display| Failure::new(format!("{}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|why| named(&why))?;
    let is_conll = args.conll || path.extension().is_some_and(|ending| ending == "conll");
    let examples = match is_conll {
        true => reader.conll(
            &text,
            &args.prompt.replace("\\n", "\n"),
            args.outside_one_in,
        ),
        false => reader.json_lines(&text),
    };
    let examples = examples.map_err(|why| named(&why))?;
    if reader.left_out > 0 {
        eprintln!(
            "neap: {}: {} examples are left out: of what is to be learned nothing stands in their first {} tokens",
            path.display(),
            reader.left_out,
            options.max_tokens
        );
    }
    Ok(examples)
}

/// Forgets a run that was stopped.
fn forget(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder.join("training")) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why.into()),
        _ => Ok(()),
    }
}
