"""Plugins at fault, tried in the whole program: each is named, the rest works, and no traceback is shown unasked."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distillkit.cli import main
from distillkit.plugins import discovery, hookspecs

RECIPE = """
name = "faulty"
data = { source = "tales", stories = 80, held_out = 0.2 }
tokenizer = { vocab_size = 300 }
student = { layers = 1, heads = 2, width = 16, context = 16 }
train = { steps = 2, batch_size = 2, evaluate_every = 2, checkpoint_every = 2 }
sampling = { count = 2, max_tokens = 4 }
"""
GOOD = '''
from distillkit import *

class Mine({role}):
    """Does what it should."""
    name = "mine"
{body}

@hookimpl
def register_{roles}():
    return [Mine]
'''
BODIES = {
    "Teacher": "    def answer(self, request):\n        return Answer('and they all went home.')",
    "Mixer": "    def rows(self, logits, targets, step):\n        return {'hard': -targets.log_prob(logits)}",
    "Judge": "    def grade(self, subject):\n        return [Grade('samples', len(subject.samples))]",
    "Source": "    def documents(self, split):\n        return (Document(f'{i}', f'text {i}') for i in range(80))",
    "Student": "    context = 16\n    def build(self, vocab_size):\n        return None",
    "Tracker": (
        "    def start(self, run):\n        pass\n    def log(self, step, values):\n        pass\n"
        "    def finish(self, report):\n        pass"
    ),
}
TABLES = {
    "Teacher": 'teacher = { provider = "mine", prompts = 2, max_tokens = 4, timeout = 0.3, attempts = 1 }\n',
    "Mixer": 'mixer = { name = "mine" }\n',
    "Judge": 'judge = [{ name = "mine" }]\n',
    "Source": 'source = "mine"',
    "Student": 'arch = "mine"',
    "Tracker": 'tracker = [{ name = "mine" }]\n',
}
PROGRAM = Callable[..., tuple[int, str, str]]


def plugin(role: str, *changes: tuple[str, str]) -> str:
    """A good plugin, changed for the worse."""
    code = GOOD.format(role=role, roles=f"{role.lower()}s", body=BODIES[role])
    for good, bad in changes:
        assert good in code
        code = code.replace(good, bad)
    return code


def method(role: str, body: str) -> str:
    """A good plugin whose first method does something else, in the lines given."""
    head, _, rest = plugin(role).partition("(self")
    signature, _, tail = rest.partition("\n")
    _, _, after = tail.partition("\n")
    return f"{head}(self{signature}\n{textwrap.indent(textwrap.dedent(body).strip(), ' ' * 8)}\n{after}"


def recipe(role: str) -> str:
    """A recipe that needs it."""
    if role == "Source":
        return RECIPE.replace('source = "tales", stories = 80', TABLES[role])
    if role == "Student":
        return RECIPE.replace("layers = 1, heads = 2, width = 16, context = 16", TABLES[role])
    return RECIPE + TABLES[role]


@dataclass
class Fault:
    """A plugin at fault, what is said of it, and how the command that needs it ends."""

    name: str
    code: str
    says: str
    role: str = "Teacher"
    exit_code: int = 2
    loads: bool = False  # whether it can be listed all the same
    needs: str = ""  # lines of its metadata

    def __str__(self) -> str:
        return self.name


AWAITED = ("def answer", "async def answer")
HOOK = "@hookimpl\ndef register_teachers():\n    return [Mine]"
FAULTS = [
    Fault("raises on import", "1 / 0\n" + plugin("Teacher"), "it cannot be imported: ZeroDivisionError"),
    Fault("leaves on import", "raise SystemExit(0)", "it cannot be imported: SystemExit"),
    Fault("hangs on import", "import time\ntime.sleep(30)", "TimeoutError: not loaded within 2 s"),
    Fault("has no syntax", "def f(:", "it cannot be imported: SyntaxError"),
    Fault("lacks a dependency", "import no_such_thing", "No module named 'no_such_thing'. Install what it needs: pip"),
    Fault("raises in a hook", plugin("Teacher", ("return [Mine]", "1 / 0")), "register_teachers failed: ZeroDivision"),
    Fault(
        "leaves in a hook", plugin("Teacher", ("return [Mine]", "raise SystemExit")), "register_teachers failed: Sys"
    ),
    Fault("hook of another type", plugin("Teacher", ("[Mine]", "Mine")), "expected a list of classes"),
    Fault("offers no teacher", plugin("Teacher", ("[Mine]", "[dict]")), "offers the class dict"),
    Fault(
        "misspelt hook", plugin("Teacher", ("register_teachers", "register_techers")), "Did you mean 'register_teach"
    ),
    Fault("unmarked hook", plugin("Teacher", ("@hookimpl", "")), "Write @hookimpl above it"),
    Fault(
        "misspelt and unmarked",
        plugin("Teacher", ("@hookimpl\ndef register_teachers", "def register_teacher")),
        "register_teacher is not a hook. Did you mean 'register_teachers'?",
    ),
    Fault("offers a name twice", plugin("Teacher", ("[Mine]", "[Mine, Mine]")), "it offers the teacher 'mine' twice"),
    Fault(
        "shadows a built-in",
        plugin("Teacher", ('"mine"', '"checkpoint"')),
        "it offers the teacher 'checkpoint', which is a built-in's name",
    ),
    Fault(
        "is of a newer API", "distillkit_api = 99\n" + plugin("Teacher"), "built for plugin API 99, and this distill"
    ),
    Fault("says no number", "distillkit_api = 'x'\n" + plugin("Teacher"), "it has distillkit_api = 'x'"),
    Fault(
        "is of a newer distillkit",
        "raise ImportError",
        "it needs distillkit>=99, and this is distillkit 0",
        needs="Requires-Dist: distillkit>=99\n",
    ),
    Fault(
        "raises in its constructor",
        plugin("Teacher", ("    def answer", "    def __init__(self, options):\n        1 / 0\n    def answer")),
        "the teacher 'mine' could not be built: ZeroDivisionError",
        loads=True,
    ),
    Fault(
        "leaves in its constructor",
        plugin("Teacher", ("    def answer", "    def __init__(self, options):\n        exit(0)\n    def answer")),
        "the teacher 'mine' could not be built: SystemExit",
        loads=True,
    ),
    Fault(
        "raises in its identity",
        plugin("Teacher", ("    def answer", "    def identity(self):\n        1 / 0\n    def answer")),
        "failed: ZeroDivisionError",
        exit_code=1,
        loads=True,
    ),
    Fault("raises in an answer", method("Teacher", "1 / 0"), "'mine' failed: ZeroDivision", exit_code=1, loads=True),
    Fault("leaves in an answer", method("Teacher", "exit(0)"), "'mine' failed: SystemExit: 0", exit_code=1, loads=True),
    Fault(
        "answers by nothing",
        method("Teacher", "return 3"),
        "'mine' returned a int instead of an Answer",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "hangs in an answer",
        method("Teacher", "while True:\n    pass"),
        "no answer within 0.3 s\n  Raise teacher.timeout",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "sleeps in an answer",
        method("Teacher", "import time\ntime.sleep(30)"),
        "no answer within 0.3 s",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "raises, awaited",
        method("Teacher", "1 / 0").replace(*AWAITED),
        "'mine' failed: ZeroDivisionError",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "leaves, awaited",
        method("Teacher", "exit(0)").replace(*AWAITED),
        "the plugin called exit()",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "hangs, awaited",
        method("Teacher", "import asyncio\nawait asyncio.sleep(30)").replace(*AWAITED),
        "no answer within 0.3 s",
        exit_code=1,
        loads=True,
    ),
    Fault(
        "hangs when it is closed",
        plugin("Teacher", AWAITED, ("class Mine", "import asyncio\nclass Mine"))
        + "\nasync def close(self):\n    await asyncio.sleep(30)\nMine.close = close\n",
        "the teacher 'mine' failed to close: TimeoutError",
        exit_code=1,
        loads=True,
    ),
    Fault("raises in a loss", method("Mixer", "1 / 0"), "in the stage train: ZeroDivision", "Mixer", 1, True),
    Fault("leaves in a loss", method("Mixer", "exit(0)"), "in the stage train: SystemExit", "Mixer", 1, True),
    Fault("gives no losses", method("Mixer", "return 3"), "'mine' did not return one loss per row", "Mixer", 1, True),
    Fault("raises in grading", method("Judge", "1 / 0"), "'mine' failed: ZeroDivisionError", "Judge", 1, True),
    Fault("leaves in grading", method("Judge", "exit(0)"), "'mine' failed: SystemExit", "Judge", 1, True),
    Fault(
        "gives no grades", method("Judge", "return [3]"), "'mine' returned a int instead of a Grade", "Judge", 1, True
    ),
    Fault("raises in reading", method("Source", "1 / 0"), "failed: ZeroDivisionError", "Source", 1, True),
    Fault("gives no documents", method("Source", "return iter(['x'])"), "gave a str instead of a", "Source", 2, True),
    Fault("builds no network", plugin("Student"), "'mine' built a NoneType", "Student", 1, True),
    Fault(
        "raises in building", plugin("Student", ("return None", "1 / 0")), "failed: ZeroDivision", "Student", 1, True
    ),
    Fault("raises at the start", method("Tracker", "1 / 0"), "in the stage train: ZeroDivision", "Tracker", 1, True),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def program(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[PROGRAM]:
    """The program, in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(discovery, "IMPORT_TIMEOUT", 2.0)
    monkeypatch.setattr("distillkit.plugins.manager._current", None)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["distillkit", *words])
        forget()
        capsys.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    forget()


