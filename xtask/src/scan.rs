//! A light scanner for Rust source: what is code, what is a comment, where functions begin and end.

/// A source text with its comments and literals blanked out. Lines keep their numbers and columns.
#[derive(Debug)]
pub struct Masked {
    /// The lines of code, with spaces in place of comments and of the insides of literals.
    pub code: Vec<String>,
    /// The comment text on each line.
    pub comments: Vec<String>,
    /// The whole lines as they are.
    pub raw: Vec<String>,
}

/// A function: its name and the half-open range of its lines, counted from 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub first: usize,
    pub end: usize,
}

impl Function {
    pub fn lines(&self) -> usize {
        self.end - self.first
    }
}

/// Where the scanner is in the text.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    /// Nested this deep.
    BlockComment(usize),
    Text,
    /// Ended by a quote and this many hashes.
    RawText(usize),
}

/// Splits a source text into code and comments.
pub fn mask(source: &str) -> Masked {
    let chars: Vec<char> = source.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let (next, taken) = step(&chars, at, state);
        for &c in &chars[at..at + taken] {
            emit(c, state, next, &mut code, &mut comments);
        }
        at += taken;
        state = next;
    }
    let lines = |text: &str| text.split('\n').map(str::to_owned).collect();
    Masked {
        code: lines(&code),
        comments: lines(&comments),
        raw: lines(source),
    }
}

/// Adds one character to both texts, a space where it does not belong.
fn emit(c: char, from: State, to: State, code: &mut String, comments: &mut String) {
    if c == '\n' {
        code.push('\n');
        comments.push('\n');
        return;
    }
    let comment = |state| matches!(state, State::LineComment | State::BlockComment(_));
    let is_comment = comment(from) || comment(to);
    let is_code = from == State::Code && to == State::Code;
    code.push(if is_code { c } else { ' ' });
    comments.push(if is_comment { c } else { ' ' });
}

/// The state after the next token, and how many characters it takes.
fn step(chars: &[char], at: usize, state: State) -> (State, usize) {
    let c = chars[at];
    let next = chars.get(at + 1).copied().unwrap_or('\0');
    match state {
        State::Code => step_in_code(chars, at),
        State::LineComment if c == '\n' => (State::Code, 1),
        State::LineComment => (state, 1),
        State::BlockComment(depth) => match (c, next) {
            ('/', '*') => (State::BlockComment(depth + 1), 2),
            ('*', '/') if depth == 1 => (State::Code, 2),
            ('*', '/') => (State::BlockComment(depth - 1), 2),
            _ => (state, 1),
        },
        State::Text => match c {
            '\\' => (state, 2.min(chars.len() - at)),
            '"' => (State::Code, 1),
            _ => (state, 1),
        },
        State::RawText(hashes) => {
            let closes = c == '"' && hashes_at(chars, at + 1) >= hashes;
            if closes {
                (State::Code, 1 + hashes)
            } else {
                (state, 1)
            }
        }
    }
}

fn step_in_code(chars: &[char], at: usize) -> (State, usize) {
    let next = chars.get(at + 1).copied().unwrap_or('\0');
    match (chars[at], next) {
        ('/', '/') => (State::LineComment, 2),
        ('/', '*') => (State::BlockComment(1), 2),
        ('"', _) => (State::Text, 1),
        ('r', '"' | '#') if !is_word(chars, at) => {
            let hashes = hashes_at(chars, at + 1);
            if chars.get(at + 1 + hashes) == Some(&'"') {
                (State::RawText(hashes), 2 + hashes)
            } else {
                (State::Code, 1)
            }
        }
        ('\'', _) => (State::Code, character_length(chars, at)),
        _ => (State::Code, 1),
    }
}

/// Whether the character before `at` continues a word (`br"…"` is a literal, `bar"` is not).
fn is_word(chars: &[char], at: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    match at.checked_sub(1).map(|before| chars[before]) {
        Some('b' | 'c') => at.checked_sub(2).is_some_and(|before| word(chars[before])),
        Some(c) => word(c),
        None => false,
    }
}

fn hashes_at(chars: &[char], at: usize) -> usize {
    chars[at.min(chars.len())..]
        .iter()
        .take_while(|&&c| c == '#')
        .count()
}

/// The length of a character literal such as `'{'` at a quote, or 1 for a lifetime's quote.
fn character_length(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), Some(_)) => {
            let close = chars[at + 3..].iter().take(10).position(|&c| c == '\'');
            close.map_or(1, |position| position + 4)
        }
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

/// The words of a line of code.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
}

/// Removes character literals, whose braces are not blocks.
fn without_characters(line: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let length = if chars[at] == '\'' {
            character_length(&chars, at)
        } else {
            1
        };
        if length == 1 {
            out.push(chars[at]);
        }
        at += length;
    }
    out
}

/// Every function with a body, nested ones included.
pub fn functions(masked: &Masked) -> Vec<Function> {
    let mut done = Vec::new();
    // Functions whose body is open, with the brace depth outside it.
    let mut open: Vec<(Function, usize)> = Vec::new();
    // A function whose body has not begun.
    let mut waiting: Option<Function> = None;
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (number, line) in masked.code.iter().enumerate() {
        let line = without_characters(line);
        let mut rest = line.as_str();
        while let Some(c) = rest.chars().next() {
            let length = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            if length > 0 {
                if &rest[..length] == "fn" {
                    let name = words(&rest[length..]).next().unwrap_or_default().to_owned();
                    // `fn(…)` without a name is a type.
                    if rest[length..]
                        .trim_start()
                        .starts_with(|c: char| c.is_alphabetic() || c == '_')
                    {
                        waiting = Some(Function {
                            name,
                            first: number,
                            end: number,
                        });
                    }
                }
                rest = &rest[length..];
                continue;
            }
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                ';' if brackets == 0 => waiting = None,
                '{' => {
                    if let Some(function) = waiting.take() {
                        open.push((function, braces));
                    }
                    braces += 1;
                }
                '}' => {
                    braces = braces.saturating_sub(1);
                    if open.last().is_some_and(|(_, outside)| *outside == braces) {
                        let (mut function, _) = open.pop().expect("just seen");
                        function.end = number + 1;
                        done.push(function);
                    }
                }
                _ => {}
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    done
}

#[cfg(test)]
mod tests;
