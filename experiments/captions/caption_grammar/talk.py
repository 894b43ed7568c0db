"""The register of forums and everyday talk: advice, opinions, plans, questions and requests."""

from caption_grammar.frames import Frame

DAYS = ("tomorrow", "on Sunday", "next week", "this evening")
FOOD = ("the bread", "the soup", "the rice", "the cake", "the fish", "the stew", "the pasta")
DEVICES = ("the laptop", "the camera", "the phone", "the printer", "the washing machine", "the heater", "the router")
PEOPLE = (("my sister", "my sibling"), ("my boss", "the person I work for"), ("my roommate", "the person I live with"),
          ("my neighbor", "the person next door"), ("my uncle", "the brother of my mother"), "my friend")  # fmt: skip
PLANTS = ("the tomatoes", "the roses", "the basil", "the lemon tree", "the orchids", "the lawn")

TALK = (
    Frame(
        {"food": FOOD, "n": ("five minutes", "ten minutes", "half an hour", "an hour", "two hours")},
        (
            "you should let {food} rest for {n} before you serve it",
            "before serving {food}, wait for {n}",
            "let {food} stand for {n}, then serve it",
            "it is best to leave {food} alone for {n} before serving",
        ),
        (
            "you should serve {food} at once and not let it rest",
            "do not wait for {n} before serving {food}",
            "never let {food} stand for {n}, serve it right away",
            "it is best to serve {food} right away without waiting",
        ),
        ("{food} should not be served right away", "let {food} rest before you serve it"),
        ("n", "food"),
    ),
    Frame(
        {
            "device": DEVICES,
            "why": (
                "because it is old",
                "because it is too slow",
                "because it was cheap",
                "because it makes noise",
                "because the battery is weak",
            ),
        },
        (
            "I would replace {device} {why}",
            "if I were you, I would get a new one in place of {device} {why}",
            "my advice is to buy a new one instead of {device} {why}",
            "in my opinion {device} should be replaced {why}",
        ),
        (
            "I would keep {device} although you could replace it",
            "if I were you, I would not get a new one in place of {device}",
            "my advice is to keep {device} and buy nothing new",
            "in my opinion {device} should not be replaced",
        ),
        ("{device} should be replaced", "I would not keep {device}"),
        ("device", "why"),
    ),
    Frame(
        {
            "who": PEOPLE,
            "what": (
                "swim",
                "cook",
                "drive a truck",
                "play the piano",
                "speak Spanish",
                "ride a horse",
                "repair a bike",
            ),
            "when": ("as a child", "last year", "at school", "during the summer", "years ago"),
        },
        (
            "{who} learned to {what} {when}",
            "{when} {who} learned how to {what}",
            "it was {when} that {who} learned to {what}",
            "{who} found out how to {what} {when}",
        ),
        (
            "{who} never learned to {what}",
            "{who} still cannot {what}",
            "{who} has no idea how to {what}",
            "{when} {who} forgot how to {what} and never learned it again",
        ),
        ("{who} learned to {what}", "{who} did not fail to learn how to {what}"),
        ("what", "when", "who"),
    ),
    Frame(
        {
            "who": PEOPLE,
            "day": DAYS,
            "where": (
                "to the dentist",
                "to the mountains",
                "to a concert",
                "to the market",
                "back to work",
                "to the airport",
                "to a wedding",
            ),
        },
        (
            "{who} is going {where} {day}",
            "{day} {who} will go {where}",
            "{who} plans to go {where} {day}",
            "the plan of {who} is to go {where} {day}",
        ),
        (
            "{who} is not going {where} {day}",
            "{day} {who} will stay at home",
            "{who} has decided against going {where} {day}",
            "{who} canceled the plan to go {where} {day}",
        ),
        ("{who} is going out {day}", "{who} will not stay at home {day}"),
        ("where", "day", "who"),
    ),
    Frame(
        {
            "what": (
                "the movie",
                "the book",
                "the concert",
                "the restaurant",
                "the hotel",
                "the museum",
                "the play",
                "the course",
            ),
            "how": (
                ("too long", "longer than it should be"),
                ("too expensive", "overpriced"),
                ("very loud", "full of noise"),
                ("quite boring", "rather dull"),
            ),
        },
        (
            "I did not like {what}, it was {how}",
            "{what} was {how}, so I did not enjoy it",
            "because it was {how}, I disliked {what}",
            "in my view {what} was bad and {how}",
        ),
        (
            "I liked {what} although it was {how}",
            "{what} was not {how}, so I enjoyed it",
            "I enjoyed {what} and did not find it {how}",
            "in my view {what} was great and not {how}",
        ),
        ("I did not enjoy {what}", "{what} was {how}", "I found {what} bad"),
        ("what",),
    ),
    Frame(
        {
            "plant": PLANTS,
            "when": ("every day", "twice a week", "once a week", "every two weeks"),
            "time": ("in the morning", "in the evening", "before sunrise"),
        },
        (
            "water {plant} {when} {time}",
            "{plant} should be watered {when} {time}",
            "give water to {plant} {when}, best {time}",
            "{when} {time} you need to water {plant}",
        ),
        (
            "{plant} should not be watered {time}",
            "never give water to {plant} {time}",
            "{plant} need no water at all {time}",
            "do not water {plant} {when}, they do not like it",
        ),
        ("{plant} need water {when}", "do not forget to water {plant}"),
        ("when", "time", "plant"),
    ),
    Frame(
        {
            "pet": ("my dog", "my cat", "the puppy", "the parrot", "the kitten", "our old horse"),
            "food": ("chicken", "carrots", "dry food", "fish", "apples", "rice"),
            "when": ("in the morning", "at noon", "at night", "before a walk"),
        },
        (
            "{pet} likes to eat {food} {when}",
            "{when} {pet} loves eating {food}",
            "{food} is what {pet} likes to eat {when}",
            "{pet} enjoys {food} as a meal {when}",
        ),
        (
            "{pet} hates to eat {food} {when}",
            "{when} {pet} refuses to eat {food}",
            "{food} is what {pet} does not want to eat {when}",
            "{pet} does not touch any {food} {when}",
        ),
        ("{pet} likes {food}", "{pet} does not refuse {food} {when}"),
        ("pet", "food"),
    ),
    Frame(
        {
            "thing": ("a passport", "a driving license", "a visa", "a work permit", "a library card", "a bank account"),
            "time": ("a day", "two weeks", "a month", "half a year"),
        },
        (
            "how can I get {thing} within {time}?",
            "what should I do to get {thing} within {time}?",
            "is there a way to obtain {thing} in {time}?",
            "I want to get {thing} within {time}, how does it work?",
        ),
        (
            "how can I give back {thing} within {time}?",
            "what should I do if I do not want {thing}?",
            "is there a way to get rid of {thing} in {time}?",
            "I no longer need {thing}, how can I cancel it within {time}?",
        ),
        ("how can I get {thing}?", "I want to know how to obtain {thing}"),
        ("thing", "time"),
    ),
    Frame(
        {
            "act": (
                ("turn off the light", "switch off the light"),
                ("close the window", "shut the window"),
                ("open the gate", "unlock the gate"),
                ("take the bus", "go by bus"),
                ("sell the car", "find a buyer for the car"),
                ("call the doctor", "phone the doctor"),
            ),
            "when": ("before you leave", "when it gets dark", "as soon as you can", "after lunch"),
        },
        (
            "please {act} {when}",
            "could you {act} {when}?",
            "I would like you to {act} {when}",
            "{when}, please remember to {act}",
        ),
        (
            "please do not {act} {when}",
            "could you avoid having to {act} {when}?",
            "I would not like you to {act} {when}",
            "{when}, there is no need to {act}",
        ),
        ("I want you to {act}", "do not forget to {act} {when}"),
        ("act", "when"),
    ),
    Frame(
        {
            "sport": ("running", "swimming", "cycling", "yoga", "rowing", "climbing"),
            "n": ("once a week", "twice a week", "three times a week", "every day"),
            "goal": ("to stay healthy", "to lose weight", "to sleep better", "to get stronger"),
        },
        (
            "I started {sport} {n} {goal}",
            "{goal}, I took up {sport} {n}",
            "I have taken up {sport} {n} {goal}",
            "{n} I now do some {sport} {goal}",
        ),
        (
            "I gave up {sport} {goal}",
            "{goal}, I stopped {sport}",
            "I no longer do any {sport}",
            "I do not want to start {sport} {goal}",
        ),
        ("I have started {sport}", "I did not give up {sport}"),
        ("sport", "n", "goal"),
    ),
    Frame(
        {
            "who": PEOPLE,
            "what": ("the keys", "the ticket", "the wallet", "the umbrella", "the glasses", "the ring"),
            "where": ("on the train", "at the office", "in the car", "at the beach", "in the kitchen"),
        },
        (
            "{who} lost {what} {where}",
            "{what} got lost when {who} was {where}",
            "{where} {who} lost {what}",
            "it was {where} that {who} lost {what}",
        ),
        (
            "{who} found {what} {where}",
            "{what} did not get lost when {who} was {where}",
            "{where} {who} found {what} again",
            "{who} never lost {what}",
        ),
        ("{who} lost something {where}", "{who} no longer has {what}"),
        ("what", "where", "who"),
    ),
    Frame(
        {
            "topic": (
                "remote work",
                "public transport",
                "nuclear power",
                "online shopping",
                "homework",
                "solar energy",
                "free trade",
            ),
            "why": ("saves time", "helps families", "is good for the economy", "makes life easier"),
        },
        (
            "I am in favor of {topic}, I think it {why}",
            "{topic} is a good thing since it {why}",
            "because it {why}, I support {topic}",
            "I think {topic} {why}, so I am for it",
        ),
        (
            "I am against {topic}, I do not think it {why}",
            "{topic} is a bad thing and in no way {why}",
            "although some say it {why}, I oppose {topic}",
            "I do not think {topic} {why}, so I am against it",
        ),
        ("I support {topic}", "I am not against {topic}"),
        ("topic",),
    ),
)
