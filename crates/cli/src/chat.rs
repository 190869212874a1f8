//! `neap chat`: a conversation in the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use neap_engine::{FinishReason, Request};
use neap_model::chat::{ChatMessage, RenderOptions};
use neap_model::tokenizer::EncodeOptions;
use rustyline::error::ReadlineError;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Editor, Helper, Highlighter, Hinter};
use rustyline::history::DefaultHistory;

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::loading::{self, Loaded};
use crate::{generate, interrupt, report, sampling};

const HELP: &str = "\
/help            this list
/new             forget the conversation and begin again
/undo            take back the last message and its answer
/again           answer the last message anew
/show            print the conversation
/system TEXT     set the instructions before the conversation (and begin again)
/quit            leave; so does Ctrl-D
A line that ends with \\ goes on in the next; \"\"\" begins and ends several lines.";

pub fn run(args: &ChatArgs) -> Result<(), Failure> {
    let loaded = loading::load(&args.model, 1)?;
    interrupt::install();
    let mut chat = Chat { args, loaded, messages: Vec::new(), system: args.system.clone(), turns: 0 };
    chat.forget();
    if io::stdin().is_terminal() { chat.interactive() } else { chat.piped() }
}

struct Chat<'a> {
    args: &'a ChatArgs,
    loaded: Loaded,
    messages: Vec<ChatMessage>,
    system: Option<String>,
    turns: u64,
}

/// What a line led to.
enum Next {
    GoOn,
    Leave,
}

impl Chat<'_> {
    fn interactive(&mut self) -> Result<(), Failure> {
        let mut editor: Editor<Lines, DefaultHistory> = Editor::new()?;
        editor.set_helper(Some(Lines {}));
        let history = self.args.history.clone().or_else(history_path);
        if let Some(path) = &history {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        eprintln!("Talking with {}. /help lists the commands, Ctrl-D leaves.", self.loaded.name);
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    let message = unwrap_lines(&line);
                    if message.trim().is_empty() {
                        continue;
                    }
                    let _ = editor.add_history_entry(&line);
                    if let Next::Leave = self.take(&message) {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("(Ctrl-D leaves)"),
                Err(ReadlineError::Eof) => break,
                Err(why) => return Err(why.into()),
            }
        }
        if let Some(path) = &history {
            save_history(&mut editor, path);
        }
        Ok(())
    }

    /// Each message of standard input in turn, as if it had been typed.
    fn piped(&mut self) -> Result<(), Failure> {
        let mut open = String::new();
        for line in io::stdin().lines() {
            let line = line.map_err(|why| Failure::new(format!("standard input can't be read: {why}")))?;
            if !open.is_empty() {
                open.push('\n');
            }
            open.push_str(&line);
            if is_incomplete(&open) {
                continue;
            }
            let message = unwrap_lines(&std::mem::take(&mut open)).into_owned();
            if message.trim().is_empty() {
                continue;
            }
            if let Next::Leave = self.take(&message) {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &str) -> Next {
        let (command, rest) = message.split_once(' ').unwrap_or((message, ""));
        match command.trim_end() {
            "/help" => eprintln!("{HELP}"),
            "/quit" | "/exit" => return Next::Leave,
            "/new" => self.forget(),
            "/undo" => self.undo(),
            "/show" => self.show(),
            "/system" => {
                self.system = (!rest.trim().is_empty()).then(|| rest.trim().to_owned());
                self.forget();
            }
            "/again" => match self.last_question() {
                Some(question) => self.ask(question),
                None => eprintln!("There is nothing to answer yet."),
            },
            unknown if unknown.starts_with('/') => eprintln!("There is no command {unknown}; /help lists them."),
            _ => self.ask(message.to_owned()),
        }
        Next::GoOn
    }

    fn forget(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.system {
            self.messages.push(ChatMessage::new("system", system.as_str()));
        }
    }

    /// Removes the last question and what follows it, and gives it.
    fn last_question(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == "user")?;
        let question = text(&self.messages[at]).to_owned();
        self.messages.truncate(at);
        Some(question)
    }

    fn undo(&mut self) {
        match self.last_question() {
            Some(question) => eprintln!("Took back: {question}"),
            None => eprintln!("There is nothing to take back."),
        }
    }

    fn show(&self) {
        for message in &self.messages {
            eprintln!("[{}] {}", message.role, text(message));
        }
    }

    fn ask(&mut self, question: String) {
        self.messages.push(ChatMessage::new("user", question));
        match self.answer() {
            Ok(answer) => self.messages.push(ChatMessage::new("assistant", answer)),
            Err(failure) => {
                self.messages.pop();
                let _ = failure.report();
            }
        }
    }

    fn answer(&mut self) -> Result<String, Failure> {
        let options = RenderOptions { add_generation_prompt: true, now: Some(SystemTime::now()), ..RenderOptions::default() };
        let prompt = self.loaded.template.render(&self.messages, &options)?;
        let options = EncodeOptions { add_bos: true, parse_special: true };
        let tokens = self.loaded.tokenizer.encode(&prompt, options)?;
        let mut params = sampling::params(&self.args.sampling);
        // With a seed given, every turn still draws anew, and a conversation can be repeated.
        params.seed = params.seed.wrapping_add(self.turns);
        self.turns += 1;
        let seed = params.seed;
        let request = Request {
            prompt: tokens,
            max_new_tokens: (self.args.max_tokens > 0).then_some(self.args.max_tokens),
            sampling: params,
            ..Request::default()
        };
        interrupt::clear();
        let mut out = io::stdout().lock();
        let outcome = generate::generate(&mut self.loaded.engine, request, "", |text| {
            out.write_all(text.as_bytes())?;
            out.flush()
        })?;
        let _ = writeln!(out);
        match &outcome.reason {
            FinishReason::EndOfText(_) => {}
            FinishReason::Cancelled => eprintln!("(stopped)"),
            reason => eprintln!("({reason})"),
        }
        if self.args.verbose {
            report::print(&outcome, seed, self.loaded.engine.budget());
        }
        Ok(outcome.text)
    }
}

