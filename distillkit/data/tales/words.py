"""The words of the bundled stories: who there is, what there is, where it may be.

Nothing here decides anything; `tales` does. Three shapes of data:

- plain lists of words;
- tables, one row a line, columns parted by `;` and lists within a cell by `/`;
- RULES, named sets of sentences shared by many plots, in the template language of `tales`.
  In a rule `_` stands for whoever the rule is asked about: `<sad:h>` writes `{_.he}` as `{h.he}`.
"""

Row = dict[str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _table(text: str) -> tuple[Row, ...]:
    """Rows of a small text table; its first line names the columns."""
    head, *lines = [[cell.strip() for cell in line.split(";")] for line in text.strip().split("\n")]
    return tuple(dict(zip(head, line, strict=True)) for line in lines)


# Who.

PRONOUNS: dict[str, Row] = {
    "he": {"he": "he", "him": "him", "his": "his", "self": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "self": "herself"},
}

NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("people", "he"): _words("""
        Tom Ben Max Sam Leo Jack Finn Noah Oliver Henry Theo Eli Owen Luke Adam Peter Hugo Felix
        Oscar Milo Jonah Arlo Ravi Omar Kofi Diego Kenji Amir Mateo Emil
    """),
    ("people", "she"): _words("""
        Lily Mia Anna Sue Emma Lucy Ella Nora Ruby Alice Clara Molly Grace Rose Ivy Zoe Maya Tara
        Elsie June Hannah Ada Wendy Priya Yuki Amina Sofia Lena Freya Carmen
    """),
    ("animals", "he"): _words("""
        Pip Rusty Bruno Hopper Biscuit Chester Dusty Bramble Nutty Otto
    """),
    ("animals", "she"): _words("""
        Hazel Tilly Poppy Fern Maple Dot Willow Clover Penny Juniper
    """),
}

ANIMALS = _words("""
    rabbit fox bear mouse squirrel hedgehog badger mole raccoon kitten puppy skunk
""")

TRAITS = _words("""
    little small young cheerful curious quiet friendly lively thoughtful gentle busy kind
    merry clever
""")

LIKES = (
    "singing to the birds",
    "jumping in puddles",
    "asking questions",
    "stories about the sea",
    "climbing up things",
    "collecting smooth stones",
    "the smell of fresh bread",
    "long walks",
    "counting the stars",
    "watching ants",
    "making up songs",
    "riddles and jokes",
    "pancakes with honey",
    "picking wild berries",
)

HOMES: dict[str, tuple[str, ...]] = {
    "people": (
        "in a small house near the sea",
        "in a village between two hills",
        "on a farm with seven cows",
        "at the end of a quiet street",
        "in a yellow house beside a river",
        "above a bakery in a busy town",
        "in a tall house full of stairs",
        "next to a big green park",
        "in a cottage at the edge of a wood",
    ),
    "animals": (
        "at the edge of a deep wood",
        "near a quiet stream",
        "beside an old oak tree",
        "on a hill covered with clover",
        "behind a crooked fence",
        "not far from a round pond",
        "in a valley full of flowers",
        "under the tall pine trees",
    ),
}

GROWNUPS: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        word; call; he
        mom; Mom; she
        dad; Dad; he
        grandma; Grandma; she
        grandpa; Grandpa; he
        aunt; Auntie; she
        uncle; Uncle; he
    """),
    "animals": _table("""
        word; call; he
        mother; Mama; she
        father; Papa; he
        grandmother; Granny; she
        grandfather; Grandpa; he
    """),
}

HELPERS: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        word; he
        the baker; he
        the farmer; she
        the mailman; he
        the shepherd; she
        the old fisherman; he
        the gardener; she
        the carpenter; he
        the miller; she
    """),
    "animals": _table("""
        word; he
        the old owl; he
        the gray goose; she
        the wise toad; he
        the brown hen; she
        the old tortoise; he
        the tall deer; she
    """),
}


# What. `kinds` says what may happen to a thing, `looks` which list its adjective comes from.
#   pocket: small enough to drop unseen    toy: two can want to play with it at once
#   swap:   nice enough to trade           gift: something to long for and to be given
#   craft:  a child could make one

