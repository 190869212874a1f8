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

#[test]
fn spm_takes_unused_pieces_apart_again() {
    let mut pieces = words();
    pieces.push(("\u{2581}hell", UNUSED));
    // "▁hell" scores best, so that merging goes through it.
    let mut data = spm_data(&pieces);
    let last = data.scores.len() - 1;
    data.scores[last] = 1.0;
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    let ids = tokenizer.encode("hell", RAW).unwrap();
    assert_eq!(texts(&tokenizer, &ids), [" he", "ll"]);
}

#[test]
fn spm_without_bytes_merges_runs_of_unknown_characters() {
    let mut data = spm_data(&words());
    let kept = |id: &usize| data.token_types[*id] != BYTE;
    let ids: Vec<usize> = (0..data.tokens.len()).filter(kept).collect();
    data.scores = ids.iter().map(|id| data.scores[*id]).collect();
    data.token_types = ids.iter().map(|id| data.token_types[*id]).collect();
    data.tokens = ByteStrings::collect(ids.iter().map(|id| data.tokens.get(*id).unwrap())).unwrap();
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    let ids = tokenizer.encode("hxyzll", RAW).unwrap();
    assert_eq!(texts(&tokenizer, &ids), [" h", "<unk>", "ll"]);
    data.unk = None;
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    assert_eq!(
        tokenizer.encode("hello \u{e9}", RAW),
        Err(TokenizerError::Unencodable {
            piece: "\u{e9}".into(),
            offset: 6
        })
    );
}

#[test]
fn special_tokens_are_parsed_only_when_asked_for() {
    let mut pieces = words();
    pieces.push(("<|im_end|>", CONTROL));
    pieces.push(("<tool>", USER_DEFINED));
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&pieces)).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let tool = tokenizer.token_id("<tool>").unwrap();
    let chat = EncodeOptions {
        add_bos: true,
        parse_special: true,
    };
    let ids = tokenizer
        .encode("<s>hello<|im_end|><tool>hello", chat)
        .unwrap();
    assert_eq!(
        texts(&tokenizer, &ids),
        ["<s>", " hello", "<|im_end|>", "<tool>", " hello"]
    );
    let plain = tokenizer
        .encode("<s>hello<|im_end|><tool>", EncodeOptions::default())
        .unwrap();
    assert_eq!(plain[0], 1);
    assert!(!plain[1..].contains(&1) && !plain.contains(&end) && plain.contains(&tool));
    assert_eq!(
        tokenizer.decode(&ids, DetokenizeOptions::default()),
        "hello<tool> hello"
    );
    let all = DetokenizeOptions {
        skip_special: false,
        ..DetokenizeOptions::default()
    };
    assert_eq!(
        tokenizer.decode(&ids, all),
        "<s> hello<|im_end|><tool> hello"
    );
    assert_eq!(tokenizer.stop_ids(), [2, end]);
    assert_eq!(tokenizer.eot(), Some(end));
}

#[test]
fn the_longest_special_token_wins() {
    let pieces = [("<a>", CONTROL), ("<a><b>", CONTROL), ("<b>", CONTROL)];
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&pieces)).unwrap();
    let options = EncodeOptions {
        add_bos: false,
        parse_special: true,
    };
    let ids = tokenizer.encode("<a><a><b><b>", options).unwrap();
    assert_eq!(texts(&tokenizer, &ids), ["<a>", "<a><b>", "<b>"]);
}

#[test]
fn special_tokens_swallow_white_space_where_they_say_so() {
    let mut data = spm_data(&[("<l>", CONTROL), ("<r>", CONTROL), ("a", NORMAL)]);
    data.add_space_prefix = Some(false);
    data.strip_left = vec![259];
    data.strip_right = vec![260];
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    let options = EncodeOptions {
        add_bos: false,
        parse_special: true,
    };
    let ids = tokenizer.encode("a \n<l> a<r>\t a", options).unwrap();
    assert_eq!(texts(&tokenizer, &ids), ["a", "<l>", " ", "a", "<r>", "a"]);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_the_offset() {
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&words())).unwrap();
    assert_eq!(
        tokenizer.encode_bytes(b"hell\xff", RAW),
        Err(TokenizerError::NotUtf8 { offset: 4 })
    );
    assert_eq!(
        tokenizer.encode_bytes(b"hello", RAW),
        tokenizer.encode("hello", RAW)
    );
}

