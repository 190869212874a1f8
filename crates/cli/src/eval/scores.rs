//! Precision, recall and F1 by class, and the table that scikit-learn and seqeval print of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// What was found of one class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub right: u64,
    pub predicted: u64,
    pub gold: u64,
}

/// Figures of a class, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Scores {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    pub support: u64,
}

impl From<Counts> for Scores {
    /// What would be 0 / 0 is 0.
    fn from(counts: Counts) -> Self {
        let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        let precision = share(counts.right, counts.predicted);
        let recall = share(counts.right, counts.gold);
        let sum = precision + recall;
        Self {
            precision,
            recall,
            f1: if sum > 0.0 {
                2.0 * precision * recall / sum
            } else {
                0.0
            },
            support: counts.gold,
        }
    }
}

/// All classes, and their averages.
#[derive(Debug, Default, Serialize)]
pub(super) struct Table {
    pub by_class: BTreeMap<String, Scores>,
    /// Of all together.
    pub micro: Scores,
    /// The mean over classes.
    #[serde(rename = "macro")]
    pub mean: Scores,
    /// The mean over classes, by support.
    pub weighted: Scores,
}

impl Table {
    pub fn new(counts: &BTreeMap<String, Counts>) -> Self {
        let mut all = Counts::default();
        for counts in counts.values() {
            all.right += counts.right;
            all.predicted += counts.predicted;
            all.gold += counts.gold;
        }
        let by_class: BTreeMap<String, Scores> = counts
            .iter()
            .map(|(name, &counts)| (name.clone(), counts.into()))
            .collect();
        Self {
            micro: all.into(),
            mean: average(&by_class, |_| 1.0),
            weighted: average(&by_class, |scores| scores.support as f64),
            by_class,
        }
    }

    /// The table as seqeval prints it, with two digits.
    pub fn text(&self) -> String {
        let averages = [
            ("micro avg", &self.micro),
            ("macro avg", &self.mean),
            ("weighted avg", &self.weighted),
        ];
        let names = self.by_class.keys().map(|name| name.chars().count());
        let width = names.chain(["weighted avg".len()]).max().unwrap_or(0);
        let mut out = format!("{:>width$} ", "");
        for head in ["precision", "recall", "f1-score", "support"] {
            let _ = write!(out, " {head:>9}");
        }
        out.push_str("\n\n");
        let row = |out: &mut String, name: &str, scores: &Scores| {
            let Scores {
                precision,
                recall,
                f1,
                support,
            } = scores;
            let _ = writeln!(
                out,
                "{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {support:>9}"
            );
        };
        for (name, scores) in &self.by_class {
            row(&mut out, name, scores);
        }
        out.push('\n');
        for (name, scores) in averages {
            row(&mut out, name, scores);
        }
        out
    }
}

fn average(by_class: &BTreeMap<String, Scores>, weight: impl Fn(&Scores) -> f64) -> Scores {
    let sum: f64 = by_class.values().map(&weight).sum();
    let mean = |figure: fn(&Scores) -> f64| {
        if sum > 0.0 {
            by_class
                .values()
                .map(|s| weight(s) * figure(s))
                .sum::<f64>()
                / sum
        } else {
            0.0
        }
    };
    Scores {
        precision: mean(|s| s.precision),
        recall: mean(|s| s.recall),
        f1: mean(|s| s.f1),
        support: by_class.values().map(|s| s.support).sum(),
    }
}
