"""Small stories from a seed: a corpus for a reader with no key and no download.

`story(seed, index)` always gives the same text, on any machine, with nothing but the standard
library. A story is told in three steps: a plot is drawn, the plot casts who and what it needs
into named slots, and the plot's template is written out with those slots.

What it knows: who wants what, who has it, where it is, what it looks like and who helps; slots
hold all of that, so a later sentence refers back to what an earlier one said.
What it does not know: anything else. It has no idea of physics or of time; a plot makes sense
because its author chose its rows (`tales_words`) and its sentences so that all of them fit.

A template is text with these marks:

    {h}  {h.his}  {x.the}     the value of a slot; {^h.he} starts it with a capital
    [one|two|]                one of these, or here nothing; may be nested, may hold paragraphs
    {f.new}                   "Pip the mouse" the first time, "Pip" from then on
    <intro:h>  <^day>         one of RULES, told of the role after the colon
    (blank line)              a new paragraph; other line breaks and double spaces do not count

Always write "a": "a apple" becomes "an apple" at the end.

To add a plot, write a function below with `@plot`: fill slots with `cast`, `elder`, `thing`,
`row` or `bind`, and return a template. By custom `h` is the hero, `f` the friend, `k` a third
child, `g` a grown-up of the hero's, `n` someone else who is grown up, and `x` what is wanted. A
plot with an `x` promises that hero and `x` are both named again in the last third.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

from distillkit.data.tales import words as words
from distillkit.data.tales.words import Row

T = TypeVar("T")


@dataclass(frozen=True)
class Tale:
    """A story and what it is about; `wanted` is empty where no one thing is wanted."""

    text: str
    plot: str
    hero: str
    wanted: str


def story(seed: int, index: int) -> str:
    """The text of story `index` of the endless book `seed`."""
    return tale(seed, index).text


def tale(seed: int, index: int) -> Tale:
    """The same story, with what a test or a judge may want to know of it."""
    digest = hashlib.sha256(f"distillkit tale {seed} {index}".encode()).digest()
    teller = Teller(random.Random(int.from_bytes(digest[:8], "big")))
    name = teller.pick(_NAMES)
    text = _finish(teller.write(PLOTS[name](teller)))
    return Tale(text, name, teller.slots["h"], teller.slots.get("x", ""))


# The machinery.


class Slot(NamedTuple):
    """Where a settled word goes."""

    name: str
    capital: bool


class Choice(NamedTuple):
    """Where one of several templates goes."""

    options: tuple["Template", ...]


Template = tuple["str | Slot | Choice", ...]

_MARK = re.compile(r"(\{\^?[\w.]+\}|<\^?\w+(?::\w)?>|[\[\]|])")
_LOOSE = re.compile(r"\s+(?=[.,!?])")
_VOWEL = re.compile(r"\b([Aa]) (?!one\b|us|uni)(?=[aeiou])")


@cache
def _parse(text: str) -> Template:
    """Template text, ready to be written many times."""
    # Each open bracket is a list of options, each option a list of parts; the text is one too.
    open_choices: list[list[list[str | Slot | Choice]]] = [[[]]]
    for part in _MARK.split(text):
        here = open_choices[-1]
        if part == "[":
            open_choices.append([[]])
        elif part == "|":
            here.append([])
        elif part == "]":
            open_choices.pop()
            open_choices[-1][-1].append(Choice(tuple(tuple(option) for option in here)))
        elif part.startswith("{"):
            here[-1].append(Slot(part.strip("{^}"), part.startswith("{^")))
        elif part.startswith("<"):
            rule, _, role = part.strip("<^>").partition(":")
            told = (_told_of(role, sentence) for sentence in words.RULES[rule])
            here[-1].append(Choice(tuple(_parse(_capital(s) if "^" in part else s) for s in told)))
        elif part:
            here[-1].append(part)
    [[whole]] = open_choices
    return tuple(whole)


def _capital(text: str) -> str:
    return text.replace("{", "{^", 1) if text.startswith("{") else text[:1].upper() + text[1:]


def _told_of(role: str, sentence: str) -> str:
    return sentence.replace("{_", "{" + role).replace("{^_", "{^" + role)


def _finish(text: str) -> str:
    """Single spaces, paragraphs apart, and "an" where it belongs."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return _VOWEL.sub(r"\1n ", _LOOSE.sub("", "\n\n".join(filter(None, paragraphs))))


class Teller:
    """Draws at random, and remembers in `slots` all that has been settled."""

    def __init__(self, rng: random.Random) -> None:
        self._draw = rng.random  # the one method whose numbers Python promises to keep
        self.slots: dict[str, str] = {}
        self.world = ""

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self._draw() * len(options))]

    def write(self, text: str) -> str:
        """The template with every slot filled and every choice made."""
        out: list[str] = []
        self._write(_parse(text), out)
        return "".join(out)

    def _write(self, template: Template, out: list[str]) -> None:
        for part in template:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, Slot):
                value = self.slots[part.name]
                out.append(_capital(value) if part.capital else value)
                if part.name.endswith(".new"):
                    self.slots[part.name] = self.slots[part.name.removesuffix(".new")]
            else:
                self._write(self.pick(part.options), out)

    # What plots call.

    def bind(self, slot: str, text: str) -> None:
        """Settle a slot; the text may be a template over the slots settled before it."""
        self.slots[slot] = self.write(text)

    def row(self, role: str, rows: Sequence[Row]) -> None:
        """Draw a row of a table; its cells become {role.column}."""
        for column, cell in self.pick(rows).items():
            self.bind(f"{role}.{column}", cell)

    def cast(self, *roles: str, world: str = "") -> None:
        """Children of one world, people or animals, with names that start differently."""
        self.world = world or self.pick(("people", "people", "animals"))
        self.bind("home", self.pick(words.HOMES[self.world]))
        self.bind("hand", {"people": "hand", "animals": "paw"}[self.world])
        taken: set[str] = set()
        for role in roles:
            he = self.pick(("he", "she"))
            name = self.pick([n for n in words.NAMES[self.world, he] if n[0] not in taken])
            kind = {"he": "boy", "she": "girl"}[he]
            if self.world == "animals":
                kind = self.pick([a for a in words.ANIMALS if a not in taken])
            taken |= {name[0], kind} if self.world == "animals" else {name[0]}
            self._person(role, name, he)
            self.slots |= {
                f"{role}.kind": kind,
                f"{role}.new": f"{name} the {kind}" if self.world == "animals" else name,
                f"{role}.trait": self.pick(words.TRAITS),
                f"{role}.likes": self.pick(words.LIKES),
            }

    def elder(self, role: str, of: str = "h") -> None:
        """A grown-up of someone's family: {g} is "her mom", {g.call} "Mom"."""
        who = self.pick(words.GROWNUPS[self.world])
        self._person(role, f"{self.slots[of + '.his']} {who['word']}", who["he"])
        self.slots |= {f"{role}.word": who["word"], f"{role}.call": who["call"]}

    def helper(self, role: str) -> None:
        """A grown-up of nobody's: {n} is "the baker"."""
        who = self.pick(words.HELPERS[self.world])
        self._person(role, who["word"], who["he"])

    def _person(self, role: str, name: str, he: str) -> None:
        self.slots[role] = name
        for case, word in words.PRONOUNS[he].items():
            self.slots[f"{role}.{case}"] = word

    def thing(self, role: str, kind: str) -> None:
        """Some thing of a kind, unlike the things settled before it."""
        known = self.slots.values()
        self.draw(role, [r for r in _OF_KIND[kind] if r["name"] not in known])

    def draw(self, role: str, rows: Sequence[Row]) -> None:
        """A row whose `looks` become an adjective: {x}, {x.full}, {x.a} and {x.the}."""
        self.row(role, rows)
        name = self.slots[f"{role}.name"]
        full = f"{self.pick(words.LOOKS[self.slots[f'{role}.looks']])} {name}"
        self.slots |= {role: name, f"{role}.full": full}
        self.slots |= {f"{role}.a": f"a {full}", f"{role}.the": f"the {full}"}

    def place(self) -> None:
        """Where it happens, {p.in}, with three different spots there: {s1} to {s3}."""
        self.row("p", words.PLACES[self.world])
        spots = self.slots["p.spots"].split("/")
        for slot in ("s1", "s2", "s3"):
            self.slots[slot] = spots.pop(int(self._draw() * len(spots)))


_OF_KIND = {
    kind: [row for row in words.THINGS if kind in row["kinds"].split()]
    for kind in ("pocket", "toy", "swap", "gift", "craft")
}

Plot = Callable[[Teller], str]
PLOTS: dict[str, Plot] = {}


def plot(tell: Plot) -> Plot:
    """Put a plot among those that a story is drawn from."""
    PLOTS[tell.__name__] = tell
    return tell


# The plots.

_PETS = {
    "people": "[small brown dog|curious goat|fat white goose]",
    "animals": "[black magpie|speckled hen|young crow]",
}


