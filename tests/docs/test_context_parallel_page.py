"""docs/context_parallel.md: the arithmetic of 1 M tokens on eight cards, done again."""

from __future__ import annotations

import re

import pytest

from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.planning.__main__ import main
from rwkv_train.planning.context_traffic import ContextLinks, ContextShape, context_seconds
from tests.checkout import ROOT

PAGE = (ROOT / "docs" / "context_parallel.md").read_text(encoding="utf-8")
US, RATE = 1e-6, 400e12
WIDTH, HEAD, OTHERS, TOKENS = 2048, 64, 7, 1048576 // 8
STATE = 4 * WIDTH * HEAD
NVLINK = ContextLinks(bandwidth=200e9, start=12 * US, step=3 * US, message=12 * US)
BETWEEN = ContextLinks(bandwidth=40e9, start=20 * US, step=6 * US, message=20 * US)


def rows() -> dict[str, str]:
    """The rows of two cells, by the first one."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE))


def products(tokens: int) -> float:
    """Seconds of a layer's products in both passes."""
    return 3 * 24.8 * WIDTH**2 * tokens / RATE


def hidden(tokens: int) -> tuple[float, float]:
    """Seconds of the receptance's product, and of the gate's four backward ones."""
    sizes = ModelConfig(rwkv_version="7", n_layer=24, n_embd=WIDTH, vocab_size=65536)
    gate = complete_model(sizes).rank_gate
    return 2 * WIDTH**2 * tokens / RATE, 8 * WIDTH * gate * tokens / RATE


def test_the_products_of_a_layer():
    (cell,) = (cell for name, cell in rows().items() if name.startswith("products"))
    seconds = products(TOKENS)
    assert f"{seconds * RATE / 1e12:.1f} TFLOPs: {seconds * 1e3:.0f} ms" in cell


def test_each_direction_gathers_and_hands_on_two_borders():
    total, latency, borders = 0.0, 12 + OTHERS * 3, 2 * 12
    for direction, sent in (("forward", 2 * STATE), ("backward", STATE)):
        ((name, cell),) = ((n, c) for n, c in rows().items() if n.startswith(f"{direction}: "))
        travels = OTHERS * sent / NVLINK.bandwidth / US
        assert f"{sent / 1e6:.2f} MB a rank, {OTHERS * sent / 1e6:.1f} MB received" in name
        assert f"{travels:.0f} us + {latency} us" in cell
        assert cell.endswith(f"{travels + latency + borders:.0f} us")
        total += travels + latency + borders
    share = total * US / products(TOKENS)
    assert rows()["exposed, if nothing were hidden"] == (
        f"{total / 1e3:.2f} ms of {products(TOKENS) * 1e3:.0f} ms: {share:.2%}".replace("%", " %")
    )


def test_receptance_and_gate_take_longer_than_the_gathers():
    receptance, gate = hidden(TOKENS)
    cell = rows()["computed while the gathers travel"]
    assert f"{receptance * 1e3:.1f} ms" in cell and f"{gate * 1e3:.1f} ms" in cell
    assert min(receptance, gate) > 94 * US
    # What is left are two borders in each direction.
    share = 4 * 12 * US / products(TOKENS)
    left = f"the four borders: {4 * 12 / 1e3:.2f} ms, {share * 100:.2f} %"
    assert rows()["exposed"] == left


def test_folds_and_passes_for_states():
    folds = OTHERS * 2 * HEAD**3 * (WIDTH // HEAD)
    assert f"{folds / 1e9:.2f} GFLOPs" in rows()["folds"]
    # Section 6 of the derivation, with and without what the operator could share.
    least, most = 640 + 512, 1280 + 896
    cell = rows()["contribution and transition, both directions"]
    whole = 3 * 24.8 * WIDTH
    assert f"{least:,} to {most:,} FLOPs" in cell and f"beside {round(whole, -3):,.0f}" in cell
    assert f"{least / whole * 100:.1f} to {most / whole * 100:.1f} % of the FLOPs" in cell


def test_fewer_tokens_and_slower_links():
    shape, few = ContextShape("7", 1, WIDTH, HEAD), 4096
    inside, between = (context_seconds(shape, links, 8) for links in (NVLINK, BETWEEN))
    text = " ".join(PAGE.split())
    assert f"{inside * 1e3:.2f} ms a layer at these rates" in text
    assert f"that is {between * 1e3:.2f} ms: {between / products(TOKENS) * 100:.1f} %" in text
    shares = [seconds / products(few) * 100 for seconds in (inside, between)]
    assert f"{shares[0]:.1f} % on NVLink and {shares[1]:.0f} % across machines" in text
    behind = hidden(few)
    assert f"({behind[0] * 1e3:.2f} and {behind[1] * 1e3:.2f} ms)" in text
    exposed = []
    for links in (NVLINK, BETWEEN):
        gathers = (
            links.start + OTHERS * (links.step + sent / links.bandwidth) + 5 * US
            for sent in (2 * STATE, STATE)
        )
        waits = sum(max(0.0, gather - own) for gather, own in zip(gathers, behind))
        exposed.append((waits + 4 * links.message) / products(few) * 100)
    assert f"ms) {exposed[0]:.0f} % and {exposed[1]:.0f} %" in text


PLANNED = re.findall(
    r"^\| (\S+), `([^`]+)`[^|]* \| (\d+) GiB \| \d samples?, (\S+) s \|$", PAGE, re.M
)


@pytest.mark.parametrize(("model", "flags", "memory", "seconds"), PLANNED)
def test_the_planner_says_what_the_page_does(model, flags, memory, seconds, capsys):
    line = f"--model {model} --ctx_len 1048576 --micro_bsz 1 --devices 8 --card h100 {flags}"
    assert main(line.split()) == 0
    printed = capsys.readouterr().out
    (held,) = re.findall(r"^ +all +(\S+) GiB", printed, re.MULTILINE)
    (taken,) = re.findall(r", (\S+) s a step", printed)
    assert (f"{float(held):.0f}", f"{float(taken):.1f}") == (memory, seconds)


def test_three_plans_are_on_the_page():
    assert len(PLANNED) == 3
