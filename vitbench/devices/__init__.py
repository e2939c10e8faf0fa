"""Devices: one file for each kind, found by name. Importing this loads no torch, using a device does.

``host/`` reads the machine around them: environment, load, memory, NVML. May import core. Start with base.py.
"""

from __future__ import annotations

import importlib
import pkgutil

from vitbench.core.errors import DeviceError
from vitbench.core.registry import DEVICES
from vitbench.devices.base import Device as Device
from vitbench.devices.base import Failure as Failure
from vitbench.devices.base import split_name as split_name

for _module in pkgutil.iter_modules(__path__):  # a new file here is a new device, with nothing else to change
    importlib.import_module(f"{__name__}.{_module.name}")


def check_device_name(name: str) -> None:
    """Raises UnknownNameError or DeviceError for a name that is not a device's; does not look for the device."""
    if name != "auto":
        DEVICES.get(split_name(name)[0])


def canonical_device_name(name: str) -> str:
    """One name a device: ``cuda:0`` is ``cuda``. Raises UnknownNameError or DeviceError for an invalid name."""
    check_device_name(name)
    if name == "auto":
        return name
    kind, index = split_name(name)
    if kind in ("cpu", "mps") and index:
        raise DeviceError(f"Device {name!r} does not exist: there is one {kind}. Give {kind}")
    return kind if not index else f"{kind}:{index}"


def open_device(name: str) -> Device:
    """The device of that name, whether or not it is available. Raises UnknownNameError for an unknown kind."""
    device: Device = DEVICES.get(split_name(name)[0])(name)
    return device


def find_devices() -> list[str]:
    """The names of all devices of this machine (``cpu``, ``cuda``, ``cuda:1``, ``mps``). Loads torch."""
    return [name for _, kind in DEVICES.items() for name in kind.find()]


def find_device(name: str) -> Device:
    """The device of that name; ``auto`` is the first accelerator found, else the CPU.

    Raises UnknownNameError for a name that is not a device, DeviceError for a device that this machine lacks.
    """
    name = canonical_device_name(name)
    found = find_devices()
    if name == "auto":
        return next((device for device in map(open_device, found) if device.asynchronous), open_device(found[0]))
    if name not in found:
        raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
    return open_device(name)