LOOKS: dict[str, tuple[str, ...]] = {
    "paint": _words("red blue green yellow purple orange white pink striped spotted"),
    "cloth": _words("red blue green yellow brown gray soft striped woolly purple"),
    "metal": _words("silver golden shiny tiny brass bright"),
    "wood": _words("wooden carved red blue green yellow painted"),
    "glass": _words("green blue clear yellow purple shiny"),
    "found": _words("white gray smooth brown tiny speckled pretty"),
    "iced": _words("chocolate lemon honey birthday cherry"),
    "pane": _words("round tall colored"),
    "paper": _words("white yellow blue thick old thin"),
}

THINGS = _table("""
    name; looks; kinds
    marble; glass; pocket swap
    button; paint; pocket swap
    whistle; metal; pocket swap gift toy
    key; metal; pocket
    ring; metal; pocket
    coin; metal; pocket
    bell; metal; pocket swap gift
    shell; found; pocket swap
    feather; found; pocket swap
    stone; found; pocket swap
    toy car; paint; pocket toy swap
    toy horse; wood; toy swap gift craft
    ribbon; cloth; pocket swap gift
    ball; paint; toy swap gift
    drum; paint; toy swap gift craft
    kite; paint; toy swap gift craft
    toy boat; wood; toy swap gift craft
    toy train; wood; toy swap gift craft
    puppet; cloth; toy swap gift craft
    teddy bear; cloth; toy gift craft
    spinning top; wood; toy pocket swap gift craft
    flute; wood; swap gift toy craft
    scarf; cloth; gift swap craft
    hat; cloth; gift swap
    lantern; paint; gift swap
    cup; paint; gift
    bucket; paint; toy swap
    picture book; paper; swap gift craft
    paintbrush; wood; toy swap gift
    yo-yo; paint; pocket toy swap gift
    music box; wood; gift swap
    lamp; paint; gift
    cushion; cloth; gift craft
    basket; found; gift swap
""")

PLACES: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        in; spots
        in the park; under the bench/in the long grass/beside the fountain/near the slide
        in the garden; between the beans/under the rose bush/behind the shed/by the pump
        at the beach; near the seaweed/between two rocks/by the sandcastle/near the boat
        on the farm; behind the barn/under the cart/beside the hen house/in the hay
        in the school yard; by the swings/near the gate/by the wall/on the steps
        at the market; by the fruit stand/behind the barrel/by the well/near the cart
        in the orchard; under the pear tree/by the ladder/near the wall/among the leaves
        in the meadow; in the tall grass/among the daisies/by the stone/near the fence
        in the woods; under the fern/between two roots/behind the log/among the dry leaves
    """),
    "animals": _table("""
        in; spots
        in the meadow; in the tall grass/among the daisies/by the stone/near the fence
        in the woods; under the fern/between two roots/behind the log/among the dry leaves
        on the river bank; among the reeds/under the willow/by the bridge/in the sand
        on the hill; behind the bush/in the soft moss/beside the gray rock/under the pine tree
        in the orchard; under the pear tree/by the ladder/near the wall/among the leaves
        at the old mill; behind the wheel/on the steps/by the sacks/by the door
    """),
}

FLYERS: tuple[Row, ...] = (
    {"name": "kite", "looks": "paint",
     "up": "A sudden wind pulled the string from {h.his} {hand}s"},
    {"name": "balloon", "looks": "paint", "up": "{h} let go of the balloon for just a second"},
    {"name": "hat", "looks": "cloth", "up": "A gust of wind blew the hat right off {h.his} head"},
    {"name": "paper plane", "looks": "paper", "up": "{h} threw the plane as hard as {h.he} could"},
    {"name": "ball", "looks": "paint", "up": "{h} gave the ball one mighty kick"},
    {"name": "scarf", "looks": "cloth", "up": "The wind tugged the scarf from {h.his} neck"},
    {"name": "toy glider", "looks": "wood", "up": "{h} sent the glider flying into the wind"},
)

LOADS: tuple[Row, ...] = _table("""
    name; where; goal; use; round
    pumpkin; in the field; to the kitchen; make soup for everyone; yes
    log; behind the shed; to the fire; have a good seat; yes
    flat stone; near the wall; to the stream; make a step across the water; no
    sack of potatoes; in the yard; to the cellar; have enough to eat in winter; no
    wooden chest; by the gate; up to the attic; keep old treasures in it; no
    barrel; in the barn; to the corner of the house; catch the rain; yes
    snowball; in the yard; to the front door; finish the snowman; yes
    watermelon; in the garden; to the picnic; share it with everybody; yes
