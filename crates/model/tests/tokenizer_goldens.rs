//! Tokenizers against golden encodings made by SentencePiece and by Hugging Face's tokenizers
//! (`data/make_tokenizer_goldens.py`).

use std::path::PathBuf;

use neap_model::tokenizer::{
    DetokenizeOptions, EncodeOptions, HfTokenizerFiles, MetaValue, Tokenizer, VocabularyData,
    vocabulary_from_gguf_metadata,
};
use serde_json::Value;

const PLAIN: EncodeOptions = EncodeOptions {
    add_bos: false,
    parse_special: false,
};
const CHAT: EncodeOptions = EncodeOptions {
    add_bos: true,
    parse_special: true,
};

fn read(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    std::fs::read(folder.join(name)).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn texts() -> Vec<String> {
    serde_json::from_value(json("texts.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A metadata value from its JSON, told apart as GGUF has it: scores are floats even if whole.
fn meta<'a>(key: &str, value: &'a Value) -> MetaValue<'a> {
    match value {
        Value::Bool(value) => MetaValue::Bool(*value),
        Value::Number(number) => MetaValue::Integer(number.as_i64().unwrap()),
        Value::String(text) => MetaValue::String(text.as_bytes()),
        Value::Array(items) if key.ends_with("scores") => {
            MetaValue::Floats(items.iter().map(|i| i.as_f64().unwrap() as f32).collect())
        }
        Value::Array(items) if items.first().is_some_and(Value::is_string) => MetaValue::Strings(
            items
                .iter()
                .map(|i| i.as_str().unwrap().as_bytes())
                .collect(),
        ),
        Value::Array(items) => {
            MetaValue::Integers(items.iter().map(|i| i.as_i64().unwrap()).collect())
        }
        other => panic!("{key}: {other}"),
    }
}

fn vocabulary(golden: &Value) -> VocabularyData {
    let map = golden["vocabulary"].as_object().unwrap();
    vocabulary_from_gguf_metadata(&|key| map.get(key).map(|value| meta(key, value))).unwrap()
}

fn spell(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter()
        .map(|id| tokenizer.token_text(*id).unwrap())
        .collect()
}

#[track_caller]
fn assert_ids(tokenizer: &Tokenizer, text: &str, got: &[u32], expected: &[u32]) {
    assert_eq!(
        got,
        expected,
        "{text:?}\n got {:?}\n expected {:?}",
        spell(tokenizer, got),
        spell(tokenizer, expected)
    );
}

fn check_cases(tokenizer: &Tokenizer, golden: &Value) -> usize {
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text, PLAIN).unwrap();
        assert_ids(tokenizer, text, &got, &ids(&case["ids"]));
    }
    cases.len()
}

#[test]
fn sentencepiece_bpe_with_byte_fallback() {
    let golden = json("spm_tok512.json");
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary(&golden)).unwrap();
    assert_eq!(check_cases(&tokenizer, &golden), texts().len());
    for text in texts() {
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        // U+2581 in a text cannot be told from a space.
        let expected = text.replace('\u{2581}', " ");
        assert_eq!(
            tokenizer.decode(&ids, DetokenizeOptions::default()),
            expected
        );
    }
}

#[test]
fn sentencepiece_bpe_without_bytes() {
    let golden = json("spm_plain.json");
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary(&golden)).unwrap();
    assert!(check_cases(&tokenizer, &golden) > 60);
}

#[test]
fn sentencepiece_unigram() {
    let golden = json("unigram.json");
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary(&golden)).unwrap();
    assert!(check_cases(&tokenizer, &golden) > 60);
}

#[test]
fn wordpiece() {
    let golden = json("wordpiece.json");
    let tokenizer = Tokenizer::from_vocabulary(&vocabulary(&golden)).unwrap();
    assert!(check_cases(&tokenizer, &golden) > 60);
    let ids = tokenizer.encode("hello [SEP]", CHAT).unwrap();
    assert_eq!(spell(&tokenizer, &ids[..1]), ["[CLS]"]);
    assert_eq!(spell(&tokenizer, &ids[ids.len() - 2..]), ["[SEP]", "[SEP]"]);
}

#[test]
fn byte_level_bpe_under_each_splitter() {
    let golden = json("bpe.json");
    let mut data = vocabulary(&golden);
    let chat = golden["chat"].as_str().unwrap();
    let mut texts = texts();
    texts.push(chat.to_owned());
    for (pre, cases) in golden["cases"].as_object().unwrap() {
        data.pre = Some(pre.clone());
        let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
        for (text, expected) in texts.iter().zip(cases["plain"].as_array().unwrap()) {
            let got = tokenizer.encode(text, PLAIN).unwrap();
            assert_ids(&tokenizer, text, &got, &ids(expected));
            let options = DetokenizeOptions {
                skip_special: false,
                ..DetokenizeOptions::default()
            };
            assert_eq!(tokenizer.decode(&got, options), *text);
        }
        let got = tokenizer.encode(chat, CHAT).unwrap();
        assert_ids(&tokenizer, chat, &got, &ids(&cases["chat"]));
    }
}

