"""The news register: markets, weather, matches, votes, accidents and courts, all invented."""

from caption_grammar.frames import Frame

DAYS = ("on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday")
PERCENT = ("2 percent", "3 percent", "5 percent", "8 percent", "12 percent")
NUMBERS = ("three", "four", "five", "seven", "nine", "eleven")
CITIES = ("the capital", "the northern port", "the old town", "the border city", "the island", "the mountain resort")
FIRMS = (
    ("the airline", "the carrier"),
    ("the bank", "the lender"),
    ("the phone maker", "the maker of phones"),
    ("the steel company", "the steelmaker"),
    ("the software firm", "the software company"),
    ("the retailer", "the store chain"),
    ("the car maker", "the automaker"),
    ("the drug company", "the drugmaker"),
)
PLACES = (
    "near the coast", "in the south of the country", "in the capital", "outside the city", "in the mountain valley",
    "close to the border",
)  # fmt: skip
OFFICIALS = (
    ("the mayor", "the head of the city"),
    ("the governor", "the head of the state government"),
    ("the finance minister", "the minister of finance"),
    ("the prime minister", "the head of the government"),
    ("the police chief", "the chief of police"),
    ("the health minister", "the minister of health"),
)
TEAMS = ("the home team", "the visitors", "the champions", "the northern side", "the newcomers", "the favorites")