""")

MENDS: tuple[Row, ...] = (
    {
        "name": "toy car",
        "looks": "paint",
        "hurt": "One wheel [came off|snapped off]",
        "tool": "a bit of wire",
        "next": "the nose of a robot",
        "fix": "pushed the wheel back on and twisted the wire around it",
    },
    {
        "name": "teddy bear",
        "looks": "cloth",
        "hurt": "One ear [came off|tore away]",
        "tool": "a needle and thread",
        "next": "a puppet with one ear",
        "fix": "sewed the ear back on with small, neat stitches",
    },
    {
        "name": "kite",
        "looks": "paint",
        "hurt": "A thorn tore a hole in it",
        "tool": "paper and paste",
        "next": "a flag for the tree house",
        "fix": "pasted a patch over the hole and let it dry",
    },
    {
        "name": "toy boat",
        "looks": "wood",
        "hurt": "The mast [broke|cracked] in two",
        "tool": "a stick and some glue",
        "next": "a bed for a doll",
        "fix": "cut the stick to size and glued it in place",
    },
    {
        "name": "doll",
        "looks": "cloth",
        "hurt": "One arm [came loose|hung by a thread]",
        "tool": "a needle and thread",
        "next": "a puppet with button eyes",
        "fix": "stitched the arm back, round and round",
    },
    {
        "name": "wagon",
        "looks": "paint",
        "hurt": "The handle [snapped|came off]",
        "tool": "a piece of rope",
        "next": "a box full of flowers",
        "fix": "tied the rope where the handle had been",
    },
    {
        "name": "drum",
        "looks": "paint",
        "hurt": "The top split from side to side",
        "tool": "a round piece of cloth",
        "next": "a round table for dolls",
        "fix": "stretched the cloth over the top and tied it tight",
    },
    {
        "name": "toy train",
        "looks": "wood",
        "hurt": "The hook on the last car [broke|bent and fell]",
        "tool": "a loop of string",
        "next": "a long row of pencil boxes",
        "fix": "tied the last car on again with a strong knot",
    },
    {
        "name": "picture book",
        "looks": "paper",
        "hurt": "Two pages [came out|tore right across]",
        "tool": "a roll of tape",
        "next": "a string of paper birds",
        "fix": "laid the pages flat and taped them, slowly and straight",
    },
)

FEARS: dict[str, tuple[Row, ...]] = {
    "both": (
        {
            "fear": "the dark",
            "scene": "When the lamp went out, every shadow looked like a wolf",
            "advice": "Look at one shadow until you know what it is",
            "step": "{^h.he} stared at the biggest shadow. It was only a coat on a hook",
            "then": "one by one, the other shadows turned into chairs and boots",
            "last": "slept all night with the lamp out",
        },
        {
            "fear": "thunder",
            "scene": "When the sky rumbled, {h.he} hid under a blanket",
            "advice": "Count after the flash, and you will hear how far away it is",
            "step": "There was a flash. {h} counted in a small voice. One, two, three, four",
            "then": "each time the number was bigger, for the storm was going away",
            "last": "sat at the window and counted until the storm was gone",
        },
        {
            "fear": "deep water",
            "scene": "While the others splashed, {h.he} sat alone on a warm rock",
            "advice": "Start with your toes. Toes are brave",
            "step": "{^h.he} put ten toes into the water. It was cold, but nothing bad happened",
            "then": "soon the water was up to {h.his} knees, and then up to {h.his} belly",
            "last": "splashed louder than anyone",
        },
        {
            "fear": "the old bridge",
            "scene": "It creaked and shook, and the water below was loud",
            "advice": "Hold the rope and look at me, not at the water",
            "step": "{^h.he} held the rope and took one step. The bridge creaked, but it held",
            "then": "after ten more steps there was grass under {h.his} feet",
            "last": "crossed the old bridge twice more, just for fun",
        },
        {
            "fear": "singing in front of others",
            "scene": "Alone {h.he} sang all day, but in a crowd {h.his} voice went away",
            "advice": "Sing it only to me, and forget the rest",
            "step": "{^h.he} took a breath and sang the first line very softly",
            "then": "line by line, the song grew stronger, and soon others came and hummed along",
            "last": "bowed so low that {h.he} almost fell over",
        },
    ),
    "people": (
        {
            "fear": "the big slide",
            "scene": "From the top, the ground looked as far away as the moon",
            "advice": "I will wait for you at the bottom, as long as it takes",
            "step": "{^h.he} sat down at the top, held on, and counted to five",
            "then": "then {h.he} let go, and the wind rushed past {h.his} ears",
            "last": "climbed up to slide again, and again after that",
        },
        {
            "fear": "the dog next door",
            "scene": "It had a loud bark, and {h} always crossed the street to get past",
            "advice": "Stand still and hold out your {hand}. He only wants to smell you",
            "step": "{^h.he} held out a shaking {hand}. The dog sniffed it with a cold, wet nose",
            "then": "the dog lay down and rolled over to have his belly rubbed",
            "last": "rubbed the big dog's belly until it was time for supper",
        },
    ),
    "animals": (),
}

RESCUES: tuple[Row, ...] = (
    {
        "pet": "bird",
        "trouble": "It had hit a window, and it sat there without moving",
        "care": "made a nest of wool in a box and brought it seeds and water",
        "well": "it stood up and flapped both wings",
        "free": "it flew up into the blue sky",
        "later": "a bird sang outside the window",
    },
    {
        "pet": "turtle",
        "trouble": "It lay on its back and kicked its short legs in the air",
        "care": "turned it over and carried it to the shade, with a leaf to eat",
        "well": "it stretched its neck and began to walk",
        "free": "it slid into the pond",
        "later": "a small green head popped out of the pond",
    },
    {
        "pet": "duckling",
        "trouble": "It had lost its mother, and it peeped and peeped",
        "care": "wrapped it in a scarf and walked along the water, quacking softly",
        "well": "an answer came, a deep quack from the reeds",
        "free": "it paddled to its mother",
        "later": "a row of ducks swam by, and the last one was rather small",
    },
    {
        "pet": "hedgehog",
        "trouble": "Its foot was caught in an old net",
        "care": "cut the net with great care and washed the sore foot",
        "well": "it uncurled and sniffed the air",
        "free": "it trotted off under the hedge",
        "later": "there were tiny footprints near the door",
    },
    {
        "pet": "butterfly",
        "trouble": "Rain had soaked it, and its wings were stuck together",
        "care": "lifted it up on a leaf and held it up to the sun until it was dry",
        "well": "its wings opened, thin and bright",
        "free": "it danced away over the fence",
        "later": "a butterfly landed on {h.his} nose",
    },
    {
        "pet": "young squirrel",
        "trouble": "It had fallen from its tree and shook with cold",
        "care": "kept it warm in a mitten and fed it drops of milk",
        "well": "it climbed up {h.his} sleeve",
        "free": "it ran up its own tree",
        "later": "a nut dropped from the tree, right at {h.his} feet",
    },
)

SKILLS: dict[str, tuple[Row, ...]] = {
    "both": (
        {
            "skill": "whistle",
            "fail": "Only air came out",
            "worse": "It sounded like a leaky kettle",
            "tip": "Make your mouth small, like a berry",
            "win": "A clear, high note flew out",
            "show": "whistled a whole tune",
        },
        {
            "skill": "juggle",
            "fail": "All three balls fell on the floor",
            "worse": "One ball rolled away and hit a bucket",
            "tip": "Start with one ball, then use two",
            "win": "Three balls went around in the air",
            "show": "juggled three balls and did not drop one",
        },
        {
            "skill": "skip stones",
            "fail": "Each stone went plop and sank",
            "worse": "The next stone splashed water all over {h}",
            "tip": "Find a flat stone and throw it low",
            "win": "The stone went skip, skip, skip across the water",
            "show": "made a stone skip seven times",
        },
        {
            "skill": "skate",
            "fail": "{^h.his} feet went two different ways",
            "worse": "{^h.he} sat down hard on the cold ice",
            "tip": "Bend your knees and push gently",
            "win": "{h} slid across the ice without falling",
            "show": "skated all around the pond",
        },
        {
            "skill": "bake bread",
            "fail": "The first loaf was as flat as a plate",
            "worse": "The second loaf was as black as coal",
            "tip": "Let the dough sleep in a warm place before you bake it",
            "win": "The loaf rose, round and golden",
            "show": "gave everyone a warm slice of bread",
        },
        {
            "skill": "play the flute",
            "fail": "It squeaked like a mouse",
            "worse": "It squeaked even louder, and the hens ran away",
            "tip": "Blow softly, as if you were cooling soup",
            "win": "A sweet, round note came out",
            "show": "played a slow song on the flute",
        },
    ),
    "people": (
        {
            "skill": "ride a bike",
            "fail": "The bike fell to the left",
            "worse": "Then the bike fell to the right",
            "tip": "Look far ahead, not at your feet",
            "win": "The wheels went straight, and the wind was in {h.his} hair",
            "show": "rode the bike all the way to the corner",
        },
        {
            "skill": "tie a bow",
            "fail": "The knot fell apart at once",
            "worse": "This time both shoes were tied together",
            "tip": "Make one loop, like a rabbit's ear, and let the other end run around it",
            "win": "The bow was crooked, but it held",
            "show": "tied both shoes without any help",
        },
        {
            "skill": "swim",
            "fail": "{^h.he} kicked and kicked and went nowhere",
            "worse": "{^h.he} swallowed a mouthful of water",
            "tip": "Lie flat like a leaf, and then kick",
            "win": "{h} floated, kicked and moved",
            "show": "swam from one side of the pool to the other",
        },
        {
            "skill": "draw a horse",
            "fail": "It looked like a table with a tail",
            "worse": "The next one looked like a sad potato",
            "tip": "Look at a real horse first, for a long time",
            "win": "There was a horse on the paper, and it almost seemed to run",
            "show": "hung the picture of the horse on the wall",
        },
    ),
    "animals": (),
}

PLANS: tuple[Row, ...] = (
    {
        "plan": "have a picnic",
        "pack": "sandwiches, plums and a blanket",
        "spoil": "rain began to fall, first in drops and then in buckets",
        "instead": "spread the blanket on the floor and ate the sandwiches under the table",
        "joke": "No ants at this picnic",
    },
    {
        "plan": "build a snowman",
        "pack": "a carrot, a hat and two black buttons",
        "spoil": "the sun came out, and all the snow turned to mud",
        "instead": "made a mud man, and gave him the hat and the carrot nose",
        "joke": "He is browner than I thought he would be",
    },
    {
        "plan": "fly a kite",
        "pack": "a kite and a long, long string",
        "spoil": "the wind stopped, and not one leaf moved",
        "instead": "lay on the grass and found horses and ships in the clouds",
        "joke": "The clouds need no string",
    },
    {
        "plan": "look at the stars",
        "pack": "a blanket and a jar of cookies",
        "spoil": "thick clouds covered the whole sky",
        "instead": "cut stars out of paper and hung them over the bed",
        "joke": "We can see these stars on any night we like",
    },
    {
        "plan": "sail toy boats on the pond",
        "pack": "two toy boats and a net",
        "spoil": "a cold wind came, and the pond froze as hard as a plate",
        "instead": "filled a tub with warm water and sailed the boats there",
        "joke": "This sea is warmer",
    },
    {
        "plan": "pick berries",
        "pack": "two baskets and a map of the best bushes",
        "spoil": "fog rolled in, so thick that they could not see their own feet",
        "instead": "stayed by the stove and baked a cake with last year's jam",
        "joke": "These berries were already picked for us",
    },
)

MAKINGS: tuple[Row, ...] = (
    {
        "name": "sandcastle",
        "made": "on the beach",
        "one": "dug a deep ditch",
        "two": "shaped four round towers",
        "three": "put shells along the walls",
        "bad": "A big wave rolled in and washed half of it away",
        "use": "looked fit for a queen",
    },
    {
        "name": "tree house",
        "made": "at the old oak",
        "one": "carried the boards",
        "two": "held the nails",
        "three": "hung up a rope ladder",
        "bad": "The floor tipped, and a board fell down with a crash",
        "use": "had a view of the hills",
    },
    {
        "name": "snow fort",
        "made": "behind the house",
        "one": "rolled the snow",
        "two": "stacked the blocks",
        "three": "cut a little window",
        "bad": "The roof slid off and landed with a soft thump",
        "use": "kept out the wind",
    },
    {
        "name": "raft",
        "made": "by the stream",
        "one": "found the logs",
        "two": "tied the knots",
        "three": "made a sail from a sheet",
        "bad": "One knot slipped, and the raft came apart",
        "use": "floated like a duck",
    },
    {
        "name": "scarecrow",
        "made": "in the corn field",
        "one": "stuffed a shirt with straw",
        "two": "painted a face on a sack",
        "three": "found a hat with a hole in it",
        "bad": "The wind blew its head off, and the crows laughed",
        "use": "made every crow fly away",
    },
    {
        "name": "pot of soup",
        "made": "in the kitchen",
        "one": "washed the carrots",
        "two": "chopped the onions",
        "three": "stirred the pot",
        "bad": "It tasted of nothing but hot water",
        "use": "smelled so good that everyone came",
    },
    {
        "name": "puppet theater",
        "made": "in the barn",
        "one": "cut a window in a big box",
        "two": "sewed a curtain",
        "three": "made puppets out of socks",
        "bad": "The curtain got stuck, and the box fell over",
        "use": "made the whole crowd laugh",
    },
    {
        "name": "go-cart",
        "made": "in the shed",
        "one": "found four old wheels",
        "two": "sawed the boards",
        "three": "painted a number on the side",
        "bad": "On the first hill, a wheel rolled off without them",
        "use": "flew down the hill",
    },
)

SEEDS: tuple[Row, ...] = _table("""
    plant; grows; use
    sunflower; taller than the door; gave its seeds to the birds
    pumpkin; as big as a chair; made a warm pie
    bean plant; as high as the window; picked a bowl of beans
    daisy; white and yellow like the sun; put one flower beside the bed
    tomato plant; heavy with red fruit; ate a tomato in the sun
    strawberry plant; with berries as red as fire; shared the sweet berries
    carrot; long and orange; crunched it from end to end