@plot
def lost(t: Teller) -> str:
    """A small thing is lost; thinking, an animal or a friend finds it, or nobody does."""
    t.cast("h", "f")
    t.elder("g")
    t.thing("x", "pocket")
    t.place()
    t.bind("pet", _PETS[t.world])
    return """
    <intro:h> [{^h.his} favorite thing in the whole world was {x.a}.
    |{h} had {x.a} and took it everywhere.
    |{^g} had given {h.him} {x.a}, and {h.he} loved it more than anything.
    |{h} owned only one treasure, {x.a}.]

    <^day>, {h} and <friend> played {p.in} [for hours|for a long time|until they were hungry|and
    lost all count of time]. <aside> [When it was time to go home|On the way back|A little later],
    {h} [stopped|stood still]. {^x.the} was [gone|not there anymore|missing]!

    "[Oh no, my {x}|My {x}|Wait, my {x}]!" cried {h}. "[I must have dropped it|I had it a minute
    ago|It was here this morning]." [<sad:h>|]

    [They looked {s1}, but [there was only a beetle|found nothing but an old nail].
    They looked {s2}, and it was not there either.
    |First they looked {s1}. Nothing. Then they looked {s2}. Nothing there but [a worm|a snail].
    |{f} looked {s1}, and {h} looked {s2}, but [they found nothing|it was no use].]
    [
        "Where did you sit down to rest?" asked {f}. <think:h> "[I sat down|I stopped to look at a
        snail|We ate our plums] {s3}," {h.he} said.

        They [ran|hurried] back together. And there, {s3}, lay {x.the}. [<glad:h>|]
        "[<thanks>|You are good at thinking]," said {h}, [and held the {x} tight all the way home
        |and this time {h.he} held the {x} in both {hand}s].
    |
        Just then a {pet} came by. It looked at {h}, turned
        around and stopped {s3}. [There it made a great noise.|There it would not move.|]
        ["What has it found?" asked {f}.|] {h} ran to look. It was {x.the}!

        [<glad:h> {^h.he}|{h}] gave the {pet} [a crust of bread|half an apple|the last cookie].
        [From then on, the {x} had a string on it, so that it could not get lost
        |"The {x} is mine again, and you are my hero," {h.he} said].
    |
        Then it grew dark, and {h} had to go home without it. {^h.he} [hardly slept|ate no supper].
        But {f} had not given up. [Early the next day|Before breakfast], {f} went back alone,
        and {s3}, wet with dew, was {x.the}.

        There was a knock at the door. "[Close your eyes and hold out your {hand}|Guess what I
        have]," said {f}. When {h} saw the {x}, {h.he} hugged {f} [so hard that they both fell
        over|and would not let go|for a long time].
    |
        They looked until the sun went down, but they did not find {x.the}.

        <^evening>, {g} sat down beside {h}. "[Perhaps|Maybe] someone will find it and love it
        as you did," {g.he} said. {h} thought of [another child|somebody] with the {x}, smiling.
        It still hurt, but [a little less|not quite so much].
    |
        At last {h} told {g}. [{^g.he} did not scold.|] "Turn out your pockets," {g.he} said.
        [Out fell a nut, a string and half a cookie|Out came three stones and a sticky plum].
        There was a hole in the corner, and deep in the lining sat {x.the}!

        {h} laughed, and {f} laughed too. [<^evening>, {g} sewed up the hole, and the {x} slept
        under {h}'s pillow|{^g} sewed up the hole, and {h} never lost the {x} again].
    ]
    """


@plot
def up_high(t: Teller) -> str:
    """A thing lands too high; jumping does not help, an idea or a bird or a friend may."""
    t.cast("h", "f")
    t.draw("x", words.FLYERS)
    t.bind("tree", "[apple|oak|pine|pear|chestnut] tree")
    if t.world == "people":
        t.helper("n")
        t.bind(
            "way",
            """"Hold on," said {n}, and came back with a ladder. Up {n.he} went, slow and
        steady, and down came {x.the}.""",
        )
    else:
        t.bind(
            "way",
            """A [bird|crow|dove] in the next tree had seen it all. It flew up, took hold
        of {x.the} with its beak, and let it fall at their feet.""",
        )
    t.bind("x.up", "{x.up}, and up it went, [up and up|higher and higher|as light as a leaf]")
    return """
    [<intro:h> <^day>, {h.he} went out with {x.a}.
    |<^day>, {h} took {x.a} outside. It was [brand new|a birthday present|{h.his} very own].
    |{h} had waited all week to take {h.his} {x.full} outside. <^day>, {h.he} did.]
    <aside> {x.up}. In the top of a tall {tree}, it [got caught|stuck fast].

    "[Come down|Please come down]!" {h} called, but {x.the} [did not move|only shook a little].
    [{h} jumped as high as {h.he} could. [{^h.he} was much too small.|It was not nearly enough.|]|]
    [{^h.he} threw a stick, and now there was a stick in the tree too. |{^h.he} shook the trunk, but
    only [leaves|a surprised beetle] came down. |The trunk was too smooth to climb.] [<sad:h>|]

    [Then {f.new} came along. "What are you looking at?" {f.he} asked.
    |{^f.new} heard the noise and came to see. "What is wrong?" asked {f}.
    |<^friend> stopped at the fence. "Why are you looking up?" {f.he} asked.]
    "[My {x} is up there|The tree has my {x}]," said {h}, "and I [cannot reach it|want it back]."
    [
        "You are small, and I am small," said {f}, "but together we are [tall|big]." So {h} climbed
        onto {f}'s shoulders. {^h.he} stretched [one arm|both {hand}s], touched {x.the}, and pulled.
        Down it came, and down came {h} and {f} [too, into the soft grass|in a heap, laughing].

        [After that they stayed in the open field, and the {x} stayed out of the trees.
        |"Next time, we play in the open field," said {h}, and dusted off the {x}.]
    |
        {f} could not reach it either. [But {f.he} had an idea.|"Let us ask someone," {f.he} said.]
        They [called for help|asked for help as politely as they could]. {way}

        "Thank you!" said {h} and {f} together. [<glad:h>|] For the rest of the day, {h} held on to
        the {x} with both {hand}s.
    |
        They waited. {f} told [a funny story|three jokes|a long story about a whale], and {h} almost
        forgot to be sad. Then the wind came back. It shook the {tree}, and {x.the} came
        down all by itself, [right at their feet|as if it had only been resting].

        "The tree took it, and the wind gave it back," said {f}. {h} [hugged the {x} and bowed
        to the wind|laughed and picked up the {x} before it could change its mind].
    |
        They tried everything, but it was too high. "I think it lives there now," {f} said softly.
        {h} [cried a little|swallowed hard].

        From {h.his} window, {h} could see {x.the} among the leaves. [Each night {h.he} waved
        and said, "Sleep well, {x}." |When winter came and the leaves fell, the {x} was still there,
        like the last fruit of the year. |In spring a storm brought down what was left of the {x},
        and {h} kept a piece of it in a box.]
    ]
    """


@plot
def too_heavy(t: Teller) -> str:
    """A load is too big for one; pride, friends or a trick decide how it ends."""
    t.cast("h", "f", "k")
    t.row("x", words.LOADS)
    t.bind("x", "{x.name}")
    t.bind(
        "trick",
        """"Do not lift it," said {k}. "[Slide it|Put it on something that slides]."
        They tipped the {x} onto an old sled and pulled it""",
    )
    if t.slots["x.round"] == "yes":
        t.bind(
            "trick",
            """"Do not lift it," said {k}. "It is round. [Roll it|Let it roll]."
        They put their {hand}s on it and rolled it""",
        )
    return """
    [<intro:h> <^day>, {h.he} found a huge {x} {x.where}.
    |<^day>, {h} stood {x.where} and looked at the [biggest|heaviest] {x} {h.he} had ever seen.
    |There was a very big {x} {x.where}, and {h} wanted to move it.]
    {^h.he} wanted to bring it {x.goal}, to {x.use}.

    [{h} pulled. {h} pushed. {h} [turned red in the face|got very hot].
    |{^h.he} bent down, took a deep breath and lifted. {^h.his} ears turned hot.
    |{^h.he} put {h.his} back against it and pushed with both feet.]
    The {x} [did not move at all|stayed where it was|moved as much as a mountain does].

    <^friend> [came by|was watching]. "[Do you need help|Shall I help you|May I help]?"
    {f.he} asked.
    [
        "[No|No, thank you]," said {h}. "I am strong enough." {^h.he} pulled until {h.his} {hand}s
        [hurt|were sore]. At last {h.he} sat down beside the {x}. "I am [not as strong as I
        thought|only strong enough to ask]," {h.he} said. "Will you help me [now|after all]?"

        {f} [did not laugh|only smiled]. {^f.he} called {k.new}, and all three of them took hold.
        ["One, two, three!"|] The {x} [rocked, slid and moved|groaned and came along].
        [Step by step|Bit by bit], they brought it {x.goal}.

        {h} [shook {hand}s with both of them|bowed to both of them]. "Now we can {x.use}," {h.he}
        said, and patted the {x}. [It belonged to all three of them.|It had never looked so good.|]
    |
        "Yes, please," said {h}. Now two of them pushed, but two were not enough. So {f} fetched
        {k.new}. {k} walked around the {x} and looked at it from every side.

        {trick} all the way {x.goal}. [It was [almost easy|as easy as pie].|]
        "[You used your head|Clever {k}]!" said {f}. {h} laughed. "The {x} beat my arms," {h.he}
        said, "but it could not beat [your idea|the three of us]."
    |
        "It is mine. I will do it alone," said {h}. {f} shrugged and went away. {h} [fetched a
        long pole|took a long stick], put it under the {x} and pushed down. [Crack!|Snap!] The pole
        broke, and {h} sat in the mud.

        It was a long [walk|way] to {f}'s door. "I was rude," {h} said. "I am sorry."
        "Yes, you were," said {f}. "Let us go." They took {k.new} along. The three of them
        worked until the sun was low, and the {x} came {x.goal} at last.
        [{h} had mud on {h.his} nose and two friends beside {h.him}.
        |"The {x} is ours now, not mine," {h} told {f} and {k}.]
    |
        "Thank you, yes," said {h}. They [pushed together|both pushed hard], and {k.new} came to
        push too. The {x} moved, and then it moved too fast. It slid away down the bank and
        [landed in the pond with a splash|sank into the deep mud of the ditch].

        [Nobody|No one] spoke. Then {k} began to giggle, and {f} did too. {h} [wanted to be angry,
        but could not|was sad, and laughed all the same]. "Good-bye, {x}," {h.he} said.
        "We were strong, [but we forgot to think|and that was the trouble]."
    ]
    """


