"""Everything that vitbench raises on purpose.

::

    VitbenchError
    ├── UsageError              the user asked for something that cannot be: one line, exit code 2
    │   ├── UnknownNameError    no such model, suite, metric, device or data set ("did you mean")
    │   ├── UnknownModuleError  no such module for a builder of one's own
    │   ├── SuiteError          a suite file that says something it may not
    │   ├── ImageSizeError      a size that the architecture cannot take
    │   ├── DeviceError         a device that is not there
    │   ├── DataError           a data set or checkpoint that is not there or not readable
    │   │   └── CheckpointError weights that do not fit (models/checkpoints.py)
    │   └── RunFolderError      a run folder that cannot be written, resumed or read
    ├── ModelFailed             the model's own code raised something
    ├── StorageError            the disk did not take a record (full, quota): exit code 1, resumable
    ├── WorkerError             the worker machinery itself broke (a worker's death is a record, not this)
    └── Unsupported             what is asked cannot be told here: becomes a status, never a crash

Each message names the value, the reason and the way out, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitbenchError(Exception):
    """The root: catching it catches all that vitbench raises on purpose."""

    #: the cause that a record names when this ends a cell
    cause = "exception"


class UsageError(VitbenchError, ValueError):
    """Wrong usage: one clear line and exit code 2."""

    cause = "usage"


#: The cause of a name that nothing has any more: a model, a builder or its module.
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
    """A suite file that is malformed, or says something that it may not."""


class ImageSizeError(UsageError):
    """An image size that the architecture cannot take."""


class DeviceError(UsageError):
    """A device that is not there."""


class DataError(UsageError):
    """A data set that is not there, or that cannot be read."""


class RunFolderError(UsageError):
    """A run folder that cannot be written, resumed or read."""


class StorageError(VitbenchError):
    """The disk did not take a record: nothing before it is lost, and the run can be resumed."""

    cause = "disk_full"


class WorkerError(VitbenchError):
    """The machinery that starts workers broke. A worker that dies is a record, not this."""


class ModelFailed(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """The model's own code raised something while it was built, trained, tested or asked."""

    cause = "model_bug"


class Unsupported(VitbenchError):  # noqa: N818  (a status more than an error)
    """What is asked cannot be told here; the message is the reason. Becomes the status ``unsupported``."""
