"""The plugins of this process: loading, looking up, checking and constructing them.

`discovery` imports plugins, `validation` checks their classes, `options` parses their options. Plugins are loaded and
called one at a time, so that a failing one is named and does not affect the others. Does not know any plugin by name,
nor what a plugin does once it is constructed.
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
from ..recipe.messages import Loc, combine_errors, dotted_key, quote, recipe_error
from ..recipe.recipe import PluginUse, Recipe
from ..recipe.schema import host_keys, keys_of, plugin_key
from . import hookspecs
from .discovery import (
    COMMANDS_GROUP,
    GROUP,
    BrokenPlugin,
    InvalidPluginError,
    Origin,
    as_invalid_plugin,
    check_requirement,
    describe_error,
    iter_entry_points,
    load_by_name,
    load_entry_point,
)
from .interfaces import ROLES, Role
from .options import describe_options, missing_files, parse_options, recipe_schema, resolve_paths
from .validation import Registration, check_api_version, describe_type, signal_errors

if TYPE_CHECKING:
    import click

__all__ = [
    "BrokenPlugin",
    "Registration",
    "Origin",
    "Plugins",
    "current_plugins",
    "load_commands",
    "set_current_plugins",
]


def hook_names() -> list[str]:
    """The names of all hooks."""
    return [name for name in vars(hookspecs) if name.startswith("register_")]


def _current_name(hook: str) -> str:
    """The name of a hook, or of the hook that replaces it if it is deprecated."""
    return str(getattr(getattr(hookspecs, hook), "instead", hook))


class Plugins:
    """The loaded plugins: the classes they registered, and the plugins that are broken."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.registrations: list[Registration] = []
        self.broken: list[BrokenPlugin] = []
        self.warnings: list[tuple[Origin, str]] = []  # of plugins that can be used

    @classmethod
    def load(cls, extra: Sequence[str] = (), requirements: Sequence[str] = ()) -> Plugins:
        """Load all installed plugins and those named with `-p`, and check a recipe's requirements."""
        plugins = cls()
        found = sorted(iter_entry_points(GROUP, plugins.broken), key=lambda pair: not pair[0].built_in)
        for origin, entry in found:  # built-in plugins first, so that no other plugin can take their names
            try:
                with plugins._collect_warnings(origin):
                    plugins._add(origin, load_entry_point(origin, entry))
            except InvalidPluginError as error:
                plugins.broken.append(BrokenPlugin.from_error(origin, error))
        for spec in dict.fromkeys(extra):
            plugins._add_by_name(spec)
        for requirement in requirements:
            check_requirement(requirement, plugins.broken)
        set_current_plugins(plugins)
        return plugins

    # ------------------------------------------------------------------------------------------ loading

    def _add_by_name(self, spec: str) -> None:
        """Load a plugin that `-p` names. If it is invalid, raise an error instead of listing it as broken."""
        try:
            with self._collect_warnings(Origin(spec)):
                origin, plugin = load_by_name(spec)
                if not self._manager.is_registered(plugin):
                    self._add(origin, plugin)
        except InvalidPluginError as error:
            raise PluginError(f"the plugin {spec} cannot be used: {error}") from error

    def _add(self, origin: Origin, plugin: Any) -> None:
        """Register a plugin and check its classes; an invalid plugin is removed again."""
        check_api_version(plugin)
        with self._registered(origin, plugin):
            registrations = list(self._call_hooks(origin, plugin))
            self._check_names(registrations)
            self.registrations += registrations

    @contextmanager
    def _collect_warnings(self, origin: Origin) -> Iterator[None]:
        """Collect deprecation warnings and printed output of a plugin: standard output belongs to the commands."""
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()) as output:
            warnings.simplefilter("always", hookspecs.DeprecatedHook)
            yield
        messages = [str(warning.message) for warning in caught if warning.category is hookspecs.DeprecatedHook]
        for warning in caught:
            if warning.category is not hookspecs.DeprecatedHook:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if printed := output.getvalue().strip():
            messages.append(f"it prints while it is loaded: {printed.splitlines()[0][:80]!r}")
        self.warnings += [(origin, message) for message in messages]

    def _check_names(self, registrations: Sequence[Registration]) -> None:
        """Refuse a plugin that registers a name twice or takes a built-in's name, which recipes rely on."""
        built_in = {(each.role, each.name) for each in self.registrations if each.origin.built_in}
        names = [(each.role, each.name) for each in registrations]
        for role, name in names:
            title = f"the {role.removesuffix('s')} {quote(name)}"
            if names.count((role, name)) > 1:
                raise InvalidPluginError(f"it offers {title} twice")
            if (role, name) in built_in:
                raise InvalidPluginError(f"it offers {title}, which is a built-in's name. Rename it")

    @contextmanager
    def _registered(self, origin: Origin, plugin: Any) -> Iterator[None]:
        """Register a plugin, and unregister it if the body raises an InvalidPluginError."""
        if self._manager.is_registered(plugin):
            raise InvalidPluginError("this module is already registered as another plugin")
        try:
            with as_invalid_plugin("it cannot be registered"):
                self._manager.register(plugin, f"{origin.distribution}:{origin.plugin}")
                self._check_hooks(plugin)
            yield
        except InvalidPluginError:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise

    def _check_hooks(self, plugin: Any) -> None:
        """Refuse functions that would never be called: misspelt hooks, or hooks without the decorator."""
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            marked = {hook.name for hook in self._manager.get_hookcallers(plugin) or ()}
            unknown = min(marked - set(hook_names()), default="?")
            hint = did_you_mean(unknown, hook_names())
            raise InvalidPluginError(f"it has an unknown hook {unknown!r}. {hint}") from error
        functions = [impl.function for impl in self._implementations(plugin)]
        unmarked = [name for name in hook_names() if hasattr(plugin, name) and getattr(plugin, name) not in functions]
        if unmarked:
            raise InvalidPluginError(f"its {unmarked[0]} is not marked as a hook. Write @hookimpl above it")
        if not functions:
            similar = next((name for name in vars(plugin) if name.startswith("register_")), "")
            hint = did_you_mean(similar, hook_names()) if similar else f"Known: {', '.join(hook_names())}"
            raise InvalidPluginError(
                f"it implements no hook{f', and {similar} is not a hook' if similar else ''}. {hint}"
            )

    def _implementations(self, plugin: Any) -> list[pluggy.HookImpl]:
        callers = self._manager.get_hookcallers(plugin) or ()
        return [impl for hook in callers for impl in hook.get_hookimpls() if impl.plugin is plugin]

    def _call_hooks(self, origin: Origin, plugin: Any) -> Iterator[Registration]:
        """Call a plugin's hooks, and check each class that they return."""
        for hook in self._manager.get_hookcallers(plugin) or ():
            role = _current_name(hook.name).removeprefix("register_")
            if role not in ROLES:
                continue
            for impl in (impl for impl in hook.get_hookimpls() if impl.plugin is plugin):
                with as_invalid_plugin(f"{hook.name} failed"):
                    for cls in _as_list(impl.function(), hook.name):
                        registration = Registration(role, cls, origin)
                        registration.check(hook.name)
                        yield registration

    # ------------------------------------------------------------------------------------------ looking up

    def find(self, role: str, name: str) -> type[Role]:
        """The class that is registered for a role under a name."""
        return self._registration(role, name).cls

    def _registration(self, role: str, name: str) -> Registration:
        found = [each for each in self.registrations if (each.role, each.name) == (role, name)]
        if len(found) == 1:
            return found[0]
        title = f"the {role.removesuffix('s')} {quote(name)}"
        if found:
            origins = " and ".join(str(each.origin) for each in found)
            raise PluginError(f"{title} is offered by {origins}", "Uninstall or leave out one of them.")
        suggestion = did_you_mean(name, {each.name for each in self.registrations if each.role == role})
        hints = [suggestion, *(f"The plugin {broken}" for broken in self.broken)]
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
        """The validated options of a plugin, with paths made absolute."""
        model = self.find(role, name).Options
        try:
            return parse_options(model, values, folder)
        except ValidationError as error:
            raise recipe_error(error, file, table, host_keys(role) | keys_of(model), model=model) from error
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a validator is the plugin's code and may raise anything
            _raise_plugin_error(f"the {role.removesuffix('s')} {name!r} could not parse its options", error)

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
        """Construct a plugin with its options."""
        parsed = self.options(role, name, values, file=file, table=table, folder=folder or Path())
        try:
            return self.find(role, name)(parsed)
        except DistillkitError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            _raise_plugin_error(f"the {role.removesuffix('s')} {name!r} could not be built", error)

    # ------------------------------------------------------------------------------------------ checking

    def check(self, recipe: Recipe) -> Recipe:
        """Refuse a recipe that is certain to fail, before anything is spent. Constructs no plugin.

        Returns the recipe with the paths in plugin options made absolute, so that it also works from the run's folder.
        """
        errors: list[UsageError] = []
        resolved: dict[Loc, Any] = {}
        for part in recipe.plugin_uses():
            try:
                resolved |= self._check_part(recipe, part)
            except UsageError as error:
                errors.append(error)
        errors += recipe.missing_files()
        if not errors:
            errors += self._signal_errors(recipe)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise combine_errors([(error.message, error.hint) for error in errors])
        return recipe.with_values(resolved) if resolved else recipe

    def _check_part(self, recipe: Recipe, part: PluginUse) -> dict[Loc, Any]:
        """Check one table; returns the options whose paths were made absolute, by their location in the recipe."""
        key = (*part.loc, plugin_key(part.role))
        try:
            model = self.find(part.role, part.name).Options
        except PluginError as error:
            file = recipe.layer_of(key).file
            raise PluginError(f"{file}: {dotted_key(key)}: {error.message}", error.hint) from error
        resolved: dict[str, Any] = {}
        for option, value in part.options.items():
            folder = recipe.layer_of((*part.loc, option)).folder
            resolved |= resolve_paths(model, {option: value}, folder)

        def file_of(loc: Loc) -> str:
            return recipe.layer_of(loc).file

        self.options(part.role, part.name, resolved, file=file_of, table=part.loc, folder=recipe.folder)
        for option, value in missing_files(model, resolved):
            loc = (*part.loc, option)
            raise RecipeError(f"{file_of(loc)}: {dotted_key(loc)}: found {quote(value)}, expected a file that exists")
        return {(*part.loc, key): value for key, value in resolved.items() if value != part.options[key]}

    def _signal_errors(self, recipe: Recipe) -> Iterator[UsageError]:
        teacher = self._registration("teachers", recipe.teacher.provider) if recipe.teacher else None
        mixers = [each for each in self.registrations if each.role == "mixers"]
        return signal_errors(recipe, teacher, self._registration("mixers", recipe.mixer.name), mixers)

    # ------------------------------------------------------------------------------------------ describing

    def describe(self) -> list[dict[str, Any]]:
        """Rows for all registered classes (`status` "ok", or "clash" if two share a name), then for broken plugins.

        `warnings` lists problems that do not keep the plugin from being used.
        """
        roles = list(ROLES)
        registrations = sorted(self.registrations, key=lambda each: (roles.index(each.role), each.name))
        return [self._row(each) for each in registrations] + [broken.to_row() for broken in self.broken]

    def _row(self, registration: Registration) -> dict[str, Any]:
        names = [(each.role, each.name) for each in self.registrations]
        cls, origin = registration.cls, registration.origin
        return {
            "status": "ok" if names.count((registration.role, registration.name)) == 1 else "clash",
            "role": registration.role.removesuffix("s"),
            "name": registration.name,
            "plugin": origin.plugin,
            "distribution": origin.distribution,
            "version": origin.version,
            "about": (cls.__doc__ or "").strip().partition("\n")[0],
            "signal": registration.signal,
            "warnings": [message for other, message in self.warnings if other.plugin == origin.plugin],
            "options": describe_options(cls.Options),
        }

    def warnings_for(self, recipe: Recipe) -> list[str]:
        """Warnings about the plugins that a recipe uses."""
        used = {self._registration(part.role, part.name).origin.plugin for part in recipe.plugin_uses()}
        return [f"the plugin {origin}: {message}" for origin, message in self.warnings if origin.plugin in used]

    def origin_of_error(self, error: BaseException) -> Origin | None:
        """The plugin whose code raised an exception, according to its traceback, or None."""
        modules = {each.cls.__module__: each.origin for each in self.registrations}
        packages = {name.partition(".")[0]: origin for name, origin in modules.items() if not origin.built_in}
        found, trace = None, error.__traceback__
        while trace is not None:
            name = str(trace.tb_frame.f_globals.get("__name__"))
            found = modules.get(name) or packages.get(name.partition(".")[0]) or found
            trace = trace.tb_next
        return found

    @contextmanager
    def attribute_errors(self, where: str) -> Iterator[None]:
        """Convert errors from plugin code to a DistillkitError that names the plugin; other errors pass through."""
        try:
            yield
        except DistillkitError:
            raise
        except (Exception, SystemExit) as error:
            if (origin := self.origin_of_error(error)) is None:
                raise
            message = f"the plugin {origin} failed {where}: {describe_error(error)}"
            raise DistillkitError(message, "Report it to the plugin's author; --debug shows the traceback.") from error

    def versions(self, recipe: Recipe) -> list[dict[str, str | None]]:
        """The distributions (or files) of the plugins that a recipe uses, and their versions."""
        origins = [self._registration(part.role, part.name).origin for part in recipe.plugin_uses()]
        pairs = dict.fromkeys((origin.distribution or origin.plugin, origin.version) for origin in origins)
        return [{"name": name, "version": version} for name, version in pairs]

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of a recipe file, with the options of the loaded plugins."""
        return recipe_schema(self.registrations)


def _as_list(value: Any, hook: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidPluginError(f"{hook} returned {describe_type(value)}, expected a list of classes")
    return list(value)


def _raise_plugin_error(what: str, error: BaseException) -> NoReturn:
    raise PluginError(f"{what}: {describe_error(error)}") from error


# ------------------------------------------------------------------------------------------------ the process

_current: Plugins | None = None


def set_current_plugins(plugins: Plugins) -> None:
    """Set the plugins of the process. Code that loads a student finds its architecture in them."""
    global _current
    _current = plugins


def current_plugins() -> Plugins:
    """The plugins of the process: those loaded last, or all installed plugins if none were loaded."""
    return _current or Plugins.load()


def load_commands(cli: click.Group) -> list[BrokenPlugin]:
    """Let plugins of the group `distillkit.commands` add their commands; returns the broken plugins."""
    plugins = Plugins()
    for origin, entry in iter_entry_points(COMMANDS_GROUP, plugins.broken):
        before = dict(cli.commands)
        try:
            plugin = load_entry_point(origin, entry)
            with plugins._registered(origin, plugin), as_invalid_plugin("register_commands failed"):
                _add_commands(cli, plugins._implementations(plugin), before)
        except InvalidPluginError as error:
            cli.commands.clear()
            cli.commands.update(before)
            plugins.broken.append(BrokenPlugin.from_error(origin, error))
    return plugins.broken


def _add_commands(cli: click.Group, hooks: list[pluggy.HookImpl], before: Mapping[str, Any]) -> None:
    """Call the hooks that take `cli`; they must not replace existing commands."""
    for hook in hooks:
        if "cli" in hook.argnames:
            hook.function(cli)
    replaced = [name for name, command in before.items() if cli.commands.get(name) is not command]
    if replaced:
        raise InvalidPluginError(f"it replaces the existing command {replaced[0]!r}")