@plot
def quarrel(t: Teller) -> str:
    """Two want one thing."""
    t.cast("h", "f", "k")
    t.elder("g")
    t.thing("x", "toy")
    t.place()
    return """
    [{h} and {f.new} were [good|old|the best of] friends, but <day> they both wanted {x.a}.
    |<intro:h> <^day>, {h.he} and <friend> found {x.a} {s1}.
    |It began with {x.a}. {h} held one side of it, and {f.new} held the other.]
    [There was only one.|Neither of them would let go.|Neither of them wanted to wait.||]

    "I saw it first," said {h}. "[But I picked it up|But I asked first]," said {f}.
    "[Let go|Give it to me]!" [They pulled this way and that way.|{h} pulled, and {f} pulled too.|]
    [
        Then their {hand}s slipped, and {x.the} [flew through the air and landed in the mud
        |rolled into a puddle|fell into the nettles]. [They both stared at it. <aside>|]

        "[Now look|Now nobody can play with it]," said {f} in a small voice. "I am [really|so|]
        sorry," said {h}. "So am I," said {f}. They [washed {x.the} at the pump|cleaned {x.the} with
        wet leaves] together. Then {f} held the {x} out to {h}. "You first," said {f}. "No, you,"
        said {h}, and they [both began to laugh|had to laugh].
    |
        "Then keep your silly {x}!" shouted {f}, and {f.he} ran home.

        Now {h} had {x.the} all to {h.self}. {^h.he} played with it for a while. [It was not much
        fun.|It was strange how dull it was.|] The yard was too quiet. [<think:h>|<sad:h>]
        After a while {h.he} walked to {f}'s house and knocked.

        "<sorry>," said {h}. "The {x} is no fun without you." {f} looked at {h.his} muddy
        feet and then at the {x}. "[I can show you a game for two|Come in]," {f.he} said.
    |
        {^g} heard them. {^g.he} took {x.the} and [put it on a high shelf|held it behind {g.his}
        back]. "It may come down," {g.he} said, "when you have a plan."

        They sat on the steps and did not talk. {h} [counted the ants|drew in the dust]. At last
        {h} said, "You could have it until [lunch|noon]." "And you could have it after that," said
        {f}. "[And on Sunday we play together|And we shake {hand}s on it]."

        "That is a good plan," said {g}, and down came the {x}. {h} let {f} go first, and
        [waiting was not so hard|was surprised at how short a morning can be].
    |
        While they shouted, little {k.new} [walked up|came by]. {^k.he} picked up {x.the},
        sat down {s2} and began to play. {^k.he} was as happy as a king.

        {h} looked at {f}, and {f} looked at {h}. "[We forgot to play|How silly we were]," {f} said.
        They sat down beside {k}. "May we play too?" asked {h}. "Yes," said {k}. "There is
        room for three." And so there was: [one had the {x}, one made up the rules, and {h} kept
        the score|they passed the {x} around and around, and {h} never once held on too long].
    |
        There was a bad sound, and {x.the} was broken. {f} began to cry, and {h} said things that
        {h.he} did not mean. They [went home by different roads|did not speak for three days].

        On [the fourth day|Thursday], {h} came with a pot of glue, and at the corner {h.he} met
        {f}, who had brought [a hammer|some string]. They worked on it side by side. The {x} was
        never quite the same. There was a mark where it had broken, and when {h} [saw|touched] that
        mark, {h.he} remembered to [ask|say please|be kind].
    ]
    """


@plot
def fear(t: Teller) -> str:
    """Someone is afraid, and takes one small step; some need another day."""
    t.cast("h", "f")
    t.row("e", (*words.FEARS["both"], *words.FEARS[t.world]))
    return """
    [{h} was not afraid of [spiders|snakes|bulls] or of [falling|geese]. But {h.he} was afraid of
    {e.fear}.
    |<intro:h> There was only one thing {h.he} could not stand, and that was {e.fear}.
    |Everyone is afraid of something. {h}, a {h.trait} {h.kind}, was afraid of {e.fear}.
    |{h} had a secret. {^h.he} was afraid of {e.fear}.]
    {e.scene}. [{^h.his} [heart beat fast|knees shook|mouth went dry|{hand}s turned cold].|]

    [<^day>, {h.his} friend {f.new} found out.|<^day>, {h} told {f.new} about it.
    |{^f.new}, who lived nearby, saw how it was.]
    [{h} waited for {f} to laugh, but {f} [did not|only nodded].|]
    "[I am afraid of geese|I used to be afraid of that too|I am scared of the cellar|My grandfather
    is afraid of mice]," said {f}. "[Do you want to try something|Shall we try it together]?"

    [
    "[What if I cannot do it|What if something happens]?" {h} whispered.
    "Then we go home and eat [toast|jam|soup|apples]," said {f}. "{e.advice}."
    |"What must I do?" asked {h}. "{e.advice}," said {f}.]
    [
        [<think:h>|{h} [held {f}'s {hand}|shut {h.his} eyes, and opened them again].]
        {e.step}. ["[Good|I am right here|Go on]," said {f}.|] {h} tried again, and {e.then}.

        "[I did it|I really did it]!" {h} shouted. [{^h.he} [jumped up and down|laughed out
        loud|could hardly believe it].|] In the end, {h} {e.last}. [And when {f} met a [goose|bee]
        on the way home, {h} went first.
        |{^h.he} was still a little afraid of {e.fear}, but now {h.he} knew what to do.
        |"Being brave is [being scared and doing it anyway|mostly the first step]," {h} told {f}.||]
    |
        {h} tried, but {h.his} [legs|feet] would not move. "[Not today|I cannot]," {h.he} said, and
        a tear ran down {h.his} nose. "That is all right," said {f}.

        The next day {h} came back. {e.step}. There {h.he} stopped, and {f} said that one
        step was plenty. On the third day, {h} did it again, and {e.then}.
        [{f} cheered so loudly that a crow flew up.|{f} threw {f.his} hat in the air.|]
        By the end of the week, {h} {e.last}.
    |
        {h} swallowed hard. {e.step}. Then [there was a loud noise|a door slammed somewhere], and
        {h} ran and ran and did not stop until {h.he} was home. "I am [no good at this|a coward],"
        {h.he} said.

        "You took a step," said {f}. "Yesterday you took none." {h} thought about
        that. {^h.he} was still afraid of {e.fear}, [and perhaps {h.he} always would be a
        little|and that was the truth]. But [tomorrow there would be another step
        |now somebody knew, and that made it easier to carry].
    ]
    """


@plot
def trade(t: Teller) -> str:
    """Things change {hand}s; the teller keeps count of who has what."""
    t.cast("h", "f", "k")
    t.elder("g")
    for thing in ("x", "y", "z"):
        t.thing(thing, "swap")
    return """
    [
        [<intro:h> {^h.he} had {y.a}, but what {h.he} really wanted was {x.a}.
        |{h} had {y.a}. It was nice, but {h.he} wanted {x.a} much more.]
        <^day>, {h.he} saw that {f.new} had just such a {x}.

        "Will you trade your {x} for my {y}?" asked {h}. {f} [thought about it|shook {f.his} head].
        "I do not need a {y}," {f.he} said. "I [want|am looking for|would love] {z.a}."
        "[Wait here|I will be back]," said {h}, and {h.he} went to find {k.new}.

        {k} had {z.a}, and {k.he} was tired of it. "[A {y}|Is that a {y}]? I have always wanted
        one," {k.he} said. So {h} gave {k} {y.the} and got {z.the}. Then {h} ran all the way back to
        {f} and gave {f.him} {z.the}.

        [Now {k} had the {y}, {f} had the {z}, and {h} had {x.the} at last.
        |"Here is your {x}," said {f}. Now {f} had the {z}, {k} had the {y}, and {h} had the {x}.]
        [All three went home happy.|Nobody had lost a thing, and everyone was happier.
        |It was the best deal of the year.||]
    |
        {^g} had given {h} {x.a}, and {h.he} had kept it for so long that it was [scratched|worn|not
        new anymore]. Then {h} saw that {f.new} had {y.a}. It [shone|was bright and new].
        "[Trade|Shall we trade]?" asked {h}. "Yes!" said {f}, and it was done.

        [At first, {h} was proud of {y.the}.|{h} showed {y.the} to everyone.|] But at bedtime {h.he}
        [could not sleep|lay awake]. The {y} was [pretty|fine], but it did not remind {h.him} of
        anything. {h} missed {h.his} old {x}.
        [
            In the morning, {h.he} went to {f}'s house. "Could we trade back?" {h} asked. "I
            know that a deal is a deal." {f} [smiled|looked at {h}'s red eyes]. "[It likes you
            better anyway|The {x} did seem lonely]," {f.he} said, and gave it back.
            {h} carried the {x} home [under {h.his} coat|like an egg], and {f} got [a bag of
            walnuts|three plum cakes] for being kind.
        |
            In the morning, {h.he} went to {f}'s house. "I am sorry," said {f}. "I traded the {x}
            to {k.new} for {z.a}." So {h} went to {k}. But {k} loved {x.the} already and
            would not part with it.

            {h} walked home slowly with the {y}. "You made a trade," said {g}, "and now you know
            what the {x} was worth." {^g.he} put an arm around {h.him}. It was a hard thing to
            learn.
        ]
    |
        {h} collected things, and {f.new} did too. {h} had {y.a} and {z.a}. {f} had only {x.a},
        but it was the finest {x} that {h} had ever seen. "I will give you {y.the} for it,"
        said {h}. "No," said {f}. "[It was a gift|My uncle gave it to me], and I cannot trade it."

        "Then I will give you {y.the} and {z.the}!" said {h}. {f} looked at both of them for a long
        time. "No," {f.he} said at last. {h} [stamped one foot|frowned and kicked a stone]. <aside>

        [Then {h} thought of the one thing that {h.he} would never trade, an old blanket with a
        hole in it. "I see," {h.he} said.
        |<think:h> {^h.he} would not have traded a gift either.]
        "May I just hold it?" {h} asked. "Of course," said {f}, and put the {x} into {h}'s {hand}s.
        [They took turns with all three things until dark|All afternoon, they shared what they
        had], and that was [better than a trade|worth more than any trade].
    ]
    """


