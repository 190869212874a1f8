//! Which crate may use which: one direction, nothing calls up.

use super::Problem;
use crate::tree::File;

/// Each crate and the crates of the workspace it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("memory", &["kernels"]),
    ("model", &["kernels", "memory"]),
    ("engine", &["kernels", "memory", "model"]),
    ("server", &["engine", "memory", "model"]),
    ("sim", &["engine", "memory", "model"]),
    ("tune", &["model", "memory", "kernels"]),
    (
        "cli",
        &[
            "server", "sim", "tune", "engine", "model", "memory", "kernels",
        ],
    ),
];

pub fn check(files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        let Some(name) = file
            .path
            .strip_prefix("crates/")
            .and_then(|rest| rest.strip_suffix("/Cargo.toml"))
        else {
            continue;
        };
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            problems.push(Problem::new(
                &file.path,
                0,
                format!("crate `{name}` has no row in xtask/src/tidy/edges.rs"),
            ));
            continue;
        };
        for (line, used) in uses(file.text().unwrap_or_default()) {
            if !allowed.contains(&used) {
                let message = format!("`{name}` must not use `{used}`; it may use {allowed:?}");
                problems.push(Problem::new(&file.path, line, message));
            }
        }
    }
    problems
}

/// The crates of the workspace that a manifest depends on, with their lines. Dependencies of tests count too:
/// a test that needs a crate above belongs to that crate.
fn uses(manifest: &str) -> Vec<(usize, &str)> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for (number, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            in_dependencies = section.ends_with("dependencies");
            let dotted = section.split_once("dependencies.").map(|(_, name)| name);
            found.extend(
                dotted
                    .and_then(|name| name.strip_prefix("neap-"))
                    .map(|name| (number + 1, name)),
            );
        } else if in_dependencies && let Some(rest) = line.strip_prefix("neap-") {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '-'))
                .unwrap_or(rest.len());
            found.push((number + 1, &rest[..end]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn using_a_crate_below_is_good() {
        let file = File::new(
            "crates/model/Cargo.toml",
            "[dependencies]\nneap-kernels = { workspace = true }\n",
        );
        assert_eq!(check(&[file]), []);
    }

    #[test]
    fn using_a_crate_above_is_bad() {
        for manifest in [
            "[dependencies]\nneap-engine = { workspace = true }\n",
            "[dev-dependencies]\nneap-engine.workspace = true\n",
            "[dependencies.neap-engine]\nworkspace = true\n",
            "[target.'cfg(unix)'.dependencies]\nneap-engine = { path = \"../engine\" }\n",
        ] {
            let problems = check(&[File::new("crates/memory/Cargo.toml", manifest)]);
            assert_eq!(problems.len(), 1, "{manifest}");
            assert!(problems[0].message.contains("must not use `engine`"));
        }
    }

    #[test]
    fn other_sections_are_not_dependencies() {
        let file = File::new("crates/memory/Cargo.toml", "[features]\nneap-engine = []\n");
        assert_eq!(check(&[file]), []);
    }

    #[test]
    fn an_unknown_crate_is_bad() {
        assert_eq!(check(&[File::new("crates/extra/Cargo.toml", "")]).len(), 1);
    }
}
