//! Tool calls in a model's text: found as the text comes, in whatever pieces.
//!
//! The grammar of [`tools`](super::tools) fixes how a call is written, so this is an exact reader: it never has to
//! guess, and what is no call is text.

use super::tools::Style;

/// Something that became certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text of the answer.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the latest call, as JSON.
    Arguments(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before anything, where a call must begin.
    Start,
    Text,
    /// After what introduces calls, before the name.
    BeforeName,
    Name,
    BeforeArguments,
    Arguments(Nesting),
    AfterArguments,
}

/// Where in a JSON value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Nesting {
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Whether the value ends with `c`.
    fn ends_with(&mut self, c: char) -> bool {
        if self.in_string {
            let was_escaped = std::mem::take(&mut self.is_escaped);
            match c {
                '\\' if !was_escaped => self.is_escaped = true,
                '"' if !was_escaped => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0 && matches!(c, '}' | ']')
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct CallReader {
    style: Style,
    state: State,
    held: String,
}

const NAME_BEGINS: &str = "{\"name\": \"";

impl CallReader {
    /// For calls as `style` writes them.
    pub fn new(style: Style) -> Self {
        let state = match style {
            Style::Hermes => State::Text,
            Style::Llama | Style::Generic => State::Start,
        };
        Self {
            style,
            state,
            held: String::new(),
        }
    }

    /// Takes more text in; gives what became certain.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.advance(&mut pieces) {}
        pieces
    }

    /// The text that was held back, when nothing more comes.
    pub fn finish(&mut self) -> Option<Piece> {
        let held = std::mem::take(&mut self.held);
        let is_text = matches!(self.state, State::Start | State::Text) && !held.is_empty();
        is_text.then_some(Piece::Text(held))
    }

    /// One step; false where more text is needed.
    fn advance(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Text => self.text(pieces),
            State::BeforeName => self.skip_past(NAME_BEGINS, State::Name),
            State::Name => {
                let Some(end) = self.held.find('"') else {
                    return false;
                };
                let name = self.held.drain(..end).collect();
                pieces.push(Piece::Call(name));
                self.state = State::BeforeArguments;
                true
            }
            State::BeforeArguments => {
                let begins = format!("\", \"{}\": ", self.style.arguments_key());
                self.skip_past(&begins, State::Arguments(Nesting::default()))
            }
            State::Arguments(nesting) => self.arguments(nesting, pieces),
            State::AfterArguments => self.after_arguments(),
        }
    }

    fn start(&mut self) -> bool {
        let begins = match self.style {
            Style::Generic => super::tools::GENERIC_BEGINS,
            Style::Llama | Style::Hermes => NAME_BEGINS,
        };
        if self.held.starts_with(begins) {
            if self.style == Style::Generic {
                self.held.drain(..begins.len());
            }
            self.state = State::BeforeName;
        } else if !begins.starts_with(self.held.as_str()) {
            self.state = State::Text;
        } else {
            return false;
        }
        true
    }

    fn text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let tag = super::tools::HERMES_BEGINS;
        let (certain, next) = match self.held.find(tag) {
            _ if self.style != Style::Hermes => (self.held.len(), State::Text),
            Some(at) => (at, State::BeforeName),
            None => (self.held.len() - open_suffix(&self.held, tag), State::Text),
        };
        let text: String = self.held.drain(..certain).collect();
        let is_call = next == State::BeforeName;
        // Line ends before a call belong to its notation.
        let text = if is_call { text.trim_end() } else { &text };
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        self.state = next;
        is_call
    }

    fn skip_past(&mut self, what: &str, next: State) -> bool {
        let Some(at) = self.held.find(what) else {
            return false;
        };
        self.held.drain(..at + what.len());
        self.state = next;
        true
    }

    fn arguments(&mut self, mut nesting: Nesting, pieces: &mut Vec<Piece>) -> bool {
        let end = self
            .held
            .char_indices()
            .find_map(|(at, c)| nesting.ends_with(c).then_some(at + c.len_utf8()));
        let certain = end.unwrap_or(self.held.len());
        if certain > 0 {
            pieces.push(Piece::Arguments(self.held.drain(..certain).collect()));
        }
        self.state = match end {
            Some(_) => State::AfterArguments,
            None => State::Arguments(nesting),
        };
        end.is_some()
    }

    fn after_arguments(&mut self) -> bool {
        match self.style {
            Style::Hermes => self.skip_past(super::tools::HERMES_ENDS, State::Text),
            Style::Generic => match self.held.find([',', ']']) {
                Some(at) if self.held.as_bytes()[at] == b',' => {
                    self.held.drain(..=at);
                    self.state = State::BeforeName;
                    true
                }
                // Nothing follows the last.
                _ => false,
            },
            Style::Llama => false,
        }
    }
}