NEWS = (
    Frame(
        {"firm": FIRMS, "n": PERCENT, "day": DAYS},
        (
            "Shares of {firm} rose {n} {day}",
            "{day} the shares of {firm} gained {n}",
            "The stock of {firm} went up by {n} {day}",
            "Stock in {firm} climbed {n} {day}",
        ),
        (
            "Shares of {firm} fell {n} {day}",
            "{day} the shares of {firm} lost {n}",
            "The stock of {firm} went down by {n} {day}",
            "Stock in {firm} dropped {n} {day}",
        ),
        ("Shares of {firm} rose {day}", "The stock of {firm} gained value {day}", "Stock in {firm} did not fall {day}"),
        ("n", "day", "firm"),
    ),
    Frame(
        {"firm": FIRMS, "n": ("300", "450", "800", "1,200", "2,000"), "when": ("this year", "next year", "by summer")},
        (
            "{firm} will cut {n} jobs {when}",
            "{firm} plans to lay off {n} workers {when}",
            "{n} employees of {firm} will lose their jobs {when}",
            "{n} jobs at {firm} are to go {when}",
        ),
        (
            "{firm} will create {n} jobs {when}",
            "{firm} plans to hire {n} workers {when}",
            "{n} people will get a job at {firm} {when}",
            "{firm} will not cut any jobs {when}",
        ),
        ("{firm} will cut jobs {when}", "{firm} will not keep all of its workers"),
        ("n", "firm"),
    ),
    Frame(
        {
            "firm": FIRMS,
            "other": ("a smaller rival", "its main supplier", "a foreign competitor", "a family business"),
            "sum": ("40 million dollars", "90 million dollars", "2 billion dollars", "700 million euros"),
        },
        (
            "{firm} bought {other} for {sum}",
            "{firm} paid {sum} for {other}",
            "{other} was bought by {firm} for {sum}",
            "for {sum}, {firm} took over {other}",
        ),
        (
            "{firm} was bought by {other} for {sum}",
            "{other} paid {sum} for {firm}",
            "{other} took over {firm} for {sum}",
            "{firm} refused to pay {sum} for {other}",
        ),
        ("{firm} bought {other}", "{other} now belongs to {firm}"),
        ("sum", "other"),
    ),
    Frame(
        {
            "n": NUMBERS,
            "what": (
                ("a bus crash", "an accident of a bus"),
                ("a fire", "a blaze"),
                ("a train accident", "a rail accident"),
                ("an explosion", "a blast"),
                ("a flood", "flooding"),
                ("an avalanche", "a snow slide"),
            ),
            "where": PLACES,
        },
        (
            "{n} people were killed in {what} {where}",
            "{what} {where} killed {n} people",
            "{n} people died in {what} {where}",
            "{what} {where} left {n} people dead",
        ),
        (
            "nobody was killed in {what} {where}",
            "{what} {where} killed no one",
            "everyone survived {what} {where}",
            "all {n} people survived {what} {where}",
        ),
        ("people were killed in {what} {where}", "not everyone survived {what} {where}", "{what} {where} was deadly"),
        ("n", "where"),
    ),
    Frame(
        {"team": TEAMS, "score": ("two to one", "three to nothing", "four to two", "one to nothing"), "day": DAYS},
        (
            "{team} won the match {score} {day}",
            "{day} the match ended in a {score} win for {team}",
            "{team} were {score} winners {day}",
            "with {score}, {team} took the match {day}",
        ),
        (
            "{team} lost the match {score} {day}",
            "{day} the match ended in a {score} defeat for {team}",
            "{team} were beaten {score} {day}",
            "{team} did not win the match {day}",
        ),
        ("{team} won {day}", "{team} did not lose {day}", "the match {day} was won by {team}"),
        ("team", "score", "day"),
    ),
    Frame(
        {
            "who": OFFICIALS,
            "what": (
                "the new tax",
                "the school reform",
                "the trade deal",
                "the ban on smoking",
                "the plan for a new airport",
                "the budget",
            ),
            "day": DAYS,
        },
        (
            "{who} backed {what} {day}",
            "{day} {who} spoke out for {what}",
            "{who} said {day} that {what} has full support",
            "{who} expressed support for {what} {day}",
        ),
        (
            "{who} rejected {what} {day}",
            "{day} {who} spoke out against {what}",
            "{who} said {day} that {what} has no support",
            "{who} opposed {what} {day}",
        ),
        ("{who} supports {what}", "{who} is not against {what}", "{what} has the support of {who}"),
        ("what", "who"),
    ),
    Frame(
        {
            "who": OFFICIALS,
            "day": DAYS,
            "why": ("after the scandal", "for reasons of health", "after the lost vote", "in a letter to the press"),
        },
        (
            "{who} resigned {day} {why}",
            "{day} {who} stepped down {why}",
            "{who} gave up the office {day} {why}",
            "{why} {who} quit {day}",
        ),
        (
            "{who} took office {day} {why}",
            "{day} {who} refused to resign {why}",
            "{who} will stay in office {why}",
            "{who} did not step down {day}",
        ),
        ("{who} resigned", "{who} has left the office", "{who} did not stay in office"),
        ("day", "who"),
    ),
    Frame(
        {
            "city": CITIES,
            "day": DAYS,
            "storm": (
                ("a heavy storm", "a violent storm"),
                ("a hurricane", "a tropical cyclone"),
                ("heavy snow", "a snowstorm"),
                ("strong rain", "a downpour"),
            ),
        },
        (
            "{storm} hit {city} {day}",
            "{day} {city} was hit by {storm}",
            "{city} was struck by {storm} {day}",
            "{storm} reached {city} {day}",
        ),
        (
            "{storm} missed {city} {day}",
            "{day} {city} was spared by {storm}",
            "{storm} did not reach {city} {day}",
            "the weather in {city} was calm {day}",
        ),
        ("there was bad weather in {city} {day}", "{city} was not spared by {storm}"),
        ("city", "day"),
    ),
    Frame(
        {
            "price": (
                ("the price of oil", "the oil price"),
                ("the price of gold", "the gold price"),
                ("house prices", "prices for houses"),
                ("food prices", "the prices of food"),
                ("rents", "the cost of renting a home"),
            ),
            "n": PERCENT,
            "when": ("last month", "last year", "in March"),
        },
        (
            "{price} went up by {n} {when}",
            "{when} {price} increased by {n}",
            "{when} there was a {n} rise in {price}",
            "{price} climbed {n} {when}",
        ),
        (
            "{price} went down by {n} {when}",
            "{when} {price} decreased by {n}",
            "{when} there was a {n} drop in {price}",
            "{price} did not change {when}",
        ),
        ("{price} went up {when}", "{when} {price} did not go down"),
        ("n", "when", "price"),
    ),
    Frame(
        {
            "who": ("a former banker", "a local teacher", "a young driver", "a retired officer", "a shop owner"),
            "crime": (
                ("robbery", "armed robbery"),
                ("fraud", "cheating his clients"),
                ("theft", "stealing"),
                ("arson", "setting a house on fire"),
            ),
            "n": ("two years", "four years", "six years", "ten years"),
        },
        (
            "{who} was sentenced to {n} in prison for {crime}",
            "a court sent {who} to prison for {n} for {crime}",
            "for {crime}, {who} must go to jail for {n}",
            "{who} got {n} in jail for {crime}",
        ),
        (
            "{who} was found not guilty of {crime}",
            "a court cleared {who} of {crime}",
            "{who} does not have to go to prison for {crime}",
            "a court dropped the charge of {crime} against {who}",
        ),
        ("{who} was found guilty of {crime}", "{who} must go to prison", "a court did not clear {who} of {crime}"),
        ("n", "crime"),
    ),
    Frame(
        {
            "land": (
                "the northern republic",
                "the island nation",
                "the kingdom",
                "the neighboring country",
                "the federation",
            ),
            "other": ("its neighbor", "its former enemy", "the eastern alliance", "the southern states"),
            "day": DAYS,
        },
        (
            "{land} signed a peace agreement with {other} {day}",
            "{day} {land} and {other} signed a treaty of peace",
            "a peace deal between {land} and {other} was signed {day}",
            "{land} made peace with {other} {day}",
        ),
        (
            "{land} declared war on {other} {day}",
            "{day} {land} broke off the peace talks with {other}",
            "{land} refused to sign a peace agreement with {other} {day}",
            "the peace talks between {land} and {other} failed {day}",
        ),
        ("{land} is no longer at war with {other}", "{land} reached an agreement with {other}"),
        ("day", "other"),
    ),
    Frame(
        {
            "n": NUMBERS,
            "who": ("miners", "climbers", "sailors", "tourists", "hikers"),
            "where": ("in the mountains", "off the coast", "in the north", "near the lake"),
        },
        (
            "{n} missing {who} were found alive {where}",
            "rescuers found {n} missing {who} alive {where}",
            "{n} {who} who had been missing {where} are alive",
            "the {n} missing {who} {where} were rescued",
        ),
        (
            "{n} missing {who} were found dead {where}",
            "rescuers could not save the {n} {who} {where}",
            "the {n} {who} {where} are still missing",
            "the search for {n} missing {who} {where} was given up",
        ),
        ("missing {who} were found {where}", "the {who} {where} are not dead"),
        ("n", "who"),
    ),
)
