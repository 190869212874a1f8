//! WordPiece as GGUF files have it, encoded by the `tokenizers` crate.
//!
//! In the file a word begins with U+2581 and what continues one has no mark; the crate wants it the other way round,
//! with `##` before continuations.

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Model, ModelWrapper};

use super::error::{TokenizerError, invalid};
use super::hf::{Encoder, HfEncoder, guarded};
use super::spm::{ESCAPED_SPACE, surfaces};
use super::vocabulary::{TokenType, Vocabulary, VocabularyData};

/// Builds the encoder and the vocabulary.
pub(crate) fn build(
    data: &VocabularyData,
    types: Vec<TokenType>,
) -> Result<(HfEncoder, Vocabulary), TokenizerError> {
    let tokens: Vec<&str> = data
        .tokens
        .iter()
        .enumerate()
        .map(|(id, text)| {
            std::str::from_utf8(text)
                .map_err(|_| invalid(format!("tokenizer.ggml.tokens[{id}]"), "is not UTF-8"))
        })
        .collect::<Result<_, _>>()?;
    let unk = data.unk.and_then(|id| tokens.get(id as usize));
    let unk = unk.ok_or_else(|| TokenizerError::Missing {
        field: "tokenizer.ggml.unknown_token_id".into(),
    })?;
    let model = guarded(|| word_piece(&tokens, &types, unk))??;
    let added: Vec<AddedToken> = tokens
        .iter()
        .zip(&types)
        .filter(|(text, _)| !text.is_empty())
        .filter_map(|(text, kind)| match kind {
            TokenType::Control | TokenType::Unknown => Some(AddedToken::from(*text, true)),
            TokenType::UserDefined => Some(AddedToken::from(*text, false).normalized(false)),
            _ => None,
        })
        .collect();
    let lowercase = data.lowercase.unwrap_or(true);
    let strip_accents = data.strip_accents.unwrap_or(lowercase);
    let complete = |encoder: &mut Encoder| {
        let normalizer = BertNormalizer::new(true, true, Some(strip_accents), lowercase);
        encoder
            .with_normalizer(Some(normalizer))
            .map_err(|error| error.to_string())?
            .with_pre_tokenizer(Some(BertPreTokenizer));
        let (special, text): (Vec<_>, Vec<_>) = added.iter().cloned().partition(|t| t.special);
        encoder
            .add_special_tokens(special)
            .map_err(|error| error.to_string())?;
        encoder
            .add_tokens(text)
            .map_err(|error| error.to_string())?;
        Ok(())
    };
    let encoder = guarded(|| HfEncoder::new(ModelWrapper::WordPiece(model), None, &complete))?
        .map_err(|reason| invalid("tokenizer.ggml.tokens", reason))?;
    let vocabulary = Vocabulary::new(surfaces(&data.tokens, &types)?, types, |_, kind| {
        kind.is_piece()
    });
    Ok((encoder, vocabulary))
}

fn word_piece(
    tokens: &[&str],
    types: &[TokenType],
    unk: &str,
) -> Result<WordPiece, TokenizerError> {
    let mut list = String::new();
    for (id, (text, kind)) in tokens.iter().zip(types).enumerate() {
        if text.contains(['\n', '\r']) {
            let field = format!("tokenizer.ggml.tokens[{id}]");
            return Err(invalid(field, "has a line break inside, which no word has"));
        }
        match (kind, text.strip_prefix(ESCAPED_SPACE)) {
            (TokenType::Normal | TokenType::Unused, Some(word)) => list.push_str(word),
            (TokenType::Normal | TokenType::Unused, None) => {
                list.push_str("##");
                list.push_str(text);
            }
            _ => list.push_str(text),
        }
        list.push('\n');
    }
    let fail = |error: tokenizers::Error| invalid("tokenizer.ggml.tokens", error.to_string());
    // The crate's own map is of a type that it does not name to others; its reader of lists makes one.
    let vocab = WordPiece::read_bytes(list.as_bytes()).map_err(fail)?;
    let model = WordPiece::builder()
        .vocab(vocab)
        .unk_token(unk.to_owned())
        .build()
        .map_err(fail)?;
    // The list is by lines, trimmed: a text with spaces around it, or twice the same, would go unnoticed.
    for (id, line) in (0u32..).zip(list.lines()) {
        if !line.is_empty() && model.token_to_id(line) != Some(id) {
            let field = format!("tokenizer.ggml.tokens[{id}]");
            return Err(invalid(
                field,
                format!("{line:?} is no word, or there twice"),
            ));
        }
    }
    Ok(model)
}
