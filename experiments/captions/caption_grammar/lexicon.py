"""Who acts and where, as plain data: people, animals, places, and the modifiers of both.

A line of a table reads `word, synonyms | features | groups`; a star before the word keeps it for the held-out split.
A feature is `name=general/special`. The first word of a line is the name of the value.
"""

from dataclasses import dataclass

from caption_grammar.grammar import plural
from caption_grammar.scene import Features, Value


@dataclass(frozen=True)
class Noun(Value):
    """A noun: its synonyms (singular), the groups that verbs choose by, and whether it has no plural ("some rice")."""

    words: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()
    mass: bool = False

    def forms(self, many: bool) -> tuple[str, ...]:
        """Return the synonyms, in the plural if `many`."""
        return tuple(plural(word) for word in self.words) if many else self.words


@dataclass(frozen=True)
class Phrase(Value):
    """A value said by fixed phrases, any of which will do."""

    words: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()


def features(text: str) -> Features:
    """Read `name=general/special` items parted by blanks."""
    return {name: tuple(path.split("/")) if path else () for name, path in (i.split("=") for i in text.split())}


def rows(table: str) -> list[tuple[bool, tuple[str, ...], list[str]]]:
    """Read a table's lines as (held out, synonyms, the other columns)."""
    found = []
    for line in table.strip().splitlines():
        words, *columns = (column.strip() for column in line.split("|"))
        found.append((words.startswith("*"), tuple(w.strip() for w in words.lstrip("*").split(",")), columns))
    return found


def nouns(table: str) -> dict[str, Noun]:
    """Read a table of nouns, by name."""
    made = {}
    for held, words, (meaning, groups) in rows(table):
        kinds = frozenset(groups.split())
        made[words[0]] = Noun(words[0], features(meaning), held, words, kinds, "mass" in kinds)
    return made


def phrases(table: str, prefix: str = "") -> dict[str, Phrase]:
    """Read a table of phrases, by name."""
    made = {}
    for held, words, (meaning, groups) in rows(table):
        made[prefix + words[0]] = Phrase(prefix + words[0], features(meaning), held, words, frozenset(groups.split()))
    return made


