"""Every exception the package raises on purpose.

SslDistError               its message is one line a person can act on; the command line prints it alone
├── UsageError             the user's mistake: exit code 2
│   ├── ConfigError        a recipe, an override or an option is wrong
│   ├── SourceError        what a store is built from cannot be used
│   │   └── Unreadable     one file of it is not an image that a store takes: left out, unless --strict
│   ├── StoreError         not a store, or one that does not fit what is asked of it
│   ├── RunError           a run directory that is taken, missing or not writable
│   └── ClusterError       Ray cannot be reached or started
├── StoreDamaged           bytes of a store differ from its checksums: exit code 1
├── CheckpointError        a checkpoint is damaged or of another model: exit code 1
├── Diverged               the loss is not finite; nothing was updated: exit code 1
├── Preempted              a worker has to go, and a checkpoint is written: the others go on without it
└── Interrupted            Ctrl-C; the message says how to go on: exit code 130
"""


def printable(text: str) -> str:
    """As one line: names in foreign files, which messages quote, may hold what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class SslDistError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(SslDistError):
    """The user can mend this by calling again, corrected."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe, an override or an option is wrong."""


class SourceError(UsageError):
    """What a store is built from cannot be used."""


class Unreadable(SourceError):
    """This file is not an image that a store takes; the message says why."""


class StoreError(UsageError):
    """Not a store, or one that does not fit what is asked of it."""


class RunError(UsageError):
    """A run directory that is taken, missing or not writable."""


class ClusterError(UsageError):
    """Ray cannot be reached or started."""


class StoreDamaged(SslDistError):
    """Bytes of a store differ from its checksums."""


class CheckpointError(SslDistError):
    """A checkpoint is damaged or of another model."""


class Diverged(SslDistError):
    """The loss is not finite; the step was not applied."""


class Preempted(SslDistError):
    """A worker was told to go; a checkpoint of the last step is written."""


class Interrupted(SslDistError):
    """Ctrl-C; the message says how to go on."""

    exit_code = 130
