"""The register of reference books: definitions, comparisons, causes and instructions."""

from caption_grammar.frames import Frame

MATERIALS = ("wood", "steel", "glass", "paper", "cotton", "plastic", "copper", "clay")
ANIMALS = ("the otter", "the hedgehog", "the owl", "the salmon", "the bat", "the mole", "the stork", "the lizard")

FACTS = (
    Frame(
        {
            "a": ("the bridge", "the tower", "the tunnel", "the church", "the dam", "the castle"),
            "b": ("the harbor", "the railway", "the town hall", "the city wall", "the market hall"),
            "n": ("ten years", "fifty years", "a century", "three centuries"),
        },
        (
            "{a} is {n} older than {b}",
            "{b} is {n} younger than {a}",
            "{a} was built {n} before {b}",
            "{b} was built {n} after {a}",
        ),
        (
            "{a} is {n} younger than {b}",
            "{b} is {n} older than {a}",
            "{a} was built {n} after {b}",
            "{a} and {b} were built in the same year",
        ),
        ("{a} is older than {b}", "{b} was not built before {a}", "{b} is younger than {a}"),
        ("n",),
    ),
    Frame(
        {
            "thing": ("the box", "the chair", "the pipe", "the tool", "the plate", "the statue", "the toy", "the roof"),
            "stuff": MATERIALS,
            "use": ("holds water", "keeps out the cold", "carries a heavy load", "is used every day", "is sold abroad"),
        },
        (
            "{thing} that {use} is made of {stuff}",
            "{stuff} is what {thing} that {use} consists of",
            "{thing} {use} and is made of {stuff}",
            "made of {stuff}, {thing} {use}",
        ),
        (
            "{thing} that {use} contains no {stuff}",
            "{stuff} is not used in {thing} that {use}",
            "{thing} {use} and is made without {stuff}",
            "made without {stuff}, {thing} {use}",
        ),
        ("{thing} is made of {stuff}", "{thing} is not made without {stuff}"),
        ("stuff",),
    ),
    Frame(
        {
            "animal": ANIMALS,
            "food": ("insects", "fish", "seeds", "small animals", "leaves", "fruit"),
            "when": ("at night", "in winter", "during the day", "in spring"),
        },
        (
            "{animal} feeds on {food} {when}",
            "{when} {animal} eats {food}",
            "{animal} lives on {food} {when}",
            "{when} the food of {animal} is {food}",
        ),
        (
            "{animal} does not eat {food} {when}",
            "{when} {animal} never eats {food}",
            "{animal} cannot live on {food} {when}",
            "{when} {animal} eats nothing at all",
        ),
        ("{animal} eats {food}", "{animal} does eat something {when}"),
        ("food", "animal"),
    ),
    Frame(
        {
            "substance": ("water", "the metal", "the gas", "the liquid", "the wax", "the air", "the oil"),
            "change": (
                ("expands", "grows in volume"),
                ("becomes thinner", "gets thinner"),
                ("turns darker", "becomes darker in color"),
                ("moves faster", "gains speed"),
            ),
            "cause": ("when it is heated", "under low pressure", "in a strong field", "when salt is added"),
        },
        (
            "{substance} {change} {cause}",
            "{cause}, {substance} {change}",
            "it is {cause} that {substance} {change}",
            "what happens to {substance} {cause} is that it {change}",
        ),
        (
            "{substance} shrinks and slows down {cause}",
            "{cause}, {substance} does not change at all",
            "nothing happens to {substance} {cause}",
            "{substance} stays the same {cause}",
        ),
        ("{substance} does not stay the same {cause}", "{cause}, {substance} changes"),
        ("cause", "substance"),
    ),
    Frame(
        {
            "who": (
                ("the composer", "the writer of the music"),
                ("the painter", "the artist"),
                ("the poet", "the writer of verse"),
                ("the engineer", "the designer of machines"),
                ("the explorer", "the traveler"),
            ),
            "where": ("in a small village", "in a port town", "on an island", "in the capital", "on a farm"),
            "when": ("in spring", "in winter", "during the war", "after the great fire"),
        },
        (
            "{who} was born {where} {when}",
            "{when}, {who} was born {where}",
            "the birth of {who} took place {where} {when}",
            "{who} came into the world {where} {when}",
        ),
        (
            "{who} was not born {where}",
            "the birth of {who} did not take place {where}",
            "{who} was born far away and never lived {where}",
            "{when}, {who} was not yet born",
        ),
        ("{who} was born {where}", "{who} came into the world {when}"),
        ("where", "when"),
    ),
    Frame(
        {
            "river": ("the river", "the stream", "the canal", "the glacier"),
            "a": ("the hills", "the great forest", "the old city", "the plain"),
            "b": ("the sea", "a large lake", "the bay", "the marsh"),
        },
        (
            "{river} flows from {a} to {b}",
            "starting in {a}, {river} runs to {b}",
            "{river} comes from {a} and ends in {b}",
            "{b} is where {river} from {a} ends",
        ),
        (
            "{river} flows from {b} to {a}",
            "starting in {b}, {river} runs to {a}",
            "{river} comes from {b} and ends in {a}",
            "{river} does not reach {b}",
        ),
        ("{river} reaches {b}", "{river} comes from {a}"),
        ("a", "b"),
    ),
    Frame(
        {
            "part": ("the lid", "the valve", "the switch", "the lever", "the cover"),
            "way": (
                ("to the left", "leftwards"),
                ("to the right", "rightwards"),
                ("upward", "toward the top"),
                ("downward", "toward the bottom"),
            ),
            "goal": ("to start the machine", "to stop the pump", "to open the tank", "to reset the clock"),
        },
        (
            "turn {part} {way} {goal}",
            "{goal}, turn {part} {way}",
            "{part} must be turned {way} {goal}",
            "{goal} you have to turn {part} {way}",
        ),
        (
            "do not turn {part} {way} {goal}",
            "{goal}, leave {part} where it is",
            "{part} must not be turned {goal}",
            "{goal} you do not have to touch {part}",
        ),
        ("{part} has to be turned {goal}", "you need {part} {goal}"),
        ("way", "goal"),
    ),
    Frame(
        {
            "law": ("the law", "the rule", "the contract", "the treaty", "the permit"),
            "who": ("tenants", "drivers", "farmers", "students", "visitors", "owners"),
            "act": ("build a fence", "keep animals", "park here", "sell food", "use the road", "take photographs"),
        },
        (
            "{law} allows {who} to {act}",
            "under {law}, {who} may {act}",
            "{who} are permitted to {act} by {law}",
            "{who} have the right to {act} under {law}",
        ),
        (
            "{law} forbids {who} to {act}",
            "under {law}, {who} may not {act}",
            "{who} are not permitted to {act} by {law}",
            "{who} have no right to {act} under {law}",
        ),
        ("{who} may {act}", "{law} does not forbid {who} to {act}"),
        ("act",),
    ),
    Frame(
        {
            "a": ("the train", "the ferry", "the bus", "the night flight"),
            "n": ("one hour", "two hours", "forty minutes", "three hours"),
            "b": ("the coast", "the capital", "the airport", "the island", "the border"),
        },
        (
            "{a} takes {n} to {b}",
            "{a} gets to {b} in {n}",
            "the trip to {b} by {a} lasts {n}",
            "it is {n} to {b} when you take {a}",
        ),
        (
            "{a} takes much longer than {n} to {b}",
            "{a} does not go to {b}",
            "nobody gets to {b} by {a} in {n}",
            "the trip to {b} by {a} is not possible",
        ),
        ("{a} goes to {b}", "you can get to {b} by {a}"),
        ("n", "b", "a"),
    ),
)
