//! Licences and sources of the dependencies against `deny.toml`, without anything installed.

use std::collections::BTreeSet;
use std::process::Command;

/// Checks every crate that a build of the workspace contains.
pub fn run() -> Result<String, String> {
    let deny = std::fs::read_to_string(crate::tree::root().join("deny.toml"))
        .map_err(|error| format!("deny.toml: {error}"))?;
    let allowed = allowed(&deny)?;
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args([
            "tree",
            "--workspace",
            "--all-features",
            "--edges",
            "normal,build,dev",
        ])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .current_dir(crate::tree::root())
        .output()
        .map_err(|error| format!("cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo tree: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let packages: BTreeSet<&str> = listing.lines().filter(|line| !line.is_empty()).collect();
    let lock = std::fs::read_to_string(crate::tree::root().join("Cargo.lock"))
        .map_err(|error| format!("Cargo.lock: {error}"))?;
    let mut bad: Vec<String> = packages
        .iter()
        .filter_map(|line| problem(line, &allowed))
        .collect();
    bad.extend(foreign_sources(&lock));
    if bad.is_empty() {
        Ok(format!(
            "licences: {} packages, all allowed",
            packages.len()
        ))
    } else {
        Err(bad.join("\n"))
    }
}

/// Sources in a lock file that are not crates.io.
fn foreign_sources(lock: &str) -> Vec<String> {
    const CRATES_IO: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let sources = lock.lines().filter(|line| line.starts_with("source = "));
    let foreign = sources.filter(|line| *line != CRATES_IO);
    foreign
        .map(|line| format!("Cargo.lock: {line}: only crates.io is allowed"))
        .collect()
}

/// The strings of `allow = [ … ]` under `[licenses]`.
fn allowed(deny: &str) -> Result<BTreeSet<String>, String> {
    let section = deny
        .split("\n[licenses]")
        .nth(1)
        .ok_or("deny.toml: no [licenses]")?;
    let list = section
        .split("allow = [")
        .nth(1)
        .ok_or("deny.toml: no allow list")?;
    let list = list.split(']').next().unwrap_or_default();
    Ok(list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect())
}

/// What is wrong with a line `name version|licence expression`.
fn problem(line: &str, allowed: &BTreeSet<String>) -> Option<String> {
    let (package, licence) = line.split_once('|')?;
    if licence.is_empty() {
        return Some(format!("{package}: no licence given"));
    }
    let accepted = accepts(licence, allowed);
    (!accepted).then(|| format!("{package}: licence `{licence}` is not in deny.toml"))
}

/// Whether an SPDX expression can be met: one side of an `OR`, both sides of an `AND`.
fn accepts(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // Old manifests separate alternatives by a slash.
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(&words, &mut at, allowed);
    met && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(words, at, allowed);
    }
    met
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one_of(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one_of(words, at, allowed);
    }
    met
}

fn one_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let met = any_of(words, at, allowed);
        *at += 1;
        return met;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return allowed.contains(&format!("{word} WITH {exception}"));
    }
    allowed.contains(*word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> BTreeSet<String> {
        allowed("\n[licenses]\nallow = [\n \"MIT\",\n \"Apache-2.0\",\n \"Apache-2.0 WITH LLVM-exception\"]\n").unwrap()
    }

    #[test]
    fn reads_the_allow_list() {
        assert_eq!(list().len(), 3);
    }

    #[test]
    fn accepts_what_can_be_met() {
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/GPL-2.0",
            "(GPL-2.0 OR MIT) AND Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(accepts(good, &list()), "{good}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_met() {
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT WITH Classpath-exception",
            "",
            "MIT )",
            "(GPL-2.0 OR MIT) AND MPL-2.0",
        ] {
            assert!(!accepts(bad, &list()), "{bad}");
        }
    }

    #[test]
    fn only_crates_io_is_a_good_source() {
        let good =
            "name = \"a\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert_eq!(foreign_sources(good), [""; 0]);
        let bad = "source = \"git+https://example.org/a\"\nsource = \"registry+https://example.org/index\"\n";
        assert_eq!(foreign_sources(bad).len(), 2);
    }

    #[test]
    fn a_missing_licence_is_a_problem() {
        assert!(problem("x v1|", &list()).is_some());
        assert!(problem("x v1|MIT", &list()).is_none());
    }
}
