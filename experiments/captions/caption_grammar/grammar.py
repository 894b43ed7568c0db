"""The inflection of English words: articles, plurals, verb forms, numbers."""

from functools import cache

_PLURALS = {
    "person": "people", "child": "children", "sheep": "sheep", "deer": "deer", "loaf of bread": "loaves of bread",
    "knife": "knives", "shelf": "shelves", "scarf": "scarves", "mom": "moms", "leaf": "leaves",
}  # fmt: skip
_NOT_MEN = ("human", "german")
_AN = ("hour", "honest", "heir")
_A = ("uni", "use", "used", "uku", "euro", "one", "u-")
# Verbs whose last consonant doubles before -ing and -ed.
_DOUBLED = set(
    "cut chop stir sit swim run jog hug drag wrap unwrap mop dig skip pet nap trim sip rip knot rub hop knit put set "
    "shut win begin get stop drop pop plan rob".split()
)
# base -> (past, participle)
_IRREGULAR = {
    "be": ("was", "been"), "begin": ("began", "begun"), "bite": ("bit", "bitten"), "blow": ("blew", "blown"),
    "break": ("broke", "broken"), "bring": ("brought", "brought"), "build": ("built", "built"),
    "buy": ("bought", "bought"), "catch": ("caught", "caught"), "cut": ("cut", "cut"), "dig": ("dug", "dug"),
    "do": ("did", "done"), "draw": ("drew", "drawn"), "drink": ("drank", "drunk"), "drive": ("drove", "driven"),
    "eat": ("ate", "eaten"), "fall": ("fell", "fallen"), "feed": ("fed", "fed"), "find": ("found", "found"),
    "fly": ("flew", "flown"), "get": ("got", "gotten"), "give": ("gave", "given"), "go": ("went", "gone"),
    "have": ("had", "had"), "hear": ("heard", "heard"), "hide": ("hid", "hidden"), "hit": ("hit", "hit"),
    "hold": ("held", "held"), "keep": ("kept", "kept"), "lead": ("led", "led"), "leave": ("left", "left"),
    "lend": ("lent", "lent"), "lie": ("lay", "lain"), "lose": ("lost", "lost"), "make": ("made", "made"),
    "meet": ("met", "met"), "pay": ("paid", "paid"), "put": ("put", "put"), "read": ("read", "read"),
    "ride": ("rode", "ridden"), "run": ("ran", "run"), "say": ("said", "said"), "see": ("saw", "seen"),
    "sell": ("sold", "sold"), "send": ("sent", "sent"), "set": ("set", "set"), "sew": ("sewed", "sewn"),
    "shut": ("shut", "shut"), "sing": ("sang", "sung"), "sit": ("sat", "sat"), "sleep": ("slept", "slept"),
    "speak": ("spoke", "spoken"), "spend": ("spent", "spent"), "stand": ("stood", "stood"),
    "sweep": ("swept", "swept"), "swim": ("swam", "swum"), "take": ("took", "taken"), "teach": ("taught", "taught"),
    "tear": ("tore", "torn"), "tell": ("told", "told"), "throw": ("threw", "thrown"), "win": ("won", "won"),
    "write": ("wrote", "written"), "beat": ("beat", "beaten"), "rise": ("rose", "risen"), "cost": ("cost", "cost"),
    "grow": ("grew", "grown"), "shrink": ("shrank", "shrunk"), "sink": ("sank", "sunk"), "hang": ("hung", "hung"),
}  # fmt: skip
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


@cache
def plural(noun: str) -> str:
    """Return the plural of a noun, a compound inflecting its last word ("glass of milk": its first)."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    head, of, rest = noun.partition(" of ")
    if of:
        return plural(head) + of + rest
    first, _, last = noun.rpartition(" ")
    if first:
        return f"{first} {plural(last)}"
    if noun.endswith("man") and noun not in _NOT_MEN:
        return noun[:-3] + "men"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("potato", "tomato", "mango"):
        return noun + "es"
    return noun + "s"


def article(phrase: str) -> str:
    """Return the phrase after "a" or "an", as it sounds."""
    vowel = phrase[0].lower() in "aeiou" or phrase.lower().startswith(_AN)
    return ("an " if vowel and not phrase.lower().startswith(_A) else "a ") + phrase


@cache
def third(verb: str) -> str:
    """Return the third person singular of a verb phrase ("play with" → "plays with")."""
    word, blank, rest = verb.partition(" ")
    if word in ("do", "go") or word.endswith(("s", "x", "ch", "sh", "zz")):
        word += "es"
    elif word == "have":
        word = "has"
    elif word.endswith("y") and word[-2] not in "aeiou":
        word = word[:-1] + "ies"
    else:
        word += "s"
    return word + blank + rest


@cache
def ing(verb: str) -> str:
    """Return the -ing form of a verb phrase."""
    word, blank, rest = verb.partition(" ")
    if word in _DOUBLED:
        word += word[-1]
    elif word.endswith("ie"):
        word = word[:-2] + "y"
    elif word.endswith("e") and not word.endswith(("ee", "ye", "oe")) and word != "be":
        word = word[:-1]
    return word + "ing" + blank + rest


def _regular_past(word: str) -> str:
    if word in _DOUBLED:
        return word + word[-1] + "ed"
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + "ed"


@cache
def past(verb: str) -> str:
    """Return the simple past of a verb phrase."""
    word, blank, rest = verb.partition(" ")
    return (_IRREGULAR[word][0] if word in _IRREGULAR else _regular_past(word)) + blank + rest


@cache
def participle(verb: str) -> str:
    """Return the past participle of a verb phrase."""
    word, blank, rest = verb.partition(" ")
    return (_IRREGULAR[word][1] if word in _IRREGULAR else _regular_past(word)) + blank + rest


def number(value: int) -> str:
    """Return a whole number in words up to twelve, in digits with commas above."""
    return _NUMBERS[value] if 0 <= value <= 12 else f"{value:,}"


def sentence(text: str, stop: bool = True) -> str:
    """Return the text with a capital at its head and, unless told otherwise, a full stop."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + ("." if stop and text[-1] not in ".?!" else "")
