"""All exceptions that the package raises on purpose, and the exit code of the command line for each.

SslDistError               its message is one line that tells what to do; the command line prints it without a traceback
├── UsageError             a mistake in a command, a recipe or an input: exit code 2
│   ├── ConfigError        a recipe, an override or an option is wrong
│   ├── SourceError        the source of a store (folder, tar, table ...) cannot be used
│   │   └── Unreadable     one file of a source is not an image that a store takes: skipped, unless --strict
│   ├── StoreError         a folder or URI is not a store, or the store does not fit the request
│   ├── RunError           a run directory is in use, missing or not writable, or a run ended before its last step
│   └── ClusterError       Ray cannot be reached or started, has no room, or its nodes do not fit the job
├── StoreDamaged           bytes of a store differ from its checksums: exit code 1
├── ExportError            exported files do not give the features of the run's encoder: exit code 1
├── HubError               the Hugging Face Hub cannot be reached, or fails: exit code 1
├── CheckpointError        a checkpoint is damaged or belongs to another model: exit code 1
├── Diverged               the loss or the gradient is not finite; nothing was updated: exit code 1
├── Preempted              a worker loses its place: rank 0 writes a checkpoint, all end, Ray starts as many as fit
└── Interrupted            Ctrl-C; the message says how to continue: exit code 130
"""


def printable(text: str) -> str:
    """Return text on one line without control characters: a quoted file name could move the terminal's cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class SslDistError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(SslDistError):
    """A mistake in a command, a recipe or an input, which the user can correct."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe, an override or an option is wrong."""


class SourceError(UsageError):
    """The source of a store cannot be used."""


class Unreadable(SourceError):
    """This file is not an image that a store takes; the message says why."""


class StoreError(UsageError):
    """A folder or URI is not a store, or the store does not fit the request."""


class RunError(UsageError):
    """A run directory is in use, missing or not writable."""


class ExportError(SslDistError):
    """The exported files do not give the same features as the run's encoder, so there is no folder."""


class HubError(SslDistError):
    """The Hugging Face Hub cannot be reached, or it fails."""


class ClusterError(UsageError):
    """Ray cannot be reached or started."""


class StoreDamaged(SslDistError):
    """Bytes of a store differ from its checksums."""


class CheckpointError(SslDistError):
    """A checkpoint is damaged or belongs to another model."""


class Diverged(SslDistError):
    """The loss is not finite; the step was not applied."""


class Preempted(SslDistError):
    """A worker was told to stop, and a checkpoint of the last step was written."""


class Interrupted(SslDistError):
    """The user pressed Ctrl-C; the message says how to continue."""

    exit_code = 130