#[test]
fn the_empty_text_is_bos_alone() {
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&words())).unwrap();
    assert_eq!(tokenizer.encode("", RAW), Ok(vec![]));
    assert_eq!(tokenizer.encode("", EncodeOptions::default()), Ok(vec![1]));
    let mut data = spm_data(&words());
    data.add_bos = Some(false);
    data.add_eos = Some(true);
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    assert_eq!(tokenizer.encode("", EncodeOptions::default()), Ok(vec![2]));
}

#[test]
fn characters_are_never_split() {
    let tokenizer = Tokenizer::from_vocabulary(&spm_data(&words())).unwrap();
    let byte = |byte: u8| 3 + u32::from(byte);
    let mut detokenizer = tokenizer.detokenizer(DetokenizeOptions::continuation());
    let pieces: Vec<String> = "\u{20ac}"
        .bytes()
        .map(|b| detokenizer.push(byte(b)))
        .collect();
    assert_eq!(pieces, ["", "", "\u{20ac}"]);
    // E2 82 wants one more byte; "h" shows that it will not come.
    assert_eq!(detokenizer.push(byte(0xe2)), "");
    assert_eq!(detokenizer.push(byte(0x82)), "");
    assert!(detokenizer.has_partial());
    assert_eq!(detokenizer.push(byte(b'h')), "\u{fffd}h");
    assert_eq!(detokenizer.push(byte(0xff)), "\u{fffd}");
    assert_eq!(detokenizer.push(byte(0xf0)), "");
    assert_eq!(detokenizer.push(99_999), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

/// The error that `change` makes of a good vocabulary.
fn refused(mut data: VocabularyData, change: impl FnOnce(&mut VocabularyData)) -> String {
    change(&mut data);
    Tokenizer::from_vocabulary(&data).unwrap_err().to_string()
}

#[test]
fn bad_vocabularies_are_refused_by_name() {
    let spm = |change: &dyn Fn(&mut VocabularyData)| refused(spm_data(&words()), change);
    let cases = [
        spm(&|d| d.scores.truncate(5)),
        spm(&|d| d.scores[7] = f32::NAN),
        spm(&|d| d.token_types.push(1)),
        spm(&|d| d.token_types[4] = 17),
        spm(&|d| {
            d.tokens
                .push(b"h")
                .and_then(|()| d.token_types_push())
                .unwrap()
        }),
        spm(&|d| d.bos = Some(9_999)),
        spm(&|d| d.tokens = ByteStrings::new()),
        spm(&|d| d.model = "rwkv".into()),
        spm(&|d| d.token_types[260] = BYTE),
        spm(&|d| (d.bos, d.add_bos) = (None, Some(true))),
    ];
    let expected = [
        "tokenizer.ggml.scores: has 5 entries, the vocabulary has 270 tokens",
        "tokenizer.ggml.scores[7]: is NaN",
        "tokenizer.ggml.token_type: has 271 entries, the vocabulary has 270 tokens",
        "tokenizer.ggml.token_type[4]: 17 is not a token type",
        "tokens 260 and 270 are both \"h\"",
        "tokenizer.ggml.bos_token_id: token 9999 does not exist, the vocabulary has 270 tokens",
        "tokenizer.ggml.tokens: missing",
        "unknown tokenizer model \"rwkv\"",
        "tokenizer.ggml.tokens[260]: \"h\" has the type byte but is not of the form <0x0A>",
        "tokenizer.ggml.bos_token_id: missing",
    ];
    for (got, expected) in cases.iter().zip(expected) {
        assert!(got.starts_with(expected), "{got}\n{expected}");
    }
}

impl VocabularyData {
    fn token_types_push(&mut self) -> Result<(), TokenizerError> {
        self.token_types.push(NORMAL);
        self.scores.push(0.0);
        Ok(())
    }
}

/// A byte-level vocabulary of all bytes and what `merges` make.
fn bpe_data(merges: &[&str]) -> VocabularyData {
    let mut tokens = ByteStrings::new();
    let mut alphabet: Vec<(u8, char)> = bpe::byte_alphabet()
        .into_iter()
        .map(|(char, byte)| (byte, char))
        .collect();
    alphabet.sort_unstable();
    for (_, char) in alphabet {
        tokens.push(char.to_string().as_bytes()).unwrap();
    }
    for merge in merges {
        tokens.push(merge.replacen(' ', "", 1).as_bytes()).unwrap();
    }
    VocabularyData {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        merges: ByteStrings::collect(merges).unwrap(),
        ..VocabularyData::default()
    }
}

#[test]
fn bpe_merges_by_rank_from_left_to_right() {
    let tokenizer = Tokenizer::from_vocabulary(&bpe_data(&["a a", "aa a", "b c", "a b"])).unwrap();
    let ids = tokenizer.encode("aaaaa abc", RAW).unwrap();
    assert_eq!(texts(&tokenizer, &ids), ["aa", "aaa", " ", "a", "bc"]);
}

#[test]
fn bpe_merges_long_words_as_short_ones() {
    let tokenizer =
        Tokenizer::from_vocabulary(&bpe_data(&["a a", "aa aa", "b c", "a b", "ab c"])).unwrap();
    // Beyond 32 symbols the heap takes over: the same word, with a lone letter that merges with nothing between.
    let word = "aabcaaaabcbcaaab";
    let short = tokenizer.encode(word, RAW).unwrap();
    let long = tokenizer
        .encode(&format!("{word}x").repeat(20), RAW)
        .unwrap();
    let x = tokenizer.encode("x", RAW).unwrap();
    let expected = [short, x].concat().repeat(20);
    assert_eq!(long, expected);
}

#[test]
fn bad_byte_pair_vocabularies_are_refused_by_name() {
    let bpe = |change: &dyn Fn(&mut VocabularyData)| refused(bpe_data(&["a b"]), change);
    let cases = [
        bpe(&|d| d.merges.push(b"a c").unwrap()),
        bpe(&|d| d.merges.push(b"a nope").unwrap()),
        bpe(&|d| d.merges.push(b"nope a").unwrap()),
        bpe(&|d| d.merges.push(b"ab").unwrap()),
        bpe(&|d| d.merges.push(b"").unwrap()),
        bpe(&|d| d.merges = ByteStrings::new()),
        bpe(&|d| d.pre = None),
        bpe(&|d| d.pre = Some("gpt-9".into())),
    ];
    let expected = [
        "tokenizer.ggml.merges[1] = \"a c\": what it makes is not a token",
        "tokenizer.ggml.merges[1] = \"a nope\": its right part is not a token",
        "tokenizer.ggml.merges[1] = \"nope a\": its left part is not a token",
        "tokenizer.ggml.merges[1] = \"ab\": there is no space between two texts",
        "tokenizer.ggml.merges[1] = \"\": there is no space between two texts",
        "tokenizer.ggml.merges: missing",
        "tokenizer.ggml.pre: missing",
        "unknown pre-tokenizer \"gpt-9\"",
    ];
    for (got, expected) in cases.iter().zip(expected) {
        assert!(got.starts_with(expected), "{got}\n{expected}");
    }
}

#[test]
fn a_missing_byte_is_an_error_only_where_it_is_needed() {
    let mut data = bpe_data(&["a b"]);
    let texts: Vec<Vec<u8>> = data.tokens.iter().map(<[u8]>::to_vec).collect();
    data.tokens = ByteStrings::collect(texts.iter().filter(|text| *text != b"z")).unwrap();
    let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
    assert!(tokenizer.encode("abc", RAW).is_ok());
    assert_eq!(
        tokenizer.encode("ab cz", RAW),
        Err(TokenizerError::Unencodable {
            piece: "z".into(),
            offset: 4
        })
    );
}

/// The vocabulary of metadata with `changes` made to it; `None` takes a key out.
fn from_metadata(changes: &[(&str, Option<MetaValue<'static>>)]) -> Result<VocabularyData, String> {
    let get = |key: &str| {
        if let Some((_, value)) = changes.iter().find(|(changed, _)| *changed == key) {
            return value.clone();
        }
        Some(match key {
            "tokenizer.ggml.model" => MetaValue::String(b"llama"),
            "tokenizer.ggml.tokens" => MetaValue::Strings(vec![b"<unk>", b"<s>", b"</s>"]),
            "tokenizer.ggml.scores" => MetaValue::Floats(vec![0.0; 3]),
            "tokenizer.ggml.token_type" => MetaValue::Integers(vec![2, 3, 3]),
            _ => return None,
        })
    };
    vocabulary_from_gguf_metadata(&get).map_err(|error| error.to_string())
}

#[test]
fn metadata_is_read_with_defaults() {
    let data = from_metadata(&[]).unwrap();
    assert_eq!((data.unk, data.bos, data.eos), (Some(0), Some(1), Some(2)));
    assert_eq!((data.eot, data.pre, data.add_bos), (None, None, None));
    let changes = [
        ("tokenizer.ggml.eos_token_id", Some(MetaValue::Integer(1))),
        // Both ways in which files write "none".
        ("tokenizer.ggml.eot_token_id", Some(MetaValue::Integer(-1))),
        (
            "tokenizer.ggml.eom_token_id",
            Some(MetaValue::Integer(0xffff_ffff)),
        ),
        (
            "tokenizer.ggml.scores",
            Some(MetaValue::Integers(vec![0, -1, -2])),
        ),
        ("general.name", Some(MetaValue::String(b"Phi-3 mini"))),
    ];
    let data = from_metadata(&changes).unwrap();
    assert_eq!((data.eos, data.eot, data.eom), (Some(1), None, None));
    assert_eq!(data.scores, [0.0, -1.0, -2.0]);
    assert_eq!(data.strip_right, [2]);
}

#[test]
fn the_splitter_of_old_files_follows_from_the_architecture() {
    let with = |architecture: &'static [u8]| {
        let changes = [
            ("tokenizer.ggml.model", Some(MetaValue::String(b"gpt2"))),
            (
                "general.architecture",
                Some(MetaValue::String(architecture)),
            ),
        ];
        from_metadata(&changes).unwrap().pre
    };
    assert_eq!(with(b"gptneox").as_deref(), Some("gpt-2"));
    assert_eq!(with(b"starcoder2").as_deref(), Some("starcoder"));
    // Llama 3 and others share an architecture.
    assert_eq!(with(b"llama"), None);
}

#[test]
fn metadata_of_the_wrong_type_is_refused_by_name() {
    let one = |key, value| from_metadata(&[(key, value)]).unwrap_err();
    let cases = [
        one("tokenizer.ggml.model", None),
        one("tokenizer.ggml.tokens", None),
        one("tokenizer.ggml.tokens", Some(MetaValue::Integers(vec![1]))),
        one(
            "tokenizer.ggml.bos_token_id",
            Some(MetaValue::Integer(1 << 40)),
        ),
        one("tokenizer.ggml.add_bos_token", Some(MetaValue::Integer(1))),
        one("tokenizer.ggml.model", Some(MetaValue::String(b"\xff"))),
    ];
    let expected = [
        "tokenizer.ggml.model: missing",
        "tokenizer.ggml.tokens: missing",
        "tokenizer.ggml.tokens: expected an array of strings, found an array of integers",
        "tokenizer.ggml.bos_token_id: 1099511627776 is not a token id",
        "tokenizer.ggml.add_bos_token: expected a truth value, found an integer",
        "tokenizer.ggml.model: is not UTF-8",
    ];
    assert_eq!(cases, expected);
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// Text with much of what is hard: white space, letters of the vocabularies, marks, signs and emoji.
    fn hard_text() -> impl Strategy<Value = String> {
        let char = prop_oneof![
            4 => prop::sample::select(vec!['h', 'e', 'l', 'o', 'a', 'b', 'c']),
            3 => prop::sample::select(vec![' ', '\n', '\r', '\t', '\'', '1', '.']),
            1 => prop::sample::select(vec!['\u{301}', '\u{200d}', '\u{1f600}', '\u{e9}', '\u{4e2d}', '\u{3000}']),
            1 => any::<char>(),
        ];
        prop::collection::vec(char, 0..80).prop_map(String::from_iter)
    }

    fn tokenizers() -> &'static [Tokenizer] {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(build_tokenizers);
        &TOKENIZERS
    }

    fn build_tokenizers() -> Vec<Tokenizer> {
        let mut unsplittable = words();
        // A piece with a space inside: texts are then merged as a whole.
        unsplittable.push(("o\u{2581}h", NORMAL));
        let bpe = bpe_data(&[
            "a b",
            "b c",
            "\u{120} a",
            "l l",
            "\u{120}a b",
            "ll o",
            "h e",
        ]);
        let mut out = vec![
            Tokenizer::from_vocabulary(&spm_data(&words())).unwrap(),
            Tokenizer::from_vocabulary(&spm_data(&unsplittable)).unwrap(),
        ];
        for pre in ["gpt-2", "llama-bpe", "deepseek-v3", "gpt-4o"] {
            let mut data = bpe.clone();
            data.pre = Some(pre.into());
            out.push(Tokenizer::from_vocabulary(&data).unwrap());
        }
        out
    }

    /// Merging as the definition has it: of all pairs that make a piece the best, the leftmost of equals.
    fn naive_spm(tokenizer: &Tokenizer, scores: &[f32], text: &str) -> Vec<String> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for i in 1..parts.len() {
                let joined = [parts[i - 1].as_str(), parts[i].as_str()].concat();
                let Some(id) = tokenizer.inner.vocabulary.piece(joined.as_bytes()) else {
                    continue;
                };
                let score = scores[id as usize];
                if best.is_none_or(|(found, _)| score > found) {
                    best = Some((score, i));
                }
            }
            let Some((_, i)) = best else { return parts };
            let right = parts.remove(i);
            parts[i - 1].push_str(&right);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn decoding_gives_the_text_back(text in hard_text()) {
            for tokenizer in tokenizers() {
                let ids = tokenizer.encode(&text, RAW).unwrap();
                let back = tokenizer.decode(&ids, DetokenizeOptions::default());
                let expected = match tokenizer.model() {
                    "llama" => text.replace('\u{2581}', " "),
                    _ => text.clone(),
                };
                prop_assert_eq!(back, expected);
            }
        }

        #[test]
        fn streaming_gives_what_decoding_gives(ids in prop::collection::vec(0u32..300, 0..60)) {
            for tokenizer in tokenizers() {
                let mut bytes = Vec::new();
                for id in &ids {
                    if !tokenizer.is_special(*id) {
                        bytes.extend_from_slice(tokenizer.token_bytes(*id).unwrap_or_default());
                    }
                }
                let options = DetokenizeOptions::continuation();
                let mut stream = tokenizer.detokenizer(options);
                let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
                streamed.push_str(&stream.finish());
                prop_assert_eq!(&streamed, &tokenizer.decode(&ids, options));
                prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes));
            }
        }

        #[test]
        fn spm_merges_as_defined(text in "[ hello]{0,60}", with_inner_space: bool, seed: u32) {
            let mut pieces = words();
            if with_inner_space {
                pieces.push(("o\u{2581}h", NORMAL));
            }
            let mut data = spm_data(&pieces);
            // Scores in some order, some of them equal.
            for (i, score) in data.scores.iter_mut().enumerate() {
                *score = ((i as u32).wrapping_mul(seed | 1) >> 28) as f32;
            }
            data.add_space_prefix = Some(false);
            let tokenizer = Tokenizer::from_vocabulary(&data).unwrap();
            let ids = tokenizer.encode(&text, RAW).unwrap();
            prop_assert_eq!(texts(&tokenizer, &ids), naive_spm(&tokenizer, &data.scores, &text));
        }

        #[test]
        fn both_ways_of_merging_agree(word in "[abclohe]{0,32}") {
            let tokenizer = &tokenizers()[2];
            // An apostrophe would split it; what follows is of another class, so that the first word stays whole.
            let short = tokenizer.encode(&word, RAW).unwrap();
            let long = tokenizer.encode(&format!("{word}{}", "z".repeat(33)), RAW).unwrap();
            prop_assert_eq!(&long[..long.len() - 33], &short[..]);
        }

        #[test]
        fn no_vocabulary_makes_it_panic(
            model in prop::sample::select(vec!["llama", "gpt2", "gemma4", "t5", "bert"]),
            tokens in prop::collection::vec(
                prop_oneof!["[ab\u{2581} ]{0,4}", "<0x[0-9A-F]{2}>", "<[a-z|/]{0,4}>", "\\PC{0,3}"], 0..40),
            scores in prop::collection::vec(any::<f32>(), 0..40),
            token_types in prop::collection::vec(-1i32..8, 0..40),
            merges in prop::collection::vec("[ab\u{2581} ]{0,5}", 0..8),
            ids in prop::collection::vec(prop::option::of(0u32..50), 4),
            add in any::<Option<bool>>(),
            charsmap in prop::collection::vec(any::<u8>(), 0..40),
            fit: bool,
            text in "[ab\u{2581} <>|/]{0,30}",
        ) {
            let mut tokens = tokens;
            let (mut scores, mut token_types) = (scores, token_types);
            if fit {
                tokens.sort();
                tokens.dedup();
                scores.iter_mut().filter(|s| s.is_nan()).for_each(|s| *s = 0.0);
                scores.resize(tokens.len(), 1.0);
                token_types.iter_mut().for_each(|t| *t = t.rem_euclid(6));
                token_types.resize(tokens.len(), 1);
            }
            let data = VocabularyData {
                model: model.into(),
                pre: Some("default".into()),
                tokens: ByteStrings::collect(&tokens).unwrap(),
                scores,
                token_types,
                merges: ByteStrings::collect(&merges).unwrap(),
                bos: ids[0],
                eos: ids[1],
                unk: ids[2],
                sep: ids[3],
                add_bos: add,
                precompiled_charsmap: charsmap,
                ..VocabularyData::default()
            };
            let Ok(tokenizer) = Tokenizer::from_vocabulary(&data) else {
                return Ok(());
            };
            for parse_special in [false, true] {
                let options = EncodeOptions { add_bos: true, parse_special };
                if let Ok(ids) = tokenizer.encode(&text, options) {
                    prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                    tokenizer.decode(&ids, DetokenizeOptions::default());
                }
            }
        }
    }
}
