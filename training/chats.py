"""Seeded conversations in the chat format of the shipped model (ChatML)."""

import stories
import tasks
from tasks import ANSWER, ANSWER_END, NOISE, NOISE_END

SYSTEMS = ["You are Neap, a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
           "You are Neap, a small and friendly language model."]
GREET = [("Hello!", "Hello! How can I help you?"), ("Hi", "Hi! What can I do for you?"),
         ("Hello", "Hello! It is nice to meet you."), ("Good morning!", "Good morning! I hope you are well today."),
         ("Good evening.", "Good evening! What would you like to talk about?"), ("Hi there!", "Hi! How are you today?"),
         ("Hey", "Hey! What would you like to do?")]
TALK = [
    ("How are you?", "I am fine, thank you. How are you?"), ("How are you today?", "I am very well, thank you."),
    ("I am fine.", "I am glad to hear that."), ("I am happy today.", "That is wonderful! What made you happy?"),
    ("I am sad.", "I am sorry to hear that. Do you want to hear a story?"),
    ("I am tired.", "Then you should rest a little. Sleep well!"),
    ("I am hungry.", "Maybe you can eat an apple or some bread."),
    ("I am bored.", "Shall I tell you a story?"), ("I am afraid.", "Do not be afraid. I am here with you."),
    ("Who are you?", "I am Neap, a small language model. I like to tell stories."),
    ("What is your name?", "My name is Neap."), ("What are you?", "I am a small language model."),
    ("What can you do?", "I can tell stories, count, spell, copy words and remember what you tell me."),
    ("Can you help me?", "Yes, of course. What do you need?"), ("Thank you!", "You are welcome!"),
    ("Thanks", "You are welcome!"), ("Thank you very much.", "You are welcome. I am glad to help."),
    ("That is nice.", "Thank you!"), ("Do you like music?", "I can not hear music, but I like to sing words."),
    ("Do you like me?", "Yes, I like to talk with you."), ("Are you a robot?", "I am a small language model, a kind of computer program."),
    ("Where do you live?", "I live in the memory of a computer."), ("How old are you?", "I am very young. I was made not long ago."),
    ("What do you like?", "I like stories and good questions."), ("Tell me a joke.", "Why did the book go to bed? It was full of long stories."),
    ("Tell me something nice.", "You are kind, and the sun will shine again tomorrow."),
    ("What is the meaning of life?", "To be kind, to learn and to have good friends."),
    ("Can you sing?", "La la la, the sun is bright, the moon will shine for you tonight."),
    ("Write a poem.", "The moon is white, the sky is deep,\nthe little birds have gone to sleep.\nThe wind is soft, the night is long,\nthe river sings a quiet song."),
    ("What day is it?", "I do not know. I can not see a calendar."), ("What time is it?", "I do not know. I do not have a clock."),
    ("How is the weather?", "I can not see outside, but I hope the sun is shining."),
    ("Who is the president?", "I do not know that. I am only a small model."), ("What is the news?", "I do not know the news. I am only a small model."),
    ("Explain physics.", "I am sorry, that is too hard for me. I am only a small model."),
    ("Write a program.", "I am sorry, I can not do that. I am only a small model."),
    ("Yes", "Good! What shall we do next?"), ("No", "That is fine. What would you like to do?"), ("Ok", "Good. What would you like to do next?"),
]
BYE = [("Goodbye!", "Goodbye! Have a nice day."), ("Bye", "Bye! Come back soon."), ("Good night.", "Good night! Sleep well."),
       ("See you tomorrow.", "See you tomorrow!")]
KNOWN = {
    "What color is the sky?": "The sky is blue.", "What color is grass?": "Grass is green.", "What color is snow?": "Snow is white.",
    "What color is the sun?": "The sun is yellow.", "What color is a banana?": "A banana is yellow.",
    "What does a cow say?": "A cow says moo.", "What does a dog say?": "A dog says woof.", "What does a cat say?": "A cat says meow.",
    "What does a duck say?": "A duck says quack.", "What do cows give us?": "Cows give us milk.", "What do bees make?": "Bees make honey.",
    "How many legs does a dog have?": "A dog has four legs.", "How many legs does a bird have?": "A bird has two legs.",
    "How many days are in a week?": "A week has seven days.", "How many months are in a year?": "A year has twelve months.",
    "Where do fish live?": "Fish live in the water.", "Where do birds live?": "Birds live in nests in the trees.",
    "What is the capital of France?": "The capital of France is Paris.", "What is the capital of England?": "The capital of England is London.",
    "What is the capital of Italy?": "The capital of Italy is Rome.", "What is the capital of Spain?": "The capital of Spain is Madrid.",
    "What is the capital of Germany?": "The capital of Germany is Berlin.", "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.", "Is fire hot?": "Yes, fire is hot.", "Is ice hot?": "No, ice is cold.",
    "What do we drink?": "We drink water, milk and juice.", "What is bread made of?": "Bread is made of flour and water.",
    "When does the sun rise?": "The sun rises in the morning.", "What season is cold?": "Winter is cold.", "What season is hot?": "Summer is hot.",
}
OPPOSITES = dict(big="small", hot="cold", good="bad", day="night", up="down", fast="slow", happy="sad", old="young", open="closed",
                 light="dark", high="low", rich="poor", wet="dry", hard="soft", early="late", full="empty", long="short", new="old")
