//! `neap bench trace`: replays request traces against every policy at several sizes of RAM and disk.

use std::path::Path;
use std::time::Instant;

use neap_memory::policy::{Belady, CostModel, Fifo, Lru, Policy, S3Fifo, Sieve};
use neap_sim::oracle::{self, Whether};
use neap_sim::replay::{Outcome, Replay, Sizes, distinct_blocks, next_uses};
use neap_sim::trace::{self, Request, TRACE_BLOCK_TOKENS};
use serde::Serialize;

use crate::args::BenchTraceArgs;
use crate::bytes::show;
use crate::failure::Failure;

/// The bound comes first: the others are compared with it. `hindsight` and `whether` know part of the
/// future, to tell how much of the bound can be known.
const POLICIES: [&str; 8] = [
    "belady",
    "cost",
    "s3-fifo",
    "sieve",
    "lru",
    "fifo",
    "hindsight",
    "whether",
];

/// One policy at one size.
#[derive(Serialize)]
struct Row {
    policy: &'static str,
    ram_bytes: u64,
    disk_bytes: u64,
    /// Tokens of prompts that need not be computed, of all.
    saved_share: f64,
    /// Tokens saved, of what Belady's bound saves at this size.
    bound_share: f64,
    ram_hit_share: f64,
    disk_hit_share: f64,
    spilled_bytes: u64,
    restored_bytes: u64,
    evicted_blocks: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    trace: String,
    requests: usize,
    prompt_tokens: u64,
    distinct_blocks: usize,
    block_tokens: u64,
    bytes_per_token: u64,
    /// What nothing evicted would save.
    most_saved_share: f64,
    results: Vec<Row>,
}

pub fn run(args: &BenchTraceArgs) -> Result<(), Failure> {
    let mut reports = Vec::new();
    for path in &args.trace {
        let report = Contest::open(args, path)?.run();
        if !args.json {
            print(&report);
        }
        reports.push(report);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    Ok(())
}

/// One trace and what all of its replays share.
struct Contest<'a> {
    args: &'a BenchTraceArgs,
    name: String,
    trace: Vec<Request>,
    next: Vec<Vec<u64>>,
    distinct: usize,
    hindsight: CostModel,
}

impl<'a> Contest<'a> {
    fn open(args: &'a BenchTraceArgs, path: &Path) -> Result<Self, Failure> {
        let mut trace = trace::read(path, args.link_turns)?;
        trace.truncate(args.requests.unwrap_or(usize::MAX));
        if trace.is_empty() {
            return Err(Failure::new(format!(
                "{}: the trace has no requests",
                path.display()
            )));
        }
        let next = next_uses(&trace);
        Ok(Self {
            hindsight: if args.takes("hindsight") {
                oracle::hindsight(&trace, &next)
            } else {
                CostModel::default()
            },
            args,
            name: path.display().to_string(),
            distinct: distinct_blocks(&trace),
            next,
            trace,
        })
    }

    fn run(&self) -> Report {
        let all = Sizes {
            ram_blocks: self.distinct,
            disk_blocks: 0,
        };
        let most = Replay::new(all, || Box::new(Fifo::default())).run(&self.trace, &self.next);
        let mut results = Vec::new();
        for size in &self.args.sizes {
            let sizes = size.blocks(self.distinct, self.block_bytes());
            let mut bound = 0;
            for policy in POLICIES.into_iter().filter(|p| self.args.takes(p)) {
                let start = Instant::now();
                let outcome =
                    Replay::new(sizes, || self.policy(policy)).run(&self.trace, &self.next);
                if policy == POLICIES[0] {
                    bound = outcome.saved_tokens();
                }
                let seconds = start.elapsed().as_secs_f64();
                results.push(self.row(policy, sizes, &outcome, (bound, seconds)));
            }
        }
        Report {
            trace: self.name.clone(),
            requests: self.trace.len(),
            prompt_tokens: most.input_tokens,
            distinct_blocks: self.distinct,
            block_tokens: TRACE_BLOCK_TOKENS,
            bytes_per_token: self.args.bytes_per_token,
            most_saved_share: share(most.saved_tokens(), most.input_tokens),
            results,
        }
    }

    fn block_bytes(&self) -> u64 {
        TRACE_BLOCK_TOKENS * self.args.bytes_per_token
    }

    fn policy(&self, name: &str) -> Box<dyn Policy> {
        match name {
            "belady" => Box::new(Belady::default()),
            "s3-fifo" => Box::new(S3Fifo::default()),
            "sieve" => Box::new(Sieve::default()),
            "lru" => Box::new(Lru::default()),
            "fifo" => Box::new(Fifo::default()),
            "hindsight" => Box::new(self.hindsight.clone()),
            "whether" => Box::new(Whether::default()),
            _ => Box::new(CostModel::default()),
        }
    }