@plot
def mended(t: Teller) -> str:
    """Something loved is broken: mended, or made into something else."""
    t.cast("h", "f")
    t.elder("g")
    t.draw("x", words.MENDS)
    return """
    [<intro:h> {^h.he} had {x.a}, and the two of them were never apart.
    |{h} had many toys, but {h.he} loved {h.his} {x.full} the most.
    |For {h.his} birthday, {h} got {x.a} from {g}.]

    [
    <^day>, [{h} was carrying it and tripped over a root|{h} played with it a bit too wildly|{h} was
    running with it and fell]. {x.hurt}. [<sad:h>|"Oh, my poor {x}!" cried {h}.]
    [
        "[Throw it away|It is finished]," said somebody. "Never," said {h}. {^h.he} carried {x.the}
        to {g}, [who could fix almost anything|who was good with {g.his} {hand}s].

        "Hm," said {g}, and turned it over. "We need {x.tool}." {h} [searched every drawer|looked
        high and low], and {h.he} came back with {x.tool}. "[I will show you|You do it]," {g.he}
        said. "[I will only watch|I will hold it still]." So {h} {x.fix}.
        [It took a long time.|{^h.he} stuck out {h.his} tongue, as {h.he} did when working hard.|]

        The {x} was not like new. It was better, [because {h} had mended it|for now it had a story].
        "[Look|See]!" said {h}. "It works!" [And {g} was as proud as could be.|<glad:h>]
    |
        {f.new} saw {h}'s face. "[Let me see|Give it to me]," said {f}. "My sister breaks
        things all the time. I know what to do." {^f.he} ran home and came back with {x.tool}.

        While {h} held the {x} still, {f} {x.fix}. [They did not say a word.|They hardly breathed.|]
        "[There|Done]," said {f}. {h} looked at it from all sides. [It was as good as before!|It
        held!] "<thanks>," said {h}. "Now it is a little bit your {x} too." [So they played with it
        together until supper.|And {f} was welcome to play with it whenever {f.he} liked.]
    |
        {h} took {x.the} to {g}, but {g} shook {g.his} head. "[I am sorry, little one|Some things
        cannot be mended]," {g.he} said. {h} went out and sat under a tree. <aside>

        {^h.his} friend {f.new} sat down too. After a while {f.he} said, "We could make something
        else out of it." They took {x.tool}, a box and some paint. By evening, the {x} had become
        {x.next}. {h} [looked at it for a long time|put it on the shelf by the bed]. It was not
        {h.his} {x} anymore, but {h.he} [liked it|said good night to it all the same].
    ] |
        <^day>, {h} left it on the path, and {f.new} stepped on it. {x.hurt}. {f} went very
        red. "It was an accident," {f.he} said. {h} was too angry to answer. {^h.he} took {x.the}
        and ran inside.

        <^evening>, there was a knock. Outside stood {f} with {x.tool}. "I cannot
        undo it," said {f}, "but I can help." {h} let {f.him} in. {f} {x.fix}, and {h} held the
        lamp. When it was done, {h} [was not angry anymore|could not find the anger anywhere].
        "You may hold the {x} first," said {h}.
    ]
    """


@plot
def gift(t: Teller) -> str:
    """A present for somebody who longs for something."""
    t.cast("h", "f")
    t.helper("n")
    t.elder("g")
    made = t.pick((True, False, False, False))
    t.thing("x", "craft" if made else "gift")
    t.bind("job", "[carried wood|swept the floor|fetched water|pulled weeds|washed pots]")
    opening = """
    [It was almost the birthday of {f.new}, and {h} knew what {f} wanted.
    |<intro:h> {^h.his} best friend was {f.new}, who had a birthday soon. {h} knew what {f} wanted.
    |"What does {f.new} want most of all?" thought {h}. Then {h.he} knew.]
    [Each time they passed the shop, {f} stopped to look at {x.a}.
    |{f} had [once|often] told {h.him}: {x.a}, and nothing else.
    |At night, {f} even dreamed of {x.a}.]
    """
    if made:
        return (
            opening
            + """

        {h} wanted to make one. "Help me," {h.he} begged {g}, and {g} did. They worked in secret
        [behind the shed|by candle light|in the attic]. {f} noticed that {h} was always busy and
        never came out to play, and {f.he} [felt sad|began to worry]. "[Are you angry with me|Do you
        not like me anymore]?" {f.he} asked. {h} only shook {h.his} head and ran off.

        On the birthday, {h} put a parcel on the table. In it was {x.a}, a bit crooked. "So that is
        why!" cried {f}, [laughing and crying at once|and all the sadness was gone]. No one
        in the world had a {x} like it, and {f} had a friend like {h}.
        """
        )
    return (
        opening
        + """

    [
        {h} had no money. So {h.he} went to {n} and asked for work. For [five|six|seven] days, {h}
        {job} and did not complain. "[You have earned this|Well done]," said {n}, and gave {h.him}
        [a handful of|some bright] coins. {h} [ran|skipped] to the shop and bought {x.the}.

        {^h.he} [hid it under {h.his} bed|wrapped it in paper and string] and told no one.
        On the birthday, {f} opened the parcel, and {f.his} mouth fell open. "[How did you
        know|Is it really for me]?" {f.he} asked. {h} looked at the {x} in {f}'s {hand}s and
        [forgot how sore {h.his} own {hand}s were|felt as if {h.he} had got a present too].
    |
        {h} saved every coin in a jar. But when {h.he} came to the shop, the window was empty.
        "I sold {x.the} this morning," said the shopkeeper. {h} [walked home in the rain|sat on
        the step and cried].

        "You still have paper and paint," said {g}. So {h} made a picture of {x.the}, as big as
        life, with {f} holding it. It took [all night|two whole days]. On {f.his} birthday, {f}
        unrolled the picture and was quiet. "[Anybody can buy a {x}|A {x} can get lost]," {f} said
        at last. "But [nobody ever painted me one|you made this]." And {f} hung {h}'s picture of the
        {x} where {f.he} could see it from bed.
    |
        {h} had just such a {x} at home, and {h.he} loved it. [<think:h>|All day, {h.he} thought
        about it.] Could {h.he} give it away? At last {h.he} cleaned it, tied a bow around it and
        went to {f}'s house [before {h.he} could change {h.his} mind|very slowly].

        {f} opened the parcel and gasped. "But this is yours!" said {f}. "Not anymore," said {h},
        and {h.his} voice shook only a little. [{f} thought for a moment. "Then
        come every day, and we will share the {x}," {f.he} said.
        |"Then you must visit the {x} as often as you like," said {f}.
        |"I will take good care of the {x}," said {f}, "and you can see it whenever you want."]
        {h} [nodded|smiled], and it was a very
        good birthday.
    ]
    """
    )


@plot
def promise(t: Teller) -> str:
    """A promise kept, or broken and paid for."""
    t.cast("h", "f")
    t.elder("g")
    t.row("v", words.PROMISES)
    return """
    [<intro:h> <^day>, {g} asked {h.him} for a promise.
    |"Will you promise me something?" {g} asked {h} <day>.
    |A promise is a small thing to say and a big thing to keep. {h} learned that <day>.]
    "[Please {v.promise}|You must {v.promise}]," said {g}. "{v.why}."
    "[I promise|Yes, I promise|You can count on me]," said {h}.

    [At first {h} did not forget.|{h} meant every word.|{h} said it over and over, so as not to
    forget.||] But then <friend> came [running|along]. "[Come quickly|Come with me|Hurry up]!" said
    {f}, for {v.tempt}. [<think:h>|{h} wanted so much to go.]
    [
        "[I cannot|Not yet]," {h} said. "I made a promise." "[It will not take long|Nobody will
        know]," said {f}. "I will know," said {h}. {^h.he} {v.did}.

        [{f} shook {f.his} head, but then {f.he} came along to help|{f} went off alone, and {h} felt
        lonely for a while]. {v.good}. {^g} saw it and [said nothing, but gave {h} a long hug.|said,
        "You are somebody I can trust."] [The fun was over by then, but {h} was not sorry.|And {h}
        stood as straight as a tree.
        |It is odd how good it feels to keep one's word, thought {h}.||]
    |
        [Just this once, {h.he} thought, and went.|{^h.he} forgot everything and ran.] [It was a
        lovely time, [and the hours flew|and {h} laughed until {h.his} sides hurt].|] Only later did
        {h.he} remember. [{^h.his} stomach [turned cold|felt like a stone].|]

        It was too late. {v.harm}. "<sorry>," {h} said to {g}. "I promised to {v.promise}, and I
        broke my word." {^g} was [sad|not angry, only sad], and that was worse. {h} {v.mend}, and
        {v.end}. [A promise to {v.promise} is easy to say, and {h} never said one lightly again.
        |After that, when {h} promised something, {h.he} tied a string around {h.his} {hand}.]
    |
        {^h.he} went along, but {h.he} could not enjoy it. "[What is wrong?|You are so quiet,]" said
        {f}. "I promised to {v.promise}," said {h}. {f} put {f.his} {hand}s on {f.his} hips. "Then
        why are we standing here? [Run|Come on]!"

        They ran as fast as they could. [They were out of breath, but not too late.|] {h} {v.did},
        and {f} [helped|stayed to the end]. {v.good}. "I almost broke my word," said {h}. "[Almost
        does not count|But you did not]," said {f}.
    ]
    """


