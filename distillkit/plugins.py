"""Find, load, blame, build.

Plugins are loaded and called one at a time, so that a failing one is named and the others go on. Knows the
roles and their contracts; does not know any plugin by name, nor what a plugin does once it is built.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy
from pydantic import BaseModel, ValidationError

from . import hookspecs
from .errors import DistillkitError, PluginError, RecipeError, UsageError, did_you_mean
from .recipe import TABLES, Loc, Recipe, explain, host_keys, locate, plugin_key, refusal
from .roles import ROLES, SIGNALS, Role, gives

if TYPE_CHECKING:
    import click
    from pydantic.fields import FieldInfo

GROUP = "distillkit"
COMMANDS = "distillkit.commands"
NO_TEACHER = "none"  # what a recipe says to drop the teacher of the one that it extends


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: an entry point of a distribution, or what `-p` named."""

    plugin: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.distribution is None:
            return self.plugin
        return f"{self.plugin} ({' '.join(filter(None, [self.distribution, self.version]))})"


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be used, and why."""

    name: str
    reason: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"{Origin(self.name, self.distribution, self.version)} is broken: {self.reason}"


@dataclass(frozen=True)
class Offer:
    """A class that a plugin offers for a role."""

    role: str
    offered: type[Role]
    origin: Origin

    @property
    def name(self) -> str:
        """The name that recipes use."""
        return self.offered.name


class _FaultError(Exception):
    """What is wrong with a plugin, in words that go after its name. Never leaves this module."""


class Plugins:
    """The plugins of this process: what they offer, and which are broken."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.offers: list[Offer] = []
        self.broken: list[Broken] = []

    @classmethod
    def load(cls, extra: Sequence[str] = (), requirements: Sequence[str] = ()) -> Plugins:
        """All installed plugins, those that `-p` names, and a check of what the recipe requires."""
        plugins = cls()
        for origin, entry in _entries(GROUP, plugins.broken):
            try:
                plugins._add(origin, entry)
            except _FaultError as fault:
                plugins.broken.append(Broken(origin.plugin, str(fault), origin.distribution, origin.version))
        for spec in dict.fromkeys(extra):
            plugins._add_named(spec)
        for requirement in requirements:
            plugins._require(requirement)
        use(plugins)
        return plugins

    # ------------------------------------------------------------------------------------------ loading

    def _add_named(self, spec: str) -> None:
        """What the user asked for by name must work, so its fault is an error at once."""
        try:
            with _blamed("it cannot be imported"):
                is_file = spec.endswith(".py") or "/" in spec
                plugin = _import_file(Path(spec)) if is_file else importlib.import_module(spec)
            if self._manager.is_registered(plugin):
                return
            version = _version_of_file(Path(spec)) if is_file else getattr(plugin, "__version__", None)
            self._add(Origin(spec, version=version and str(version)), plugin)
        except _FaultError as fault:
            raise PluginError(f"the plugin {spec} cannot be used: {fault}") from fault

    def _add(self, origin: Origin, plugin: Any) -> None:
        """Import, register, ask, check; a plugin at fault leaves nothing behind."""
        if isinstance(plugin, metadata.EntryPoint):
            with _blamed("it cannot be imported"):
                plugin = plugin.load()
        with self._registered(origin, plugin):
            self.offers += list(self._offers_of(origin, plugin))

    @contextmanager
    def _registered(self, origin: Origin, plugin: Any) -> Iterator[None]:
        """Register a plugin; it stays unless it turns out to be at fault."""
        if self._manager.is_registered(plugin):
            raise _FaultError("another plugin is the same module")
        try:
            with _blamed("it cannot be registered"):
                self._manager.register(plugin, f"{origin.distribution}:{origin.plugin}")
                self._check_hooks(plugin)
            yield
        except _FaultError:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise

    def _check_hooks(self, plugin: Any) -> None:
        """Refuse a hook that nobody will ever call: misspelt, or without its decorator."""
        known = [name for name in vars(hookspecs) if name.startswith("register_")]
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            marked = {hook.name for hook in self._manager.get_hookcallers(plugin) or ()}
            strange = min(marked - set(known), default="?")
            raise _FaultError(
                f"it has an unknown hook {strange!r}. {did_you_mean(strange, known)}"
            ) from error
        functions = [impl.function for impl in self._implementations(plugin)]
        bare = [name for name in known if hasattr(plugin, name) and getattr(plugin, name) not in functions]
        if bare:
            raise _FaultError(f"its {bare[0]} is not marked as a hook. Write @hookimpl above it")
        if not functions:
            raise _FaultError(f"it implements no hook. Known: {', '.join(known)}")

    def _implementations(self, plugin: Any) -> list[pluggy.HookImpl]:
        hooks = self._manager.get_hookcallers(plugin) or ()
        return [impl for hook in hooks for impl in hook.get_hookimpls() if impl.plugin is plugin]

    def _offers_of(self, origin: Origin, plugin: Any) -> Iterator[Offer]:
        """Ask one plugin for its classes, and check each."""
        for hook in self._manager.get_hookcallers(plugin) or ():
            role = hook.name.removeprefix("register_")
            if role not in ROLES:
                continue
            for impl in (impl for impl in hook.get_hookimpls() if impl.plugin is plugin):
                with _blamed(f"{hook.name} failed"):
                    classes = impl.function()
                    if not isinstance(classes, list | tuple):
                        raise _FaultError(
                            f"{hook.name} returned {_kind(classes)}, expected a list of classes"
                        )
                    for offered in classes:
                        _check_class(role, offered, hook.name)
                        yield Offer(role, offered, origin)

    def _require(self, text: str) -> None:
        """Check one requirement of a recipe: installed, new enough, and not broken."""
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name
        from packaging.version import InvalidVersion

        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            example = 'Write it as plugins = ["distillkit-x>=0.2"]'
            raise PluginError(f"plugins: found {text!r}, expected a requirement", example) from error
        if wanted.marker is not None and not wanted.marker.evaluate():
            return
        hint = f"Install it: pip install '{wanted}'"
        try:
            version = metadata.version(wanted.name)
            fits = wanted.specifier.contains(version, prereleases=True)
        except metadata.PackageNotFoundError as error:
            raise PluginError(f"the recipe needs {wanted}, which is not installed", hint) from error
        except (InvalidVersion, TypeError) as error:
            raise PluginError(f"the recipe needs {wanted}; what is installed has no version", hint) from error
        if not fits:
            raise PluginError(f"the recipe needs {wanted}; {version} is installed", hint)
        for broken in self.broken:
            if broken.distribution and canonicalize_name(broken.distribution) == canonicalize_name(
                wanted.name
            ):
                raise PluginError(f"the recipe needs {wanted}; {broken}")

    # ------------------------------------------------------------------------------------------ finding

    def find(self, role: str, name: str) -> type[Role]:
        """The one class that is offered for a role under a name."""
        return self._offer(role, name).offered

    def _offer(self, role: str, name: str) -> Offer:
        found = [offer for offer in self.offers if (offer.role, offer.name) == (role, name)]
        if len(found) == 1:
            return found[0]
        noun = role.removesuffix("s")
        if found:
            both = " and ".join(str(offer.origin) for offer in found)
            raise PluginError(
                f"the {noun} {name!r} is offered by {both}", "Uninstall or leave out one of them."
            )
        near = did_you_mean(name, {offer.name for offer in self.offers if offer.role == role})
        hints = [near, *(f"The plugin {broken}" for broken in self.broken)]
        raise PluginError(f"no plugin offers the {noun} {name!r}", "\n  ".join(hints))

    def options(
        self,
        role: str,
        name: str,
        options: Mapping[str, Any],
        *,
        file: str | Callable[[Loc], str],
        table: str | Loc,
        folder: Path,
    ) -> BaseModel:
        """The validated options of a plugin, with the files that they name made absolute."""
        model = self.find(role, name).Options
        known = host_keys(role) | _keys(model)
        text = json.dumps(_located(model, options, folder), default=str)
        try:
            # Strict JSON: "3" is not a number, yet lists may become tuples and text may become paths.
            return model.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise explain(error, file, table, known, model=model) from error
        except Exception as error:  # noqa: BLE001 - a validator is the plugin's code and may raise anything
            _failed(f"the {role.removesuffix('s')} {name!r} could not read its options", error)

    def build(
        self,
        role: str,
        name: str,
        options: Mapping[str, Any],
        *,
        file: str = "the recipe",
        table: str | Loc = (),
        folder: Path | None = None,
    ) -> Role:
        """A plugin with its options, ready to work."""
        valid = self.options(role, name, options, file=file, table=table, folder=folder or Path())
        try:
            return self.find(role, name)(valid)
        except DistillkitError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            _failed(f"the {role.removesuffix('s')} {name!r} could not be built", error)

    # ------------------------------------------------------------------------------------------ checking

    def check(self, recipe: Recipe) -> Recipe:
        """Refuse what can be known to fail before anything is spent. Builds nothing.

        Returns the recipe with the files that its plugins name made absolute, so that it means the same from
        the run's folder.
        """
        faults: list[UsageError] = []
        settled: dict[Loc, Any] = {}
        for part in recipe.parts():
            try:
                settled |= self._check_part(recipe, part.loc, part.role, part.name, part.options)
            except UsageError as fault:
                faults.append(fault)
        faults += _missing_files(recipe)
        if not faults:
            faults += self._signal_faults(recipe)
        if len(faults) == 1:
            raise faults[0]
        if faults:
            raise refusal([(fault.message, fault.hint) for fault in faults])
        return recipe.replacing(settled) if settled else recipe

    def _check_part(
        self, recipe: Recipe, loc: Loc, role: str, name: str, options: dict[str, Any]
    ) -> dict[Loc, Any]:
        """Check one table; returns those of its options that name files, by where they stand."""
        key = (*loc, plugin_key(role))
        try:
            model = self.find(role, name).Options
        except PluginError as error:
            place = ".".join(map(str, key))
            file = recipe.said_by(key).file
            raise PluginError(f"{file}: {place}: {error.message}", error.hint) from error
        settled: dict[str, Any] = {}
        for option in options:
            folder = recipe.said_by((*loc, option)).folder
            settled |= _located(model, {option: options[option]}, folder)
        self.options(
            role,
            name,
            settled,
            file=lambda at: recipe.said_by(at).file,
            table=loc,
            folder=recipe.folder,
        )
        return {(*loc, option): value for option, value in settled.items() if value != options[option]}

    def _signal_faults(self, recipe: Recipe) -> Iterator[UsageError]:
        """A mixer that needs more than the teacher gives is refused."""
        teacher, name = recipe.teacher, recipe.mixer.name
        needed = _signal(self.find("mixers", name))
        most = given = _signal(self.find("teachers", teacher.provider)) if teacher else "none"
        if teacher and teacher.signal:
            if not gives(most, teacher.signal):
                wrong = (
                    f"teacher.signal: found {teacher.signal!r}; the teacher {teacher.provider!r} gives {most}"
                )
                yield RecipeError(f"{recipe.said_by(('teacher', 'signal')).file}: {wrong}")
                return
            given = teacher.signal
        if not gives(given, needed):
            has = f"the teacher {teacher.provider!r} gives {given}" if teacher else "there is no teacher"
            if given != most:
                has += f", narrowed from {most} by teacher.signal"
            mixers = sorted(
                {o.name for o in self.offers if o.role == "mixers" and gives(given, _signal(o.offered))}
            )
            hint = f"Mixers that would do: {', '.join(mixers)}." if mixers else ""
            file = recipe.said_by(("mixer", "name")).file
            yield RecipeError(f"{file}: the mixer {name!r} needs {needed}; {has}", hint)
        elif teacher and given == needed == "top_logprobs" and not teacher.top_logprobs:
            asks = f"teacher.top_logprobs: found 0, expected at least 1: the mixer {name!r} needs {needed}"
            yield RecipeError(f"{recipe.said_by(('teacher', 'top_logprobs')).file}: {asks}")

    # ------------------------------------------------------------------------------------------ showing

    def describe(self) -> list[dict[str, Any]]:
        """All offers (`status` "ok", or "clash" where two share a name), then the broken plugins."""
        names = [(offer.role, offer.name) for offer in self.offers]
        offers = [
            {
                "status": "ok" if names.count((offer.role, offer.name)) == 1 else "clash",
                "role": offer.role.removesuffix("s"),
                "name": offer.name,
                "plugin": offer.origin.plugin,
                "distribution": offer.origin.distribution,
                "version": offer.origin.version,
                "about": (offer.offered.__doc__ or "").strip().partition("\n")[0],
                "signal": _signal(offer.offered),
                "options": _described(offer.offered.Options),
            }
            for offer in sorted(self.offers, key=lambda o: (list(ROLES).index(o.role), o.name))
        ]
        broken: list[dict[str, Any]] = [
            {"status": "broken", "plugin": b.name, "reason": b.reason}
            | {"distribution": b.distribution, "version": b.version}
            for b in self.broken
        ]
        return offers + broken

    def versions(self, recipe: Recipe) -> list[dict[str, str | None]]:
        """The distributions (or files) of the plugins that a recipe names, and their versions."""
        origins = [self._offer(part.role, part.name).origin for part in recipe.parts()]
        pairs = dict.fromkeys((origin.distribution or origin.plugin, origin.version) for origin in origins)
        return [{"name": name, "version": version} for name, version in pairs]

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a recipe file, with the options of the loaded plugins.

        Nothing but the name is required, since a recipe that extends another leaves out what it inherits.
        """
        schema = Recipe.model_json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["properties"]["extends"] = {
            "type": "string",
            "description": "A path or a bundled recipe's name.",
        }
        del schema["required"]
        schema["anyOf"] = [{"required": ["name"]}, {"required": ["extends"]}]
        for role, table in TABLES.items():
            self._specialise(schema["$defs"], role, table.__name__)
        return schema

    def _specialise(self, defs: dict[str, Any], role: str, table: str) -> None:
        """Give a table a branch for each plugin: its own options, and no other's."""
        key, host = plugin_key(role), defs[table]
        branches: dict[str, dict[str, Any]] = {NO_TEACHER: {}} if role == "teachers" else {}
        for i, offer in enumerate(offer for offer in self.offers if offer.role == role):
            own = _schema_of(offer.offered.Options, f"{role}.{i}.")
            defs |= own.get("$defs", {})
            branches[offer.name] = own.get("properties", {})
        allowed = dict.fromkeys(host["properties"], True)
        host.pop("required", None)
        rules = [
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": {"properties": allowed | options, "additionalProperties": False},
            }
            for name, options in branches.items()
        ]
        if rules:  # an empty list of rules is no valid schema
            host["allOf"] = rules
        host["properties"][key] = {**host["properties"][key], "enum": list(branches)}
        anyones = {option: True for options in branches.values() for option in options}
        host["properties"] = anyones | host["properties"]
        host["additionalProperties"] = False


