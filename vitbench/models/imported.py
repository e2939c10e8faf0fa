"""A user's own builder, ``module:package.module:function``, imported only if the user has allowed it.

Importing a module runs its code, which a suite file from elsewhere must not be able to do: nothing is imported until
``allow_imports`` has been called, which the command line does for ``--allow-import``.
"""

from __future__ import annotations

import importlib

from vitbench.core.errors import UnknownModuleError, UnknownNameError, UsageError
from vitbench.models.cards import MODULE, ModelCard

#: The size and classes of such a model by default: it has no card.
DEFAULT_SIZE = (224, 224)
DEFAULT_CLASSES = 1000

_allowed = False


def allow_imports() -> None:
    """Let this process import the modules in model names."""
    global _allowed
    _allowed = True


def describe_imported(name: str) -> ModelCard:
    """The card of ``module:package.module:function``; the function is called with ``image_size`` and ``num_classes``.

    Raises UsageError if importing is not allowed or the name is not of that form, UnknownNameError if there is no such
    function.
    """
    if not _allowed:
        raise UsageError(f"{name} would import and run code: add --allow-import if you trust it")
    module_name, _, function = name.removeprefix(MODULE).partition(":")
    if not module_name or not function:
        raise UsageError(f"{name!r} names no builder. Give module:package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UnknownModuleError(f"{name}: there is no module {missing!r} to import here") from error
        raise UsageError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # the edge: importing runs the user's code, which may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {reason}") from error
    if not callable(getattr(module, function, None)):
        known = [f"{MODULE}{module_name}:{one}" for one, thing in vars(module).items() if callable(thing)]
        raise UnknownNameError("builder", name, known, f"the functions of {module_name}")
    return ModelCard(
        name=name,
        builder=f"{module_name}:{function}",
        summary=f"{function} of {module_name}",
        family="imported",
        source=module_name,
        image_size=DEFAULT_SIZE,
        num_classes=DEFAULT_CLASSES,
        patch=1,
        size_rule="any",
    )