# Groups: adult, kid, tot (too small for most things), dog, cat, hoof, small, wild, bird, sea.
# "general" entries are only reached from a more special one, in a hypothesis.
AGENTS = nouns("""
man, guy | kind=person gender=male age=adult | adult grownman
woman, lady | kind=person gender=female age=adult | adult
boy | kind=person gender=male age=child | kid
girl | kind=person gender=female age=child | kid
child, kid | kind=person age=child | kid
teenager, teen | kind=person | adult
toddler | kind=person age=child/toddler | tot
baby, infant | kind=person age=child/baby | tot
mother, mom | kind=person gender=female age=adult family=parent | adult
father, dad | kind=person gender=male age=adult family=parent | adult grownman
grandmother, grandma | kind=person gender=female age=adult family=grandparent | adult
*grandfather, grandpa | kind=person gender=male age=adult family=grandparent | adult grownman
chef, cook | kind=person age=adult role=chef | adult
nurse | kind=person age=adult role=nurse | adult medic
doctor, physician | kind=person age=adult role=doctor | adult medic
teacher | kind=person age=adult role=teacher | adult
farmer | kind=person age=adult role=farmer | adult farmhand
carpenter | kind=person age=adult role=craftsman/carpenter | adult
mechanic | kind=person age=adult role=craftsman/mechanic | adult
*plumber | kind=person age=adult role=craftsman/plumber | adult
waiter | kind=person gender=male age=adult role=waiter | adult
waitress | kind=person gender=female age=adult role=waiter | adult
firefighter | kind=person age=adult role=firefighter | adult
police officer, cop | kind=person age=adult role=police | adult
soldier | kind=person age=adult role=soldier | adult
gardener | kind=person age=adult role=gardener | adult
fisherman | kind=person gender=male age=adult role=fisherman | adult
*baker | kind=person age=adult role=baker | adult
photographer | kind=person age=adult role=photographer | adult
artist | kind=person age=adult role=artist | adult
scientist | kind=person age=adult role=scientist | adult
student, pupil | kind=person role=student | adult
tourist | kind=person travel=tourist | adult
hiker | kind=person travel=hiker | adult
singer | kind=person role=musician/singer | adult
guitarist, guitar player | kind=person role=musician/guitarist | adult
*drummer | kind=person role=musician/drummer | adult
boxer | kind=person role=athlete/boxer | adult
golfer | kind=person role=athlete/golfer | adult
gymnast | kind=person role=athlete/gymnast | adult
cowboy | kind=person gender=male age=adult role=cowboy | adult cowboyish
sailor | kind=person age=adult role=sailor | adult
construction worker, builder | kind=person age=adult role=builder | adult
businessman | kind=person gender=male age=adult role=business | adult
businesswoman | kind=person gender=female age=adult role=business | adult
librarian | kind=person age=adult role=librarian | adult
clown | kind=person role=clown | adult
*magician | kind=person role=magician | adult
bride | kind=person gender=female age=adult | adult
*groom | kind=person gender=male age=adult | adult
neighbor | kind=person | adult
dog | kind=animal/dog | dog
puppy | kind=animal/dog years=young | dog
poodle | kind=animal/dog/poodle | dog
terrier | kind=animal/dog/terrier | dog
labrador | kind=animal/dog/labrador | dog
*beagle | kind=animal/dog/beagle | dog
cat | kind=animal/cat | cat
kitten | kind=animal/cat years=young | cat
horse | kind=animal/horse | hoof horsey
*pony | kind=animal/horse/pony | hoof horsey
cow | kind=animal/cow | hoof
goat | kind=animal/goat | hoof
sheep | kind=animal/sheep | hoof
donkey | kind=animal/donkey | hoof
deer | kind=animal/deer | hoof
rabbit | kind=animal/rabbit | small
squirrel | kind=animal/squirrel | small squirrelly
*hamster | kind=animal/hamster | small
monkey | kind=animal/monkey | wild
elephant | kind=animal/elephant | wild
bear | kind=animal/bear | wild
tiger | kind=animal/tiger | wild
*lion | kind=animal/lion | wild
panda | kind=animal/panda | wild
fox | kind=animal/fox | wild
duck | kind=animal/bird/duck | bird float
swan | kind=animal/bird/swan | bird float
parrot | kind=animal/bird/parrot | bird
pigeon | kind=animal/bird/pigeon | bird
seagull, gull | kind=animal/bird/gull | bird float
*eagle | kind=animal/bird/eagle | bird
owl | kind=animal/bird/owl | bird
dolphin | kind=animal/dolphin | sea
turtle | kind=animal/turtle | sea
person | kind=person | general
adult, grown-up | kind=person age=adult | general
animal | kind=animal | general
bird | kind=animal/bird | general
musician | kind=person role=musician | general
athlete | kind=person role=athlete | general
""")

# Groups of places: home kitchen table out street park farm water shore wild snow shop stage work school sport.
PLACES = phrases("""
in the kitchen, in a kitchen | where=in/kitchen | home kitchen
in the living room, in a living room | where=in/living | home table tv
in the bedroom, in a bedroom | where=in/bedroom | home
in the bathroom, in a bathroom | where=in/bathroom | home bath
*in the attic | where=in/attic | home
in the hallway, in a hallway | where=in/hallway | home
in the basement, in a basement | where=in/basement | home work
in a garage, in the garage | where=in/garage | home work garage
in a workshop, in the workshop | where=in/workshop | work
in the office, in an office | where=in/office | work table
in a classroom, in the classroom | where=in/classroom | school table school
at the library, in a library | where=in/library | school table
in a museum, at the museum | where=in/museum | shop
in a restaurant, at a restaurant | where=in/restaurant | kitchen table
in a cafe, at a cafe, in a coffee shop | where=in/cafe | table
*in a bakery, at the bakery | where=in/bakery | kitchen shop
in a supermarket, at the supermarket | where=in/supermarket | shop
in a bookstore, in a bookshop | where=in/bookstore | shop
in a hospital, at the hospital | where=in/hospital | work
in a gym, at the gym | where=in/gym | sport
on a stage, on stage | where=in/stage | stage
*in a theater, at the theater | where=in/theater | stage
in a church | where=in/church | stage church
on a train | where=in/train | table
*in a laboratory, in the lab | where=in/laboratory | work
in a barn, in the barn | where=in/barn | farm work
in a tent | where=in/tent | wild home
in the park, in a park | where=out/park | out park
in the garden, in a garden | where=out/garden | out park homeout
in the backyard, in a backyard, behind the house | where=out/backyard | out park homeout
on the playground, on a playground | where=out/playground | out park
on the street, in the street | where=out/street | out street
on the sidewalk | where=out/sidewalk | out street
in a parking lot | where=out/parking | out street
on a bridge, on the bridge | where=out/bridge | out street
*in an alley, in the alley | where=out/alley | out street
at the market, at an outdoor market | where=out/market | out street market
on the beach, at the beach | where=out/beach | out shore sand
on a pier, on the pier | where=out/pier | out shore
on the river bank, beside a river | where=out/river | out shore wild
by a lake, near a lake | where=out/lake | out shore wild
*at the harbor, in the harbor | where=out/harbor | out shore
in the forest, in the woods | where=out/forest | out wild
in a field, in the field | where=out/field | out wild farm
in a meadow | where=out/meadow | out wild farm
*in the desert | where=out/desert | out wild
on a mountain, in the mountains | where=out/mountain | out wild rocks
on a hill, on a hillside | where=out/hill | out wild rocks
on a farm, at a farm | where=out/farm | out farm
on a dirt road | where=out/road | out road
on a country road | where=out/country | out road
on the highway | where=out/highway | out road
on a snowy slope, on a ski slope | where=out/slope | snow
at the zoo, in a zoo | where=out/zoo | zoo
in a stadium, at a stadium | where=out/stadium | field
on a soccer field | where=out/soccer | field out
in the ocean, in the sea | where=out/ocean | water ocean
in a pond | where=out/pond | water pondy
*in a lagoon | where=out/lagoon | water
in an outdoor pool | where=out/pool | pool
in an indoor pool | where=in/pool | pool
indoors, inside, inside a building | where=in | general
outdoors, outside, out in the open | where=out | general
""")

