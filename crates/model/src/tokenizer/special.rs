//! Finds special tokens in a text before anything else looks at it.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::error::{TokenizerError, invalid};
use super::vocabulary::{TokenType, Vocabulary};

/// All texts of special tokens together; the automaton takes some tens of bytes for each of theirs.
const MAX_SPECIAL_BYTES: usize = 16 << 20;

/// A stretch of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    /// Ordinary text, never empty, and its offset in the whole.
    Text {
        /// The stretch.
        text: &'a str,
        /// Its offset in bytes.
        offset: usize,
    },
    /// A special token.
    Token(u32),
}

/// Splits texts at special tokens: at each place the longest that starts there, from left to right.
pub(crate) struct SpecialMatcher {
    /// User-defined tokens, which are found whether or not special tokens are asked for.
    user_defined: Option<Automaton>,
    /// User-defined, control and unknown tokens.
    all: Option<Automaton>,
    strip_left: Vec<u32>,
    strip_right: Vec<u32>,
}

struct Automaton {
    matcher: AhoCorasick,
    ids: Vec<u32>,
}

impl Automaton {
    fn new(
        vocabulary: &Vocabulary,
        wanted: impl Fn(TokenType) -> bool,
    ) -> Result<Option<Self>, TokenizerError> {
        let mut ids = Vec::new();
        let mut patterns = Vec::new();
        let mut total_bytes = 0usize;
        for (id, kind) in (0u32..).zip(vocabulary.types()) {
            let text = vocabulary.surface(id).unwrap_or_default();
            // A text that is not UTF-8 cannot occur in a text that is.
            if wanted(*kind) && !text.is_empty() && std::str::from_utf8(text).is_ok() {
                total_bytes += text.len();
                ids.push(id);
                patterns.push(text);
            }
        }
        if ids.is_empty() {
            return Ok(None);
        }
        if total_bytes > MAX_SPECIAL_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "bytes of all special tokens together",
                found: total_bytes,
                limit: MAX_SPECIAL_BYTES,
            });
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns)
            .map_err(|error| invalid("special tokens", error.to_string()))?;
        Ok(Some(Self { matcher, ids }))
    }
}

impl SpecialMatcher {
    pub fn new(
        vocabulary: &Vocabulary,
        mut strip_left: Vec<u32>,
        mut strip_right: Vec<u32>,
    ) -> Result<Self, TokenizerError> {
        strip_left.sort_unstable();
        strip_right.sort_unstable();
        let is_special = |kind| {
            matches!(
                kind,
                TokenType::UserDefined | TokenType::Control | TokenType::Unknown
            )
        };
        Ok(Self {
            user_defined: Automaton::new(vocabulary, |kind| kind == TokenType::UserDefined)?,
            all: Automaton::new(vocabulary, is_special)?,
            strip_left,
            strip_right,
        })
    }

    /// The special token whose text is exactly `text`.
    pub fn find(&self, text: &str) -> Option<u32> {
        let automaton = self.all.as_ref()?;
        let found = automaton.matcher.find(text)?;
        (found.range() == (0..text.len())).then(|| automaton.ids[found.pattern().as_usize()])
    }

    /// Calls `visit` for each fragment in order, until one fails.
    pub fn split<'a>(
        &self,
        text: &'a str,
        parse_special: bool,
        mut visit: impl FnMut(Fragment<'a>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let automaton = match parse_special {
            true => &self.all,
            false => &self.user_defined,
        };
        let mut start = 0;
        if let Some(automaton) = automaton {
            for found in automaton.matcher.find_iter(text) {
                let id = automaton.ids[found.pattern().as_usize()];
                let before = text.get(start..found.start()).unwrap_or_default();
                let before = match self.strip_left.binary_search(&id) {
                    Ok(_) => before.trim_ascii_end(),
                    Err(_) => before,
                };
                visit_text(before, start, &mut visit)?;
                visit(Fragment::Token(id))?;
                start = found.end();
                if self.strip_right.binary_search(&id).is_ok() {
                    let rest = &text[start..];
                    start += rest.len() - rest.trim_ascii_start().len();
                }
            }
        }
        visit_text(text.get(start..).unwrap_or_default(), start, &mut visit)
    }
}

fn visit_text<'a>(
    text: &'a str,
    offset: usize,
    visit: &mut impl FnMut(Fragment<'a>) -> Result<(), TokenizerError>,
) -> Result<(), TokenizerError> {
    match text.is_empty() {
        true => Ok(()),
        false => visit(Fragment::Text { text, offset }),
    }
}
