"""Find, load, blame, build: the front of four files.

`installed` imports plugins, `contracts` holds their classes against the roles, `options` reads what recipes
say to them, `blame` says what is wrong. Plugins are loaded and called one at a time, so that a failing one is
named and the others go on. Does not know any plugin by name, nor what a plugin does once it is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy
from pydantic import BaseModel, ValidationError

from ..core.errors import DistillkitError, PluginError, RecipeError, UsageError, did_you_mean
from ..recipe.messages import Loc, dotted, explain, quoted, refusal
from ..recipe.recipe import Part, Recipe
from ..recipe.schema import host_keys, keys_of, plugin_key
from . import hookspecs, options
from .discovery import COMMANDS, GROUP, Broken, FaultError, Origin, blamed, entries, imported, named, reason, require
from .interfaces import ROLES, Role
from .validation import Offer, check_api, kind, signal_faults

if TYPE_CHECKING:
    import click

__all__ = ["Broken", "Offer", "Origin", "Plugins", "current", "load_commands", "use"]


def hooks() -> list[str]:
    """The names of all hooks."""
    return [name for name in vars(hookspecs) if name.startswith("register_")]


def _current_name(hook: str) -> str:
    """The name of a hook, or that of the hook which it was replaced by."""
    return str(getattr(getattr(hookspecs, hook), "instead", hook))


class Plugins:
    """The plugins of this process: what they offer, and which are broken."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.offers: list[Offer] = []
        self.broken: list[Broken] = []
        self.notes: list[tuple[Origin, str]] = []  # what is wrong with plugins that can be used all the same

    @classmethod
    def load(cls, extra: Sequence[str] = (), requirements: Sequence[str] = ()) -> Plugins:
        """All installed plugins, those that `-p` names, and a check of what the recipe requires."""
        plugins = cls()
        found = sorted(entries(GROUP, plugins.broken), key=lambda pair: not pair[0].built_in)
        for origin, entry in found:  # ours first, so that nobody takes their names
            try:
                with plugins._noted(origin):
                    plugins._add(origin, imported(origin, entry))
            except FaultError as fault:
                plugins.broken.append(Broken.of(origin, fault))
        for spec in dict.fromkeys(extra):
            plugins._add_named(spec)
        for requirement in requirements:
            require(requirement, plugins.broken)
        use(plugins)
        return plugins

    # ------------------------------------------------------------------------------------------ loading

    def _add_named(self, spec: str) -> None:
        """What the user asked for by name must work, so its fault is an error at once."""
        try:
            with self._noted(Origin(spec)):
                origin, plugin = named(spec)
                if not self._manager.is_registered(plugin):
                    self._add(origin, plugin)
        except FaultError as fault:
            raise PluginError(f"the plugin {spec} cannot be used: {fault}") from fault

    def _add(self, origin: Origin, plugin: Any) -> None:
        """Register, ask, check; a plugin at fault leaves nothing behind."""
        check_api(plugin)
        with self._registered(origin, plugin):
            offers = list(self._offers_of(origin, plugin))
            self._check_names(offers)
            self.offers += offers

    @contextmanager
    def _noted(self, origin: Origin) -> Iterator[None]:
        """Keep what a plugin warns of, and what it prints: standard output belongs to the commands."""
        with warnings.catch_warnings(record=True) as warned, redirect_stdout(StringIO()) as said:
            warnings.simplefilter("always", hookspecs.DeprecatedHook)
            yield
        told = [str(one.message) for one in warned if one.category is hookspecs.DeprecatedHook]
        for one in warned:
            if one.category is not hookspecs.DeprecatedHook:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if printed := said.getvalue().strip():
            told.append(f"it prints while it is loaded: {printed.splitlines()[0][:80]!r}")
        self.notes += [(origin, text) for text in told]

    def _check_names(self, offers: Sequence[Offer]) -> None:
        """Refuse a plugin that offers a name twice, or one of ours: what recipes mean by it must not change."""
        ours = {(offer.role, offer.name) for offer in self.offers if offer.origin.built_in}
        names = [(offer.role, offer.name) for offer in offers]
        for role, name in names:
            title = f"the {role.removesuffix('s')} {quoted(name)}"
            if names.count((role, name)) > 1:
                raise FaultError(f"it offers {title} twice")
            if (role, name) in ours:
                raise FaultError(f"it offers {title}, which is a built-in's name. Rename it")

    @contextmanager
    def _registered(self, origin: Origin, plugin: Any) -> Iterator[None]:
        """Register a plugin; it stays unless it turns out to be at fault."""
        if self._manager.is_registered(plugin):
            raise FaultError("another plugin is the same module")
        try:
            with blamed("it cannot be registered"):
                self._manager.register(plugin, f"{origin.distribution}:{origin.plugin}")
                self._check_hooks(plugin)
            yield
        except FaultError:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise

    def _check_hooks(self, plugin: Any) -> None:
        """Refuse a hook that nobody will ever call: misspelt, or without its decorator."""
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            marked = {hook.name for hook in self._manager.get_hookcallers(plugin) or ()}
            strange = min(marked - set(hooks()), default="?")
            hint = did_you_mean(strange, hooks())
            raise FaultError(f"it has an unknown hook {strange!r}. {hint}") from error
        functions = [impl.function for impl in self._implementations(plugin)]
        bare = [name for name in hooks() if hasattr(plugin, name) and getattr(plugin, name) not in functions]
        if bare:
            raise FaultError(f"its {bare[0]} is not marked as a hook. Write @hookimpl above it")
        if not functions:
            almost = next((name for name in vars(plugin) if name.startswith("register_")), "")
            hint = did_you_mean(almost, hooks()) if almost else f"Known: {', '.join(hooks())}"
            raise FaultError(f"it implements no hook{f', and {almost} is none' if almost else ''}. {hint}")

    def _implementations(self, plugin: Any) -> list[pluggy.HookImpl]:
        hooks = self._manager.get_hookcallers(plugin) or ()
        return [impl for hook in hooks for impl in hook.get_hookimpls() if impl.plugin is plugin]

    def _offers_of(self, origin: Origin, plugin: Any) -> Iterator[Offer]:
        """Ask one plugin for its classes, and check each."""
        for hook in self._manager.get_hookcallers(plugin) or ():
            role = _current_name(hook.name).removeprefix("register_")
            if role not in ROLES:
                continue
            for impl in (impl for impl in hook.get_hookimpls() if impl.plugin is plugin):
                with blamed(f"{hook.name} failed"):
                    for offered in _classes(impl.function(), hook.name):
                        offer = Offer(role, offered, origin)
                        offer.check(hook.name)
                        yield offer

    # ------------------------------------------------------------------------------------------ finding

    def find(self, role: str, name: str) -> type[Role]:
        """The one class that is offered for a role under a name."""
        return self._offer(role, name).offered

    def _offer(self, role: str, name: str) -> Offer:
        found = [offer for offer in self.offers if (offer.role, offer.name) == (role, name)]
        if len(found) == 1:
            return found[0]
        title = f"the {role.removesuffix('s')} {quoted(name)}"
        if found:
            both = " and ".join(str(offer.origin) for offer in found)
            raise PluginError(f"{title} is offered by {both}", "Uninstall or leave out one of them.")
        near = did_you_mean(name, {offer.name for offer in self.offers if offer.role == role})
        hints = [near, *(f"The plugin {broken}" for broken in self.broken)]
        raise PluginError(f"no plugin offers {title}", "\n  ".join(hints))

    def options(
        self,
        role: str,
        name: str,
        values: Mapping[str, Any],
        *,
        file: str | Callable[[Loc], str],
        table: str | Loc,
        folder: Path,
    ) -> BaseModel:
        """The validated options of a plugin, with the files that they name made absolute."""
        model = self.find(role, name).Options
        try:
            return options.read(model, values, folder)
        except ValidationError as error:
            raise explain(error, file, table, host_keys(role) | keys_of(model), model=model) from error
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a validator is the plugin's code and may raise anything
            _failed(f"the {role.removesuffix('s')} {name!r} could not read its options", error)

    def build(
        self,
        role: str,
        name: str,
        values: Mapping[str, Any],
        *,
        file: str = "the recipe",
        table: str | Loc = (),
        folder: Path | None = None,
    ) -> Role:
        """A plugin with its options, ready to work."""
        valid = self.options(role, name, values, file=file, table=table, folder=folder or Path())
        try:
            return self.find(role, name)(valid)
        except DistillkitError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
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
                settled |= self._check_part(recipe, part)
            except UsageError as fault:
                faults.append(fault)
        faults += recipe.missing_files()
        if not faults:
            faults += self._signal_faults(recipe)
        if len(faults) == 1:
            raise faults[0]
        if faults:
            raise refusal([(fault.message, fault.hint) for fault in faults])
        return recipe.replacing(settled) if settled else recipe

    def _check_part(self, recipe: Recipe, part: Part) -> dict[Loc, Any]:
        """Check one table; returns those of its options that name files, by where they stand."""
        key = (*part.loc, plugin_key(part.role))
        try:
            model = self.find(part.role, part.name).Options
        except PluginError as error:
            file = recipe.said_by(key).file
            raise PluginError(f"{file}: {dotted(key)}: {error.message}", error.hint) from error
        settled: dict[str, Any] = {}
        for option, value in part.options.items():
            folder = recipe.said_by((*part.loc, option)).folder
            settled |= options.located(model, {option: value}, folder)

        def blame(loc: Loc) -> str:
            return recipe.said_by(loc).file

        self.options(part.role, part.name, settled, file=blame, table=part.loc, folder=recipe.folder)
        for option, value in options.missing(model, settled):
            at = (*part.loc, option)
            raise RecipeError(f"{blame(at)}: {dotted(at)}: found {quoted(value)}, expected a file that exists")
        return {(*part.loc, key): value for key, value in settled.items() if value != part.options[key]}

    def _signal_faults(self, recipe: Recipe) -> Iterator[UsageError]:
        teacher = self._offer("teachers", recipe.teacher.provider) if recipe.teacher else None
        mixers = [offer for offer in self.offers if offer.role == "mixers"]
        return signal_faults(recipe, teacher, self._offer("mixers", recipe.mixer.name), mixers)

    # ------------------------------------------------------------------------------------------ showing

    def describe(self) -> list[dict[str, Any]]:
        """All offers (`status` "ok", or "clash" where two share a name), then the broken plugins.

        `warnings` says what is wrong with a plugin that can be used all the same.
        """
        order = list(ROLES)
        offers = sorted(self.offers, key=lambda offer: (order.index(offer.role), offer.name))
        return [self._row(offer) for offer in offers] + [broken.row() for broken in self.broken]

    def _row(self, offer: Offer) -> dict[str, Any]:
        names = [(other.role, other.name) for other in self.offers]
        return {
            "status": "ok" if names.count((offer.role, offer.name)) == 1 else "clash",
            "role": offer.role.removesuffix("s"),
            "name": offer.name,
            "plugin": offer.origin.plugin,
            "distribution": offer.origin.distribution,
            "version": offer.origin.version,
            "about": (offer.offered.__doc__ or "").strip().partition("\n")[0],
            "signal": offer.signal,
            "warnings": [text for origin, text in self.notes if origin.plugin == offer.origin.plugin],
            "options": options.described(offer.offered.Options),
        }

    def notes_on(self, recipe: Recipe) -> list[str]:
        """What is wrong with the plugins that a recipe names, and can be used all the same."""
        used = {self._offer(part.role, part.name).origin.plugin for part in recipe.parts()}
        return [f"the plugin {origin}: {text}" for origin, text in self.notes if origin.plugin in used]

    def culprit(self, error: BaseException) -> Origin | None:
        """The plugin in whose code an exception was raised, going by its traceback."""
        modules = {offer.offered.__module__: offer.origin for offer in self.offers}
        packages = {name.partition(".")[0]: origin for name, origin in modules.items() if not origin.built_in}
        found, trace = None, error.__traceback__
        while trace is not None:
            name = str(trace.tb_frame.f_globals.get("__name__"))
            found = modules.get(name) or packages.get(name.partition(".")[0]) or found
            trace = trace.tb_next
        return found

    @contextmanager
    def named(self, where: str) -> Iterator[None]:
        """Say in whose plugin it was that something failed; what is raised elsewhere goes through."""
        try:
            yield
        except DistillkitError:
            raise
        except (Exception, SystemExit) as error:
            if (origin := self.culprit(error)) is None:
                raise
            told = f"the plugin {origin} failed {where}: {reason(error)}"
            raise DistillkitError(told, "Tell its author; --debug shows where it was.") from error

    def versions(self, recipe: Recipe) -> list[dict[str, str | None]]:
        """The distributions (or files) of the plugins that a recipe names, and their versions."""
        origins = [self._offer(part.role, part.name).origin for part in recipe.parts()]
        pairs = dict.fromkeys((origin.distribution or origin.plugin, origin.version) for origin in origins)
        return [{"name": name, "version": version} for name, version in pairs]

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a recipe file, with the options of the loaded plugins."""
        return options.schema(self.offers)


def _classes(value: Any, hook: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise FaultError(f"{hook} returned {kind(value)}, expected a list of classes")
    return list(value)


def _failed(what: str, error: BaseException) -> NoReturn:
    raise PluginError(f"{what}: {reason(error)}") from error


# ------------------------------------------------------------------------------------------------ the process

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
    for origin, entry in entries(COMMANDS, plugins.broken):
        before = dict(cli.commands)
        try:
            plugin = imported(origin, entry)
            with plugins._registered(origin, plugin), blamed("register_commands failed"):
                _add_commands(cli, plugins._implementations(plugin), before)
        except FaultError as fault:
            cli.commands.clear()
            cli.commands.update(before)
            plugins.broken.append(Broken.of(origin, fault))
    return plugins.broken


def _add_commands(cli: click.Group, hooks: list[pluggy.HookImpl], before: Mapping[str, Any]) -> None:
    """Call the hooks that take the command line; none may replace what is there."""
    for hook in hooks:
        if "cli" in hook.argnames:
            hook.function(cli)
    taken = [name for name, command in before.items() if cli.commands.get(name) is not command]
    if taken:
        raise FaultError(f"it replaces the command {taken[0]!r}, which is there already")
