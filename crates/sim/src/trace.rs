//! Request traces, as JSON lines in the form of Mooncake (Qin et al., "Mooncake: Trading More Storage for
//! Less Computation", FAST 2025): `timestamp` (milliseconds), `input_length` and `output_length` (tokens)
//! and `hash_ids`, one per started block of 512 tokens of input. Equal ids mean equal tokens in the block
//! *and before it*. Or as CSV in the form of [`azure`], known by its first line, which is no JSON.

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Milliseconds since the trace began, or since another time that is one for all of it.
    pub at_ms: u64,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Names of the prompt's blocks; none where the trace names none.
    pub blocks: Vec<u32>,
}

/// A line of JSON.
#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u32>,
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

/// Reads the trace in `path`, in order of time, with the names of its blocks. `link_turns` guesses which requests
/// continue which where the trace does not say: see [`azure`].
///
/// # Errors
/// [`TraceError`] naming the file and the line.
pub fn read(path: &Path, link_turns: bool) -> Result<Vec<Request>, TraceError> {
    let (mut requests, names_blocks) = read_as(path, true)?;
    if !names_blocks {
        azure::name_blocks(&mut requests, link_turns);
    }
    Ok(requests)
}

/// Reads times and lengths of the trace in `path`, in order of time, whether it names blocks or not.
///
/// # Errors
/// [`TraceError`] naming the file and the line.
pub fn read_lengths(path: &Path) -> Result<Vec<Request>, TraceError> {
    Ok(read_as(path, false)?.0)
}

/// The requests, and whether the trace is of the form that names blocks.
fn read_as(path: &Path, wants_blocks: bool) -> Result<(Vec<Request>, bool), TraceError> {
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
            None => parse(&line, wants_blocks),
        };
        requests.push(request.map_err(|reason| TraceError::Line {
            path: name.clone(),
            line: index + 1,
            reason,
        })?);
    }
    requests.sort_by_key(|r| r.at_ms);
    Ok((requests, columns.is_none()))
}

fn parse(line: &str, wants_blocks: bool) -> Result<Request, String> {
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("longer than {MAX_LINE_BYTES} bytes"));
    }
    let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let blocks = line.input_length.div_ceil(TRACE_BLOCK_TOKENS);
    if wants_blocks && blocks != line.hash_ids.len() as u64 {
        return Err(format!(
            "{} tokens are {blocks} blocks, but hash_ids names {}",
            line.input_length,
            line.hash_ids.len()
        ));
    }
    if !(0.0..9e15).contains(&line.timestamp) {
        return Err(format!("timestamp {} is no time", line.timestamp));
    }
    Ok(Request {
        at_ms: line.timestamp as u64,
        input_tokens: line.input_length,
        output_tokens: line.output_length,
        blocks: line.hash_ids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_and_checked() {
        let line =
            r#"{"timestamp": 5, "input_length": 513, "output_length": 9, "hash_ids": [0, 7]}"#;
        assert_eq!(parse(line, true).unwrap().blocks, [0, 7]);
        assert!(
            parse(&line.replace("513", "512"), true)
                .unwrap_err()
                .contains("1 blocks")
        );
        assert!(parse("{}", true).is_err());
        assert!(
            parse(&line.replace("5,", "-5,"), true)
                .unwrap_err()
                .contains("no time")
        );
        let bare = r#"{"timestamp": 27482.6, "input_length": 6955, "output_length": 52}"#;
        let request = parse(bare, false).unwrap();
        assert_eq!((request.at_ms, request.input_tokens), (27_482, 6955));
        assert!(parse(bare, true).unwrap_err().contains("hash_ids"));
    }
}
