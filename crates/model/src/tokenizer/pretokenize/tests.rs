use super::*;

fn splitter(name: &str) -> PreTokenizer {
    PreTokenizer::new(&Family::by_name(name).unwrap()).unwrap()
}

fn words<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
    words_of(&splitter(name), text)
}

fn words_of<'a>(pre_tokenizer: &PreTokenizer, text: &'a str) -> Vec<&'a str> {
    let mut words = Vec::new();
    let visited = pre_tokenizer.split(text, &mut |word| {
        words.push(word);
        Ok::<(), ()>(())
    });
    assert_eq!(visited, Ok(()));
    words
}

fn golden(name: &str) -> serde_json::Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizer/");
    serde_json::from_slice(&std::fs::read(format!("{folder}{name}")).unwrap()).unwrap()
}

#[test]
fn splits_as_the_published_expressions_do() {
    let texts: Vec<String> = serde_json::from_value(golden("texts.json")).unwrap();
    let mut compared = 0;
    for (name, splits) in golden("splits.json").as_object().unwrap() {
        let pre_tokenizer = splitter(name);
        let splits: Vec<Vec<usize>> = serde_json::from_value(splits.clone()).unwrap();
        for (text, lengths) in texts.iter().zip(splits) {
            let mut rest = text.as_str();
            let expected: Vec<&str> = lengths
                .into_iter()
                .map(|length| {
                    let (word, after) = rest.split_at(length);
                    rest = after;
                    word
                })
                .collect();
            // Of the empty text there are no words.
            let expected = if text.is_empty() { vec![] } else { expected };
            assert_eq!(words_of(&pre_tokenizer, text), expected, "{name}: {text:?}");
            compared += 1;
        }
    }
    assert!(compared > 1000);
}

#[test]
fn every_name_has_a_splitter_that_compiles() {
    let text = "I'm 12345 \u{e9}\u{301}t\u{e9}\u{2003}  \n x";
    for name in known_names() {
        assert_eq!(words(name, text).concat(), text, "{name}");
    }
}

#[test]
fn an_unknown_name_is_an_error_that_says_it() {
    let error = Family::by_name("gpt-9").unwrap_err().to_string();
    assert!(
        error.contains("\"gpt-9\"") && error.contains("llama-bpe"),
        "{error}"
    );
}

#[test]
fn the_last_space_of_a_run_is_left_to_the_word_after_it() {
    assert_eq!(words("gpt-2", "a   b"), ["a", "  ", " b"]);
    assert_eq!(
        words("gpt-2", "a \n\n\u{1f600}"),
        ["a", " \n", "\n", "\u{1f600}"]
    );
    assert_eq!(
        words("llama-bpe", "a \n\n\u{1f600}"),
        ["a", " \n\n", "\u{1f600}"]
    );
    assert_eq!(
        words("llama-bpe", "a \n\n  b  "),
        ["a", " \n\n", " ", " b", "  "]
    );
    assert_eq!(words("llama-bpe", "a\u{3000}b"), ["a", "\u{3000}b"]);
    assert_eq!(
        words("gpt-2", "\u{3000}\u{3000}b"),
        ["\u{3000}", "\u{3000}", "b"]
    );
}

#[test]
fn long_texts_take_linear_time() {
    // Each would take hours if any alternative were tried again from every place.
    for unit in [" ", "\n ", "a", "'", "\u{301}", "1"] {
        let text = unit.repeat(300_000 / unit.len());
        for name in ["gpt-2", "llama-bpe", "gpt-4o", "exaone-moe"] {
            assert_eq!(words(name, &text).concat(), text);
        }
    }
}
