"""Seeded children's stories: a hero, a friend, a place and a thing run through one of the plots.

A plot is a list of steps and a step a list of alternatives; `{fields}` are filled from one cast for
the whole story, so that names, pronouns, colours and things stay the same from start to end.
"""

GIRLS = """Lily Mia Anna Sara Emma Lucy Rose Clara Ella Nora Ruby Molly Daisy Grace Ivy Hannah Amy
Zoe Jane Kate Polly Tina Wendy Alice Betty Mary Sophie Julia Maya Nina Olive Pearl Stella Vera
Iris Penny Rita Dora""".split()
BOYS = """Tom Ben Max Sam Tim Jack Leo Finn Peter Paul Henry Oscar Adam Luke Noah Eric Fred George
Hugo Ivan Jim Ken Louis Mark Nick Otto Ralph Simon Toby Victor Walter Will Dan Bob Carl Felix
Harry Joe""".split()
PET_NAMES = """Pip Dot Fluffy Spot Biscuit Pepper Ginger Bramble Hazel Nibbles Patch Sunny Button
Cookie Misty Rusty Bingo Cocoa Pickle Muffin""".split()
ANIMALS = """rabbit fox bear mouse squirrel duck frog hedgehog owl cat dog turtle goat pony lamb
kitten puppy bird deer pig""".split()
COLORS = "red blue green yellow white black brown pink purple orange silver golden".split()
TOYS = """ball kite doll boat drum hat scarf lamp book box bell basket cup train car bear balloon
flute shell ring whistle blanket umbrella""".split()
FOODS = """apple cake pie cookie pear carrot sandwich plum muffin banana pancake orange bun
strawberry peach""".split()
PLACES = {
    "the forest": ["The trees were tall and green", "The leaves whispered in the wind",
                   "Soft moss covered the ground"],
    "the park": ["Children ran on the grass", "The swings moved in the wind",
                 "The pond shone in the sun"],
    "the garden": ["The flowers smelled sweet", "Bees hummed around the roses",
                   "Butterflies danced in the air"],
    "the beach": ["The waves rolled over the sand", "The water was blue and bright",
                  "White birds flew over the sea"],
    "the farm": ["The cows ate grass in the field", "The hens walked around the yard",
                 "The barn was big and red"],
    "the hill": ["The wind was strong at the top", "The whole village looked small from there",
                 "Yellow flowers grew on every side"],
    "the river": ["The water ran fast over the stones", "Little fish swam near the shore",
                  "A wooden bridge went across the water"],
    "the market": ["People sold bread and fruit", "There were many colors and sounds",
                   "The air smelled of fresh bread"],
    "the meadow": ["The grass was high and soft", "Crickets sang in the sun",
                   "Small white flowers grew everywhere"],
    "the lake": ["The water was still and clear", "Ducks swam in a long line",
                 "The mountains looked back from the water"],
}
GIRL = dict(he="she", him="her", his="her", He="She", His="Her", child="girl", man="woman")
BOY = dict(he="he", him="him", his="his", He="He", His="His", child="boy", man="man")

OPENING = [
    "Once upon a time, there was a little {child} named {h}.",
    "Once upon a time, there was a {nice} little {child} named {h}.",
    "Once upon a time, a little {child} named {h} lived near {p}.",
    "Once upon a time, in a small house near {p}, there lived a {child} named {h}.",
    "Once upon a time, there lived a {nice} {child} whose name was {h}.",
    "Once there was a {child} called {h}.",
    "There was once a {nice} {child} named {h}.",
    "{h} was a {nice} little {child}.",
    "In a little town near {p} lived a {child} named {h}.",
    "Long ago, a {child} named {h} lived with {his} {parent} near {p}.",
]
ABOUT = [
    "{He} lived with {his} {parent} in a small house.",
    "{He} loved to play in {p}.",
    "{He} had a {c} {o} that {he} loved very much.",
    "{His} best friend was a {a} named {A}.",
    "{He} liked to sing and dance.",
    "Every day {he} played with {his} friend {f}.",
    "{He} was always kind to everyone.",
    "{He} liked to ask many questions.",
    "{He} had a big smile and a warm heart.",
    "{He} wanted to see the whole world.",
]
ONE_DAY = [
    "One day, {h} went to {p}.",
    "One {day}, {h} went to {p} with {his} {parent}.",
    "One {day}, {h} and {f} went to {p}.",
    "One day, {h} woke up early and walked to {p}.",
    "One {day}, {h} said, \"Today I want to go to {p}.\" So {he} went there.",
]
SCENE = ["{scene}.", "{scene}, and the sky was clear.", "It was a {day}. {scene}.",
         "{scene}, and {h} felt {glad}."]
