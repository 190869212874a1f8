//! LoRA adapters through the program: on the command line, many in one server, and added and removed while it runs.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::server::{Server, golden, neap, text};

const PROMPT: &str = "the hen sat on an egg and the egg sat on the hen, again and again, until the hen had had enough of it";

fn model() -> String {
    golden("architectures/qwen3").display().to_string()
}

fn adapter() -> String {
    golden("adapters/qwen3").display().to_string()
}

/// The same adapter, with `change` made to its configuration.
fn altered(name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("neap-lora-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let from = golden("adapters/qwen3");
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), folder.join(weights)).unwrap();
    let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    change(&mut config);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

fn run(more: &[&str]) -> (bool, String) {
    let model = model();
    let fixed = [
        "run",
        PROMPT,
        "--no-echo",
        "--greedy",
        "-n",
        "16",
        "--ignore-eos",
        "--model",
        &model,
    ];
    let ran = neap(&[&fixed, more].concat());
    let told = if ran.status.success() {
        ran.stdout
    } else {
        ran.stderr
    };
    let text = text(&told);
    (
        ran.status.success(),
        text.strip_suffix('\n').unwrap_or(&text).to_owned(),
    )
}

fn start(more: &[&str]) -> Server {
    let model = model();
    Server::start(&[&["--threads", "1", "--model", &model], more].concat())
}

impl Server {
    fn complete(&self, model: &str) -> (u16, Value) {
        let body = json!({"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": true});
        self.post("/v1/completions", &body)
    }

    fn text(&self, model: &str) -> String {
        let (status, answer) = self.complete(model);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["model"], model);
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn models(&self) -> Vec<String> {
        let listed = self.get("/v1/models").1;
        let ids = listed["data"].as_array().unwrap().iter();
        ids.map(|model| model["id"].as_str().unwrap().to_owned())
            .collect()
    }

    fn memory(&self) -> Value {
        self.get("/memory").1
    }
}

#[test]
fn an_adapter_changes_what_is_written() {
    let adapter = adapter();
    let (plain, adapted) = (run(&[]), run(&["--lora", &adapter]));
    assert!(plain.0 && adapted.0, "{plain:?} {adapted:?}");
    assert_ne!(plain.1, adapted.1);
    let missing = run(&["--lora", "x=/nowhere"]);
    assert!(
        !missing.0 && missing.1.contains("--lora x: /nowhere"),
        "{}",
        missing.1
    );
    let bad = altered("bad", |config| config["r"] = json!(9));
    let bad = run(&["--lora", bad.to_str().unwrap()]);
    assert!(bad.1.contains("adapter_config.json says 9"), "{}", bad.1);
}

#[test]
fn requests_choose_adapters_side_by_side() {
    let (first, second) = (adapter(), altered("twice", |c| c["lora_alpha"] = json!(32)));
    let second = second.to_str().unwrap();
    let expected = [
        run(&[]).1,
        run(&["--lora", &first]).1,
        run(&["--lora", second]).1,
    ];
    let server = start(&[
        "--lora",
        &format!("a={first}"),
        "--lora",
        &format!("b={second}"),
    ]);
    assert_eq!(server.models(), ["qwen3", "a", "b"]);
    // All at once, so that their rows are in one step.
    let names = ["qwen3", "a", "b", "qwen3:a", "qwen3", "b", "qwen3:b", "a"];
    let wanted = [0, 1, 2, 1, 0, 2, 2, 1].map(|i: usize| &expected[i]);
    let got: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| server.text(name)))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(got.iter().collect::<Vec<_>>(), wanted);
    let (status, unknown) = server.complete("c");
    assert_eq!((status, &unknown["error"]["param"]), (404, &json!("model")));
    let chat =
        json!({"model": "a", "messages": [{"role": "user", "content": "hen"}], "max_tokens": 3});
    assert_eq!(server.post("/v1/chat/completions", &chat).1["model"], "a");
    let response = json!({"model": "qwen3:b", "input": "hen", "max_output_tokens": 3});
    assert_eq!(
        server.post("/v1/responses", &response).1["model"],
        "qwen3:b"
    );
}

