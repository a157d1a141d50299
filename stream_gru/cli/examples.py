"""``stream-gru simulate`` and ``stream-gru recipe``: simulated recordings and live devices, and the recipes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from stream_gru.cli.group import CommandGroup, FiniteRange
from stream_gru.core.plugins import require_training_extra
from stream_gru.examples.recipes.recipe import RECIPES, load_recipe

if TYPE_CHECKING:
    from stream_gru.examples.simulators.recording import Recording

# A leap year; longer recordings do not fit into memory.
_HOURS = FiniteRange(min=0, min_open=True, max=8784)
_RATE = FiniteRange(min=0, min_open=True, max=10_000)
_TOPIC = "sensors/{stream}/data"
_LIVE = frozenset({"rate", "count", "labels"})
# The options that need one of --out, --serial and --mqtt.
_NEEDS = {"out": frozenset({"gzip", "one_file"}), "serial": _LIVE | {"format", "link"}, "mqtt": _LIVE | {"topic"}}


class _Live:
    """The output of a live simulation: a pseudo-terminal or a broker."""

    def __init__(
        self,
        serial: bool,
        link: Path | None,
        format: str,  # noqa: A002 - the name of the option
        mqtt: str | None,
        topic: str,
        rate: float | None,
        count: int | None,
        labels: bool = False,
    ) -> None:
        self.serial, self.link, self.form, self.mqtt, self.topic = serial, link, format, mqtt, topic
        self.rate, self.count, self.labels = rate, count, labels

    def run(self, recordings: Sequence[Recording]) -> None:
        """Play the recordings until ``count`` samples per device are sent, or forever.  Raises click.UsageError."""
        if not len(recordings[0]):
            raise click.UsageError("--hours: expected time for at least one sample")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the link is removed
        if self.serial:
            self._to_terminal(recordings)
        else:
            self._to_broker(recordings)

    def _to_terminal(self, recordings: Sequence[Recording]) -> None:
        from stream_gru.examples.simulators.devices import PseudoTerminal, play, record_of, sample_of

        several = len(recordings) > 1
        if self.form == "plotter" and (several or self.labels):
            raise click.UsageError("--format plotter needs a single device and no --labels")
        with PseudoTerminal(self.form, named=several, link=self.link) as terminal:
            click.echo(terminal.path)
            if self.form == "csv":
                names = record_of(sample_of(recordings[0], 0, 0, self.labels), several)
                click.echo(f"columns: {','.join(names)}", err=True)
            try:
                play(recordings, terminal, rate_hz=self.rate, count=self.count, labels=self.labels)
                terminal.drain()
            finally:
                _report_lost(terminal.lost, "no program read them")

    def _to_broker(self, recordings: Sequence[Recording]) -> None:
        from stream_gru.examples.simulators.devices import MqttPublisher, play

        if len(recordings) > 1 and "{stream}" not in self.topic:
            raise click.UsageError("--topic: expected {stream} in the topic, since there are several devices")
        if not self.topic or any(sign in self.topic for sign in "+#\0"):
            raise click.UsageError(f"--topic: expected a topic without + and #, got {self.topic!r}")
        with MqttPublisher(self.mqtt or "", self.topic) as publisher:
            click.echo(f"publishing to {self.mqtt}, topic {self.topic}", err=True)
            try:
                play(recordings, publisher, rate_hz=self.rate, count=self.count, labels=self.labels)
                publisher.drain()
            finally:
                _report_lost(publisher.lost, "the broker was unreachable or rejected them")


def _report_lost(lost: int, reason: str) -> None:
    if lost:
        click.echo(f"{lost} samples were lost: {reason}", err=True)


def _broker_url(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from msgspec import ValidationError, convert

    from stream_gru.config.field_types import BrokerUrl

    try:
        return None if value is None else convert(value, BrokerUrl)
    except ValidationError as error:
        message = f"expected an address such as mqtt://127.0.0.1:1883, got {value!r}"
        raise click.BadParameter(message, ctx, param) from error


def _with_outputs(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the output."""
    options = (
        click.option("--out", type=click.Path(path_type=Path), help="Write recordings to this folder."),
        click.option(
            "--serial", is_flag=True, help="Simulate a serial device on a pseudo-terminal and print its name."
        ),
        click.option("--link", type=click.Path(path_type=Path), help="Link this path to the pseudo-terminal."),
        click.option(
            "--format",
            type=click.Choice(["jsonl", "csv", "plotter"]),
            default="jsonl",
            show_default=True,
            help="Send serial lines in this format.",
        ),
        click.option(
            "--mqtt", metavar="URL", callback=_broker_url, help="Publish to this broker, such as mqtt://127.0.0.1:1883."
        ),
        click.option("--topic", default=_TOPIC, show_default=True, help="Publish to this topic."),
        click.option(
            "--rate",
            type=_RATE,
            metavar="HZ",
            help="Send HZ live samples per second and device.  [default: as recorded]",
        ),
        click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N live samples per device."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _live_output(ctx: click.Context, out: Path | None, live: dict[str, Any]) -> _Live | None:
    """The live output, None with --out.  Raises click.UsageError unless exactly one output is chosen."""
    chosen = [name for name, on in (("out", out), ("serial", live["serial"]), ("mqtt", live["mqtt"])) if on]
    if len(chosen) != 1:
        raise click.UsageError("expected one of --out FOLDER, --serial and --mqtt URL")
    elsewhere = frozenset().union(*_NEEDS.values()) - _NEEDS[chosen[0]]
    for name in sorted(elsewhere & set(ctx.params)):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} cannot be used with --{chosen[0]}")
    return None if out else _Live(**live)