""")

MISHAPS: tuple[Row, ...] = (
    {
        "name": "vase",
        "looks": "glass",
        "deed": "ran through the room and bumped the table",
        "harm": "The vase fell and broke",
        "hide": "pushed the pieces under the rug",
        "amends": "picked fresh flowers and put them in a jar",
    },
    {
        "name": "cake",
        "looks": "iced",
        "deed": "only wanted to taste the edge",
        "harm": "Bite by bite, half of the cake was gone",
        "hide": "turned the bad side to the wall",
        "amends": "helped to bake a new one and washed every bowl",
    },
    {
        "name": "cup",
        "looks": "paint",
        "deed": "carried too many things at once",
        "harm": "The cup slipped and lost its handle",
        "hide": "put it at the back of the shelf",
        "amends": "glued the handle on and painted a star over the crack",
    },
    {
        "name": "window",
        "looks": "pane",
        "deed": "kicked a ball too close to the house",
        "harm": "There was a crash, and the window had a hole in it",
        "hide": "pulled the curtain across it",
        "amends": "swept up the glass and worked all week to help pay for it",
    },
    {
        "name": "rug",
        "looks": "cloth",
        "deed": "painted a picture on the floor",
        "harm": "The jar of paint tipped over, and the rug had a big blue spot",
        "hide": "put a chair over the spot",
        "amends": "scrubbed the rug until the spot was pale",
    },
)

TREATS: tuple[Row, ...] = _table("""
    treats; one; where; much
    cookies; cookie; on the kitchen table; a plate
    cherries; cherry; under the cherry tree; a basket
    plums; plum; on the back step; a bowl
    berries; berry; on a flat stone; a bucket
    honey cakes; honey cake; on the window sill; a tray
    pancakes; pancake; beside the stove; a tall stack
    nuts; nut; in the corner of the shed; a sack
    apple tarts; apple tart; on the long bench; a row
