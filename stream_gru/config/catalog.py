"""The names that a configuration may use.  The caller passes them in: config knows no connector and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.field_types import Table
from stream_gru.config.train_schema import Config
from stream_gru.core.errors import ConfigError
from stream_gru.core.plugins import Plugin, Registry, load_plugin


@dataclass(frozen=True, slots=True)
class Catalog:
    """A registry of each kind.  Rows of ``sources`` and ``sinks`` are tables, the others build their object."""

    sources: Registry
    decoders: Registry
    sinks: Registry
    engines: Registry

    @property
    def registries(self) -> tuple[Registry, ...]:
        """All of them."""
        return self.sources, self.decoders, self.sinks, self.engines

    def names(self, extra: Mapping[str, object], *, plugins: bool = True) -> list[str]:
        """The names that a key takes whose type has this ``Meta(extra=)``: ours that fit, then those of plugins."""
        registry = {"decoders": self.decoders, "engines": self.engines}[str(extra["registry"])]
        ours = sorted([*_texts(extra.get("also")), *(_texts(extra.get("built_in")) or registry.built_in)])
        return [*ours, *(name for name in registry.names() if name not in registry.built_in)] if plugins else ours

    def table(self, base: type[Table], type_name: str) -> type[Table]:
        """The table of ``type = type_name``; ``base`` is `SourceTable` or `SinkTable`.  Raises ConfigError."""
        registry = self.sources if issubclass(base, SourceTable) else self.sinks
        return checked_table(registry.load(type_name), base, type_name)

    def tables(self, base: type) -> list[type[Table]]:
        """The built-in tables of sources or sinks; ``base`` itself where it is another table."""
        if base not in (SourceTable, SinkTable):
            return [base]
        registry = self.sources if base is SourceTable else self.sinks
        return [self.table(base, name) for name in registry.built_in]

    def plugins(self) -> list[Plugin]:
        """What installed distributions offer, of all kinds."""
        return [plugin for registry in self.registries for plugin in registry.plugins()]

    def used_plugins(self, config: Config) -> list[Plugin]:
        """The plugins that a configuration uses."""
        used = {
            *(("source", one.type_name) for one in config.source),
            *(("decoder", one.format) for one in config.source),
            *(("sink", one.type_name) for one in config.sink),
        }
        if config.run is not None:
            used.add(("engine", config.run.engine))
        ours = {(registry.kind, name) for registry in self.registries for name in registry.built_in}
        foreign = used - ours - {("engine", "auto"), ("decoder", "auto")}
        return [one for one in self.plugins() if (one.kind, one.name) in foreign] if foreign else []

    def warnings(self) -> list[str]:
        """A line for each plugin that is ignored, as its name is ours."""
        return [
            f"plugin {plugin.origin}: {plugin.kind} {plugin.name!r} is ignored: the name is built in; rename the "
            "entry point"
            for plugin in self.plugins()
            if plugin.shadowed
        ]

    def try_plugin(self, plugin: Plugin) -> None:
        """Load a plugin.  Raises ConfigError when it cannot be used."""
        found = load_plugin(plugin)
        if plugin.kind in ("source", "sink"):
            checked_table(found, SourceTable if plugin.kind == "source" else SinkTable, plugin.name)
        elif not callable(found):
            raise ConfigError(f"{plugin.kind}: {plugin.name} of {plugin.origin}: expected a class, got {found!r:.100}")


def checked_table(found: object, base: type[Table], type_name: str) -> type[Table]:
    """The table that a row points to.  Raises ConfigError when it is none, or one of another name."""
    kind = "source" if issubclass(base, SourceTable) else "sink"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{kind}: {type_name}: expected a subclass of {base.__name__}, got {found!r:.100}")
    if found.__struct_config__.tag != type_name:
        raise ConfigError(
            f"{kind}: {type_name}: expected tag={type_name!r} in class {found.__name__}, as its entry point is "
            f"called, got tag={found.__struct_config__.tag!r}"
        )
    return found


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, tuple) else []
