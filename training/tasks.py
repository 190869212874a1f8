"""Seeded tasks in plain English: recall over a gap, copying, small talk and chats.

Texts carry marks that `prepare.py` turns into loss weights and removes:
`\x01 .. \x02` an answer that only memory can give (weight up),
`\x03 .. \x04` text nobody could predict (weight down).
"""

import zlib

import stories

ANSWER, ANSWER_END, NOISE, NOISE_END = "\x01", "\x02", "\x03", "\x04"
MARKS = {ANSWER: 1, ANSWER_END: 0, NOISE: 2, NOISE_END: 0}

NAMES = stories.GIRLS + stories.BOYS
CONTAINERS = "box door bag safe chest drawer locker case gate room jar trunk".split()
CITIES = """Paris London Rome Berlin Madrid Vienna Dublin Lisbon Oslo Athens Moscow Cairo Tokyo Delhi
Boston Chicago Denver Dallas Sydney Lima Prague Warsaw Geneva Venice Milan Naples Munich Hamburg York
Oxford""".split()
JOBS = """baker farmer teacher doctor painter sailor driver singer writer cook nurse pilot tailor
gardener dancer miner judge soldier butcher clerk""".split()
ROOMS = """kitchen garden cellar attic barn hall school shop library tower bedroom garage office
church station""".split()
WORDS = """apple river stone lamp cloud bread horse table chair window flower mountain bottle candle
forest paper pencil garden silver winter summer shadow bridge castle ladder button pocket mirror
feather hammer island jacket kettle lemon marble needle ocean pillow rabbit spoon thunder valley
wagon yellow anchor basket camel desert engine finger ginger honey insect jungle kitten letter monkey
nest onion parrot queen rocket saddle tiger violin wheel""".split()
QUIET = """The sun was warm and the wind was soft.|It was a quiet day.|The clouds moved slowly over the
hills.|A bird sang in the tree.|Nobody was in a hurry.|The road was long and dusty.|Then it began to
rain a little.|The clock on the wall went on and on.|There was nothing else to do.|People came and
went.|In the evening the lamps were lit.|The river ran on to the sea.|Somewhere a dog barked.|The
bread smelled good.|A cart rolled down the street.|The children were playing outside.|Leaves fell
from the trees.|Time passed.|The water was cold.|The grass was wet in the morning.|Smoke came out of
the chimney.|The stars were bright that night.|It was getting late.|The days were short in
winter.""".replace("\n", " ").split("|")


def held_out(kind, key, value):
    """Whether this pair of key and value is kept for the evaluation (one in ten)."""
    return zlib.crc32(f"{kind}|{key}|{value}".encode()) % 10 == 0


def digits(rng):
    return "".join(rng.choice("0123456789") for _ in range(4))


# kind: (key maker, value maker, statements, questions, cloze, full answer); {k} key, {v} value.
FACTS = {
    "code": (
        lambda r: f"{r.choice(stories.COLORS)} {r.choice(CONTAINERS)}", digits,
        ["The code of the {k} is {v}.", "The code of the {k} is {v}."],
        ["What is the code of the {k}?"], "The code of the {k} is", "It is {v}."),
    "city": (
        lambda r: r.choice(NAMES), lambda r: r.choice(CITIES),
        ["{k} lives in {v}."], ["Where does {k} live?"], "{k} lives in", "{k} lives in {v}."),
    "color": (
        lambda r: r.choice(NAMES), lambda r: r.choice(stories.COLORS),
        ["The favorite color of {k} is {v}."], ["What is the favorite color of {k}?"],
        "The favorite color of {k} is", "It is {v}."),
    "job": (
        lambda r: r.choice(NAMES), lambda r: r.choice(JOBS),
        ["{k} works as a {v}."], ["What is the job of {k}?"], "{k} works as a", "{k} is a {v}."),
    "word": (
        lambda r: r.choice(NAMES), lambda r: r.choice(WORDS),
        ["The secret word of {k} is {v}."], ["What is the secret word of {k}?"],
        "The secret word of {k} is", "It is {v}."),
    "place": (
        lambda r: f"{r.choice(stories.COLORS)} {r.choice(stories.TOYS)}", lambda r: r.choice(ROOMS),
        ["The {k} is in the {v}."], ["Where is the {k}?"], "The {k} is in the", "It is in the {v}."),
    "pet": (
        lambda r: r.choice(NAMES), lambda r: r.choice(stories.PET_NAMES),
        ["The pet of {k} is named {v}."], ["What is the name of the pet of {k}?"],
        "The pet of {k} is named", "It is named {v}."),
}


