//! Traces in the form of Azure's LLM inference traces (Patel et al., "Splitwise", ISCA 2024): CSV with the
//! columns `TIMESTAMP`, `ContextTokens` and `GeneratedTokens`, or three others in that order; times are dates, or
//! seconds.
//!
//! They name no blocks, so nothing tells which request continues which. Either every prompt is one of its
//! own, or turns are linked by a guess: a request continues the earlier one whose prompt and answer together
//! come closest to its own prompt from below. The guess uses each request once.

use std::collections::BTreeMap;

use super::{Request, TRACE_BLOCK_TOKENS};

/// Most tokens that a continued conversation may grow by beside the answer: one question.
const MAX_QUESTION_TOKENS: u64 = 512;
/// Longest silence between two turns, in milliseconds.
const MAX_SILENCE_MS: u64 = 60 * 60 * 1000;
/// Largest prompt or answer that is believed.
const MAX_TOKENS: u64 = 16 << 20;

/// Where the columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    time: usize,
    input: usize,
    output: usize,
}

impl Columns {
    /// From the file's first line, which names the columns; `None` if it is not of this form.
    pub(super) fn of(header: &str) -> Option<Self> {
        let names: Vec<&str> = header.trim_start_matches('\u{feff}').split(',').collect();
        if header.trim_start().starts_with('{') || names.len() < 3 {
            return None;
        }
        let at = |wanted: &str| names.iter().position(|name| name.trim() == wanted);
        let named = || {
            Some(Self {
                time: at("TIMESTAMP")?,
                input: at("ContextTokens")?,
                output: at("GeneratedTokens")?,
            })
        };
        let in_order = Self {
            time: 0,
            input: 1,
            output: 2,
        };
        Some(named().unwrap_or(in_order))
    }

    /// One request without blocks; its time is in milliseconds since 1970, if the file tells dates.
    pub(super) fn parse(self, line: &str) -> Result<Request, String> {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or_default().trim();
        let tokens = |name: &str, at: usize| {
            let tokens = field(at).parse::<u64>().ok().filter(|&t| t <= MAX_TOKENS);
            tokens.ok_or_else(|| format!("{name} {:?} is no number of tokens", field(at)))
        };
        Ok(Request {
            at_ms: time_ms(field(self.time)).ok_or_else(|| {
                format!(
                    "TIMESTAMP {:?} is not like 2023-11-16 18:15:46.680, nor seconds",
                    field(self.time)
                )
            })?,
            input_tokens: tokens("ContextTokens", self.input)?,
            output_tokens: tokens("GeneratedTokens", self.output)?,
            blocks: Vec::new(),
        })
    }
}

/// Milliseconds since 1970 of `2023-11-16 18:15:46.6805900`, with or without a zone, which is taken as UTC; or of
/// plain seconds.
fn time_ms(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return (0.0..9e12)
            .contains(&seconds)
            .then_some((seconds * 1000.0) as u64);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.trim_end_matches('Z');
    let time = time.split_once('+').map_or(time, |(time, _)| time);
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let hour: u64 = time.next()?.parse().ok()?;
    let minute: u64 = time.next()?.parse().ok()?;
    let second: f64 = time.next()?.parse().ok()?;
    let is_sound = (1970..3000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && (0.0..61.0).contains(&second);
    is_sound.then(|| {
        let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute;
        minutes * 60_000 + (second * 1000.0) as u64
    })
}

/// Days of the Gregorian calendar: whole years that begin in March, so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_of_months = (153 * month + 2) / 5;
    (year * 365 + leap_days + days_of_months + day - 1) - 719_468
}

/// Names the blocks of requests that are in order of time, linking turns by the guess if asked to.
pub(super) fn name_blocks(requests: &mut [Request], link_turns: bool) {
    let mut next_block = 0u32;
    // Requests that nothing continues yet, by the tokens of prompt and answer.
    let mut open: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for index in 0..requests.len() {
        let (at_ms, input) = (requests[index].at_ms, requests[index].input_tokens);
        let before = if link_turns {
            take_predecessor(&mut open, requests, at_ms, input)
        } else {
            None
        };
        let mut blocks = before.map_or_else(Vec::new, |before| {
            // Only full blocks of the earlier prompt have the same name again.
            let full = requests[before].input_tokens / TRACE_BLOCK_TOKENS;
            requests[before].blocks[..full as usize].to_vec()
        });
        while (blocks.len() as u64) < input.div_ceil(TRACE_BLOCK_TOKENS) {
            blocks.push(next_block);
            next_block = next_block.wrapping_add(1);
        }
        requests[index].blocks = blocks;
        let all = input + requests[index].output_tokens;
        open.entry(all).or_default().push(index);
    }
}

