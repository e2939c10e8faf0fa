"""What is recorded of the machine, from files of other machines; its hash; and the load beside a measurement."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import vitbench
from vitbench.core.errors import Unsupported
from vitbench.devices import cpu
from vitbench.devices.host import environment, load, memory
from vitbench.devices.host.environment import (
    capture_environment,
    default_threads,
    describe_libraries,
    describe_power,
    describe_session,
    describe_system,
    hash_environment,
    instruction_sets,
    shorten_home,
    usable_cores,
)
from vitbench.devices.host.load import (
    GPU_CLOCK,
    GPU_SLOWED,
    GPU_TEMPERATURE,
    OTHER_LOAD,
    Load,
    LoadWatch,
    load_measurements,
)

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu vme sse sse2 ss ht syscall nx pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 avx f16c smep smap avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8 hypervisor
"""
AMD = """processor\t: 0
model name\t: AMD EPYC 9554 64-Core Processor
flags\t\t: fpu sse sse2 sse4a fma fma4 avx avx2 sme sev smx
"""
ARM = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp sve bf16 i8mm sme
"""
OLD = """processor\t: 0
vendor_id\t: IBM/S390
"""

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """``machine({"/proc/cpuinfo": text})``: from then on absolute paths are read below a folder that has these files
    alone.
    """

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for module in (environment, memory, cpu):
            monkeypatch.setattr(module, "Path", lambda name: tmp_path / name.lstrip("/"))
        return tmp_path

    return make


# the processor


@pytest.mark.parametrize(
    ("cpuinfo", "sets"),
    [
        (
            INTEL,
            [
                *("amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512f"),
                *("f16c", "fma", "sse2", "sse4_1", "sse4_2", "ssse3"),
            ],
        ),
        (AMD, ["avx", "avx2", "fma", "sse2", "sse4a"]),  # its sme encrypts memory
        (ARM, ["asimd", "asimddp", "asimdhp", "bf16", "sme", "sve"]),
        (OLD, []),
    ],
    ids=["Intel", "AMD", "ARM", "without"],
)
def test_vector_extensions_are_read_from_the_kernels_list(machine: Machine, cpuinfo: str, sets: list[str]) -> None:
    machine({"/proc/cpuinfo": cpuinfo})
    assert instruction_sets() == sets


def test_a_system_without_a_list_has_none(machine: Machine) -> None:
    machine({})
    assert instruction_sets() == []


def test_macos_lists_its_extensions_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = (
        "hw.optional.neon: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.floatingpoint: 1\n"
        "hw.optional.avx2_0: 1\nhw.memsize: 1\n"
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    done = subprocess.CompletedProcess(["sysctl"], 0, stdout=printed, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert instruction_sets() == ["avx2_0", "feat_bf16", "neon"]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Apple M2\n", "Apple M2"),
        ("", "arm"),
        (FileNotFoundError("sysctl"), "arm"),
        (subprocess.TimeoutExpired("sysctl", 10), "arm"),
    ],
    ids=["known", "unknown", "no sysctl", "late"],
)
def test_macos_names_its_chip_by_sysctl_where_python_knows_an_architecture_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: str | Exception, name: str
) -> None:
    def run(words: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words == ("sysctl", "-n", "machdep.cpu.brand_string")
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(words, 0 if answer else 1, stdout=answer, stderr="")

    machine({})
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(subprocess, "run", run)
    assert cpu.processor_name() == name
    monkeypatch.setattr(sys, "platform", "linux")
    assert cpu.chip_name() == ""


@pytest.mark.parametrize(("cpuinfo", "virtual"), [(INTEL, True), (AMD, False), (ARM, None)])
def test_a_hypervisor_shows_in_the_flags_of_x86(machine: Machine, cpuinfo: str, virtual: bool | None) -> None:
    machine({"/proc/cpuinfo": cpuinfo})
    assert environment._is_virtual_machine() is virtual


@pytest.mark.parametrize(("active", "value"), [("1\n", True), ("0\n", False), (None, None)])
def test_hyperthreading(machine: Machine, active: str | None, value: bool | None) -> None:
    machine({"/sys/devices/system/cpu/smt/active": active} if active else {})
    assert environment._hyperthreading() is value


# power


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        (
            {
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
                "/sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference": "balance_performance\n",
                "/sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
            },
            {"governor": "powersave", "energy_preference": "balance_performance", "turbo": True},
        ),
        ({"/sys/devices/system/cpu/intel_pstate/no_turbo": "1\n"}, {"turbo": False}),
        ({"/sys/devices/system/cpu/cpufreq/boost": "1\n"}, {"turbo": True}),
        ({"/sys/devices/system/cpu/cpufreq/boost": "0\n"}, {"turbo": False}),
        ({"/sys/firmware/acpi/platform_profile": "low-power\n"}, {"battery_saver": True}),
        ({"/sys/firmware/acpi/platform_profile": "balanced\n"}, {"battery_saver": False}),
    ],
)
def test_what_the_clock_depends_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: dict[str, Any]
) -> None:
    machine(files)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    nothing = dict.fromkeys(("governor", "energy_preference", "turbo", "on_battery", "battery_saver"))
    assert describe_power() == nothing | expected


@pytest.mark.parametrize(("plugged", "on_battery"), [(True, False), (False, True), (None, None)])
def test_a_battery(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, plugged: bool | None, on_battery: bool | None
) -> None:
    machine({})
    battery = types.SimpleNamespace(power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert describe_power()["on_battery"] is on_battery


def test_a_battery_that_cannot_be_read_is_unknown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("no such sensor")

    machine({})
    monkeypatch.setattr(psutil, "sensors_battery", refuse, raising=False)
    assert describe_power()["on_battery"] is None
    monkeypatch.delattr(psutil, "sensors_battery")
    assert describe_power()["on_battery"] is None


@pytest.mark.parametrize(
    ("printed", "saver"), [(" lowpowermode         1\n", True), (" lowpowermode         0\n", False), ("", None)]
)
def test_macos_low_power_mode(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, printed: str, saver: bool | None
) -> None:
    machine({})
    monkeypatch.setattr(sys, "platform", "darwin")
    done = subprocess.CompletedProcess(["pmset"], 0, stdout=printed, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert environment._battery_saver() is saver


# memory and containers


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"/sys/fs/cgroup/cpu.max": "half\n"}, None),
    ],
    ids=["none", "v2 without a limit", "v2", "v1", "v1 without a limit", "illegible"],
)
def test_a_containers_quota_of_cores(machine: Machine, files: dict[str, str], quota: float | None) -> None:
    machine(files)
    assert environment._container_quota() == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 1), (8, 0.5, 1), (2, 4.0, 2)],
)
def test_usable_cores_are_bound_by_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(environment, "_container_quota", lambda: quota)
    assert usable_cores() == cores
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 4)
    assert default_threads() == min(cores, 4)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"/sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"/sys/fs/cgroup/memory.max": "2147483648\n"}, 2**31),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n"}, 2**30),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
    ids=["none", "v2 without a limit", "v2", "v1", "v1 without a limit"],
)
def test_a_containers_memory(machine: Machine, files: dict[str, str], limit: int | None) -> None:
    machine(files)
    assert memory.memory_limit_of_container() == limit


V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({f"{V2}/memory.max": "8000\n"}, 8000),
        ({f"{V2}/memory.max": "8000\n", f"{V2}/memory.current": "5000\n"}, 3000),
        (
            {
                f"{V2}/memory.max": "8000\n",
                f"{V2}/memory.current": "5000\n",
                f"{V2}/memory.stat": "anon 900\nfile 4100\ninactive_file 3000\nactive_file 1000\nshmem 100\n",
            },
            7000,
        ),
        (
            {
                f"{V1}/memory.limit_in_bytes": "8000\n",
                f"{V1}/memory.usage_in_bytes": "5000\n",
                f"{V1}/memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 3000\ntotal_active_file 500\n",
            },
            6500,
        ),
        (
            {
                f"{V2}/memory.max": "8000\n",
                f"{V2}/memory.current": "5000\n",
                f"{V2}/memory.stat": "inactive_file 600\nactive_file many\nactive_file\n\n",
            },
            3600,
        ),
        (
            {
                f"{V2}/memory.max": "8000\n",
                f"{V2}/memory.current": "5000\n",
                f"{V2}/memory.stat": "inactive_file 6000\n",
            },
            8000,
        ),
        ({f"{V2}/memory.max": "8000\n", f"{V2}/memory.current": "9000\n"}, 0),
    ],
    ids=["limit alone", "no memory.stat", "v2", "v1", "a key is missing", "more cache than use", "beyond the limit"],
)
def test_a_containers_cache_of_files_is_available(machine: Machine, files: dict[str, str], available: int) -> None:
    machine(files)
    assert memory.available_memory() == available


def test_limits_of_the_groups_above_hold_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a batch system or systemd the limit is at the group of the job, not at the mount."""
    root = machine(
        {
            "/proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/old/job\n0::/slice/job.scope/step\n",
            f"{V2}/slice/job.scope/step/memory.max": "max\n",
            f"{V2}/slice/job.scope/memory.max": "8000\n",
            f"{V2}/slice/job.scope/memory.current": "5000\n",
            f"{V2}/slice/memory.max": "9000\n",
            f"{V2}/slice/memory.current": "8500\n",
            f"{V2}/slice/cpu.max": "300000 100000\n",
            f"{V1}/old/memory.limit_in_bytes": "7000\n",
            "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000\n",
            "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        }
    )
    monkeypatch.setattr(memory, "PROC_SELF", root / "proc/self")
    assert memory.memory_limit_of_container() == 7000
    assert memory.available_memory() == 500
    assert environment._container_quota() == 2.0
    monkeypatch.setattr(memory, "_limit_in", lambda folder: None)
    assert memory.available_memory() > 7000


def test_trainings_have_no_more_memory_than_their_container(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.core.errors import DataError
    from vitbench.training.data.images import check_memory, fits_comfortably

    monkeypatch.setattr("vitbench.training.data.images.available_memory", lambda: 100_000)
    assert fits_comfortably(16, (32, 32))
    assert not fits_comfortably(17, (32, 32))
    with pytest.raises(DataError, match="40 images .* GB are free"):
        check_memory(40, (32, 32))


@pytest.mark.parametrize(("hard", "most"), [(10**15, 10**15), (2**62, None)])
def test_a_limit_that_the_system_has_set_is_not_raised(
    monkeypatch: pytest.MonkeyPatch, hard: int, most: int | None
) -> None:
    resource = pytest.importorskip("resource")
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_DATA holds on Linux")
    asked = []
    monkeypatch.setattr(cpu, "available_memory", lambda: 10**16)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: asked.append(pair))
    device = cpu.CpuDevice("cpu")
    device.limit_memory(None)
    ((soft, now_hard),) = asked
    assert soft == now_hard
    assert soft == most if most else soft > 10**15
    if most:
        with pytest.raises(Unsupported, match="beyond the limit that this process was given"):
            device.limit_memory(10**16)


@pytest.mark.parametrize(("kept", "said"), [(0, "returning blocks"), (1 << 24, "a lower bound")])
def test_an_allocator_that_keeps_freed_memory_is_reported(
    monkeypatch: pytest.MonkeyPatch, kept: int, said: str
) -> None:
    sizes = iter((10**9, 10**9 + kept))
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(
        cpu.ctypes, "CDLL", lambda name: types.SimpleNamespace(mallopt=lambda *_: 1, malloc_trim=lambda _: 1)
    )
    monkeypatch.setattr(cpu.CpuDevice, "memory_now", lambda self: next(sizes))
    assert said in cpu.CpuDevice("cpu").steady_allocator()


@pytest.mark.parametrize(("text", "chosen"), [("always [madvise] never\n", "madvise"), ("whatever\n", None)])
def test_huge_pages(machine: Machine, text: str, chosen: str | None) -> None:
    root = machine({"/sys/kernel/mm/transparent_hugepage/enabled": text})
    assert environment._chosen(root / "sys/kernel/mm/transparent_hugepage/enabled") == chosen
    assert environment._chosen(root / "nowhere") is None


# the whole, its hash, and what is not in it

LIBRARIES = {"versions": {"torch": "2.15.0"}, "mkl": True}
DEVICES = {"cpu": {"name": "Example CPU"}}


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    one = {"system": {"a": 1, "b": [1, 2]}, "libraries": {"c": None}}
    other = {"libraries": {"c": None}, "system": {"b": [1, 2], "a": 1}}
    assert hash_environment(one) == hash_environment(other) == hash_environment(json.loads(json.dumps(one)))
    assert len(hash_environment(one)) == 12
    int(hash_environment(one), 16)


def test_the_hash_depends_on_every_value() -> None:
    captured = capture_environment(LIBRARIES, DEVICES)
    hashes = {hash_environment(captured)}
    hashes.add(hash_environment(capture_environment({**LIBRARIES, "mkl": False}, DEVICES)))
    hashes.add(hash_environment(capture_environment(LIBRARIES, {})))
    hashes.add(hash_environment({**captured, "system": {**captured["system"], "usable_cores": 999}}))
    assert len(hashes) == 4


def test_the_hash_is_of_the_environment_and_not_of_the_time_or_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = hash_environment(capture_environment(LIBRARIES, DEVICES))
    monkeypatch.setattr(vitbench, "__version__", "99.9")
    monkeypatch.setattr(environment, "find_commit", lambda: "0" * 40)
    monkeypatch.setattr(sys, "argv", ["vitbench", "run", "--suite", "smoke"])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDITOR", "ed")
    assert hash_environment(capture_environment(LIBRARIES, DEVICES)) == before
    session = describe_session()
    assert (session["vitbench"], session["commit"]) == ("99.9", "0" * 40)


def test_a_variable_that_can_change_a_number_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KMP_AFFINITY", raising=False)
    before = capture_environment(LIBRARIES, DEVICES)
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    after = capture_environment(LIBRARIES, DEVICES)
    assert after["system"]["variables"]["KMP_AFFINITY"] == "compact"
    assert hash_environment(before) != hash_environment(after)


def test_no_name_of_a_user_or_a_host_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("HOSTNAME", "workhorse")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/lib/libjemalloc.so")
    monkeypatch.setenv("TORCH_HOME", "/home/somebody/torch")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_somebody")
    monkeypatch.setattr(platform, "node", lambda: "workhorse")
    monkeypatch.setattr("socket.gethostname", lambda: "workhorse")
    assert getpass.getuser() == "somebody"
    captured = capture_environment(describe_libraries(), DEVICES)
    text = json.dumps([captured, describe_session(["/home/somebody/bin/vitbench", "run", "--out", "/home/somebody/x"])])
    assert "somebody" not in text
    assert "workhorse" not in text
    assert captured["system"]["variables"]["LD_PRELOAD"] == "~/lib/libjemalloc.so"
    assert captured["system"]["variables"]["TORCH_HOME"] == "~/torch"
    assert "TORCHINDUCTOR_CACHE_DIR" not in captured["system"]["variables"]


def test_a_home_at_the_root_shortens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert shorten_home("/usr/lib") == "/usr/lib"


def test_this_machine_is_described_in_json_values() -> None:
    system, libraries = describe_system(), describe_libraries()
    assert json.loads(json.dumps([system, libraries])) == [system, libraries]
    assert system["cpu"]
    assert system["memory_bytes"] > 0
    assert 1 <= system["usable_cores"] <= system["logical_cores"]
    assert system["workers"] in ("forked", "spawned")
    assert libraries["versions"]["torch"].partition("+")[0]
    assert libraries["denormals_flushed"] is False


# the load beside a measurement


def test_a_watch_takes_its_own_programs_off_and_never_goes_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In four seconds this run used six of the cores' five seconds (the kernel's counts are not of one moment)."""
    wall, system, own = (
        iter([10.0, 14.0]),
        iter([(100.0, None), (105.0, None)]),
        iter([{1: (1.0, 0.0)}, {1: (5.0, 0.0), 2: (2.0, 0.0)}]),
    )
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(load, "_system_seconds", lambda: next(system))
    monkeypatch.setattr(load, "_own_seconds", lambda: next(own))
    seen = LoadWatch().stop()
    monkeypatch.undo()
    assert (seen.other_load, seen.cpu_steal) == (0.0, None)


def test_waiting_is_no_busy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = types.SimpleNamespace(
        user=1.0, nice=2.0, system=4.0, irq=8.0, softirq=16.0, steal=32.0, idle=1e3, iowait=1e4
    )
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    assert load._system_seconds() == (31.0, 32.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: types.SimpleNamespace(user=1.0, system=4.0, idle=1e3))
    assert load._system_seconds() == (5.0, None)


@pytest.mark.integration
def test_a_childs_time_is_this_programs_own() -> None:
    """A child that used 0.3 s of a core at least: so much more is this program's own time with it than without."""
    without = load._own_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = load._own_seconds()
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            stream.close()
    assert load._rise(without, with_child) > 0.2
    if sys.platform.startswith("linux"):  # which tells of children that have ended
        assert load._rise(without, load._own_seconds()) > 0.2
        assert load._rise(with_child, load._own_seconds()) < 0.2


