//! `neap bench restore`: time to the first token of a conversation that was pushed to disk, and of one
//! that a restart cut off, beside computing it anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use neap_engine::{Request, SamplingParams};
use neap_memory::Namespace;
use neap_memory::disk::{Directory, DiskOptions, DiskStore};
use neap_memory::session::{KeepOptions, Sessions};
use serde::{Deserialize, Serialize};

use crate::args::BenchRestoreArgs;
use crate::bytes::show;
use crate::failure::Failure;
use crate::generate::{clock_ms, generate};
use crate::loading::{self, Below, Loaded};

const SESSION: &str = "bench";
/// Room on disk: more than any context takes.
const DISK_LIMIT_BYTES: u64 = 64 << 30;

/// One way to the first token.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Way {
    first_token_ms: f64,
    /// Tokens that needed no computing.
    cached_tokens: usize,
    /// The token that came first: the same on every way.
    token: u32,
}

#[derive(Serialize)]
struct Report {
    model: String,
    tokens: usize,
    /// Bytes of all records on disk.
    stored_bytes: u64,
    /// Until all blocks and the session were on stable storage.
    spill_ms: f64,
    /// Whether the system's page cache was emptied of the files before each reading.
    dropped_page_cache: bool,
    recomputed: Way,
    from_disk: Way,
    after_restart: Way,
    /// How much sooner than recomputing.
    from_disk_ratio: f64,
    after_restart_ratio: f64,
}

pub fn run(args: &BenchRestoreArgs) -> Result<(), Failure> {
    if args.resume {
        return resume(args);
    }
    let own = std::env::temp_dir().join(format!("neap-bench-restore-{}", std::process::id()));
    let folder = args.disk.clone().unwrap_or_else(|| own.clone());
    let report = measure(args, &folder);
    if args.disk.is_none() {
        let _ = std::fs::remove_dir_all(&own);
    }
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn measure(args: &BenchRestoreArgs, folder: &Path) -> Result<Report, Failure> {
    let disk = open_disk(folder)?;
    let mut loaded = load(args, &disk)?;
    let prompt = prompt(&loaded, args.tokens);
    let recomputed = first_token(&mut loaded, &prompt)?;
    let spill_ms = keep(&mut loaded, &disk, &prompt)?;
    let stored_bytes = disk.stats().bytes;
    // Out of RAM: what is on disk is let go of.
    loaded.engine.clear_cache();
    let dropped_page_cache = drop_page_cache(folder);
    let from_disk = first_token(&mut loaded, &prompt)?;
    let model = loaded.name.clone();
    drop(loaded);
    drop(disk);
    drop_page_cache(folder);
    let after_restart = restart(args, folder)?;
    for way in [&from_disk, &after_restart] {
        if way.token != recomputed.token {
            return Err(Failure::new(format!(
                "the first token is {} where computing gave {}: what came back is not what was stored",
                way.token, recomputed.token
            )));
        }
    }
    Ok(Report {
        model,
        tokens: args.tokens,
        stored_bytes,
        spill_ms,
        dropped_page_cache,
        from_disk_ratio: recomputed.first_token_ms / from_disk.first_token_ms,
        after_restart_ratio: recomputed.first_token_ms / after_restart.first_token_ms,
        recomputed,
        from_disk,
        after_restart,
    })
}

fn open_disk(folder: &Path) -> Result<Arc<DiskStore>, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("{} can't be used: {why}", folder.display()))
    };
    let storage = Directory::open(folder).map_err(|why| failed(&why))?;
    let options = DiskOptions::with_limit(DISK_LIMIT_BYTES);
    let disk = DiskStore::open(Arc::new(storage), options).map_err(|why| failed(&why))?;
    Ok(Arc::new(disk))
}

fn load(args: &BenchRestoreArgs, disk: &Arc<DiskStore>) -> Result<Loaded, Failure> {
    let below = Below {
        disk: Some(Arc::clone(disk)),
        remote: None,
    };
    loading::load(&args.model, 1, &below)
}

