"""Plugins: found, loaded, blamed, built. The plugins here are real files and real installed distributions."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distillkit.core.errors import PluginError, RecipeError, UsageError
from distillkit.core.records import Request
from distillkit.plugins.interfaces import ROLES
from distillkit.plugins.manager import Plugins, current_plugins, load_commands, set_current_plugins
from distillkit.recipe.recipe import load
from support.paths import ROOT

HELLO = '''
from distillkit import Answer, Request, Teacher, hookimpl

class Hello(Teacher):
    """Answers every prompt with the same words."""
    name = "hello"
    signal = "text"

    class Options(Teacher.Options):
        words: str = "and they all went home."

    def answer(self, request: Request) -> Answer:
        return Answer(text=self.options.words)

@hookimpl
def register_teachers():
    return [Hello]
'''

BASICS = """
from typing import ClassVar
from distillkit import Document, Exporter, Grade, Judge, Mixer, Optimizer, Source
from distillkit import Student, Teacher, Tracker, hookimpl

class Tales(Source):
    name = "tales"
    def documents(self, split):
        yield Document("1", "once")

class Text(Source):
    name = "text"
    class Options(Source.Options):
        paths: ClassVar[tuple[str, ...]] = ("files",)
        files: tuple[str, ...]
        depth: int = 1
    def documents(self, split):
        yield from ()

class Gpt(Student):
    name = "gpt"
    class Options(Student.Options):
        layers: int = 2
    context = 8
    def build(self, vocab_size):
        return None

class Hard(Mixer):
    name = "hard"
    def rows(self, logits, targets, step):
        return {}

class Soft(Hard):
    name = "soft"
    signal = "top_logprobs"

class Full(Hard):
    name = "full"
    signal = "logits"

class Perplexity(Judge):
    name = "perplexity"
    def grade(self, subject):
        return []

class Local(Teacher):
    name = "local"
    signal = "logits"
    def answer(self, request):
        raise NotImplementedError

class Some(Local):
    name = "some"
    signal = "top_logprobs"

class Lines(Tracker):
    name = "lines"
    def start(self, run):
        pass
    def log(self, step, values):
        pass
    def finish(self, report):
        pass

class Zip(Exporter):
    name = "zip"
    def export(self, run, folder):
        return []

class AdamW(Optimizer):
    name = "adamw"
    def initial_state(self, parameters):
        return {}
    def update(self, parameters, gradients, state, step):
        return parameters, {}

@hookimpl
def register_optimizers():
    return [AdamW]

@hookimpl
def register_sources():
    return [Tales, Text]

@hookimpl
def register_trackers():
    return [Lines]

@hookimpl
def register_exporters():
    return [Zip]

@hookimpl
def register_students():
    return [Gpt]

@hookimpl
def register_mixers():
    return [Hard, Soft, Full]

@hookimpl
def register_judges():
    return [Perplexity]