@click.group(cls=CommandGroup)
def simulate() -> None:
    """Write simulated recordings, or simulate live devices.

    The same seed gives the same bytes.
    """


@simulate.command()
@_with_outputs
@click.option("--labels", is_flag=True, help="Send the true mode with each live sample.")
@click.option(
    "--hours",
    type=_HOURS,
    default=6.0,
    show_default=True,
    metavar="H",
    help="Simulate H hours; live devices repeat them.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="N", help="Seed the simulation."
)
@click.option(
    "--pumps", type=click.IntRange(1, 1000), metavar="N", help="Simulate N pumps.  [default: 6, or 1 with --serial]"
)
@click.option(
    "--first", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N", help="Number the pumps from N."
)
@click.option("--one-file", is_flag=True, help="Write all pumps to one file, as a gateway receives them.")
@click.option("--gzip", is_flag=True, help="Compress the files.")
@click.pass_context
def pump(
    ctx: click.Context,
    /,
    out: Path | None,
    hours: float,
    seed: int,
    pumps: int | None,
    first: int,
    one_file: bool,
    gzip: bool,
    **live: Any,
) -> None:
    """Simulate water pumps with operating modes and faults.

    Each pump has flow, pressure, motor current and vibration, once per second.
    """
    from stream_gru.examples.simulators.write import write_pumps

    output = _live_output(ctx, out, live)
    if output is not None:
        from stream_gru.examples.simulators.devices import clean_pumps

        output.run(clean_pumps(hours, seed, pumps or (1 if output.serial else 6), first))
        return
    for path in write_pumps(out or Path(), hours, seed, pumps=pumps or 6, gzip=gzip, first=first, one_file=one_file):
        click.echo(path)


@simulate.command()
@_with_outputs
@click.option(
    "--hours",
    type=_HOURS,
    default=1.0,
    show_default=True,
    metavar="H",
    help="Simulate H hours; live devices repeat them.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="N", help="Seed the simulation."
)
@click.option(
    "--streams",
    "--sines",
    "streams",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Simulate N sines.  [default: 4, or 1 with --serial]",
)
@click.option("--gzip", is_flag=True, help="Compress the files.")
@click.pass_context
def sine(
    ctx: click.Context, /, out: Path | None, hours: float, seed: int, streams: int | None, gzip: bool, **live: Any
) -> None:
    """Simulate noisy sine waves of different phase."""
    from stream_gru.examples.simulators.write import write_sines

    output = _live_output(ctx, out, live)
    if output is not None:
        from stream_gru.examples.simulators.devices import clean_sines

        output.run(clean_sines(hours, seed, streams or (1 if output.serial else 4)))
        return
    for path in write_sines(out or Path(), hours, seed, streams=streams or 4, gzip=gzip):
        click.echo(path)


_NAME = click.argument("name", metavar="NAME", type=click.Choice(RECIPES))


@click.group(cls=CommandGroup)
def recipe() -> None:
    """Train the models of public tutorials and compare results."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes."""
    for name in RECIPES:
        click.echo(f"{name:<18} {load_recipe(name).title}")


@recipe.command()
@_NAME
def show(name: str) -> None:
    """Print the training configuration of recipe NAME.

    The tables [best] and [quick] hold the keys that these variants change.
    """
    click.echo(load_recipe(name).text, nl=False)


@recipe.command()
@_NAME
@click.option(
    "--data", "data_path", type=click.Path(path_type=Path), help="Read data from this .npz file or its folder."
)
@click.option("--quick", is_flag=True, help="Train with little data and few epochs, as a test.")
@click.option(
    "--best/--as-tutorial",
    default=False,
    help="Use improved settings, or those of the tutorial.  [default: as-tutorial]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this folder.  [default: NAME, NAME-best or NAME-quick]"
)
@click.option("--compare", is_flag=True, help="Compare cells, regimes and unrolling (mnist-gru only).")
def run(name: str, data_path: Path | None, quick: bool, best: bool, out: Path | None, compare: bool) -> None:
    """Train recipe NAME and test it, streamed and in Keras.

    The data come from --data, else from the folder STREAM_GRU_DATA, else from the download of Keras.  Some recipes
    generate their data.
    """
    chosen = load_recipe(name)
    kind = "-compare" if compare else "-best" if best else ""
    target = (out or Path(name + kind + ("-quick" if quick else ""))).resolve()
    if compare and name != "mnist-gru":
        raise click.UsageError("--compare needs the recipe mnist-gru")
    if data_path is not None and not chosen.reads_data:
        raise click.UsageError(f"--data: recipe {name} generates its data")
    with require_training_extra():
        from stream_gru.examples.recipes.run import compare_variants, run_recipe
        from stream_gru.training.progress import default_reporter
    variant = chosen.variant(best=best, quick=quick)
    if compare:
        lines = compare_variants(variant, target, data_path, _print_progress)
    else:
        done = run_recipe(chosen, variant, target, data_path, default_reporter(), _print_progress)
        lines = [*done.lines, f"report       {target / 'bundle' / 'report.html'}"]
    for line in lines:
        click.echo(line)


def _print_progress(text: str) -> None:
    """Print progress on standard error."""
    click.echo(text, err=True)
