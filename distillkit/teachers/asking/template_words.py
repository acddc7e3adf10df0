"""Default words for the slots of a prompt template: verbs, nouns and adjectives that a small child knows."""

from __future__ import annotations

_WORDS = {
    "verb": """
        ask bake bark bite blow bounce break bring brush build call carry catch chase clap climb close cook
        count cry cut dance dig draw dream drink drive drop eat fall feed feel fight find fix float fly fold
        follow forget give grow guess hang help hide hit hold hop hug hum hunt hurry jump keep kick kiss knock
        laugh leave lend lick lift listen look lose march melt mix move nap open paint pat pick play point
        pour promise pull push race reach read rest ride ring roar roll rub run sail save see sell share shine
        shout show sing sip sit sleep slide smell smile sneeze splash stand stay sweep swim swing take taste
        teach tell thank think throw tickle touch trade trip try turn visit wait wake walk wash watch wave
        whisper win wish wonder work wrap write yawn yell
    """,
    "noun": """
        acorn airplane ant apple apron baby bag ball balloon banana basket bath beach bear bed bee bell bench
        berry bicycle bird blanket boat book boot bottle box branch bread bridge broom brush bubble bucket bug
        bus butter button cake camel candle cap car carrot castle cat cave chair cheese cherry chicken circle
        clock cloud coat cookie corn cow crayon cup dog doll donkey door dragon drawer dress drum duck egg
        elephant farm feather fence fire fish flag flower fog forest fox friend frog garden gate gift glove
        goat grandma grape grass hammer hat hedgehog hen hill hole honey horse house ice jar jelly kettle key
        king kite kitten ladder lake lamp leaf lemon letter lion map mask milk mirror mitten monkey moon mouse
        mud nest nurse nut ocean onion orange owl pancake path pear pencil penguin pie pig pillow plum pond
        pony pot puddle puppet puppy queen rabbit rain rainbow ring river robot rock rope sailor salt sand
        scarf school seed shadow sheep shell ship shoe shovel sky sled snail snow sock soup spider spoon
        squirrel star stick stone storm stove string sun swan table teacher tent tiger toad toy train tree
        truck tunnel turtle umbrella vase violin wagon wall whale wheel whistle wind window witch wolf worm
        yard zebra
    """,
    "adjective": """
        afraid amazing ancient angry asleep bad beautiful big bitter black blue bold brave bright brown bumpy
        busy calm careful cheerful clean clever cloudy clumsy cold colourful cool cosy crazy curious cute
        dangerous dark deep different dirty dizzy dry dull eager early easy empty enormous excited fair famous
        fancy fast fat fierce fluffy foolish free fresh friendly full funny furry fuzzy generous gentle giant
        glad golden good graceful grateful great green grumpy happy hard healthy heavy helpful high honest hot
        huge hungry icy jolly kind large late lazy light little lively lonely long loud lovely lucky mad messy
        modest muddy mysterious naughty neat new nice noisy old orange patient perfect pink playful polite
        poor pretty proud purple quick quiet rare red rich rough round rude sad safe salty scared sharp shiny
        short shy sick silent silly simple sleepy slippery slow small smart smooth soft sour special spicy
        spotted sticky strange strong stubborn sunny sweet tall tasty thin thirsty tidy tiny tired tough ugly
        warm weak wet white wide wild wise wooden worried yellow young
    """,
}
WORDS = {slot: words.split() for slot, words in _WORDS.items()}
