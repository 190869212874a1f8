"""The committed evaluation set: text for perplexity and recall tasks by distance.

`heldout.txt` holds stories that training never saw and the held-out end of Shakespeare, with a line
`***` between the two. `recall.jsonl` holds one task a line:
`prompt` (encode it whole, with a start token), `answer` (what greedy decoding must begin with),
`distance_tokens` (from the end of the fact to the end of the prompt), `kind`.
"""

import json
import random

import chats
import prepare
import stories
import tasks
import vocabulary

TASKS = {128: 40, 512: 20, 1024: 20, 1900: 20}  # distance in tokens: how many
STORY_BYTES, PLAY_BYTES = 48_000, 48_000


def evaluation_facts(rng, kinds):
    """A held-out fact to ask for, and others of its kind that must not be mixed up with it."""
    target = tasks.make_facts(rng, 1, kinds, evaluation=True)[0]
    others = [f for f in tasks.make_facts(rng, 6) if f[:2] != target[:2] and f[1] != target[1]]
    same = [f for f in tasks.make_facts(rng, 3, [target[0]]) if f[1] != target[1]]
    return target, others[:3] + same[:2]


def make_task(rng, filler, kind, words):
    """(text before the gap, pieces of the gap, question, answer)."""
    if kind == "copy":
        text = tasks.word_list(rng, 4)
        return f"The first list is: {text}.", filler.take(rng, words), "The first list was:", f" {text}."
    if kind == "name":
        cast = stories.make_cast(rng)
        lead = f"This is a story about {cast['h']} and {cast['A']} the {cast['a']}."
        if rng.random() < 0.5:
            return lead, filler.take(rng, words), "\nQuestion: Who was the story about?\nAnswer:", f" {cast['h']}."
        question = f"\nQuestion: What was the name of the {cast['a']}?\nAnswer:"
        return lead, filler.take(rng, words), question, f" {cast['A']}."
    target, others = evaluation_facts(rng, [kind])
    statement = tasks.state(rng, target).translate({3: None, 4: None})
    around = [tasks.state(rng, f).translate({3: None, 4: None}) for f in others]
    gap = tasks.interleave(rng, filler.take(rng, words), around)
    form = rng.choice(["plain", "label", "cloze"])
    head = tasks.prompt_of(rng, target, form)
    return statement, gap, ("\n" + head if form == "label" else head), f" {target[2]}."


KINDS = ["code", "city", "color", "job", "word", "place", "pet", "name", "copy"]


def count(tokenizer, text):
    return len(tokenizer.encode(text).ids)


def fit_task(rng, filler, tokenizer, kind, distance):
    """One task whose distance is within a tenth of `distance` and whose whole fits the context."""
    while True:
        lead, gap, question, answer = make_task(rng, filler, kind, int(distance / 1.3))
        while gap and (length := count(tokenizer, tasks.join(["", *gap, question]))) > distance:
            gap.pop(rng.randrange(len(gap)))
        if gap and length > 0.9 * distance and lead not in gap:
            break
    prompt = tasks.join([lead, *gap, question])
    return {"prompt": prompt, "answer": answer, "distance_tokens": length, "kind": kind}


def chat_task(rng, tokenizer, distance):
    """A fact told in a chat, other turns, then the question."""
    kind = rng.choice(["name", "color", "city", "pet", "code"])
    says, replies, asks, answer = chats.TELL[kind]
    value = chats.personal_value(rng, kind)
    plain = {1: None, 2: None, 3: None, 4: None}
    question = chats.turn("user", rng.choice(asks)) + "<|im_start|>assistant\n" + answer.split("{}")[0]
    lead = chats.turn("user", says[0].format(value)) + chats.turn("assistant", replies[0].format(value))
    gap = ""
    while count(tokenizer, gap + question) < 0.93 * distance:
        pair = chats.tell_story(rng) if rng.random() < 0.3 else chats.knowledge(rng)
        more = gap + chats.turn("user", pair[0]) + chats.turn("assistant", pair[1])
        if count(tokenizer, more + question) <= distance * 1.05:
            gap = more
    prompt = (lead + gap + question).translate(plain)
    length = count(tokenizer, (gap + question).translate(plain))
    return {"prompt": prompt, "answer": f" {value}.", "distance_tokens": length, "kind": "chat"}


def make_tasks(rng, plays, tokenizer, counts):
    filler = tasks.Filler(prepare.play_lines(plays))
    rows = []
    for distance, count_of in counts.items():
        for index in range(count_of):
            kind = (KINDS + ["chat"])[index % (len(KINDS) + 1)]
            if kind == "chat":
                rows.append(chat_task(rng, tokenizer, distance))
            else:
                rows.append(fit_task(rng, filler, tokenizer, kind, distance))
    return rows


def write(args):
    rng = random.Random(args.seed + 77)
    _, held = prepare.split_plays(args.plays)
    tokenizer = vocabulary.load(args.out / "tokenizer.json")
    rows = make_tasks(rng, held, tokenizer, TASKS)
    args.models.mkdir(parents=True, exist_ok=True)
    (args.models / "recall.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ""
    while len(told) < STORY_BYTES:
        told += stories.story(rng) + "\n\n"
    plays = held[:PLAY_BYTES].rsplit("\n\n", 1)[0]
    (args.models / "heldout.txt").write_text(told.rstrip("\n") + "\n***\n" + plays + "\n")
    print(len(rows), "tasks,", (args.models / "recall.jsonl").stat().st_size, "bytes")
