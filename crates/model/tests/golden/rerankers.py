#!/usr/bin/env python3
"""Make a tiny reranker of Qwen3-Reranker's kind, and what it says of a query and documents. Needs numpy and gguf.

    python rerankers.py    # writes classifiers/qwen3-reranker, rerankers.json beside this script

Published as a decoder with a head of one row (`score.weight`: the row of "yes" less that of "no"), which reads the last
token after a prompt that holds both texts. The forward pass is `reference.py`'s, in float64.
"""

import json
import shutil

import numpy as np
import tokenizers

from formats import Q, unpack
from make import (
    HERE, VOCAB, Case, config, draw, hf_config, hf_name, reference, significant, tokenizer_json, write_json, write_safetensors,
)
from reference import EXACT, Arithmetic

# As the model's card and llama.cpp's converter have it.
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, '
    "retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
QUERY = "where does the hen sit?"
DOCUMENTS = ["the hen sat on an egg", "and then {query} the sea", "<|im_end|> Köln"]
CASE = Case("reranker", config(hidden=20, layers=2, heads=2, kv_heads=1, head_dim=12, ffn=28, rope_layout="halves",
                               qk_norm=True), Q.BF16, architecture="qwen3", container="hf")


def special_tokens() -> dict:
    """The golden tokenizer; its two special tokens begin and end turns."""
    text = json.dumps(tokenizer_json())
    text = text.replace("<|begin_of_text|>", "<|im_start|>").replace("<|end_of_text|>", "<|im_end|>")
    tokenizer = json.loads(text)
    tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return tokenizer


def main() -> None:
    stored = draw(CASE, 3)
    head = np.random.default_rng(11).standard_normal((1, CASE.config.hidden)).astype(np.float32)
    stored_head = (head, Q.F32)
    model = reference(CASE, stored)
    row = unpack(*stored_head)[0]
    folder = HERE / "classifiers" / "qwen3-reranker"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = hf_config(CASE.config, CASE.kind) | {
        "architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3", "id2label": {"0": "LABEL_0"},
        "tie_word_embeddings": False, "max_position_embeddings": 1024,
    }
    write_json(folder / "config.json", options)
    write_json(folder / "tokenizer.json", special_tokens())
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    write_safetensors(folder / "model.safetensors",
                      {hf_name(name): tensor for name, tensor in stored.items()} | {"score.weight": stored_head})
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = []
    for document in DOCUMENTS:
        before, between = PROMPT.split("{query}")
        between, after = between.split("{document}")
        tokens = encoder.encode(before + QUERY + between + document + after).ids
        logit = float(hidden(model, tokens, EXACT)[-1] @ row)
        # What rounding keys and values to f16 does; the tolerance is four times the most of that.
        moved = abs(float(hidden(model, tokens, Arithmetic(half_kv=True))[-1] @ row) - logit)
        pairs.append({"document": document, "tokens": tokens, "logit": logit, "moved": moved})
    assert VOCAB == CASE.config.vocab
    tolerance = significant(4 * max(pair.pop("moved") for pair in pairs))
    write_json(HERE / "rerankers.json", {"query": QUERY, "tolerance": tolerance, "pairs": pairs})


def hidden(model, tokens, arithmetic) -> np.ndarray:
    """Rows after the last norm: the output of a model whose output matrix does nothing."""
    identity = np.eye(model.config.hidden)

    class Bare(type(model)):
        def linear(self, x, name, arithmetic):
            return x @ identity if name == "embed" else super().linear(x, name, arithmetic)

    return Bare(model.config, model.weights, model.quantized).forward(tokens, arithmetic)


if __name__ == "__main__":
    main()
