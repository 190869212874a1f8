//! Splits a text into the words within which byte-pair encoding merges.
//!
//! Each published vocabulary was made with one or several regular expressions; a text split otherwise gives other
//! tokens. They are written here as published, and matched by the `regex` crate, which takes time linear in the text
//! whatever the text is. The one construct that it lacks, the `(?!\S)` of `\s+(?!\S)|\s+`, is done by hand: the last
//! white space character of a run is left for the word that follows.

use regex::{Regex, RegexBuilder};

use super::error::{TokenizerError, invalid};

/// What the name of a splitter says about a vocabulary, besides how to split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family {
    /// The regular expressions, applied one after the other to the pieces that the one before has made.
    patterns: &'static [&'static str],
    /// A word that is a token is that token, even if no sequence of merges leads to it.
    pub ignore_merges: bool,
    /// Whether BOS goes before a text where the file does not say.
    pub add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const DEEPSEEK3_MAIN: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Letters with case, as Unicode had them when the vocabulary was made.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\
    \u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\
    \u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\
    \u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\
    \u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\
    \u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\
    \u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\
    \u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\
    \u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\
    \u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\
    \u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\
    \u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\
    \u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\
    \u{1E900}-\u{1E943}\
    ]+";
const DEEPSEEK_CJK: &str = "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// Names that splitters have in GGUF files (`tokenizer.ggml.pre`), and what they stand for.
const FAMILIES: &[(&[&str], Family)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
        ],
        family(&[GPT2]),
    ),
    (
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        family(&[LLAMA3]).ignoring_merges().adding_bos(),
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], family(&[LLAMA3])),
    (&["glm4", "glm5"], family(&[LLAMA3]).ignoring_merges()),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        family(&[QWEN2]),
    ),
    (&["qwen35"], family(&[QWEN35])),
    (
        &["minicpm5"],
        family(&[r"\p{N}{1,3}", MINICPM5]).ignoring_merges(),
    ),
    (
        &["tekken"],
        family(&[TEKKEN]).ignoring_merges().adding_bos(),
    ),
    (
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        family(&[GPT4O]),
    ),
    (
        &["granite-embed-multi-97m"],
        family(&[GPT4O]).ignoring_merges(),
    ),
    (
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        family(&[r"\p{N}", GPT2]),
    ),
    (
        &["deepseek-llm"],
        family(&[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}+",
        ]),
    ),
    (
        &["deepseek-coder"],
        family(&[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            DEEPSEEK_CJK,
            r"\p{N}",
        ]),
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        family(&[
            r"\p{N}{1,3}",
            "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
            DEEPSEEK3_MAIN,
        ]),
    ),
    (
        &["falcon"],
        family(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    ),
    (
        &["default"],
        family(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    ),
    (&["bloom", "poro-chat", "gpt3-finnish"], family(&[BLOOM])),
    (&["viking"], family(&[BLOOM, r"\p{N}"])),
    (
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        family(&[BAILING]),
    ),
    (&["seed-coder"], family(&[SEED])),
    (&["exaone-moe"], family(&[EXAONE_MOE])),
    // Not byte-level: runs of new lines are apart, everything else is merged across words.
    (
        &["gemma4", "granite-embed-multi-311m", "sarvam-moe"],
        family(&[r"[^\n]+|[\n]+"]),
    ),
];

const fn family(patterns: &'static [&'static str]) -> Family {
    Family {
        patterns,
        ignore_merges: false,
        add_bos: false,
    }
}

impl Family {
    const fn ignoring_merges(mut self) -> Self {
        self.ignore_merges = true;
        self
    }

    const fn adding_bos(mut self) -> Self {
        self.add_bos = true;
        self
    }

    /// What `name` stands for.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownPreTokenizer`] with the names that are known.
    pub fn by_name(name: &str) -> Result<Self, TokenizerError> {
        let found = FAMILIES.iter().find(|(names, _)| names.contains(&name));
        found
            .map(|(_, family)| *family)
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer {
                name: name.into(),
                known: known_names().collect::<Vec<_>>().join(", "),
            })
    }
}

