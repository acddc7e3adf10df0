"""Commands are killed wherever they change the disk, and at any moment: the same command then finishes as if not.

Each try is a real command in a process of its own, ended by SIGKILL.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.disk_faults import Fault
from support.fork_server import Ended
from support.scenarios import OUT, SCENES, Scene, Stage, chosen, difference, kept, kinds, outcome, whole
from support.trust_ledger import held, size

pytestmark = [pytest.mark.slow, pytest.mark.trust]

LEAST = 200  # kills under `make trust`
# How often each command is killed: at boundaries and at random moments, among the slow tests and under `make trust`.
KILLS = {
    "run": ((6, 2), (40, 10)),
    "label": ((3, 1), (40, 6)),
    "train": ((3, 1), (24, 6)),
    "judge": ((3, 1), (20, 5)),
    "report": ((2, 0), (12, 3)),
    "export": ((2, 0), (12, 3)),
    "cache export": ((1, 0), (6, 2)),
    "cache import": ((2, 0), (8, 2)),
    "import": ((2, 1), (12, 3)),
}
SAMPLED = {
    "run"
}  # has hundreds of kinds of places, and does what others do; of theirs each is tried under `make trust`
TRIES = 20  # of a kill that comes too late, before something is wrong


@dataclass
class Tally:
    """What became of the kills of one command."""

    kills: int = 0
    finished: int = 0
    equal: int = 0
    sound: int = 0
    asked: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


def test_as_many_are_killed_as_is_promised() -> None:
    assert set(KILLS) == {scene.name for scene in SCENES}
    assert sum(sum(size(*kills)) for kills in KILLS.values()) >= size(30, full=LEAST)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_killed_command_finishes_as_if_it_had_not_been(stage: Stage, scene: Scene) -> None:
    spots = stage.expected(scene)[1].spots
    boundaries, moments = size(*KILLS[scene.name])
    chance, tally, every = random.Random(scene.name), Tally(), kinds(spots)
    most = boundaries if scene.name in SAMPLED else max(boundaries, len(every))
    places = chosen(spots, size(boundaries, full=most), chance)
    for at in places:
        torn = spots[at][0] in ("write", "save") and chance.random() < 0.5
        insist(stage, scene, tally, Fault("tear" if torn else "kill", at))
    at_moments(stage, scene, tally, moments, chance)
    print("\n".join(tally.wrong))
    kills = tally.kills
    assert kills == len(places) + moments
    met = sum(any(at in places for at in one) for one in every.values())
    held(
        "Crashes: a killed command finishes when it is run again",
        kills,
        tally.finished,
        f"{scene.name} {kills}, at {met} of {len(every)} kinds of place",
        least=LEAST,
    )
    held(
        "Crashes: all results equal those of an undisturbed command; nothing is lost or duplicated",
        kills,
        tally.equal,
        f"answers, grades and samples lost {tally.lost}, doubled {tally.doubled}",
    )
    held("Crashes: no file is half-written, lost or damaged, and no stale lock remains", kills, tally.sound)
    held(
        "Crashes: no stored answer is requested again, and only requests that were in flight are sent twice",
        kills,
        tally.asked,
    )


def insist(stage: Stage, scene: Scene, tally: Tally, fault: Fault) -> None:
    """Kill the command at a boundary; it may meet fewer of them than it did when it was undisturbed."""
    assert any(tried(stage, scene, tally, fault).killed for _ in range(TRIES)), fault


def at_moments(stage: Stage, scene: Scene, tally: Tally, count: int, chance: random.Random) -> None:
    """Kill the command at so many moments; whenever it was done before, it is known better how long it takes."""
    seconds = stage.expected(scene)[1].seconds
    for _ in range(count):
        for _ in range(TRIES):
            cut = tried(stage, scene, tally, None, chance.random() * seconds)
            if cut.killed:
                break
            seconds = min(seconds, cut.seconds)
        else:
            raise AssertionError(f"{TRIES} moments of {seconds:.2f} s came too late")


def tried(stage: Stage, scene: Scene, tally: Tally, fault: Fault | None, after: float | None = None) -> Ended:
    """Kill the command once, have it run again, and look at what there is."""
    home = stage.copy(scene.home)
    stage.provider.forget()
    cut = stage.fork_server.run(home, *scene.words, fault=fault, after=after)
    if not cut.killed:  # a moment after the end
        assert cut.code == 0, cut.err
        return cut
    tally.kills += 1
    where = f"{scene.name} {fault and (fault, stage.expected(scene)[1].spots[fault.at])} {after}"
    try:
        look = stage.look(home)
        whole(look, swept=False)
        before = kept(look)
        first = stage.asked()
        stage.provider.forget()
        again = stage.fork_server.run(home, *scene.again(home))
        check(stage, scene, tally, home, again, where)
        check_asked(stage, scene, before, first, tally, where)
    except Exception as error:  # noqa: BLE001 - one of many tries: it is told with the others
        tally.wrong.append(f"{where}: {type(error).__name__}: {error}")
        keep(home, len(tally.wrong))
    return cut


DONE = "exported already exists"  # killed when its folder stood: it is never replaced, and compared all the same


def check(stage: Stage, scene: Scene, tally: Tally, home: Path, again: Ended, where: str) -> None:
    """Whether the second command finished, and with what."""
    if again.code and DONE not in again.err:
        tally.wrong.append(f"{where}: exit {again.code}: {again.err.strip()[-400:]}")
        keep(home, len(tally.wrong))
        return
    tally.finished += 1
    expected, found = stage.expected(scene)[0], outcome(home)
    tally.sound += 1
    tally.lost += (rows(expected) - rows(found)).total()
    tally.doubled += (rows(found) - rows(expected)).total()
    if found == expected:
        tally.equal += 1
    else:
        tally.wrong.append(f"{where}: {difference(expected, found)}")
        keep(home, len(tally.wrong))


def rows(found: dict[str, Any]) -> Counter[str]:
    """Every answer, grade and sample of an outcome, and how often it is there."""
    files = [text for run in found["runs"].values() for text in run["files"].values()]
    return Counter(found["answers"].keys()) + Counter(line for text in files for line in text.splitlines())


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


def keep(home: Path, number: int) -> None:
    """Leave a home that went wrong where it can be looked at."""
    shutil.copytree(home, home.with_name(f"wrong-{number}"), dirs_exist_ok=True)
