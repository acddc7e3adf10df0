"""Commands are killed wherever they change the disk, and at any moment: the same command then finishes as if not.

Each try is a real command in a process of its own, ended by SIGKILL.
"""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from boundaries import Fault
from ledger import held, size
from nursery import Ended
from scenes import OUT, SCENES, Scene, Stage, kept, outcome, whole

pytestmark = [pytest.mark.slow, pytest.mark.trust]

# How often each command is killed: at boundaries and at random moments, among the slow tests and under `make trust`.
KILLS = {
    "run": ((6, 2), (70, 20)),
    "label": ((3, 1), (24, 6)),
    "train": ((3, 1), (24, 6)),
    "judge": ((3, 1), (20, 5)),
    "report": ((2, 0), (12, 3)),
    "export": ((2, 0), (12, 3)),
    "cache export": ((1, 0), (6, 2)),
    "cache import": ((2, 0), (8, 2)),
    "import": ((2, 1), (12, 3)),
}


@dataclass
class Tally:
    """What became of the kills of one command."""

    kills: int = 0
    finished: int = 0
    equal: int = 0
    sound: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_killed_command_finishes_as_if_it_had_not_been(stage: Stage, scene: Scene) -> None:
    _, undisturbed = stage.expected(scene)
    boundaries, moments = size(*KILLS[scene.name])
    chance, tally = random.Random(scene.name), Tally()
    for at in chosen(undisturbed.spots, boundaries, chance):
        torn = undisturbed.spots[at][0] in ("write", "save") and chance.random() < 0.5
        tried(stage, scene, tally, Fault("tear" if torn else "kill", at))
    for _ in range(moments):
        tried(stage, scene, tally, None, chance.random() * undisturbed.seconds)
    print("\n".join(tally.wrong))
    kills = tally.kills
    held(
        "Crashes: a command that was killed finishes when it is run again",
        kills,
        tally.finished,
        f"{scene.name} {kills}",
    )
    held(
        "Crashes: weights, grades, reports and all else equal an undisturbed command's, none lost and none doubled",
        kills,
        tally.equal,
    )
    held("Crashes: no file is half-written, lost or damaged, and no lock is in the way", kills, tally.sound)
    held(
        "Crashes: no answer that was kept is asked for again, and none twice that was not in flight", kills, tally.asked
    )


def chosen(spots: list[tuple[str, str]], count: int, chance: random.Random) -> list[int]:
    """So many boundaries: one of each kind of place first, and then any."""
    kinds: dict[str, list[int]] = {}
    for at, (kind, path) in enumerate(spots):
        kinds.setdefault(f"{kind} {re.sub('[0-9a-f]{6,}|[0-9]+', '#', path)}", []).append(at)
    first = [chance.choice(places) for places in kinds.values()]
    chance.shuffle(first)
    rest = [at for at in range(len(spots)) if at not in first]
    chance.shuffle(rest)
    return (first + rest)[:count]


def tried(stage: Stage, scene: Scene, tally: Tally, fault: Fault | None, after: float | None = None) -> None:
    """Kill the command once, have it run again, and look at what there is."""
    home = stage.copy(scene.home)
    stage.provider.forget()
    cut = stage.nursery.run(home, *scene.words, fault=fault, after=after)
    if not cut.killed:  # a moment after the end
        assert cut.code == 0, cut.err
        return
    tally.kills += 1
    where = f"{scene.name} {fault and (fault, stage.expected(scene)[1].spots[fault.at])} {after}"
    try:
        look = stage.look(home)
        whole(look, swept=False)
        before = kept(look)
        first = stage.asked()
        stage.provider.forget()
        again = stage.nursery.run(home, *scene.again(home))
        check(stage, scene, tally, home, again, where)
        check_asked(stage, scene, before, first, tally, where)
    except Exception as error:  # noqa: BLE001 - one of many tries: it is told with the others
        tally.wrong.append(f"{where}: {type(error).__name__}: {error}")
        keep(home, len(tally.wrong))


def check(stage: Stage, scene: Scene, tally: Tally, home: Path, again: Ended, where: str) -> None:
    """Whether the second command finished, and with what."""
    if again.code:
        tally.wrong.append(f"{where}: exit {again.code}: {again.err.strip()[-400:]}")
        keep(home, len(tally.wrong))
        return
    tally.finished += 1
    expected, found = stage.expected(scene)[0], outcome(home)
    tally.sound += 1
    if found == expected:
        tally.equal += 1
    else:
        tally.wrong.append(f"{where}: {difference(expected, found)}")
        keep(home, len(tally.wrong))


def check_asked(
    stage: Stage, scene: Scene, before: Counter[str], first: Counter[str], tally: Tally, where: str
) -> None:
    """Nothing that was kept is asked again, and no more is asked twice than was out."""
    needed, second = stage.needed[scene.name], stage.asked()
    kept_again = second - (needed - before)
    twice = first + second - needed
    if not kept_again and twice.total() <= OUT:
        tally.asked += 1
    else:
        tally.wrong.append(f"{where}: kept and asked again: {list(kept_again)}; asked twice: {list(twice)}")


def difference(one: object, other: object, path: str = "") -> str:
    """Where two outcomes differ, in a line."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return "; ".join(difference(one.get(key), other.get(key), f"{path}/{key}") for key in keys)
    return f"{path}: {str(one)[:150]!r} and {str(other)[:150]!r}"


def keep(home: Path, number: int) -> None:
    """Leave a home that went wrong where it can be looked at."""
    shutil.copytree(home, home.with_name(f"wrong-{number}"), dirs_exist_ok=True)
