"""The device and number format to generate with."""

from __future__ import annotations

from rwkv_train.errors import ConfigError

DEVICE_NAMES = ("auto", "cpu", "cuda")
PRECISION_NAMES = ("auto", "fp32", "bf16", "fp16")
WEIGHT_NAMES = ("float", "int8")


def device_and_precision(device: str, precision: str) -> tuple[str, str]:
    """Returns the names of the device and of the number format: as given, or the machine's best.

    device: auto, cpu or cuda.  precision: auto, fp32, bf16 or fp16.
    Raises ConfigError for a GPU that is asked for or there, and cannot be used.
    """
    cpu_precision = "fp32" if precision == "auto" else precision
    if device == "cpu":
        return "cpu", cpu_precision
    # Asked for here: it is replaced in tests, and takes a moment where there are cards.
    from rwkv_train.find_gpus import find_gpus

    found = find_gpus()
    if found.fault is not None:
        raise ConfigError(f"--device {device}: {found.fault}; or give --device cpu")
    if not found.count:
        if device == "cuda":
            reason = f" ({found.reason})" if found.reason else ""
            raise ConfigError(f"--device cuda: there is no GPU here{reason}; use --device cpu")
        return "cpu", cpu_precision
    # Cards before Ampere would emulate bf16.
    return "cuda", ("bf16" if found.has_bf16 else "fp16") if precision == "auto" else precision
