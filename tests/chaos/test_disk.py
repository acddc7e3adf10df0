"""Disks that are full, read-only or failing, and files that were damaged: it is said, and nothing good is lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from boundaries import Fault
from ledger import held, size
from nursery import Ended
from scenes import SCENES, Scene, Stage, kept, newest, outcome, whole
from test_crashes import chosen, difference

pytestmark = [pytest.mark.slow, pytest.mark.trust]

FAULTS = {"full": "full disk", "read-only": "read-only disk", "fail": "failing disk"}
GO_ON = ("run", "tiny", "--resume", "--yes", "--set", "train.steps=6")


def told(ended: Ended) -> bool:
    """Whether a failure was said in a few clear lines."""
    clear = "error:" in ended.err and "Traceback" not in ended.err and "This is a fault in distillkit" not in ended.err
    return ended.code in (1, 2) and clear and len(ended.err.partition("error:")[2].splitlines()) <= 6


# ------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
@pytest.mark.parametrize("what", FAULTS)
def test_a_disk_that_refuses_is_told_and_costs_nothing(stage: Stage, scene: Scene, what: str) -> None:
    expected, undisturbed = stage.expected(scene)
    chance = random.Random(f"{scene.name} {what}")
    places = chosen(undisturbed.spots, size(1, 8), chance)
    wrong = []
    for at in places:
        home = stage.copy(scene.home)
        before = kept(stage.look(home))
        ended = stage.nursery.run(home, *scene.words, fault=Fault(what, at))
        where = f"{scene.name}, {what} at {at} {undisturbed.spots[at]}"
        look = stage.look(home)
        swept = what == "full"  # otherwise nothing can be removed either, at the worst moment
        whole(look, swept)
        assert before <= kept(look)
        if ended.code == 0 and outcome(look, swept) == expected:  # it could do without
            continue
        if not told(ended):
            wrong.append(f"{where}: exit {ended.code}: {ended.err.strip()[-600:]}")
        again = stage.nursery.run(home, *scene.again(home))
        if again.code or (found := outcome(home)) != expected:
            wrong.append(f"{where}, again: {again.err.strip()[-400:] if again.code else difference(expected, found)}")
    print("\n".join(wrong))
    named = "a disk that is full, read-only or failing"
    held(
        f"Disk: {named} is told in a few lines, and the command finishes when it is mended",
        len(places),
        len(places) - len(wrong),
    )


@pytest.fixture
def small_disk(stage: Stage) -> Iterator[Path]:
    """A disk of a few megabytes with a finished run on it, where this machine lets us mount one."""
    disk = stage.folder / "disk"
    disk.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        shutil.copytree(stage.folder / "done", disk, dirs_exist_ok=True)
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_disk_mounted_read_only_what_reads_works_and_what_writes_says_so(stage: Stage, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writing = [scene.words for scene in SCENES if scene.home == "done"] + [
        ("run", "tiny.toml", "--yes"),
        ("train", "tiny"),
    ]
    reading = [("runs",), ("generate", "tiny", "--prompt", "One day", "--max-tokens", "4"), ("compare", "tiny", "tiny")]
    wrong = [words for words in writing if not told(stage.nursery.run(small_disk, *words))]
    wrong += [words for words in reading if stage.nursery.run(small_disk, *words).code]
    tries = len(writing) + len(reading)
    held(
        "Disk: on a folder that is read-only what reads works, and what writes says so",
        tries,
        tries - len(wrong),
        str(wrong or ""),
    )


def test_a_disk_that_is_really_full_loses_nothing(stage: Stage, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"0" * 4096)
    before = outcome(stage.look(small_disk))
    scenes = [scene for scene in SCENES if scene.home == "done" and scene.name != "cache export"]
    wrong = [scene.name for scene in scenes if not told(stage.nursery.run(small_disk, *scene.words))]
    assert outcome(stage.look(small_disk)) == before
    filler.unlink()
    wrong += [scene.name for scene in scenes if stage.nursery.run(small_disk, *scene.words).code]
    tries = 2 * len(scenes)
    held(
        "Disk: on a disk that is really full nothing that was there is touched",
        tries,
        tries - len(wrong),
        str(wrong or ""),
    )


# ------------------------------------------------------------------------------------------- files that were damaged


@dataclass(frozen=True)
class Damage:
    """A kind of file, and what a user is told to do where the run does not go on by itself."""

    files: str
    remedy: tuple[str, ...] = ()
    lost: bool = False  # whether the command cannot finish any more


DAMAGE = {
    "checkpoint": Damage("reports/tiny/1/checkpoints/step-00000004/*"),
    "shard": Damage("cache/data/*/*/*.bin"),
    "corpus": Damage("cache/data/*/*.json*"),
    "tokenizer of a corpus": Damage("cache/data/*/tokenizer/*"),
    "packed answers": Damage("reports/tiny/1/answers/*/*", ("label", "tiny")),
    "run.json": Damage("reports/tiny/1/run.json", lost=True),
}


@pytest.fixture(scope="module")
def halfway(stage: Stage) -> Stage:
    """A run that is to go on from step 4."""
    home = stage.copy("labelled", "halfway")
    stage.well(home, "train", "tiny", "--set", "train.steps=4")
    return stage


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_told_or_mended_and_never_believed(halfway: Stage, name: str) -> None:
    damage, chance = DAMAGE[name], random.Random(name)
    scene = Scene("halfway", "halfway", GO_ON)
    expected, _ = halfway.expected(scene)
    tries, wrong, count = size(2, 24), [], {"told": 0, "mended": 0, "harmless": 0}
    for number in range(tries):
        home = halfway.copy("halfway")
        files = sorted(path for path in home.glob(damage.files) if path.is_file() and path.stat().st_size)
        file = files[number % len(files)]
        where = f"{file.relative_to(home)} {spoil(file, chance)}"
        ended = halfway.nursery.run(home, *GO_ON)
        if ended.code == 0 and outcome(home) == expected:
            count["mended" if "warning:" in ended.err else "harmless"] += 1
            continue
        if not told(ended):
            wrong.append(f"{where}: exit {ended.code}: {difference(expected, outcome(home))} {ended.err[-300:]}")
            continue
        count["told"] += 1
        if damage.remedy and halfway.nursery.run(home, *damage.remedy).code:
            wrong.append(f"{where}: {damage.remedy} does not mend it")
        if not damage.lost and (halfway.nursery.run(home, *GO_ON).code or outcome(home) != expected):
            wrong.append(f"{where}: not mended after {damage.remedy}: {ended.err}")
    print("\n".join(wrong))
    figure = f"{name}: " + ", ".join(f"{many} {how}" for how, many in count.items() if many)
    held(
        "Disk: a flipped bit or a cut file is told or mended by its checksum, and never believed",
        tries,
        tries - len(wrong),
        figure,
    )


def spoil(file: Path, chance: random.Random) -> str:
    """Flip a bit of a file, or cut it short."""
    content = bytearray(file.read_bytes())
    at = chance.randrange(len(content))
    if chance.random() < 0.3:
        file.write_bytes(content[:at])
        return f"cut at {at}"
    content[at] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"bit flipped in byte {at}"


def test_the_checkpoint_before_a_damaged_one_is_used_and_the_damaged_one_is_kept(halfway: Stage) -> None:
    home = halfway.copy("halfway")
    run = newest(home)
    assert run is not None
    newest_weights = run.checkpoints / "step-00000004" / "model.safetensors"
    spoil(newest_weights, random.Random(1))
    spoilt = newest_weights.read_bytes()
    ended = halfway.nursery.run(home, *GO_ON)
    assert ended.code == 0
    assert f"{newest_weights} is damaged" in ended.err
    assert "going on from step 2" in ended.err
    assert (run.checkpoints / "damaged-step-00000004" / "model.safetensors").read_bytes() == spoilt
    held("Disk: the newest good checkpoint is used, and the damaged one is set aside", 1, 1)


def test_a_damaged_answer_is_told_and_asked_again(stage: Stage) -> None:
    tries, chance, wrong = size(3, 40), random.Random(7), []
    for _ in range(tries):
        home = stage.copy("labelled")
        expected = outcome(home)["answers"]
        rows = sqlite3.connect(home / "cache" / "teachers" / "cache.db")
        rows_kept = rows.execute(
            "SELECT key, CAST(value AS BLOB) FROM Cache WHERE instr(value, '\"request\"') ORDER BY key"
        ).fetchall()
        key, text = chance.choice(rows_kept)
        content = bytearray(text)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        rows.execute("UPDATE Cache SET value = CAST(? AS TEXT) WHERE key = ?", (bytes(content), key))
        rows.commit()
        rows.close()
        ended = stage.nursery.run(home, "label", "tiny")
        if ended.code and not (told(ended) and "cache verify --repair" in ended.err):
            wrong.append(ended.err)
        stage.well(home, "cache", "verify", "--repair")
        stage.provider.forget()
        stage.well(home, "label", "tiny")
        if outcome(home)["answers"] != expected or sum(stage.asked().values()) > 1:
            wrong.append(f"{key}: {difference(expected, outcome(home)['answers'])}; asked {stage.asked()}")
    print("\n".join(wrong))
    held(
        "Disk: a flipped bit in an answer of the cache is told, and that answer alone is asked again",
        tries,
        tries - len(wrong),
    )


def test_a_damaged_database_is_told_and_never_believed(stage: Stage) -> None:
    tries, chance, wrong, count = size(2, 30), random.Random(11), [], 0
    for _ in range(tries):
        home = stage.copy("labelled")
        expected = outcome(home)["answers"]
        spoil(home / "cache" / "teachers" / "cache.db", chance)
        ended = stage.nursery.run(home, "label", "tiny")
        count += ended.code != 0
        if ended.code and not told(ended):
            wrong.append(ended.err)
        if ended.code == 0 and outcome(home)["runs"] != outcome(stage.folder / "labelled")["runs"]:
            wrong.append(difference(expected, outcome(home)["answers"]))
    print("\n".join(wrong))
    held("Disk: a damaged database of answers is told, and never believed", tries, tries - len(wrong), f"{count} told")
