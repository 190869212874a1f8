//! CoNLL files: a token a line, what is said of it in the last column, and an empty line after each sentence.

use crate::TextError;

/// The tokens of a sentence, which stand on lines that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// The line of the first token, from 1.
    pub line: usize,
    /// The tokens: the first column.
    pub tokens: Vec<String>,
    /// A tag for each token: the last column.
    pub tags: Vec<String>,
}

/// The sentences of a file. Lines that begin with `-DOCSTART-` end one and belong to none.
///
/// # Errors
/// With the line of a token that has no tag.
pub fn sentences(text: &str) -> Result<Vec<Sentence>, TextError> {
    let mut sentences = Vec::new();
    let mut open: Option<Sentence> = None;
    for (line, text) in (1..).zip(text.lines()) {
        let mut columns = text.split_whitespace();
        match (columns.next(), columns.next_back()) {
            (None | Some("-DOCSTART-"), _) => sentences.extend(open.take()),
            (Some(token), Some(tag)) => {
                let sentence = open.get_or_insert_with(|| Sentence {
                    line,
                    tokens: Vec::new(),
                    tags: Vec::new(),
                });
                sentence.tokens.push(token.to_owned());
                sentence.tags.push(tag.to_owned());
            }
            (Some(token), None) => {
                let reason = format!("the token {token:?} has no tag");
                return Err(TextError { line, reason });
            }
        }
    }
    sentences.extend(open);
    Ok(sentences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_have_the_line_of_their_first_token() {
        let text =
            "-DOCSTART- -X- O\n\nJane NNP B-PER\nDoe\tB-X I-PER\n\n\nran O\n-DOCSTART- O\nno X";
        let sentences = sentences(text).expect("three sentences");
        let lines: Vec<usize> = sentences.iter().map(|sentence| sentence.line).collect();
        assert_eq!(lines, [3, 7, 9]);
        assert_eq!(sentences[0].tokens, ["Jane", "Doe"]);
        assert_eq!(sentences[0].tags, ["B-PER", "I-PER"]);
        let error = super::sentences("a O\n\nb\n").expect_err("no tag");
        assert_eq!(error.line, 3, "{error}");
        assert_eq!(super::sentences("\n\n").expect("none"), []);
    }
}