""")

HIDES: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        hide; near; clue; who
        in the big basket; the laundry room; a sock on the floor; the towels
        under the stairs; the hall; a small sneeze; the old boots
        in the hay loft; the barn; a piece of hay that moved; the swallows
        behind the curtain; the front room; two toes that stuck out; the dusty books
        in the wardrobe; the bedroom; a coat sleeve caught in the door; the winter coats
    """),
    "animals": _table("""
        hide; near; clue; who
        in a hollow log; the ferns; a tail that stuck out; the beetles
        under a heap of leaves; the oak tree; a leaf that moved; the acorns
        behind the waterfall; the stream; a trail of wet footprints; the moss
        in an empty barrel; the mill; a small sneeze; the cobwebs
        inside a thick bush; the path; a whisker in the leaves; the ladybugs
    """),
}

NOISES: tuple[Row, ...] = (
    {
        "sound": "Tap, tap, tap",
        "guess": "a giant knocking",
        "place": "at the window",
        "truth": "a branch in the wind",
        "act": "tied the branch back with string",
    },
    {
        "sound": "Scratch, scratch",
        "guess": "a monster with long nails",
        "place": "behind the door",
        "truth": "a wet kitten that wanted to come in",
        "act": "dried the kitten with a towel",
    },
    {
        "sound": "Drip, drop, drip",
        "guess": "a ghost walking in wet socks",
        "place": "in the hall",
        "truth": "a leak in the roof",
        "act": "put a bucket under the leak",
    },
    {
        "sound": "Whooo, whooo",
        "guess": "a ghost calling",
        "place": "outside the window",
        "truth": "a baby owl that had lost its way",
        "act": "held up a light until its mother came",
    },
    {
        "sound": "Rattle, bump, rattle",
        "guess": "a robber with a sack",
        "place": "in the kitchen",
        "truth": "a hungry hedgehog with its head in a tin",
        "act": "pulled the tin off gently",
    },
    {
        "sound": "Creak, creak, creak",
        "guess": "a troll in heavy boots",
        "place": "near the stairs",
        "truth": "an old door with a loose hinge",
        "act": "put a drop of oil on the hinge",
    },
)

