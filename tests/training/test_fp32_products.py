"""Who multiplies fp32 matrices on a CPU: chosen by the processor, and proven to be exact."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train import processors
from rwkv_train.training import fp32_products
from rwkv_train.training.trainer import set_up_torch

HARDWARE = SimpleNamespace(accelerator="cpu", precision="fp32", devices=1)
ZEN_5 = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n\nprocessor\t: 1\n"
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Gives this process another processor: what Linux says of it, and torch's vectors."""

    def become(text: str, vectors: str = "AVX512") -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(processors, "PROCESSORS", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)

    return become


@pytest.mark.parametrize(
    ("text", "vectors"),
    [
        ("", "AVX512"),
        (ZEN_5, "AVX2"),
        (ZEN_5.replace("26", "25"), "AVX512"),
        (ZEN_5.replace("AuthenticAMD", "GenuineIntel"), "AVX512"),
        (ZEN_5.replace("26", "unknown"), "AVX512"),
    ],
)
def test_products_are_those_of_torch_where_nothing_is_known_to_be_faster(machine, text, vectors):
    machine(text, vectors)
    torch.set_float32_matmul_precision("medium")
    assert set_up_torch(HARDWARE) == []
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_processor_with_wide_vectors_takes_the_library_that_uses_them(machine, monkeypatch):
    machine(ZEN_5)
    # As on a processor that this test may run on: one with matrix units rounds.
    monkeypatch.setattr(fp32_products, "products_are_exact", lambda: True)
    ((name, text),) = set_up_torch(HARDWARE)
    assert name == "products" and "oneDNN" in text
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_library_that_rounds_is_not_taken_and_the_run_says_so(machine, monkeypatch):
    machine(ZEN_5)
    monkeypatch.setattr(fp32_products, "products_are_exact", lambda: False)
    ((_, text),) = set_up_torch(HARDWARE)
    assert "would round" in text
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_that_round_to_bf16_are_seen(monkeypatch):
    assert fp32_products.products_are_exact()
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *given: full(*given).bfloat16().float())
    assert not fp32_products.products_are_exact()


def test_what_a_run_multiplies_by_is_exact_fp32_on_this_processor():
    set_up_torch(HARDWARE)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 192, generator=generator) for n in (512, 672))
    for product, left, right in ((x @ weight.t(), x, weight.t()), (x.t() @ x, x.t(), x)):
        exact = left.double() @ right.double()
        assert (product.double() - exact).norm() / exact.norm() < 1e-6
