//! `neap memory`: looks at the memory of a running server, and changes its budget.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::args::{MemoryCommand, MemorySetArgs, MemoryShowArgs};
use crate::bytes::show as size;
use crate::client::Client;
use crate::failure::Failure;

/// Decisions and changes that are printed, the latest.
const EVENTS_SHOWN: usize = 5;
/// How often, and how many times at most, `set` looks whether the server is within its new budget: two seconds.
const POLL: Duration = Duration::from_millis(100);
const MOST_POLLS: usize = 20;

pub fn run(command: &MemoryCommand) -> Result<(), Failure> {
    match command {
        MemoryCommand::Show(args) => show(args),
        MemoryCommand::Set(args) => set(args),
    }
}

fn show(args: &MemoryShowArgs) -> Result<(), Failure> {
    let client = Client::new(&args.server.url, args.server.admin_key.as_deref())?;
    loop {
        let memory = client.get("/memory")?;
        let text = match (args.json, args.watch) {
            (true, None) => serde_json::to_string_pretty(&memory)?,
            // One line each, for programs that read along.
            (true, Some(_)) => memory.to_string(),
            (false, _) => table(client.url(), &memory),
        };
        if args.watch.is_some() && !args.json && io::stdout().is_terminal() {
            // To the top left corner of an empty screen.
            print!("\x1b[H\x1b[2J");
        }
        let mut out = io::stdout().lock();
        if writeln!(out, "{}", text.trim_end())
            .and_then(|()| out.flush())
            .is_err()
        {
            // Whoever read it has gone.
            return Ok(());
        }
        drop(out);
        let Some(seconds) = args.watch else {
            return Ok(());
        };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn set(args: &MemorySetArgs) -> Result<(), Failure> {
    let client = Client::new(&args.server.url, args.server.admin_key.as_deref())?;
    let memory = client.put("/memory/budget", &json!({ "bytes": args.budget }))?;
    let memory = settled(memory, |before| {
        if io::stderr().is_terminal() {
            let (limit, charged) = limit_and_charged(before);
            eprint!("\r\x1b[Kneap: {} of {}", size(charged), size(limit));
        }
        std::thread::sleep(POLL);
        client.get("/memory")
    })?;
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&memory)?);
        return Ok(());
    }
    let (limit, charged) = limit_and_charged(&memory);
    println!(
        "the budget is {}, {} of it charged",
        size(limit),
        size(charged)
    );
    for line in remarks(args.budget, &memory) {
        eprintln!("neap: {line}");
    }
    Ok(())
}

/// The memory once it is within its budget, or as it is after [`MOST_POLLS`]: a shrink begins with the server's next
/// step. `next` waits a little and looks again.
fn settled(
    mut memory: Value,
    mut next: impl FnMut(&Value) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    for _ in 0..MOST_POLLS {
        let (limit, charged) = limit_and_charged(&memory);
        if charged <= limit {
            break;
        }
        memory = next(&memory)?;
    }
    Ok(memory)
}

fn limit_and_charged(memory: &Value) -> (u64, u64) {
    let budget = &memory["budget"];
    (
        number(budget, "limit_bytes"),
        number(budget, "charged_bytes"),
    )
}

/// What is not as it was asked for, and why.
fn remarks(asked: u64, memory: &Value) -> Vec<String> {
    let (limit, charged) = limit_and_charged(memory);
    let mut lines = Vec::new();
    if limit != asked {
        let reason = memory["limit_changes"][0]["reason"].as_str();
        lines.push(format!(
            "asked for {}: {}; the server takes it as soon as it can",
            size(asked),
            reason.unwrap_or("the system leaves less")
        ));
    }
    if charged > limit {
        let kinds = memory["budget"]["by_kind"].as_object();
        let mut held: Vec<(u64, &str)> = kinds
            .into_iter()
            .flatten()
            .filter_map(|(kind, bytes)| Some((bytes.as_u64().filter(|&b| b > 0)?, kind.as_str())))
            .collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let held: Vec<String> = held
            .iter()
            .map(|(bytes, kind)| format!("{kind} {}", size(*bytes)))
            .collect();
        let (running, waiting) = (
            number(&memory["engine"], "running"),
            number(&memory["engine"], "waiting"),
        );
        lines.push(format!(
            "{} above the budget are still held ({}), with {running} requests running and {waiting} waiting; they are \
             given back as these go on",
            size(charged - limit),
            held.join(", "),
        ));
    }
    lines
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}