#[test]
fn special_tokens_of_a_byte_level_vocabulary() {
    let mut data = vocabulary(&json("bpe.json"));
    data.pre = Some("qwen2".into());
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let text = tokenizer.token_id("<|endoftext|>").unwrap();
    assert_eq!(tokenizer.stop_ids(), [text.min(end), text.max(end)]);
    assert_eq!(tokenizer.eot(), Some(end));
    assert!(tokenizer.is_special(end) && tokenizer.is_stop(end));
    assert!(!tokenizer.is_special(tokenizer.token_id("<tool_call>").unwrap()));
    assert!(!tokenizer.adds_bos());
}

fn hf(name: &str) -> Tokenizer {
    let tokenizer = read(&format!("{name}_tokenizer.json"));
    let config = match name {
        "llama" => {
            r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}"#
        }
        "bpe" => r#"{"bos_token": null, "eos_token": "<|im_end|>"}"#,
        _ => r#"{"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}"#,
    };
    Tokenizer::from_hf_files(&HfTokenizerFiles {
        path: "tokenizer.json".into(),
        tokenizer: &tokenizer,
        tokenizer_config: Some(config.as_bytes()),
        generation_config: Some(br#"{"eos_token_id": [2, 3, -1, 99999]}"#),
        config: None,
    })
    .unwrap()
}

#[test]
fn tokenizer_json_files() {
    let golden = json("hf.json");
    for name in ["bpe", "llama", "wordpiece"] {
        let tokenizer = hf(name);
        let cases = golden[name].as_array().unwrap();
        assert_eq!(cases.len(), texts().len());
        for (text, case) in texts().iter().zip(cases) {
            let plain = tokenizer.encode(text, PLAIN).unwrap();
            assert_ids(&tokenizer, text, &plain, &ids(&case["plain"]));
            let parsed = tokenizer.encode(text, CHAT).unwrap();
            let mut expected = ids(&case["parsed"]);
            if expected.len() > 1 && expected[0] == expected[1] && tokenizer.adds_bos() {
                expected.remove(0); // A text that begins with BOS gets no second one.
            }
            assert_ids(&tokenizer, text, &parsed, &expected);
            let decoded = tokenizer.decode(&plain, DetokenizeOptions::default());
            assert_eq!(
                decoded,
                case["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn roles_of_tokens_in_a_hugging_face_folder() {
    let llama = hf("llama");
    assert_eq!(
        (llama.bos(), llama.eos(), llama.unk()),
        (Some(1), Some(2), Some(0))
    );
    assert!(llama.adds_bos());
    // 2 and 3 are listed; -1 and 99999 are no tokens.
    assert_eq!(llama.stop_ids(), [2, 3]);
    assert_eq!(llama.vocab_size(), 512);
    let wordpiece = hf("wordpiece");
    assert_eq!(wordpiece.bos(), wordpiece.token_id("[CLS]"));
    assert_eq!(wordpiece.sep(), wordpiece.token_id("[SEP]"));
    assert!(!hf("bpe").adds_bos());
}

/// Damaged files are refused or give another tokenizer; nothing panics through, and no id lies outside.
#[test]
fn damaged_tokenizer_json_files() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let mut refused = 0;
    for name in ["llama", "wordpiece"] {
        let good = read(&format!("{name}_tokenizer.json"));
        for _ in 0..60 {
            let mut file = good.clone();
            let at = random(file.len());
            match random(3) {
                0 => file.truncate(at),
                1 => file[at] = b"0129[]{}\",: x\xff"[random(14)],
                _ => drop(file.drain(at..(at + 1 + random(40)).min(good.len()))),
            }
            let made = Tokenizer::from_hf_files(&HfTokenizerFiles {
                path: "damaged/tokenizer.json".into(),
                tokenizer: &file,
                ..HfTokenizerFiles::default()
            });
            let Ok(tokenizer) = made else {
                refused += 1;
                continue;
            };
            if let Ok(ids) = tokenizer.encode("Once upon a time \u{e9}\n<s>", CHAT) {
                assert!(ids.iter().all(|id| tokenizer.token_bytes(*id).is_some()));
                tokenizer.decode(&ids, DetokenizeOptions::default());
            }
        }
    }
    assert!(refused > 30);
}

#[test]
fn ids_far_beyond_the_vocabulary_are_refused() {
    let good = String::from_utf8(read("wordpiece_tokenizer.json")).unwrap();
    let file = good.replacen("\"[MASK]\":4", "\"[MASK]\":4000000000", 1);
    assert_ne!(file, good);
    let made = Tokenizer::from_hf_files(&HfTokenizerFiles {
        path: "tokenizer.json".into(),
        tokenizer: file.as_bytes(),
        ..HfTokenizerFiles::default()
    });
    let error = made.unwrap_err().to_string();
    assert!(error.contains("4000000000"), "{error}");
}
