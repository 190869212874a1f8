#!/usr/bin/env python3
"""Makes the golden encodings that the tokenizer tests compare with.

Needs sentencepiece, tokenizers and protobuf from PyPI (made with sentencepiece 0.2.3 and tokenizers 0.23.3), and
`tok512.model` of llama2.c (https://huggingface.co/karpathy/tinyllamas, stories260K; MIT licence, see tokenizer/README.md):

    make_tokenizer_goldens.py path/to/tok512.model

Writes into tokenizer/ beside this script:
    texts.json             the texts, in many scripts, hard to split
    splits.json            for each splitter of GGUF files, the lengths in bytes of the words of each text
    spm_tok512.json        a real SentencePiece BPE vocabulary and the ids of each text
    spm_plain.json         one without byte tokens, with user-defined symbols
    unigram.json           a SentencePiece Unigram vocabulary with a normalization table
    bpe.json               a byte-level BPE vocabulary as GGUF has it, ids under several splitters
    bpe_tokenizer.json     the same as tokenizer.json
    llama_tokenizer.json   tok512 as tokenizer.json, in the form of Llama 2
    wordpiece_tokenizer.json, wordpiece.json   WordPiece as tokenizer.json, and as GGUF has it
    hf.json                ids and decoded texts of the three tokenizer.json files
"""

import io
import json
import os
import sys
import tempfile

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as sp_model
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")

TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n\n",
    " \n \n",
    "Hello world",
    " Hello world",
    "Hello  world ",
    "Hello, world! How are you?",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "It's John's book; they've said I'll, he'd, we're, can't, I'M, YOU'LL, DON'T, 'tis",
    "'S'T'RE'VE'M'LL'D 's't're've'm'll'd ''s '' '",
    "a\u017f 'ſ 'K d’accord l’été",
    "1 12 123 1234 12345 123456 1234567 1,234,567.89 3.14e-10 0x1F",
    "x1y22z333 4a55b666c ½ ² Ⅷ ١٢٣٤٥ १२३४५ 一二三 ௧௨௩",
    "   leading and trailing   ",
    "tab\tseparated\t\tvalues\t \t mixed",
    "line one\nline two\r\nline three\rline four\n\n\n  indented\n\t\ttabs\n",
    "def f(x):\n    if x > 0:\n        return x ** 2  # square\n    else:\n        return -x\n",
    "{\"key\": [1, 2.5, null, true], \"s\": \"a\\nb\\u00e9\"}",
    "https://example.com/path?query=1&other=two#frag user@host.org /usr/local/bin",
    "!!!??? ... --- ***bold*** __init__ (((())))[[]]{{}} <|x|> @#$%^&*~`",
    "$100 €200 £300 ¥400 5% 10‰ 25°C a+b=c x≤y ∀x∈ℝ ∑∫√∞ →⇒",
    "café naïve façade Ångström Zürich Łódź São Paulo",
    "cafe\u0301 nai\u0308ve a\u030angstro\u0308m e\u0301\u0302\u0303 \u0301lone",
    "Straße ẞ ŒUVRE œuvre ﬁligree ﬀ Ǆ ǅ ǆ İstanbul ıI",
    "CamelCaseWord HTTPServer iPhone McDonald XMLHttpRequest snake_case SCREAMING_CASE kebab-case",
    "Привет, мир! Съешь ещё этих мягких французских булок. ЁЛКА",
    "Γειά σου Κόσμε! Ὀδυσσεύς ἄνδρα μοι ἔννεπε",
    "שלום עולם! מה שלומך? בְּרֵאשִׁית",
    "مرحبا بالعالم! كيف حالك؟ السَّلَامُ عَلَيْكُمْ ١٢٣",
    "नमस्ते दुनिया! क्षत्रिय हिन्दी में लिखा १२३",
    "হ্যালো বিশ্ব! বাংলা ভাষা",
    "வணக்கம் உலகம்! தமிழ் மொழி",
    "สวัสดีชาวโลก! ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓",
    "ສະບາຍດີ ភាសាខ្មែរ မင်္ဂလာပါ བོད་སྐད་",
    "你好，世界！今天天气很好。我有3个苹果，价值12.5元。",
    "繁體中文測試：「引號」、頓號；冒號……",
    "こんにちは世界！カタカナとひらがな、漢字も混ざる。ﾊﾝｶｸ",
    "안녕하세요 세계! 한국어 테스트입니다. ㄱㄴㄷ",
    "Xin chào thế giới! Tiếng Việt có dấu. Türkçe ğüşiöç",
    "ህሎ ዓለም ᏣᎳᎩ ᓄᓇᕗᑦ გამარჯობა Բարեւ",
    "😀😃😄 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☺️ 🤷🏻‍♀️",
    "emoji😀in😀words 😀 😀😀 a😀",
    "zero\u200bwidth\u200cjoin\u200der \u2060word\ufeffbom soft\u00adhyphen",
    "nbsp\u00a0here thin\u2009space em\u2003space ideographic\u3000space line\u2028sep para\u2029sep nel\u0085x",
    "\u00a0\u00a0leading nbsp \u3000 \u2003",
    "control\u0001\u0002\u001b[31m\u007f chars \ufffd",
    "\u2581literal\u2581lower\u2581block \u2581 \u2581\u2581",
    "Ġliteral Ċ byte Ġ Ġ alphabet âĢĻ",
    "<s> </s> <unk> <0x0A> <0xE4> <|endoftext|>",
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３ ㍿ ① ㎏",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒮𝒸𝓇𝒾𝓅𝓉 𐍈𐌰𐌹 𒀭 𓀀 𠮷野家",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethethethethethethe ininininin lololololol",
    "                                                                 x",
    "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\nx",
    " \t \t\n \t\r\n  y",
    "word\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307word",
    "a.b.c...d....e,f,,g;;h::i''j\"\"k--l---m//n\\\\o",
    "Mixed 日本語 and English とעברית и русский עם 123 and 한국어.",
    "3...2...1...0! 50-50 24/7 9:30am 2024-07-26T23:30:45Z +1 (555) 010-9999",
    "x = [i**2 for i in range(10) if i % 2 == 0]  // C++ comment\n\n\t/* block */;;",
    "  two  spaces   three    four     five",
    "end with newline\n",
    "end with spaces  ",
    "end with newlines and spaces \n \n  ",
]

LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2"
    "\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + TAIL
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PRE = r"[^\r\n\p{L}\p{N}]?"
GPT4O = (
    f"{PRE}{UPPER}*{LOWER}+{CONTRACTIONS}?|{PRE}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
)
TEKKEN = f"{PRE}{UPPER}*{LOWER}+|{PRE}{UPPER}+{LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + TAIL
)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# The regular expressions that vocabularies publish in their tokenizer.json, by the name of the splitter in GGUF.
SPLITTERS = {
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [QWEN35],
    "gpt-4o": [GPT4O],
    "tekken": [TEKKEN],
    "starcoder": [r"\p{N}", GPT2],
    "smollm": [r"\p{N}", GPT2],
    "deepseek-llm": [
        r"[\r\n]",
        r"\s?[" + LETTERS + "]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}+",
    ],
    "deepseek-coder": [
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ],
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "bailingmoe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "seed-coder": [
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + TAIL
    ],
    "exaone-moe": [
        CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
        + r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
}


def splitter(patterns):
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def write(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


def make_splits():
    out = {}
    for name, patterns in SPLITTERS.items():
        sequence = pre_tokenizers.Sequence(splitter(patterns))
        out[name] = []
        for text in TEXTS:
            words = [word for word, _ in sequence.pre_tokenize_str(text)] if text else []
            assert "".join(words) == text, (name, text, words)
            out[name].append([len(word.encode()) for word in words])
    write("splits.json", out)


def vocabulary_of(processor, model):
    ids = range(processor.get_piece_size())
    kinds = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE
    pieces = model.pieces
    return {
        "tokenizer.ggml.tokens": [pieces[i].piece for i in ids],
        "tokenizer.ggml.scores": [pieces[i].score for i in ids],
        "tokenizer.ggml.token_type": [kinds[pieces[i].type] for i in ids],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }


def load_sentencepiece(data, keep_spaces=True):
    model = sp_model.ModelProto()
    model.ParseFromString(data)
    if keep_spaces:
        # llama.cpp and llama2.c keep runs of spaces, whatever this flag says.
        model.normalizer_spec.remove_extra_whitespaces = False
    return spm.SentencePieceProcessor(model_proto=model.SerializeToString()), model


def spm_case(processor, text):
    ids = processor.encode(text)
    return {"text": text, "ids": ids}


def make_spm(path):
    with open(path, "rb") as file:
        processor, model = load_sentencepiece(file.read())
    assert model.normalizer_spec.name == "identity"
    write(
        "spm_tok512.json",
        {
            "vocabulary": {"tokenizer.ggml.model": "llama", **vocabulary_of(processor, model)},
            "cases": [spm_case(processor, text) for text in TEXTS],
        },
    )
    return processor, model


def train(model_type, **options):
    """Trains on the texts in Latin script, so that the others are unknown."""
    out = io.BytesIO()
    latin = [text for text in TEXTS if sum(ord(c) > 0x17F for c in text) * 4 <= len(text)]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in latin for line in text.splitlines() if line]),
        model_writer=out,
        model_type=model_type,
        num_threads=1,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


