"""Data of 10^4 shards and 10^12 tokens: start-up, memory, descriptors, and random samples.

    python -m benchmarks.data_scale [--shards 10000] [--parts 1000] [--folder DIR] [--beside SRC]

Shards are holes in files (`sparse_shards`), so that the whole takes some MB of disk. Every row is a
process of its own. Peers: `np.memmap` for each shard, all kept or one made for a sample. Warm rows
read real tokens in the page cache. SRC is the `src` folder of another checkout, which reads the
same ordinary data set in turn: ratios of processor time are the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sparse_shards import write_sparse_shards
from rwkv_train.data.binidx.manifest import read_manifest, shard_prefixes
from rwkv_train.data.samples.document_starts import document_starts
from rwkv_train.data.samples.token_sources import open_source, pairs_of

SHARD_TOKENS = 10**8
LENGTH = 4097
ROUNDS = 5
# (tokens of a shard, shards) of the real data that is read warm.
_WARM = 500_000, 200

# Reads random samples of a data set with whichever package it finds, without this one.
_READ = """
import random, sys, time
import rwkv_train
from rwkv_train.data.samples.token_sources import open_source
source, length = open_source(sys.argv[1], "binidx"), int(sys.argv[2])
numbers = random.Random(1)
places = [numbers.randrange(source.tokens - length) for _ in range(5000)]
rounds = []
for _ in range(7):
    began = time.process_time()
    for place in places:
        source.get(place, length)
    rounds.append((time.process_time() - began) / len(places) * 1e6)
print(rwkv_train.__file__, sorted(rounds[1:])[3])
"""

MODEL = (
    *("--rwkv_version", "7", "--n_layer", "1", "--n_embd", "64", "--head_size", "64"),
    *("--vocab_size", "257", "--ctx_len", "512", "--micro_bsz", "2", "--max_steps", "1"),
    *("--exit_tokens", "1000000000000", "--epoch_steps", "100", "--accelerator", "cpu"),
    *("--precision", "fp32", "--plot", "0", "--num_workers", "0"),
)


def opened_by_us(prefix: str) -> Callable[[int, int], Any]:
    """Opens the data as training does, and returns its reading."""
    return open_source(prefix, "binidx").get


def kept_maps(prefix: str) -> Callable[[int, int], Any]:
    """Maps every shard with NumPy, and returns the reading."""
    maps = [np.memmap(path, "<u2", "r") for path in _paths(prefix)]
    size = len(maps[0])

    def read(offset: int, length: int) -> Any:
        shard, place = divmod(offset, size)
        return maps[shard][place : place + length].astype(np.int64)

    return read


def map_a_sample(prefix: str) -> Callable[[int, int], Any]:
    """Returns a reading that maps the shard of each sample with NumPy, and lets go of it."""
    paths = _paths(prefix)
    size = paths[0].stat().st_size // 2

    def read(offset: int, length: int) -> Any:
        shard, place = divmod(offset, size)
        return np.memmap(paths[shard], "<u2", "r")[place : place + length].astype(np.int64)

    return read


WAYS = {"ours": opened_by_us, "kept maps": kept_maps, "map a sample": map_a_sample}


def measure_reading(way: str, prefix: str, samples: int) -> dict[str, Any]:
    """Returns processor seconds to open, microseconds a sample, and what the process holds."""
    began, wall = time.process_time(), time.perf_counter()
    read = WAYS[way](prefix)
    found: dict[str, Any] = {
        "open_cpu_s": time.process_time() - began,
        "open_wall_s": time.perf_counter() - wall,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    paths = _paths(prefix)
    # Other places for each way: what one has read would be in the page cache for the next.
    numbers, size = random.Random(f"{way} {samples}"), paths[0].stat().st_size // 2
    # Within a shard, which the peers need.
    places = [
        numbers.randrange(len(paths)) * size + numbers.randrange(size - LENGTH)
        for _ in range(samples)
    ]
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for place in places:
            read(place, LENGTH)
        rounds.append((time.process_time() - began) / samples * 1e6)
    maps = sum(prefix in line for line in Path("/proc/self/maps").read_text().splitlines())
    found |= {"first_us": rounds[0], "again_us": statistics.median(rounds[1:]), "maps": maps}
    return {**found, "descriptors": len(list(Path("/proc/self/fd").iterdir()))}


def measure_starts(prefix: str, samples: int) -> dict[str, Any]:
    """Returns processor seconds to find all starts of documents, and microseconds a window."""
    source = open_source(prefix, "binidx")
    began = time.process_time()
    starts = document_starts(source)
    found = {"open_cpu_s": time.process_time() - began, "pairs": len(pairs_of(source))}
    numbers = random.Random(1)
    began = time.process_time()
    for _ in range(samples):
        starts.among(numbers.randrange(source.tokens - LENGTH), LENGTH)
    return {**found, "first_us": (time.process_time() - began) / samples * 1e6}


def measure_start(arguments: list[str]) -> dict[str, Any]:
    """Returns processor seconds and memory of a whole command line of train.py."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=root, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.perf_counter() - wall,
        "rss_mb": after.ru_maxrss / 1024,
    }


