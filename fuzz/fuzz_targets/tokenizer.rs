//! Any vocabulary and any text: built, encoded, decoded.
//!
//! The input is lines: the algorithm, the splitter, numbers (one byte each: ids and types), tokens and merges
//! separated by tabs, and the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use neap_model::tokenizer::{
    ByteStrings, DetokenizeOptions, EncodeOptions, Tokenizer, VocabularyData,
};

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(6, |byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (model, pre, numbers, tokens, merges, text) =
        (next(), next(), next(), next(), next(), next());
    let number = |index: usize| numbers.get(index).map_or(0, |byte| byte.wrapping_sub(b'0'));
    let id = |index: usize| Some(u32::from(number(index))).filter(|id| *id < 0x40);
    let flag = |index: usize| [None, Some(false), Some(true)][usize::from(number(index) % 3)];
    let words = |line: &[u8]| ByteStrings::collect(line.split(|byte| *byte == b'\t')).unwrap();
    let tokens = words(tokens);
    let kind = |index: usize| i32::from(number(8 + index % numbers.len().max(1)) % 7);
    let data = VocabularyData {
        model: String::from_utf8_lossy(model).into_owned(),
        pre: Some(String::from_utf8_lossy(pre).into_owned()),
        scores: (0..tokens.len())
            .map(|i| f32::from(number(i)) - 40.0)
            .collect(),
        token_types: (0..tokens.len()).map(kind).collect(),
        tokens,
        merges: words(merges),
        bos: id(0),
        eos: id(1),
        unk: id(2),
        sep: id(3),
        add_bos: flag(4),
        add_space_prefix: flag(5),
        remove_extra_whitespaces: number(6) % 2 == 1,
        precompiled_charsmap: if number(7) % 4 == 1 {
            text.to_vec()
        } else {
            Vec::new()
        },
        ..VocabularyData::default()
    };
    let Ok(tokenizer) = Tokenizer::from_vocabulary(&data) else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    for parse_special in [false, true] {
        let options = EncodeOptions {
            add_bos: true,
            parse_special,
        };
        let Ok(ids) = tokenizer.encode(&text, options) else {
            continue;
        };
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        let whole = tokenizer.decode(&ids, DetokenizeOptions::default());
        let mut stream = tokenizer.detokenizer(DetokenizeOptions::default());
        let mut pieces: String = ids.iter().map(|id| stream.push(*id)).collect();
        pieces.push_str(&stream.finish());
        assert_eq!(pieces, whole);
    }
});