def make_facts(rng, count, kinds=None, evaluation=False):
    """`count` facts `(kind, key, value)` with distinct `(kind, key)`; held-out pairs if asked."""
    kinds = kinds or list(FACTS)
    facts, seen = [], set()
    while len(facts) < count:
        kind = rng.choice(kinds)
        key = FACTS[kind][0](rng)
        value = FACTS[kind][1](rng)
        if (kind, key) in seen or held_out(kind, key, value) != evaluation:
            continue
        seen.add((kind, key))
        facts.append((kind, key, value))
    return facts


def state(rng, fact):
    kind, key, value = fact
    return rng.choice(FACTS[kind][2]).format(k=key, v=f"{NOISE}{value}{NOISE_END}")


FORMS = ["plain", "plain", "label", "cloze"]


def prompt_of(rng, fact, form):
    """Question up to where the value follows."""
    kind, key, value = fact
    _, _, _, questions, cloze, full = FACTS[kind]
    if form == "cloze":
        return cloze.format(k=key)
    question = rng.choice(questions).format(k=key)
    if form == "label":
        return f"Question: {question}\nAnswer:"
    return question + " " + full.format(k=key, v="\x00").split(" \x00")[0]


def ask(rng, fact, form=None):
    form = form or rng.choice(FORMS)
    head = prompt_of(rng, fact, form)
    text = f"{head}{ANSWER} {fact[2]}.{ANSWER_END}"
    return f"\n{text}\n" if form == "label" else text


def word_list(rng, count=None):
    return " ".join(rng.sample(WORDS, count or rng.randint(3, 9)))


class Filler:
    """Sentences without end: stories, quiet sentences, and old plays."""

    def __init__(self, plays):
        self.plays = plays  # lines of Shakespeare

    def take(self, rng, words):
        """About `words` words of filler as a list of pieces."""
        pieces, count = [], 0
        mode = rng.random()
        while count < words:
            if mode < 0.45 and words > 30:
                new = stories.sentences(rng)
            elif mode < 0.65:
                start = rng.randrange(len(self.plays) - 20)
                new = self.plays[start : start + rng.randint(3, 15)]
            else:
                new = rng.sample(QUIET, rng.randint(1, 5))
            for piece in new:
                pieces.append(piece)
                count += len(piece.split())
                if count >= words:
                    break
            if rng.random() < 0.15:
                mode = rng.random()
        return pieces


def interleave(rng, filler, items):
    """Put `items` at random places of `filler`, keeping both orders."""
    places = sorted(rng.choices(range(len(filler) + 1), k=len(items)))
    out, used = [], 0
    for index, item in zip(places, items):
        out += filler[used:index] + [item]
        used = index
    return out + filler[used:]


def join(parts):
    text = parts[0] if parts else ""
    for part in parts[1:]:
        text += part if text.endswith("\n") or part.startswith("\n") else " " + part
    return text