/// Pseudo-random tokens, the same in every process.
fn prompt(loaded: &Loaded, tokens: usize) -> Vec<u32> {
    let vocab = loaded.tokenizer.vocab_size() as u64;
    let mut random = 1u64;
    (0..tokens)
        .map(|_| {
            // xorshift64* (Vigna 2016).
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) as u32 % vocab as u32
        })
        .collect()
}

fn first_token(loaded: &mut Loaded, prompt: &[u32]) -> Result<Way, Failure> {
    let request = Request {
        prompt: prompt.to_vec(),
        max_new_tokens: Some(1),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        ignore_stop_ids: true,
        ..Request::default()
    };
    let outcome = generate(&mut loaded.engine, request, "", |_| Ok(()))?;
    let token = outcome
        .tokens
        .first()
        .copied()
        .ok_or_else(|| Failure::new(format!("there was no first token: {}", outcome.reason)))?;
    Ok(Way {
        first_token_ms: outcome.first_token.as_secs_f64() * 1e3,
        cached_tokens: outcome.usage.cached_tokens,
        token,
    })
}

/// Makes the conversation a session; gives the milliseconds until it was acknowledged.
fn keep(loaded: &mut Loaded, disk: &Arc<DiskStore>, tokens: &[u32]) -> Result<f64, Failure> {
    let block_tokens = loaded.engine.kv().block_tokens();
    let mut sessions = Sessions::open(disk, loaded.fingerprint, block_tokens);
    let namespace = Namespace::new(&[0; 32], "", &loaded.fingerprint);
    let start = Instant::now();
    sessions.save(
        loaded.engine.cache_mut(),
        (&namespace, SESSION, tokens),
        KeepOptions::default(),
        clock_ms(),
    )?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The same request in a process of its own.
fn restart(args: &BenchRestoreArgs, folder: &Path) -> Result<Way, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "restore", "--resume", "--tokens"]);
    command.arg(args.tokens.to_string());
    command.arg("--disk").arg(folder);
    let model = &args.model;
    if let Some(path) = &model.model {
        command.arg("--model").arg(path);
    }
    for (flag, value) in [
        ("--memory", model.memory),
        ("--threads", model.threads.map(u64::from)),
        ("--context", model.context.map(|c| c as u64)),
        ("--chunk", Some(u64::from(model.chunk))),
    ] {
        if let Some(value) = value {
            command.arg(flag).arg(value.to_string());
        }
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(Failure::new(format!(
            "the second process failed: {}",
            output.status
        )));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The second process: prints its way to the first token as JSON.
fn resume(args: &BenchRestoreArgs) -> Result<(), Failure> {
    let folder = args.disk.clone().unwrap_or_default();
    let disk = open_disk(&folder)?;
    let mut loaded = load(args, &disk)?;
    let prompt = prompt(&loaded, args.tokens);
    let way = first_token(&mut loaded, &prompt)?;
    println!("{}", serde_json::to_string(&way)?);
    Ok(())
}

fn print(report: &Report) {
    println!(
        "{}, a conversation of {} tokens: {} on disk, acknowledged after {:.0} ms",
        report.model,
        report.tokens,
        show(report.stored_bytes),
        report.spill_ms
    );
    if !report.dropped_page_cache {
        println!("the page cache could not be emptied: what is read may never have left RAM");
    }
    for (name, way, ratio) in [
        ("computed anew", &report.recomputed, 1.0),
        ("from disk", &report.from_disk, report.from_disk_ratio),
        (
            "after a restart",
            &report.after_restart,
            report.after_restart_ratio,
        ),
    ] {
        println!(
            "{name:16} first token after {:9.1} ms  {ratio:6.1} x  {} tokens from cache",
            way.first_token_ms, way.cached_tokens
        );
    }
}

/// Has the system forget the files' pages, by the one program that can be asked to; whether it did.
pub fn drop_page_cache(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    let files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.iter().filter(|path| path.is_file()).all(|path| {
        // GNU dd: with `nocache` and no blocks it drops the whole file's pages.
        let mut input = std::ffi::OsString::from("if=");
        input.push(path);
        let mut dd = Command::new("dd");
        dd.arg(input).args(["iflag=nocache", "count=0"]);
        let status = dd.stdin(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success())
    })
}
