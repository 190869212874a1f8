//! `neap eval needle`: a sentence with a number hidden in a text of any length, at any depth, and asked for at the end.
//!
//! The task is that of the recall tasks inside neap (a code of a thing), so the shipped model knows it, and plain enough
//! for any other. Things and numbers follow from the places alone, so two runs ask the same.

use indicatif::ProgressBar;
use neap_model::tokenizer::{EncodeOptions, Tokenizer};
use serde::Serialize;

use super::perplexity::read_text;
use super::recall::{self, Score, Task};
use crate::args::EvalNeedleArgs;
use crate::failure::Failure;
use crate::loading::{self, Below};

static SHIPPED_TEXT: &str = include_str!("../../../../models/heldout.txt");
const COLOURS: [&str; 8] = [
    "white", "purple", "green", "yellow", "red", "silver", "black", "orange",
];
const THINGS: [&str; 6] = ["locker", "safe", "trunk", "box", "chest", "door"];
/// Lengths that are tried unasked at most.
const LONGEST_TOKENS: usize = 16_384;
/// Tokens kept for sentence, question and answer.
const ASIDE_TOKENS: usize = 64;

#[derive(Serialize)]
struct Report {
    cells: Vec<Cell>,
    all: Score,
}

/// One length and depth.
#[derive(Serialize)]
struct Cell {
    length_tokens: usize,
    /// Where the sentence stands: 0 at the beginning, 1 at the end.
    depth: f64,
    score: Score,
}

pub fn run(args: &EvalNeedleArgs) -> Result<(), Failure> {
    let text = match &args.file {
        Some(path) => read_text(path)?,
        None => SHIPPED_TEXT.to_owned(),
    };
    let (tokenizer, context) = recall::about(&args.model)?;
    let lengths = lengths(&args.lengths, context)?;
    let words = Words::new(
        &text,
        &tokenizer,
        lengths.iter().copied().max().unwrap_or(0),
    )?;
    let (depths, repeat) = (usize::from(args.depths), usize::from(args.repeat));
    let mut tasks = Vec::new();
    for &length in &lengths {
        for depth in 0..depths {
            for number in 0..repeat {
                let share = depth as f64 / (depths - 1) as f64;
                tasks.push(words.task(length - ASIDE_TOKENS, share, tasks.len() + 7 * number));
            }
        }
    }
    let loaded = loading::load(&args.model, args.parallel.max(1), &Below::default())?;
    let answers = recall::answers(loaded, &tasks)?;
    let mut report = Report {
        cells: Vec::new(),
        all: Score::default(),
    };
    let mut done = tasks.iter().zip(&answers);
    for length_tokens in lengths {
        for depth in 0..depths {
            let mut score = Score::default();
            for (task, answer) in done.by_ref().take(repeat) {
                score.add(task.is_answered_by(answer));
                report.all.add(task.is_answered_by(answer));
            }
            report.cells.push(Cell {
                length_tokens,
                depth: depth as f64 / (depths - 1) as f64,
                score,
            });
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, depths);
    }
    Ok(())
}

/// What is asked for, or what fits the model.
fn lengths(asked: &[usize], context: usize) -> Result<Vec<usize>, Failure> {
    let longest = context.min(LONGEST_TOKENS);
    let lengths: Vec<usize> = if asked.is_empty() {
        (0..4).rev().map(|halvings| longest >> halvings).collect()
    } else {
        asked.to_vec()
    };
    let fits = |&length: &usize| length > ASIDE_TOKENS && length <= context;
    match lengths.iter().find(|length| !fits(length)) {
        Some(length) => Err(Failure::new(format!(
            "a length of {length} tokens: give more than {ASIDE_TOKENS} and at most the context of {context}"
        ))),
        None => Ok(lengths),
    }
}

/// The words of a text, and how many tokens stand before each.
struct Words<'a> {
    words: Vec<&'a str>,
    tokens_before: Vec<usize>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str, tokenizer: &Tokenizer, most_tokens: usize) -> Result<Self, Failure> {
        let options = EncodeOptions {
            add_bos: false,
            parse_special: false,
        };
        let (mut words, mut tokens_before, mut tokens) = (Vec::new(), Vec::new(), 0);
        let bar = ProgressBar::new(most_tokens as u64);
        for word in text.split_inclusive(char::is_whitespace) {
            if tokens >= most_tokens {
                break;
            }
            words.push(word);
            tokens_before.push(tokens);
            // Together they never take more tokens than alone.
            tokens += tokenizer.encode(word, options)?.len();
            bar.set_position(tokens as u64);
        }
        bar.finish_and_clear();
        if tokens < most_tokens {
            return Err(Failure::new(format!(
                "the text has {tokens} tokens, and {most_tokens} are needed: give a longer --file, or smaller --lengths"
            )));
        }
        Ok(Self {
            words,
            tokens_before,
        })
    }

    /// A text of about so many tokens with a sentence after that share of it.
    fn task(&self, tokens: usize, share: f64, seed: usize) -> Task {
        let words_of = |tokens: usize| {
            self.tokens_before
                .partition_point(|&before| before < tokens)
        };
        let hidden_at = (tokens as f64 * share) as usize;
        let (at, end) = (words_of(hidden_at), words_of(tokens));
        let thing = format!(
            "{} {}",
            COLOURS[seed % COLOURS.len()],
            THINGS[seed / COLOURS.len() % THINGS.len()]
        );
        let code = 1000 + seed.wrapping_mul(7919) % 9000;
        let (before, after) = (self.words[..at].concat(), self.words[at..end].concat());
        Task {
            prompt: format!(
                "{before} The code of the {thing} is {code}. {after}\nQuestion: What is the code of the {thing}?\nAnswer:"
            ),
            answer: format!(" {code}."),
            distance_tokens: tokens - hidden_at,
            kind: "needle".to_owned(),
        }
    }
}

fn print(report: &Report, depths: usize) {
    let mut head = format!("{:>8}", "tokens");
    for cell in &report.cells[..depths] {
        head.push_str(&format!(" {:>5.0} %", 100.0 * cell.depth));
    }
    println!("found, by length and by depth of the sentence\n{head}");
    for row in report.cells.chunks(depths) {
        let mut line = format!("{:>8}", row[0].length_tokens);
        for cell in row {
            line.push_str(&format!(" {:>5.0} %", 100.0 * cell.score.share));
        }
        println!("{line}");
    }
    let all = &report.all;
    println!(
        "{} of {} found, {:.1} %",
        all.right,
        all.asked,
        100.0 * all.share
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_stand_where_they_are_said_to() {
        let text = "one two three four five six seven eight nine ten";
        let words = Words {
            words: text.split_inclusive(' ').collect(),
            tokens_before: (0..10).collect(),
        };
        let task = words.task(8, 0.5, 9);
        assert!(
            task.prompt
                .starts_with("one two three four  The code of the purple safe is ")
        );
        assert!(task.prompt.contains(". five six seven eight \nQuestion:"));
        assert!(task.is_answered_by(&task.answer) && !task.is_answered_by(" 12."));
        assert_eq!(task.distance_tokens, 4);
        assert!(
            words
                .task(8, 0.0, 0)
                .prompt
                .starts_with(" The code of the white locker")
        );
    }

    #[test]
    fn lengths_fit_the_context() {
        assert_eq!(lengths(&[], 2048).expect("lengths"), [256, 512, 1024, 2048]);
        assert!(lengths(&[4096], 2048).is_err() && lengths(&[10], 2048).is_err());
    }
}