@plot
def rescue(t: Teller) -> str:
    """A small animal needs help, and then it needs to be let go."""
    t.cast("h", "f", world="people")
    t.elder("g")
    t.row("x", words.RESCUES)
    t.bind("x", "{x.pet}")
    t.bind("q", "[Pepper|Button|Acorn|Peanut|Pebble]")
    return """
    [<intro:h> <^day>, {h.he} heard a tiny sound beside the path.
    |<^day>, {h} and <friend> were [on the way to school|walking home] when {h} stopped.
    |It had rained all night. In the morning, {h} went out to look at the puddles.]
    There, in the [wet|tall] grass, was a [small|little|tiny] {x}. {x.trouble}.

    [{h} knelt down. "Do not be afraid," {h.he} whispered.
    |"Poor little thing," said {h}. {^h.he} held very still, so as not to scare it.|]
    [{^g} showed {h.him} what to do.|{h} ran to get {g}.|"We must be gentle," said {g}.]
    Together they {x.care}.
    [
        [For a whole day, nothing changed.|At first it only looked at them with dark eyes.|]
        {h} [sat beside it and sang|told it a story] and named it {q}. Then, [the next morning|all
        at once], {x.well}. <glad:h>

        "Can I keep the {x}?" asked {h}. {^g} [was quiet|sighed]. "What do you think {q} wants?"
        {g.he} asked. {h} looked [out at the sky and the trees|at {q}, and {q} looked at the trees].
        Then {h.he} [nodded slowly|wiped {h.his} eyes]. They said good-bye to the {x}, and {x.free}.

        [{h} waved until there was nothing to see. {^h.he} was sad and happy, both at once.
        |Some days later, {x.later}. "Hello, {q}," said {h}. Nobody could be sure that it was the
        same {x}, but {h} was.]
    |
        {^h.his} friend {f.new} wanted to [pick it up|play with it]. "No," said {h}. "It needs
        [quiet|to rest]." So they sat nearby, [as still as two stones|and only whispered].
        <aside> After a long wait, {x.well}.

        ["[It is better|You did it]!" said {f}.|] They stepped back, and {x.free}. {f} was sorry to
        see the {x} go, but {h} [smiled and waved|said that it had a home of its own].
        [A week after that, {x.later}.|Every day, {h} looked for the {x}, and once {x.later}.]
    |
        All day {h} stayed near. But the {x} was very weak. {^h.his} friend {f.new} came with [a
        warm cloth|flowers], and they watched together. In the night, it [went to sleep and did not
        wake up|grew very still].

        {h} cried, and {g} held {h.him}. "You were kind to it," said {g}, "and it was not alone."
        In the morning, {h} and {f} dug a small hole under the [rose bush|apple tree]. They put a
        white stone there for the {x}, and {h} sang it [one more|a last] song.
    ]
    """


@plot
def skill(t: Teller) -> str:
    """Learning by trying."""
    t.cast("h", "f")
    t.elder("g")
    t.row("v", (*words.SKILLS["both"], *words.SKILLS[t.world]))
    return """
    [<intro:h> More than anything, {h} wanted to {v.skill}.
    |"I want to {v.skill}," said {h} <day>.
    |{^f.new} could {v.skill}, and {h} could not. That was [hard|not easy] to bear.
    |Everybody in the family could {v.skill}. Everybody but {h}.]

    [So {h} tried.|{h} got up early to try.|{h} went off to try, where nobody could see.]
    {v.fail}. {^h.he} tried again. {v.worse}.
    [{h} stamped {h.his} foot.|"I will never learn it," said {h}.|<sad:h>]
    [
        {^g} had seen it all from the door. "[I fell down a hundred times before I learned
        things|Do you know how many times I tried]?" {g.he} said. "Listen. {v.tip}."

        {h} tried it that way. It still went wrong, but [a little less wrong|not so badly].
        [Every day after breakfast, {h.he} went out and tried.|{^h.he} tried on Monday, on
        Tuesday and on Wednesday.|] Then, [one morning|on Friday], it happened. {v.win}!

        "{g.call}! [Come and look|Look at me]!" {h} called. And while {g} [clapped|watched], {h}
        {v.show}.
    |
        "May I tell you something?" asked {h.his} friend {f.new}, who had come up quietly. "It
        helped me. {v.tip}." {h} [did not want help|made a face], but then {h.he} tried it. {v.win}!
        {h} was so surprised that {h.he} forgot to breathe.

        "Again!" said {f}. [And again, and again.|They went on until their shadows were long.|]
        The next week, {h} {v.show}. Afterward a small child came up and asked how it was done.
        {h} [bent down|smiled]. "{v.tip}," {h.he} said. "[My friend {f} taught me|That is what {f}
        told me]."
    |
        "I can do it already," {h} told {f.new}, which was not true. "[Show me|Really]?" said {f}.
        "Tomorrow, then, in front of everybody." Now {h} was [in trouble|stuck]. That night {h.he}
        did not sleep much.

        In the morning, they all stood around and waited. {v.fail}. Somebody laughed. "I
        cannot {v.skill}," {h} said, and {h.his} face was hot. "I only wish I could." {f} took
        {h.him} aside. "You could have just asked," {f.he} said. "{v.tip}." It took
        [two weeks|a month]. But in the end {h} {v.show}, and this time it was true.
    ]
    """


@plot
def weather(t: Teller) -> str:
    """A plan meets the sky."""
    t.cast("h", "f", "k")
    t.elder("g")
    t.row("v", words.PLANS)
    return """
    [All week, {h} and <friend> had looked forward to one thing.
    |"Today is the day!" said {h}, and jumped out of bed.
    |<intro:h> {^h.he} and <friend> had made a plan.]
    They were going to {v.plan}. [They had packed|Everything was ready:|On the table lay]
    {v.pack}. Even little {k.new} was allowed to come.

    [But as they [opened the door|reached the gate], {v.spoil}.
    |They had hardly gone ten steps when {v.spoil}.
    |Then {k} pointed at the window. Outside, {v.spoil}.]
    "[It is not fair|This is the worst day ever|Not today]!" said {h}.
    [{f} kicked the wall.|{f} said nothing at all.|{k} began to cry.||]
    [
        {h} wanted to [go back to bed|be angry for the rest of the day]. But when {h.he} saw
        {k}'s face, {h.he} had an idea. "[Who says we cannot have fun|Wait]," said {h}. "We will
        do it [another way|here]!" So they {v.instead}.

        "{v.joke}," said {f}, and even {k} had to laugh. [<^evening>, {g} asked if they were sad
        that they could not {v.plan}. "What plan?" said {h}.
        |It was not the day that {h} had wanted. It was a different day, and a good one.]
    |
        "[Let us wait|It will pass]," said {f}. They waited until noon, but it did not get
        better. "We can sit here and be cross," said {g}, "or we can [think|look around us]."
        <think:k> It was {k}, the smallest, who found the answer. And so they {v.instead}.

        "{v.joke}," said {k}. {h} [laughed so much that {h.he} got the hiccups|gave {k} the biggest
        cookie]. "Tomorrow we can {v.plan}," {h.he} said, "but [today was yours|I hope not too
        soon]."
    |
        {h} put on {h.his} boots. "I am going anyway," {h.he} said. {f} shook {f.his} head, and {k}
        stayed behind with {f.him}. So {h} went out alone. It was [cold|gray], it was lonely, and
        there was nothing to do. Soon {h.he} [turned back|came home with wet socks].

        In the meantime, the others {v.instead}. "[Come in|We kept a place for you]," said
        {f}, and {k} moved over. "{v.joke}," {k} told {h.him}. {h} [sneezed and then smiled|put
        {h.his} feet near the stove]. "I should have stayed," {h.he} said.
    ]
    """


