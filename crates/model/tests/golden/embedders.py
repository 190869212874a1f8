#!/usr/bin/env python3
"""Make tiny models that turn texts into vectors, with Hugging Face transformers, and the vectors that it gives.

    pip install torch transformers
    python embedders.py               # writes embedders/, embedders.json beside this script
    python embedders.py modern-bert   # only these

Weights are random, in BF16; vectors are computed in float64 and brought to length 1.
"""

import base64
import json
import pathlib
import shutil
import sys

import torch
import transformers as T

from architectures import TOKENS, VOCAB
from make import tokenizer_json, write_json

HERE = pathlib.Path(__file__).parent


def wordpiece() -> dict:
    """A WordPiece tokenizer of VOCAB tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = special + list(letters) + ["##" + letter for letter in letters] + ["the", "hen", "##ing", "##ed", ".", ","]
    words += [f"[unused{i}]" for i in range(VOCAB - len(words))]
    vocab = {word: i for i, word in enumerate(words)}
    added = [{"id": vocab[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for word in special]
    piece = lambda kind, id: {kind: {"id": id, "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("SpecialToken", "[CLS]"), piece("Sequence", "A"), piece("SpecialToken", "[SEP]")],
            "pair": [piece("SpecialToken", "[CLS]"), piece("Sequence", "A"), piece("SpecialToken", "[SEP]"),
                     {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {word: {"id": word, "ids": [vocab[word]], "tokens": [word]} for word in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    }


def unigram() -> dict:
    """A Unigram tokenizer of VOCAB tokens in the form of XLM-RoBERTa's, with pieces and table of ../data's."""
    known = json.loads((HERE / "../data/tokenizer/unigram.json").read_text())["vocabulary"]
    pieces = list(zip(known["tokenizer.ggml.tokens"], known["tokenizer.ggml.scores"]))
    vocab = [(word, 0.0) for word in ("<s>", "<pad>", "</s>", "<unk>")] + pieces[4:VOCAB - 1] + [("<mask>", 0.0)]
    assert len(vocab) == VOCAB
    ids = {word: vocab.index((word, 0.0)) for word in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")}
    added = [{"id": id, "content": word, "single_word": False, "lstrip": word == "<mask>", "rstrip": False,
              "normalized": False, "special": True} for word, id in ids.items()]
    special = lambda word: {"SpecialToken": {"id": word, "type_id": 0}}
    text = lambda which: {"Sequence": {"id": which, "type_id": 0}}
    single = [special("<s>"), text("A"), special("</s>")]
    table = base64.b64encode(bytes(known["tokenizer.ggml.precompiled_charsmap"])).decode()
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": table}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]},
        "post_processor": {"type": "TemplateProcessing", "single": single,
                           "pair": single + [special("</s>"), text("B"), special("</s>")],
                           "special_tokens": {word: {"id": word, "ids": [ids[word]], "tokens": [word]} for word in ("<s>", "</s>")}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


BERT_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
               "tokenizer_class": "BertTokenizer"}
XLM_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>",
              "pad_token": "<pad>", "mask_token": "<mask>", "tokenizer_class": "XLMRobertaTokenizer"}
QWEN_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"}
CASES = {
    "bert": (T.BertConfig(vocab_size=VOCAB, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=60,
                          max_position_embeddings=64), "mean", BERT_TOKENS),
    # 64 positions: the first two rows are not used.
    "xlm-roberta": (T.XLMRobertaConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
                                       intermediate_size=28, max_position_embeddings=66, type_vocab_size=1,
                                       layer_norm_eps=1e-5), "mean", XLM_TOKENS),
    "nomic-bert": (T.NomicBertConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                                     intermediate_size=28, max_position_embeddings=64), "mean", BERT_TOKENS),
    # Windows of 6 to each side, much shorter than the text.
    "modern-bert": (T.ModernBertConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=4, num_attention_heads=3,
                                       intermediate_size=28, max_position_embeddings=64, local_attention=12, pad_token_id=0,
                                       bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3), "mean", BERT_TOKENS),
    "qwen3-embedding": (T.Qwen3Config(vocab_size=VOCAB, hidden_size=36, intermediate_size=52, num_hidden_layers=2,
                                      num_attention_heads=6, num_key_value_heads=2, head_dim=10, max_position_embeddings=128,
                                      tie_word_embeddings=True, bos_token_id=256, eos_token_id=257), "last", QWEN_TOKENS),
}


def positions(config) -> dict:
    """Where positions begin later they are given: TOKENS holds the padding token, which transformers would not count."""
    if config.model_type != "xlm-roberta":
        return {}
    first = config.pad_token_id + 1
    return {"position_ids": torch.arange(first, first + len(TOKENS))[None]}


def pooled(rows, how):
    vector = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[how]
    return (vector / vector.norm()).tolist()


def make(name: str) -> dict:
    config, pooling, tokens = CASES[name]
    torch.manual_seed(3)
    config._attn_implementation = "eager"
    model = T.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() == 1:
                value.uniform_(-0.5, 0.5) if key.endswith("bias") else value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.5 if "embed" in key else value.shape[-1] ** -0.5)
            value.copy_(value.bfloat16())
    model = model.double()
    with torch.no_grad():
        rows = model(torch.tensor([TOKENS]), **positions(config)).last_hidden_state[0]
    folder = HERE / "embedders" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().save_pretrained(folder)
    makers = {id(BERT_TOKENS): wordpiece, id(XLM_TOKENS): unigram, id(QWEN_TOKENS): tokenizer_json}
    tokenizer = makers[id(tokens)]()
    if tokens is QWEN_TOKENS:
        tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", tokens)
    return {"name": name, "pooling": pooling, "vectors": {how: pooled(rows, how) for how in ("mean", "cls", "last")}}


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(CASES)
    path = HERE / "embedders.json"
    known = {entry["name"]: entry for entry in json.loads(path.read_text())["models"]} if path.exists() else {}
    known |= {name: make(name) for name in wanted}
    write_json(path, {"models": [known[name] for name in CASES if name in known]})
