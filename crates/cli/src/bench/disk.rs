//! `neap bench disk`: what the disk level writes and reads a second, beside `dd` with direct I/O on the
//! same file system.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use neap_memory::disk::format::{Kind, payload_checksum};
use neap_memory::disk::{Directory, DirectoryOptions, DiskOptions, DiskStore, Meta, Prefetch};
use neap_memory::{BlockHash, Budget, Fingerprint};
use serde::Serialize;

use super::restore::drop_page_cache;
use crate::args::BenchDiskArgs;
use crate::failure::Failure;

/// What `dd` reads and writes at once.
const DD_BLOCK_BYTES: u64 = 4 << 20;

#[derive(Serialize)]
struct Row {
    what: String,
    mb_per_s: f64,
    /// Of what `dd` did in this run.
    dd_share: Option<f64>,
}

pub fn run(args: &BenchDiskArgs) -> Result<(), Failure> {
    let folder = args
        .disk
        .join(format!("neap-bench-disk-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let rows = measure(args, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    let rows = rows?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    for row in &rows {
        let share = row
            .dd_share
            .map_or_else(String::new, |s| format!("{:5.0} % of dd", s * 100.0));
        println!("{:28} {:8.0} MB/s  {share}", row.what, row.mb_per_s);
    }
    Ok(())
}

/// Best speeds in MB/s.
#[derive(Default)]
struct Best {
    dd_write: Option<f64>,
    dd_read: Option<f64>,
    checksum: Option<f64>,
    spill: Option<f64>,
    restore: Vec<Option<f64>>,
}

/// `dd` and the disk level take turns, so that a disk which is slow for a while is slow for both.
fn measure(args: &BenchDiskArgs, folder: &Path) -> Result<Vec<Row>, Failure> {
    let mut got = Best {
        restore: vec![None; args.in_flight.len()],
        ..Best::default()
    };
    for round in 0..args.repeat {
        let (write, read) = dd(args, folder);
        got.dd_write = best(got.dd_write, write);
        got.dd_read = best(got.dd_read, read);
        got.checksum = best(got.checksum, Some(checksum(args)));
        let blocks = folder.join(format!("blocks-{round}"));
        let options = DirectoryOptions {
            is_direct: !args.buffered,
            ..DirectoryOptions::default()
        };
        let storage = Directory::open_with(&blocks, options)?;
        let store = DiskStore::open(Arc::new(storage), DiskOptions::with_limit(args.bytes * 4))?;
        store.charge_to(&Budget::new(u64::MAX / 2));
        let store = Arc::new(store);
        got.spill = best(got.spill, Some(write_blocks(args, &store)?));
        for (speed, &in_flight) in got.restore.iter_mut().zip(&args.in_flight) {
            if args.buffered && !drop_page_cache(&blocks) {
                eprintln!(
                    "neap: the page cache could not be emptied: reads may never have left RAM"
                );
            }
            *speed = best(*speed, Some(read_blocks(args, &store, in_flight)?));
        }
        drop(store);
        std::fs::remove_dir_all(&blocks)?;
    }
    Ok(rows(args, &got))
}

fn rows(args: &BenchDiskArgs, got: &Best) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(row("dd, direct, write", got.dd_write, None));
    rows.extend(row("spill, synced", got.spill, got.dd_write));
    rows.extend(row("dd, direct, read", got.dd_read, None));
    for (&speed, in_flight) in got.restore.iter().zip(&args.in_flight) {
        let what = format!("restore, {in_flight} in flight");
        rows.extend(row(&what, speed, got.dd_read));
    }
    rows.extend(row("checksum, one thread", got.checksum, None));
    rows
}

/// What the checksum of every block allows one thread, in MB/s.
fn checksum(args: &BenchDiskArgs) -> f64 {
    let payload = payload(args);
    let blocks = (args.bytes / args.block_bytes).clamp(1, 256);
    let start = Instant::now();
    for _ in 0..blocks {
        std::hint::black_box(payload_checksum(std::hint::black_box(&payload)));
    }
    (blocks * args.block_bytes) as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn best(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

fn row(what: &str, mb_per_s: Option<f64>, dd: Option<f64>) -> Option<Row> {
    mb_per_s.map(|mb_per_s| Row {
        what: what.to_owned(),
        mb_per_s,
        dd_share: dd.map(|dd| mb_per_s / dd),
    })
}

/// Writes and reads one file by `dd`, in MB/s; `None` where it is not there or has no direct I/O.
fn dd(args: &BenchDiskArgs, folder: &Path) -> (Option<f64>, Option<f64>) {
    let file = folder.join("dd");
    let count = format!("count={}", args.bytes / DD_BLOCK_BYTES);
    let block = format!("bs={DD_BLOCK_BYTES}");
    let path = |what: &str| {
        let mut argument = std::ffi::OsString::from(what);
        argument.push(&file);
        argument
    };
    let timed = |command: &mut Command| {
        let start = Instant::now();
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.stderr(Stdio::null()).status().ok()?;
        let bytes = args.bytes / DD_BLOCK_BYTES * DD_BLOCK_BYTES;
        status
            .success()
            .then(|| bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
    };
    let mut dd = Command::new("dd");
    dd.arg("if=/dev/zero")
        .arg(path("of="))
        .args([&block, &count]);
    let write = timed(dd.args(["oflag=direct", "conv=fsync"]));
    let mut dd = Command::new("dd");
    dd.arg("of=/dev/null")
        .arg(path("if="))
        .args([&block, &count]);
    let read = timed(dd.arg("iflag=direct"));
    let _ = std::fs::remove_file(file);
    (write, read)
}

fn key(block: u64) -> BlockHash {
    BlockHash::from_bytes([0; 32]).child(&[block as u32])
}

fn fingerprint() -> Fingerprint {
    Fingerprint::of_parts(&[("model", b"bench")])
}

/// Not all zeros: some disks compress.
fn payload(args: &BenchDiskArgs) -> Vec<u8> {
    (0..args.block_bytes)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

/// Until everything is on stable storage.
fn write_blocks(args: &BenchDiskArgs, store: &DiskStore) -> Result<f64, Failure> {
    let meta = Meta {
        codec: 0,
        payload_bytes: args.block_bytes,
        hot_bytes: args.block_bytes,
        tokens: 32,
        fingerprint: fingerprint(),
    };
    let mut payload = payload(args);
    let blocks = args.bytes / args.block_bytes;
    let start = Instant::now();
    for block in 0..blocks {
        payload[..8].copy_from_slice(&block.to_le_bytes());
        store.put(Kind::Block, key(block), &meta, &payload)?;
    }
    store.sync()?;
    Ok((blocks * args.block_bytes) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn read_blocks(
    args: &BenchDiskArgs,
    store: &Arc<DiskStore>,
    in_flight: usize,
) -> Result<f64, Failure> {
    let blocks = args.bytes / args.block_bytes;
    let keys: Vec<BlockHash> = (0..blocks).map(key).collect();
    let budget = Budget::new(u64::MAX / 2);
    let start = Instant::now();
    let mut found = 0;
    for fetched in Prefetch::start(store, &budget, fingerprint(), &keys, in_flight)? {
        found += u64::from(fetched.payload.is_some());
    }
    let seconds = start.elapsed().as_secs_f64();
    if found < blocks {
        return Err(Failure::new(format!(
            "of {blocks} blocks {found} came back"
        )));
    }
    Ok((blocks * args.block_bytes) as f64 / 1e6 / seconds)
}
