"""Apple GPUs through Metal. Failures are recognised by their texts: MPS raises no class of its own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from vitbench.core.errors import DeviceError
from vitbench.core.registry import DEVICES
from vitbench.devices.base import Device
from vitbench.devices.cpu import chip_name
from vitbench.devices.failures import AT_LINE

if TYPE_CHECKING:
    import torch

#: Metal's messages for work that failed (MTLCommandBufferError), whose results are invalid.
_METAL_FAILED = r"command buffer exited with error status|kIO(?:GPU|Accel)CommandBufferCallbackError\w"
_METAL_OUT_OF_MEMORY = r"kIO(?:GPU|Accel)CommandBufferCallbackErrorOutOfMemory"


@DEVICES.register("mps")
class MpsDevice(Device):
    """The GPU of an Apple machine."""

    kind = "mps"
    error_texts: ClassVar = (
        (AT_LINE + r"MPS backend out of memory", "oom", "out_of_memory"),
        (_METAL_OUT_OF_MEMORY, "oom", "out_of_memory"),
        (AT_LINE + r"Invalid buffer size: [\d.]+ (?:bytes|[KMGTPE]i?B)\b", "oom", "oom_single_buffer"),
        (
            r"Cannot convert a MPS Tensor to float64|BFloat16 is (?:not|only) supported on (?:MPS|MacOS)|"
            r"to the MPS backend but it does not have support for that dtype",
            "unsupported",
            "unsupported_dtype",
        ),
        (
            r"not (?:current(?:ly)? )?implemented (?:for the|on) MPS|^NotImplementedError: .*\bMPS\b|"
            r"larger than currently supported by the MPS backend|MPS supports tensors with dimensions",
            "unsupported",
            "unsupported_operator",
        ),
        (_METAL_FAILED, "error", "device_lost"),
    )
    fatal_stderr: ClassVar = (
        (rf"{_METAL_OUT_OF_MEMORY}|failed assertion .Failed to allocate \w+ MTLBuffer", "out_of_memory"),
        (
            r"total bytes of NDArray > 2\*\*32|product of dimension sizes > 2\*\*31|NDArray dimension length > INT_MAX",
            "tensor_too_large",
        ),
        (_METAL_FAILED, "device_lost"),
    )

    _watched_peak: int | None = None

    @classmethod
    def find(cls) -> list[str]:
        import torch

        return ["mps"] if torch.backends.mps.is_available() else []

    def describe(self) -> dict[str, Any]:
        chip = chip_name()
        name = chip if chip.startswith("Apple ") else "Apple"  # an Intel Mac's GPU has another name
        return {"name": f"{name} GPU (Metal)", "memory_bytes": int(self._torch.recommended_max_memory())}

    def synchronize(self) -> None:
        self._torch.synchronize()

    def _peak_api(self) -> Any:
        """torch.accelerator if it keeps a high-water mark for MPS (recent releases), else None."""
        import torch

        api = getattr(torch, "accelerator", None)
        if api is None or not hasattr(api, "max_memory_allocated"):
            return None
        try:
            api.max_memory_allocated()
        except (RuntimeError, NotImplementedError, ValueError):
            return None
        return api

    @property
    def memory_method(self) -> str:  # type: ignore[override]
        if self._peak_api() is not None:
            return "torch.accelerator.max_memory_allocated (bytes of live tensors)"
        return "largest torch.mps.current_allocated_memory seen after each module (a lower bound: MPS keeps no peak)"

    def memory_now(self) -> int:
        return int(self._torch.current_allocated_memory())

    def reset_peak(self) -> None:
        api = self._peak_api()
        if api is not None:
            api.reset_peak_memory_stats()
        else:
            self._watched_peak = self.memory_now()

    def peak(self) -> int:
        api = self._peak_api()
        if api is not None:
            return int(api.max_memory_allocated())
        return max(self._watched_peak or 0, self.memory_now())

    def reserved_memory(self) -> dict[str, tuple[int, str]]:
        how = "torch.mps.driver_allocated_memory after the call: live tensors, cache and what Metal keeps"
        return {"driver_memory": (int(self._torch.driver_allocated_memory()), how)}

    def watch(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        if self._peak_api() is not None:
            return contextlib.nullcontext()
        return self._look_after_each_module(model)

    @contextlib.contextmanager
    def _look_after_each_module(self, model: torch.nn.Module) -> Iterator[None]:
        def look(*_: Any) -> None:
            self._watched_peak = max(self._watched_peak or 0, self.memory_now())

        handles = [module.register_forward_hook(look) for module in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @classmethod
    def stderr_note(cls, text: str) -> str:
        operators = fallback_operators(text)
        return f"ran on the CPU without an MPS kernel: {', '.join(operators)}" if operators else ""

    def limit_memory(self, limit: int | None) -> str:
        if limit is None:
            return ""
        total = int(self._torch.recommended_max_memory())
        if limit > total:
            raise DeviceError(f"Memory limit of {limit} bytes is more than MPS recommends ({total}). Give less")
        self._torch.set_per_process_memory_fraction(limit / total)
        return (
            "high watermark ratio (torch.mps.set_per_process_memory_fraction) of the recommended maximum of "
            f"{total} bytes"
        )


def fallback_operators(stderr: str) -> list[str]:
    """The operators that ran on the CPU instead, by the warnings of PYTORCH_ENABLE_MPS_FALLBACK=1."""
    return sorted(set(re.findall(r"The operator '([\w:.]+)' is not currently supported on the MPS backend", stderr)))