PROMISES: tuple[Row, ...] = (
    {
        "promise": "water the garden",
        "why": "The days are hot, and the plants are thirsty",
        "tempt": "the others were off to the lake to swim",
        "did": "filled the can and watered every row",
        "harm": "The beans hung down, dry and brown",
        "mend": "carried water until dark",
        "end": "some of the beans lifted their leaves again, but not all of them",
        "good": "Soon there were beans on every stem",
    },
    {
        "promise": "close the gate",
        "why": "If it stays open, the goats will get out",
        "tempt": "a parade with drums was coming down the road",
        "did": "pulled the gate shut and tied it",
        "harm": "All the goats were gone, and so was the hay",
        "mend": "walked the fields and called each goat by name",
        "end": "every goat came home but one, and that one came home on Sunday, thin and cross",
        "good": "Not one goat got out",
    },
    {
        "promise": "feed the fish",
        "why": "They are small, and they get hungry every day",
        "tempt": "there was a new game to play",
        "did": "gave the fish a pinch of food",
        "harm": "The fish hid at the bottom and would not come up",
        "mend": "cleaned the bowl and sat beside it all evening",
        "end": "at last one fish came up to eat, and then another",
        "good": "The fish came up and made little rings in the water",
    },
    {
        "promise": "bring in the washing",
        "why": "I can smell rain in the wind",
        "tempt": "there were frogs to watch in the ditch",
        "did": "pulled down every shirt and sock",
        "harm": "The shirts lay in the mud, wet and gray",
        "mend": "washed them all again by hand",
        "end": "the shirts were clean by night, but {h.his} {hand}s were red and sore",
        "good": "When the rain came, every sock was dry",
    },
    {
        "promise": "watch the soup",
        "why": "It burns if nobody stirs it",
        "tempt": "somebody was flying a kite as big as a door",
        "did": "stayed by the pot and stirred",
        "harm": "The soup was black, and the kitchen was full of smoke",
        "mend": "scrubbed the pot until it shone",
        "end": "supper was bread and cheese, and it was a quiet meal",
        "good": "That soup was the best in weeks",
    },
)