fn take_predecessor(
    open: &mut BTreeMap<u64, Vec<usize>>,
    requests: &[Request],
    at_ms: u64,
    input: u64,
) -> Option<usize> {
    let least = input.saturating_sub(MAX_QUESTION_TOKENS);
    let (&tokens, same) = open.range_mut(least..input).next_back()?;
    let latest = same.pop();
    if same.is_empty() {
        open.remove(&tokens);
    }
    latest.filter(|&before| at_ms - requests[before].at_ms <= MAX_SILENCE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_years_traces_are_read() {
        let first = time_ms("2023-11-16 18:15:46.6805900").unwrap();
        assert_eq!(first, 1_700_158_546_680);
        assert_eq!(
            time_ms("2024-05-10 00:00:00.009930+00:00"),
            Some(1_715_299_200_009)
        );
        assert_eq!(time_ms("2024-02-29T00:00:00Z"), Some(1_709_164_800_000));
        assert_eq!(time_ms("1.5"), Some(1500));
        for bad in [
            "",
            "now",
            "-1",
            "NaN",
            "2023-11-16",
            "2023-13-01 00:00:00",
            "2023-11-16 25:00:00",
            "x-1-1 0:0:0",
        ] {
            assert_eq!(time_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn columns_are_found_by_name_and_bad_fields_are_named() {
        let columns = Columns::of("GeneratedTokens,TIMESTAMP,ContextTokens").unwrap();
        let request = columns.parse("7,2023-11-16 18:15:46.68,1300").unwrap();
        assert_eq!((request.input_tokens, request.output_tokens), (1300, 7));
        assert!(
            columns
                .parse("x,2023-11-16 18:15:46,1")
                .unwrap_err()
                .contains("GeneratedTokens")
        );
        assert!(columns.parse("1,soon,1").unwrap_err().contains("TIMESTAMP"));
        assert!(Columns::of("TIMESTAMP,Tokens").is_none());
        assert!(Columns::of(r#"{"timestamp": 1, "a": 2, "b": 3}"#).is_none());
        let plain = Columns::of("seconds,in,out").unwrap();
        let request = plain.parse("1.5, 10, 20").unwrap();
        assert_eq!(
            (request.at_ms, request.input_tokens, request.output_tokens),
            (1500, 10, 20)
        );
    }

    #[test]
    fn a_turn_that_grew_by_answer_and_question_shares_the_full_blocks() {
        let request = |at_ms, input_tokens, output_tokens| Request {
            at_ms,
            input_tokens,
            output_tokens,
            blocks: Vec::new(),
        };
        // The second continues the first; the third is too long to; the fourth comes too late.
        let trace = [
            request(0, 1300, 100),
            request(1000, 1450, 50),
            request(2000, 5000, 1),
            request(2000 + MAX_SILENCE_MS + 1000, 1600, 1),
        ];
        let mut apart = trace.clone();
        name_blocks(&mut apart, false);
        let mut all: Vec<u32> = apart.iter().flat_map(|r| r.blocks.clone()).collect();
        let named = all.len();
        all.dedup();
        assert_eq!((all.len(), named), (3 + 3 + 10 + 4, 3 + 3 + 10 + 4));
        let mut linked = trace;
        name_blocks(&mut linked, true);
        assert_eq!(linked[0].blocks[..2], linked[1].blocks[..2]);
        assert_ne!(linked[0].blocks[2], linked[1].blocks[2]);
        assert_ne!(linked[3].blocks[0], linked[1].blocks[0]);
        assert!(
            linked
                .iter()
                .all(|r| r.blocks.len() as u64 == r.input_tokens.div_ceil(512))
        );
    }
}