def test_what_a_program_used_before_it_ended_is_nobodys_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that had used 20 s uses 0.25 s more and ends, in a second in which its parent used 0.5 s, and nothing
    else ran; whether or not the system tells of children that have ended.
    """
    wall, system = iter([10.0, 11.0]), iter([(100.0, None), (100.75, None)])
    own = iter([{1: (3.0, 7.0), 2: (20.0, 0.0)}, {1: (3.5, 27.25)}])
    assert load._rise({1: (3.0, 0.0), 2: (20.0, 0.0)}, {1: (3.5, 0.0)}) == 0.5
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(load, "_system_seconds", lambda: next(system))
    monkeypatch.setattr(load, "_own_seconds", lambda: next(own))
    seen = LoadWatch().stop()
    monkeypatch.undo()
    assert seen.other_load == 0.0


def test_sensors_are_read_in_base_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: types.SimpleNamespace(current=2500.0), raising=False)

    def sensor(*degrees: float) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(current=value) for value in degrees]

    sensors = {"coretemp": sensor(50.0, 61.0), "nvme": sensor(80.0)}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    seen = LoadWatch().stop()
    assert (seen.cpu_frequency, seen.cpu_temperature) == (2.5e9, 61.0)
    assert (seen.gpu_clock, seen.gpu_temperature, seen.gpu_slowed) == (None, None, None)


@pytest.mark.parametrize("error", [OSError, NotImplementedError, RuntimeError])
def test_sensors_that_cannot_be_read_are_unknown(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse() -> None:
        raise error("no")

    monkeypatch.setattr(psutil, "cpu_freq", refuse, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", refuse, raising=False)
    seen = LoadWatch().stop()
    assert (seen.cpu_frequency, seen.cpu_temperature) == (None, None)


def test_systems_without_sensors_have_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None, raising=False)
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    seen = LoadWatch().stop()
    assert (seen.cpu_frequency, seen.cpu_temperature) == (None, None)


def test_beside_a_gpu_its_state_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def state(index: int) -> Any:
        asked.append(index)
        return 1.8e9, 70.0

    slowed = iter([5.0, 6e9, 0.0, 0.0])  # seconds so far
    monkeypatch.setattr(load, "gpu_state", state)
    monkeypatch.setattr(load, "slowed_seconds", lambda index: next(slowed))
    seen = LoadWatch("cuda:1").stop()
    assert (seen.gpu_clock, seen.gpu_temperature) == (1.8e9, 70.0)
    assert seen.gpu_slowed is not None
    assert seen.gpu_slowed > 1.0  # a counter that rose by more than the time that went by, so as to need no clock
    LoadWatch("cuda").stop()
    assert asked == [1, 0]
    found = {one.metric: (one.samples, one.unit) for one in load_measurements([seen])}
    assert found[GPU_CLOCK] == (((1.8e9,),), "Hz")
    assert found[GPU_TEMPERATURE] == (((70.0,),), "degC")
    assert found[GPU_SLOWED] == (((seen.gpu_slowed,),), "1")


def test_an_unreadable_gpu_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> None:
        raise Unsupported("NVML is not installed")

    monkeypatch.setattr(load, "gpu_state", refuse)
    seen = LoadWatch("cuda").stop()
    assert seen.gpu_clock is None
    assert seen.other_load is not None


def test_unknown_values_are_left_out() -> None:
    assert load_measurements([Load()]) == []
    (one,) = load_measurements([Load(other_load=0.0), Load(other_load=0.5)])
    assert (one.metric, one.samples, one.status) == (OTHER_LOAD, ((0.0,), (0.5,)), "ok")
    assert one.method
