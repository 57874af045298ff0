"""Speed and memory of make_data.py against the tokenizers alone, in one run on one corpus.

    python -m benchmarks.make_data [--megabytes 200] [--folder DIR] [--skip_python_tokenizer]

The corpus is generated: English-like text and code (from Python's standard library) and Chinese.
The whole of make_data.py (one repetition, shuffled, every tenth document verified, a worker per
core) is compared with the compiled tokenizer alone on all cores, measured before and after it, and
with the single-threaded Python tokenizer of the `rwkv` package. The ids of the latter two must
agree, or nothing is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import orjson
import psutil

from src.data.demo_corpus import documents, standard_library
from src.data.tokenizer import load_tokenizer
from src.data.workers import available_cores

_POOL_BYTES = 3_000_000
_ALONE_BYTES = 24_000_000
_PYTHON_BYTES = 3_000_000
_CONVERT = """
import json, resource, sys
from src.data.convert import ConvertOptions, convert
made = convert(ConvertOptions([sys.argv[1]], sys.argv[2], verify="sample"))
(manifest,) = made.manifests.values()
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = [u.ru_utime + u.ru_stime for u in usage]
print(json.dumps({"seconds": made.seconds, "tokens": manifest.tokens, "cpu": cpu}))
"""


def write_corpus(path: Path, size: int) -> int:
    """Writes a jsonl of that many bytes of text; returns the exact number."""
    generator = random.Random(1)
    pools = [_english(generator), "\n".join(_code()), _chinese(generator)]
    written = 0
    with path.open("wb") as file:
        while written < size:
            pool = generator.choices(pools, weights=(4, 4, 1))[0]
            length = int(200 * 2 ** generator.uniform(0, 7))
            start = generator.randrange(len(pool) - length)
            text = pool[start : start + length]
            written += len(text.encode())
            file.write(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))
    return written


def _code() -> list[str]:
    found, size = [], 0
    for text in documents(standard_library()):
        found.append(text)
        size += len(text)
        if size > _POOL_BYTES:
            break
    return found


def _english(generator: random.Random) -> str:
    """A Markov chain over the words of Python's manual."""
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split(" ")
    following: dict[str, list[str]] = {}
    for word, after in itertools.pairwise(words):
        following.setdefault(word, []).append(after)
    word, chosen, size = words[0], [], 0
    while size < _POOL_BYTES:
        word = generator.choice(following.get(word, words))
        chosen.append(word)
        size += len(word) + 1
    return " ".join(chosen)


