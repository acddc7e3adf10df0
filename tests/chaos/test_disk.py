"""Disks that are full, read-only or failing, and files that were damaged: it is said, and nothing good is lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.disk_faults import Fault
from support.fork_server import Ended
from support.scenarios import SCENES, Scene, Stage, chosen, difference, kept, newest, of_run, outcome, whole
from support.trust_ledger import held, lacking, size

pytestmark = [pytest.mark.slow, pytest.mark.trust]

FAULTS = {"full": "full disk", "read-only": "read-only disk", "fail": "failing disk"}
GO_ON = ("run", "tiny", "--resume", "--yes", "--set", "train.steps=6")


def told(ended: Ended) -> bool:
    """Whether a failure was said in a few clear lines."""
    clear = "error:" in ended.err and "Traceback" not in ended.err and "This is a bug in distillkit" not in ended.err
    return ended.code in (1, 2) and clear and len(ended.err.partition("error:")[2].splitlines()) <= 6


# ------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
@pytest.mark.parametrize("what", FAULTS)
def test_a_disk_that_refuses_is_told_and_costs_nothing(stage: Stage, scene: Scene, what: str) -> None:
    expected, undisturbed = stage.expected(scene)
    chance = random.Random(f"{scene.name} {what}")
    places = chosen(undisturbed.spots, size(1, full=5), chance)
    wrong = []
    for at in places:
        home = stage.copy(scene.home)
        before = kept(stage.look(home))
        ended = stage.fork_server.run(home, *scene.words, fault=Fault(what, at))
        where = f"{scene.name}, {what} at {at} {undisturbed.spots[at]}"
        look = stage.look(home)
        swept = what == "full"  # otherwise nothing can be removed either, at the worst moment
        whole(look, swept)
        assert before <= kept(look)
        if ended.code == 0 and outcome(look, swept) == expected:  # it could do without
            continue
        if not told(ended):
            wrong.append(f"{where}: exit {ended.code}: {ended.err.strip()[-600:]}")
        again = stage.fork_server.run(home, *scene.again(home))
        if again.code or (found := outcome(home)) != expected:
            wrong.append(f"{where}, again: {again.err.strip()[-400:] if again.code else difference(expected, found)}")
    print("\n".join(wrong))
    held(
        "Disk: a full, read-only or failing disk is reported, and the command finishes when the disk is repaired",
        len(places),
        len(places) - len(wrong),
    )


READING = (("runs",), ("generate", "tiny", "--prompt", "One day", "--max-tokens", "4"), ("compare", "tiny", "tiny"))
WRITING = (
    *(scene.words for scene in SCENES if scene.home == "done"),
    *(("run", "tiny.toml", "--yes"), ("train", "tiny")),
)


@pytest.fixture
def small_disk(stage: Stage) -> Iterator[Path]:
    """A disk of a few megabytes, where this machine lets us mount one."""
    disk = stage.folder / "disk"
    disk.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        lacking("this machine does not let us mount a small disk: only root may, and not everywhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def lay(stage: Stage, disk: Path, kind: str) -> None:
    """Put a home of a kind on a disk, and nothing else."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(stage.folder / kind, disk, dirs_exist_ok=True)


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte; the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"0" * 4096)
    return filler


def unwritable(stage: Stage, home: Path, **how: bool) -> list[tuple[str, ...]]:
    """The commands that do not do as they should in a folder that nobody may write to."""
    wrong = [words for words in WRITING if not told(stage.fork_server.run(home, *words, **how))]
    return wrong + [words for words in READING if stage.fork_server.run(home, *words, **how).code]


def test_on_a_disk_mounted_read_only_what_reads_works_and_what_writes_says_so(stage: Stage, small_disk: Path) -> None:
    lay(stage, small_disk, "done")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    wrong, tries = unwritable(stage, small_disk), len(READING) + len(WRITING)
    held(
        "Disk: in a read-only folder, commands that read work and commands that write report the error",
        tries,
        tries - len(wrong),
        str(wrong or ""),
    )


def test_in_a_folder_that_is_not_ours_to_write_to_what_reads_works_and_what_writes_says_so(stage: Stage) -> None:
    home = stage.copy("done")
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        wrong, tries = unwritable(stage, home, held_back=True), len(READING) + len(WRITING)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    held(
        "Disk: in a read-only folder, commands that read work and commands that write report the error",
        tries,
        tries - len(wrong),
        str(wrong or ""),
    )


def test_a_disk_that_is_really_full_loses_nothing(stage: Stage, small_disk: Path) -> None:
    lay(stage, small_disk, "done")
    filler = fill(small_disk)
    before = outcome(stage.look(small_disk))
    scenes = [scene for scene in SCENES if scene.home == "done" and scene.name != "cache export"]
    wrong = [scene.name for scene in scenes if not told(stage.fork_server.run(small_disk, *scene.words))]
    assert outcome(stage.look(small_disk)) == before
    filler.unlink()
    wrong += [scene.name for scene in scenes if stage.fork_server.run(small_disk, *scene.words).code]
    tries = 2 * len(scenes)
    held(
        "Disk: on a really full disk no existing file is changed",
        tries,
        tries - len(wrong),
        str(wrong or ""),
    )