def main() -> int:
    """Measures and prints all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--beside", type=Path, help="the src folder of another checkout")
    # Of the processes that this one starts.
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        call, *arguments = options.child
        samples = options.samples
        calls: dict[str, Callable[[], dict[str, Any]]] = {
            "read": lambda: measure_reading(arguments[0], arguments[1], samples),
            "starts": lambda: measure_starts(arguments[0], samples),
            "start": lambda: measure_start(json.loads(arguments[0])),
        }
        print(json.dumps(calls[call]()))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _report(Path(folder), options)
    return 0


def _report(folder: Path, options: argparse.Namespace) -> None:
    data, warm = folder / "data", folder / "warm"
    began = time.perf_counter()
    write_sparse_shards(data, options.shards, SHARD_TOKENS, documents=1000)
    _write_warm(warm)
    parts = []
    for number in range(options.parts):
        shards = max(1, options.shards // options.parts)
        write_sparse_shards(folder / f"part{number}", shards, SHARD_TOKENS)
        # Weights that come out even after a long time only.
        parts.append(f"{folder}/part{number}:{1 + number * 7919 % 9973}.{number % 10}")
    print(f"made in {time.perf_counter() - began:.1f} s", flush=True)
    for name, prefix in ((f"{options.shards} shards, cold holes", data), ("warm", warm)):
        for way in WAYS:
            # The holes cost a map milliseconds each.
            samples = options.samples if way == "ours" or prefix == warm else 200
            _print(f"{name}: {way}", _child(["read", way, str(prefix)], samples=samples))
    few = _child(["read", "ours", str(data)], samples=options.samples - 1, descriptors=1024)
    _print(f"{options.shards} shards: ours, 1024 descriptors", few)
    _print("starts of documents", _child(["starts", str(data)], samples=options.samples))
    for name, given in (("1 pair", f"{data}-00000"), ("shards", str(data)), ("parts", parts)):
        words = given if isinstance(given, str) else ",".join(given)
        out = folder / f"out {name}"
        for what, more in (("--plan 1", ["--plan", "1"]), ("1 step", []), ("resumed", [])):
            line = ["--data_file", words, *MODEL, "--proj_dir", str(out), *more]
            if what == "resumed":
                line[line.index("--max_steps") + 1] = "2"
            _print(f"start, {name}, {what}", _child(["start", json.dumps(line)]))
    if options.beside is not None:
        _compare("shards", str(warm), options)
        _compare("one pair", f"{warm}-00000", options)


def _compare(name: str, prefix: str, options: argparse.Namespace) -> None:
    """Prints how long a sample takes here and by another checkout, in turn."""
    here: list[float] = []
    there: list[float] = []
    for _ in range(2 * ROUNDS):
        for found, path in ((here, None), (there, options.beside)):
            source = path or Path(__file__).resolve().parents[1] / "src"
            ended = subprocess.run(
                [sys.executable, "-c", _READ, prefix, str(LENGTH)],
                env={**os.environ, "PYTHONPATH": str(source)},
                check=True,
                capture_output=True,
                text=True,
            )
            place, microseconds = ended.stdout.split()
            assert Path(place).is_relative_to(source.resolve()), place
            found.append(float(microseconds))
    ratio = statistics.median(a / b for a, b in zip(here, there))
    ours, theirs = statistics.median(here), statistics.median(there)
    print(f"ordinary data, {name}: {ours:.2f} us here, {theirs:.2f} us beside, ratio {ratio:.2f}")


def _child(call: list[str], *, samples: int = 0, descriptors: int | None = None) -> dict[str, Any]:
    """Returns what a process of its own measures; descriptors: how many it may have."""

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    root = Path(__file__).resolve().parents[1]
    program = [sys.executable, "-m", "benchmarks.data_scale", "--samples", str(samples)]
    ended = subprocess.run(
        [*program, "--child", *call],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _write_warm(prefix: Path) -> None:
    tokens, shards = _WARM
    write_sparse_shards(prefix, shards, tokens)
    numbers = np.random.default_rng(0)
    for path in _paths(str(prefix)):
        path.write_bytes(numbers.integers(0, 257, tokens, np.uint16).tobytes())


def _paths(prefix: str) -> list[Path]:
    manifest = read_manifest(prefix)
    if manifest is None:
        return [Path(f"{prefix}.bin")]
    return [Path(f"{name}.bin") for name in shard_prefixes(prefix, manifest.shards)]


def _print(name: str, found: dict[str, Any]) -> None:
    told = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