@plot
def making(t: Teller) -> str:
    """Three make something; it goes wrong once."""
    t.cast("h", "f", "k")
    t.row("x", words.MAKINGS)
    t.bind("x", "{x.name}")
    return """
    [<intro:h> <^day>, {h.he} had a grand idea. "Let us make a {x}," {h.he} said to {f.new} and
    {k.new}.
    |"I am going to make a {x}," said {h} <day>. "[Alone|All by yourself]?" asked {f.new}. "Not
    without us," said {k.new}.
    |<^day>, {h}, {f.new} and {k.new} met {x.made}. They wanted to make a {x}.]
    [Nobody knew quite how, but that did not stop them.|They had never made one before.|]

    [Everyone had a job.|{k} made a list of what to do.|They shared the work.||]
    {h} {x.one}, {f} {x.two}, and {k} {x.three}.
    [By noon it almost looked like a {x}.|It was hard work, but they sang while they did it.|]

    [Then it happened.|But they were too quick.|Then things went wrong.] {x.bad}.
    [
        "This is your fault, {f}," said {h}. "No, it is [yours|{k}'s]," said {f}. [Soon they were
        all shouting.|Nobody wanted to work anymore.|] {k} [sat down and began to cry|put both
        {hand}s over {k.his} ears].

        Then {h} [took a deep breath|was ashamed]. "It is nobody's fault," {h.he} said. "<sorry>.
        Let us look at what went wrong." They talked about it, [one at a time|in quiet voices],
        and began again. The second {x} {x.use}. [And everyone agreed that it was {k}'s part that
        they liked best, even {h}.|{h} gave {f} and {k} a hug, and they all stood back to look.]
    |
        For a moment nobody spoke. Then {k} [laughed|giggled]. ["That was [loud|funny]," {k.he}
        said.|] {f} laughed too, and {h} [could not stay sad|had to join in]. "Again?" asked {h}.
        "Again," said the others.

        This time {f} {x.one}, {k} {x.two}, and {h} {x.three}. [They went slowly.|They helped each
        other more.|] When the {x} was finished, it {x.use}. "[It took all of us|Two tries, three
        friends, one {x}]," said {h}.
    |
        {h} looked at the mess. "It was a bad idea," {h.he} said, and went home. {f} and {k} stayed.
        [They did not want to give up.|] [They tried this and that|They worked on without {h.him}]
        until the sun went down.

        In the morning, {h} could not believe {h.his} eyes. There {x.made} was a real {x}, and it
        {x.use}. "[You did it without me|I gave up too soon]," {h.he} said. "[You had the
        idea|You did the first half]," said {f}. "[Come on|Try it]," said {k}. {h} was glad, and a
        bit ashamed, and next time {h.he} stayed.
    ]
    """


@plot
def seed(t: Teller) -> str:
    """Waiting for something to grow."""
    t.cast("h", "f")
    t.elder("g")
    t.row("x", words.SEEDS)
    t.bind("x", "{x.plant}")
    return """
    [<intro:h> In spring, {g} gave {h.him} a seed. "This will be a {x}," {g.he} said.
    |<^day>, {h} found a seed in {h.his} pocket. "Plant it," said {g}, "and you will have a {x}."
    |{h} wanted a {x}. {^g} put one small seed into {h.his} {hand}. "Here it is," {g.he} said.]
    ["[It is so small|That is not a {x}]," said {h}. "[Wait and see|It needs time]," said {g}.|]

    {h} [dug a hole|made a hole with a stick] [beside the fence|by the wall|near the back
    door], put the seed in and gave it [water|a drink]. [Then {h.he} sat down to watch.
    [Nothing happened.|An ant walked by. That was all.|]|]
    [The next day, there was nothing to see, and [the day after that|on the third day] there was
    nothing either.|A week went by, and still nothing was there.]
    [
        "[It is broken|It forgot to grow]," said {h}. "Let us dig it up and look," said {h.his}
        friend {f.new}. {h} took the spade, [but then {h.he} put it down again|and stopped]. "No,"
        said {h}. "I think it is [shy|busy]. I will wait."

        {^h.he} waited [in sun and rain|for two weeks]. One morning, there was a green [dot|tip] in
        the brown earth. [It grew and grew.|] By the end of summer it was a real {x}, {x.grows}. {h}
        called {f} and {g}, and together they looked at it [for a long time|from every side]. That
        fall, {h} {x.use}. "[It was worth the wait|Good things are slow]," {h.he} said to the {x}.
    |
        {h} could not wait. Every morning, {h.he} dug up the seed to see if it was awake, and every
        morning {h.he} put it back. [One day there was a thin white root on it, and the root broke.
        That was the end of the seed.|It grew soft and gray, and then it was dead.]

        "I only wanted to help," said {h}. [<sad:h>|] {^g} [did not laugh|nodded]. "Helping can
        mean leaving alone," {g.he} said, and gave {h.him} another seed. This time, {h} put a little
        fence around the spot [to keep {h.self} out|and only looked]. Late in the summer there was a
        {x}, {x.grows}, and {h} knew [how it had been done|why].
    |
        {f.new} had planted a seed as well, and {f.his} seed came up first. {h} was jealous.
        At night, {h.he} thought of [pulling it out|stepping on it]. In the morning, {h.he} went to
        look at it. It was so [small and green|brave and thin] that {h} [fetched it some water
        instead|could not do it].

        That same week, {h}'s own seed came up. Now there was one {x} for each of them. {f} [looked
        after both when {h} was ill|never knew what {h} had thought]. When the plants were grown,
        {h} {x.use}, and so did {f}. "[Yours is taller|Mine was first]," said {f}. "[They are both
        good,|But who is counting?]" said {h}, and smiled at {h.his} {x}.
    ]
    """


@plot
def honesty(t: Teller) -> str:
    """Something is spoiled, and somebody knows who did it."""
    t.cast("h", "f")
    t.elder("g")
    t.draw("x", words.MISHAPS)
    return """
    [<intro:h> {^g} had {x.a} and was very proud of it.
    |"Be careful with {x.the}," said {g}, and went out. {h}, {h.trait} as ever, nodded.
    |{^g}'s house had many nice things in it, and the nicest was {x.the}.]
    <^day>, {h} {x.deed}. {x.harm}. [It was very quiet in the house.|{h} stood there and could not
    breathe.|"Oh no," {h} whispered.||]

    [Nobody had seen it.|] {h} {x.hide} [and went out to play|and tried to look busy].
    [But [playing was no fun|{h.his} face was hot|{h.he} could think of nothing else].|]
    [
        When {g} came home, {g.he} found it at once. "Who did this?" {g.he} asked. {^h.his} friend
        {f.new} was standing nearby. "Was it you, {f}?" {f} [turned pale|shook {f.his} head]. "No,"
        {f.he} said.

        {h} could have kept still. [It would have been easy.|{^h.he} looked at {h.his} feet.] "It
        was me," {h.he} said. "I hid it too. I am sorry about the {x}." {^g} was not pleased, but
        [{g.his} eyes were kind|{g.he} did not shout]. "That took courage," said {g}. {h}
        {x.amends}, and {f} [helped, though nobody had asked|stayed to help].
    |
        At supper, {h} ate nothing. ["Are you ill?" asked {g}. "[No|A little]," said {h}.|] Then it
        all came out, with a lot of tears: the {x}, the hiding and the fear.

        {^g} was quiet for a while. "I [was fond of|will miss] that {x}," {g.he} said, "but I am
        [glad that you told me|proud that you came to me]." The next
        day, {h} {x.amends}. The {x} was not what it had been, but [the stone in {h.his} stomach
        was gone|{h.he} could look at {g} again].
    |
        When {g} asked about {x.the}, {h} said, "I think it was {f}." It was out before
        {h.he} knew it. So {h.his} friend {f.new} was [sent home|scolded], and {f} did not
        understand why. {^f.he} looked at {h}, and {h} looked at the floor.

        That night was the longest night of {h}'s life. In the morning, {h.he} told {g} the truth,
        and then {h.he} went to tell {f}. "[You were my friend|I would never do that to you]," said
        {f}. {h} {x.amends}, and {g} forgave {h.him}. {f} [took longer|needed more time].
        It was [a week|ten days] before {f.he} came to play again, and {h} never forgot the {x}.
    ]
    """


@plot
def greedy(t: Teller) -> str:
    """Too much of a good thing."""
    t.cast("h", "f", "k")
    t.elder("g")
    t.row("x", words.TREATS)
    t.bind("x", "{x.treats}")
    return """
    [<intro:h> {^h.he} loved {x} more than anything.
    |<^day>, {h} smelled something sweet. {^h.he} followed {h.his} nose.
    |If you had asked {h} what {h.he} liked best, {h.he} would have said, "{^x}!"]
    {^x.where}, {h} [found|saw] {x.much} of {x}. "[They are for everyone|Share them with the
    others]," said {g}, and went [out to the garden|to fetch some water].

    [Just one, thought {h}.|"I will only try one," said {h} to {h.self}.] The first {x.one} was so
    good that {h.he} took a second one, and a third.
    [
        [Soon {h.he} stopped counting.|{^h.he} ate and ate.|] When {h.his} friends {f.new} and
        {k.new} came, there was [nothing left but crumbs|only one left]. "Where are the {x}?" asked
        {k}. {h} could not answer. {^h.his} belly was [as tight as a drum|round and sore], and
        {h.he} [groaned|had to lie down].

        {f} could have been angry, and {f.he} was, a little. But {f.he} brought {h} a cup of warm
        tea. "<sorry>," said {h}. "I ate yours too." The next day, {h} had some {x} again, and this
        time {h.he} gave {f} and {k} [theirs first|the biggest ones].
    |
        Then {h.he} [saw {h.his} friend {k.new} at the window|heard {h.his} friend {k.new} laughing
        outside]. {k} had shared {k.his} last apple with {h} only yesterday. The {x.one} in {h}'s
        {hand} did not taste so sweet now. [<think:h>|]

        "{k}! {f}! Come in!" {h} called. {k} came, and {f.new} came too. They sat in a row and
        ate the {x} slowly, [one for you, one for me and one for you|until the last one was gone].
        "[They taste better with you|It is strange, I had less, and I liked it more]," said {h}.
    |
        {^h.he} wanted to keep them all. {^h.he} carried the {x} off and hid them in a hole under
        the shed. "[Have you seen the {x}|Were there no {x} today]?" asked {f.new} and {k.new}.
        "No," said {h}, and {h.his} ears turned red.

        In the night, it rained, and the hole filled with mud. In the morning, {h} [pulled them
        out|reached in and felt cold mud]. The {x} were wet and gray, and full of ants. [Now no one
        could have them.|] {h} [told the others the truth|went to {f} and {k} and told them]. [It
        was not a nice talk.|] "We would have given you some of ours," said {f}. "I know," said {h}.
    ]
    """


