//! SentencePiece's Unigram model: of all ways to cut a text into pieces, the one with the best sum of scores
//! (Kudo, 2018, <https://arxiv.org/abs/1804.10959>).

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::charsmap::Charsmap;
use super::error::{TokenizerError, invalid};
use super::spm::{ESCAPED_SPACE, surfaces};
use super::vocabulary::{TokenType, Vocabulary, VocabularyData};

/// How much worse than the worst piece an unknown character is.
const UNKNOWN_PENALTY: f64 = 10.0;
/// All pieces together; the automaton takes some tens of bytes for each of theirs.
const MAX_PIECE_BYTES: usize = 64 << 20;

/// A Unigram model; the vocabulary is held by the tokenizer.
pub(crate) struct Unigram {
    /// Finds all pieces that end at a place.
    pieces: AhoCorasick,
    /// Id and score of each of them.
    scored: Vec<(u32, f64)>,
    unknown_score: f64,
    unk: u32,
    charsmap: Option<Charsmap>,
    remove_extra_whitespaces: bool,
}

/// The best way to cut the text up to some place.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    /// Where the last piece starts.
    start: u32,
    token: u32,
}

const UNREACHED: Best = Best {
    score: f64::NEG_INFINITY,
    start: 0,
    token: 0,
};

impl Unigram {
    /// Checks the vocabulary and takes it apart.
    pub fn new(
        data: &VocabularyData,
        types: Vec<TokenType>,
    ) -> Result<(Self, Vocabulary), TokenizerError> {
        let scores = data.checked_scores()?;
        let unk = data.unk.ok_or_else(|| TokenizerError::Missing {
            field: "tokenizer.ggml.unknown_token_id".into(),
        })?;
        let vocabulary = Vocabulary::new(surfaces(&data.tokens, &types)?, types, |_, kind| {
            kind.is_piece()
        });
        let mut patterns = Vec::new();
        let mut scored = Vec::new();
        let mut total_bytes = 0;
        let mut worst = f64::INFINITY;
        for (id, kind) in (0u32..).zip(vocabulary.types()) {
            let score = f64::from(scores[id as usize]);
            if *kind == TokenType::Normal && score.is_finite() {
                worst = worst.min(score);
            }
            let piece = vocabulary.surface(id).unwrap_or_default();
            // Pieces with equal surfaces: the vocabulary's index has the first.
            if kind.is_piece() && vocabulary.piece(piece) == Some(id) {
                total_bytes += piece.len();
                patterns.push(piece);
                scored.push((id, score));
            }
        }
        if total_bytes > MAX_PIECE_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "bytes of all pieces together",
                found: total_bytes,
                limit: MAX_PIECE_BYTES,
            });
        }
        let pieces = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns)
            .map_err(|error| invalid("tokenizer.ggml.tokens", error.to_string()))?;
        let charsmap = match data.precompiled_charsmap.is_empty() {
            true => None,
            false => Some(Charsmap::parse(&data.precompiled_charsmap)?),
        };
        let unigram = Self {
            pieces,
            scored,
            unknown_score: if worst.is_finite() { worst } else { 0.0 } - UNKNOWN_PENALTY,
            unk,
            charsmap,
            remove_extra_whitespaces: data.remove_extra_whitespaces,
        };
        Ok((unigram, vocabulary))
    }

    /// Appends the tokens of `text`.
    pub fn encode(
        &self,
        text: &str,
        space_prefix: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = self.normalize(text, space_prefix)?;
        if text.len() >= u32::MAX as usize {
            return Err(TokenizerError::TooLarge {
                what: "bytes of text",
                found: text.len(),
                limit: u32::MAX as usize - 1,
            });
        }
        let best = self.best_cuts(&text);
        let first = out.len();
        let mut end = text.len();
        while end > 0 {
            let Best { start, token, .. } = best[end];
            // A run of unknown characters is one unknown token.
            if token != self.unk || out.len() == first || out.last() != Some(&token) {
                out.push(token);
            }
            end = start as usize;
        }
        out[first..].reverse();
        Ok(())
    }

    /// The best way to cut the text up to each place where a character ends.
    fn best_cuts(&self, text: &str) -> Vec<Best> {
        let mut best = vec![UNREACHED; text.len() + 1];
        best[0].score = 0.0;
        // Pieces come ordered by their ends; those with the same end from the longest to the shortest.
        let mut found = self.pieces.find_overlapping_iter(text).peekable();
        for (start, char) in text.char_indices() {
            let end = start + char.len_utf8();
            let mut whole_char = false;
            while let Some(piece) = found.next_if(|piece| piece.end() <= end) {
                let (token, score) = self.scored[piece.pattern().as_usize()];
                let from = best[piece.start()].score;
                whole_char |= piece.start() == start && piece.end() == end;
                offer(&mut best[piece.end()], from + score, piece.start(), token);
            }
            if !whole_char {
                let score = best[start].score + self.unknown_score;
                offer(&mut best[end], score, start, self.unk);
            }
        }
        best
    }

    /// The text as SentencePiece normalizes it, with plain spaces for U+2581.
    fn normalize(&self, text: &str, space_prefix: bool) -> Result<String, TokenizerError> {
        let mapped = match &self.charsmap {
            Some(charsmap) => charsmap.normalize(text)?,
            None => text.to_owned(),
        };
        let mut out = String::with_capacity(mapped.len() + 1);
        if !self.remove_extra_whitespaces {
            if space_prefix && !mapped.is_empty() {
                out.push(' ');
            }
            out.push_str(&mapped.replace(ESCAPED_SPACE, " "));
            return Ok(out);
        }
        for (index, word) in mapped
            .split(' ')
            .filter(|word| !word.is_empty())
            .enumerate()
        {
            if index > 0 || space_prefix {
                out.push(' ');
            }
            out.push_str(&word.replace(ESCAPED_SPACE, " "));
        }
        // At the end, and only there, SentencePiece takes off written U+2581 too.
        out.truncate(out.trim_end_matches(' ').len());
        Ok(out)
    }
}

fn offer(best: &mut Best, score: f64, start: usize, token: u32) {
    if score > best.score || (best.score == f64::NEG_INFINITY && best.start == 0 && best.token == 0)
    {
        *best = Best {
            score,
            start: start as u32,
            token,
        };
    }
}
