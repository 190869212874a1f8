//! Binary files stay small: the repository is cloned by everyone.

use super::Problem;
use crate::tree::File;

const LARGEST_BYTES: usize = 200 * 1024;
/// All binaries together, without the exceptions.
const SUM_BYTES: usize = 4608 * 1024;
/// Files that may be larger, with their own limits.
const EXCEPTIONS: &[(&str, usize)] = &[("models/neap-tiny.gguf", 8 * 1024 * 1024)];

pub fn check(files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut sum = 0;
    for file in files.iter().filter(|file| file.text().is_none()) {
        let exception = EXCEPTIONS.iter().find(|(path, _)| *path == file.path);
        let most = exception.map_or(LARGEST_BYTES, |(_, bytes)| *bytes);
        let bytes = file.bytes.len();
        if exception.is_none() {
            sum += bytes;
        }
        if bytes > most {
            problems.push(Problem::new(
                &file.path,
                0,
                format!("a binary of {bytes} bytes, at most {most}"),
            ));
        }
    }
    if sum > SUM_BYTES {
        problems.push(Problem::new(
            ".",
            0,
            format!("binaries of {sum} bytes together, at most {SUM_BYTES}"),
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros(path: &str, bytes: usize) -> File {
        File {
            path: path.to_owned(),
            bytes: vec![0; bytes],
        }
    }

    #[test]
    fn small_binaries_and_large_texts_are_good() {
        let text = File::new("data.txt", &"x".repeat(LARGEST_BYTES + 1));
        assert_eq!(check(&[zeros("a.bin", LARGEST_BYTES), text]), []);
    }

    #[test]
    fn large_binaries_are_bad() {
        assert_eq!(check(&[zeros("a.bin", LARGEST_BYTES + 1)]).len(), 1);
        let many: Vec<File> = (0..24)
            .map(|n| zeros(&format!("{n}.bin"), LARGEST_BYTES))
            .collect();
        assert_eq!(check(&many).len(), 1);
    }

    #[test]
    fn the_shipped_model_has_its_own_limit() {
        assert_eq!(check(&[zeros("models/neap-tiny.gguf", 5 << 20)]), []);
        assert_eq!(check(&[zeros("models/neap-tiny.gguf", 9 << 20)]).len(), 1);
    }
}