/// What `/memory` tells, for people. Fields that this version does not know are left out, those that a
/// server does not tell are zero.
fn table(url: &str, memory: &Value) -> String {
    let mut out = String::new();
    let model = memory["model"].as_str().unwrap_or("a model");
    let _ = writeln!(out, "{model} at {url}\n");
    budget(&mut out, memory);
    cache(&mut out, memory);
    engine(&mut out, &memory["engine"]);
    events(&mut out, memory);
    out
}

fn row(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "  {name:<18} {text}");
}

fn budget(out: &mut String, memory: &Value) {
    let budget = &memory["budget"];
    let (limit, charged) = (
        number(budget, "limit_bytes"),
        number(budget, "charged_bytes"),
    );
    let share = charged as f64 * 100.0 / limit.max(1) as f64;
    let _ = writeln!(
        out,
        "budget               {} of {} charged ({share:.0} %)",
        size(charged),
        size(limit)
    );
    let kinds = budget["by_kind"].as_object();
    for (kind, bytes) in kinds.into_iter().flatten() {
        let bytes = bytes.as_u64().unwrap_or(0);
        if bytes > 0 {
            let share = bytes as f64 * 100.0 / limit.max(1) as f64;
            row(out, kind, &format!("{:>10}  {share:>3.0} %", size(bytes)));
        }
    }
    for (name, field) in [
        ("soft mark", "soft_limit_bytes"),
        ("least possible", "least_bytes"),
        ("most so far", "peak_charged_bytes"),
    ] {
        row(out, name, &format!("{:>10}", size(number(budget, field))));
    }
    if let Some(rss) = memory["rss_bytes"].as_u64() {
        row(out, "resident set", &format!("{:>10}", size(rss)));
    }
}

fn cache(out: &mut String, memory: &Value) {
    let cache = &memory["cache"];
    let freeable = size(number(cache, "freeable_bytes"));
    let _ = writeln!(
        out,
        "prefix cache         {} blocks, {freeable} could be let go of",
        number(cache, "blocks")
    );
    let empty = Map::new();
    let fields = cache.as_object().unwrap_or(&empty);
    let asked = number(cache, "asked_tokens");
    row(out, "tokens asked for", &format!("{asked:>10}"));
    for (field, value) in fields {
        // Levels come and go with the server's version: every counter of hits is one.
        if let (Some(level), Some(tokens)) = (field.strip_suffix("_hit_tokens"), value.as_u64()) {
            let share = tokens as f64 * 100.0 / asked.max(1) as f64;
            row(
                out,
                &format!("found {level}"),
                &format!("{tokens:>10}  {share:>3.0} %"),
            );
        }
    }
    for (field, value) in fields {
        if let (Some(what), Some(blocks @ 1..)) = (field.strip_suffix("_blocks"), value.as_u64()) {
            row(out, &format!("blocks {what}"), &format!("{blocks:>10}"));
        }
    }
}

fn engine(out: &mut String, engine: &Value) {
    let _ = writeln!(
        out,
        "requests             {} running, {} waiting; {} steps, {} preemptions",
        number(engine, "running"),
        number(engine, "waiting"),
        number(engine, "steps"),
        number(engine, "preemptions"),
    );
}

fn events(out: &mut String, memory: &Value) {
    let list = |field: &str| memory[field].as_array().cloned().unwrap_or_default();
    let changes = list("limit_changes");
    if !changes.is_empty() {
        let _ = writeln!(out, "changes of the budget, latest first");
    }
    for change in changes.iter().take(EVENTS_SHOWN) {
        let _ = writeln!(
            out,
            "  {} to {}: {}",
            size(number(change, "before_bytes")),
            size(number(change, "after_bytes")),
            change["reason"].as_str().unwrap_or("no reason given"),
        );
    }
    let decisions = list("decisions");
    if !decisions.is_empty() {
        let _ = writeln!(out, "decisions of the governor, latest first");
    }
    for decision in decisions.iter().take(EVENTS_SHOWN) {
        let _ = writeln!(out, "  {}", decision_line(decision));
    }
}