    fn row(
        &self,
        policy: &'static str,
        sizes: Sizes,
        outcome: &Outcome,
        (bound, seconds): (u64, f64),
    ) -> Row {
        let bytes = |blocks: u64| blocks.saturating_mul(self.block_bytes());
        Row {
            policy,
            ram_bytes: bytes(sizes.ram_blocks as u64),
            disk_bytes: bytes(sizes.disk_blocks as u64),
            saved_share: share(outcome.saved_tokens(), outcome.input_tokens),
            bound_share: share(outcome.saved_tokens(), bound),
            ram_hit_share: share(outcome.ram_hit_tokens, outcome.input_tokens),
            disk_hit_share: share(outcome.disk_hit_tokens, outcome.input_tokens),
            spilled_bytes: bytes(outcome.demoted_blocks),
            restored_bytes: bytes(outcome.promoted_blocks),
            evicted_blocks: outcome.evicted_blocks,
            seconds,
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn print(report: &Report) {
    println!(
        "{}: {} requests, {} prompt tokens, {} distinct blocks of {} tokens ({} at {} bytes per token); \
         {:.2} % of the tokens could be saved",
        report.trace,
        report.requests,
        report.prompt_tokens,
        report.distinct_blocks,
        report.block_tokens,
        show(report.distinct_blocks as u64 * report.block_tokens * report.bytes_per_token),
        report.bytes_per_token,
        report.most_saved_share * 100.0,
    );
    println!(
        "{:>10} {:>10}  {:9} {:>8} {:>9} {:>7} {:>7} {:>10} {:>10} {:>6}",
        "RAM",
        "disk",
        "policy",
        "saved %",
        "of bound",
        "RAM %",
        "disk %",
        "spilled",
        "restored",
        "s"
    );
    for row in &report.results {
        println!(
            "{:>10} {:>10}  {:9} {:8.2} {:8.1} % {:7.2} {:7.2} {:>10} {:>10} {:6.1}",
            show(row.ram_bytes),
            show(row.disk_bytes),
            row.policy,
            row.saved_share * 100.0,
            row.bound_share * 100.0,
            row.ram_hit_share * 100.0,
            row.disk_hit_share * 100.0,
            show(row.spilled_bytes),
            show(row.restored_bytes),
            row.seconds,
        );
    }
}

/// Room of RAM and disk, as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    ram: Amount,
    disk: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Bytes(u64),
    /// Of the distinct blocks of the trace.
    Share(f64),
}

impl Room {
    fn blocks(self, distinct: usize, block_bytes: u64) -> Sizes {
        let of = |amount| match amount {
            Amount::Bytes(bytes) => usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX),
            Amount::Share(share) => (distinct as f64 * share) as usize,
        };
        Sizes {
            ram_blocks: of(self.ram),
            disk_blocks: of(self.disk),
        }
    }
}

/// `2%`, `64GiB`, `2%+10%` or `64GiB+1TiB`: RAM, and disk beside it.
pub fn parse_room(text: &str) -> Result<Room, String> {
    let amount = |text: &str| match text.trim().strip_suffix('%') {
        Some(percent) => percent
            .parse::<f64>()
            .ok()
            .filter(|p| (0.0..=100.0).contains(p))
            .map(|p| Amount::Share(p / 100.0))
            .ok_or_else(|| format!("{text:?} is not between 0% and 100%")),
        None => crate::bytes::parse(text).map(Amount::Bytes),
    };
    let (ram, disk) = text.split_once('+').unwrap_or((text, "0"));
    Ok(Room {
        ram: amount(ram)?,
        disk: amount(disk)?,
    })
}

/// The name of a policy.
pub fn parse_policy(name: &str) -> Result<String, String> {
    if POLICIES.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(format!("the policies are {}", POLICIES.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_in_shares_and_bytes() {
        let blocks = |text: &str| {
            let sizes = parse_room(text).expect(text).blocks(1000, 1 << 20);
            (sizes.ram_blocks, sizes.disk_blocks)
        };
        assert_eq!(blocks("2%"), (20, 0));
        assert_eq!(blocks("0.5%+10%"), (5, 100));
        assert_eq!(blocks("64MiB + 1GiB"), (64, 1024));
        for bad in ["", "101%", "x%", "1%+", "two"] {
            assert!(parse_room(bad).is_err(), "{bad}");
        }
        assert!(parse_policy("lru").is_ok() && parse_policy("mru").is_err());
    }
}