/// Length of the longest end of `text` that something may turn into line ends and then `tag`.
fn open_suffix(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    let begun = (1..=longest)
        .rev()
        .find(|&n| text.ends_with(&tag[..n]))
        .unwrap_or(0);
    let before = &text[..text.len() - begun];
    begun + before.len() - before.trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same text in pieces of each length, joined again.
    fn read(style: Style, text: &str) -> (String, Vec<(String, String)>) {
        let mut results = Vec::new();
        for length in 1..=text.chars().count() {
            let mut reader = CallReader::new(style);
            let chars: Vec<char> = text.chars().collect();
            let mut pieces: Vec<Piece> = chars
                .chunks(length)
                .flat_map(|c| reader.push(&c.iter().collect::<String>()))
                .collect();
            pieces.extend(reader.finish());
            let (mut said, mut calls) = (String::new(), Vec::new());
            for piece in pieces {
                match piece {
                    Piece::Text(text) => said.push_str(&text),
                    Piece::Call(name) => calls.push((name, String::new())),
                    Piece::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
                }
            }
            results.push((said, calls));
        }
        assert!(results.iter().all(|r| *r == results[0]), "{results:?}");
        results.swap_remove(0)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.into(), arguments.into())
    }

    #[test]
    fn hermes_calls_stand_among_text() {
        let text = "Let me see.\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1, {}]}}\n</tool_call>\n\
                    <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        let (said, calls) = read(Style::Hermes, text);
        assert_eq!(said, "Let me see.");
        let first = call("f", "{\"a\": \"}\\\"{\", \"b\": [1, {}]}");
        assert_eq!(calls, [first, call("g", "{}")]);
    }

    #[test]
    fn what_only_looks_like_a_call_is_text() {
        let text = "1 < 2 <tool_caller> ü \n";
        assert_eq!(read(Style::Hermes, text), (text.into(), Vec::new()));
        for style in [Style::Llama, Style::Generic] {
            let text = "{\"nam <tool_call>";
            assert_eq!(read(style, text), (text.into(), Vec::new()));
            assert_eq!(read(style, "{").0, "{");
        }
    }

    #[test]
    fn llama_calls_are_the_whole_answer() {
        let text = "{\"name\": \"f\", \"parameters\": {\"where\": \"Zürich\"}}";
        let (said, calls) = read(Style::Llama, text);
        assert_eq!(said, "");
        assert_eq!(calls, [call("f", "{\"where\": \"Zürich\"}")]);
    }

    #[test]
    fn generic_calls_are_a_list() {
        let text = "{\"tool_calls\": [{\"name\": \"f\", \"arguments\": {\"a\": [1, 2]}}, {\"name\": \"g\", \"arguments\": {}}]}";
        let (said, calls) = read(Style::Generic, text);
        assert_eq!(said, "");
        assert_eq!(calls, [call("f", "{\"a\": [1, 2]}"), call("g", "{}")]);
    }

    #[test]
    fn a_call_that_is_cut_off_gives_what_there_was() {
        let text = "{\"name\": \"f\", \"parameters\": {\"a\": \"x";
        assert_eq!(read(Style::Llama, text).1, [call("f", "{\"a\": \"x")]);
    }
}
