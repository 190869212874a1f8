//! Models of other makes through the program: convert, quantize, embed, and vectors over HTTP.

use serde_json::{Value, json};

use crate::server::{Server, golden, neap, text};

#[test]
fn a_folder_and_the_file_made_of_it_write_the_same() {
    let folder = golden("architectures/gemma3");
    let folder = folder.to_str().unwrap();
    let out = std::env::temp_dir().join(format!("neap-models-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    let file = out.join("out.gguf");
    let file = file.to_str().unwrap();
    for quantize in [&[][..], &["--quantize", "q8_0"]] {
        let converted = neap(&[&["convert", folder, file, "--force"], quantize].concat());
        assert!(converted.status.success(), "{}", text(&converted.stderr));
        let run = |model: &str, more: &[&str]| {
            let fixed = [
                "run",
                "the hen",
                "--greedy",
                "-n",
                "12",
                "--ignore-eos",
                "--model",
                model,
            ];
            let ran = neap(&[&fixed, more].concat());
            assert!(ran.status.success(), "{}", text(&ran.stderr));
            ran.stdout
        };
        assert_eq!(run(folder, quantize), run(file, &[]), "{quantize:?}");
    }
    let again = neap(&["convert", folder, file]);
    assert!(!again.status.success() && text(&again.stderr).contains("is there already"));
    let gguf = neap(&["convert", file, file, "--force"]);
    assert!(text(&gguf.stderr).contains("only Hugging Face folders"));
    let left = std::fs::read_dir(&out).unwrap().count();
    assert_eq!(left, 1, "nothing half-written is left");
    std::fs::remove_dir_all(&out).unwrap();
    let bad = neap(&["run", "x", "--model", folder, "--quantize", "q3_k"]);
    assert!(text(&bad.stderr).contains("q4_0, q8_0"));
}

fn embedding(line: &Value) -> Vec<f64> {
    let numbers = line["embedding"].as_array().unwrap();
    numbers.iter().map(|n| n.as_f64().unwrap()).collect()
}

fn embed(texts: &[&str]) -> Vec<Vec<f64>> {
    let model = golden("embedders/bert");
    let args = ["embed", "--model", model.to_str().unwrap()];
    let out = neap(&[&args, texts].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let lines = text(&out.stdout);
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    lines.map(|line: Value| embedding(&line)).collect()
}

#[test]
fn encoders_embed_and_do_not_write() {
    let vectors = embed(&["the hen", "the egg"]);
    assert_eq!((vectors.len(), vectors[0].len()), (2, 36));
    assert_ne!(vectors[0], vectors[1]);
    let model = golden("embedders/bert");
    let run = neap(&["run", "x", "--model", model.to_str().unwrap()]);
    assert!(text(&run.stderr).contains("use neap embed"));
}

fn start(more: &[&str]) -> Server {
    Server::start(&[&["--threads", "1", "--memory", "256MiB"], more].concat())
}

/// With a model for vectors and one that judges pairs.
fn start_with_both() -> Server {
    let (model, judge) = (
        golden("embedders/bert"),
        golden("classifiers/cross-encoder"),
    );
    start(&[
        "--embedding-model",
        model.to_str().unwrap(),
        "--classifier-model",
        judge.to_str().unwrap(),
    ])
}

#[test]
fn vectors_are_served() {
    let server = start_with_both();
    let expected = embed(&["the hen", "an egg"]);
    let (status, answer) = server.post(
        "/v1/embeddings",
        &json!({"model": "bert", "input": ["the hen", "an egg"]}),
    );
    assert_eq!(status, 200, "{answer}");
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(&embedding(&answer["data"][i]), expected);
    }
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        answer["usage"]["total_tokens"]
    );
    let (_, short) = server.post(
        "/v1/embeddings",
        &json!({"input": "the hen", "dimensions": 4}),
    );
    assert_eq!(embedding(&short["data"][0]).len(), 4);
    let coded = json!({"input": "the hen", "encoding_format": "base64"});
    let (_, coded) = server.post("/v1/embeddings", &coded);
    assert_eq!(
        coded["data"][0]["embedding"].as_str().unwrap().len(),
        36 * 4 / 3 * 4
    );
    let (_, ranked) = server.post(
        "/v1/rerank",
        &json!({"model": "bert", "query": "the hen", "documents": ["an egg", "the hen"], "top_n": 1, "return_documents": true}),
    );
    assert_eq!(ranked["results"][0]["index"], 1);
    assert_eq!(ranked["results"][0]["document"]["text"], "the hen");
    assert!((ranked["results"][0]["relevance_score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let pairs = json!({"model": "bert", "text_1": "the hen", "text_2": ["the hen", "an egg"]});
    let (_, scores) = server.post("/v1/score", &pairs);
    let dot: f64 = expected[0]
        .iter()
        .zip(&expected[1])
        .map(|(a, b)| a * b)
        .sum();
    assert!((scores["data"][1]["score"].as_f64().unwrap() - dot).abs() < 1e-6);
    refuses_by_name(&server);
}

fn refuses_by_name(server: &Server) {
    for (path, body, named) in [
        ("/v1/embeddings", json!({}), "input"),
        ("/v1/embeddings", json!({"input": []}), "input"),
        (
            "/v1/embeddings",
            json!({"input": "x", "dimensions": 37}),
            "dimensions",
        ),
        ("/v1/embeddings", json!({"input": [99_999]}), "input"),
        (
            "/v1/embeddings",
            json!({"input": "x", "model": "other"}),
            "model",
        ),
        (
            "/v1/embeddings",
            json!({"input": "a ".repeat(100)}),
            "input",
        ),
        ("/v1/rerank", json!({"query": "x"}), "documents"),
        (
            "/v1/score",
            json!({"text_1": ["a", "b"], "text_2": ["c"]}),
            "text_1",
        ),
    ] {
        let (status, answer) = server.post(path, &body);
        assert!((400..500).contains(&status), "{path} {body}: {status}");
        assert_eq!(answer["error"]["param"], named, "{answer}");
    }
}

#[test]
fn cross_encoders_judge_pairs() {
    let server = start_with_both();
    let pairs = json!({"text_1": "the hen", "text_2": ["an egg", "the hen, the hen", "egg"]});
    let (status, scored) = server.post("/v1/score", &pairs);
    assert_eq!(
        (status, &scored["model"]),
        (200, &json!("cross-encoder")),
        "{scored}"
    );
    let scores: Vec<f64> = (0..3)
        .map(|i| scored["data"][i]["score"].as_f64().unwrap())
        .collect();
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    let documents = json!({"query": "the hen", "documents": ["an egg", "the hen, the hen", "egg"]});
    let (_, ranked) = server.post("/v1/rerank", &documents);
    let results = ranked["results"].as_array().unwrap();
    for pair in results.windows(2) {
        assert!(pair[0]["relevance_score"].as_f64() >= pair[1]["relevance_score"].as_f64());
    }
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        assert_eq!(result["relevance_score"].as_f64(), Some(scores[index]));
    }
    // The second text is another segment: which is which matters.
    let turned = json!({"text_1": "an egg", "text_2": "the hen"});
    let turned = server.post("/v1/score", &turned).1["data"][0]["score"]
        .as_f64()
        .unwrap();
    assert!((turned - scores[0]).abs() > 1e-6);
    let (_, classes) = server.post("/v1/classify", &json!({"input": ["the hen", "an egg"]}));
    assert_eq!(classes["data"][1]["label"], "LABEL_0");
    assert_eq!(classes["data"][0]["num_classes"], 1);
    let (status, no) = server.post("/v1/classify", &json!({"input": "x", "model": "other"}));
    assert_eq!((status, &no["error"]["param"]), (404, &json!("model")));
}

/// A decoder with a head is asked in the prompt that it was trained with; `rerankers.json` has what it says.
#[test]
fn decoders_judge_pairs() {
    let judge = golden("classifiers/qwen3-reranker");
    let server = start(&["--classifier-model", judge.to_str().unwrap()]);
    let expected = std::fs::read(golden("rerankers.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let pairs = expected["pairs"].as_array().unwrap();
    let documents: Vec<&Value> = pairs.iter().map(|pair| &pair["document"]).collect();
    let asked = json!({"query": expected["query"], "documents": documents});
    let (status, ranked) = server.post("/v1/rerank", &asked);
    assert_eq!(status, 200, "{ranked}");
    for result in ranked["results"].as_array().unwrap() {
        let pair = &pairs[result["index"].as_u64().unwrap() as usize];
        let expected = 1.0 / (1.0 + (-pair["logit"].as_f64().unwrap()).exp());
        let score = result["relevance_score"].as_f64().unwrap();
        assert!((score - expected).abs() < 1e-3, "{pair}: {score}");
    }
}

#[test]
fn texts_are_classified_without_training() {
    let server = start(&[]);
    let labels = ["happy", "sad", "very, very angry"];
    let ask = |input: Value, more: Value| {
        let mut body = json!({"input": input, "labels": labels});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("/v1/classify", &body)
    };
    let text = "Once upon a time there was a little girl who smiled all day and sang to her cat and her dog. ";
    let long = format!("{}The girl was {{input}}. She felt", text.repeat(4));
    let (status, answer) = ask(json!(["glad", "crying"]), json!({"prompt": long}));
    assert_eq!(status, 200, "{answer}");
    for data in answer["data"].as_array().unwrap() {
        let probs: Vec<f64> = data["probs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_f64().unwrap())
            .collect();
        assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let best = (0..3)
            .max_by(|&a, &b| probs[a].total_cmp(&probs[b]))
            .unwrap();
        assert_eq!(data["label"], labels[best]);
    }
    // What both prompts begin with was computed once.
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() / 2;
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(prompt > 64 && cached >= 64, "{cached} of {prompt}");
    // The same again, to the bit; a mean is no sum.
    let again = ask(json!(["glad", "crying"]), json!({"prompt": long})).1;
    assert_eq!(again["data"], answer["data"]);
    let means = ask(
        json!("glad"),
        json!({"prompt": long, "length_normalized": true}),
    )
    .1;
    assert_ne!(means["data"][0]["probs"], answer["data"][0]["probs"]);
    for (body, named) in [
        (json!({"input": "x", "labels": ["a"]}), "labels"),
        (json!({"input": "x", "labels": ["a", "a"]}), "labels"),
        (json!({"input": "x"}), "labels"),
        (json!({"labels": ["a", "b"]}), "input"),
        (
            json!({"input": "x", "labels": ["a", "b"], "prompt": "no place"}),
            "prompt",
        ),
        (
            json!({"input": "x".repeat(9000), "labels": ["a", "b"]}),
            "input",
        ),
    ] {
        let (status, answer) = server.post("/v1/classify", &body);
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!(named)),
            "{answer}"
        );
    }
}
