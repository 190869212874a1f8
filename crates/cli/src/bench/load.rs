//! `neap bench load`: clients that behave badly and a budget that changes, and what must hold all the same.

mod job;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::serve::workload::Random;
use crate::args::BenchLoadArgs;
use crate::bytes::show;
use crate::client::Client;
use crate::failure::Failure;
use crate::http::Target;
use job::{Kind, Outcome, Questions};

/// How often the server's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time for a server to become idle, and to empty its cache.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer that says nothing for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Failures that are told at most.
const FAILURES_TOLD: usize = 5;

pub fn run(args: &BenchLoadArgs) -> Result<(), Failure> {
    let target = Target::parse(&args.url, args.api_key.clone(), TIMEOUT).map_err(Failure::new)?;
    let admin = Client::new(&args.url, args.admin_key.as_deref())?;
    let before = admin.get("/memory")?;
    let model = before["model"].as_str().unwrap_or_default();
    let questions = Questions::new(target, model, args.seed);
    let capacity_per_s = capacity(&questions, args)?;
    let load = Load {
        questions: &questions,
        admin: &admin,
        args,
        tally: Mutex::default(),
        looks: Mutex::default(),
        is_over: AtomicBool::new(false),
        full_bytes: number(&before, "/budget/limit_bytes"),
    };
    let rate = capacity_per_s * args.share;
    load.everything(rate);
    let mut record = load.record(capacity_per_s, rate, &before)?;
    record.check(args.growth);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else {
        record.print();
    }
    match record.broken.len() {
        0 => Ok(()),
        _ => Err(Failure::new(record.broken.join("; "))),
    }
}

fn number(value: &Value, at: &str) -> u64 {
    value.pointer(at).and_then(Value::as_u64).unwrap_or(0)
}

/// Requests a second that well-behaved clients get answered, all asking again at once.
fn capacity(questions: &Questions, args: &BenchLoadArgs) -> Result<f64, Failure> {
    let end = Instant::now() + Duration::from_secs(args.measure);
    let begin = Instant::now();
    let (mut done, mut failure) = (0, None);
    std::thread::scope(|scope| {
        let client = |index: usize| {
            let mut random = Random::new(args.seed ^ 1 << 50 ^ index as u64);
            let mut done = 0;
            while Instant::now() < end {
                match questions.ask(Kind::Plain, &mut random) {
                    Outcome::Done(_) => done += 1,
                    outcome => return Err(format!("{outcome:?}")),
                }
            }
            Ok(done)
        };
        let clients: Vec<_> = (0..args.clients)
            .map(|index| scope.spawn(move || client(index)))
            .collect();
        for client in clients {
            match client.join() {
                Ok(Ok(some)) => done += some,
                Ok(Err(why)) => failure = Some(why),
                Err(_) => failure = Some("a client broke".into()),
            }
        }
    });
    match failure {
        Some(why) => Err(Failure::new(format!(
            "the capacity can't be measured: {why}"
        ))),
        None => Ok(f64::from(done) / begin.elapsed().as_secs_f64()),
    }
}

/// What was seen of the server at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    is_full: bool,
    /// Resident memory less what is charged.
    beyond_bytes: i64,
    rss_bytes: u64,
}

#[derive(Default)]
struct Tally {
    by_kind: BTreeMap<String, u64>,
    answer_tokens: u64,
    failures: u64,
    told: Vec<String>,
    shrink_ms: Vec<f64>,
}

struct Load<'a> {
    questions: &'a Questions,
    admin: &'a Client,
    args: &'a BenchLoadArgs,
    tally: Mutex<Tally>,
    looks: Mutex<Vec<Look>>,
    is_over: AtomicBool,
    full_bytes: u64,
}

