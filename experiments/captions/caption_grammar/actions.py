"""What is done, as plain data: verbs with their meaning, and the agents, objects and places that fit them.

The features of an action are the parts of the agent that it takes up (hands, legs, mouth, eyes), so that one cannot
peel and saw at once (both need the hands) while one may well sing and walk.
"""

from dataclasses import dataclass

from caption_grammar.lexicon import features, rows
from caption_grammar.scene import Value


@dataclass(frozen=True)
class Verb(Value):
    """A verb: synonyms (base forms), who does it, to what (groups, empty: to nothing), where, and its traits.

    Traits: `alone` the object may be left out; `active` it has no passive; `thing` the patient is an agent itself;
    `speed`, `care`, `noise` the manners that fit.
    """

    words: tuple[str, ...] = ()
    who: frozenset[str] = frozenset()
    what: frozenset[str] = frozenset()
    where: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()


# base form, synonyms | features | who | what | where | traits
ACTIONS_TABLE = """
peel | hands=prepare/peel | adult | fruit vegetable | kitchen | speed care
chop, cut up | hands=prepare/cut | adult | vegetable | kitchen | speed care
slice, cut into slices | hands=prepare/cut/slice | adult | sliceable vegetable fruit | kitchen | speed care
fry, cook in a pan | hands=prepare/cook/fry | adult | fryable | kitchen |
grill, barbecue | hands=prepare/cook/grill | adult | fryable | homeout kitchen |
boil | hands=prepare/cook/boil | adult | boiled | kitchen |
bake | hands=prepare/cook/bake | adult | baked | kitchen | alone
stir | hands=prepare/stir | adult | stirred | kitchen | speed care
*knead | hands=prepare/knead | adult | dough | kitchen | speed
roll out, flatten | hands=prepare/roll | adult | dough | kitchen | care
eat | hands=eat mouth=eat | adult kid | food | home table park out | speed alone noise
drink, sip | hands=drink mouth=drink | adult | drink | table home park | speed
order, ask for | mouth=order | adult | drink food | table kitchen | active
play | hands=music/play | adult kid | instrument | stage home park street | alone
tune | hands=tune | adult | string | stage home | care
practice, rehearse on | hands=music/practice | adult kid | string | home stage school | alone active
ride | hands=ride legs=ride/sit | adult kid | cycle | street park | speed
ride, sit on | hands=ride legs=ride/sit | adult | motor | road street | speed
push, shove | hands=push legs=walk | adult | pushed | street park farm | speed
pull, drag | hands=pull legs=walk | adult | pushed sled | street park farm | speed
drive | hands=drive legs=drive | adult | driven | road street | speed care alone
park | hands=park legs=drive | adult | driven | street | care
drive, steer | hands=drive legs=drive | farmhand | tractor | farm road | speed
wash, clean with water | hands=clean/wash | adult kid | washed | street homeout garage | care
repair, fix | hands=repair | adult | repaired | homeout work | care
paint | hands=paint | adult | painted furniture | homeout work | care alone
*varnish | hands=varnish | adult | furniture | work | care
paddle, row | hands=paddle legs=sit | adult kid | paddled | shore | speed
sail | hands=sail | adult | sailed | shore | active
kick | legs=kick | adult kid | ball | park field | speed
throw, toss | hands=throw | adult kid | ball smallball thrown | park shore field | active
catch | hands=catch | adult kid | ball smallball thrown | park shore field |
bounce, dribble | hands=bounce | adult kid | ball | park sport | speed
juggle with | hands=juggle | adult | ball smallball | park stage | active
chase, run after | legs=run/chase | dog cat kid | ball thrown | park shore | active
read | hands=read eyes=read | adult kid | read | table home park | alone noise
tear up, rip up | hands=tear | adult kid | read written | table home |
write | hands=write eyes=write | adult kid | written | table home | alone
sign | hands=sign | adult | letter | table |
draw, sketch | hands=draw eyes=draw | adult kid | drawn | table home park | alone care
hang up | hands=hang | adult | drawn | home work | care
look at, study | eyes=look | adult kid | drawn looked | table home | active
type on, work on | hands=type eyes=type | adult | laptop | table home | active speed
talk on, speak on | hands=talk mouth=talk | adult | phone | street home park | active noise
repair, fix | hands=repair | adult | device | work home | care
carry | hands=carry | adult kid | carried tool | street home park work farm | care
drop | hands=drop | adult kid | carried dish | street home | active
move | hands=move | adult | furniture | home work | care
build, make | hands=make/build | adult | furniture | work homeout | care
take apart, dismantle | hands=dismantle | adult | furniture | work home | care
set, lay | hands=set | adult | laid | home | care
open | hands=open | adult kid | opened | home work | care noise
close, shut | hands=close | adult kid | opened | home work | care noise
fill, fill up | hands=fill | adult | filled | home farm work homeout | speed
empty | hands=empty | adult | filled | home farm work homeout | speed
pack | hands=pack | adult | packed | home | speed care
unpack | hands=unpack | adult | packed | home | speed
load | hands=load | adult | loaded | street farm | speed
unload | hands=unload | adult | loaded | street farm | speed
sharpen | hands=sharpen | adult | sharp | work | care
put on | hands=puton | adult kid | garment hatlike | home street | speed
take off | hands=takeoff | adult kid | garment hatlike | home street | speed
iron, press | hands=iron | adult | garment sewn | home | care
fold, fold up | hands=fold | adult | garment | home shop | care
sew, stitch | hands=make/sew | adult | sewn garment | home work | care alone
knit | hands=make/knit | adult | knitted | home park | alone
wash | hands=clean/wash | adult kid | dish garment | home kitchen | care
dry, wipe dry | hands=dry | adult kid | dish | home kitchen | care
break, smash | hands=break | adult kid | dish | home kitchen |
plant | hands=plant | adult kid | planted | homeout | care
dig up, uproot | hands=digup | adult | planted | homeout | care
water | hands=water | adult kid | watered flower | homeout |
trim, prune | hands=trim | adult | trimmed | homeout | care
pick | hands=pick | adult kid | flower fruit | homeout farm | care
smell, sniff | nose=smell | adult kid | flower | homeout |
climb, climb up | legs=climb/up hands=climb | adult kid | climbed | homeout wild | speed care
climb down from, come down from | legs=climb/down hands=climb | adult kid | climbed | homeout wild | speed care active
jump over, leap over | legs=jump | adult kid dog hoof | jumped log | park farm wild |
crawl under | legs=crawl | kid dog cat | jumped | park farm | speed active
play with | hands=toys | kid tot | toy balloon | home park | active
fly | hands=fly | adult kid | kite | park shore | active
inflate, blow up | hands=inflate mouth=blow | adult | balloon | home park |
*pop, burst | hands=pop | adult kid | balloon | home park |
jump, skip with | legs=jumprope | kid | jumprope | park |
tie, knot | hands=tie | adult kid | rope | shore farm | care
cut, cut through | hands=cut | adult | rope log | work farm wild | care
saw, cut with a saw | hands=saw | adult | log | work farm wild | speed
chew on, gnaw on | mouth=chew | dog | chewed thrown | home park | active
bury | paws=bury | dog | bone | homeout | speed
light | hands=light | adult | candle | home | care
switch off, turn off | hands=off | adult kid | lamp | home |
switch on, turn on | hands=on | adult kid | lamp | home |
blow out | mouth=blowout | adult kid | candle | home |
wrap, wrap up | hands=wrap | adult kid | wrapped | home shop | care
unwrap, open | hands=unwrap | adult kid | wrapped | home | speed care
sweep | hands=clean/sweep | adult kid | floor | home work shop kitchen | speed
mop | hands=clean/mop | adult | floor | home work shop kitchen | speed
vacuum, clean with a vacuum cleaner | hands=clean/vacuum | adult | vacuumed | home | speed
ride down a hill on, slide downhill on | legs=slide | kid adult | sled | snow | speed active
buy, purchase | trade=buy | adult | fruit flower hatlike garment | shop market | active
sell | trade=sell | adult | fruit flower hatlike | shop market |
sleep, slumber | hands=rest/sleep legs=rest/sleep mouth=rest eyes=sleep | adult kid tot dog cat | | home | noise
nap, take a nap, doze | hands=rest/sleep/nap legs=rest/sleep/nap mouth=rest eyes=sleep | adult kid tot dog cat | | home park |
rest, relax | hands=rest legs=rest | adult dog cat hoof wild | | home park farm zoo |
dance | legs=dance | adult kid | | stage home street park |
walk, stroll | legs=walk | adult kid dog cat hoof bird wild | | street park shore wild farm road zoo | speed noise
run | legs=run | adult kid dog hoof | | street park shore wild farm | speed
jog | legs=run/jog hands=exercise | adult | | street park shore | speed
sprint, run at full speed | legs=run/sprint | adult kid dog | | park shore field |
limp | legs=limp | adult dog | | street park |
crawl, creep | legs=crawl hands=crawl | tot | | home | speed
jump, leap | legs=jump | adult kid dog | | park shore |
sit | legs=sit | adult kid dog cat | | home table park shore | noise
stand | legs=stand | hoof | | farm wild |
stand in line, wait in line | legs=stand | adult | | street shop |
lie on the ground | legs=lie | hoof dog wild | | farm park zoo |
swim | legs=swim hands=swim | adult kid sea | | water pool | speed
dive | legs=dive hands=dive | adult kid sea | | water pool |
float on the water, drift on the water | legs=float | float | | water pondy |
splash around, splash about | legs=splash hands=splash | adult kid | | water pool | noise
surf, ride a wave | legs=surf hands=surf | adult | | ocean |
ski, go down on skis | legs=ski hands=ski | adult kid | | snow | speed
*snowboard | legs=snowboard | adult kid | | snow | speed
hike, go on a hike | legs=walk/hike | adult | | wild | speed
fish, go fishing | hands=fish | adult kid | | shore |
camp, go camping | night=camp | adult | | wild |
sunbathe, lie in the sun | legs=lie | adult | | shore |
build a sandcastle, make a castle out of sand | hands=make/castle | adult kid | | sand |
lift weights, do weight training | hands=exercise/lift legs=exercise | adult | | sport |
do push-ups | hands=exercise/push legs=exercise | adult | | sport park | speed
stretch, do stretching exercises | hands=exercise/stretch legs=exercise | adult | | sport park |
box, practice boxing | hands=exercise/box | adult | | sport |
sing | mouth=sing | adult kid | | stage home street | noise
shout, yell | mouth=talk/shout | adult kid | | street field |
whisper | mouth=talk/whisper | adult kid | | school home stage |
laugh | face=laugh mouth=laugh | adult kid tot | | home park street stage | noise
cry, weep | face=cry | adult kid tot | | home park street | noise
give a speech, deliver a speech | mouth=talk/speech | adult | | stage |
play chess | hands=game/chess | adult kid | | home park table |
play cards, play a card game | hands=game/cards | adult kid | | home table |
watch television, watch TV | eyes=watch | adult kid | | tv |
take a shower, have a shower | hands=shower legs=stand | adult kid | | bath |
pray | mouth=pray | adult | | church |
bark | mouth=bark | dog | | home park street | noise
meow | mouth=meow | cat | | home street | noise
graze, eat grass | mouth=eat/graze | hoof | | farm wild |
gallop | legs=run/gallop | horsey | | farm shore |
fly, soar through the air | legs=fly wings=fly | bird | | wild shore park |
sit on a branch, perch on a branch | legs=sit wings=sit | bird | | wild park |
hop, jump about | legs=hop | small | | park wild homeout | speed
hide behind a rock | place=hide | small wild | | wild zoo |
climb a tree, climb up a tree | legs=climb/up hands=climb | squirrelly cat | | park wild | speed
chase, run after | legs=run/chase | dog cat kid | =dog cat bird small kid hoof | park farm out | thing
follow, walk behind | legs=walk/follow | adult kid dog | =adult kid dog cat hoof | park street farm | thing speed
hug, embrace | hands=hug | adult kid | =adult kid dog | home park street | thing
push, shove | hands=push | adult kid | =adult kid | park street | thing
photograph, take a picture of | hands=photo eyes=photo | adult | =adult kid dog bird hoof wild cat | park street zoo stage | thing
paint a portrait of | hands=paint | adult | =adult kid dog | home park | thing care active
feed, give food to | hands=feed | adult kid | =dog cat hoof bird tot small | home farm park zoo | thing
pet, stroke | hands=pet | adult kid | =dog cat hoof small | home farm park | thing
wash, bathe | hands=clean/wash | adult | =dog tot hoof | homeout home | thing
brush, groom | hands=brush | adult | =dog cat hoof | home farm | thing care
lead | hands=lead legs=walk | adult | =hoof | farm road | thing speed
ride, sit on the back of | legs=ride/sit | adult kid cowboyish | =horsey | farm shore wild | thing speed
teach, give a lesson to | mouth=talk/teach | adult | =adult kid | school work | thing
listen to | ears=listen | adult kid | =adult | home street stage | thing active
interview | mouth=talk/interview | adult | =adult | work street | thing
wave at, wave to | hands=wave | adult kid | =adult kid | street park | thing active
carry | hands=carry | adult | =tot kid | home park street | thing
help | aid=help | adult | =adult kid | home work street | thing
ignore | aid=ignore | adult | =adult kid | home work street | thing
examine | hands=examine | medic | =adult kid tot | work | thing care
lick | mouth=lick | dog | =kid tot adult cat dog | home park | thing
bite | mouth=bite | dog | =adult cat dog | home street park | thing
bark at | mouth=bark | dog | =adult cat kid bird hoof | home street park | thing active noise
race against, compete in a race with | legs=run | adult kid | =adult kid | park field | thing active
"""

