//! The arguments of `neap session`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ServerArgs;

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List the conversations that are kept.
    List(SessionListArgs),
    /// Write a conversation with its keys and values to a file.
    Export(SessionExportArgs),
    /// Keep the conversation that a file holds.
    ///
    /// The file must come from the same model. Its keys and values steer what the model says: import only what you trust.
    Import(SessionImportArgs),
    /// Forget a conversation.
    Delete(SessionDeleteArgs),
    /// Keep a conversation with a priority, without end or for a time.
    Pin(SessionPinArgs),
}

/// Where the sessions are: with a running server, or in a folder that none uses now.
#[derive(Debug, Args)]
pub struct SessionPlace {
    /// The folder of `neap serve --disk` or `neap chat --store`, which no neap uses now; the running server's if left
    /// out.
    #[arg(long, value_name = "PATH", conflicts_with = "chats")]
    pub disk: Option<PathBuf>,
    /// The conversations of `neap chat --session` in their usual place.
    #[arg(long)]
    pub chats: bool,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct SessionListArgs {
    #[command(flatten)]
    pub place: SessionPlace,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SessionExportArgs {
    /// Name or ID (or its beginning).
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// The file to write; NAME.session if left out.
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Write over a file that is there.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub place: SessionPlace,
}

#[derive(Debug, Args)]
pub struct SessionImportArgs {
    /// The file.
    #[arg(value_name = "PATH")]
    pub file: PathBuf,
    /// The API key whose session it becomes, where the server has API keys.
    #[arg(long, value_name = "KEY")]
    pub session_key: Option<String>,
    /// With --disk: the --remote-secret-file of the server, if it has one.
    #[arg(long, value_name = "PATH", requires = "disk")]
    pub remote_secret_file: Option<PathBuf>,
    #[command(flatten)]
    pub place: SessionPlace,
}

#[derive(Debug, Args)]
pub struct SessionDeleteArgs {
    /// Name or ID (or its beginning).
    #[arg(value_name = "SESSION")]
    pub session: String,
    #[command(flatten)]
    pub place: SessionPlace,
}

#[derive(Debug, Args)]
pub struct SessionPinArgs {
    /// Name or ID (or its beginning).
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Greater is kept longer where the disk level is too small.
    #[arg(long, value_name = "N", default_value_t = 255, value_parser = clap::value_parser!(u8).range(1..))]
    pub priority: u8,
    /// Time to live from now, and from each later turn, such as 30m, 24h or 7d; without end if left out.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub ttl: Option<u64>,
    #[command(flatten)]
    pub place: SessionPlace,
}

/// Seconds.
fn parse_time(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is not a time such as 90s, 30m, 24h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(refused()),
    };
    let number: u64 = digits.parse().map_err(|_| refused())?;
    let seconds = number.checked_mul(unit);
    seconds
        .filter(|s| (1..=100 * 365 * 86_400).contains(s))
        .ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [
            ("90", 90),
            ("1s", 1),
            ("30m", 1800),
            ("24h", 86_400),
            ("7d", 604_800),
        ] {
            assert_eq!(parse_time(text), Ok(seconds));
        }
        for bad in [
            "",
            "h",
            "0",
            "-1h",
            "1w",
            "1.5h",
            "99999999999999999999d",
            "40000000d",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