fn decision_line(decision: &Value) -> String {
    let mut line = format!(
        "{} wanted, {} freed of {} blocks:",
        size(number(decision, "bytes_to_free")),
        size(number(decision, "frees_bytes")),
        number(decision, "candidates"),
    );
    let empty = Map::new();
    for (field, value) in decision.as_object().unwrap_or(&empty) {
        if let (Some(what), Some(blocks @ 1..)) = (field.strip_suffix("_blocks"), value.as_u64()) {
            let _ = write!(line, " {blocks} {what},");
        }
    }
    line.pop();
    let reason = decision["reason"].as_str().unwrap_or("no reason given");
    let _ = write!(line, "; {reason}");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_every_level_and_reason() {
        let memory = json!({
            "model": "tiny",
            "budget": {"limit_bytes": 1 << 30, "charged_bytes": 1 << 29,
                "by_kind": {"kv": 1 << 28, "io": 0}, "least_bytes": 1 << 20},
            "cache": {"blocks": 7, "asked_tokens": 200, "hot_hit_tokens": 50, "int8_hit_tokens": 10,
                "spilled_blocks": 3, "failed_blocks": 0},
            "engine": {"running": 2, "waiting": 1},
            "decisions": [{"bytes_to_free": 1024, "frees_bytes": 2048, "candidates": 9, "packed_blocks": 2,
                "dropped_blocks": 0, "reason": "a request needs room"}],
            "limit_changes": [{"before_bytes": 2048, "after_bytes": 1024, "reason": "set by the operator"}],
        });
        let table = table("http://x", &memory);
        for part in [
            "512.0 MiB of 1.0 GiB charged (50 %)",
            "kv                  256.0 MiB   25 %",
            "found int8                 10    5 %",
            "blocks spilled              3",
            "2 running, 1 waiting",
            "2.0 KiB to 1.0 KiB: set by the operator",
            "1.0 KiB wanted, 2.0 KiB freed of 9 blocks: 2 packed; a request needs room",
        ] {
            assert!(table.contains(part), "{part:?} in\n{table}");
        }
        assert!(
            !table.contains("failed") && !table.contains("\n  io "),
            "{table}"
        );
    }

    fn held(charged: u64) -> Value {
        json!({
            "budget": {"limit_bytes": 1 << 30, "charged_bytes": charged,
                "by_kind": {"weights": 1 << 29, "kv": charged - (1 << 29), "io": 0}},
            "engine": {"running": 2, "waiting": 1},
        })
    }

    #[test]
    fn a_shrink_is_waited_for_and_what_is_left_is_told() {
        let asked = 1 << 30;
        let mut to_come = [3_u64 << 29, asked].into_iter();
        let memory = settled(held(2 << 30), |_| Ok(held(to_come.next().unwrap()))).unwrap();
        assert_eq!(limit_and_charged(&memory), (asked, asked));
        assert_eq!(remarks(asked, &memory), Vec::<String>::new());

        let mut polls = 0;
        let memory = settled(held(2 << 30), |before| {
            polls += 1;
            Ok(before.clone())
        });
        assert_eq!(polls, MOST_POLLS);
        assert_eq!(
            remarks(asked, &memory.unwrap()),
            [
                "1.0 GiB above the budget are still held (kv 1.5 GiB, weights 512.0 MiB), with 2 requests running and 1 \
              waiting; they are given back as these go on"
            ]
        );
        let less = remarks(2 * asked, &held(asked));
        assert!(less[0].contains("the system leaves less"), "{less:?}");
        let gone = settled(held(2 << 30), |_| Err(Failure::new("gone")));
        assert!(gone.is_err());
    }

    #[test]
    fn an_answer_of_another_version_is_no_panic() {
        for memory in [
            json!({}),
            json!([1]),
            json!({"budget": 3, "cache": "x", "decisions": {}}),
        ] {
            assert!(table("u", &memory).contains("budget"));
        }
    }
}