@plot
def newcomer(t: Teller) -> str:
    """Somebody new has something, and nobody to share it with."""
    t.cast("h", "f", "k")
    t.thing("x", "toy")
    t.place()
    return """
    [A new family had come, and with them came {h.new}, who knew no one.
    |{h} was new here. {^h.he} was a {h.trait} {h.kind}, and {h.he} had not one friend yet.
    |When {h} moved, {h.he} had to leave all of {h.his} friends behind.]
    {^h.he} had {x.a}, and that was all {h.he} had to play with.
    <^day>, {h} was {p.in} and saw {f.new} and {k.new} [playing tag|building a dam|laughing
    about something]. <aside>

    {h} wanted to [join them|say hello], but {h.his} [tongue would not move|feet stood still]. So
    {h.he} sat down {s1} with the {x} and [waited|pretended to be busy].
    [
        "Who is that?" whispered {k}. "[I do not know|Somebody new]," said {f}. "{^h.he} looks
        [lonely|sad]." {f} walked over. "[That is a fine {x}|What a nice {x}]," said {f}.
        [{h} turned red.|] "[Do you want to try it?|You can hold it,]" {h} said, very softly.

        {f} tried it, and {k} tried it too. [They showed {h} their secret place {s2}|They told
        {h} about the best place to hide, {s2}]. By the time the sun set, nobody
        could have said who was new. "Bring the {x} again tomorrow," called {k}. "And [bring
        yourself|come early], {h}!" called {f}.
    |
        Then something rolled up to {h.his} feet. It was a wooden hoop, and {k} came running after
        it. "Will you throw it back?" asked {k}. {h} threw it, far too hard, and it flew over {k}'s
        head and hit {f} on the hat. [Oh no, thought {h}.|{h} wanted to hide.|]

        But {f} laughed. "[What an arm|You are on my team]!" said {f}. So {h} put down {x.the} and
        ran to join in. [They played until they were hungry.|] Only at home did {h} notice that the
        {x} was still {s1}. [But there was {f} at the door, out of breath, with the {x} in {f.his}
        {hand}s|{h} did not mind; {h.he} was going back there tomorrow anyway].
    |
        {f} saw {h.him}, but {f} [turned away|made a joke about it]. "We have enough friends,"
        {f.he} said. {h} heard it. {^h.he} took {x.the} and went home with burning eyes.

        {k} did not sleep well. The next day {k.he} went to {h}'s door, [all alone|with a warm
        bun]. "I should have said something," said {k}. "<sorry>. Would you show me the {x}?"
        {h} [thought about shutting the door|looked at {k} for a while]. Then {h.he} opened the
        door wide. It was only one friend, but one [is not none|is a good start].
    ]
    """


@plot
def hide_and_seek(t: Teller) -> str:
    """Somebody hides too well."""
    t.cast("h", "f", "k")
    t.row("v", words.HIDES[t.world])
    return """
    [<^day>, {h}, {f.new} and {k.new} played hide-and-seek.
    |"Let us play hide-and-seek," said {f.new}, and {h} and {k.new} said yes at once.
    |<intro:h> {^h.his} favorite game was hide-and-seek, and <day> {h.he} played it with {f.new}
    and {k.new}.]
    {f} [closed {f.his} eyes and counted|leaned on the wall and counted] to [twenty|fifty].
    [{h} wanted to win for once.|{h} wanted the best hiding place in the world.|]
    {h} [tiptoed|ran] past {v.near} and hid {v.hide}.

    [It was dark in there, and a bit cold.|It was just big enough.|{h} made {h.self} as
    small as {h.he} could.||] [{^h.he} shared the place with {v.who}.|] ["[Ready or not, here I
    come|I am coming]!" called {f}.|]
    [
        {f} soon found {k}, [who could not stop laughing|who was too big for {k.his} hiding
        place]. But nobody found {h}. [It was warm and quiet, and {h.his} eyes grew heavy|{h}
        yawned once, and then again]. Soon {h.he} was fast asleep.

        When {h} woke up, it was dark, and many voices were calling {h.his} name. "[I am here|Here I
        am]!" {h} cried and crawled out. {f} [hugged {h.him}|was crying]. "We thought you
        were lost!" said {f}. "[You won|You win]," said {k}, "but [please never win like that
        again|next time, snore louder]."
    |
        {f} looked high and low. Then {f.he} noticed something: {v.clue}. {f} [said nothing|winked
        at {k}, who was found already]. "I wonder where {h} is," {f} said loudly. "We will have to
        eat all the cookies without {h.him}."

        "No, you will not!" said a voice, and out jumped {h}. [They all laughed, {h} the loudest.|]
        "Found you {v.hide}," said {f}. "[That was not fair|My own belly gave me away]," said {h},
        [but {h.he} took a cookie|and went to count for the next round].
    |
        {h} waited. {^h.he} heard steps, and then {h.he} heard no steps. [{^h.he} waited a very long
        time.|] At last {h.he} came out from {h.his} place near {v.near}. There was nobody. The
        others had [been called in to lunch and forgotten {h.him}|gone to see a new puppy].

        [<sad:h>|] When {f} and {k} came back, {h} was sitting with {h.his} back to them. "[We
        forgot|We should have told you]," said {k}. "<sorry>." {h} did not answer. So {f} and {k}
        [made {h.him} leader of the game|let {h.him} choose], and {h} chose to be the one who
        counts. {^h.he} looked for them [right away|at once], and {h.he} did not forget anyone.
    ]
    """


@plot
def race(t: Teller) -> str:
    """Winning is not the only way to finish."""
    t.cast("h", "f", "k")
    t.elder("g")
    t.row("v", words.RACES[t.world])
    return """
    [<^day>, there was a {v.race}, and the prize was {v.prize}.
    |<intro:h> {^h.he} wanted to win the {v.race}, because the prize was {v.prize}.
    |Everybody was talking about the {v.race}. The winner would get {v.prize}.]
    ["I am going to win," said {f.new}. "[I always win|Nobody is as fast as I am]."
    |{f.new} had won it last year, and {f.he} did not let anyone forget it.]
    {h} [said nothing|only smiled]. [{^h.he} had practiced every day.|] {^k.new}, who was small, was
    in the race too.

    "Ready? Go!" [They were off.|Dust flew up behind them.|] {f} was first and {h} was second.
    <aside>
    [
        Halfway along, {h} heard a cry. {k} had fallen, and {k.his} knee was bleeding. {h} looked
        ahead to {v.finish}. [{^h.he} could still win.|] {h} looked back at {k}. [It took only a
        moment.|{^h.he} did not think for long.] Then {h.he} turned around.

        {f} won {v.prize}, and [everybody clapped|the crowd cheered]. But when {h} came in last,
        with {k} [on {h.his} back|leaning on {h.his} arm], they clapped [even louder|much longer].
        {f} looked at {v.the} and then at {h}. "[You should have half|I did not even see {k}
        fall]," said {f}. That was the race that people remembered, [and {h} had lost it|and it was
        {h}'s].
    |
        {f} was so far ahead that {f.he} stopped to [rest|rest in the shade|lie down for a nap].
        {h} did not stop. Step by step, {h.he} went on, past {f} and on to {v.finish}. When {f}
        jumped up, it was too late.

        "But I am faster!" cried {f}. "[Yes, you are|That is true]," said {h}, "[but you have to be
        faster until the end|and you stopped]." {k} came in second, and no one was more
        surprised than {k}. {h} shared {v.the} with {k}, and after the race {f} came to
        [shake {hand}s|say well done]. It was not easy for {f.him}.
    |
        Near {v.finish}, {h} saw a short way through the bushes. Nobody was looking. {^h.he} slipped
        through, came out in front of {f}, and won. They gave {h.him} {v.prize}. Everyone
        cheered, and little {k} [looked up at {h.him} with big eyes|wanted to shake {h.his} {hand}].

        The cheering hurt. [<sad:h>|] At last {h.he} stood up. "I did not run the whole race," {h}
        said. "{f} won." It was very quiet. {h} gave {v.the} to {f}, [who did not know what
        to say|who took it slowly]. {^g} put an arm around {h}. "You lost the race," {g.he} said,
        "but [you won something back|I am proud of you]."
    ]
    """