ENDING = [
    "From that day on, {h} and {f} were the best of friends.",
    "{h} went home and told {his} {parent} all about it. {His} {parent} smiled and gave {him} a big hug.",
    "That night {h} fell asleep with a smile on {his} face.",
    "And they all lived happily ever after.",
    "{h} learned that it is good to {moral}.",
    "{h} was very {glad}. It was the best day ever.",
    "\"What a wonderful day!\" said {h}. And {he} was right.",
    "{His} {parent} was proud of {him}. \"Always remember to {moral},\" {he_parent} said.",
    "The sun went down, and {h} walked home with {f}. They were both {glad}.",
]

NEXT = ["The next day, {h} came back to {p}.", "But that was not all. A week later, {h} was in {p} again.",
        "The next morning, {h} and {f} met again in {p}."]

PLOTS = {
    "lost": ("look carefully and never give up", [
        ["{He} took {his} {c} {o} with {him}.", "In {his} hand {he} carried {his} {c} {o}."],
        ["{h} played for a long time. Then {he} looked around. The {c} {o} was gone!",
         "After a while {h} wanted to play with the {o}, but it was not there.",
         "Suddenly {h} stopped. \"Oh no! Where is my {c} {o}?\" {he} cried."],
        ["{h} felt very sad and began to cry.", "{h} looked here and there, but {he} could not find it.",
         "{He} was so sad that big tears ran down {his} face."],
        ["Then {he} met a {a} named {A}. \"Why are you crying?\" asked {A}.",
         "A {a} came out of the bushes. \"Hello, I am {A}. What is wrong?\" asked the {a}.",
         "{f} came to {him} and asked, \"What is the matter, {h}?\""],
        ["\"I lost my {c} {o},\" said {h}. \"Can you help me?\"",
         "\"I can not find my {c} {o},\" said {h}."],
        ["\"Do not worry,\" was the answer. \"We will look for it together.\"",
         "\"Let us look for it together,\" was the kind answer."],
        ["They looked under the {tree}. They looked behind the {rock}. They looked everywhere.",
         "First they looked behind the {rock}. Then they looked under the {tree}."],
        ["At last they saw something {c} under a {bush}. It was the {o}!",
         "And there, beside a {rock}, was the {c} {o}!",
         "Then {h} saw it. The {c} {o} was high up in the {tree}. Together they got it down."],
        ["\"Thank you so much!\" said {h}. {He} was so {glad} that {he} jumped up and down.",
         "{h} laughed and hugged {his} {o}. \"Thank you for helping me,\" {he} said."],
    ]),
    "share": ("share with others", [
        ["{His} {parent} gave {him} a big {food} for lunch.", "{He} had a sweet {food} in {his} bag.",
         "{h} sat down to eat {his} {food}."],
        ["Just then {he} saw a {a}. The {a} looked thin and hungry.",
         "A little {a} named {A} came near and looked at the {food}."],
        ["\"Please, may I have some of your {food}?\" asked the {a}. \"I have not eaten all day.\"",
         "\"I am so hungry,\" said the {a} in a small voice."],
        ["{h} thought for a moment. {He} was hungry too.", "At first {h} did not want to share."],
        ["Then {he} broke the {food} into two pieces. \"Here, this half is for you,\" {he} said.",
         "But {he} saw how sad the {a} was. \"Yes, let us share,\" said {h}."],
        ["They sat under a {tree} and ate together.", "They ate the {food} side by side."],
        ["\"Thank you,\" said the {a}. \"You are very kind. One day I will help you too.\"",
         "\"You have a good heart,\" said the {a}."],
        ["The next day it rained, and {h} lost {his} way in {p}. The {a} came and showed {him} the way home.",
         "Soon after, {h} fell into a deep hole. The {a} heard {him} and brought help.",
         "In the evening the {a} came back with a basket full of berries for {h}."],
        ["\"Now we are friends,\" said the {a}.", "{h} was {glad} that {he} had shared {his} {food}."],
    ]),
    "brave": ("be brave", [
        ["But there was one thing: {h} was afraid of {fear}.", "{h} had a secret. {He} was afraid of {fear}."],
        ["\"What if something bad happens?\" {he} thought.", "When {he} thought of {fear}, {his} heart beat fast."],
        ["That day {f} called for help. \"{h}! {h}! Please come!\"",
         "Then {he} heard a small voice. It was {A} the {a}. \"Help me! I am stuck!\""],
        ["To help, {h} had to face {fear}.", "There was no one else near. Only {h} could help."],
        ["{h} closed {his} eyes and took a deep breath. \"I can do it,\" {he} said.",
         "{His} legs shook, but {he} did not run away."],
        ["Step by step {he} went on.", "Slowly {he} walked on, one step and then one more step."],
        ["Soon {he} was there. \"Take my hand!\" said {h}.", "At last {he} reached {his} friend and pulled as hard as {he} could."],
        ["\"You saved me!\" cried {his} friend. \"You are so brave!\"",
         "\"Thank you, {h}! You were very brave,\" said {his} friend."],
        ["{h} looked back and laughed. {He} was not afraid of {fear} any more.",
         "After that day, {h} was not so afraid of {fear}."],
    ]),
    "learn": ("keep trying", [
        ["{h} wanted to learn how to {skill}.", "More than anything, {h} wanted to {skill}."],
        ["{f} could {skill} very well, but {h} could not.", "\"I want to {skill} too,\" said {h}."],
        ["{He} tried, but it did not work. {He} tried again, and it did not work.",
         "The first time {he} tried, {he} fell down. Everyone laughed."],
        ["\"I can not do it,\" said {h} and sat down under a {tree}.",
         "{h} was angry and wanted to stop."],
        ["{f} came and sat next to {him}. \"I could not do it at first,\" {fhe} said. \"You must practice.\"",
         "{His} {parent} said, \"Do not give up. Every day it will be a little better.\""],
        ["So {h} practiced every day. {He} practiced in the morning and in the evening.",
         "{h} practiced on Monday, on Tuesday and on Wednesday. {He} practiced in the sun and in the rain."],
        ["Then, one {day}, it worked! {h} could {skill}!", "And one day {he} tried again. This time {he} did it!"],
        ["\"Look at me!\" {he} shouted. {f} clapped {fhis} hands.",
         "\"I did it! I did it!\" {he} cried. Everyone was {glad}."],
    ]),
    "truth": ("tell the truth", [
        ["At home there was a {c} {vase}. {His} {parent} loved it very much.",
         "On the table stood a {c} {vase} that belonged to {his} {parent}."],
        ["{h} ran through the room with {his} {o}. Crash! The {vase} fell down and broke.",
         "{h} threw {his} {o} in the house. It hit the {vase}, and the {vase} broke into many pieces."],
        ["\"Oh no,\" thought {h}. \"What shall I do?\" {He} hid the pieces under the bed.",
         "{h} was afraid. {He} put the pieces in a box and said nothing."],
        ["In the evening {his} {parent} asked, \"Where is my {c} {vase}?\"",
         "Soon {his} {parent} came home. \"Have you seen my {vase}?\" {he_parent} asked."],
        ["{h} looked at the floor. {His} face was hot. {He} did not want to lie.",
         "{h} felt bad. {He} thought about it for a long time."],
        ["\"I broke it,\" {he} said at last. \"I am so sorry.\"",
         "Then {he} told the truth. \"It was me. I broke the {vase} when I was playing.\""],
        ["{His} {parent} was quiet for a moment. Then {he_parent} hugged {him}. \"Thank you for telling me the truth.\"",
         "{His} {parent} was not angry. \"A {vase} is only a {vase},\" {he_parent} said. \"But the truth is worth more than gold.\""],
        ["Together they put the pieces back with glue.", "The next day they made a new one together, and they painted it {c}."],
    ]),
    "rescue": ("help others", [
        ["On the way {he} heard a strange sound. \"Help! Help!\"", "Suddenly {h} heard someone cry."],
        ["It was a little {a} named {A}. {A} was stuck in the {mud}.",
         "A small {a} sat high up in a {tree} and could not come down. Its name was {A}."],
        ["\"Please help me,\" said {A}. \"I have been here since morning.\"",
         "\"I wanted to find my {c} {o},\" said {A}, \"and now I can not get away.\""],
        ["{h} pulled and pulled, but {he} was not strong enough.", "{h} tried to reach {A}, but {he} was too small."],
        ["So {he} ran to get {f}. \"Come quickly!\" {he} called.", "Then {he} had an idea. {He} ran home and came back with {f} and a long rope."],
        ["They pulled together. One, two, three! Out came {A}.", "{f} held the rope, and {h} reached out {his} hand. Soon {A} was free."],
        ["{A} was wet and cold, so {h} put a warm {c} blanket around {A}.", "They gave {A} some warm milk and a {food}."],
        ["\"You are good friends,\" said {A}. \"I will never forget this.\"", "{A} was {glad} and danced around them."],
    ]),
    "quarrel": ("say sorry", [
        ["{h} had a new {c} {o}, and {f} wanted to play with it.", "{f} had come to play. They found a {c} {o} near the {rock}."],
        ["\"It is mine!\" said {h}. \"No, it is mine!\" said {f}.", "\"Give it to me!\" said {f}. \"No!\" said {h}."],
        ["They pulled and pulled, and then the {o} broke.", "They shouted at each other, and then {f} ran away."],
        ["{h} went home alone. The house was very quiet.", "Now {h} was alone. It was no fun to play alone."],
        ["\"I miss {f},\" thought {h}. \"A friend is better than a {o}.\"", "{h} told {his} {parent} about it. \"What can you say to {f}?\" asked {his} {parent}."],
        ["The next morning {h} went to {f}. \"I am sorry,\" {he} said.", "So {he} walked to the house of {f} and knocked on the door. \"I am sorry, {f},\" said {h}."],
        ["\"I am sorry too,\" said {f}. They shook hands.", "{f} smiled. \"I am sorry too. Let us play together.\""],
        ["They fixed the {o} and played with it together.", "That day they played together until the sun went down."],
    ]),
    "seed": ("be patient", [
        ["There {he} found a small {c} seed.", "An old {man} gave {him} a tiny seed. \"Take good care of it,\" said the old {man}."],
        ["{h} put the seed in the ground and gave it water.", "{He} made a small hole, put the seed in it, and covered it with earth."],
        ["The next day {he} looked. There was nothing. \"Why does it not grow?\" asked {h}.", "{He} waited one day, two days, three days. Nothing happened."],
        ["\"You must wait,\" said {his} {parent}. \"Good things take time.\"", "\"Be patient,\" said {f}. \"It is sleeping in the earth.\""],
        ["So every morning {h} gave it water, and every evening {he} sang to it.", "{h} gave it water every day and did not forget it once."],
        ["Then, one {day}, there was a little green leaf.", "One morning {he} saw something green. It was growing!"],
        ["It grew and grew until it was taller than {h}.", "Soon it had a big {c} flower."],
        ["At the end of summer it was a tree, and on it hung a sweet {food}.", "Everyone came to see the beautiful {c} flower."],
    ]),
    "treasure": ("stay together", [
        ["Under a {rock} {he} found an old map.", "In an old book {h} found a map."],
        ["\"Look, {f}! It shows the way to a treasure!\" said {h}.", "{He} showed the map to {f}. \"A treasure!\" cried {f}."],
        ["First they went over the bridge. Then they went past the {tree}.", "They walked over the hill and along the river."],
        ["On the way they met a {a} named {A}. \"Where are you going?\" asked {A}. \"We are looking for a treasure,\" said {h}.",
         "A {a} stood in the way. \"You may pass if you give me a {food},\" it said. So {h} gave it a {food}."],
        ["It grew dark, and {f} was tired. \"Let us go on together,\" said {h}.", "\"Are we lost?\" asked {f}. \"No,\" said {h}. \"We only have to stay together.\""],
        ["At last they came to the {tree}. There they began to dig.", "Then they saw the place. There was a cross on the ground."],
        ["They found a {c} box. {h} opened it slowly.", "Deep in the ground there was a {c} box with a lock."],
        ["Inside was a {c} {o} and a letter. The letter said, \"The best treasure is a good friend.\"", "In the box there was gold, and there were many shining stones."],
        ["{h} looked at {f}, and {f} looked at {h}, and they both laughed.", "They shared everything they had found."],
    ]),
    "gift": ("think of others", [
        ["It was the birthday of {f}, and {h} had no gift.", "Tomorrow was the birthday of {f}. \"What can I give {fhim}?\" thought {h}."],
        ["{h} had only one coin. At the market everything cost too much.", "{He} looked in every shop, but {he} had no money."],
        ["Then {he} had an idea. \"I will make something!\"", "\"A gift does not have to cost money,\" said {his} {parent}."],
        ["{h} took some paper and some {c} paint and worked all day.", "{He} worked with wood and glue until the evening. {His} hands were all {c} from the paint."],
        ["In the end it was a beautiful {c} {o}.", "{He} made a {c} {o}, and it was the best {o} {he} had ever made."],
        ["{h} gave it to {f}. \"Happy birthday, {f}!\"", "\"This is for you,\" said {h} and gave the {o} to {f}."],
        ["{f} opened it and smiled. \"You made this for me? It is the best gift of all!\"", "\"Oh, it is beautiful!\" said {f}. \"Thank you, {h}!\""],
        ["They ate cake, and they sang, and they danced.", "Then they all ate a {food} and played games."],
    ]),
    "night": ("look at the stars", [
        ["That night {h} could not sleep. The moon was big and white.", "It was late, but {h} was still awake."],
        ["Outside the window sat an owl. \"Why are you not asleep?\" asked the owl.", "There was a soft knock at the window. It was {A} the {a}."],
        ["\"I can not sleep,\" said {h}. \"It is too dark.\"", "\"I am thinking about many things,\" said {h}."],
        ["\"Come, I will show you something,\" said the visitor.", "\"Then come with me,\" was the answer."],
        ["They went out into the night. The grass was cool and wet.", "Quietly they walked to {p}."],
        ["\"Look up,\" said {his} friend. There were more stars than {h} could count.", "The sky was full of stars. One, two, three, four, five... {h} could not count them all."],
        ["Then a star fell across the sky. \"Make a wish,\" said {his} friend.", "\"Every star is a friend who looks after you,\" said {his} friend."],
        ["{h} made a wish and closed {his} eyes.", "Now {h} was tired and very {glad}."],
        ["When {he} woke up, {he} was in {his} bed, and the sun was shining.", "Soon {he} was back in {his} bed, and {he} slept until the morning."],
    ]),
    "race": ("do your best", [
        ["There was a big race that day. {h} wanted to win.", "\"Let us have a race to the {tree}!\" said {f}."],
        ["{f} was fast, and {h} was slow.", "Everyone said that {f} would win."],
        ["\"One, two, three, go!\" They all ran.", "They stood in a line. \"Ready? Go!\" And off they went."],
        ["{f} ran far ahead. Then {fhe} saw a {food} and stopped to eat it.", "{f} was so sure to win that {fhe} sat down to rest."],
        ["{h} did not stop. {He} ran on and on.", "{h} ran slowly, but {he} ran all the way."],
        ["At the end of the race {A} the {a} shouted, \"Here comes {h}!\"", "\"Look, {h} is first!\" cried {A} the {a}."],
        ["{h} won the race! {f} could not believe it.", "In the end {h} was first and {f} was second."],
        ["{f} came to {him} and said, \"You won because you did not stop. Well done!\"", "\"Well done,\" said {f}, and they shook hands. They shared the prize, a big {food}."],
    ]),
    "fable": ("think before you speak", [
        ["There lived a clever fox and a proud {a} named {A}.", "Near the {rock} lived a {a} named {A} who had a {c} {o}."],
        ["The fox saw the {o} and wanted to have it.", "\"I must have that {o},\" thought the fox."],
        ["\"{A}, you are the most beautiful {a} in the world,\" said the fox. \"Can you also sing?\"",
         "\"Dear {A},\" said the fox, \"show me how well you can dance.\""],
        ["{A} was very proud, put down the {o} and began.", "{A} forgot about the {o} and wanted to show everything."],
        ["The fox took the {o} and ran away.", "Quick as the wind the fox ran off with the {o}."],
        ["But {h} had seen everything. \"Stop!\" {he} called.", "{h} stood in the way of the fox. \"That is not yours,\" said {h}."],
        ["The fox dropped the {o} and ran into the woods.", "The fox felt bad and gave the {o} back."],
        ["\"Do not trust everyone who says sweet words,\" said {h} to {A}.", "{A} said, \"Thank you. Next time I will think first.\""],
    ]),
    "rain": ("make the best of it", [
        ["But then dark clouds came, and it began to rain.", "Then it started to rain, and soon everything was wet."],
        ["\"Now we can not play,\" said {f}.", "{h} was sad. \"The rain has spoiled everything,\" {he} said."],
        ["They ran under a big {tree} to stay dry.", "They found a little house and went in."],
        ["Inside sat an old {man} by the fire. \"Come in and get warm,\" said the old {man}.", "There was a {a} there too. \"Hello, I am {A},\" it said. \"I am waiting for the sun.\""],
        ["\"Let us play a game,\" said {h}. \"Let us count all the drops!\"", "{h} had an idea. \"We can tell stories until it stops.\""],
        ["They laughed and sang and forgot the rain.", "They ate a {food} and told each other funny stories."],
        ["When they looked out again, the rain had stopped.", "After some time the sun came out."],
        ["Over {p} there was a big rainbow: red, orange, yellow, green, blue and purple.", "Everywhere there were puddles. They jumped into every one of them. Splash!"],
    ]),
}
FEARS = ["the dark", "the deep water", "the big dog", "the old house", "high places", "loud storms", "the night"]
SKILLS = ["swim", "ride a bike", "bake bread", "play the flute", "climb a tree", "fly a kite", "paint",
          "dance", "sing", "read", "skate", "whistle"]
