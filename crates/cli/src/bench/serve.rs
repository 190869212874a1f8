//! `neap bench serve`: loads a server that speaks OpenAI's API, and says how it held up.
//!
//! The load is open: requests are sent when they are due, however slow the answers are, as users do. Each conversation
//! is a thread that mostly waits.

mod client;
mod record;
pub mod workload;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{Open, Talk};
use neap_memory::resident::rss_bytes_of;
use neap_sim::trace;
use record::{Goals, Record, Resident, Sample};
use workload::{Conversation, Shape};

use crate::args::BenchServeArgs;
use crate::failure::Failure;
use crate::http::Target;

/// How often the resident memory is looked at.
const RSS_EVERY: Duration = Duration::from_millis(100);
/// Conversations at most: each is a thread.
const MAX_CONVERSATIONS: usize = 20_000;

pub fn run(args: &BenchServeArgs) -> Result<(), Failure> {
    let timeout = Duration::from_secs(args.timeout);
    let target = Target::parse(&args.url, args.api_key.clone(), timeout).map_err(Failure::new)?;
    let mut talk = Talk {
        model: match &args.model_name {
            Some(name) => name.clone(),
            None => first_model(&target)?,
        },
        target,
        words_per_token: 0.75,
        prefix_tokens: args.prefix_tokens,
        ignore_eos: args.ignore_eos,
        seed: args.seed,
    };
    talk.calibrate();
    let conversations = conversations(args)?;
    let resident_of = |pid| {
        let untold = || Failure::new(format!("--pid {pid}: the system tells no resident memory"));
        rss_bytes_of(pid).ok_or_else(untold)
    };
    let rss_before = args.pid.map(resident_of).transpose()?;
    if args.warm {
        let warmed = talk.warm(args.prefixes.max(1));
        warmed.map_err(|why| Failure::new(format!("the common beginning was refused: {why}")))?;
    }
    let begin = Instant::now();
    let (samples, peak) = load(&talk, &conversations, args);
    let wall_s = begin.elapsed().as_secs_f64();
    let resident = match (args.pid, rss_before) {
        (Some(pid), Some(before)) => {
            std::thread::sleep(Duration::from_secs(args.settle));
            let after = resident_of(pid)?;
            Some(Resident {
                before,
                peak: peak.max(after),
                after,
            })
        }
        _ => None,
    };
    let goals = Goals {
        ttft_ms: args.goal_ttft,
        itl_ms: args.goal_itl,
    };
    let record = Record::of(&talk.model, &samples, wall_s, goals, resident);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else {
        record.print();
    }
    Ok(())
}

fn conversations(args: &BenchServeArgs) -> Result<Vec<Conversation>, Failure> {
    let conversations = match &args.trace {
        Some(path) => {
            let trace = trace::read_lengths(path).map_err(|e| Failure::new(e.to_string()))?;
            workload::of_trace(&trace, args.speed)
        }
        None => Shape {
            conversations: args.conversations,
            rate: args.rate,
            turns: args.turns,
            pause_s: args.pause,
            first_tokens: args.prompt_tokens,
            next_tokens: args.next_tokens,
            answer_tokens: args.max_tokens,
            prefixes: args.prefixes,
            seed: args.seed,
        }
        .make(),
    };
    let most = args.limit.unwrap_or(usize::MAX).min(MAX_CONVERSATIONS);
    Ok(conversations.into_iter().take(most).collect())
}

fn first_model(target: &Target) -> Result<String, Failure> {
    let answer = target.whole("GET", "/v1/models", None);
    let (status, body) =
        answer.map_err(|why| Failure::new(format!("the server does not answer: {why}")))?;
    let models: Option<serde_json::Value> = serde_json::from_str(&body).ok();
    let id = models.and_then(|m| Some(m.pointer("/data/0/id")?.as_str()?.to_owned()));
    id.ok_or_else(|| Failure::new(format!("/v1/models says {status}: give --model-name")))
}

/// Sends everything when it is due; gives what came of it and the most resident memory that was seen.
fn load(talk: &Talk, conversations: &[Conversation], args: &BenchServeArgs) -> (Vec<Sample>, u64) {
    let samples = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    let together = args.together.then(|| Barrier::new(conversations.len()));
    let begin = Instant::now();
    let mut peak = 0;
    std::thread::scope(|scope| {
        let watching = args.pid.map(|pid| {
            let is_over = &is_over;
            scope.spawn(move || watch(pid, is_over))
        });
        let mut talking = Vec::with_capacity(conversations.len());
        for (index, conversation) in conversations.iter().enumerate() {
            let due = begin + Duration::from_secs_f64(conversation.at_s);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (samples, together) = (&samples, together.as_ref());
            talking.push(
                scope.spawn(move || converse(talk, (index, conversation), together, samples)),
            );
        }
        for thread in talking {
            let _ = thread.join();
        }
        is_over.store(true, Ordering::Relaxed);
        peak = watching.and_then(|w| w.join().ok()).unwrap_or(0);
    });
    let samples = samples.into_inner().unwrap_or_else(PoisonError::into_inner);
    (samples, peak)
}

fn converse(
    talk: &Talk,
    (index, conversation): (usize, &Conversation),
    together: Option<&Barrier>,
    samples: &Mutex<Vec<Sample>>,
) {
    let mut open = Open::new(talk, index, conversation);
    let mut has_failed = false;
    for (number, turn) in conversation.turns.iter().enumerate() {
        if number > 0 {
            // All have had their answer before any asks again.
            together.map(Barrier::wait);
            std::thread::sleep(Duration::from_secs_f64(turn.pause_s));
        }
        // A conversation whose answer is missing has no next turn, but the others wait for its thread.
        if has_failed && together.is_none() {
            return;
        }
        if !has_failed {
            let sample = open.ask(number, turn);
            has_failed = sample.error.is_some();
            let mut all = samples.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(sample);
        }
    }
}

/// The most resident memory that a process has until this is over.
fn watch(pid: u32, is_over: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !is_over.load(Ordering::Relaxed) {
        peak = peak.max(rss_bytes_of(pid).unwrap_or(0));
        std::thread::sleep(RSS_EVERY);
    }
    peak
}