def forget() -> None:
    """The next plugin of that name is another one."""
    for name in [name for name in sys.modules if name.startswith("distillkit_bad")]:
        del sys.modules[name]


def install(code: str, needs: str = "", name: str = "distillkit-bad", group: str = "distillkit") -> None:
    """What pip leaves behind."""
    module = name.replace("-", "_")
    info = Path("site") / f"{module}-0.3.dist-info"
    info.mkdir(parents=True)
    (Path("site") / f"{module}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n{needs}")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    importlib.invalidate_caches()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_plugin_at_fault_is_named_and_the_rest_works(program: PROGRAM, fault: Fault) -> None:
    install(fault.code, fault.needs)
    Path("faulty.toml").write_text(recipe(fault.role))

    code, out, _ = program("plugins", "--json")
    rows = {row.get("name"): row for row in json.loads(out)}
    assert code == 0
    assert rows["perplexity"]["status"] == rows["checkpoint"]["status"] == "ok"
    mine = next(row for row in rows.values() if row["distribution"] == "distillkit-bad")
    assert mine["status"] == ("ok" if fault.loads else "broken")
    assert fault.loads or fault.says in mine["reason"]

    code, _, err = program("run", "faulty.toml")
    assert code == fault.exit_code, err
    assert fault.says in err
    assert "mine" in err or "distillkit-bad" in err
    assert "Traceback" not in err
    assert "Traceback" in program("--debug", "run", "faulty.toml")[2]