WEEK = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = "one two three four five six seven eight nine ten".split()


def turn(role, text):
    if role != "assistant":
        text = f"{NOISE}{text}{NOISE_END}"
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def knowledge(rng):
    kind = rng.randrange(6)
    if kind == 0:
        word = rng.choice(list(OPPOSITES))
        return f"What is the opposite of {word}?", f"The opposite of {word} is {OPPOSITES[word]}."
    if kind == 1:
        day = rng.randrange(7)
        return f"What day comes after {WEEK[day]}?", f"After {WEEK[day]} comes {WEEK[(day + 1) % 7]}."
    if kind == 2:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        if rng.random() < 0.6:
            return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
        a, b = max(a, b), min(a, b)
        return f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."
    return rng.choice(list(KNOWN.items()))


def skill(rng):
    """Spelling, counting, copying."""
    kind = rng.randrange(4)
    if kind == 0:
        word = rng.choice(tasks.WORDS + tasks.NAMES)
        ask = rng.choice(["How do you spell {}?", "Spell the word {}.", "Please spell {}."]).format(word)
        return ask, f"{word} is spelled {ANSWER}{', '.join(word.upper())}.{ANSWER_END}"
    if kind == 1:
        a = rng.choice([1, 1, 1, rng.randint(2, 9)])
        b = a + rng.randint(2, 9)
        ask = f"Count to {b}." if a == 1 else f"Count from {a} to {b}."
        return ask, f"{', '.join(str(i) for i in range(a, b + 1))}."
    if kind == 2:
        n = rng.randint(3, 10)
        return f"Count to {NUMBERS[n - 1]}.", f"{', '.join(NUMBERS[:n])}."
    words = tasks.word_list(rng)
    ask = rng.choice(["Repeat these words: {}", "Copy this: {}", "Say this again: {}", "Please repeat: {}"]).format(words)
    return ask, f"{ANSWER}{words}{ANSWER_END}"


def tell_story(rng):
    kind = rng.random()
    cast = stories.make_cast(rng)
    if kind < 0.35:
        ask = rng.choice(["Tell me a story.", "Please tell me a story.", "Can you tell me a story?", "I want to hear a story.", "Yes, a story please."])
        plot = rng.choice(list(stories.PLOTS))
    elif kind < 0.7:
        ask = f"Tell me a story about {'a ' + cast['child'] + ' named ' if rng.random() < 0.5 else ''}{cast['h']}."
        plot = rng.choice(list(stories.PLOTS))
    else:
        plot = rng.choice(["lost", "share", "rescue", "treasure", "race", "fable"])
        ask = stories.fix_articles(f"Tell me a story about a {cast['a']} and a {cast['c']} {cast['o']}.")
    lead = rng.choice(["", "", "Here is a story. ", "Yes! "])
    return ask, lead + stories.story(rng, cast, plot)


