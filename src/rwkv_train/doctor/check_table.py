"""The index of all checks, in the order in which they are made.

A check is a generator of answers about this machine and the folder of a run. It imports the library
that it asks inside the function: the modules here are imported where every library may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rwkv_train.doctor import (
    build_tools,
    disk_speed,
    graphics_cards,
    kernel_checks,
    machine_state,
    memory_checks,
    network_checks,
    package_imports,
    process_limits,
    processor_checks,
    python_packages,
    rings,
    run_folder,
    training_steps,
)
from rwkv_train.doctor.findings import Answers


class Check(NamedTuple):
    """A row of the table.

    asks: what it looks at, for --list. limit_s: seconds after which it is ended; None: it is made
    in this process, because it only reads and cannot hang; others are made in a child, which may
    crash. needs: checks after whose fault there is nothing to find out here. long: it measures for
    seconds; --quick leaves it out.
    """

    name: str
    asks: str
    make: Callable[[Path], Answers]
    limit_s: float | None = None
    needs: tuple[str, ...] = ()
    long: bool = False


CHECKS = (
    Check("python", "version and kind of Python", python_packages.check_python),
    Check(
        "requirements",
        "packages that the trainer needs, and their versions",
        python_packages.check_requirements,
    ),
    Check("pairs", "versions that break one another", python_packages.check_pairs),
    Check("numpy", "import", package_imports.check_numpy, 30.0),
    Check("torch", "import, build, arrays of numpy", package_imports.check_torch, 60.0, ("numpy",)),
    Check(
        "lightning",
        "import of Lightning and of all that a run imports",
        package_imports.check_lightning,
        90.0,
        ("torch",),
    ),
    Check("deepspeed", "import", package_imports.check_deepspeed, 90.0, ("torch",)),
    Check("libraries", "import of the small ones", package_imports.check_libraries, 60.0),
    Check("temporary", "folder for temporary files", run_folder.check_temporary, 10.0),
    Check("driver", "NVIDIA's driver, and the torch for it", graphics_cards.check_driver, 45.0),
    Check(
        "cards",
        "memory, capability and a product on every card",
        graphics_cards.check_cards,
        60.0,
        ("torch", "driver"),
    ),
    Check(
        "card-health",
        "ECC, heat and what the driver logged",
        graphics_cards.check_card_health,
        60.0,
        ("driver",),
    ),
    Check(
        "compiler", "a C++ compiler that works", build_tools.check_compiler, 90.0, ("temporary",)
    ),
    Check("ninja", "the program that runs the compiler", build_tools.check_ninja, 20.0),
    Check("nvcc", "a CUDA compiler that fits torch", build_tools.check_nvcc, 60.0, ("torch",)),
    Check("triton", "what --compile 1 needs on a GPU", build_tools.check_triton, 60.0, ("torch",)),
    Check(
        "kernel-cache",
        "place, size and locks of the compiled kernels",
        kernel_checks.check_cache,
        20.0,
    ),
    Check(
        "kernels",
        "building and loading the kernels",
        kernel_checks.check_kernels,
        # A minute or two; a machine that is busy with other programs takes many times as long.
        1200.0,
        ("torch", "compiler", "ninja", "kernel-cache"),
    ),
    Check("shm", "shared memory", run_folder.check_shm, 10.0),
    Check("folder", "room, inodes and rights in the run's folder", run_folder.check_folder, 20.0),
    Check(
        "files",
        "renaming, links, locks and clock of that folder",
        run_folder.check_files,
        30.0,
        ("folder",),
    ),
    Check(
        "disk-speed",
        "writing and reading there, past the cache",
        disk_speed.check_disk_speed,
        60.0,
        ("folder",),
    ),
    Check(
        "limits", "ulimit and the group's limit of processes", process_limits.check_process_limits
    ),
    Check("clock", "time and time zone", machine_state.check_clock),
    Check("variables", "what a launcher or a shell has left", machine_state.check_variables),
    Check("processors", "cores, quota and threads", processor_checks.check_processors),
    Check("load", "other programs that keep the cores busy", processor_checks.check_load),
    Check("cpu-features", "vector units of the processor", processor_checks.check_features),
    Check("memory", "memory, swap and the group's limit", memory_checks.check_memory_room),
    Check("huge-pages", "pages of the heap", memory_checks.check_huge_pages),
    Check("network", "host name, loopback, MASTER_ADDR", network_checks.check_network, 30.0),
    Check(
        "gloo",
        "two processes on CPUs, and their bandwidth",
        rings.check_gloo,
        90.0,
        ("torch",),
        long=True,
    ),
    Check(
        "nccl",
        "a process a card, and their bandwidth",
        rings.check_nccl,
        120.0,
        ("torch", "driver", "cards"),
        long=True,
    ),
    Check(
        "training",
        "steps of every version on every device",
        training_steps.check_training,
        120.0,
        ("torch",),
        long=True,
    ),
)