def test_what_does_not_need_it_works(program: PROGRAM) -> None:
    install(FAULTS[0].code)
    Path("fine.toml").write_text(RECIPE)
    assert program("run", "fine.toml")[0] == 0


def test_a_tracker_that_fails_while_it_listens_is_named_and_the_run_goes_on(program: PROGRAM) -> None:
    install(
        plugin("Tracker", ("def log(self, step, values):\n        pass", "def log(self, step, values):\n        1 / 0"))
    )
    Path("faulty.toml").write_text(recipe("Tracker"))
    code, _, err = program("run", "faulty.toml")
    assert code == 0
    assert err.count("the tracker 'mine' failed at step 1: ZeroDivisionError") == 1
    assert "The run continues without it" in err


COMMAND = """
import click
from distillkit import hookimpl

@hookimpl
def register_commands(cli):
    @cli.command()
    @click.pass_context
    def leave(ctx):
        {how}
"""


@pytest.mark.parametrize(
    ("how", "code"), [("ctx.exit(3)", 3), ("raise SystemExit(3)", 3), ("ctx.exit()", 0), ("return 3", 0)]
)
def test_a_command_of_a_plugins_ends_the_program_as_it_says(
    program: PROGRAM, monkeypatch: pytest.MonkeyPatch, how: str, code: int
) -> None:
    monkeypatch.setattr(main.cli, "commands", dict(main.cli.commands))
    install(COMMAND.format(how=how), group=discovery.COMMANDS_GROUP)
    assert program("leave") == (code, "", "")


def test_two_plugins_that_share_a_name_are_both_named(program: PROGRAM) -> None:
    for name in ("distillkit-bad", "distillkit-badder"):
        install(plugin("Teacher"), name=name)
    Path("faulty.toml").write_text(recipe("Teacher"))
    assert "(offered twice: cannot be used)" in program("plugins")[1]
    code, _, err = program("run", "faulty.toml")
    assert code == 2
    assert "'mine' is offered by distillkit-bad (distillkit-bad 0.3) and distillkit-badder" in err


def test_what_a_plugin_prints_is_told_and_spoils_no_json(program: PROGRAM) -> None:
    install("print('hello from far away')\n" + method("Teacher", "print('x')\nreturn Answer('x')"))
    _, out, _ = program("plugins", "--json")
    mine = next(row for row in json.loads(out) if row["distribution"] == "distillkit-bad")
    assert mine["warnings"] == ["it prints while it is loaded: 'hello from far away'"]
    assert "  warning: it prints while it is loaded" in program("plugins")[1]
    spoken = plugin(
        "Teacher", ("    def answer", "    def identity(self):\n        print('I')\n        return 1\n    def answer")
    )
    Path("loud.py").write_text(spoken.replace('"mine"', '"loud"'))
    Path("faulty.toml").write_text(recipe("Teacher").replace('"mine"', '"loud"'))
    code, out, err = program("-p", "./loud.py", "plan", "faulty.toml", "--json")
    assert code == 0
    assert json.loads(out)["teacher"]
    assert "I\n" in err


def test_a_deprecated_hook_goes_on_working_and_says_what_to_write(
    program: PROGRAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register_losses() -> list[type]:
        """What mixers were once called."""
        return []

    old = hookspecs.deprecated("register_mixers")(register_losses)
    monkeypatch.setattr(hookspecs, "register_losses", old, raising=False)
    install(plugin("Mixer", ("register_mixers", "register_losses")))
    Path("faulty.toml").write_text(recipe("Mixer"))
    told = "register_losses is deprecated. Write register_mixers instead"
    assert f"  warning: {told}" in program("plugins")[1]
    code, _, err = program("recipe", "check", "faulty.toml")
    assert code == 0
    assert err.count(told) == 1
