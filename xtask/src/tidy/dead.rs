//! Rust files that no `mod` declaration reaches: they are not compiled, so nothing checks them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Problem, Source};
use crate::scan::{Masked, words};
use crate::tree::File;

pub fn check(files: &[File], sources: &[Source<'_>]) -> Vec<Problem> {
    let by_path: BTreeMap<&str, &Source<'_>> = sources
        .iter()
        .map(|source| (source.file.path.as_str(), source))
        .collect();
    let mut reached = BTreeSet::new();
    let mut todo = roots(files, &by_path);
    while let Some((path, is_root)) = todo.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        if let Some(source) = by_path.get(path.as_str()) {
            let children = children(&path, is_root, &source.masked);
            todo.extend(
                children
                    .into_iter()
                    .filter(|(child, _)| by_path.contains_key(child.as_str())),
            );
        }
    }
    let dead = sources
        .iter()
        .filter(|source| source.file.crate_dir().is_some() && !reached.contains(&source.file.path));
    dead.map(|source| {
        Problem::new(
            &source.file.path,
            0,
            "no `mod` declaration reaches this file",
        )
    })
    .collect()
}

/// The files that Cargo compiles of itself. A root's submodules lie beside it.
fn roots(files: &[File], sources: &BTreeMap<&str, &Source<'_>>) -> Vec<(String, bool)> {
    let mut roots = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.path.ends_with("Cargo.toml"))
    {
        let dir = file.path.trim_end_matches("Cargo.toml");
        let declared = file
            .text()
            .unwrap_or_default()
            .lines()
            .filter_map(|line| quoted(line, "path"));
        roots.extend(
            declared
                .filter(|path| path.ends_with(".rs"))
                .map(|path| (format!("{dir}{path}"), true)),
        );
        for source in sources.keys() {
            let Some(inside) = source.strip_prefix(dir) else {
                continue;
            };
            let parts: Vec<&str> = inside.split('/').collect();
            let is_root = matches!(
                parts.as_slice(),
                ["build.rs"]
                    | ["src", "lib.rs" | "main.rs"]
                    | ["src", "bin", _]
                    | ["tests" | "benches" | "examples", _]
            ) || matches!(
                parts.as_slice(),
                ["src", "bin", _, "main.rs"] | ["tests" | "benches" | "examples", _, "main.rs"]
            );
            if is_root {
                roots.push(((*source).to_owned(), true));
            }
        }
    }
    roots
}

/// The value of `key = "value"` on a line.
fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let after = line
        .trim()
        .strip_prefix(key)?
        .trim_start()
        .strip_prefix('=')?
        .trim_start()
        .strip_prefix('"')?;
    after.split('"').next()
}

/// The files that a file's `mod name;` and `include!` may mean, and whether their submodules lie beside them.
fn children(path: &str, is_root: bool, masked: &Masked) -> Vec<(String, bool)> {
    let (dir, name) = path
        .rsplit_once('/')
        .map_or(("", path), |(dir, name)| (dir, name));
    let base = if is_root || name == "mod.rs" {
        dir.to_owned()
    } else {
        format!("{dir}/{}", name.trim_end_matches(".rs"))
    };
    let mut children = Vec::new();
    // Inline modules that are open, with the brace depth outside them.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut braces = 0_usize;
    let mut attribute = None;
    for (line, raw) in masked.code.iter().zip(&masked.raw) {
        if let Some(rest) = raw.trim().strip_prefix("#[") {
            attribute = quoted(rest, "path").or(attribute);
        }
        if line.contains("include!(") {
            let target = raw
                .split("include!(\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            children.extend(target.map(|target| (join(dir, target), true)));
        }
        if let Some(module) = declared_module(line) {
            if line.trim_end().ends_with(';') {
                let inside: String = inline
                    .iter()
                    .map(|(module, _)| format!("/{module}"))
                    .collect();
                match attribute.take() {
                    Some(target) => children.push((join(dir, target), true)),
                    None => {
                        children.push((format!("{base}{inside}/{module}.rs"), false));
                        children.push((format!("{base}{inside}/{module}/mod.rs"), false));
                    }
                }
            } else if line.contains('{') {
                inline.push((module.to_owned(), braces));
            }
        }
        for c in line.chars() {
            match c {
                '{' => braces += 1,
                '}' => {
                    braces = braces.saturating_sub(1);
                    if inline.last().is_some_and(|(_, outside)| *outside == braces) {
                        inline.pop();
                    }
                }
                _ => {}
            }
        }
    }
    children
}

/// The name after `mod` on a line such as `pub(crate) mod name;`.
fn declared_module(line: &str) -> Option<&str> {
    let mut words = words(line).skip_while(|word| *word != "mod");
    words.next()?;
    let before = line.split("mod").next().unwrap_or_default().trim();
    let is_item = before.is_empty() || before.starts_with("pub") || before.ends_with(']');
    is_item.then(|| words.next()).flatten()
}

/// A path relative to a folder, with `..` resolved.
fn join(dir: &str, target: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            ".." => {
                parts.pop();
            }
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(tree: &[(&str, &str)]) -> Vec<String> {
        let mut files = vec![File::new(
            "crates/a/Cargo.toml",
            "[package]\n[[bin]]\npath = \"app/go.rs\"\n",
        )];
        files.extend(tree.iter().map(|(path, text)| File::new(path, text)));
        let problems = check(&files, &super::super::sources(&files));
        problems.into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn declared_files_are_alive() {
        let found = dead(&[
            (
                "crates/a/src/lib.rs",
                "mod one;\npub(crate) mod two;\n#[cfg(test)] mod three;\nmod in_line {\n mod four;\n}\n",
            ),
            ("crates/a/src/one.rs", "mod deep;\n"),
            (
                "crates/a/src/one/deep.rs",
                "#[path = \"../odd.rs\"]\nmod odd;\n",
            ),
            ("crates/a/src/odd.rs", ""),
            ("crates/a/src/two/mod.rs", "mod beside;\n"),
            ("crates/a/src/two/beside.rs", ""),
            ("crates/a/src/three.rs", "include!(\"table.rs\");\n"),
            ("crates/a/src/table.rs", ""),
            ("crates/a/src/in_line/four.rs", ""),
            ("crates/a/tests/whole.rs", "mod common;\n"),
            ("crates/a/tests/common/mod.rs", ""),
            ("crates/a/app/go.rs", ""),
            ("scripts/loose.rs", ""),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn forgotten_files_are_dead() {
        let found = dead(&[
            (
                "crates/a/src/lib.rs",
                "// mod one;\nlet s = \"\nmod one;\n\";\n",
            ),
            ("crates/a/src/one.rs", "mod two;\n"),
            ("crates/a/src/one/two.rs", ""),
            ("crates/a/tests/common/mod.rs", ""),
        ]);
        assert_eq!(found.len(), 3);
    }
}
