//! `neap eval ner`: named entities in CoNLL files, scored as seqeval does by default (and conlleval before it): an entity
//! is right if its type, its first and its last token are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use indicatif::ProgressBar;
use neap_tune::conll::{self, Sentence};
use serde::Serialize;

use super::classify::unescape;
use super::perplexity::read_text;
use super::scorer::Scorer;
use super::scores::{Counts, Table};
use crate::args::EvalNerArgs;
use crate::failure::Failure;

#[derive(Serialize)]
struct Report {
    sentences: usize,
    tokens: usize,
    /// Of all tokens the share with the true tag.
    accuracy: f64,
    #[serde(flatten)]
    table: Table,
}

pub fn run(args: &EvalNerArgs) -> Result<(), Failure> {
    let mut gold = read(&args.file)?;
    gold.truncate(args.limit.unwrap_or(usize::MAX));
    let predicted = match &args.predicted {
        Some(path) => {
            let mut predicted = read(path)?;
            predicted.truncate(args.limit.unwrap_or(usize::MAX));
            check_same(&gold, &predicted)?;
            predicted
                .into_iter()
                .map(|sentence| sentence.tags)
                .collect()
        }
        None => ask(args, &gold)?,
    };
    let pairs = gold.iter().zip(&predicted);
    let report = report(pairs.map(|(gold, predicted)| (&gold.tags[..], &predicted[..])));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{} tokens in {} sentences, {:.4} of the tags right\n",
            report.tokens, report.sentences, report.accuracy
        );
        print!("{}", report.table.text());
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Sentence>, Failure> {
    parse(&read_text(path)?).map_err(|why| Failure::new(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<Vec<Sentence>, String> {
    let sentences = conll::sentences(text).map_err(|why| why.to_string())?;
    if sentences.is_empty() {
        return Err("there are no sentences".to_owned());
    }
    for sentence in &sentences {
        for (line, tag) in (sentence.line..).zip(&sentence.tags) {
            check_tag(tag).map_err(|why| format!("line {line}: {why}"))?;
        }
    }
    Ok(sentences)
}

fn check_tag(tag: &str) -> Result<(), String> {
    let is_one = tag == "O" || tag.starts_with(['B', 'I', 'E', 'S']) && tag[1..].starts_with('-');
    match is_one {
        true => Ok(()),
        false => Err(format!(
            "the tag {tag:?} is none of O, B-TYPE, I-TYPE, E-TYPE and S-TYPE"
        )),
    }
}

fn check_same(gold: &[Sentence], predicted: &[Sentence]) -> Result<(), Failure> {
    let differ = |(a, b): &(&Sentence, &Sentence)| a.tokens != b.tokens;
    if let Some((a, b)) = gold.iter().zip(predicted).find(differ) {
        return Err(Failure::new(format!(
            "the sentences from line {} of the one file and line {} of the other have different tokens",
            a.line, b.line
        )));
    }
    if gold.len() != predicted.len() {
        return Err(Failure::new(format!(
            "{} sentences, but tags for {}",
            gold.len(),
            predicted.len()
        )));
    }
    Ok(())
}

/// Lets a model choose a tag for every token.
fn ask(args: &EvalNerArgs, gold: &[Sentence]) -> Result<Vec<Vec<String>>, Failure> {
    if !args.prompt.contains("{word}") {
        return Err(Failure::new("--prompt has no {word}"));
    }
    let tags: BTreeSet<&String> = gold.iter().flat_map(|sentence| &sentence.tags).collect();
    let tags: Vec<String> = tags.into_iter().cloned().collect();
    let mut scorer = Scorer::new(&args.model, args.lora.as_ref(), false)?;
    let tokens = gold.iter().map(|sentence| sentence.tokens.len() as u64);
    let bar = ProgressBar::new(tokens.sum());
    let mut predicted = Vec::new();
    for sentence in gold {
        // The sentence first: what stands before the word is computed once.
        let prompt = unescape(&args.prompt).replace("{text}", &sentence.tokens.join(" "));
        let mut own = Vec::new();
        for token in &sentence.tokens {
            let place = scorer.choose(&prompt.replace("{word}", token), &tags)?;
            own.push(tags[place].clone());
            bar.inc(1);
        }
        predicted.push(own);
    }
    bar.finish_and_clear();
    Ok(predicted)
}

/// Type, first and last token.
type Entity<'a> = (&'a str, usize, usize);

/// The entities of a sentence. What begins without B, or changes its type within, is one all the same.
fn entities(tags: &[String]) -> BTreeSet<Entity<'_>> {
    let split = |tag: &'_ String| -> (char, usize) {
        (tag.chars().next().unwrap_or('O'), tag.len().min(2))
    };
    let mut found = BTreeSet::new();
    let mut open: Option<(&str, usize)> = None;
    let mut before = 'O';
    for (at, tag) in tags.iter().enumerate() {
        let (mark, prefix) = split(tag);
        let kind = &tag[prefix..];
        let goes_on = matches!((before, mark), ('B' | 'I', 'I' | 'E'))
            && open.is_some_and(|(open, _)| open == kind);
        if !goes_on {
            if let Some((kind, first)) = open.take() {
                found.insert((kind, first, at - 1));
            }
            if mark != 'O' {
                open = Some((kind, at));
            }
        }
        before = mark;
    }
    if let Some((kind, first)) = open {
        found.insert((kind, first, tags.len() - 1));
    }
    found
}

