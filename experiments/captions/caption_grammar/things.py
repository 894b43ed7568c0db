"""What is acted on, as plain data: objects by kind, and the looks they can have."""

from caption_grammar.lexicon import COLOURS, Phrase, nouns, phrases

# Groups name the classes that verbs choose by; looks: hued, sized, built (made of wood, metal or plastic).
OBJECTS = nouns("""
apple | kind=food/fruit/apple | fruit food
banana | kind=food/fruit/banana | fruit food
orange | kind=food/fruit/orange | fruit food
pear | kind=food/fruit/pear | fruit food
peach | kind=food/fruit/peach | fruit food
*mango | kind=food/fruit/mango | fruit food
pineapple | kind=food/fruit/pineapple | fruit food
potato | kind=food/vegetable/potato | vegetable
carrot | kind=food/vegetable/carrot | vegetable food
onion | kind=food/vegetable/onion | vegetable
tomato | kind=food/tomato | sliceable food
cucumber | kind=food/vegetable/cucumber | vegetable food
*eggplant | kind=food/vegetable/eggplant | vegetable
pumpkin | kind=food/vegetable/pumpkin | sliceable
mushroom | kind=food/mushroom | sliceable fryable
steak | kind=food/meat/steak | fryable food
sausage | kind=food/meat/sausage | fryable food
fish | kind=food/fish | fryable fishy
egg | kind=food/egg | fryable
hamburger, burger | kind=food/burger | fryable food
*omelet | kind=food/omelet | fryable food
cake | kind=food/baked/cake | baked food
pie | kind=food/baked/pie | baked food
cookie | kind=food/baked/cookie | baked food
pizza | kind=food/pizza | baked food
loaf of bread | kind=food/baked/bread | baked
sandwich | kind=food/sandwich | food
rice | kind=food/rice | mass boiled food
pasta, spaghetti | kind=food/pasta | mass boiled food
soup | kind=food/soup | mass boiled food stirred
sauce | kind=food/sauce | mass stirred
dough | kind=food/dough | mass dough
cup of coffee, coffee | kind=drink/coffee | drink
cup of tea | kind=drink/tea | drink
glass of water | kind=drink/water | drink
glass of milk | kind=drink/milk | drink
bottle of beer, beer | kind=drink/beer | drink alcohol
*glass of lemonade | kind=drink/lemonade | drink
guitar | kind=instrument/guitar | string instrument
violin, fiddle | kind=instrument/violin | string instrument
cello | kind=instrument/cello | string instrument
*harp | kind=instrument/harp | string instrument
banjo | kind=instrument/banjo | string instrument
piano | kind=instrument/piano | instrument big
accordion | kind=instrument/accordion | instrument
flute | kind=instrument/flute | instrument
trumpet | kind=instrument/trumpet | instrument
saxophone | kind=instrument/saxophone | instrument
*clarinet | kind=instrument/clarinet | instrument
drum | kind=instrument/drum | instrument
bicycle, bike | kind=vehicle/bicycle | cycle washed repaired hued
motorcycle, motorbike | kind=vehicle/motorcycle | motor washed repaired hued
scooter | kind=vehicle/scooter | cycle hued
skateboard | kind=vehicle/skateboard | board
car, automobile | kind=vehicle/car | driven washed repaired hued
truck | kind=vehicle/truck | driven washed repaired hued loaded
van | kind=vehicle/van | driven washed repaired hued loaded
bus | kind=vehicle/bus | driven washed hued
tractor | kind=vehicle/tractor | tractor repaired hued
*taxi, cab | kind=vehicle/taxi | driven washed
canoe | kind=boat/canoe | paddled hued
kayak | kind=boat/kayak | paddled hued
sailboat | kind=boat/sailboat | sailed
*raft | kind=boat/raft | paddled
ball | kind=ball | ball hued
football | kind=ball/football | ball
basketball | kind=ball/basketball | ball
tennis ball | kind=ball/tennis | smallball
baseball | kind=ball/baseball | smallball
frisbee | kind=frisbee | thrown hued
stick | kind=stick | thrown
book | kind=reading/book | read hued sized written
newspaper | kind=reading/newspaper | read
magazine | kind=reading/magazine | read
letter | kind=reading/letter | read written letter
menu | kind=reading/menu | read
*comic book | kind=reading/comic | read
postcard | kind=reading/postcard | written
poem | kind=poem | written
map | kind=map | drawn looked
portrait | kind=picture/portrait | drawn
landscape | kind=picture/landscape | drawn
*sketch | kind=picture/sketch | drawn
laptop | kind=device/laptop | device laptop
phone, telephone | kind=device/phone | device phone
camera | kind=device/camera | device repaired
chair | kind=furniture/chair | furniture carried hued built
table | kind=furniture/table | furniture built laid
bench | kind=furniture/bench | furniture built
desk | kind=furniture/desk | furniture built
bookshelf | kind=furniture/shelf | furniture built
*wardrobe | kind=furniture/wardrobe | furniture
door | kind=door | opened painted hued built
window | kind=window | opened washed sized
gate | kind=gate | opened painted built
drawer | kind=drawer | opened
umbrella | kind=umbrella | opened carried hued
box | kind=container/box | opened carried filled hued sized built
suitcase | kind=container/suitcase | opened carried packed hued sized
basket | kind=container/basket | carried filled sized
bucket | kind=container/bucket | carried filled hued sized
bag | kind=container/bag | opened carried filled packed hued sized
*barrel | kind=container/barrel | filled
backpack | kind=container/backpack | opened carried packed hued sized
hammer | kind=tool/hammer | tool
saw | kind=tool/saw | tool sharp
shovel, spade | kind=tool/shovel | tool
rake | kind=tool/rake | tool
broom | kind=tool/broom | tool
ladder | kind=ladder | carried climbed sized
*axe | kind=tool/axe | tool sharp
shirt | kind=clothes/shirt | garment hued
jacket | kind=clothes/jacket | garment hued
dress | kind=clothes/dress | sewn hued
hat | kind=clothes/hat | hatlike hued
sweater | kind=clothes/sweater | garment knitted hued
scarf | kind=clothes/scarf | knitted hatlike hued
*raincoat | kind=clothes/raincoat | garment hued
plate | kind=dish/plate | dish
bowl | kind=dish/bowl | dish sized
pot | kind=dish/pot | dish sized
pan, frying pan | kind=dish/pan | dish sized
tree | kind=plant/tree | planted climbed watered sized
bush, shrub | kind=plant/bush | planted watered trimmed
rose | kind=plant/flower/rose | planted flower
tulip | kind=plant/flower/tulip | planted flower
*sunflower | kind=plant/flower/sunflower | planted flower
hedge | kind=plant/hedge | trimmed
fence | kind=fence | painted repaired jumped built
wall | kind=wall | painted climbed
house | kind=building/house | painted looked sized
shed | kind=building/shed | painted repaired sized built
roof | kind=roof | repaired
kite | kind=toy/kite | kite hued
doll | kind=toy/doll | toy
teddy bear | kind=toy/teddy | toy
toy train | kind=toy/train | toy
*puzzle | kind=toy/puzzle | toy
balloon | kind=balloon | balloon hued
rope | kind=rope | rope jumprope
log | kind=log | log sized
bone | kind=bone | chewed bone
shoe | kind=shoe | chewed hued
cart | kind=cart | pushed
wheelbarrow | kind=wheelbarrow | pushed
stroller | kind=stroller | pushed
sled | kind=sled | sled
candle | kind=candle | lit candle
lamp | kind=lamp | lit lamp
gift, present | kind=gift | wrapped
*parcel, package | kind=parcel | wrapped carried
floor | kind=floor | floor the
carpet, rug | kind=carpet | vacuumed
fruit | kind=food/fruit | general mass
vegetable | kind=food/vegetable | general
meat | kind=food/meat | general mass
food | kind=food | general mass
drink, beverage | kind=drink | general
musical instrument, instrument | kind=instrument | general
vehicle | kind=vehicle | general
boat | kind=boat | general
piece of furniture | kind=furniture | general
container | kind=container | general
tool | kind=tool | general
plant | kind=plant | general
flower | kind=plant/flower | general
toy | kind=toy | general
picture | kind=picture | general
piece of clothing, garment | kind=clothes | general
building | kind=building | general
""")

_HUES = "\n".join(f"{colour} | colour={colour} | hued" for colour in COLOURS)

LOOKS: dict[str, dict[str, Phrase]] = {
    "colour": phrases(_HUES, "colour "),
    "size": phrases(
        """
big, large | size=big | sized
small, little | size=small | sized
""",
        "size ",
    ),
    "material": phrases(
        """
wooden | material=wood | built
metal | material=metal | built
plastic | material=plastic | built
""",
        "material ",
    ),
}
