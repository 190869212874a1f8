#!/usr/bin/env python3
"""Make tiny classifiers with Hugging Face transformers, a cross-encoder among them, and the logits that they give.

    pip install torch transformers
    python classifiers.py    # writes classifiers/, classifiers.json beside this script

Weights are random, in BF16; logits are computed in float64. `second` is where the second of two texts begins.
"""

import shutil

import tokenizers
import torch
import transformers as T

from architectures import TOKENS, VOCAB
from embedders import BERT_TOKENS, HERE, XLM_TOKENS, positions, unigram, wordpiece
from make import write_json

SIZES = dict(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=28,
             max_position_embeddings=64)
CASES = {
    "cross-encoder": (T.BertForSequenceClassification, T.BertConfig(**SIZES, num_labels=1)),
    # 64 positions: the first two rows are not used.
    "xlm-roberta": (T.XLMRobertaForSequenceClassification, T.XLMRobertaConfig(
        **SIZES | {"max_position_embeddings": 66}, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1)),
    "modern-bert": (T.ModernBertForSequenceClassification, T.ModernBertConfig(
        **SIZES, num_labels=3, id2label={0: "good", 1: "bad", 2: "neither"}, local_attention=12, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, classifier_pooling="mean")),
}


def make(name: str) -> dict:
    kind, config = CASES[name]
    torch.manual_seed(5)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() == 1:
                value.uniform_(-0.5, 0.5) if key.endswith("bias") else value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.5 if "embed" in key else value.shape[-1] ** -0.5)
            value.copy_(value.bfloat16())
    model = model.double()
    second = 15
    places = positions(config)
    types = {"token_type_ids": torch.tensor([[0] * second + [1] * (len(TOKENS) - second)])} if name == "cross-encoder" else {}
    with torch.no_grad():
        one = model(torch.tensor([TOKENS]), **places).logits[0].tolist()
        pair = model(torch.tensor([TOKENS]), **places, **types).logits[0].tolist()
    folder = HERE / "classifiers" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().save_pretrained(folder)
    tokenizer, tokens = (unigram(), XLM_TOKENS) if name == "xlm-roberta" else (wordpiece(), BERT_TOKENS)
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", tokens)
    labels = [config.id2label[i] for i in range(config.num_labels)]
    texts = ["the hen sat", "an egg, 12 of them"]
    together = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(*texts)
    return {"name": name, "labels": labels, "second": second, "one": one, "pair": pair, "texts": texts,
            "tokens": together.ids}


if __name__ == "__main__":
    write_json(HERE / "classifiers.json", {"models": [make(name) for name in CASES]})
