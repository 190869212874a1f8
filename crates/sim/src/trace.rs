//! Request traces, as JSON lines in the form of Mooncake (Qin et al., "Mooncake: Trading More Storage for
//! Less Computation", FAST 2025): `timestamp` (milliseconds), `input_length` and `output_length` (tokens)
//! and `hash_ids`, one per started block of 512 tokens of input. Equal ids mean equal tokens in the block
//! *and before it*. Or as CSV in the form of [`azure`], known by its header.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

pub mod azure;

/// Tokens of one block of the trace.
pub const TRACE_BLOCK_TOKENS: u64 = 512;
/// Longest line that is read: no request of a real trace comes near.
const MAX_LINE_BYTES: usize = 16 << 20;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// Milliseconds since the trace began.
    #[serde(rename = "timestamp")]
    pub at_ms: u64,
    /// Tokens of the prompt.
    #[serde(rename = "input_length")]
    pub input_tokens: u64,
    /// Tokens generated.
    #[serde(rename = "output_length")]
    pub output_tokens: u64,
    /// Names of the prompt's blocks.
    #[serde(rename = "hash_ids")]
    pub blocks: Vec<u32>,
}

/// Why a trace was not read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not a request.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the trace in `path`, in order of time. `link_turns` guesses which requests continue which where
/// the trace does not say: see [`azure`].
///
/// # Errors
/// [`TraceError`] naming the file and the line.
pub fn read(path: &Path, link_turns: bool) -> Result<Vec<Request>, TraceError> {
    let name = path.display().to_string();
    let io = |source| TraceError::Io {
        path: name.clone(),
        source,
    };
    let mut requests = Vec::new();
    let mut columns = None;
    for (index, line) in BufReader::new(File::open(path).map_err(io)?)
        .lines()
        .enumerate()
    {
        let line = line.map_err(io)?;
        if index == 0 {
            columns = azure::Columns::of(&line);
            if columns.is_some() {
                continue;
            }
        }
        if line.trim().is_empty() {
            continue;
        }
        let request = match columns {
            Some(columns) => columns.parse(&line),
            None => parse(&line),
        };
        requests.push(request.map_err(|reason| TraceError::Line {
            path: name.clone(),
            line: index + 1,
            reason,
        })?);
    }
    requests.sort_by_key(|r| r.at_ms);
    if columns.is_some() {
        azure::name_blocks(&mut requests, link_turns);
    }
    Ok(requests)
}

fn parse(line: &str) -> Result<Request, String> {
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("longer than {MAX_LINE_BYTES} bytes"));
    }
    let request: Request = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let blocks = request.input_tokens.div_ceil(TRACE_BLOCK_TOKENS);
    if blocks != request.blocks.len() as u64 {
        return Err(format!(
            "{} tokens are {blocks} blocks, but {} are named",
            request.input_tokens,
            request.blocks.len()
        ));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_and_checked() {
        let line =
            r#"{"timestamp": 5, "input_length": 513, "output_length": 9, "hash_ids": [0, 7]}"#;
        assert_eq!(parse(line).unwrap().blocks, [0, 7]);
        assert!(
            parse(&line.replace("513", "512"))
                .unwrap_err()
                .contains("1 blocks")
        );
        assert!(parse("{}").is_err());
    }
}