DAYS = ["sunny day", "warm morning", "bright day", "cold day", "windy day", "summer day", "spring morning",
        "quiet afternoon", "winter morning"]
NICE = ["kind", "happy", "brave", "clever", "quiet", "good", "funny", "curious", "sweet"]
GLAD = ["happy", "glad", "proud", "cheerful", "pleased"]


def make_cast(rng):
    """The filled-in fields of one story."""
    girl = rng.random() < 0.5
    hero = dict(GIRL if girl else BOY)
    h = rng.choice(GIRLS if girl else BOYS)
    friend_girl = rng.random() < 0.5
    friend = GIRL if friend_girl else BOY
    f = rng.choice([n for n in (GIRLS if friend_girl else BOYS) if n != h])
    place = rng.choice(list(PLACES))
    mother = rng.random() < 0.6
    hero.update(
        h=h, f=f, fhe=friend["he"], fhim=friend["him"], fhis=friend["his"],
        parent=rng.choice(["mom", "mother", "grandmother"] if mother else ["dad", "father", "grandfather"]),
        he_parent="she" if mother else "he",
        a=rng.choice(ANIMALS), A=rng.choice(PET_NAMES), c=rng.choice(COLORS), o=rng.choice(TOYS),
        food=rng.choice(FOODS), p=place, scene=rng.choice(PLACES[place]), day=rng.choice(DAYS),
        nice=rng.choice(NICE), glad=rng.choice(GLAD), fear=rng.choice(FEARS), skill=rng.choice(SKILLS),
        tree=rng.choice(["old tree", "big tree", "apple tree", "tall tree"]),
        rock=rng.choice(["big stone", "rock", "old wall", "wooden bench", "gray stone"]),
        bush=rng.choice(["bush", "leaf", "bench", "stone"]), mud=rng.choice(["mud", "snow", "fence"]),
        vase=rng.choice(["vase", "cup", "plate", "clock", "pot"]),
    )
    return hero