_current: Plugins | None = None


def use(plugins: Plugins) -> None:
    """Make these the plugins of the process: a teacher that loads a student finds its architecture here."""
    global _current
    _current = plugins


def current() -> Plugins:
    """The plugins of the process: those loaded last, or else all that are installed."""
    return _current or Plugins.load()


def load_commands(cli: click.Group) -> list[Broken]:
    """Let the plugins of the group `distillkit.commands` add theirs; returns those that could not."""
    plugins = Plugins()
    for origin, entry in _entries(COMMANDS, plugins.broken):
        before = dict(cli.commands)
        try:
            with _blamed("it cannot be imported"):
                plugin = entry.load()
            with plugins._registered(origin, plugin), _blamed("register_commands failed"):
                for impl in plugins._implementations(plugin):
                    if "cli" in impl.argnames:
                        impl.function(cli)
                taken = [name for name, command in before.items() if cli.commands.get(name) is not command]
                if taken:
                    raise _FaultError(f"it replaces the command {taken[0]!r}, which is there already")
        except _FaultError as fault:
            cli.commands.clear()
            cli.commands.update(before)
            plugins.broken.append(Broken(origin.plugin, str(fault), origin.distribution, origin.version))
    return plugins.broken


def _entries(group: str, broken: list[Broken]) -> Iterator[tuple[Origin, metadata.EntryPoint]]:
    """The installed entry points of a group. A distribution whose list cannot be read counts as broken."""
    seen: set[str] = set()
    for found in metadata.distributions():
        text = found.read_text("entry_points.txt") or ""
        if group not in text:  # reading is cheap, parsing all of an environment is not
            continue
        name, version = str(found.metadata["Name"]), str(found.metadata["Version"])
        if name.lower() in seen:  # as Python does: the first on the path hides the others
            continue
        seen.add(name.lower())
        try:
            entries = [entry for entry in found.entry_points if entry.group == group]
        except Exception as error:  # noqa: BLE001 - one unreadable list must not stop the others
            broken.append(Broken(name, f"its entry points cannot be read: {_reason(error)}", name, version))
            continue
        for entry in entries:
            yield Origin(entry.name, name, version), entry


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Turn whatever a plugin does wrong into a fault: its code may raise anything, or leave the program."""
    try:
        yield
    except _FaultError:
        raise
    except (Exception, SystemExit) as error:
        raise _FaultError(f"{what}: {_reason(error)}") from error


def _failed(what: str, error: Exception) -> NoReturn:
    raise PluginError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import_file(path: Path) -> Any:
    """A file as a module under a private name; its folder is never put on the path."""
    if not path.is_file():
        raise _FaultError("there is no such file")
    name = f"_distillkit_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _FaultError("it is not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _version_of_file(path: Path) -> str:
    """A file has no version but its content."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _check_class(role: str, offered: Any, hook: str) -> None:
    """Hold a class against the contract of its role."""
    base, noun = ROLES[role], role.removesuffix("s")
    if not (isinstance(offered, type) and issubclass(offered, base)):
        raise _FaultError(f"{hook} offers {_kind(offered)}, expected a subclass of {base.__name__}")
    title = offered.__name__
    if missing := sorted(getattr(offered, "__abstractmethods__", ())):
        raise _FaultError(f"the {noun} {title} lacks {', '.join(missing)}")
    name = getattr(offered, "name", None)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise _FaultError(f'the {noun} {title} has no name. Write name = "..." in it')
    if role == "teachers" and name == NO_TEACHER:
        raise _FaultError(f"the teacher {title} is named {name!r}, which recipes use for no teacher at all")
    signals = SIGNALS[1:] if role == "teachers" else SIGNALS
    if role in ("teachers", "mixers") and _signal(offered) not in signals:
        raise _FaultError(
            f"the {noun} {name!r} has signal = {_signal(offered)!r}, expected one of {', '.join(signals)}"
        )
    if not (isinstance(offered.Options, type) and issubclass(offered.Options, base.Options)):
        raise _FaultError(f"the Options of the {noun} {name!r} are not a subclass of {base.__name__}.Options")
    if taken := sorted(_keys(offered.Options) & host_keys(role)):
        raise _FaultError(
            f"the {noun} {name!r} has an option {taken[0]!r}, which is the host's own key. Rename it"
        )