# general verb phrases: reached only from a more special action, whose object they drop
GENERAL_TABLE = """
prepare food, make something to eat | hands=prepare | - | | | drop
cook, do the cooking | hands=prepare/cook | - | | | drop
cut | hands=prepare/cut | - | | | keep
cook | hands=prepare/cook | - | | | keep
prepare | hands=prepare | - | | | keep
make music | hands=music | - | | | drop
clean | hands=clean | - | | | keep
do some cleaning | hands=clean | - | | | drop
make | hands=make | - | | | keep
make something | hands=make | - | | | drop
exercise, work out | hands=exercise | - | | | drop
rest | hands=rest legs=rest | - | | | drop
run | legs=run | - | | | drop
walk | legs=walk | - | | | drop
play a game | hands=game | - | | | drop
talk, speak | mouth=talk | - | | | drop
"""


def _verbs(table: str, prefix: str = "") -> dict[str, Verb]:
    made: dict[str, Verb] = {}
    for held, words, (meaning, who, what, where, traits) in rows(table):
        name = f"{prefix}{words[0]} {what.strip('=')}".strip()
        groups = [frozenset(column.strip("=").split()) for column in (who, what, where, traits)]
        made[name] = Verb(name, features(meaning), held, words, *groups)
    return made


ACTIONS = _verbs(ACTIONS_TABLE)
GENERAL_ACTIONS = _verbs(GENERAL_TABLE, "general ")

# Opposites share their topic, so they overlap a little and are the first choice for a contradiction.
OPPOSITES = [
    ("push", "pull"), ("open", "close"), ("fill", "empty"), ("pack", "unpack"), ("load", "unload"),
    ("put on", "take off"), ("plant", "dig up"), ("build", "take apart"), ("throw", "catch"), ("wrap", "unwrap"),
    ("climb", "climb down from"), ("switch off", "switch on"), ("light", "blow out"), ("buy", "sell"),
    ("inflate", "pop"), ("laugh", "cry"), ("shout", "whisper"), ("help", "ignore"), ("drive", "park"),
    ("repair", "break"), ("carry", "drop"), ("wash", "dry"), ("write", "tear up"), ("walk", "run"),
    ("jump over", "crawl under"), ("stand", "lie on the ground"), ("sleep", "run"), ("swim", "dive"),
]  # fmt: skip