ARTICLES = [(" a " + v, " an " + v) for v in ("apple", "orange", "old", "owl", "umbrella", "angry", "open")]


def fix_articles(text):
    for wrong, right in ARTICLES:
        text = text.replace(wrong, right).replace(wrong.replace(" a ", " A "), right.replace(" an ", " An "))
    return text


def sentences(rng, cast=None, plot=None):
    """A story as a list of steps (one or more sentences each)."""
    cast = cast or make_cast(rng)
    name = plot or rng.choice(list(PLOTS))
    moral, steps = PLOTS[name]
    cast = dict(cast, moral=moral)
    parts = [rng.choice(OPENING)]
    parts += rng.sample(ABOUT, rng.randint(1, 2))
    parts.append(rng.choice(ONE_DAY))
    if rng.random() < 0.7:
        parts.append(rng.choice(SCENE))
    parts += [rng.choice(step) for step in steps]
    if plot is None and rng.random() < 0.2:
        other = rng.choice([p for p in PLOTS if p != name and p not in ("night", "truth")])
        parts.append(rng.choice(NEXT))
        parts += [rng.choice(step) for step in PLOTS[other][1]]
    ends = rng.sample(ENDING, 2)
    parts += ends if rng.random() < 0.5 else ends[:1]
    return [fix_articles(part.format(**cast)) for part in parts]


def story(rng, cast=None, plot=None):
    """One story; sometimes with paragraphs."""
    parts = sentences(rng, cast, plot)
    if rng.random() < 0.35:
        cut = sorted(rng.sample(range(2, len(parts) - 1), 2))
        parts = [" ".join(parts[: cut[0]]), " ".join(parts[cut[0] : cut[1]]), " ".join(parts[cut[1] :])]
        return "\n\n".join(parts)
    return " ".join(parts)
