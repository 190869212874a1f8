//! `neap chat`: a conversation in the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use neap_engine::{FinishReason, Request};
use neap_model::chat::{ChatMessage, RenderOptions};
use neap_model::tokenizer::EncodeOptions;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Editor, Helper, Highlighter, Hinter};

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::keep::{Conversation, Store};
use crate::loading::{self, Below, Loaded};
use crate::remote::{self, Remote};
use crate::{adapters, generate, interrupt, report, sampling};

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
    let store = Store::open(args)?;
    let below = Below {
        disk: store.as_ref().map(|store| Arc::clone(store.disk())),
        remote: Remote::from_args(&args.remote)?,
    };
    let mut loaded = loading::load(&args.model, 1, &below)?;
    adapters::add(&mut loaded.engine, &loaded.source, args.lora.as_slice())?;
    interrupt::install();
    let mut chat = Chat::begin(args, loaded, store.as_ref())?;
    let result = if io::stdin().is_terminal() {
        chat.interactive()
    } else {
        chat.piped()
    };
    remote::finish(chat.loaded.remote.as_ref());
    result
}

struct Chat<'a> {
    args: &'a ChatArgs,
    loaded: Loaded,
    messages: Vec<ChatMessage>,
    system: Option<String>,
    turns: u64,
    kept: Option<Conversation>,
}

/// What a line led to.
enum Next {
    GoOn,
    Leave,
}

impl<'a> Chat<'a> {
    /// Begins a conversation, or goes on with the one that is kept.
    fn begin(args: &'a ChatArgs, loaded: Loaded, store: Option<&Store>) -> Result<Self, Failure> {
        let block_tokens = loaded.engine.kv().block_tokens();
        let of = Request {
            adapter: adapter_of(args),
            ..Request::default()
        };
        let whose = (loaded.fingerprint, loaded.engine.namespace_of(&of)?);
        let kept = store.zip(args.session.as_deref());
        let kept = kept.map(|(store, name)| store.conversation(name, whose, block_tokens));
        let mut chat = Self {
            args,
            loaded,
            messages: Vec::new(),
            system: args.system.clone(),
            turns: 0,
            kept,
        };
        chat.forget();
        if let Some(kept) = &chat.kept {
            let messages = kept.load()?;
            if !messages.is_empty() {
                eprintln!(
                    "Going on with {} messages of an earlier conversation; /show prints them.",
                    messages.len()
                );
                chat.messages = messages;
            }
        }
        Ok(chat)
    }

    fn interactive(&mut self) -> Result<(), Failure> {
        let mut editor: Editor<Lines, DefaultHistory> = Editor::new()?;
        editor.set_helper(Some(Lines {}));
        let history = self.args.history.clone().or_else(history_path);
        if let Some(path) = &history {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        eprintln!(
            "Talking with {}. /help lists the commands, Ctrl-D leaves.",
            self.loaded.name
        );
        loop {
            match self.read_line(&mut editor) {
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

    /// Waits for a line. Meanwhile the engine follows the budget: a machine that needs its memory gets it.
    fn read_line(
        &mut self,
        editor: &mut Editor<Lines, DefaultHistory>,
    ) -> rustyline::Result<String> {
        const REST_EVERY: Duration = Duration::from_millis(500);
        thread::scope(|scope| {
            let (done, is_done) = mpsc::channel::<()>();
            let line = scope.spawn(move || {
                let line = editor.readline("> ");
                drop(done);
                line
            });
            while is_done.recv_timeout(REST_EVERY) == Err(RecvTimeoutError::Timeout) {
                self.loaded.engine.rest(generate::clock_ms());
            }
            line.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Each message of standard input in turn, as if it had been typed.
    fn piped(&mut self) -> Result<(), Failure> {
        let mut open = String::new();
        for line in io::stdin().lines() {
            let line =
                line.map_err(|why| Failure::new(format!("standard input can't be read: {why}")))?;
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
            unknown if unknown.starts_with('/') => {
                eprintln!("There is no command {unknown}; /help lists them.")
            }
            _ => self.ask(message.to_owned()),
        }
        Next::GoOn
    }

    fn forget(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.system {
            self.messages
                .push(ChatMessage::new("system", system.as_str()));
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
            Ok((answer, tokens)) => {
                self.messages.push(ChatMessage::new("assistant", answer));
                if let Some(kept) = &mut self.kept
                    && let Err(failure) =
                        kept.save(&self.messages, &tokens, self.loaded.engine.cache_mut())
                {
                    let _ = failure.report();
                }
            }
            Err(failure) => {
                self.messages.pop();
                let _ = failure.report();
            }
        }
    }

    /// The answer to the conversation so far, and all tokens whose keys and values were computed.
    fn answer(&mut self) -> Result<(String, Vec<u32>), Failure> {
        let options = RenderOptions {
            add_generation_prompt: true,
            now: Some(SystemTime::now()),
            ..RenderOptions::default()
        };
        let prompt = self.loaded.template.render(&self.messages, &options)?;
        let options = EncodeOptions {
            add_bos: true,
            parse_special: true,
        };
        let tokens = self.loaded.tokenizer.encode(&prompt, options)?;
        let mut params = sampling::params(&self.args.sampling);
        // With a seed given, every turn still draws anew, and a conversation can be repeated.
        params.seed = params.seed.wrapping_add(self.turns);
        self.turns += 1;
        let seed = params.seed;
        let mut computed = tokens.clone();
        let request = Request {
            prompt: tokens,
            max_new_tokens: (self.args.max_tokens > 0).then_some(self.args.max_tokens),
            sampling: params,
            adapter: adapter_of(self.args),
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
        // The last token was chosen, not computed.
        let new = outcome
            .tokens
            .len()
            .saturating_sub(usize::from(!ended_by_token(&outcome.reason)));
        computed.extend(&outcome.tokens[..new]);
        Ok((outcome.text, computed))
    }
}

fn adapter_of(args: &ChatArgs) -> Option<String> {
    args.lora.as_ref().map(|lora| lora.name.clone())
}

/// Whether the token that ended the generation is not among those given out.
fn ended_by_token(reason: &FinishReason) -> bool {
    matches!(reason, FinishReason::EndOfText(_))
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
    if let Some(inner) = trimmed
        .strip_prefix("\"\"\"")
        .and_then(|t| t.strip_suffix("\"\"\""))
    {
        return Cow::Borrowed(inner.trim_matches('\n'));
    }
    if text.contains("\\\n") {
        Cow::Owned(text.replace("\\\n", "\n"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Tells the editor whether the message goes on.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Lines {}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let incomplete = is_incomplete(context.input());
        Ok(if incomplete {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

/// Where the lines typed are kept.
fn history_path() -> Option<PathBuf> {
    Some(state_folder()?.join("history"))
}

/// `$XDG_STATE_HOME/neap`, or the same under the home directory.
pub fn state_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(base.join("neap"))
}

fn save_history(editor: &mut Editor<Lines, DefaultHistory>, path: &std::path::Path) {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(why) = made
        .map_err(ReadlineError::from)
        .and_then(|()| editor.save_history(path))
    {
        eprintln!(
            "neap: the history was not kept in {}: {why}",
            path.display()
        );
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