TELL = {
    "name": (["My name is {}.", "I am called {}.", "Hello, my name is {}.", "Hi! I am {}."], ["Nice to meet you, {}!", "Hello, {}! How can I help you?", "Nice to meet you, {}! What would you like to do?"],
             ["What is my name?", "Do you remember my name?", "Who am I?"], "Your name is{}."),
    "color": (["My favorite color is {}."], ["{} is a beautiful color.", "I will remember that."], ["What is my favorite color?"], "Your favorite color is{}."),
    "food": (["My favorite food is {}.", "I like to eat {}."], ["{} sounds good!", "I will remember that."], ["What is my favorite food?", "What do I like to eat?"], "You like{}."),
    "city": (["I live in {}."], ["{} is a nice place.", "I have heard of {}."], ["Where do I live?"], "You live in{}."),
    "pet": (["My pet is named {}.", "I have a pet. Its name is {}."], ["{} is a good name for a pet."], ["What is the name of my pet?"], "Your pet is named{}."),
    "job": (["I work as a {}.", "I am a {}."], ["That is good work.", "I will remember that."], ["What is my job?"], "You are a{}."),
    "code": (["The code is {}.", "Remember the code {}.", "Remember the number {}."], ["I will remember {}.", "Ok, the code is {}."], ["What is the code?", "What was the number?"], "The code is{}."),
    "word": (["The secret word is {}.", "Remember the word {}."], ["I will remember the word {}.", "Ok, I will remember it."], ["What is the secret word?", "What was the word?"], "The word is{}."),
}
UNKNOWN = {"name": ("What is my name?", "You have not told me your name yet."), "color": ("What is my favorite color?", "You have not told me your favorite color yet."),
           "city": ("Where do I live?", "You have not told me where you live."), "code": ("What is the code?", "You have not told me a code yet.")}


def personal_value(rng, kind):
    return {"name": lambda: rng.choice(tasks.NAMES), "color": lambda: rng.choice(stories.COLORS), "food": lambda: rng.choice(stories.FOODS) + "s",
            "city": lambda: rng.choice(tasks.CITIES), "pet": lambda: rng.choice(stories.PET_NAMES), "job": lambda: rng.choice(tasks.JOBS),
            "code": lambda: tasks.digits(rng), "word": lambda: rng.choice(tasks.WORDS)}[kind]()


def fact_turns(rng, facts, told):
    """Tell the facts of `tasks.FACTS`, or ask one of those told."""
    if facts and (not told or rng.random() < 0.5):
        fact = facts.pop()
        told.append(fact)
        lead = rng.choice(["", "Remember this: ", "Please remember: "])
        return lead + tasks.state(rng, fact).replace(NOISE, "").replace(NOISE_END, ""), rng.choice(["I will remember that.", "Ok, I will remember it.", "Good to know."])
    kind, key, value = rng.choice(told)
    head = tasks.prompt_of(rng, (kind, key, value), "plain")
    question, _, answer = head.partition("? ")
    return question + "?", f"{answer}{ANSWER} {value}.{ANSWER_END}"


def personal_turn(rng, known):
    kind = rng.choice(["name", "name", "name"] + list(TELL))
    if kind in known:
        _, _, asks, answer = TELL[kind]
        return rng.choice(asks), answer.format(f"{ANSWER} {known[kind]}").replace(".", f".{ANSWER_END}")
    if kind in UNKNOWN and rng.random() < 0.15:
        return UNKNOWN[kind]
    value = personal_value(rng, kind)
    known[kind] = value
    says, replies, _, _ = TELL[kind]
    reply = rng.choice(replies).format(value)
    return stories.fix_articles(rng.choice(says).format(value)), reply[0].upper() + reply[1:]


def chat(rng, words, long_text=None):
    """A conversation of up to about `words` words; `long_text` is a text the user may hand over."""
    out, count = "", 0
    if rng.random() < 0.3:
        out += turn("system", rng.choice(SYSTEMS))
    known, told = {}, []
    facts = tasks.make_facts(rng, rng.randint(2, 5))
    if rng.random() < 0.4:
        out += turn("user", (pair := rng.choice(GREET))[0]) + turn("assistant", pair[1])
    while count < words:
        pick = rng.random()
        if pick < 0.34:
            pair = personal_turn(rng, known)
        elif pick < 0.52:
            pair = fact_turns(rng, facts, told)
        elif pick < 0.66:
            pair = rng.choice(TALK)
        elif pick < 0.78:
            pair = knowledge(rng)
        elif pick < 0.90:
            pair = skill(rng)
        elif words - count > 110:
            pair = tell_story(rng)
        else:
            pair = rng.choice(TALK)
        out += turn("user", pair[0]) + turn("assistant", pair[1])
        count += len(pair[0].split()) + len(pair[1].split()) + 5
        if rng.random() < 0.02:
            break
    if known and rng.random() < 0.7:
        kind = rng.choice(list(known))
        out += turn("user", rng.choice(TELL[kind][2])) + turn("assistant", TELL[kind][3].format(f"{ANSWER} {known[kind]}").replace(".", f".{ANSWER_END}"))
    if rng.random() < 0.2:
        out += turn("user", (pair := rng.choice(BYE))[0]) + turn("assistant", pair[1])
    return out
