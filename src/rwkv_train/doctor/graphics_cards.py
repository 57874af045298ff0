"""Checks of NVIDIA cards: the driver, what torch can do with them, and their health."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rwkv_train.doctor.findings import (
    Answers,
    Finding,
    bytes_text,
    fault,
    good,
    in_one_line,
    pip_install,
    skipped,
    warning,
)
from rwkv_train.doctor.python_packages import TORCH_TRIED, torch_build
from rwkv_train.find_gpus import (
    BF16_CAPABILITY,
    OLDEST_DRIVER,
    Driver,
    answer_of,
    ask_driver,
    find_gpus,
)
from rwkv_train.processors import visible_gpus

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_UPDATE = "install a driver of branch R{} or newer (sudo apt-get install nvidia-driver-{}), restart"
# Of a card's memory that is free, below which somebody else works on it.
_FREE_SHARE = 0.5
# A card slows itself at about that heat.
_HOT_CELSIUS = 87
_QUESTIONS = "index,name,temperature.gpu,ecc.errors.uncorrected.volatile.total"
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


def check_driver(folder: Path) -> Answers:
    """Yields whether driver and torch fit together; nothing of torch is imported."""
    yield "ask nvidia-smi"
    driver, build = ask_driver(), torch_build()
    found = _driver_fault(driver)
    if found is None and driver.cards and build is not None:
        found = _pair_fault(driver, build.version, build.cuda)
    if found is not None:
        yield found
    elif not driver.cards:
        reason = f" ({driver.failure})" if driver.failure else ""
        yield good(f"no NVIDIA card here{reason}; runs are on the CPU")
    else:
        yield good(f"{driver.version}, {len(driver.cards)} x {driver.cards[0]}")


def _driver_fault(driver: Driver) -> Finding | None:
    """Returns why the driver does not answer although a card is there."""
    if driver.failure is not None and "does not answer" in driver.failure:
        return fault(driver.failure, "sudo reboot: nothing else ends a driver that hangs")
    if driver.failure is not None and driver.cards:
        return fault(
            f"{driver.cards[0]} cannot be used: {driver.failure}",
            "sudo modprobe nvidia; after an update of the driver restart the machine",
        )
    if not driver.cards and (slot := next(_cards_on_bus(), None)) is not None:
        newest = max(OLDEST_DRIVER.values())
        return fault(
            f"an NVIDIA card is in slot {slot}, and no driver answers for it",
            f"{_UPDATE.format(newest, newest)}; in a container: docker run --gpus all",
        )
    return None


def _pair_fault(driver: Driver, torch: str, cuda: str | None) -> Finding | None:
    """Returns why the torch that is installed cannot use the driver's cards."""
    card = driver.cards[0]
    if visible_gpus() == []:
        return warning("CUDA_VISIBLE_DEVICES hides all cards", "unset CUDA_VISIBLE_DEVICES")
    if cuda is None:
        return fault(
            f"{card} is there (driver {driver.version}), and torch {torch} was built for CPUs",
            _other_torch(),
        )
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    branch = (driver.version or "").partition(".")[0]
    if oldest is not None and branch.isdigit() and int(branch) < oldest:
        return fault(
            f"the driver {driver.version} of {card} is too old for torch {torch}, built for CUDA "
            f"{cuda}, which needs {oldest} or newer",
            _UPDATE.format(oldest, oldest),
        )
    return None


def _other_torch() -> str:
    """Returns the command that installs the build of torch that pip takes by itself, for CUDA."""
    # pip takes "2.13.0+cpu" for 2.13.0, and a build for CUDA has other dependencies.
    remove = shlex.join([sys.executable, "-m", "pip", "uninstall", "-y", "torch"])
    return f"{remove} && {pip_install(f'torch=={TORCH_TRIED}')}"


def _cards_on_bus() -> Iterator[str]:
    """Yields the slots of NVIDIA's cards, as the bus tells without a driver."""
    if PCI_DEVICES.is_dir():
        for device in sorted(PCI_DEVICES.iterdir()):
            try:
                vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            except OSError:
                continue
            if vendor == _NVIDIA and kind.startswith(_DISPLAY):
                yield device.name


def check_cards(folder: Path) -> Answers:
    """Yields memory and capability of every card that torch can use, and a product on it."""
    yield "start CUDA"
    found = find_gpus()
    if found.fault is not None:
        yield fault(in_one_line(found.fault), "see the check driver")
        return
    if not found.count:
        yield skipped(found.reason or "no card here")
        return
    import torch

    architectures = torch.cuda.get_arch_list()
    for index in range(found.count):
        yield f"multiply on card {index}"
        yield _card(index, architectures)


def _card(index: int, architectures: list[str]) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    capability = torch.cuda.get_device_capability(index)
    number = f"{capability[0]}.{capability[1]}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(256, 256, device=torch.device("cuda", index))
        is_right = bool(((ones @ ones) == 256).all())
    except RuntimeError as error:
        known = ", ".join(architectures)
        return fault(
            f"card {index}, {name} (capability {number}): {in_one_line(str(error), 160)}; this "
            f"torch has code for {known}",
            _other_torch(),
        )
    measured = {"card": name, "free_bytes": free, "capability": number}
    told = f"card {index}, {name}: {bytes_text(free)} free of {bytes_text(total)}"
    if not is_right:
        return fault(f"{told}: it multiplies wrongly", "replace the card", **measured)
    if free < _FREE_SHARE * total:
        return warning(f"{told}: somebody else works on it", "nvidia-smi shows who", **measured)
    if capability < BF16_CAPABILITY:
        return warning(
            f"{told}, capability {number}, without bf16", "--precision fp16, or fp32", **measured
        )
    return good(f"{told}, capability {number}, bf16", **measured)


def check_card_health(folder: Path) -> Answers:
    """Yields errors of memory, heat, and the faults that the driver has logged."""
    program = shutil.which("nvidia-smi")
    if program is None or not ask_driver().version:
        yield skipped("no driver answers here")
        return
    yield "ask nvidia-smi"
    command = [program, f"--query-gpu={_QUESTIONS}", "--format=csv,noheader,nounits"]
    try:
        _, answer = answer_of(command)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield fault(f"nvidia-smi: {in_one_line(str(error))}", "restart the machine")
        return
    found = [finding for row in answer.splitlines() for finding in _row_findings(row)]
    found += _logged()
    yield from found
    if not found:
        yield good("no errors of memory, no heat, nothing in the driver's log that may be read")


def _row_findings(row: str) -> Iterator[Finding]:
    words = [word.strip() for word in row.rsplit(",", 2)]
    if len(words) != 3:
        return
    card, heat, errors = words
    if errors.isdigit() and int(errors) > 0:
        yield fault(
            f"card {card}: {errors} errors of memory that were not corrected since the start",
            "nvidia-smi -q -d ECC; restart the machine, and replace the card if they come back",
        )
    if heat.isdigit() and int(heat) >= _HOT_CELSIUS:
        yield warning(f"card {card} has {heat} degrees Celsius and slows itself", "cool it")


def _logged() -> list[Finding]:
    """Returns what the driver has written into the system's log, where that may be read."""
    program = shutil.which("dmesg")
    if program is None:
        return []
    try:
        _, log = answer_of([program])
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = _XID.findall(log)
    if not found:
        return []
    slot, number = found[-1]
    return [
        warning(
            f"the driver logged {len(found)} faults of a card, the last one Xid {number} at {slot}",
            "sudo dmesg | grep Xid, and look the number up in NVIDIA's list of Xid errors",
        )
    ]
