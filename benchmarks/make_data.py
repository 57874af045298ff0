"""Speed and memory of make_data.py against the tokenizers alone, in one run on one corpus.

    python -m benchmarks.make_data [--megabytes 200] [--folder DIR] [--skip_python_tokenizer]
    python -m benchmarks.make_data --memory 300 1000 3000 [--folder DIR]

The corpus is generated: English-like text and code (from Python's standard library) and Chinese.
The whole of make_data.py (one repetition, shuffled, every tenth document verified, a worker per
core) is compared with the compiled tokenizer alone on all cores, measured before and after it, and
with the single-threaded Python tokenizer of the `rwkv` package. The ids of the latter two must
agree, or nothing is printed. The trie that make_data.py compiles is measured alone as well: what a
worker could reach that did nothing else.

With --memory corpora of those sizes (MB) are converted one after another, and the peaks of the
resident memory of the main process, of the largest worker and of all together are printed.
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

import numpy as np
import orjson
import psutil

from rwkv_train.data.convert.workers import available_cores
from rwkv_train.data.text.demo_corpus import documents, standard_library
from rwkv_train.data.tokenize.bulk_encoder import bulk_tokenizer
from rwkv_train.data.tokenize.tokenizer import load_tokenizer

_POOL_BYTES = 3_000_000
_ALONE_BYTES = 24_000_000
_PYTHON_BYTES = 3_000_000
_CONVERT = """
import json, resource, sys
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
made = convert(ConvertOptions([sys.argv[1]], sys.argv[2], verify="sample"))
(manifest,) = made.manifests.values()
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = [u.ru_utime + u.ru_stime for u in usage]
counts = {"tokens": manifest.tokens, "documents": manifest.documents}
print(json.dumps({"seconds": made.seconds, "cpu": cpu, **counts}))
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
    """Returns text of a Markov chain over the words of Python's manual."""
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
    file_ranges = generator.choices(characters, weights, k=_POOL_BYTES // 3)
    return "".join(p + generator.choice(("", "", "", "", "", "，", "。")) for p in file_ranges)


def texts_of(path: Path, size: int) -> list[str]:
    """Returns the corpus's first texts, of about that size together."""
    found, total = [], 0
    with path.open("rb") as lines:
        for line in lines:
            found.append(orjson.loads(line)["text"])
            total += len(line)
            if total >= size:
                break
    return found


def _encode_alone(texts: list[str], trie: bool, start: object, results: object) -> None:
    if trie:
        encode = bulk_tokenizer("world").load()
        flags = np.ones(len(texts), bool)
        # As many texts a call as make_data.py gives: those of half a megabyte.
        calls = max(int(_megabytes(texts) * 2), 1)
        parts = np.array_split(np.arange(len(texts)), calls)
        work = [([texts[i] for i in part], flags[part]) for part in parts]

        def run(share: int) -> None:
            for batch, closed in work[: len(work) // share]:
                encode(batch, closed, ~closed)
    else:
        tokenizer = load_tokenizer("world")

        def run(share: int) -> None:
            for text in texts[: len(texts) // share]:
                tokenizer.encode(text)

    run(10)
    start.wait()
    began, cpu = time.perf_counter(), time.process_time()
    run(1)
    results.put((time.perf_counter() - began, time.process_time() - cpu))


def alone_on_all_cores(texts: list[str], cores: int, trie: bool = False) -> tuple[float, float]:
    """Returns the MB/s of the compiled tokenizer (the library's, or our trie) in one process per
    core, each on all the texts; and MB per second of processor time, which says more on a busy
    machine.
    """
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(cores), context.Queue()
    processes = [
        context.Process(target=_encode_alone, args=(texts, trie, start, results))
        for _ in range(cores)
    ]
    for process in processes:
        process.start()
    times = [results.get() for _ in processes]
    for process in processes:
        process.join()
    total = cores * _megabytes(texts)
    return total / max(wall for wall, _ in times), total / sum(cpu for _, cpu in times)


def python_tokenizer(texts: list[str]) -> tuple[float, float]:
    """Returns the MB/s of the `rwkv` package's tokenizer, by the clock and of processor time; fails
    unless ours gives the same ids."""
    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    theirs = TRIE_TOKENIZER(str(Path(rwkv.__path__[0]) / "rwkv_vocab_v20230424.txt"))
    began, cpu = time.perf_counter(), time.process_time()
    ids = [theirs.encode(text) for text in texts]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    ours = load_tokenizer("world")
    assert ids == [ours.encode(text) for text in texts], "the tokenizers disagree"
    no, yes = np.zeros(len(texts), bool), np.ones(len(texts), bool)
    fast = bulk_tokenizer("world").load()(texts, no, yes)
    assert fast.tokens.tolist() == [i for text in ids for i in text], "the trie disagrees"
    return _megabytes(texts) / seconds, _megabytes(texts) / cpu


class PeakMemory:
    """Largest resident memory of a process, of one below it and of all together, sampled."""

    def __init__(self, pid: int) -> None:
        self.bytes = self.main = self.worker = 0
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
                below = [p.memory_info().rss for p in root.children(recursive=True)]
                main = root.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.main = max(self.main, main)
            self.worker = max([self.worker, *below])
            self.bytes = max(self.bytes, main + sum(below))


def end_to_end(corpus: Path, prefix: Path) -> tuple[float, PeakMemory, dict]:
    """Returns wall seconds of the whole program, its memory, and what it reports."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _CONVERT, str(corpus), str(prefix)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = PeakMemory(process.pid)
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    memory.stop()
    assert process.returncode == 0, "make_data failed"
    return seconds, memory, json.loads(output)


def _megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _print_shares(seconds: dict, wall: float) -> None:
    stages = ("parse", "tokenize", "verify", "convert", "spool")
    total = sum(seconds[stage] for stage in stages)
    shares = ", ".join(f"{stage} {seconds[stage] / total:.1%}" for stage in stages)
    print(f"  in the workers: {shares}")
    print(
        f"  of {wall:.1f} s: reading and tokenizing {seconds['first stage']:.1f} s, shuffling, "
        f"hashing and writing {seconds['arrange']:.1f} s"
    )


def measure_memory(sizes: list[float], folder: Path | None) -> None:
    """Prints a line for a corpus of each size."""
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            corpus = Path(name) / "corpus.jsonl"
            megabytes = write_corpus(corpus, int(size * 1e6)) / 1e6
            wall, peak, told = end_to_end(corpus, Path(name) / "out")
        print(
            f"corpus {megabytes:.0f} MB, {told['documents']:,} documents: peak memory "
            f"{peak.bytes / 1e6:.0f} MB, main process {peak.main / 1e6:.0f} MB, a worker "
            f"{peak.worker / 1e6:.0f} MB; {wall:.1f} s",
            flush=True,
        )


def measure_speed(megabytes: float, folder: Path | None, python_too: bool) -> None:
    """Prints the comparison."""
    cores = available_cores()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        corpus = Path(name) / "corpus.jsonl"
        megabytes = write_corpus(corpus, int(megabytes * 1e6)) / 1e6
        sample = texts_of(corpus, _ALONE_BYTES)
        slow = python_tokenizer(texts_of(corpus, _PYTHON_BYTES)) if python_too else None
        before = alone_on_all_cores(sample, cores)
        wall, peak, told = end_to_end(corpus, Path(name) / "out")
        after = alone_on_all_cores(sample, cores)
        trie = alone_on_all_cores(sample, cores, trie=True)
    speed, alone = megabytes / wall, (before[0] + after[0]) / 2
    main_cpu, worker_cpu = told["cpu"]
    speed_cpu, alone_cpu = megabytes / (main_cpu + worker_cpu), (before[1] + after[1]) / 2
    print(f"corpus {megabytes:.0f} MB of text, {told['tokens']:,} tokens, {cores} cores")
    print(f"make_data, end to end: {speed:.1f} MB/s, peak memory {peak.bytes / 1e6:.0f} MB")
    _print_shares(told["seconds"], wall)
    print(f"  processor time: main process {main_cpu:.1f} s, workers {worker_cpu:.1f} s")
    print(
        f"compiled tokenizer alone on {cores} cores: {before[0]:.1f} MB/s before, {after[0]:.1f} "
        f"after; make_data reaches {speed / alone:.0%}"
    )
    print(f"make_data's trie alone: {trie[0]:.1f} MB/s; make_data reaches {speed / trie[0]:.0%}")
    print(
        f"per second of processor time: library alone {alone_cpu:.1f} MB, trie alone "
        f"{trie[1]:.1f} MB, make_data {speed_cpu:.1f} MB ({speed_cpu / alone_cpu:.0%} of the "
        "library)"
    )
    if slow is not None:
        print(
            f"Python tokenizer of rwkv, one thread: {slow[0]:.2f} MB/s; make_data is "
            f"{speed / slow[0]:.1f} times as fast, per second of processor time on {cores} cores "
            f"{cores * speed_cpu / slow[1]:.1f} times"
        )


def main(argv: list[str]) -> int:
    """Prints the table; status 1 when a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.make_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--folder", type=Path, help="where the corpus goes (default: temporary)")
    parser.add_argument("--skip_python_tokenizer", action="store_true")
    parser.add_argument(
        "--memory",
        type=float,
        nargs="+",
        metavar="MEGABYTES",
        help="measure memory instead, at these sizes",
    )
    options = parser.parse_args(argv)
    if options.memory:
        measure_memory(options.memory, options.folder)
    else:
        measure_speed(options.megabytes, options.folder, not options.skip_python_tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
