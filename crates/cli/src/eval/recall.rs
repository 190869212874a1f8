//! `neap eval recall`: whether a fact is found again after a given distance.
//!
//! A task is a text with a fact, filler, and a question; greedy decoding must give the answer. The tasks
//! that come with neap are in the language of the model inside it.

use std::collections::{BTreeMap, HashMap};

use indicatif::ProgressBar;
use neap_engine::{Event, Request, RequestId};
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::args::{EvalRecallArgs, ModelArgs};
use crate::failure::Failure;
use crate::generate::clock_ms;
use crate::loading::{self, Below, Loaded, Parts};

static SHIPPED_TASKS: &str = include_str!("../../../../models/recall.jsonl");

#[derive(Deserialize)]
pub(super) struct Task {
    pub prompt: String,
    pub answer: String,
    pub distance_tokens: usize,
    pub kind: String,
}

impl Task {
    pub fn is_answered_by(&self, text: &str) -> bool {
        text.trim_start().starts_with(self.answer.trim())
    }
}

/// How many of a group of tasks were answered rightly.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Score {
    pub right: usize,
    pub asked: usize,
    pub share: f64,
    /// Bounds of the 95 % confidence interval (Wilson 1927).
    low: f64,
    high: f64,
}

impl Score {
    pub fn add(&mut self, is_right: bool) {
        self.right += usize::from(is_right);
        self.asked += 1;
        let (n, z) = (self.asked as f64, 1.96_f64);
        self.share = self.right as f64 / n;
        let middle = self.share + z * z / (2.0 * n);
        let spread = z * (self.share * (1.0 - self.share) / n + z * z / (4.0 * n * n)).sqrt();
        self.low = ((middle - spread) / (1.0 + z * z / n)).max(0.0);
        self.high = ((middle + spread) / (1.0 + z * z / n)).min(1.0);
    }
}

/// Distances are put together up to a power of two, 128 at least.
fn bucket(distance_tokens: usize) -> usize {
    distance_tokens.next_power_of_two().max(128)
}

#[derive(Default, Serialize)]
pub(super) struct Report {
    pub all: Score,
    /// By the greatest distance of each group.
    pub by_distance_tokens: BTreeMap<usize, Score>,
    by_kind: BTreeMap<String, Score>,
}

pub fn run(args: &EvalRecallArgs) -> Result<(), Failure> {
    let text = match &args.tasks {
        Some(path) => std::fs::read_to_string(path).map_err(|why| {
            Failure::new(format!("the tasks {} can't be read: {why}", path.display()))
        })?,
        None => SHIPPED_TASKS.to_owned(),
    };
    let report = measure(&args.model, args.parallel, &parse(&text)?, |_| {})?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// The tasks inside neap.
pub(super) fn shipped_tasks() -> Result<Vec<Task>, Failure> {
    parse(SHIPPED_TASKS)
}

/// A model's tokenizer and context.
pub(super) fn about(model: &ModelArgs) -> Result<(Tokenizer, usize), Failure> {
    let (_, source) = loading::open(model)?;
    let tokenizer = loading::tokenizer(&source)?;
    Ok((tokenizer, source.config().context_length))
}

/// Gives the tasks to a model, `parallel` at once, after a change to its parts.
pub(super) fn measure(
    model: &ModelArgs,
    parallel: usize,
    tasks: &[Task],
    change: impl FnOnce(&mut Parts),
) -> Result<Report, Failure> {
    let mut parts = loading::load_parts(model, parallel.max(1))?;
    change(&mut parts);
    let answers = answers(
        loading::with_engine(parts, parallel.max(1), &Below::default())?,
        tasks,
    )?;
    let mut report = Report::default();
    for (task, answer) in tasks.iter().zip(&answers) {
        let is_right = task.is_answered_by(answer);
        report.all.add(is_right);
        report
            .by_distance_tokens
            .entry(bucket(task.distance_tokens))
            .or_default()
            .add(is_right);
        report
            .by_kind
            .entry(task.kind.clone())
            .or_default()
            .add(is_right);
    }
    Ok(report)
}

fn parse(text: &str) -> Result<Vec<Task>, Failure> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let tasks: Result<Vec<Task>, Failure> = lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|why| {
                Failure::new(format!(
                    "line {} of the tasks is not a task: {why}",
                    number + 1
                ))
            })
        })
        .collect();
    match tasks {
        Ok(tasks) if tasks.is_empty() => Err(Failure::new("there are no tasks")),
        other => other,
    }
}

/// The greedy continuation of every task's prompt, as long as its answer.
pub(super) fn answers(mut loaded: Loaded, tasks: &[Task]) -> Result<Vec<String>, Failure> {
    let bar = ProgressBar::new(tasks.len() as u64);
    let mut places: HashMap<RequestId, usize> = HashMap::new();
    for (place, task) in tasks.iter().enumerate() {
        let encode = |text: &str, add_bos| {
            loaded.tokenizer.encode(
                text,
                EncodeOptions {
                    add_bos,
                    parse_special: true,
                },
            )
        };
        let prompt = encode(&task.prompt, true)?;
        // As many tokens as the answer has, and one where the pieces fall differently.
        let new_tokens = encode(&task.answer, false)?.len() + 1;
        let request = Request {
            prompt,
            max_new_tokens: Some(new_tokens),
            ..Request::default()
        };
        places.insert(loaded.engine.submit(request)?, place);
    }
    let mut answers = vec![String::new(); tasks.len()];
    while !loaded.engine.is_idle() {
        for event in loaded.engine.step(clock_ms()) {
            let (request, text, is_last) = match event {
                Event::Token { request, text, .. } => (request, text, false),
                Event::Finished { request, text, .. } => (request, text, true),
            };
            answers[places[&request]].push_str(&text);
            bar.inc(u64::from(is_last));
        }
    }
    bar.finish_and_clear();
    Ok(answers)
}

fn print(report: &Report) {
    println!(
        "{:24} {:>9} {:>8}   95 % interval",
        "recall", "right", "share"
    );
    let row = |name: String, score: &Score| {
        let right = format!("{} of {}", score.right, score.asked);
        let (share, low, high) = (score.share * 100.0, score.low * 100.0, score.high * 100.0);
        println!("{name:24} {right:>9} {share:>6.1} %   {low:.1} to {high:.1} %");
    };
    for (distance, score) in &report.by_distance_tokens {
        row(format!("to {distance} tokens"), score);
    }
    for (kind, score) in &report.by_kind {
        row(kind.clone(), score);
    }
    row("all".to_owned(), &report.all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_the_share() {
        let mut score = Score::default();
        for i in 0..20 {
            score.add(i % 4 != 0);
        }
        assert_eq!((score.right, score.asked), (15, 20));
        // Wilson's interval for 15 of 20, from a table.
        assert!(
            (score.low - 0.531).abs() < 0.001 && (score.high - 0.888).abs() < 0.001,
            "{score:?}"
        );
    }

    #[test]
    fn the_tasks_inside_are_sound() {
        let tasks = parse(SHIPPED_TASKS).expect("tasks");
        assert!(tasks.len() >= 50 && tasks.iter().all(|t| !t.answer.trim().is_empty()));
        assert!(parse("{\"prompt\": 1}").is_err() && parse("\n").is_err());
    }
}