@plot
def lost_way(t: Teller) -> str:
    """A child wanders off and remembers what was said."""
    t.cast("h", "f")
    t.elder("g")
    t.helper("n")
    t.row("v", words.WAYS[t.world])
    return """
    [<^day>, {h} and {g} were {v.place}. "[Stay close|Hold my {hand}]," said {g}. "If you get lost,
    go to {v.sign}."
    |"If we lose each other, wait by {v.sign}," said {g}. {h} nodded, but {h.he} was not listening.
    They were {v.place}, and there was so much to see.
    |<intro:h> <^day>, {h.he} went with {g} to a place full of wonders. "Remember {v.sign}," said
    {g} when they were {v.place}.]
    <aside> But then {h} saw {v.lure}. {^h.he} went closer, [just for a moment|a few steps, and
    then a few more]. When {h.he} turned around, {g} was gone.

    [There were {v.look}.|] "{g.call}?" called {h}. [No one answered.|Nobody heard {h.him}.|]
    [{^h.his} heart beat like a drum.|<sad:h>]
    [
        {^h.he} wanted to run. But then {h.he} [remembered what {g} had said|thought of {g}'s words]
        about {v.sign}. {^h.he} looked up and all around, and there it was, far away. [{h} walked
        toward it, step by step, and did not look at [anything else|one single wonder].|]

        There {h.he} waited. [It felt like [a year|a hundred years].|] Then came the best
        sound in the world: {g}'s voice. "You [remembered|waited]!" said {g}, and held {h.him}
        tight. "I wanted to see {v.lure}," said {h} into {g.his} coat. "I will [stay close|hold your
        {hand}] now."
    |
        Someone else was crying too. A few steps away sat {f.new}, who was even
        smaller than {h}. "I am lost," said {f}. "[So am I|Me too]," said {h}. [Oddly, it
        helped to be two.|] {h} took {f}'s {hand}. "We need to find {v.sign}," {h.he} said.
        "[Somebody will look for us there|That is where I should be]."

        They found it, and they sat down and [sang every song they knew|told each other jokes].
        Before long, {g} came running, and right behind {g.him} came {f}'s father. "This one was
        brave," said {f}, and pointed at {h}. {h} [did not say how afraid {h.he} had been|shook
        {h.his} head. "We both were," {h.he} said].
    |
        {^h.he} ran this way and that way, and got more and more lost. At last {h.he} stopped in
        front of {n}. "[Please|Excuse me]," {h} said, and {h.his} voice shook, "I cannot find my
        {g.word}." "[Where should you be|Did you agree on a place]?" {n} asked kindly. {h} thought.
        "{^v.sign}," {h.he} said.

        {^n} took {h.him} there. And there stood {g}, [white in the face|looking in every
        direction]. {^g.he} did not know whether to laugh or to scold, so {g.he} did both. {h}
        thanked {n}, [and did not look at anything at all on the way home|and held on to {g} with
        both {hand}s until they were home].
    ]
    """


@plot
def night_noise(t: Teller) -> str:
    """Something makes a sound in the dark."""
    t.cast("h", "f")
    t.elder("g")
    t.row("v", words.NOISES)
    t.bind("tool", "[broom|pillow|spoon|boot]")
    return """
    [It was the middle of the night. {h} woke up and listened.
    |<intro:h> One night, something woke {h.him} up.
    |The house was dark and still, and {h} lay awake.]
    {v.sound}. [There it was again, {v.place}|Something was {v.place}]. {v.sound}.

    {h} pulled the blanket up to {h.his} [nose|chin]. It is {v.guess}, {h.he} thought. [The longer
    {h.he} thought about it, the bigger it got.|{^h.he} could almost see it.|{^h.his} toes turned
    cold.||]
    [
        {^h.he} shook {f.new}, who was staying for the night. "There is {v.guess} {v.place}," {h}
        whispered. {f} sat up and listened. "[If we stay here, we will never know|Let us go and
        see]," {f.he} whispered back. {h} took the lamp, and {f} took a {tool}.

        They crept forward, [holding {hand}s|one behind the other]. {v.sound}. {h} lifted the lamp.
        It was only {v.truth}! They looked at each other and laughed until they had to sit
        down. Then they {v.act} and went back to bed. "[You can put down the {tool} now|Good night,
        giant slayer]," said {h}.
    |
        "{g.call}!" {h} called, and {g} came with a candle. "There is {v.guess}," said {h}.
        {^g} [did not laugh|raised {g.his} eyebrows]. "Then we should [have a look|say hello],"
        {g.he} said, and held out {g.his} {hand}.

        [Step by step, they went closer.|] {h} hid behind {g}. {v.sound}. And there {v.place} was
        {v.truth}. "[Is that all|Oh]," said {h}. Together they {v.act}. The next time {h} heard
        a noise at night, {h.he} [went to look before being afraid|still jumped, but then {h.he}
        got up and looked].
    |
        In the morning, {h} told {f.new} all about it. "{^v.guess}!" said {f}. "Right {v.place}!"
        By noon, the whole neighborhood [had heard about it|was talking about it]. By
        evening, it had three heads. [Nobody wanted to go out anymore.|]

        So {h} and {f} stayed up to watch. {v.sound}. They shone a light, and there was {v.truth}.
        {h} [felt rather foolish|turned red]. They {v.act}. The next day, {h} told everyone the
        true story. [It was not as good a story as the other one, but people slept
        better|Some were a little sorry that it was not {v.guess}].
    ]
    """


@plot
def finders(t: Teller) -> str:
    """Something is found that belongs to somebody."""
    t.cast("h", "f")
    t.helper("n")
    t.elder("g")
    t.draw("x", words.FINDS)
    t.place()
    return """
    [<^day>, {h} was walking {p.in} when something caught {h.his} eye.
    |<intro:h> <^day>, {h.he} looked down and saw something {s1}.
    |"Look what I found!" said {h} to {f.new}. They were {p.in}.]
    It was {x.a}. [{h} picked it up and wiped off the dirt.|It was the finest {x} {h.he} had ever
    held.|] <aside>

    "[Finders keepers|Lucky you]," said {h.his} friend {f.new}. "[Nobody saw you|Put it in your
    pocket]." {h} wanted to keep {x.the} very much. But {x.clue}.
    [
        [<think:h>|{h} walked a few steps, and stopped.] "If it were my {x}," {h.he} said, "I
        would want it back." They asked at [three|four|five] doors until they found the owner. It
        was {n}.

        "[I have looked everywhere|I thought I would never see it again]!" said {n}, and
        {n.his} eyes grew wet. ["[My mother gave it to me|I have had it since I was young]."|]
        {^n.he} gave them [a bag of nuts|a warm bun each|nothing but a long, warm handshake]. {f}
        was quiet on the way home. "I would have kept the {x}," {f.he} said. "I know," said {h}. "[I
        almost did|So would I, almost]."
    |
        {h} put it in {h.his} pocket and went home. There {h.he} hid the {x} under the bed. But it
        was as if {x.the} could talk. You are not mine, it seemed to say. {h} [could not
        sleep|turned over and over].

        In the morning, {h.he} told {g}. "What do you want to do?" asked {g}. "You know already, or
        you would not ask." So {h} went to look for the owner, and found {n}, who had lost it. "It
        was brave to bring my {x} so late," said {n}. {h} [felt as light as a leaf|ran all the way
        home, just because {h.he} felt so light].
    |
        {h} kept it. For a week, {h.he} [carried it everywhere|looked at it in secret].
        Then one day {h.he} saw {n}, who [looked tired and sad|was searching the ground]. "I have
        lost {x.a}," {n.he} told {h.him}. "It [was my father's|is not worth much, but I miss it]."

        {h} ran home and fetched {x.the}. It had a scratch now, which had not been there before.
        {^n} took it and said thank you, but {n.he} looked at the scratch, and then at {h}. {h}
        wished that {h.he} had brought the {x} back [on the first day|sooner].
    ]
    """


@plot
def sick_friend(t: Teller) -> str:
    """One is ill in bed, one comes to visit."""
    t.cast("h", "f", "k")
    t.elder("g", of="f")
    t.row("v", words.COMFORTS)
    t.thing("x", "toy")
    return """
    [<^day>, {f.new} did not come out to play. "{f} {v.now}," said {g}.
    |{h} knocked at {f.new}'s door, but it was {g} who opened. "{f} {v.now}," {g.he} said.
    |<intro:h> {^h.he} played with {f.new} every day. But now {f} {v.ill}.]
    {f} had to stay in bed [for a week|for many days]. [{h} missed {f.him}.|The street was too
    quiet.|]

    [
        {h} wanted to [help|cheer {f.him} up]. "I could lend {f} my {x.full}," {h.he} thought,
        "and bring {v.gift}." [It was a [long|cold] walk, and {h} carried everything
        carefully and did not spill or drop a thing.|]

        {f} was pale and did not smile. But when {f.he} saw {x.the}, {f.his} eyes grew bright.
        {h} stayed until {v.after}. "[I feel better|You are the best medicine]," said {f}. A week
        later {f} ran to meet {h} with the {x} under {f.his} arm. "Here is your {x}," said {f}. "[It
        took good care of me|It missed you, I think]."
    |
        {h} was not allowed to go in. So {h.he} and {k.new} thought of something. They stood under
        {f}'s window and held up {x.a}. [{k} made it talk in a silly voice|They put on a
        play with it, and {k} fell over on purpose]. [At first, the curtain did not move.|] Then it
        opened a little, and there was {f}'s face, [laughing|with a big smile].

        They came every day, and every day the play was different. When {f} was well, {f.he}
        [wanted to see where the {x} lived|asked to be in the play too]. So {h} gave {f.him} the
        best part, and this time {f} held the {x}.
    |
        {h} was afraid to catch it, so {h.he} stayed away, and {h.he} played with {k.new}. But on
        the third day {k} said, "If I were ill, would you [forget me too|stay away from me]?" {h}
        [turned red|had no answer].

        That same hour, {h} packed {v.gift} and {x.a} for {f} to keep, and ran. "I thought you had
        forgotten me," said {f}. "I nearly did," said {h}. "<sorry>." {f} [was silent|turned to the
        wall], but then {f.he} [reached for|asked about] the {x}. {h} sat by the bed until
        {v.after}, and came again the next day, and the next.
    ]
    """


_NAMES = tuple(PLOTS)
