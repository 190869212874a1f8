//! How a command fails: a message for people and an exit code.

use std::error::Error;
use std::process::ExitCode;

use crate::interrupt;

/// Ends a command. The message says what happened and what to do.
#[derive(Debug)]
pub struct Failure {
    message: Option<String>,
    code: u8,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: Some(message.into()),
            code: 1,
        }
    }

    /// Ended by Ctrl-C: nothing to say.
    pub fn interrupted() -> Self {
        Self {
            message: None,
            code: interrupt::EXIT_CODE,
        }
    }

    /// What happened and what to do.
    pub fn into_message(self) -> String {
        self.message.unwrap_or_else(|| "interrupted".to_owned())
    }

    /// Prints the message and gives the exit code.
    pub fn report(self) -> ExitCode {
        if let Some(message) = self.message {
            eprintln!("neap: {message}");
        }
        ExitCode::from(self.code)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors already tell their cause.
            if !message.contains(&cause_text) {
                message.push_str(": ");
                message.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self::new(message)
    }
}
