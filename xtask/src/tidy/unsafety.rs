//! Where `unsafe` may stand, and that it says why it is sound.

use std::collections::BTreeSet;

use super::{Problem, Source};
use crate::scan::words;

/// The only places for `unsafe`: a folder ends in `/`, anything else is a file.
const ALLOWED: &[&str] = &[
    // SIMD and the thread pool.
    "crates/kernels/src/",
    "crates/kernels/tests/",
    "crates/kernels/benches/",
    // Memory from the system.
    "crates/memory/src/arena.rs",
    "crates/memory/src/arena/",
    "crates/memory/src/buffer.rs",
    "crates/memory/src/buffer/",
    "crates/memory/src/pool.rs",
    "crates/memory/src/region.rs",
    "crates/memory/src/region/",
    // Calls of the system that the standard library lacks.
    "crates/memory/src/pressure/",
    // Mapped model files.
    "crates/model/src/mmap.rs",
];

pub fn check(sources: &[Source<'_>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for source in sources {
        let path = &source.file.path;
        for line in lines_with_unsafe(source) {
            if !is_allowed(path) {
                let message = "`unsafe` here: only the modules named in xtask/src/tidy/unsafety.rs may use it";
                problems.push(Problem::new(path, line + 1, message));
            } else if needs_reason(source, line) && !has_reason(source, line) {
                problems.push(Problem::new(
                    path,
                    line + 1,
                    "`unsafe` without a `SAFETY:` comment",
                ));
            }
        }
    }
    problems.extend(missing_forbid(sources));
    problems
}

fn is_allowed(path: &str) -> bool {
    ALLOWED
        .iter()
        .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
}

fn lines_with_unsafe(source: &Source<'_>) -> Vec<usize> {
    let code = source.masked.code.iter().enumerate();
    code.filter(|(_, line)| words(line).any(|word| word == "unsafe"))
        .map(|(number, _)| number)
        .collect()
}

/// A block or an `impl` needs a reason where it stands; the contract of an `unsafe fn` is documentation, which
/// clippy checks.
fn needs_reason(source: &Source<'_>, line: usize) -> bool {
    let code = &source.masked.code[line];
    code.match_indices("unsafe").any(|(at, word)| {
        let after = code[at + word.len()..].trim_start();
        let next_line = source
            .masked
            .code
            .get(line + 1)
            .map_or("", |next| next.trim_start());
        let after = if after.is_empty() { next_line } else { after };
        after.starts_with('{') || after.starts_with("impl")
    })
}

/// A `SAFETY:` on the line, or in the comments above the statement that the line belongs to.
fn has_reason(source: &Source<'_>, line: usize) -> bool {
    const LONGEST_STATEMENT: usize = 12;
    let masked = &source.masked;
    if masked.comments[line].contains("SAFETY:") {
        return true;
    }
    let mut statement_lines = 0;
    for above in (0..line).rev() {
        if masked.comments[above].contains("SAFETY:") {
            return true;
        }
        let code = masked.code[above].trim();
        let is_comment = code.is_empty() && !masked.comments[above].trim().is_empty();
        let is_attribute = code.starts_with("#[");
        if is_comment || is_attribute {
            continue;
        }
        let ends_statement = code.is_empty() || code.ends_with([';', '{', '}', ',']);
        statement_lines += 1;
        if ends_statement || statement_lines > LONGEST_STATEMENT {
            return false;
        }
    }
    false
}

/// A crate without any allowed place says `#![forbid(unsafe_code)]` in its root.
fn missing_forbid(sources: &[Source<'_>]) -> Vec<Problem> {
    let exempt: BTreeSet<&str> = ALLOWED
        .iter()
        .filter_map(|place| place.split_once("/src/").map(|(crate_dir, _)| crate_dir))
        .collect();
    let mut problems = Vec::new();
    for source in sources {
        let path = &source.file.path;
        let Some(dir) = source.file.crate_dir() else {
            continue;
        };
        let is_root = [format!("{dir}/src/lib.rs"), format!("{dir}/src/main.rs")].contains(path);
        let forbids = source
            .masked
            .code
            .iter()
            .any(|line| line.contains("#![forbid(unsafe_code)]"));
        if is_root && !exempt.contains(dir) && !forbids {
            problems.push(Problem::new(
                path,
                1,
                "the crate needs no `unsafe`: say `#![forbid(unsafe_code)]`",
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::File;

    fn problems(path: &str, text: &str) -> Vec<Problem> {
        let files = [File::new(path, text)];
        check(&super::super::sources(&files))
    }

    const KERNEL: &str = "crates/kernels/src/matmul.rs";

    #[test]
    fn a_reason_above_or_beside_is_good() {
        for good in [
            "// SAFETY: in bounds.\nlet x = unsafe { p.read() };\n",
            "let x = unsafe { p.read() }; // SAFETY: in bounds.\n",
            "// SAFETY: the caller checked\n// both lengths.\nlet x =\n    unsafe { p.read() };\n",
            "// SAFETY: no interior pointers.\n#[cfg(unix)]\nunsafe impl Send for P {}\n",
            "#[target_feature(enable = \"avx2\")]\nunsafe fn f() {}\n",
            "type F = unsafe fn(*const u8);\n",
        ] {
            assert_eq!(problems(KERNEL, good), [], "{good}");
        }
    }

    #[test]
    fn no_reason_is_bad() {
        for bad in [
            "let x = unsafe { p.read() };\n",
            "// SAFETY: of another statement.\nlet y = 1;\nlet x = unsafe { p.read() };\n",
            "unsafe impl Send for P {}\n",
            "let x = unsafe\n{ p.read() };\n",
        ] {
            assert_eq!(problems(KERNEL, bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn unsafe_elsewhere_is_bad_even_with_a_reason() {
        let text = "// SAFETY: fine.\nunsafe { p.read() };\n";
        assert_eq!(problems("crates/engine/src/step.rs", text).len(), 1);
        assert_eq!(problems("crates/model/src/mmap.rs", text), []);
        assert_eq!(problems("crates/model/src/mmapped.rs", text).len(), 1);
    }

    #[test]
    fn the_word_in_a_comment_or_string_is_nothing() {
        assert_eq!(
            problems(
                "crates/engine/src/step.rs",
                "// unsafe\nlet s = \"unsafe\";\n"
            ),
            []
        );
    }

    #[test]
    fn a_safe_crate_forbids_unsafe() {
        assert_eq!(
            problems("crates/engine/src/lib.rs", "//! Engine.\n").len(),
            1
        );
        assert_eq!(
            problems("crates/engine/src/lib.rs", "#![forbid(unsafe_code)]\n"),
            []
        );
        assert_eq!(problems("crates/kernels/src/lib.rs", "//! Kernels.\n"), []);
    }
}