def _chinese(generator: random.Random) -> str:
    """Characters and pairs of them, some far more frequent than others, with punctuation."""
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 4000)]
    generator.shuffle(characters)
    weights = [1 / (rank + 5) for rank in range(len(characters))]
    pieces = generator.choices(characters, weights, k=_POOL_BYTES // 3)
    return "".join(p + generator.choice(("", "", "", "", "", "，", "。")) for p in pieces)


def texts_of(path: Path, size: int) -> list[str]:
    """The corpus's first texts, of about that size together."""
    found, total = [], 0
    with path.open("rb") as lines:
        for line in lines:
            found.append(orjson.loads(line)["text"])
            total += len(line)
            if total >= size:
                break
    return found


def _encode_alone(texts: list[str], start: object, results: object) -> None:
    tokenizer = load_tokenizer("world")
    for text in texts[: len(texts) // 10]:
        tokenizer.encode(text)
    start.wait()
    began, cpu = time.perf_counter(), time.process_time()
    for text in texts:
        tokenizer.encode(text)
    results.put((time.perf_counter() - began, time.process_time() - cpu))


def alone_on_all_cores(texts: list[str], cores: int) -> tuple[float, float]:
    """MB/s of the compiled tokenizer in one process per core, each on all the texts; and MB per
    second of processor time, which says more when the machine has other work."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(cores), context.Queue()
    processes = [
        context.Process(target=_encode_alone, args=(texts, start, results)) for _ in range(cores)
    ]
    for process in processes:
        process.start()
    times = [results.get() for _ in processes]
    for process in processes:
        process.join()
    total = cores * _megabytes(texts)
    return total / max(wall for wall, _ in times), total / sum(cpu for _, cpu in times)


def python_tokenizer(texts: list[str]) -> float:
    """MB/s of the `rwkv` package's tokenizer; fails unless ours gives the same ids."""
    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    theirs = TRIE_TOKENIZER(str(Path(rwkv.__path__[0]) / "rwkv_vocab_v20230424.txt"))
    began = time.perf_counter()
    ids = [theirs.encode(text) for text in texts]
    seconds = time.perf_counter() - began
    ours = load_tokenizer("world")
    assert ids == [ours.encode(text) for text in texts], "the tokenizers disagree"
    return _megabytes(texts) / seconds


class PeakMemory:
    """Largest sum of resident memory over a process and all below it, sampled."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                root = psutil.Process(self._pid)
                family = [root, *root.children(recursive=True)]
                self.bytes = max(self.bytes, sum(p.memory_info().rss for p in family))
            except psutil.NoSuchProcess:
                continue


def end_to_end(corpus: Path, prefix: Path) -> tuple[float, float, dict]:
    """Wall seconds of the whole program, peak bytes over its processes, and what it reports."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _CONVERT, str(corpus), str(prefix)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = PeakMemory(process.pid)
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    memory.stop()
    assert process.returncode == 0, "make_data failed"
    return seconds, memory.bytes, json.loads(output)


def _megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _print_shares(seconds: dict, wall: float) -> None:
    stages = ("parse", "tokenize", "verify", "convert")
    total = sum(seconds[stage] for stage in stages)
    shares = ", ".join(f"{stage} {seconds[stage] / total:.1%}" for stage in stages)
    print(f"  in the workers: {shares}")
    print(f"  of {wall:.1f} s: reading and tokenizing {seconds['first stage']:.1f} s (of which "
          f"spooling {seconds['spool']:.2f} s), shuffling, hashing and writing "
          f"{seconds['arrange']:.1f} s")


def main(argv: list[str]) -> int:
    """Prints the table; status 1 when a check fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--folder", type=Path, help="where the corpus goes (default: temporary)")
    parser.add_argument("--skip_python_tokenizer", action="store_true")
    options = parser.parse_args(argv)
    cores = available_cores()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        corpus = Path(name) / "corpus.jsonl"
        megabytes = write_corpus(corpus, int(options.megabytes * 1e6)) / 1e6
        sample = texts_of(corpus, _ALONE_BYTES)
        slow = None if options.skip_python_tokenizer else python_tokenizer(
            texts_of(corpus, _PYTHON_BYTES)
        )
        before = alone_on_all_cores(sample, cores)
        wall, peak, told = end_to_end(corpus, Path(name) / "out")
        after = alone_on_all_cores(sample, cores)
    speed, alone = megabytes / wall, (before[0] + after[0]) / 2
    main_cpu, worker_cpu = told["cpu"]
    speed_cpu, alone_cpu = megabytes / (main_cpu + worker_cpu), (before[1] + after[1]) / 2
    print(f"corpus {megabytes:.0f} MB of text, {told['tokens']:,} tokens, {cores} cores")
    print(f"make_data, end to end: {speed:.1f} MB/s, peak memory {peak / 1e6:.0f} MB")
    _print_shares(told["seconds"], wall)
    print(f"  processor time: main process {main_cpu:.1f} s, workers {worker_cpu:.1f} s")
    print(f"compiled tokenizer alone on {cores} cores: {before[0]:.1f} MB/s before, {after[0]:.1f} "
          f"after; make_data reaches {speed / alone:.0%}")
    print(f"per second of processor time: alone {alone_cpu:.1f} MB, make_data {speed_cpu:.1f} MB, "
          f"{speed_cpu / alone_cpu:.0%}")
    if slow is not None:
        print(f"Python tokenizer of rwkv, one thread: {slow:.2f} MB/s; make_data is "
              f"{speed / slow:.1f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
