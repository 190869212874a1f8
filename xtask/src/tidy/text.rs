//! Words that must not be in the tree, and settings read from the environment outside the command line.

use super::{Problem, Source};
use crate::tree::File;

/// Top folders where one machine keeps its checkouts, homes and builds: a path into them holds on no other machine.
const MACHINE_FOLDERS: &[&str] = &[
    "root",
    "home",
    "Users",
    "work",
    "workspace",
    "mnt",
    "opt",
    "scratch",
    "builds",
];

/// Files that may name what is forbidden: this one, in its tests.
const EXEMPT: &[&str] = &["xtask/src/tidy/text.rs", "Cargo.lock"];

pub fn check(files: &[File], sources: &[Source<'_>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files
        .iter()
        .filter(|file| !EXEMPT.contains(&file.path.as_str()))
    {
        for (number, line) in file.text().unwrap_or_default().lines().enumerate() {
            problems.extend(
                line_problem(line).map(|message| Problem::new(&file.path, number + 1, message)),
            );
        }
    }
    for source in sources
        .iter()
        .filter(|source| !may_read_environment(&source.file.path))
    {
        for (number, line) in source.masked.code.iter().enumerate() {
            if line.contains("env::var") {
                let message =
                    "reads the environment: settings come from the one validated configuration";
                problems.push(Problem::new(&source.file.path, number + 1, message));
            }
        }
    }
    problems
}

fn line_problem(line: &str) -> Option<String> {
    if let Some(path) = machine_path(line) {
        return Some(format!("a path of one machine: {path}"));
    }
    if ["<<<<<<< ", ">>>>>>> "]
        .iter()
        .any(|mark| line.starts_with(mark))
    {
        return Some("a merge conflict".to_owned());
    }
    if let Some(number) = issue_number(line) {
        return Some(format!("an issue number ({number}): say the reason itself"));
    }
    None
}

/// An absolute path that begins with a folder of one machine.
fn machine_path(line: &str) -> Option<&str> {
    for (at, _) in line.match_indices('/') {
        let before = line[..at].chars().next_back();
        let starts = before.is_none_or(|c| c.is_whitespace() || "\"'`(=:<[,".contains(c));
        // `https://home/…` is an address.
        if !starts || line[..at].ends_with("http:") || line[..at].ends_with("https:") {
            continue;
        }
        let rest = &line[at + 1..];
        let length = rest
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(rest.len());
        if MACHINE_FOLDERS.contains(&&rest[..length]) && rest[length..].starts_with('/') {
            let end = line[at..]
                .find(|c: char| c.is_whitespace() || "\"'`)".contains(c))
                .unwrap_or(line.len() - at);
            return Some(&line[at..at + end]);
        }
    }
    None
}

/// `issue 12` or `issue #12`.
fn issue_number(line: &str) -> Option<&str> {
    for (at, word) in line.match_indices("ssue ") {
        let rest = line[at + word.len()..].trim_start_matches('#');
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        if digits > 0 {
            return Some(&rest[..digits]);
        }
    }
    None
}

fn may_read_environment(path: &str) -> bool {
    let test = path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/benches/");
    test || path.starts_with("crates/cli/")
        || path.starts_with("xtask/")
        || path.ends_with("build.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_bad() {
        for bad in [
            "see /home/me/models",
            "path = \"/root/.cache/x\"",
            "cd /work/main",
            "`/Users/me/a`",
        ] {
            assert!(line_problem(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn paths_of_every_machine_are_good() {
        for good in [
            "/proc/self/status",
            "crates/work/src",
            "read /sys/fs/cgroup/memory.max",
            "~/.cache/neap-bench",
            "https://home/page",
            "keys/home/values",
            "and/or work/home",
        ] {
            assert_eq!(line_problem(good), None, "{good}");
        }
    }

    #[test]
    fn conflict_marks_and_issue_numbers_are_bad() {
        assert!(line_problem("<<<<<<< HEAD").is_some());
        assert!(line_problem("// see issue #12").is_some());
        assert!(line_problem("Issue 7 asks for it").is_some());
        assert_eq!(line_problem("// issue a read of 4 KiB"), None);
    }

    #[test]
    fn the_environment_is_read_by_the_command_line_only() {
        let text = "let x = std::env::var(\"X\");\n";
        let found = |path: &str| {
            let files = [File::new(path, text)];
            check(&files, &super::super::sources(&files)).len()
        };
        assert_eq!(found("crates/engine/src/step.rs"), 1);
        assert_eq!(found("crates/cli/src/main.rs"), 0);
        assert_eq!(found("crates/model/tests/golden.rs"), 0);
    }
}