/// A name that GGUF files have for the splitter with these expressions, if there is one.
pub(crate) fn splitter_name(patterns: &[String], ignore_merges: bool) -> Option<&'static str> {
    let found = FAMILIES.iter().find(|(_, family)| {
        family.ignore_merges == ignore_merges && family.patterns.iter().eq(patterns.iter())
    });
    // Whole words are tokens anyway where the vocabulary was trained by these merges.
    let found = found.or_else(|| {
        let same = |(_, family): &&(_, Family)| family.patterns.iter().eq(patterns.iter());
        FAMILIES.iter().find(same).filter(|_| !ignore_merges)
    });
    found.and_then(|(names, _)| names.first().copied())
}

/// Names of the splitters that are known.
pub(crate) fn known_names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|(names, _)| names.iter().copied())
}

/// A compiled splitter.
pub(crate) struct PreTokenizer {
    stages: Vec<Stage>,
}

struct Stage {
    regex: Regex,
    /// The pattern ended with `\s+(?!\S)|\s+`.
    leaves_last_space: bool,
    /// Runs of white space with line breaks are the matter of another alternative, up to the last break.
    keeps_line_breaks: bool,
}

impl PreTokenizer {
    pub fn new(family: &Family) -> Result<Self, TokenizerError> {
        let stages = family.patterns.iter().map(|pattern| Stage::new(pattern));
        Ok(Self {
            stages: stages.collect::<Result<_, _>>()?,
        })
    }

    /// Calls `visit` with each word of `text` in order; joined they are `text`.
    pub fn split<'a, E>(
        &self,
        text: &'a str,
        visit: &mut impl FnMut(&'a str) -> Result<(), E>,
    ) -> Result<(), E> {
        // Closures cannot recurse over the stages with a generic visitor of their own: the first stages collect.
        let Some((last, first)) = self.stages.split_last() else {
            return visit(text);
        };
        let mut pieces = vec![text];
        for stage in first {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                stage.split(piece, &mut |word| {
                    finer.push(word);
                    Ok::<(), E>(())
                })?;
            }
            pieces = finer;
        }
        for piece in pieces {
            last.split(piece, visit)?;
        }
        Ok(())
    }
}

impl Stage {
    fn new(pattern: &str) -> Result<Self, TokenizerError> {
        let tail = r"\s+(?!\S)|\s+";
        let (pattern, leaves_last_space) = match pattern.strip_suffix(tail) {
            Some(head) => (format!(r"{head}\s+"), true),
            None => (pattern.to_owned(), false),
        };
        let regex = RegexBuilder::new(&pattern)
            .build()
            .map_err(|error| invalid("tokenizer.ggml.pre", error.to_string()))?;
        Ok(Self {
            regex,
            leaves_last_space,
            keeps_line_breaks: pattern.contains(r"\s*[\r\n]"),
        })
    }

    /// Matches become words, and so does what lies between them.
    fn split<'a, E>(
        &self,
        text: &'a str,
        visit: &mut impl FnMut(&'a str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        while let Some(found) = self.regex.find_at(text, start) {
            if found.start() > start {
                visit(&text[start..found.start()])?;
            }
            let end = match self.leaves_last_space {
                true => self.end_of_spaces(text, found.start(), found.end()),
                false => found.end(),
            };
            visit(&text[found.start()..end])?;
            start = end;
        }
        match start < text.len() {
            true => visit(&text[start..]),
            false => Ok(()),
        }
    }

    /// Where `\s+(?!\S)|\s+` ends, given the match of `\s+` in its place: before a word the last white space is
    /// left to it, unless it is the only one.
    ///
    /// Matches of the other alternatives are told apart by what they hold: something that is not white space, or,
    /// where line breaks have an alternative, a line break at the end, as a run that came here never has.
    fn end_of_spaces(&self, text: &str, start: usize, end: usize) -> usize {
        let run = &text[start..end];
        let Some(last) = run.chars().next_back() else {
            return end;
        };
        let before_last = end - last.len_utf8();
        let is_other = (self.keeps_line_breaks && matches!(last, '\r' | '\n'))
            || !run.chars().all(char::is_whitespace);
        match end == text.len() || before_last == start || is_other {
            true => end,
            false => before_last,
        }
    }
}

#[cfg(test)]
mod tests;