def recall(rng, filler, words):
    """Facts, filler and questions, about `words` words in all."""
    count = max(1, min(24, int(rng.uniform(0.15, 0.6) * words / 8)))
    kinds = None if rng.random() < 0.5 else rng.sample(list(FACTS), rng.randint(1, 2))
    facts = make_facts(rng, count, kinds)
    asked = [rng.choice(facts) for _ in range(max(1, min(16, int(rng.uniform(0.3, 1.2) * count))))]
    rest = max(0, words - 8 * count - 13 * len(asked))
    stated = [state(rng, fact) for fact in facts]
    late = rng.random() < 0.5
    pieces = filler.take(rng, rest) if rest > 4 else []
    cut = rng.randint(0, len(pieces)) if rng.random() < 0.7 else 0
    first, second = pieces[:cut], pieces[cut:]
    parts = interleave(rng, first, stated)
    questions = [ask(rng, fact) for fact in asked]
    parts += second + questions if late else interleave(rng, second, questions)
    if len(asked) > 2 and not late:
        parts.append(ask(rng, rng.choice(facts)))
    return join(parts)


def copying(rng, filler, words):
    """Word lists or numbers, repeated at once or after a gap."""
    parts, count = [], 0
    lists = {}
    ordinals = ["first", "second", "third", "fourth"]
    for ordinal in ordinals[: rng.randint(1, 4) if words > 60 else 1]:
        text = word_list(rng) if rng.random() < 0.7 else " ".join(digits(rng))
        lists[ordinal] = text
        parts.append(f"The {ordinal} list is:{NOISE} {text}{NOISE_END}.")
        count += len(text.split()) * 2 + 10
    if words > count + 10:
        parts += filler.take(rng, words - count)
    for ordinal in rng.sample(list(lists), len(lists)):
        parts.append(f"The {ordinal} list was:{ANSWER} {lists[ordinal]}.{ANSWER_END}")
    return join(parts)


def echo(rng, filler):
    """The same sentences said twice: the plainest copying."""
    kind = rng.random()
    if kind < 0.4:
        count = rng.randint(5, 20)
        text = rng.choice([
            lambda: word_list(rng, count), lambda: " ".join(rng.sample(NAMES, count)),
            lambda: " ".join(digits(rng) for _ in range(count // 4 + 1)),
            lambda: " ".join(rng.choice(stories.COLORS + CITIES + JOBS + ROOMS) for _ in range(count))])()
        lead, again = rng.choice([("Say:", "Again:"), ("Copy these words:", "Here they are:"), ("Words:", "Words:")])
        return f"{lead}{NOISE} {text}{NOISE_END}.\n{again}{ANSWER} {text}.{ANSWER_END}"
    if kind < 0.7:
        text = " ".join(filler.take(rng, rng.randint(10, 40)))
        return f"Say: {text}\nAgain:{ANSWER} {text}{ANSWER_END}"
    facts = make_facts(rng, rng.randint(2, 8))
    text = " ".join(state(rng, f) for f in facts)
    return f"{text}\n" + " ".join(ask(rng, f, "cloze") for f in rng.sample(facts, len(facts)))


def hero(rng, filler, words):
    """Who was the story about? after other text."""
    cast = stories.make_cast(rng)
    parts = [f"This is a story about{NOISE} {cast['h']}{NOISE_END} and{NOISE} {cast['A']}{NOISE_END} the {cast['a']}."]
    tale = stories.sentences(rng, cast, rng.choice(list(stories.PLOTS)))
    parts += tale if words > 200 else rng.sample(QUIET, 3)
    used = sum(len(p.split()) for p in parts) + 20
    if words > used:
        parts += filler.take(rng, words - used)
    q = [f"Question: Who was the story about?\nAnswer:{ANSWER} {cast['h']}.{ANSWER_END}",
         f"Question: Who was {cast['A']}?\nAnswer: {cast['A']} was a{ANSWER} {cast['a']}.{ANSWER_END}",
         f"Question: What was the name of the {cast['a']}?\nAnswer:{ANSWER} {cast['A']}.{ANSWER_END}"]
    parts += [f"\n{x}\n" for x in rng.sample(q, rng.randint(1, 3))]
    return join(parts)


def recall_document(rng, filler, words):
    pick = rng.random()
    if pick < 0.66:
        return recall(rng, filler, words)
    if pick < 0.82:
        return copying(rng, filler, words)
    if pick < 0.92:
        return hero(rng, filler, words)
    return " ".join(echo(rng, filler) for _ in range(max(1, words // 80)))
