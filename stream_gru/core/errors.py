"""The exception tree.  The class says what the caller does.

    StreamGruError
    ├── ConfigError               a file or option is invalid: refuse to start, exit 2
    ├── BundleError               the bundle is missing or invalid: refuse to start, exit 2
    │   └── UnsupportedModelError it needs a feature that this version does not have
    ├── DataError                 a recording cannot be used (missing column, no rows): stop, exit 1
    ├── ParityError               engines disagree on the same weights: write no bundle, exit 1
    ├── SourceUnavailable         the input cannot be reached: retry
    ├── SinkUnavailable           the output cannot be written: stop, or retry
    ├── StateError                stored state cannot be used
    │   └── IncompatibleStateError  it belongs to another model
    └── StoreError                the store cannot be read or written: stop, exit 1, acknowledge nothing
        └── StoreLocked           another process uses it

    EndOfInput is a signal, not an error: the source is finished.

Any other exception is a bug and ends the process.  Bad samples raise nothing: the batch counts them by `DropReason`.
"""


class StreamGruError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(StreamGruError):
    """An invalid configuration or command line; ``problems`` has one line for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BundleError(StreamGruError):
    """A bundle that is missing, damaged, too large or of another format."""


class UnsupportedModelError(BundleError):
    """A bundle with a layer, option or format that this version does not support."""


class DataError(StreamGruError):
    """A recording that cannot be used for this purpose."""


class ParityError(StreamGruError):
    """Two engines gave different results for the same weights and samples."""


class SourceUnavailable(StreamGruError):
    """The input cannot be reached."""


class SinkUnavailable(StreamGruError):
    """The output cannot be written."""


class StateError(StreamGruError):
    """Stored state that cannot be used."""


class IncompatibleStateError(StateError):
    """Stored state of another model."""


class StoreError(StreamGruError):
    """The store cannot be opened, read or written; it still holds its last commit."""


class StoreLocked(StoreError):
    """Another process uses the store."""


class EndOfInput(Exception):
    """The source is finished."""