@hookimpl
def register_teachers():
    return [Local, Some]
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed distributions; other plugins of this environment are kept out."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("distillkit.plugins.manager._current", None)
    everything = importlib.metadata.distributions
    monkeypatch.setattr(
        "distillkit.plugins.discovery.metadata.distributions",
        lambda: (found for found in everything() if str(found.locate_file("")) == str(folder)),
    )
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def install(
    site: Path,
    name: str,
    code: str,
    *,
    version: str = "1.0",
    group: str = "distillkit",
    points: str | None = None,
) -> None:
    """What pip leaves behind: a module, its metadata, its entry points."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(textwrap.dedent(code))
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points or f"[{group}]\n{name} = {module}\n")
    importlib.invalidate_caches()


def named(code: str, name: str = "plug.py") -> str:
    path = Path(name)
    path.write_text(textwrap.dedent(code))
    return f"./{name}"


def recipe(text: str = "", *overrides: str, name: str = "my.toml"):
    Path(name).write_text(f'name = "x"\n{text}')
    return load(name, overrides)


# -------------------------------------------------------------------------------- loading


def test_a_file_named_on_the_command_line_is_a_plugin(site):
    before = list(sys.path)
    plugins = Plugins.load([named(HELLO)])
    teacher = plugins.build("teachers", "hello", {"words": "bye."})
    assert teacher.answer(Request("1", prompt="x")).text == "bye."
    assert sys.path == before
    assert "plug" not in sys.modules


def test_a_module_named_on_the_command_line_is_a_plugin(site):
    (site / "greeter.py").write_text(HELLO)
    plugins = Plugins.load(["greeter", "greeter"])
    assert plugins.find("teachers", "hello").__module__ == "greeter"


def test_the_plugins_of_the_process_are_those_loaded_last_or_else_all_installed(site):
    install(site, "distillkit-hello", HELLO)
    assert current_plugins().find("teachers", "hello")
    plugins = Plugins.load()
    with pytest.raises(PluginError):
        Plugins.load(["./gone.py"])
    assert current_plugins() is plugins
    set_current_plugins(Plugins())
    assert current_plugins() is not plugins


def test_a_file_that_merely_lies_there_is_never_run(site):
    named("raise SystemExit(9)", "sitting.py")
    assert Plugins.load().registrations == []


def test_installed_entry_points_are_loaded(site):
    install(site, "distillkit-hello", HELLO, version="0.3")
    (offer,) = Plugins.load().registrations
    assert (offer.role, offer.name) == ("teachers", "hello")
    assert str(offer.origin) == "distillkit-hello (distillkit-hello 0.3)"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import no_such_thing",
            "it cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("raise SystemExit(3)", "it cannot be imported: SystemExit: 3"),
        ("def f(:", "it cannot be imported: SyntaxError"),
        ("x = 1", "it implements no hook"),
        (HELLO.replace("register_teachers", "register_teacher"), "an unknown hook 'register_teacher'"),
        (HELLO.replace("register_teachers", "register_teacher"), "Did you mean 'register_teachers'?"),
        (
            HELLO.replace("@hookimpl", ""),
            "register_teachers is not marked as a hook. Write @hookimpl above it",
        ),
        (HELLO.replace("teachers()", "teachers(config)"), "it cannot be registered: PluginValidationError"),
        (HELLO.replace("return [Hello]", "return 1 / 0"), "register_teachers failed: ZeroDivisionError"),
        (HELLO.replace("return [Hello]", "raise SystemExit"), "register_teachers failed: SystemExit"),
        (HELLO.replace("[Hello]", "Hello"), "returned the class Hello, expected a list of classes"),
        (
            HELLO.replace("[Hello]", "[Hello()]"),
            "offers a value of type Hello, expected a subclass of Teacher",
        ),
        (HELLO.replace("[Hello]", "[dict]"), "offers the class dict, expected a subclass of Teacher"),
        (HELLO.replace("def answer", "def anwser"), "the teacher Hello lacks answer"),
        (HELLO.replace('name = "hello"', ""), 'the teacher Hello has no name. Write name = "..." in it'),
        (HELLO.replace('name = "hello"', "name = 3"), "the teacher Hello has no name"),
        (HELLO.replace('"hello"', '"none"'), "which recipes use to say that there is no teacher"),
        (HELLO.replace('"text"', '"txt"'), "signal = 'txt', expected one of text, top_logprobs, logits"),
        (HELLO.replace("Options(Teacher.Options)", "Options"), "not a subclass of Teacher.Options"),
        (
            HELLO.replace("words: str", "max_tokens: str"),
            "has an option 'max_tokens', which is a key of the host",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_reason_and_the_others_work(site, code, reason):
    install(site, "distillkit-bad", code)
    install(site, "distillkit-good", BASICS)
    plugins = Plugins.load()
    (broken,) = plugins.broken
    assert reason in broken.reason
    assert (broken.name, broken.distribution, broken.version) == ("distillkit-bad", "distillkit-bad", "1.0")
    assert {offer.origin.plugin for offer in plugins.registrations} == {"distillkit-good"}
    with pytest.raises(PluginError, match="distillkit-bad") as caught:
        plugins.find("teachers", "hello")
    assert reason in str(caught.value)
    with pytest.raises(PluginError, match=r"the plugin ./plug.py cannot be used"):
        Plugins.load([named(code)])


def test_two_bad_and_one_good_entry_of_one_distribution_are_told_apart(site):
    (site / "good_one.py").write_text(HELLO)
    install(site, "many", "raise OSError('no')", points="[distillkit]\na = many\nb = gone:x\nc = good_one\n")
    plugins = Plugins.load()
    assert [broken.name for broken in plugins.broken] == ["a", "b"]
    assert plugins.find("teachers", "hello")


def test_an_unreadable_list_of_entry_points_does_not_stop_the_others(site):
    install(site, "garbled", "", points="[distillkit]\nthis is no entry\n")
    install(site, "distillkit-hello", HELLO)
    plugins = Plugins.load()
    assert plugins.find("teachers", "hello")
    assert [broken.name for broken in plugins.broken] == ["garbled"]


@pytest.mark.parametrize("spec", ["./gone.py", "no.such.module", ".", "/", "", "..", "x\0y", "./folder.py"])
def test_what_is_named_and_is_no_plugin_is_an_error_at_once(site, spec):
    Path("folder.py").mkdir()
    with pytest.raises(PluginError, match="cannot be used"):
        Plugins.load([spec])


# -------------------------------------------------------------------------------- finding


def test_every_role_can_be_offered(plugins):
    offered = {"sources": "tales", "students": "gpt", "teachers": "local", "mixers": "hard"}
    offered |= {"judges": "perplexity", "trackers": "lines", "exporters": "zip", "optimizers": "adamw"}
    assert set(offered) == set(ROLES)
    for role, name in offered.items():
        assert isinstance(plugins.build(role, name, {}), ROLES[role])


def test_an_unknown_name_hints_at_the_nearest(site):
    with pytest.raises(PluginError, match=r"no plugin offers the teacher 'helo'\n  Did you mean 'hello'\?"):
        Plugins.load([named(HELLO)]).find("teachers", "helo")


def test_two_plugins_with_one_name_are_both_named_and_the_rest_works(site):
    install(site, "distillkit-a", HELLO)
    install(site, "distillkit-basics", BASICS)
    plugins = Plugins.load([named(HELLO)])
    with pytest.raises(PluginError, match=r"'hello' is offered by distillkit-a .* and ./plug.py"):
        plugins.find("teachers", "hello")
    assert plugins.find("teachers", "local")
    assert [row["status"] for row in plugins.describe() if row["name"] == "hello"] == ["clash", "clash"]


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("distillkit-hello>=0.4", "0.3 is installed\n  Install it: pip install 'distillkit-hello>=0.4'"),
        ("distillkit-gone", "which is not installed\n  Install it: pip install 'distillkit-gone'"),
        ("a b", "plugins: found 'a b', expected a requirement"),
        ("Distillkit_Bad", "is broken: it cannot be imported: ValueError: nope"),
    ],
)
def test_what_a_recipe_requires_is_checked(site, requirement, message):
    install(site, "distillkit-hello", HELLO, version="0.3")
    install(site, "distillkit-bad", "raise ValueError('nope')")
    Plugins.load(requirements=["distillkit-hello>=0.2", 'distillkit-gone; python_version < "3"'])
    with pytest.raises(PluginError) as caught:
        Plugins.load(requirements=[requirement])
    assert message in str(caught.value)


# -------------------------------------------------------------------------------- options


@pytest.fixture
def plugins(site):
    install(site, "basics", BASICS)
    return Plugins.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[student]\nlayer = 3", "my.toml: unknown key student.layer\n  Did you mean 'layers'?"),
        ("[student]\nform = 'x'", "my.toml: unknown key student.form\n  Did you mean 'from'?"),
        ('[student]\nlayers = "3"', 'my.toml: student.layers: found "3", expected a whole number'),
        ("[student]\nlayers = 3.0", "my.toml: student.layers: found 3.0, expected a whole number"),
        ("[student]\nlayers = true", "my.toml: student.layers: found true, expected a whole number"),
        (
            "[data]\nsource = 'text'",
            "my.toml: data.files: found nothing, expected a list, each text in quotes",
        ),
        (
            "[student]\narch = 'gtp'",
            "my.toml: student.arch: no plugin offers the student 'gtp'\n  Did you mean 'gpt'?",
        ),
        ("[[judge]]\nname = 'perplexity'\nn = 1", "my.toml: unknown key judge.0.n"),
        (
            "[[judge]]\nname = 'perplexity'\nteacher = {provider = 'x'}",
            "my.toml: judge.0.teacher.provider: no plugin",
        ),
        ("[[tracker]]\nname = 'x'", "my.toml: tracker.0.name: no plugin offers the tracker 'x'"),
        (
            "[sampling]\nprompts = 'gone.txt'",
            "sampling.prompts: found 'gone.txt', expected a file that exists",
        ),
        ("[mixer]\nname = 'full'", "my.toml: the mixer 'full' needs logits; there is no teacher"),
        ("[mixer]\nname = 'full'", "Mixers that work with none: hard."),
        (
            "mixer = {name = 'full'}\nteacher = {provider = 'some'}",
            "the teacher 'some' gives top_logprobs\n  Mixers that work with top_logprobs: hard, soft.",
        ),
        (
            "mixer = {name = 'soft'}\nteacher = {provider = 'local', signal = 'text'}",
            "the teacher 'local' gives text, narrowed from logits by teacher.signal",
        ),
        ("teacher = {provider = 'some', signal = 'logits'}", "the teacher 'some' gives top_logprobs"),
        (
            "mixer = {name = 'soft'}\nteacher = {provider = 'some'}",
            "teacher.top_logprobs: found 0, expected at least 1",
        ),
    ],
)
def test_a_recipe_is_refused_before_anything_is_spent(plugins, text, message):
    with pytest.raises(UsageError) as caught:
        plugins.check(recipe(text))
    assert message in str(caught.value)


def test_faults_of_several_tables_are_told_at_once(plugins):
    with pytest.raises(RecipeError) as caught:
        plugins.check(recipe("[student]\nlayer = 1\n[mixer]\nname = 'sotf'\n[data]\nsource = 'text'\nfiles = 3"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "unknown key student.layer" in lines[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mixer = {name = 'full'}\nteacher = {provider = 'local'}",
        "mixer = {name = 'soft'}\nteacher = {provider = 'some', top_logprobs = 5, prompts = 1}",
        "mixer = {name = 'soft'}\nteacher = {provider = 'local', store = true}",
        "mixer = {name = 'hard'}\nteacher = {provider = 'local', signal = 'text'}",
        "teacher = {provider = 'none'}",
    ],
)
def test_a_recipe_that_can_be_done_is_let_through(plugins, text):
    made = recipe(text)
    assert plugins.check(made) == made


def test_files_of_a_plugin_start_from_the_recipe_that_names_them(plugins, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    recipe("[data]\nsource = 'text'\nfiles = ['a.txt', '*.txt']", name="folder/base.toml")
    Path("my.toml").write_text('extends = "folder/base.toml"')
    checked = plugins.check(load("my.toml"))
    files = [str(folder / "a.txt"), str(folder / "*.txt")]
    assert checked.data.options["files"] == files
    with pytest.raises(RecipeError, match=r"data\.files: found 'gone\.txt', expected a file that exists"):
        plugins.check(load("my.toml", ['data.files=["gone.txt"]']))
    built = plugins.build("sources", "text", {"files": ["a.txt"]}, folder=folder)
    assert built.options.files == (files[0],)


def test_a_fault_in_an_option_is_blamed_on_whoever_said_it(plugins):
    recipe("[student]\nlayers = 'x'", name="base.toml")
    Path("my.toml").write_text('extends = "base.toml"')
    with pytest.raises(RecipeError, match=r"^base\.toml: student\.layers"):
        plugins.check(load("my.toml"))
    with pytest.raises(RecipeError, match=r"^--set: student\.layers"):
        plugins.check(load("my.toml", ["student.layers=y"]))


def test_a_plugin_that_cannot_be_built_is_blamed(site):
    code = HELLO.replace(
        "    def answer", "    def __init__(self, options):\n        raise OSError('no')\n    def answer"
    )
    with pytest.raises(PluginError, match="the teacher 'hello' could not be built: OSError: no"):
        Plugins.load([named(code)]).build("teachers", "hello", {})


# -------------------------------------------------------------------------------- showing


def test_plugins_describe_themselves_as_json(site):
    install(site, "distillkit-hello", HELLO)
    install(site, "distillkit-bad", "1 / 0")
    rows = json.loads(json.dumps(Plugins.load().describe()))
    assert rows[0] == {
        "status": "ok",
        "role": "teacher",
        "name": "hello",
        "plugin": "distillkit-hello",
        "distribution": "distillkit-hello",
        "version": "1.0",
        "about": "Answers every prompt with the same words.",
        "signal": "text",
        "warnings": [],
        "options": [
            {
                "name": "words",
                "type": "str",
                "default": "and they all went home.",
                "required": False,
                "about": "",
            }
        ],
    }
    assert (rows[1]["status"], rows[1]["plugin"]) == ("broken", "distillkit-bad")


def test_the_versions_of_the_plugins_that_took_part_are_known(site):
    install(site, "basics", BASICS, version="2.1")
    install(site, "unused", HELLO.replace('"hello"', '"other"'))
    plugins = Plugins.load([named(HELLO)])
    file, basics = sorted(plugins.versions(recipe("teacher = {provider = 'hello'}")), key=lambda row: row["name"])
    assert basics == {"name": "basics", "version": "2.1"}
    assert file["name"] == "./plug.py"
    assert file["version"].startswith("sha256:")


def test_the_schema_knows_the_options_of_the_loaded_plugins(plugins):
    schema = plugins.schema()
    json.dumps(schema)
    student = schema["$defs"]["StudentTable"]
    assert student["properties"]["arch"]["enum"] == ["gpt"]
    assert student["allOf"][0]["then"]["properties"]["layers"]["type"] == "integer"
    assert student["additionalProperties"] is False
    assert "none" in schema["$defs"]["TeacherTable"]["properties"]["provider"]["enum"]


@pytest.mark.peer
def test_the_schema_is_valid_and_refuses_what_the_recipe_refuses(plugins, peer):
    jsonschema = peer("jsonschema")
    schema = plugins.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid({"name": "x", "student": {"arch": "gpt", "layers": 3}, "judge": [{"name": "perplexity"}]})
    assert valid({"extends": "x", "teacher": {"prompts": 3}})
    assert not valid({})
    assert not valid({"name": "x", "stpes": 1})
    assert not valid({"name": "x", "student": {"arch": "gpt", "layers": "3"}})
    assert not valid({"name": "x", "student": {"layer": 3}})
    assert not valid({"name": "x", "data": {"source": "tales", "files": ["a"]}})


# -------------------------------------------------------------------------------- commands

COMMAND = """
    import click
    from distillkit import hookimpl

    @hookimpl
    def register_commands(cli):
        @cli.command("{name}")
        def command():
            pass
        {more}
"""


def test_plugins_may_add_commands_but_replace_none(site):
    import click

    cli = click.Group()
    cli.add_command(click.Command("run"))
    mine = cli.commands["run"]
    for name, command, more in (("a", "dance", ""), ("b", "run", ""), ("c", "half", "1 / 0")):
        code = COMMAND.format(name=command, more=more)
        install(site, f"cmd-{name}", code, group="distillkit.commands")
    broken = load_commands(cli)
    assert sorted(cli.commands) == ["dance", "run"]
    assert cli.commands["run"] is mine
    reasons = {fault.name: fault.reason for fault in broken}
    assert "replaces the existing command 'run'" in reasons["cmd-b"]
    assert "ZeroDivisionError" in reasons["cmd-c"]
    assert Plugins.load().registrations == []


def test_distributions_on_the_path_of_a_fresh_process_are_found(tmp_path):
    install(tmp_path, "distillkit-hello", HELLO)
    code = "from distillkit.plugins.manager import Plugins; print(Plugins.load().find('teachers', 'hello').__module__)"
    root = ROOT
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{tmp_path}"},
        check=True,
    )
    assert ran.stdout.strip() == "distillkit_hello"