@pytest.mark.parametrize("name", size(["train"], full=["run", "label", "train", "judge"]))
def test_what_meets_a_full_disk_at_work_finishes_when_there_is_room(stage: Stage, small_disk: Path, name: str) -> None:
    scene = next(scene for scene in SCENES if scene.name == name)
    expected, _ = stage.expected(scene)
    lay(stage, small_disk, scene.home)
    before, filler = kept(stage.look(small_disk)), fill(small_disk)
    ended = stage.fork_server.run(small_disk, *scene.words)
    look = stage.look(small_disk)
    assert whole(look)
    assert before <= kept(look)
    filler.unlink()
    again = stage.fork_server.run(small_disk, *scene.again(small_disk))
    found = outcome(small_disk)
    print(ended.err, again.err, difference(expected, found))
    good = told(ended) and again.code == 0 and found == expected
    held("Disk: a command that met a really full disk finishes when there is space again", 1, int(good), name)


# ------------------------------------------------------------------------------------------- files that were damaged


@dataclass(frozen=True)
class Damage:
    """A kind of file, and what a user is told to do where the run does not go on by itself."""

    files: str
    remedy: tuple[str, ...] = ()
    lost: bool = False  # whether the command cannot finish any more
    each: bool = False  # whether every one of the files is tried in the smaller size, too


DAMAGE = {
    "checkpoint": Damage("reports/tiny/1/checkpoints/step-00000004/*", each=True),
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
    home = halfway.folder / "halfway"
    names = sorted(
        str(path.relative_to(home)) for path in home.glob(damage.files) if path.is_file() and path.stat().st_size
    )
    tries = size(len(names) if damage.each else 2, full=12)
    wrong, count = [], {"told": 0, "mended": 0, "harmless": 0}
    for number in range(tries):
        home = halfway.copy("halfway")
        file = home / names[number % len(names)]
        where = f"{file.relative_to(home)} {spoil(file, chance)}"
        ended = halfway.fork_server.run(home, *GO_ON)
        if ended.code == 0 and outcome(home) == expected:
            count["mended" if "warning:" in ended.err else "harmless"] += 1
            continue
        if not told(ended):
            wrong.append(f"{where}: exit {ended.code}: {difference(expected, outcome(home))} {ended.err[-300:]}")
            continue
        count["told"] += 1
        if damage.remedy and halfway.fork_server.run(home, *damage.remedy).code:
            wrong.append(f"{where}: {damage.remedy} does not mend it")
        if not damage.lost and (halfway.fork_server.run(home, *GO_ON).code or outcome(home) != expected):
            wrong.append(f"{where}: not mended after {damage.remedy}: {ended.err}")
    print("\n".join(wrong))
    figure = f"{name}: " + ", ".join(f"{many} {how}" for how, many in count.items() if many)
    held(
        "Disk: a flipped bit or a truncated file is detected by its checksum and reported or repaired",
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
    ended = halfway.fork_server.run(home, *GO_ON)
    assert ended.code == 0
    assert f"{newest_weights} is damaged" in ended.err
    assert "resuming from step 2" in ended.err
    assert (run.checkpoints / "damaged-step-00000004" / "model.safetensors").read_bytes() == spoilt
    held("Disk: the newest intact checkpoint is used, and the damaged one is set aside", 1, 1)


def test_a_damaged_answer_is_told_and_asked_again(stage: Stage) -> None:
    tries, chance, wrong = size(3, full=20), random.Random(7), []
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
        ended = stage.fork_server.run(home, "label", "tiny")
        if ended.code and not (told(ended) and "cache verify --repair" in ended.err):
            wrong.append(ended.err)
        stage.well(home, "cache", "verify", "--repair")
        stage.provider.forget()
        stage.well(home, "label", "tiny")
        if outcome(home)["answers"] != expected or sum(stage.asked().values()) > 1:
            wrong.append(f"{key}: {difference(expected, outcome(home)['answers'])}; asked {stage.asked()}")
    print("\n".join(wrong))
    held(
        "Disk: a flipped bit in a cached answer is reported, and only that answer is requested again",
        tries,
        tries - len(wrong),
    )


def test_a_damaged_database_is_told_and_never_believed(stage: Stage) -> None:
    """What a command does not read it does not see: then the run is as it would be, and `verify` says the rest."""
    tries, chance, wrong, count = size(3, full=20), random.Random(11), [], Counter[str]()
    sound = of_run(newest(stage.folder / "labelled"))
    for _ in range(tries):
        home = stage.copy("labelled")
        where = spoil(home / "cache" / "teachers" / "cache.db", chance)
        ended = stage.fork_server.run(home, "label", "tiny")
        if ended.code:
            count["told"] += 1
            wrong += [] if told(ended) else [f"{where}: exit {ended.code}: {ended.err}"]
            continue
        if (found := of_run(newest(home))) != sound:
            wrong.append(f"{where}: {difference(sound, found)}")
        verified = stage.fork_server.run(home, "cache", "verify")
        count["told by verify" if verified.code else "harmless"] += 1
        if verified.code and not told(verified):
            wrong.append(f"{where}: verify: exit {verified.code}: {verified.err}")
    print("\n".join(wrong))
    figure = ", ".join(f"{many} {how}" for how, many in count.items())
    held("Disk: a damaged answer database is reported, and no wrong answer is used", tries, tries - len(wrong), figure)