#[test]
fn cached_prefixes_of_adapters_are_apart() {
    let server = start(&["--lora", &format!("a={}", adapter())]);
    let cached = |model| {
        let (_, answer) = server.complete(model);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let plain = [cached("qwen3"), cached("qwen3")];
    assert_eq!(plain[0], 0);
    assert!(plain[1] >= 64, "{plain:?}");
    assert_eq!([cached("a"), cached("a")], [0, plain[1]]);
}

#[test]
fn adapters_come_and_go_while_the_server_runs() {
    let server = start(&[]);
    let expected = [run(&[]).1, run(&["--lora", &adapter()]).1];
    assert_eq!(server.text("qwen3"), expected[0]);
    let load = |body: Value| server.post("/v1/load_lora_adapter", &body);
    let (status, said) = load(json!({"lora_name": "new", "lora_path": adapter()}));
    assert_eq!(status, 200, "{said}");
    assert_eq!(
        (server.text("new"), server.text("qwen3")),
        (expected[1].clone(), expected[0].clone())
    );
    let memory = server.memory();
    assert_eq!(memory["adapters"][0]["is_loaded"], true);
    let bytes = memory["adapters"][0]["bytes"].as_u64().unwrap();
    assert_eq!(
        memory["budget"]["by_kind"]["adapters"].as_u64(),
        Some(bytes)
    );
    let again = json!({"lora_name": "new", "lora_path": adapter()});
    assert_eq!(load(again.clone()).1["error"]["param"], "lora_name");
    let other = altered("other", |c| c["lora_alpha"] = json!(32));
    let replace = json!({"lora_name": "new", "lora_path": other, "load_inplace": true});
    assert_eq!(load(replace).0, 200);
    assert_ne!(server.text("new"), expected[1]);
    refuses_by_name(&server);
    let unload = json!({"lora_name": "new"});
    assert_eq!(server.post("/v1/unload_lora_adapter", &unload).0, 200);
    assert_eq!(server.post("/v1/unload_lora_adapter", &unload).0, 404);
    assert_eq!(server.complete("new").0, 404);
    assert_eq!(server.models(), ["qwen3"]);
    assert_eq!(server.memory()["budget"]["by_kind"]["adapters"], 0);
    assert_eq!(server.text("qwen3"), expected[0]);
}

#[test]
fn adapters_outlive_a_change_of_the_model() {
    let gone = altered("gone", |_| {});
    let config = gone.join("neap.toml");
    std::fs::write(&config, "parallel = 2").unwrap();
    let server = start(&["--config", config.to_str().unwrap()]);
    for (name, path) in [("kept", PathBuf::from(adapter())), ("gone", gone.clone())] {
        let body = json!({"lora_name": name, "lora_path": path});
        assert_eq!(server.post("/v1/load_lora_adapter", &body).0, 200);
    }
    let expected = server.text("kept");
    std::fs::write(&config, "parallel = 3").unwrap();
    std::fs::remove_file(gone.join("adapter_config.json")).unwrap();
    let (status, told) = server.post("/admin/reload", &json!({}));
    assert_eq!(status, 200, "{told}");
    let model = &told["model"];
    assert_eq!(model["adapters_added_again"], json!(["kept"]), "{told}");
    let dropped = &model["adapters_dropped"][0];
    assert_eq!(dropped["name"], "gone");
    let reason = dropped["reason"].as_str().unwrap();
    assert!(reason.contains("adapter_config.json"), "{reason}");
    assert_eq!(server.text("kept"), expected);
    assert_eq!(server.models(), ["qwen3", "kept"]);
}

fn refuses_by_name(server: &Server) {
    let load = |body: Value| server.post("/v1/load_lora_adapter", &body);
    let (broken, shape) = (
        altered("broken", |_| {}),
        altered("pattern", |c| c["rank_pattern"] = json!({})),
    );
    let weights = broken.join("adapter_model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    for (body, param, named) in [
        (
            json!({"lora_name": "x", "lora_path": "/nowhere"}),
            "lora_path",
            "/nowhere",
        ),
        (
            json!({"lora_name": "x", "lora_path": broken}),
            "lora_path",
            "adapter_model.safetensors",
        ),
        (
            json!({"lora_name": "x", "lora_path": shape}),
            "lora_path",
            "has the rank",
        ),
        (
            json!({"lora_name": "qwen3", "lora_path": adapter()}),
            "lora_name",
            "another name",
        ),
        (
            json!({"lora_name": "", "lora_path": adapter()}),
            "lora_name",
            "name",
        ),
        (json!({"lora_name": "x"}), "lora_path", "path"),
    ] {
        let (status, answer) = load(body);
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!(param)),
            "{answer}"
        );
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(named),
            "{answer}"
        );
    }
}

#[test]
fn only_the_admin_may_add_adapters() {
    let server = start(&["--admin-key", "secret"]);
    let body = json!({"lora_name": "a", "lora_path": adapter()});
    assert_eq!(server.post("/v1/load_lora_adapter", &body).0, 401);
    assert_eq!(
        server
            .post("/v1/unload_lora_adapter", &json!({"lora_name": "a"}))
            .0,
        401
    );
}
