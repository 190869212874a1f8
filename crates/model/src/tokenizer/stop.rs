//! Tokens that end a turn, which files often name only by their text.

use super::vocabulary::{TextIndex, TokenType, VocabularyData};

/// Texts of tokens that end a turn or a text in published models, or a file where code is completed.
const STOP_TEXTS: &[&str] = &[
    "</s>",
    "<EOT>",
    "<PAD>",
    "<REPO>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<fim-pad>",
    "<fim-repo>",
    "<fim_pad>",
    "<reponame>",
    "<turn|>",
    "<|call|>",
    "<|calls|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|file_sep|>",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|flush|>",
    "<|im_end|>",
    "<|repo_name|>",
    "<|return|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[EOS]",
    "[EOT]",
    "[PAD]",
    "[e~[",
];

/// Ids that end a turn: those the file names, and those known by their text. Sorted, no id twice.
///
/// Tokens that are known by their text become control tokens, whatever type the file gives them, so that they never
/// appear as text.
pub(crate) fn find_stop_ids(
    data: &VocabularyData,
    index: &TextIndex,
    types: &mut [TokenType],
) -> Vec<u32> {
    let find = |text: &str| index.find(&data.tokens, text.as_bytes());
    let has = |text: &str| find(text).is_some();
    // Where messages end with <|end|> inside a turn, only the others end the turn.
    let messages_in_turn = (has("<|return|>") && has("<|call|>"))
        || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
    // Vocabularies in which </s> is markup.
    let markup = has("<|tool_response>") || has("<|plamo:eos|>");
    let mut ids: Vec<u32> = [data.eos, data.eot, data.eom]
        .into_iter()
        .flatten()
        .collect();
    for text in STOP_TEXTS {
        if (messages_in_turn && *text == "<|end|>") || (markup && *text == "</s>") {
            continue;
        }
        let Some(id) = find(text) else { continue };
        ids.push(id);
        if let Some(kind) = types.get_mut(id as usize) {
            *kind = TokenType::Control;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The token that ends a turn: the file's, or the one known by its text.
pub(crate) fn find_eot(data: &VocabularyData, index: &TextIndex) -> Option<u32> {
    let texts = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<turn|>",
        "<end_of_utterance>",
        "<EOT>",
        "[EOT]",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    ];
    data.eot.or_else(|| {
        texts
            .iter()
            .find_map(|text| index.find(&data.tokens, text.as_bytes()))
    })
}