/// What was said. Every message here was made of a string.
fn text(message: &ChatMessage) -> &str {
    message.content.as_str().unwrap_or_default()
}

/// Lines belong together until the last one neither ends with a backslash nor stands within `"""`.
fn is_incomplete(text: &str) -> bool {
    if let Some(rest) = text.trim_start().strip_prefix("\"\"\"") {
        return !rest.trim_end().ends_with("\"\"\"");
    }
    text.ends_with('\\')
}

/// Takes the marks of several lines away.
fn unwrap_lines(text: &str) -> Cow<'_, str> {
    let trimmed = text.trim();
    if let Some(inner) = trimmed.strip_prefix("\"\"\"").and_then(|t| t.strip_suffix("\"\"\"")) {
        return Cow::Borrowed(inner.trim_matches('\n'));
    }
    if text.contains("\\\n") { Cow::Owned(text.replace("\\\n", "\n")) } else { Cow::Borrowed(text) }
}

/// Tells the editor whether the message goes on.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Lines {}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let incomplete = is_incomplete(context.input());
        Ok(if incomplete { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

/// `$XDG_STATE_HOME/neap/history`, or the same under the home directory.
fn history_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(base.join("neap").join("history"))
}

fn save_history(editor: &mut Editor<Lines, DefaultHistory>, path: &std::path::Path) {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(why) = made.map_err(ReadlineError::from).and_then(|()| editor.save_history(path)) {
        eprintln!("neap: the history was not kept in {}: {why}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_lines_that_belong_together() {
        assert!(is_incomplete("one \\"));
        assert!(!is_incomplete("one \\\ntwo"));
        assert_eq!(unwrap_lines("one \\\ntwo"), "one \ntwo");
        assert!(is_incomplete("\"\"\"one"));
        assert!(!is_incomplete("\"\"\"one\ntwo\"\"\""));
        assert_eq!(unwrap_lines("\"\"\"\none\ntwo\n\"\"\""), "one\ntwo");
    }
}
