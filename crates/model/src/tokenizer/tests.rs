use super::*;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A small SentencePiece vocabulary: three reserved tokens, all bytes, then `pieces` with falling scores.
fn spm_data(pieces: &[(&str, i32)]) -> VocabularyData {
    let mut tokens = ByteStrings::collect(["<unk>", "<s>", "</s>"]).unwrap();
    let mut token_types = vec![UNKNOWN, CONTROL, CONTROL];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>").as_bytes()).unwrap();
        token_types.push(BYTE);
    }
    for (piece, kind) in pieces {
        tokens.push(piece.as_bytes()).unwrap();
        token_types.push(*kind);
    }
    VocabularyData {
        model: "llama".into(),
        scores: (0..tokens.len()).map(|i| -(i as f32)).collect(),
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..VocabularyData::default()
    }
}

fn words() -> Vec<(&'static str, i32)> {
    vec![
        ("\u{2581}", NORMAL),
        ("h", NORMAL),
        ("e", NORMAL),
        ("l", NORMAL),
        ("o", NORMAL),
        ("\u{2581}h", NORMAL),
        ("ll", NORMAL),
        ("llo", NORMAL),
        ("\u{2581}he", NORMAL),
        ("\u{2581}hello", NORMAL),
        ("\u{2581}\u{2581}", NORMAL),
    ]
}

fn texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter()
        .map(|id| tokenizer.token_text(*id).unwrap())
        .collect()
}

const RAW: EncodeOptions = EncodeOptions {
    add_bos: false,
    parse_special: false,
};

#[test]
fn spm_merges_by_score() {
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&words())).unwrap();
    let ids = tokenizer.encode("hello hell", RAW).unwrap();
    assert_eq!(texts(&tokenizer, &ids), [" hello", " he", "ll"]);
    assert_eq!(
        tokenizer.decode(&ids, DetokenizeOptions::default()),
        "hello hell"
    );
    assert_eq!(
        tokenizer.decode(&ids, DetokenizeOptions::continuation()),
        " hello hell"
    );
}

#[test]
fn spm_falls_back_to_bytes() {
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&words())).unwrap();
    let ids = tokenizer.encode("h\u{e9}\n", RAW).unwrap();
    let bytes: Vec<&[u8]> = ids
        .iter()
        .map(|id| tokenizer.token_bytes(*id).unwrap())
        .collect();
    let expected: [&[u8]; 4] = [b" h", b"\xc3", b"\xa9", b"\n"];
    assert_eq!(bytes, expected);
}