def make_spm_plain():
    data = train(
        "bpe",
        vocab_size=420,
        character_coverage=0.98,
        user_defined_symbols=["<tool>", "the", "::"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    processor, model = load_sentencepiece(data)
    write(
        "spm_plain.json",
        {
            "vocabulary": {"tokenizer.ggml.model": "llama", **vocabulary_of(processor, model)},
            # Texts with user-defined symbols inside are left out: llama.cpp, which is followed there, puts a space
            # before what comes after a special token, and SentencePiece does not.
            "cases": [
                spm_case(processor, text)
                for text in TEXTS
                if not any(symbol in text for symbol in ["<tool>", "the", "::"])
            ],
        },
    )


def normalization_rules():
    """A small table of the kind that NFKC makes: sequences of one to three characters, to none, one or several."""
    rules = {"e\u0301": "é", "a\u030a": "å", "e\u0301\u0302": "ê", "\ufb01": "fi", "\ufb00": "ff", "\u00bd": "1/2"}
    rules |= {"\u2167": "VIII", "\u2026": "...", "\u00ad": "", "\u200b": "", "\t": " ", "\n": " ", "\r": " "}
    rules |= {"\u00a0": " ", "\u3000": " ", "\u2003": " ", "\u2009": " ", "\u338f": "kg", "\u0130": "I"}
    rules |= {chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}
    lines = []
    for source, target in rules.items():
        lines.append("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (source, target)))
    return "\n".join(lines) + "\n"


def make_unigram():
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(normalization_rules())
        file.flush()
        data = train(
            "unigram",
            vocab_size=500,
            character_coverage=0.98,
            normalization_rule_tsv=file.name,
            user_defined_symbols=["<tool>"],
        )
    processor, model = load_sentencepiece(data, keep_spaces=False)
    write(
        "unigram.json",
        {
            "vocabulary": {
                "tokenizer.ggml.model": "t5",
                "tokenizer.ggml.remove_extra_whitespaces": True,
                "tokenizer.ggml.add_space_prefix": True,
                "tokenizer.ggml.add_eos_token": False,
                "tokenizer.ggml.precompiled_charsmap": list(model.normalizer_spec.precompiled_charsmap),
                **vocabulary_of(processor, model),
            },
            "cases": [spm_case(processor, text) for text in TEXTS],
        },
    )


def bpe_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitter([QWEN2]), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer, byte_level


def make_bpe():
    tokenizer, byte_level = bpe_tokenizer()
    state = json.loads(tokenizer.to_str())
    with open(os.path.join(HERE, "bpe_tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(state, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    types = [1] * size
    for added in state["added_tokens"]:
        types[added["id"]] = 3 if added["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    chat = "<|im_start|>user\nHi <tool_call> there<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    cases = {}
    for name in ["gpt-2", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3", "starcoder"]:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitter(SPLITTERS[name]), byte_level])
        # Splitters whose name says so take a word that is a token whole.
        tokenizer.model.ignore_merges = name == "llama-bpe"
        tokenizer.encode_special_tokens = True
        plain = [tokenizer.encode(text).ids for text in [*TEXTS, chat]]
        tokenizer.encode_special_tokens = False
        cases[name] = {"plain": plain, "chat": tokenizer.encode(chat).ids}
    write(
        "bpe.json",
        {
            "vocabulary": {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": types,
                "tokenizer.ggml.merges": merges,
                "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
            },
            "chat": chat,
            "cases": cases,
        },
    )


def llama_tokenizer(processor, model):
    """tok512 in the form that Llama 2 has: merges in the order of the scores of what they make."""
    pieces = [piece.piece for piece in model.pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i, piece in enumerate(model.pieces):
        if piece.type == 1:
            for cut in range(1, len(piece.piece)):
                left, right = piece.piece[:cut], piece.piece[cut:]
                if left in vocab and right in vocab:
                    merges.append((-piece.score, vocab[left], vocab[right], left, right))
    merges = [(left, right) for *_, left, right in sorted(merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ["<unk>", "<s>", "</s>"]]
    )
    return tokenizer


def wordpiece_tokenizer():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, show_progress=False, special_tokens=special)
    # The spelling of GGUF files cannot tell U+2581 in a word from the beginning of one.
    tokenizer.train_from_iterator([text for text in TEXTS if "\u2581" not in text], trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def make_hf(processor, model):
    made = {
        "bpe": Tokenizer.from_file(os.path.join(HERE, "bpe_tokenizer.json")),
        "llama": llama_tokenizer(processor, model),
        "wordpiece": wordpiece_tokenizer(),
    }
    out = {}
    for name, tokenizer in made.items():
        if name != "bpe":
            with open(os.path.join(HERE, f"{name}_tokenizer.json"), "w", encoding="utf-8") as file:
                json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=True, separators=(",", ":"))
                file.write("\n")
        cases = []
        for text in TEXTS:
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = False
            parsed = tokenizer.encode(text).ids
            cases.append({"plain": plain, "parsed": parsed, "decoded": tokenizer.decode(plain)})
        out[name] = cases
    write("hf.json", out)
    make_wordpiece(made["wordpiece"])


def make_wordpiece(tokenizer):
    """WordPiece as GGUF files have it: words begin with U+2581, continuations with nothing."""

    def spell(text):
        if text.startswith("[") and text.endswith("]") and len(text) > 2:
            return text
        return text[2:] if text.startswith("##") else "\u2581" + text

    size = tokenizer.get_vocab_size()
    tokens = [spell(tokenizer.id_to_token(i)) for i in range(size)]
    special = {"[PAD]": 3, "[UNK]": 2, "[CLS]": 3, "[SEP]": 3, "[MASK]": 3}
    tokenizer.encode_special_tokens = True
    write(
        "wordpiece.json",
        {
            "vocabulary": {
                "tokenizer.ggml.model": "bert",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [special.get(token, 1) for token in tokens],
                "tokenizer.ggml.bos_token_id": tokens.index("[CLS]"),
                "tokenizer.ggml.seperator_token_id": tokens.index("[SEP]"),
                "tokenizer.ggml.unknown_token_id": tokens.index("[UNK]"),
                "tokenizer.ggml.padding_token_id": tokens.index("[PAD]"),
            },
            "cases": [
                {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
                for text in TEXTS
            ],
        },
    )


def main():
    os.makedirs(HERE, exist_ok=True)
    write("texts.json", TEXTS)
    make_splits()
    processor, model = make_spm(sys.argv[1])
    make_spm_plain()
    make_unigram()
    make_bpe()
    make_hf(processor, model)


if __name__ == "__main__":
    main()
