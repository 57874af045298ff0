"""Cards that are there and cannot be used are named before torch is imported; sick ones too."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train import find_gpus
from rwkv_train.doctor import graphics_cards as module
from rwkv_train.doctor.graphics_cards import check_card_health, check_cards, check_driver
from rwkv_train.doctor.python_packages import TorchBuild
from tests.doctor.planted import fault_of, findings, only, plant_program


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine whose nvidia-smi is a script, with this torch."""
    monkeypatch.setattr(find_gpus, "KERNEL_MODULE", tmp_path / "nvidia")
    monkeypatch.setattr(module, "PCI_DEVICES", tmp_path / "pci")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def set_up(words: str | None, cuda: str | None = "13.0") -> Path:
        if words is not None:
            plant_program(tmp_path / "bin", "nvidia-smi", words)
        monkeypatch.setattr(module, "torch_build", lambda: TorchBuild("2.13.0", cuda))
        return tmp_path

    return set_up


def test_a_driver_that_is_too_old_is_a_fault(machine):
    machine("echo 'NVIDIA H100, 535.183.01'")
    found = fault_of(check_driver)
    assert "the driver 535.183.01 of NVIDIA H100 is too old for torch 2.13.0" in found.found
    assert "CUDA 13.0, which needs 580 or newer" in found.found
    assert "nvidia-driver-580" in found.remedy


def test_a_torch_for_cpus_beside_a_card_is_a_fault(machine):
    machine("echo 'NVIDIA H100, 580.65.06'", cuda=None)
    found = fault_of(check_driver)
    assert "torch 2.13.0 was built for CPUs" in found.found
    assert "pip uninstall -y torch && " in found.remedy
    assert found.remedy.endswith("pip install torch==2.13.0")


@pytest.mark.parametrize("words", ["exec sleep 20", "sleep 20; exit"])
def test_an_nvidia_smi_that_hangs_is_a_fault(machine, monkeypatch, words):
    monkeypatch.setattr(find_gpus, "TIMEOUT_S", 0.2)
    machine(words)
    found = fault_of(check_driver)
    assert "nvidia-smi does not answer" in found.found and "reboot" in found.remedy


def test_a_driver_and_a_module_of_different_versions_are_a_fault(machine):
    folder = machine("echo 'Driver/library version mismatch' >&2; exit 18")
    (folder / "nvidia" / "gpus" / "0000:01:00.0").mkdir(parents=True)
    found = fault_of(check_driver)
    assert "cannot be used: nvidia-smi: Driver/library version mismatch" in found.found
    assert "modprobe nvidia" in found.remedy


@pytest.mark.parametrize(("vendor", "faulty"), [("0x10de", True), ("0x1002", False)])
def test_a_card_without_a_driver_is_a_fault(machine, vendor, faulty):
    device = machine(None) / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text("0x030200\n")
    if faulty:
        found = fault_of(check_driver)
        assert "an NVIDIA card is in slot 0000:01:00.0" in found.found
        assert "docker run --gpus all" in found.remedy
    else:
        assert only(check_driver).found == "no NVIDIA card here; runs are on the CPU"


def test_a_driver_that_fits_and_cards_that_are_hidden(machine, monkeypatch):
    machine("echo 'NVIDIA H100, 580.65.06'; echo 'NVIDIA H100, 580.65.06'")
    assert only(check_driver).found == "580.65.06, 2 x NVIDIA H100"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides all cards" in fault_of(check_driver, level="warn").found


def test_what_torch_says_of_a_card_is_told(machine, monkeypatch):
    told = find_gpus.FoundGpus(fault="NVIDIA H100 is there, but torch cannot use it: unknown error")
    monkeypatch.setattr(module, "find_gpus", lambda: told)
    assert "unknown error" in fault_of(check_cards).found
    monkeypatch.setattr(module, "find_gpus", lambda: find_gpus.FoundGpus(reason="hidden"))
    assert only(check_cards).found == "hidden"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """A card in the place of which the processor multiplies."""
    import torch

    kept = torch.device
    monkeypatch.setattr(module, "find_gpus", lambda: find_gpus.FoundGpus(1, True, "H100"))
    monkeypatch.setattr(torch, "device", lambda *words: kept("cpu"))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")

    def set_up(capability: tuple[int, int], free: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free << 30, 80 << 30))

    return set_up


@pytest.mark.parametrize(
    ("capability", "free", "level", "told"),
    [
        ((9, 0), 79, "ok", "79.0 GiB free of 80.0 GiB, capability 9.0, bf16"),
        ((9, 0), 3, "warn", "somebody else works on it"),
        ((7, 5), 79, "warn", "without bf16"),
    ],
)
def test_memory_and_capability_of_a_card_are_told(card, capability, free, level, told):
    card(capability, free)
    found = only(check_cards)
    assert found.level == level and told in found.found


def test_a_card_that_torch_has_no_code_for_is_a_fault(card, monkeypatch):
    import torch

    def none(*words, **options):
        raise RuntimeError("CUDA error: no kernel image is available for execution")

    card((12, 0), 79)
    monkeypatch.setattr(torch, "ones", none)
    found = fault_of(check_cards)
    assert "no kernel image" in found.found and "has code for sm_80, sm_90" in found.found


def test_errors_of_memory_heat_and_logged_faults_are_named(machine):
    folder = machine(
        "case $1 in *driver_version*) echo 'NVIDIA H100, 580.65.06';; "
        "*) echo '0, NVIDIA H100, with comma, 91, 3'; echo '1, T4, 40, [N/A]';; esac"
    )
    line = "[ 17.0] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus."
    plant_program(folder / "bin", "dmesg", f"echo '{line}'")
    found = [f"{f.level}: {f.found}" for f in findings(check_card_health(Path()))]
    assert found == [
        "fault: card 0, NVIDIA H100, with comma: 3 errors of memory that were not corrected "
        "since the start",
        "warn: card 0, NVIDIA H100, with comma has 91 degrees Celsius and slows itself",
        "warn: the driver logged 1 faults of a card, the last one Xid 79 at PCI:0000:01:00",
    ]
