//! The program as its users run it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn neap(args: &[&str]) -> Output {
    neap_with_input(args, b"")
}

fn neap_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // The program may end before it has read everything.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("the program ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The message of a run that must fail, with exit code 1 and nothing on standard output.
fn failure(args: &[&str], input: &[u8]) -> String {
    let output = neap_with_input(args, input);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert!(message.starts_with("neap: "), "{message}");
    message
}

fn temporary(name: &str, contents: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("neap-cli-{}-{name}", std::process::id()));
    std::fs::write(&path, contents).expect("a temporary file");
    path
}

fn shipped() -> Vec<u8> {
    std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/neap-tiny.gguf"
    ))
    .expect("the shipped model")
}

#[test]
fn continues_a_text_with_the_shipped_model() {
    let output = neap(&[
        "run",
        "Once upon a time",
        "-n",
        "40",
        "--greedy",
        "--ignore-eos",
        "-v",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let story = text(&output.stdout);
    assert!(story.starts_with("Once upon a time"), "{story}");
    assert!(story.split_whitespace().count() > 15, "{story}");
    let report = text(&output.stderr);
    for figure in [
        "prefill:",
        "decode:",
        "time to first token:",
        "peak memory:",
        "40 tokens",
    ] {
        assert!(report.contains(figure), "{figure} in {report}");
    }
}

/// What llama.cpp and the script that trained the model say too (training/check_llama_cpp.py).
#[test]
fn tells_the_story_that_other_engines_tell() {
    let told = text(&neap(&["run", "Once upon a time", "-n", "48", "--greedy"]).stdout);
    let expected = "Once upon a time, there was a little boy named Walter. He liked to sing and dance. One day, \
        Walter woke up early and walked to the lake.";
    assert!(told.starts_with(expected), "{told}");
}

#[test]
fn the_same_text_whatever_the_chunk_the_threads_and_the_packing() {
    let prompt =
        "The code of the blue box is 4821. Sam went to the farm with his father. ".repeat(6);
    let run = |extra: &[&str]| {
        let mut args = vec![
            "run",
            &prompt,
            "-n",
            "30",
            "--greedy",
            "--ignore-eos",
            "--no-echo",
        ];
        args.extend(extra);
        let output = neap(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let expected = run(&[]);
    for extra in [
        &["--chunk", "1"][..],
        &["--chunk", "17", "--threads", "3"],
        &["--threads", "1", "--repack", "never"],
        &["--memory", "40MiB"],
    ] {
        assert_eq!(run(extra), expected, "{extra:?}");
    }
}

#[test]
fn equal_seeds_give_equal_texts() {
    let run = |seed: &str| {
        text(
            &neap(&[
                "run",
                "Once",
                "-n",
                "30",
                "--temperature",
                "1",
                "--seed",
                seed,
            ])
            .stdout,
        )
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn stops_at_a_stop_string() {
    let full = text(
        &neap(&[
            "run",
            "Once upon a time",
            "-n",
            "40",
            "--greedy",
            "--no-echo",
        ])
        .stdout,
    );
    let stop = full
        .split_whitespace()
        .nth(5)
        .expect("a few words")
        .to_owned();
    let cut = text(
        &neap(&[
            "run",
            "Once upon a time",
            "-n",
            "40",
            "--greedy",
            "--no-echo",
            "--stop",
            &stop,
        ])
        .stdout,
    );
    assert_eq!(
        cut.trim_end_matches('\n'),
        &full[..full.find(&stop).expect("it is there")]
    );
}

#[test]
fn reads_the_prompt_from_a_file_and_from_standard_input() {
    let path = temporary("prompt.txt", b"Once upon a time");
    let by_argument = neap(&["run", "Once upon a time", "-n", "8", "--greedy"]).stdout;
    let by_file = neap(&[
        "run",
        "-f",
        path.to_str().expect("UTF-8"),
        "-n",
        "8",
        "--greedy",
    ])
    .stdout;
    let by_input = neap_with_input(&["run", "-n", "8", "--greedy"], b"Once upon a time").stdout;
    assert_eq!(text(&by_file), text(&by_argument));
    assert_eq!(text(&by_input), text(&by_argument));
    let _ = std::fs::remove_file(path);
}

#[test]
fn refuses_bad_prompts_with_a_reason() {
    assert!(failure(&["run"], b"").contains("empty"));
    assert!(failure(&["run"], b"ab\xffcd").contains("offset 2"));
    let long = "hello there ".repeat(3000);
    assert!(failure(&["run"], long.as_bytes()).contains("context holds 2048"));
    assert!(failure(&["run", "hi", "--temperature", "-1"], b"").contains("temperature"));
    assert!(failure(&["run", "hi", "--logit-bias", "99999=1"], b"").contains("logit_bias"));
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_both_figures() {
    let message = failure(&["run", "hi", "--memory", "2MiB"], b"");
    assert!(
        message.contains("needs at least") && message.contains("the budget is 2.0 MiB"),
        "{message}"
    );
}

#[test]
fn a_generation_that_cannot_fit_is_refused_before_it_starts() {
    // Enough for the weights and one block, not for a full context.
    let least = failure(&["run", "hi", "--memory", "1MiB"], b"");
    let mib = least
        .split("--memory ")
        .nth(1)
        .and_then(|t| t.split("MiB").next())
        .expect("advice");
    let message = failure(
        &["run", "hi", "--memory", &format!("{mib}MiB"), "-n", "2000"],
        b"",
    );
    assert!(
        message.contains("bytes of KV cache") && message.contains("raise --memory"),
        "{message}"
    );
    // Without a number of tokens it runs until the budget is used up, and says so.
    let output = neap(&[
        "run",
        "hi",
        "--memory",
        &format!("{mib}MiB"),
        "-n",
        "0",
        "--ignore-eos",
        "--greedy",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("memory budget is used up"),
        "{}",
        text(&output.stderr)
    );
    assert!(output.stdout.len() > 10, "what was produced is kept");
}

#[test]
fn damaged_model_files_are_refused_by_name_and_place() {
    let whole = shipped();
    let cut = temporary("cut.gguf", &whole[..whole.len() / 2]);
    let message = failure(&["run", "hi", "--model", cut.to_str().expect("UTF-8")], b"");
    assert!(
        message.contains("cut.gguf") && message.contains("at byte"),
        "{message}"
    );
    let mut many = whole.clone();
    many[8..16].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let many = temporary("many.gguf", &many);
    let message = failure(&["inspect", many.to_str().expect("UTF-8")], b"");
    assert!(
        message.contains("many.gguf") && message.contains("at byte 8"),
        "{message}"
    );
    let text_file = temporary("text.gguf", b"not a model at all");
    assert!(
        failure(
            &["chat", "--model", text_file.to_str().expect("UTF-8")],
            b""
        )
        .contains("is not a GGUF file")
    );
    assert!(failure(&["inspect", "no/such/file.gguf"], b"").contains("no/such/file.gguf"));
    for path in [cut, many, text_file] {
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn inspects_as_text_and_as_json() {
    let shown = text(&neap(&["inspect", "--context", "1024", "--batch", "2", "--tensors"]).stdout);
    for part in [
        "architecture   llama",
        "blk.0.attn_q.weight",
        "memory for 2 sequence(s) of 1024 tokens",
        "total",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let json = neap(&["inspect", "--json"]).stdout;
    let value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(value["architecture"], "llama");
    assert_eq!(value["memory"]["context"], 2048);
}

#[test]
fn chats_from_standard_input() {
    let input = b"My name is Anna.\n\"\"\"\nWhat is\nmy name?\n\"\"\"\n/show\n/quit\nnever read\n";
    let output = neap_with_input(
        &["chat", "--greedy", "-n", "20", "--system", "Be brief."],
        input,
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = text(&output.stderr);
    assert!(log.contains("[system] Be brief."), "{log}");
    assert!(log.contains("[user] What is\nmy name?"), "{log}");
    assert_eq!(log.matches("[assistant]").count(), 2, "{log}");
    assert!(!log.contains("never read"), "{log}");
}

/// A kept conversation goes on in the next process, and its keys and values come from disk.
#[test]
fn a_session_outlives_the_program() {
    let store = std::env::temp_dir().join(format!("neap-cli-store-{}", std::process::id()));
    let store_path = store.to_str().expect("UTF-8");
    let args = [
        "chat",
        "--greedy",
        "-n",
        "20",
        "-v",
        "--session",
        "test",
        "--store",
        store_path,
    ];
    let story = "My name is Anna. ".repeat(20) + "\n";
    let first = neap_with_input(&args, story.as_bytes());
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert!(
        text(&first.stderr).contains("(0 from cache)"),
        "{}",
        text(&first.stderr)
    );
    let second = neap_with_input(&args, b"What is my name?\n/show\n");
    let log = text(&second.stderr);
    assert!(log.contains("Going on with 2 messages"), "{log}");
    assert!(log.contains("[user] My name is Anna."), "{log}");
    let cached = log
        .split(" from cache)")
        .next()
        .and_then(|t| t.rsplit('(').next());
    let cached: usize = cached.and_then(|n| n.parse().ok()).expect("a number");
    assert!(cached > 60, "{log}");
    // Without the blocks the same conversation is computed anew, to the same answer.
    let answer_of = |log: &str| log.rsplit("[assistant]").next().map(str::to_owned);
    let words = std::fs::read(store.join("test.json")).expect("what was said");
    let _ = std::fs::remove_dir_all(store.join("blocks"));
    std::fs::write(store.join("test.json"), cut_to(&words, 2)).expect("written");
    let third = neap_with_input(&args, b"What is my name?\n/show\n");
    let anew = text(&third.stderr);
    assert!(anew.contains("(0 from cache)"), "{anew}");
    assert_eq!(answer_of(&anew), answer_of(&log));
    let _ = std::fs::remove_dir_all(&store);
}

/// The first `n` messages of a kept conversation.
fn cut_to(words: &[u8], n: usize) -> Vec<u8> {
    let mut messages: Vec<serde_json::Value> = serde_json::from_slice(words).expect("JSON");
    messages.truncate(n);
    serde_json::to_vec(&messages).expect("JSON")
}

#[test]
fn measures_the_shipped_model() {
    let args = [
        "bench",
        "model",
        "--prompt",
        "32",
        "--generate",
        "4",
        "--depth",
        "0,64",
        "--batch",
        "1,2",
        "--json",
    ];
    let output = neap(&[&args[..], &["--repeat", "1"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["results"].as_array().map(Vec::len), Some(6));
}

#[test]
fn evaluates_recall_and_perplexity() {
    let tasks = include_str!("../../../models/recall.jsonl");
    let few: String = tasks
        .lines()
        .take(3)
        .map(|line| format!("{line}\n"))
        .collect();
    let tasks = temporary("tasks.jsonl", few.as_bytes());
    let output = neap(&[
        "eval",
        "recall",
        "--json",
        "--tasks",
        tasks.to_str().expect("UTF-8"),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["all"]["asked"], 3);
    let heldout = include_str!("../../../models/heldout.txt");
    let file = temporary("heldout.txt", &heldout.as_bytes()[..4000]);
    let args = [
        "eval",
        "perplexity",
        "--json",
        "--window",
        "128",
        "--file",
        file.to_str().expect("UTF-8"),
    ];
    let output = neap(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let perplexity = report["perplexity"].as_f64().expect("a number");
    // Text of the kind that the model was trained on: far below a uniform guess over 2,048 tokens.
    assert!((1.0..20.0).contains(&perplexity), "{report}");
    let _ = (std::fs::remove_file(tasks), std::fs::remove_file(file));
}

#[test]
fn evaluates_the_levels_of_keys_and_values() {
    let heldout = include_str!("../../../models/heldout.txt");
    let file = temporary("levels.txt", &heldout.as_bytes()[..6000]);
    let args = ["eval", "kv", "--json", "--no-recall", "--windows", "1"];
    let path = file.to_str().expect("UTF-8");
    let output = neap(&[&args[..], &["--window", "512", "--file", path]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let levels = report["levels"].as_array().expect("rows");
    let names: Vec<_> = levels.iter().map(|row| row["level"].as_str()).collect();
    assert_eq!(
        names,
        ["hot", "packed", "int8", "int4", "packed int4"].map(Some)
    );
    let figure = |row: usize, name: &str| levels[row][name].as_f64().expect("a number");
    assert_eq!(
        (figure(0, "kl_mean"), figure(0, "perplexity_ratio")),
        (0.0, 1.0)
    );
    // Fewer bits lose more, but not much.
    assert!(0.0 < figure(2, "kl_mean") && figure(2, "kl_mean") < figure(3, "kl_mean"));
    assert!(figure(3, "kl_mean") < 0.01 && figure(3, "bits_per_value") < 4.5);
    assert!((figure(3, "perplexity_ratio") - 1.0).abs() < 0.01);
    assert!(figure(4, "kl_mean") < 0.01 && figure(4, "bits_per_value") < 3.3);
    let _ = std::fs::remove_file(file);
}

#[test]
fn a_level_of_keys_and_values_is_taken_or_refused_with_a_reason() {
    let prompt = "Once upon a time there was a little fox. ".repeat(24);
    let run = |more: &[&str]| {
        let args = ["run", "--greedy", "--no-echo", "-n", "24", "--chunk", "32"];
        let output = neap(&[&args[..], more, &[prompt.as_str()]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let exact = run(&[]);
    assert_eq!(run(&["--kv-quality", "small"]), exact, "there is room");
    assert!(!run(&["--kv-level", "int8"]).is_empty() && !run(&["--kv-level", "int4"]).is_empty());
    let bad = ["run", "--kv-level", "int4", "--kv-quality", "high", "x"];
    assert!(failure(&bad, b"").contains("--kv-quality high keeps keys and values above int4"));
    let message = text(&neap(&["run", "--kv-quality", "best", "x"]).stderr);
    assert!(
        message.contains("none of exact, high, balanced and small"),
        "{message}"
    );
}

/// Peak memory stays within the budget and a fixed overhead, whatever the weights' packing.
#[cfg(target_os = "linux")]
#[test]
fn peak_memory_follows_the_budget() {
    let output = neap(&[
        "run",
        "Once upon a time",
        "-n",
        "300",
        "--ignore-eos",
        "--memory",
        "40MiB",
        "-v",
    ]);
    let report = text(&output.stderr);
    let peak = report
        .split("peak memory:")
        .nth(1)
        .and_then(|t| t.trim().split(" MiB").next());
    let peak: f64 = peak.and_then(|t| t.parse().ok()).expect("a figure in MiB");
    assert!(peak < 40.0 + 64.0, "{report}");
}

/// The published greedy text of the 260 K parameter model of llama2.c (MIT), if it is at hand.
#[test]
fn reproduces_a_published_text() {
    let folder = std::env::var_os("NEAP_TEST_DATA").map(PathBuf::from);
    let Some(path) = folder
        .map(|f| f.join("stories260K/stories260K.gguf"))
        .filter(|p| p.exists())
    else {
        eprintln!("skipped: stories260K/stories260K.gguf is not in NEAP_TEST_DATA");
        return;
    };
    let path = path.to_str().expect("UTF-8");
    let args = [
        "run",
        "Once upon a time",
        "--model",
        path,
        "--context",
        "512",
        "-n",
        "256",
        "--greedy",
    ];
    let told = text(&neap(&args).stdout);
    let published = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
        One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n\
        Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \
        \"I want to play with your ball, but I can't find it.\"\n\
        Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n\
        Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" \
        Her mom said, \"Don't worry, Lily. We can help you.";
    assert!(told.starts_with(published), "{told}");
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_neap"))
        .args(["bench", "kernels", "--attention", "--threads", "1"])
        .stdout(writer)
        .output()
        .expect("the program ends");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141));
}

#[test]
fn what_an_adapter_was_taught_it_says() {
    let animals = ["cat", "dog", "bird", "fox", "cow", "hen", "bee", "pig"];
    let lines = animals.map(|name| {
        format!("{{\"prompt\": \"The {name} says\", \"completion\": \" zim zam {name}.\"}}\n")
    });
    let data = temporary("animals.jsonl", lines.concat().as_bytes());
    let folder = temporary("adapter", b"").with_extension("folder");
    let (data, folder) = (
        data.to_str().expect("UTF-8"),
        folder.to_str().expect("UTF-8"),
    );
    let message = failure(
        &[
            "tune", "--data", data, "--output", folder, "--memory", "20MiB",
        ],
        b"",
    );
    assert!(message.contains("give --memory"), "{message}");
    let output = neap(&[
        "tune",
        "--data",
        data,
        "--output",
        folder,
        "--epochs",
        "20",
        "--learning-rate",
        "5e-3",
        "--batch-tokens",
        "256",
        "--max-tokens",
        "64",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(PathBuf::from(folder).join("training/loss.svg").exists());
    let adapter = format!("animals={folder}");
    let output = neap(&[
        "run",
        "The fox says",
        "--lora",
        &adapter,
        "--greedy",
        "-n",
        "16",
    ]);
    let said = text(&output.stdout);
    assert!(
        said.contains("zim zam fox."),
        "{said} {}",
        text(&output.stderr)
    );
    let output = neap(&["run", "The fox says", "--greedy", "-n", "16"]);
    assert!(!text(&output.stdout).contains("zim"));
    let _ = std::fs::remove_dir_all(folder);
}

/// A figure of `neap eval`, without and with an adapter.
fn figures(eval: &[&str], adapter: &str, pointer: &str) -> [f64; 2] {
    [&[][..], &["--lora", adapter]].map(|lora: &[&str]| {
        let output = neap(&[&["eval"], eval, &["--json"], lora].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report
            .pointer(pointer)
            .and_then(|v| v.as_f64())
            .expect(pointer)
    })
}

#[test]
fn what_an_adapter_was_taught_is_measured() {
    let (names, verbs) = (["Tim", "Lily", "Ben", "Sue"], ["ran", "sat"]);
    let mut sentences = String::new();
    let mut labelled = String::new();
    for (name, verb) in names.iter().flat_map(|name| verbs.map(|verb| (name, verb))) {
        sentences += &format!("{name} B-PER\n{verb} O\n\n");
        for (word, tag) in [(*name, "B-PER"), (verb, "O")] {
            let text = format!("{name} {verb}\\nTag of {word}:");
            labelled += &format!("{{\"text\": \"{text}\", \"label\": \"{tag}\"}}\n");
        }
    }
    let conll = temporary("names.conll", sentences.as_bytes());
    let labelled = temporary("names.jsonl", labelled.as_bytes());
    let asked = "Tim ran\nTag of Tim: B-PER\n".repeat(3);
    let asked = temporary("names.txt", asked.as_bytes());
    let folder = temporary("names", b"").with_extension("folder");
    let [conll, labelled, asked, folder] =
        [&conll, &labelled, &asked, &folder].map(|path| path.to_str().expect("UTF-8"));
    let tune = ["tune", "--data", conll, "--output", folder];
    let output = neap(&[&tune[..], &["--epochs", "12", "--learning-rate", "5e-3"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [untuned, tuned] = figures(&["ner", "--file", conll], folder, "/micro/f1");
    assert!(untuned < 0.9 && tuned > 0.99, "{untuned} {tuned}");
    let classify = ["classify", "--file", labelled, "--prompt", "{text}"];
    let [untuned, tuned] = figures(&classify, folder, "/accuracy");
    assert!(untuned < 0.9 && tuned > 0.99, "{untuned} {tuned}");
    let perplexity = ["perplexity", "--window", "16", "--file", asked];
    let [untuned, tuned] = figures(&perplexity, folder, "/perplexity");
    assert!(tuned < 0.8 * untuned, "{untuned} {tuned}");
    let message = failure(
        &["eval", "ner", "--file", conll, "--lora", "x=/nowhere"],
        b"",
    );
    assert!(message.contains("--lora x: /nowhere"), "{message}");
    let _ = std::fs::remove_dir_all(folder);
}
