"""Text far from the training sentences, written for this project: what a language model should not forget."""

PASSAGES: tuple[str, ...] = (
    "A lighthouse does not shine in all directions at once. Its lamp stands inside a ring of ground glass, and the glass "
    "bends the light into a few narrow beams. When the ring turns, the beams sweep across the water like the spokes of a "
    "wheel, and a sailor far out sees a flash, then darkness, then a flash again. Every lighthouse keeps its own rhythm. "
    "With a watch and a printed list, the sailor can tell which coast lies ahead, even on a night without a moon.",
    "To find the greatest common divisor of two whole numbers, divide the larger by the smaller and keep the remainder. "
    "Then divide the smaller number by that remainder, and go on in this way until nothing is left over. The last "
    "remainder that was not zero is the answer. For 84 and 36 the remainders are 12 and 0, so the greatest common "
    "divisor is 12. The method is more than two thousand years old, and computers still use it every day.",
    "Dear Mrs. Halloran,\n\nThank you for your letter of the third. We are sorry that the parcel arrived with a broken "
    "corner. A replacement left our warehouse this morning and should reach you by Friday. There is no need to send the "
    "damaged item back; please dispose of it or give it to someone who can mend it. If anything else is missing, write "
    "to us at the address below and mention the order number.\n\nWith kind regards,\nThe service desk",
    "Inflation is often described as too much money chasing too few goods, but the saying hides a quarrel. Some "
    "economists hold that prices rise because a central bank has created more money than trade requires. Others point to "
    "shortages: when a harbor closes or a harvest fails, the same money meets fewer goods, and prices climb without any "
    "help from the printing press. Both stories can be true at once, which is why two honest experts may read one table "
    "of figures and recommend opposite cures.",
    'def moving_average(values, width):\n    """Return the mean of each window of `width` neighbours."""\n'
    '    if width < 1 or width > len(values):\n        raise ValueError("width must fit the list")\n'
    "    total = sum(values[:width])\n    means = [total / width]\n    for old, new in zip(values, values[width:]):\n"
    "        total += new - old\n        means.append(total / width)\n    return means\n\nThe function keeps a running sum, "
    "so that each further window costs one addition and one subtraction instead of a new loop over all of its elements.",
    "The treaty had forty-one articles, but the ministers argued about one word. The northern draft said that fishing "
    "fleets may enter the strait; the southern draft said that they shall. After nine days a tired clerk proposed to "
    "write the sentence in the passive voice, so that nobody would have to permit anything and nobody would be obliged. "
    "Both sides accepted within the hour. The strait has been quiet since then, although lawyers on each shore still "
    "teach their students that the other side gave way.",
    "Sourdough needs no yeast from a shop. Stir equal weights of flour and water, cover the jar loosely, and leave it in "
    "a warm corner. For some days it will look dead. Throw away half of it each morning and add fresh flour and water in "
    "its place. Around the fifth day bubbles appear, and the smell changes from wet paint to ripe apples. When the "
    "mixture doubles its height within six hours, it is strong enough to lift a loaf.",
    "Grandfather never spoke about the mine. We knew only the brass lamp on the shelf and the blue scars on his hands, "
    "thin as pencil lines. Once, when the power failed, he lit the lamp without a word, and for the length of an evening "
    "the kitchen became a low, gold room in which every shadow had edges. My brother asked if it had been like this down "
    "there. The old man thought for a while. No, he said. Down there the dark leaned on you.",
    "Under the lease the tenant shall give three months' notice in writing. The notice takes effect on the last day of a "
    "calendar quarter. If the landlord does not object within fourteen days after receipt, the notice is deemed accepted. "
    "A deposit of no more than two monthly rents may be demanded; it must be kept apart from the landlord's own assets "
    "and returned with interest within sixty days after the keys have been handed over, less the cost of damage that "
    "exceeds ordinary wear.",
    "Plants cannot run away from their enemies, so many of them fight with chemistry. A leaf that is bitten by a "
    "caterpillar releases scents into the air. Wasps follow the trail and lay their eggs inside the attacker. Neighboring "
    "plants notice the same scents and begin to fill their own leaves with bitter compounds before a single insect has "
    "reached them. What we enjoy as the fragrance of a freshly mown meadow is, seen from the ground, a cry of alarm.",
    "# Release notes\n\n## Fixed\n- The importer no longer stops at an empty row; it reports the row and goes on.\n"
    "- Dates before 1970 are shown with the right weekday.\n\n## Changed\n- The default page size is 50. Set "
    "`page_size` to restore the old value of 20.\n\n## Known problems\n- On very small screens the side panel covers the "
    "search field. Turning the device by ninety degrees makes it visible again until we ship a proper layout.",
    "The second movement opens with a melody so plain that a child could pick it out with one finger. Nothing supports "
    "it but a slow pulse in the cellos. Then the oboe enters a beat too late, as if it had been waiting behind a door, "
    "and repeats the tune a third higher. Little by little the orchestra learns the song, each group bending it toward "
    "its own temper, until the brass turns it into a march and one longs for the single finger again.",
    "Why does a mirror exchange left and right but not up and down? It does neither. A mirror exchanges front and back: "
    "the nose that points toward the glass comes back pointing toward you. We speak of left and right because we imagine "
    "walking around and standing where our image stands, and in doing so we turn about a vertical axis. If people were "
    "in the habit of greeting each other by standing on their heads, the puzzle would be told the other way round.",
    "The pass is closed from November to May, and the bus goes only as far as the sawmill. From there a mule track climbs "
    "through larches to a stone hut with nine beds and a stove. Bring food: the keeper sells tea and nothing else. On "
    "clear mornings the ridge above the hut shows both seas, a thin bright line on either side, and it is worth the "
    "half hour of scrambling. Start early, because clouds rise from the eastern valley soon after ten.",
    "Vaccines work by rehearsal. The body is shown a harmless piece of a germ, a coat without a wearer, and some of its "
    "cells happen to carry a receptor that fits. These cells divide by the million; most of them die when the alarm is "
    "over, but a few remain for years. When the real germ arrives, they need hours where the first meeting took days, and "
    "the infection is often beaten before its host has noticed anything at all.",
    "Chess engines once counted: a pawn was worth one, a rook five, and the machine that looked furthest ahead won. The "
    "newer ones are taught differently. They play against themselves, remember which positions led to victory, and form "
    "something that looks like taste. Masters who study their games speak of sacrifices without a visible purpose that "
    "turn out, thirty moves later, to have closed the one road by which the opponent might have escaped.",
)

