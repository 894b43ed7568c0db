"""A few sentences on each of a few topics: a good embedding puts a topic's sentences together."""

GROUPS = {
    "cooking": (
        "Simmer the soup until the carrots are soft.",
        "She kneads the dough and lets it rise for an hour.",
        "Add a pinch of salt and stir the sauce slowly.",
        "The chef is chopping onions for the stew.",
        "Grandmother's pancakes are best with butter and jam.",
        "He burned the rice because the pan was too hot.",
    ),
    "music": (
        "The violinist tunes her instrument before the concert.",
        "A boy is learning to play the drums.",
        "The choir sang an old folk song in four voices.",
        "They recorded the whole album in one afternoon.",
        "His piano teacher asked for the slow movement again.",
        "The band's singer forgot the words of the second verse.",
    ),
    "weather": (
        "Heavy rain is expected along the coast tonight.",
        "It snowed so much that the roads were closed.",
        "A cold wind blew down from the mountains.",
        "The fog lifted shortly before noon.",
        "Tomorrow will be sunny, with a few clouds in the evening.",
        "The storm tore two roofs off in the village.",
    ),
    "football": (
        "The striker scored twice in the first half.",
        "The goalkeeper saved a penalty in the last minute.",
        "Their team lost the final after extra time.",
        "The referee showed the captain a red card.",
        "Fans cheered as the ball hit the net.",
        "The coach has put a young defender on the bench.",
    ),
    "health": (
        "The doctor prescribed antibiotics for her infection.",
        "The nurse took his temperature and blood pressure.",
        "Patients with a fever should drink plenty of water.",
        "The surgeon operated on the broken knee.",
        "Her headache went away after she took the tablet.",
        "Children are vaccinated against measles at school.",
    ),
    "money": (
        "The bank raised its interest rate by a quarter point.",
        "He pays back the loan in monthly instalments.",
        "Share prices fell sharply after the announcement.",
        "The company's profit doubled within a year.",
        "She saves a tenth of her wages for retirement.",
        "The government wants to lower the tax on fuel.",
    ),
}
