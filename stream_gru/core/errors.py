"""The whole exception tree.  A class says what the caller shall do.

    StreamGruError
    ├── ConfigError               a file or option is wrong: refuse to start, exit 2
    ├── BundleError               the bundle cannot be trusted or read: refuse to start, exit 2
    │   └── UnsupportedModelError it asks for something this version does not know
    ├── DataError                 a recording cannot be used (missing column, no rows): stop, exit 1
    ├── ParityError               engines disagree on the same weights: write no bundle, exit 1
    ├── SourceUnavailable         the input is not there now: try again later
    ├── SinkUnavailable           the output cannot be written now: stop, or try again later
    ├── TakenOver                 another client connects under our name: stop, exit 1
    ├── StateError                stored state cannot be used
    │   └── IncompatibleStateError  it belongs to another model
    └── StoreError                the store cannot be written or trusted: stop, exit 1, acknowledge nothing
        └── StoreLocked           another process has it

    EndOfInput is a signal, not an error: the source has nothing more and never will.

Anything else that is raised is a bug and ends the process.  Bad samples raise nothing: they are counted by
`DropReason` in the batch.
"""


class StreamGruError(Exception):
    """Base of every error this product raises on purpose."""


class ConfigError(StreamGruError):
    """A configuration or command line that cannot be used; ``problems`` holds one line for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BundleError(StreamGruError):
    """A bundle that is missing, damaged, too large or of another format."""


class UnsupportedModelError(BundleError):
    """A bundle that names a layer, option or format this version does not know."""


class DataError(StreamGruError):
    """A recording that cannot be used for what was asked."""


class ParityError(StreamGruError):
    """Two engines gave different results for the same weights and samples."""


class SourceUnavailable(StreamGruError):
    """The input cannot be reached now."""


class SinkUnavailable(StreamGruError):
    """The output cannot be written."""


class TakenOver(StreamGruError):
    """Another client connects to the broker under our name; going on would only throw each other out."""


class StateError(StreamGruError):
    """Stored state that cannot be used."""


class IncompatibleStateError(StateError):
    """Stored state of another model."""


class StoreError(StreamGruError):
    """The store cannot be opened, read or written; what it holds is that of its last commit."""


class StoreLocked(StoreError):
    """Another process uses the store."""


class EndOfInput(Exception):
    """The source is finished: nothing more will come."""