impl Load<'_> {
    /// Clients, budget and looks, until the time is over and the last has ended.
    fn everything(&self, rate: f64) {
        let (jobs, inbox) = sync_channel(self.args.clients);
        let inbox = Mutex::new(inbox);
        std::thread::scope(|scope| {
            scope.spawn(|| self.change_budget());
            scope.spawn(|| self.look());
            for index in 0..self.args.clients {
                let inbox = &inbox;
                scope.spawn(move || self.client(inbox, index as u64));
            }
            self.pace(rate, &jobs);
            drop(jobs);
            self.is_over.store(true, Ordering::Relaxed);
        });
    }

    /// Hands jobs out at random times. Where all clients are busy, those that are due wait.
    fn pace(&self, rate: f64, jobs: &SyncSender<Kind>) {
        let mut random = Random::new(self.args.seed);
        let begin = Instant::now();
        let mut due_s = 0.0;
        while due_s < self.args.seconds as f64 {
            let due = begin + Duration::from_secs_f64(due_s);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if begin.elapsed().as_secs() >= self.args.seconds
                || jobs.send(Kind::draw(&mut random)).is_err()
            {
                return;
            }
            due_s += random.exponential(1.0 / rate);
        }
    }

    fn client(&self, inbox: &Mutex<Receiver<Kind>>, index: u64) {
        let mut random = Random::new(self.args.seed ^ 1 << 51 ^ index);
        loop {
            let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(kind) = next else {
                return;
            };
            let outcome = self.questions.ask(kind, &mut random);
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            let name = match &outcome {
                Outcome::Refused(status) => format!("refused with {status}"),
                _ => format!("{kind:?}").to_lowercase(),
            };
            *tally.by_kind.entry(name).or_default() += 1;
            match outcome {
                Outcome::Done(tokens) => tally.answer_tokens += tokens,
                Outcome::Failed(why) => {
                    tally.failures += 1;
                    if tally.told.len() < FAILURES_TOLD {
                        tally.told.push(format!("{kind:?}: {why}"));
                    }
                }
                Outcome::Left | Outcome::Refused(_) => {}
            }
        }
    }

    /// Down and up, and how long the server takes to hold no more than it may.
    fn change_budget(&self) {
        let low_bytes = (self.full_bytes as f64 * self.args.low) as u64;
        let mut is_low = false;
        let mut next = Instant::now();
        while !self.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + Duration::from_secs(self.args.change_every);
            is_low = !is_low;
            let bytes = if is_low { low_bytes } else { self.full_bytes };
            let begin = Instant::now();
            let mut held = self.set_budget(bytes);
            while let Ok(memory) = &held
                && number(memory, "/budget/charged_bytes") > bytes
                && begin.elapsed() < PATIENCE
            {
                std::thread::sleep(Duration::from_millis(10));
                held = self.admin.get("/memory").map_err(Failure::into_message);
            }
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            match held {
                Ok(_) if is_low => tally.shrink_ms.push(begin.elapsed().as_secs_f64() * 1e3),
                Ok(_) => {}
                Err(why) => {
                    tally.failures += 1;
                    tally
                        .told
                        .push(format!("the budget of {bytes} bytes: {why}"));
                }
            }
        }
        let _ = self.set_budget(self.full_bytes);
    }

    fn set_budget(&self, bytes: u64) -> Result<Value, String> {
        let body = json!({"bytes": bytes});
        let set = self.admin.put("/memory/budget", &body);
        set.map_err(Failure::into_message)
    }

    fn look(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            if let Ok(memory) = self.admin.get("/memory") {
                let rss_bytes = number(&memory, "/rss_bytes");
                let charged = number(&memory, "/budget/charged_bytes");
                let look = Look {
                    is_full: number(&memory, "/budget/limit_bytes") == self.full_bytes,
                    beyond_bytes: rss_bytes as i64 - charged as i64,
                    rss_bytes,
                };
                let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
                looks.push(look);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until `wanted` holds of the server's memory; gives what it is then, or at last.
    fn settled(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            let memory = self.admin.get("/memory")?;
            if wanted(&memory) || Instant::now() > end {
                return Ok(memory);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn record(&self, capacity_per_s: f64, rate: f64, before: &Value) -> Result<Record, Failure> {
        let idle = |m: &Value| number(m, "/engine/running") + number(m, "/engine/waiting") == 0;
        let after = self.settled(idle)?;
        // What a budget without room leaves is what somebody forgot to give back.
        let least = number(&after, "/budget/least_bytes");
        self.set_budget(least).map_err(Failure::new)?;
        let block_bytes = number(&after, "/pool/block_bytes");
        let emptied = self.settled(|m| number(m, "/pool/held_bytes") <= block_bytes)?;
        self.set_budget(self.full_bytes).map_err(Failure::new)?;
        let since = |at: &str| number(&after, at).saturating_sub(number(before, at));
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = quarters(&looks);
        Ok(Record {
            capacity_per_s,
            rate_per_s: rate,
            requests: tally.by_kind.clone(),
            answer_tokens: tally.answer_tokens,
            failures: tally.failures,
            told: tally.told.clone(),
            shrinks: tally.shrink_ms.len(),
            slowest_shrink_ms: tally.shrink_ms.iter().copied().fold(0.0, f64::max),
            preemptions: since("/engine/preemptions"),
            packed_blocks: since("/cache/packed_blocks"),
            spilled_blocks: since("/cache/spilled_blocks"),
            dropped_blocks: since("/cache/dropped_blocks"),
            peak_rss_bytes: looks.iter().map(|l| l.rss_bytes).max().unwrap_or(0),
            beyond_first_bytes: first,
            beyond_last_bytes: last,
            still_running: number(&after, "/engine/running") + number(&after, "/engine/waiting"),
            left_bytes: number(&emptied, "/pool/held_bytes"),
            block_bytes,
            broken: Vec::new(),
        })
    }
}

/// Medians of the resident memory beyond what is charged, in the first and the last quarter, at the full budget.
fn quarters(looks: &[Look]) -> (i64, i64) {
    let median = |looks: &[Look]| {
        let full = looks.iter().filter(|l| l.is_full);
        let mut bytes: Vec<i64> = full.map(|l| l.beyond_bytes).collect();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).copied().unwrap_or(0)
    };
    let quarter = looks.len() / 4;
    (
        median(&looks[..quarter]),
        median(&looks[looks.len() - quarter..]),
    )
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Record {
    capacity_per_s: f64,
    rate_per_s: f64,
    /// Requests by how their clients behaved, or how they were refused.
    requests: BTreeMap<String, u64>,
    answer_tokens: u64,
    failures: u64,
    told: Vec<String>,
    shrinks: usize,
    slowest_shrink_ms: f64,
    preemptions: u64,
    packed_blocks: u64,
    spilled_blocks: u64,
    dropped_blocks: u64,
    peak_rss_bytes: u64,
    beyond_first_bytes: i64,
    beyond_last_bytes: i64,
    still_running: u64,
    /// Bytes of blocks held when nothing runs and the budget has room for one block.
    left_bytes: u64,
    block_bytes: u64,
    /// What did not hold.
    broken: Vec<String>,
}

impl Record {
    fn check(&mut self, growth_bytes: u64) {
        let mut broken = Vec::new();
        if self.failures > 0 {
            broken.push(format!("{} requests failed", self.failures));
        }
        if self.still_running > 0 {
            broken.push(format!("{} requests did not end", self.still_running));
        }
        if self.left_bytes > self.block_bytes {
            broken.push(format!("{} of blocks are lost", show(self.left_bytes)));
        }
        let growth = self.beyond_last_bytes - self.beyond_first_bytes;
        if growth > growth_bytes as i64 {
            broken.push(format!("resident memory grew by {growth} bytes"));
        }
        if self.shrinks > 0 && self.preemptions + self.dropped_blocks + self.spilled_blocks == 0 {
            broken.push("the lower budget was never felt: lower the server's --memory".to_owned());
        }
        self.broken = broken;
    }

    fn print(&self) {
        println!(
            "capacity {:.2} requests/s, asked for {:.2}; {} tokens answered",
            self.capacity_per_s, self.rate_per_s, self.answer_tokens
        );
        for (kind, count) in &self.requests {
            println!("  {kind:<18} {count:>7}");
        }
        println!(
            "failures {}; {} shrinks, the slowest within its budget after {:.0} ms; {} preemptions; blocks: {} packed, \
             {} spilled, {} dropped",
            self.failures,
            self.shrinks,
            self.slowest_shrink_ms,
            self.preemptions,
            self.packed_blocks,
            self.spilled_blocks,
            self.dropped_blocks
        );
        println!(
            "RSS at most {}; beyond what is charged {:.1} MiB in the first quarter, {:.1} MiB in the last; {} of blocks \
             left in an emptied cache",
            show(self.peak_rss_bytes),
            self.beyond_first_bytes as f64 / 1048576.0,
            self.beyond_last_bytes as f64 / 1048576.0,
            show(self.left_bytes)
        );
        for why in &self.told {
            println!("failure: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen_at_the_full_budget_only() {
        let looks: Vec<Look> = (0..40)
            .map(|i| Look {
                is_full: i % 2 == 0,
                beyond_bytes: if i % 2 == 0 { i } else { -1000 },
                rss_bytes: 0,
            })
            .collect();
        assert_eq!(quarters(&looks), (4, 34));
        assert_eq!(quarters(&[]), (0, 0));
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let sound = || Record {
            shrinks: 1,
            preemptions: 1,
            left_bytes: 10,
            block_bytes: 10,
            ..Record::default()
        };
        let broken = |mut record: Record| {
            record.check(100);
            record.broken.len()
        };
        assert_eq!(broken(sound()), 0);
        for record in [
            Record {
                failures: 1,
                ..sound()
            },
            Record {
                still_running: 1,
                ..sound()
            },
            Record {
                left_bytes: 11,
                ..sound()
            },
            Record {
                beyond_last_bytes: 101,
                ..sound()
            },
            Record {
                preemptions: 0,
                ..sound()
            },
        ] {
            assert_eq!(broken(record), 1);
        }
    }
}