/// From pairs of true and predicted tags of a sentence.
fn report<'a>(pairs: impl Iterator<Item = (&'a [String], &'a [String])>) -> Report {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let (mut sentences, mut tokens, mut right) = (0, 0, 0);
    for (gold, predicted) in pairs {
        sentences += 1;
        tokens += gold.len();
        right += gold.iter().zip(predicted).filter(|(a, b)| a == b).count();
        let (gold, predicted) = (entities(gold), entities(predicted));
        for entity in &gold {
            counts.entry(entity.0.to_owned()).or_default().gold += 1;
        }
        for entity in &predicted {
            let counts = counts.entry(entity.0.to_owned()).or_default();
            counts.predicted += 1;
            counts.right += u64::from(gold.contains(entity));
        }
    }
    Report {
        sentences,
        tokens,
        accuracy: right as f64 / tokens.max(1) as f64,
        table: Table::new(&counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// What `make_seqeval_goldens.py` wrote.
    #[derive(Deserialize)]
    struct Golden {
        gold: Vec<Vec<String>>,
        predicted: Vec<Vec<String>>,
        accuracy: f64,
        report: String,
        micro_f1: f64,
        macro_f1: f64,
        weighted_f1: f64,
    }

    #[test]
    fn reports_are_those_of_seqeval() {
        let goldens: Vec<Golden> =
            serde_json::from_str(include_str!("../../tests/data/seqeval.json")).expect("goldens");
        assert!(goldens.len() > 100);
        for golden in goldens {
            let pairs = golden.gold.iter().zip(&golden.predicted);
            let report = report(pairs.map(|(a, b)| (&a[..], &b[..])));
            let table = &report.table;
            assert_eq!(table.text(), golden.report, "{:?}", golden.predicted);
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
            close(report.accuracy, golden.accuracy);
            close(table.micro.f1, golden.micro_f1);
            close(table.mean.f1, golden.macro_f1);
            close(table.weighted.f1, golden.weighted_f1);
        }
    }

    #[test]
    fn files_are_read_with_the_line_of_what_is_wrong() {
        let sentences = parse("Jane B-PER\n\nran O").expect("two sentences");
        for (bad, line) in [
            ("a O\nb", "line 2"),
            ("a O\nb X-PER", "line 2"),
            ("a Bé", "line 1"),
        ] {
            assert!(parse(bad).expect_err("bad").contains(line), "{bad}");
        }
        assert!(parse("\n\n").is_err());
        assert!(check_same(&sentences, &sentences[..1]).is_err());
        assert!(
            check_same(
                &sentences,
                &parse("Jane O\n\nran O").expect("the same tokens")
            )
            .is_ok()
        );
    }
}