WAYS: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        place; look; lure; sign
        at the fair; rows and rows of tents; a man with a dancing bear puppet; the tall wheel
        in the market; legs and baskets everywhere; a cage of singing birds; the stone clock
        in the woods; trees and more trees; a deer with white spots; the crooked pine
        on the beach; a hundred striped towels; a crab walking sideways; the blue flag
        in the big shop; shelves as high as a house; a train going around a track; the front desk
    """),
    "animals": _table("""
        place; look; lure; sign
        in the woods; trees and more trees; a glowing beetle; the crooked pine
        in the tall corn; green stems on every side; a dancing butterfly; the old scarecrow
        on the moor; gray stones and gray fog; a feather on the wind; the tall rock
    """),
}

FINDS: tuple[Row, ...] = _table("""
    name; looks; clue
    purse; cloth; a name was sewn inside it
    watch; metal; someone was walking slowly along the path and looking at the ground
    glove; cloth; someone nearby had one warm {hand} and one cold one
    umbrella; paint; a name was written on the handle
    key; metal; someone was sitting on a step in front of a locked door
    book; paper; a name was written on the first page
    bracelet; metal; someone was turning over leaves and sighing
""")

RACES: dict[str, tuple[Row, ...]] = {
    "people": _table("""
        race; prize; the; finish
        running race; a blue ribbon; the ribbon; the red rope
        sack race; a basket of apples; the basket; the white line
        long race; a silver cup; the cup; the school gate
        hill race; a golden star; the star; the wooden bridge
    """),
    "animals": _table("""
        race; prize; the; finish
        running race; a jar of honey; the jar; the old oak
        long race; a crown of daisies; the crown; the flat rock
        hill race; a basket of berries; the basket; the crooked fence
    """),
}


COMFORTS: tuple[Row, ...] = _table("""
    ill; now; gift; after
    had a bad cold; has a bad cold; a pot of hot soup; the soup was gone to the last drop
    had a fever; has a fever; a jug of cool juice; the juice was all gone
    had a bad cough; has a bad cough; a cup of hot lemon tea; the tea was all gone
    had a sore throat; has a sore throat; a spoon and a jar of honey; half of the honey was gone
    was covered in spots; is covered in spots; a book of riddles; they had solved every riddle