# The modifiers of an agent. Groups say of whom: a = adults, k = kids, t = tots, and the groups of animals.
AGENT_MODIFIERS = {
    "years": phrases(
        """
young | years=young | adult
old | years=old | adult dog cat hoof
""",
        "years ",
    ),
    "stature": phrases(
        """
tall | stature=tall | adult
short | stature=short | adult
""",
        "stature ",
    ),
    "hair": phrases(
        """
blond, fair-haired, with blond hair | hair=blond | adult kid
dark-haired, with dark hair | hair=dark | adult kid
red-haired, with red hair | hair=red | adult kid
bald | hair=none | grownman
""",
        "hair ",
    ),
    "mood": phrases(
        """
smiling, happy, cheerful | mood=happy | adult kid
sad, unhappy | mood=sad | adult kid
angry | mood=angry | adult
tired | energy=tired | adult kid dog hoof
""",
        "mood ",
    ),
    "build": phrases(
        """
big, large | size=big | dog cat hoof
small, little | size=small | dog cat hoof
""",
        "build ",
    ),
    "coat": phrases(
        """
black | coat=black | dog cat horsey
white | coat=white | dog cat horsey
brown | coat=brown | dog cat horsey
gray | coat=gray | dog cat horsey
spotted | coat=spotted | dog cat
""",
        "coat ",
    ),
}

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "pink", "gray", "brown")
GARMENTS = ("shirt", "jacket", "sweater", "hat", "coat", "scarf", "t-shirt", "cap")


def _worn() -> dict[str, Phrase]:
    worn = {}
    for garment in GARMENTS:
        for colour in ("", *COLOURS):
            text = f"{colour} {garment}".strip()
            article = "an" if text[0] in "aeiou" else "a"
            path = (colour,) if colour else ()
            words = (f"in {article} {text}", f"wearing {article} {text}")
            worn["wear " + text] = Phrase("wear " + text, {garment: path}, False, words, frozenset({"adult", "kid"}))
    return worn


AGENT_MODIFIERS["wear"] = _worn()

MANNERS = phrases("""
quickly, fast, at a fast pace | speed=fast | speed
slowly, at a slow pace | speed=slow | speed
carefully, with great care | care=careful | care
carelessly, without much care | care=careless | care
quietly, without a sound | noise=quiet | noise
loudly, very loudly | noise=loud | noise
""")

TIMES = phrases("""
in the morning, early in the morning | hour=morning | any
in the evening | hour=evening | any
at night | hour=night | any
in the afternoon | hour=afternoon | any
in the rain, while it is raining | weather=rain | out
on a sunny day, in the sunshine | weather=sun | out
on a foggy day, in the fog | weather=fog | out
on a windy day | wind=windy | out
""")

COMPANY = phrases("""
alone | company=alone | one
with a friend | company=with/friend | adult kid
with some friends, with a few friends | company=with/friends | adult kid
while someone watches, with somebody watching | watched=yes | adult kid
while it is getting dark, as the sun goes down | dusk=yes | out
next to a parked car, beside a parked car | beside=car | street
near a tall tree, next to a tall tree | beside=tree | park
near a wooden fence, by a wooden fence | beside=fence | farm park
""")