CONVERSATIONS: tuple[tuple[str, str], ...] = (
    (
        "What is the difference between weather and climate?",
        "Weather is what the atmosphere does at a given place and time: rain this morning, wind tonight. Climate is the "
        "pattern of weather over many years, usually thirty or more. A single cold winter is weather; a change in how "
        "often such winters occur is a change of climate.",
    ),
    (
        "Any ideas for getting a stuck lid off a jar?",
        "1. Hold the lid under hot water for half a minute: metal widens faster than glass.\n2. Dry it and take a rubber "
        "glove for a better grip.\n3. If it still does not move, push the tip of a spoon under the rim and lift gently "
        "until you hear a click. The air that rushes in lets go of the lid.",
    ),
    (
        "A rectangular garden is 9 meters long and 4 meters wide. Find its area and the length of a fence around it.",
        "The area is length times width: 9 × 4 = 36 square meters. The fence runs along all four sides, two of 9 meters "
        "and two of 4 meters, so it measures 2 × (9 + 4) = 26 meters.",
    ),
    (
        "I need a toast for a colleague who retires.",
        "Dear Ruth, for thirty years you have been the first to arrive and the last to lose your temper. You taught half "
        "of us our trade and the other half how to make decent coffee. The office will be quieter without you, and not "
        "better for it. Please raise your glasses: to slow mornings, long walks and a telephone that rings for someone "
        "else.",
    ),
    (
        "My browser says 404. Did I break something?",
        "No. The number is the server's way of saying that it found no page at this address. Most often the page has "
        "moved or the address has a typing error. Try the home page of the site and search from there; if a link led you "
        "astray, its owner will be glad to hear of it.",
    ),
    (
        "Who was Ada Lovelace?",
        "Ada Lovelace was an English mathematician of the nineteenth century. She translated an article about Charles "
        "Babbage's planned calculating engine and added notes longer than the article itself. In them she described how "
        "the engine could compute Bernoulli numbers, which is often called the first published computer program.",
    ),
    (
        "My houseplant has yellow leaves. What could be wrong?",
        "The most common reason is too much water. Feel the soil: if it is still wet two centimeters below the surface, "
        "wait before you water again and make sure the pot can drain. If the soil is dry, the plant may be thirsty "
        "instead. Pale new leaves with green veins point to a lack of iron, and yellowing near a window can be sunburn.",
    ),
    (
        "Summarize the story of the tortoise and the hare in two sentences.",
        "A hare mocks a slow tortoise and, sure of winning their race, lies down for a nap halfway. The tortoise keeps "
        "walking without a rest and crosses the finishing line before the hare wakes up.",
    ),
    (
        "Is it safe to eat raw potatoes?",
        "In small amounts a raw potato will not hurt most people, but it is hard to digest because its starch resists "
        "our enzymes. Green or sprouting potatoes contain solanine, which is poisonous, so cut those parts away "
        "generously or throw the potato out. Cooking makes potatoes both safer and tastier.",
    ),
    (
        "Explain recursion to a beginner.",
        "Recursion means that a function calls itself on a smaller piece of the same problem. Imagine opening a box that "
        "holds another box, and another inside that one. The rule is simple: open the box; if there is a box inside, do "
        "the same with it; if there is none, stop. The part that says when to stop is called the base case.",
    ),
    (
        "Which is correct, 'fewer people' or 'less people'?",
        "'Fewer people' is the safe choice, because people can be counted. 'Less' goes with what is measured rather than "
        "counted: less noise, less sugar.",
    ),
    (
        "Should I learn to cook or order food to save time?",
        "It depends on what your time is worth to you. Ordering saves an hour today, but it costs more and leaves you "
        "where you are. Cooking is slow at first and becomes quick with practice; after a month, ten simple dishes take "
        "twenty minutes each. A fair compromise is to cook a large pot twice a week and order when you are really tired.",
    ),
    (
        "What happens at a traffic light when the power fails?",
        "When the signals are dark, drivers have to follow the signs and the general rules of the road. In many places a "
        "dark light counts as a stop sign for everyone: each driver stops, and whoever came first goes first. Police "
        "officers may direct the traffic, and their signals come before any sign.",
    ),
    (
        "Give me a title and a first line for a mystery novel.",
        "Title: The Clockmaker's Second Key\n\nFirst line: The watch on the dead man's wrist was running, which would "
        "have surprised no one if it had not been my watch, lost in a river eleven years before.",
    ),
)

GENERATION_PROMPTS: tuple[str, ...] = (
    "Explain in two sentences why leaves turn red in autumn.",
    "A baker makes 4 trays with 6 rolls each and sells 9 rolls. How many remain?",
    "Show me a regular expression that matches a date such as 2024-05-17.",
    "Name three things to pack for a day at the beach.",
)