""")


# Sentences that any plot may borrow.

RULES: dict[str, tuple[str, ...]] = {
    "intro": (
        "Once upon a time, there was a {_.trait} {_.kind} named {_}.",
        "Once upon a time, a {_.kind} named {_} lived {home}.",
        "Once there was a {_.trait} {_.kind} called {_}.",
        "There was once a {_.kind} named {_}, who lived {home}.",
        "{_} was a {_.trait} {_.kind} who lived {home}.",
        "{_} was a {_.kind} who liked {_.likes}.",
        "A {_.trait} {_.kind} named {_} lived {home}.",
        "Not so long ago, a {_.trait} {_.kind} named {_} lived {home}.",
        "This is a story about {_}, a {_.trait} {_.kind} who liked {_.likes}.",
        "Far away, {home}, there lived a {_.kind} named {_}.",
        "{^home}, there lived a {_.trait} {_.kind} called {_}, who liked {_.likes}.",
    ),
    "friend": (
        "{h.his} friend {f.new}",
        "{h.his} good friend {f.new}",
        "{h.his} best friend, {f.new},",
        "{h.his} neighbor {f.new}",
    ),
    "day": (
        "one morning",
        "one afternoon",
        "one day",
        "one Saturday",
        "one fine day",
        "early one morning",
        "on the first day of spring",
        "one Sunday after breakfast",
        "late one afternoon",
        "on a quiet Monday",
        "one day in May",
        "one bright morning",
    ),
    "aside": (
        "A bee buzzed past.",
        "Somewhere a crow called.",
        "The grass smelled sweet.",
        "A snail was crossing the path, in no hurry at all.",
        "The air smelled of rain and leaves.",
        "High above, a cloud went by, shaped like a [shoe|whale|teapot|sheep].",
        "Two sparrows were having an argument in a bush.",
        "[Far off|Down the road], a bell rang.",
        "The wind made the leaves whisper.",
        "A frog said something and jumped away.",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
    ),
    "sad": (
        "{_} felt a lump in {_.his} throat.",
        "Tears ran down {_.his} cheeks.",
        "{_} sat down and [sighed|sniffed|put {_.his} chin in {_.his} {hand}s].",
        "{^_.he} tried not to cry, but one tear got out.",
        "{_} did not know what to do.",
        "{_} hung {_.his} head.",
        "{_} felt very small.",
    ),
    "glad": (
        "{_} laughed out loud.",
        "{_} jumped up and down.",
        "{_} smiled from ear to ear.",
        "{_} clapped and did a little dance.",
        "{_} felt warm all over.",
        "{_} was so happy that {_.he} forgot to say anything.",
        "{_} grinned and grinned.",
    ),
    "think": (
        "{_} thought [hard|for a while|about it].",
        "{_} scratched {_.his} head and thought.",
        "{_} closed {_.his} eyes and thought.",
        "{_} was quiet for a moment.",
        "{_} looked up at the clouds, as {_.he} always did when thinking.",
    ),
    "sorry": (
        "I am sorry",
        "I am really sorry",
        "I am so sorry",
        "Please forgive me",
        "That was wrong of me",
    ),
    "thanks": ("Thank you", "Oh, thank you", "Thank you so much", "You are a real friend"),
    "evening": (
        "that evening",
        "that night",
        "when the sun went down",
        "at bedtime",
        "before supper",
        "when the first star came out",
    ),
    "walk": (
        "they walked home [{hand} in {hand}|side by side|singing|together]",
        "they raced each other home",
        "they went home the long way, talking all the time",
        "they shared [a pear|an apple|a bun] on the way home",
    ),
}
