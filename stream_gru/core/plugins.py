"""Registries: names of a configuration and the classes that they stand for; packages that may be missing.

A registry holds our own rows, then those that installed distributions offer as entry points of its group:

    [project.entry-points."stream_gru.sources"]
    tcp = "my_package.tcp:TcpSourceConfig"

A row is a text ``module:attribute``.  Its module is imported when the name is used, so that a missing package or a
broken plugin stops only a configuration that uses it.  A plugin never takes the place of a name of ours.  Installed
distributions are searched only for a name that is not ours, as the search takes some ten milliseconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module

from stream_gru.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point of an installed distribution.  ``shadowed``: the name is ours, so the plugin is ignored."""

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    shadowed: bool = False

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Registry:
    """Names of one ``kind`` (such as "source"), which the key ``key`` of a configuration holds.

    ``packages`` says how to install what a built-in row needs.
    """

    kind: str
    key: str
    built_in: Mapping[str, str]
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The group of entry points."""
        return f"stream_gru.{self.kind}s"

    def plugins(self) -> list[Plugin]:
        """What installed distributions offer, in the order of names."""
        from importlib.metadata import entry_points  # not needed by a daemon without plugins

        found = []
        for point in entry_points(group=self.group):
            name, version = (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "")
            found.append(Plugin(self.kind, point.name, point.value, name, version, point.name in self.built_in))
        return sorted(set(found), key=lambda plugin: (plugin.name, plugin.distribution))

    def names(self) -> list[str]:
        """All names, ours first."""
        return list(dict.fromkeys([*self.built_in, *(plugin.name for plugin in self.plugins())]))

    def __contains__(self, name: str) -> bool:
        return name in self.built_in or any(plugin.name == name for plugin in self.plugins())

    def load(self, name: str) -> object:
        """Return what the row of a name points to.

        Raises ConfigError when the name is unknown, when two distributions offer it, or when its module cannot be
        imported.
        """
        if name in self.built_in:
            with self._importing(name):
                return _resolve(self.built_in[name])
        plugins = [plugin for plugin in self.plugins() if plugin.name == name]
        if not plugins:
            raise ConfigError(f"{self.key}: expected one of {', '.join(self.names())}, got {name!r}")
        if len(plugins) > 1:
            origins = " and ".join(plugin.origin for plugin in plugins)
            raise ConfigError(f"{self.key}: {name} is offered by {origins}; uninstall one of them")
        return load_plugin(plugins[0])

    def build(self, name: str, argument: object) -> object:
        """Call what the row of a name points to.  Raises what `load` raises, also when a package is missing then."""
        factory = self.load(name)
        if not callable(factory):
            raise ConfigError(f"{self.key}: {name}: expected a class, got {factory!r:.100}")
        with self._importing(name):
            return factory(argument)

    @contextmanager
    def _importing(self, name: str) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            hint = self.packages.get(name, "install its package again")
            raise ConfigError(f"{self.key}: {name} cannot be loaded ({error}); {hint}") from error


def load_plugin(plugin: Plugin) -> object:
    """Return what a plugin points to.  Raises ConfigError, whatever goes wrong in its module."""
    try:
        return _resolve(plugin.target)
    except Exception as error:
        raise ConfigError(
            f"{plugin.kind}: {plugin.name} of {plugin.origin} cannot be loaded "
            f"({type(error).__name__}: {error}); install another version, or uninstall it"
        ) from error


def _resolve(target: str) -> object:
    module, _, attribute = target.partition(":")
    found: object = import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


@contextmanager
def require_extra(what: str, extra: str = "") -> Iterator[None]:
    """Wrap the imports that ``what`` needs; ``extra`` is the extra of this package that installs them.

    Raises ConfigError with the command to run when a package is missing.  Sets TensorFlow's log level to errors.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("stream_gru"):
            raise  # an error in this package, not a missing one
        install = f"stream-gru[{extra}]" if extra else "stream-gru"
        raise ConfigError(
            f"{what} needs a package that is not installed ({error.name or error}): pip install '{install}'"
        ) from error


@contextmanager
def require_training_extra() -> Iterator[None]:
    """Wrap the imports of a command that trains, without TensorFlow's start-up messages.

    Raises ConfigError when the extra "train" is not installed.
    """
    with require_extra("training", "train"), suppress_native_stderr():
        yield


@contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, unless the block raises: then write it after all.

    For native libraries such as LiteRT, which bypass ``sys.stderr`` and have no switch for it.  It applies to the whole
    process, so keep the block short or run it where nothing else writes.
    """
    try:
        saved = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(saved, captured.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
