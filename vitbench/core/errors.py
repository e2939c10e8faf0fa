"""Everything that vitbench raises on purpose. Each message names the value, the reason and the way out, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitbenchError(Exception):
    """The root of all exceptions that vitbench raises on purpose."""

    #: The cause in the record of a cell that this ends.
    cause = "exception"


class UsageError(VitbenchError, ValueError):
    """Wrong usage: one clear line and exit code 2."""

    cause = "usage"


#: The cause of errors about a model, a builder or a module that does not exist (any more).
UNKNOWN_NAME = "unknown_name"
#: The causes of usage errors.
USAGE_CAUSES = frozenset({UsageError.cause, UNKNOWN_NAME})


class UnknownNameError(UsageError):
    """No such model, suite, metric, device or data set."""

    cause = UNKNOWN_NAME

    def __init__(self, kind: str, name: str, known: Iterable[str], see: str) -> None:
        known = sorted(known)
        lower = {one.lower(): one for one in known}
        close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
        hint = f" Did you mean {lower[close[0]]!r}?" if close else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} See: {see}")
        self.name = name


class UnknownModuleError(UsageError):
    """The module of a builder cannot be found."""

    cause = UNKNOWN_NAME


class SuiteError(UsageError):
    """A suite file with an invalid key or value."""


class ImageSizeError(UsageError):
    """An image size that the architecture does not accept."""


class DeviceError(UsageError):
    """A device that this machine does not have."""


class DataError(UsageError):
    """A data set that is missing or cannot be read."""


class RunFolderError(UsageError):
    """A run folder that cannot be written, resumed or read."""


class StorageError(VitbenchError):
    """The disk is full: every record before this is safe, and the run can be resumed."""

    cause = "disk_full"


class WorkerError(VitbenchError):
    """Starting workers failed. A worker that dies is a record, not this."""


class ModelFailed(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """The model's own code raised an exception while it was built, trained, tested or called."""

    cause = "model_bug"


class Unsupported(VitbenchError):  # noqa: N818  (a status more than an error)
    """The quantity cannot be measured here; the message says why. Becomes the status ``unsupported``."""
