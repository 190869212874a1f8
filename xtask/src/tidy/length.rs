//! Functions stay under 70 lines and files under 800. What is longer is written down in `xtask/ratchet.txt`
//! with its length, which only goes down.

use std::collections::BTreeMap;

use super::{Problem, Ratchet, Source};
use crate::scan;

const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 800;
const RATCHET: &str = "xtask/ratchet.txt";
const HEADER: &str = "\
# Functions over 70 lines and files over 800 lines, with their lengths.
# A number may be lowered (`cargo xtask tidy --lower`), never raised: split the function or the file.
";

/// Lengths over the limit, by `path` or `path name`.
type Lengths = BTreeMap<String, usize>;

pub fn check(sources: &[Source<'_>], ratchet: Ratchet) -> Result<Vec<Problem>, String> {
    let path = crate::tree::root().join(RATCHET);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{RATCHET}: {error}"))?;
    let allowed = parse(&text)?;
    let found = measure(sources);
    if ratchet == Ratchet::Lower {
        std::fs::write(&path, render(&lowered(&allowed, &found)))
            .map_err(|error| format!("{RATCHET}: {error}"))?;
        return Ok(compare(&lowered(&allowed, &found), &found));
    }
    Ok(compare(&allowed, &found))
}

fn measure(sources: &[Source<'_>]) -> Lengths {
    let mut found = Lengths::new();
    for source in sources {
        let path = &source.file.path;
        let lines = source.file.text().unwrap_or_default().lines().count();
        if lines > FILE_LINES {
            found.insert(path.clone(), lines);
        }
        for function in scan::functions(&source.masked) {
            if function.lines() > FUNCTION_LINES {
                // Functions of one name in a file share an entry: the longest counts.
                let entry = found
                    .entry(format!("{path} {}", function.name))
                    .or_default();
                *entry = (*entry).max(function.lines());
            }
        }
    }
    found
}

fn compare(allowed: &Lengths, found: &Lengths) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (what, &lines) in found {
        let limit = if what.contains(' ') {
            FUNCTION_LINES
        } else {
            FILE_LINES
        };
        let most = allowed.get(what).copied().unwrap_or(limit);
        if lines > most {
            problems.push(Problem::new(
                what,
                0,
                format!("{lines} lines, at most {most}"),
            ));
        }
    }
    for (what, &lines) in allowed {
        let now = found.get(what).copied().unwrap_or(0);
        if now < lines {
            let message = format!(
                "shorter than the {lines} lines of {RATCHET}: run `cargo xtask tidy --lower`"
            );
            problems.push(Problem::new(what, 0, message));
        }
    }
    problems
}

/// The allowed lengths brought down to what is there; what is under the limit is dropped.
fn lowered(allowed: &Lengths, found: &Lengths) -> Lengths {
    let kept = allowed
        .iter()
        .filter_map(|(what, &lines)| Some((what.clone(), lines.min(*found.get(what)?))));
    kept.collect()
}

fn parse(text: &str) -> Result<Lengths, String> {
    let mut lengths = Lengths::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    {
        let entry = line
            .split_once(' ')
            .and_then(|(lines, what)| Some((lines.parse().ok()?, what)));
        let (lines, what) = entry.ok_or_else(|| format!("{RATCHET}: cannot read `{line}`"))?;
        lengths.insert(what.to_owned(), lines);
    }
    Ok(lengths)
}

fn render(lengths: &Lengths) -> String {
    let lines: String = lengths
        .iter()
        .map(|(what, lines)| format!("{lines} {what}\n"))
        .collect();
    format!("{HEADER}{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::File;

    fn lengths(entries: &[(&str, usize)]) -> Lengths {
        entries
            .iter()
            .map(|(what, lines)| ((*what).to_owned(), *lines))
            .collect()
    }

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    x();\n".repeat(lines - 2))
    }

    #[test]
    fn the_limits_themselves_are_good() {
        let files = [
            File::new("a.rs", &function(FUNCTION_LINES)),
            File::new("b.rs", &"// x\n".repeat(FILE_LINES)),
        ];
        assert_eq!(measure(&super::super::sources(&files)), lengths(&[]));
    }

    #[test]
    fn one_line_more_is_found() {
        let files = [
            File::new("a.rs", &function(FUNCTION_LINES + 1)),
            File::new("b.rs", &"// x\n".repeat(FILE_LINES + 1)),
        ];
        assert_eq!(
            measure(&super::super::sources(&files)),
            lengths(&[("a.rs f", 71), ("b.rs", 801)])
        );
    }

    #[test]
    fn what_is_written_down_is_good_and_growth_is_bad() {
        let found = lengths(&[("a.rs f", 90)]);
        assert_eq!(compare(&lengths(&[("a.rs f", 90)]), &found), []);
        assert_eq!(compare(&lengths(&[("a.rs f", 89)]), &found).len(), 1);
        assert_eq!(compare(&lengths(&[]), &found).len(), 1);
    }

    #[test]
    fn a_number_too_high_is_bad() {
        assert_eq!(
            compare(&lengths(&[("a.rs f", 91)]), &lengths(&[("a.rs f", 90)])).len(),
            1
        );
        assert_eq!(compare(&lengths(&[("a.rs f", 91)]), &lengths(&[])).len(), 1);
    }

    #[test]
    fn lowering_never_raises_or_adds() {
        let allowed = lengths(&[("a f", 90), ("b f", 100), ("gone f", 80)]);
        let found = lengths(&[("a f", 95), ("b f", 75), ("new f", 99)]);
        assert_eq!(
            lowered(&allowed, &found),
            lengths(&[("a f", 90), ("b f", 75)])
        );
    }

    #[test]
    fn the_file_reads_back_as_written() {
        let entries = lengths(&[("a.rs f", 90), ("b.rs", 1000)]);
        assert_eq!(parse(&render(&entries)), Ok(entries));
        assert!(parse("many a.rs\n").is_err());
    }
}
