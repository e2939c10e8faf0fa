"""Whose mistake an exception is: the places of a traceback that belong to the model that was built or run."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

_OURS = Path(__file__).parents[1]
#: Names that a frame has where a model's code begins to run, by the file that it is in.
_BUILDING = ("models/__init__.py", ("build_model",))
_RUNNING = (
    ("nn/modules/module.py", ("_wrapped_call_impl", "_call_impl")),
    ("autograd/function.py", ("apply",)),
)
#: Libraries in which a model's mistakes come to light without being theirs.
_LIBRARIES = ("torch", "numpy")
_MOST_PLACES = 2


def model_places(error: BaseException) -> tuple[str, ...]:
    """Where a model's own code raised ``error``, and from where that was called: ``file.py:12 in forward``.

    The innermost places outside torch and vitbench; with none, as in a model that is put together of torch's modules,
    the module. Empty if no model was being built or run, or if our own code (a hook) raised it there.
    """
    walked = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_filename, frame.f_code.co_name, line) for frame, line in walked]
    begin = next((number for number, (file, name, _) in enumerate(frames) if _begins_model(file, name)), None)
    if begin is None:
        return ()
    inside = frames[begin:]
    places = [(file, name, line) for file, name, line in inside if _whose(file) != "library"]
    if places and _whose(places[-1][0]) == "ours" and not _begins_model(*places[-1][:2]):
        return ()
    chosen = [place for place in places if _whose(place[0]) == "model"][-_MOST_PLACES:]
    if not chosen:
        chosen = [place for place in inside if place[1] == "forward"][-1:]
    return tuple(f"{Path(file).name}:{line} in {name}" for file, name, line in reversed(chosen))


def with_places(detail: str, places: tuple[str, ...]) -> str:
    """A failure's text with the places at the end of its first line, where tables that cut texts still show them."""
    if not places:
        return detail
    first, *rest = detail.split("\n", 1)
    return "\n".join([f"{first} ({', called at '.join(places)})", *rest])


def _begins_model(file: str, name: str) -> bool:
    library = _folder_of("torch")
    running = library is not None and any(file == str(library / path) and name in names for path, names in _RUNNING)
    return running or (file == str(_OURS / _BUILDING[0]) and name in _BUILDING[1])


def _whose(file: str) -> str:
    """``ours``, ``library`` (torch, NumPy, Python itself) or ``model``."""
    path = Path(file)
    if path.is_relative_to(_OURS):
        return "model" if path.parent == _OURS / "models" / "architectures" else "ours"
    if file.startswith("<frozen ") or any(
        folder is not None and path.is_relative_to(folder) for folder in map(_folder_of, _LIBRARIES)
    ):
        return "library"
    standard = Path(sysconfig.get_paths()["stdlib"])
    below = path.relative_to(standard).parts if path.is_relative_to(standard) else ()
    return "library" if below and below[0] not in ("site-packages", "dist-packages") else "model"


def _folder_of(package: str) -> Path | None:
    """Where a package lies that has been loaded."""
    module = sys.modules.get(package)
    return Path(module.__file__).parent if module is not None and module.__file__ else None