def _signal(offered: type[Role]) -> Any:
    return getattr(offered, "signal", None)


def _kind(value: Any) -> str:
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"a value of type {type(value).__name__}"
    )


def _keys(model: type[BaseModel]) -> frozenset[str]:
    """The keys that a recipe uses for a model's fields."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _located(model: type[BaseModel], options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options, with those that the plugin lists as `paths` made absolute where they exist."""

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        return locate(value, folder) if isinstance(value, str) and value else value

    paths: Iterable[str] = getattr(model, "paths", ())
    return {key: place(value) if key in paths else value for key, value in options.items()}


def _missing_files(recipe: Recipe) -> Iterator[RecipeError]:
    """The host's own files that are not there."""
    files: dict[Loc, str | None] = {("tokenizer", "ranks"): recipe.tokenizer.ranks}
    if recipe.sampling.prompts != "held_out":
        files["sampling", "prompts"] = recipe.sampling.prompts
    for loc, file in files.items():
        if file is not None and not Path(file).exists():
            place = ".".join(map(str, loc))
            yield RecipeError(
                f"{recipe.said_by(loc).file}: {place}: found {file!r}, expected a file that exists"
            )


def _schema_of(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """The schema of a plugin's options; its definitions get names of their own."""
    try:
        schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception:  # noqa: BLE001 - types without a schema: name the options, say nothing of their values
        return {"properties": dict.fromkeys(sorted(_keys(model)), True)}
    schema["$defs"] = {prefix + name: inner for name, inner in schema.get("$defs", {}).items()}
    return schema


def _default_of(field: FieldInfo) -> Any:
    """A default as plain JSON; None where there is none, or where it depends on the recipe."""
    try:
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        return json.loads(json.dumps(value, default=str))
    except Exception:  # noqa: BLE001 - a factory is the plugin's code
        return None


def _described(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The options of a plugin, for people and machines."""
    rows = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        typed = kind.__name__ if isinstance(kind, type) else re.sub(r"\b\w+(\.\w+)*\.", "", str(kind))
        rows.append(
            {
                "name": field.alias or name,
                "type": typed,
                "default": _default_of(field),
                "required": field.is_required(),
                "about": field.description or "",
            }
        )
    return rows
