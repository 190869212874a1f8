//! `neap eval classify`: a model chooses a label for each text, by what it finds likeliest after a prompt.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::perplexity::read_text;
use super::scorer::Scorer;
use super::scores::{Counts, Table};
use crate::args::EvalClassifyArgs;
use crate::failure::Failure;

#[derive(Deserialize)]
struct Example {
    text: String,
    label: String,
}

#[derive(Serialize)]
struct Report {
    examples: usize,
    accuracy: f64,
    #[serde(flatten)]
    table: Table,
}

pub fn run(args: &EvalClassifyArgs) -> Result<(), Failure> {
    if !args.prompt.contains("{text}") {
        return Err(Failure::new("--prompt has no {text}"));
    }
    let mut examples = parse(&read_text(&args.file)?)?;
    examples.truncate(args.limit.unwrap_or(usize::MAX));
    let labels = labels(&args.labels, &examples)?;
    let mut scorer = Scorer::new(&args.model, args.lora.as_ref(), args.per_token)?;
    let bar = ProgressBar::new(examples.len() as u64);
    let mut predicted = Vec::new();
    for example in &examples {
        let prompt = unescape(&args.prompt).replace("{text}", &example.text);
        predicted.push(&labels[scorer.choose(&prompt, &labels)?]);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let pairs = examples.iter().zip(predicted);
    let report = report(pairs.map(|(example, predicted)| (&example.label[..], &predicted[..])));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{} examples, accuracy {:.4}\n",
            report.examples, report.accuracy
        );
        print!("{}", report.table.text());
    }
    Ok(())
}

/// Line breaks are written \n on a command line.
pub(super) fn unescape(prompt: &str) -> String {
    prompt.replace("\\n", "\n")
}

fn parse(text: &str) -> Result<Vec<Example>, Failure> {
    let lines = text.lines().enumerate();
    let filled = lines.filter(|(_, line)| !line.trim().is_empty());
    let examples = filled
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|why| {
                Failure::new(format!(
                    "line {} is no text with a label: {why}",
                    number + 1
                ))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if examples.is_empty() {
        return Err(Failure::new("there are no examples"));
    }
    Ok(examples)
}

fn labels(asked: &[String], examples: &[Example]) -> Result<Vec<String>, Failure> {
    let used: BTreeSet<&str> = examples.iter().map(|example| &example.label[..]).collect();
    let labels: BTreeSet<String> = if asked.is_empty() {
        used.iter().map(|&label| label.to_owned()).collect()
    } else {
        asked.iter().cloned().collect()
    };
    if let Some(unknown) = used.iter().find(|&&label| !labels.contains(label)) {
        return Err(Failure::new(format!(
            "an example has the label {unknown:?}, which is not among --labels"
        )));
    }
    Ok(labels.into_iter().collect())
}

/// From pairs of the true label and the predicted one.
fn report<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Report {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let (mut examples, mut right) = (0, 0);
    for (gold, predicted) in pairs {
        examples += 1;
        counts.entry(gold.to_owned()).or_default().gold += 1;
        counts.entry(predicted.to_owned()).or_default().predicted += 1;
        if gold == predicted {
            right += 1;
            counts.entry(gold.to_owned()).or_default().right += 1;
        }
    }
    Report {
        examples,
        accuracy: f64::from(right) / (examples.max(1) as f64),
        table: Table::new(&counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_a_confusion_matrix_by_hand() {
        // a: 2 of 3 found, 2 of 3 predicted rightly; b: 1 of 2 found, 1 of 2; c: never right.
        let gold = ["a", "a", "a", "b", "b", "c"];
        let predicted = ["a", "a", "b", "b", "a", "d"];
        let report = report(gold.into_iter().zip(predicted));
        assert!((report.accuracy - 0.5).abs() < 1e-12);
        let a = report.table.by_class["a"];
        assert!((a.precision - 2.0 / 3.0).abs() < 1e-12 && (a.f1 - 2.0 / 3.0).abs() < 1e-12);
        // Of labels that each text has one of, micro-averaged figures are the accuracy.
        assert!((report.table.micro.f1 - report.accuracy).abs() < 1e-12);
        let mean = (2.0 / 3.0 + 0.5) / 4.0;
        assert!((report.table.mean.f1 - mean).abs() < 1e-12);
        let weighted = (3.0 * 2.0 / 3.0 + 2.0 * 0.5) / 6.0;
        assert!((report.table.weighted.f1 - weighted).abs() < 1e-12);
    }

    #[test]
    fn labels_are_those_of_the_file_or_must_hold_them() {
        let examples =
            parse("{\"text\":\"x\",\"label\":\"b\"}\n\n{\"text\":\"y\",\"label\":\"a\"}");
        let examples = examples.expect("two examples");
        assert_eq!(labels(&[], &examples).expect("labels"), ["a", "b"]);
        assert!(labels(&["a".to_owned()], &examples).is_err());
        assert!(parse("{\"text\":1}").is_err() && parse("").is_err());
    }
}
