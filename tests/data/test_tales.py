import hashlib
import re
from collections import Counter
from itertools import pairwise

import pytest

from distillkit.data.tales.generator import PLOTS, Tale, _finish, story, tale

MANY = 5_000


@pytest.fixture(scope="module")
def tales() -> list[Tale]:
    return [tale(1, index) for index in range(MANY)]


def test_the_same_seed_tells_the_same_stories_everywhere_and_forever() -> None:
    text = "\0".join(story(0, index) for index in range(300))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "614a16d3a2f513c3a3a6e01bef62b102f3c31eb53f29fc26a66a5b3364c52432"
    )


def test_story_order_does_not_matter_and_the_seed_does() -> None:
    later, earlier = story(5, 9), story(5, 3)
    assert (later, earlier) == (story(5, 9), story(5, 3))
    assert story(6, 9) != later


def test_no_two_stories_are_the_same(tales: list[Tale]) -> None:
    assert len({t.text for t in tales}) == MANY


@pytest.mark.slow
def test_no_two_of_twenty_thousand_stories_are_the_same() -> None:
    assert len({tale(1, index).text for index in range(20_000)}) == 20_000


def test_every_plot_is_told_about_equally_often(tales: list[Tale]) -> None:
    told = Counter(t.plot for t in tales)
    assert set(told) == set(PLOTS)
    assert len(PLOTS) >= 14
    assert min(told.values()) > MANY / len(PLOTS) * 0.8


def test_stories_of_one_plot_share_few_sentences(tales: list[Tale]) -> None:
    for plot in PLOTS:
        texts = (t.text for t in tales if t.plot == plot)
        told = [set(re.split(r'(?<=[.!?]) |(?<=[.!?]") |\n\n', text)) for text in texts]
        shared = [len(one & two) / len(one) for one, two in pairwise(told)]
        assert sum(shared) / len(shared) < 0.25, plot


def test_a_child_knows_all_the_words(tales: list[Tale]) -> None:
    words = {word for t in tales for word in re.findall(r"[a-z]+", t.text.lower())}
    assert 1_200 < len(words) < 1_800


def test_stories_are_neither_short_nor_long(tales: list[Tale]) -> None:
    lengths = [len(t.text.split()) for t in tales]
    assert min(lengths) >= 60
    assert max(lengths) <= 220
    assert 110 < sum(lengths) / MANY < 160


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("a before a vowel", r"\b[Aa] (?!one\b|us|uni)[aeiou]"),
        ("an before a consonant", r"\b[Aa]n (?!hour)[^aeiou]"),
        ("double space", r"  | \n|\n "),
        ("more than one blank line", r"\n\n\n"),
        ("word said twice", r"\b(\w+) \1\b"),
        ("leftover mark", r"[{}<>\[\]|_^]"),
        ("space before a stop", r" [.,;:!?]"),
        ("doubled stop", r"[.,!?]{2,}"),
        ("sentence in lower case", r'[.!?] [a-z]|\." [a-z]'),
        ("not plain ASCII", r"[^\x0a\x20-\x7e]"),
    ],
)
def test_no_story_has_this_fault(tales: list[Tale], fault: str, pattern: str) -> None:
    faulty = [t.text for t in tales if re.search(pattern, t.text)]
    assert not faulty, f"{fault}: {faulty[0]}"


def test_every_paragraph_is_whole(tales: list[Tale]) -> None:
    for paragraph in (p for t in tales for p in t.text.split("\n\n")):
        assert paragraph.count('"') % 2 == 0, paragraph
        assert re.match(r'["A-Z]', paragraph), paragraph
        assert re.search(r'[.!?]"?$', paragraph), paragraph


def test_hero_and_wish_are_named_again_near_the_end(tales: list[Tale]) -> None:
    for t in tales:
        end = t.text[len(t.text) * 2 // 3 :]
        assert t.hero in end, t
        assert t.wanted in end, t


def test_finish_mends_articles_spaces_and_paragraphs() -> None:
    assert _finish(" a apple ,\n a unicorn .\n\n \n\n A owl") == "an apple, a unicorn.\n\nAn owl"
