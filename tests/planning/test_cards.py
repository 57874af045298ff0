"""The table of cards: found by the names that people and torch give them."""

from __future__ import annotations

import pytest

from rwkv_train.planning.cards import CARDS, GIB, find_card, similar_card


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("h100", "H100 SXM"),
        ("H100 80GB", "H100 SXM"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("3080ti", "RTX 3080 Ti"),
        ("a100", "A100 SXM 80GB"),
        ("A100-40GB", "A100 SXM 40GB"),
        # As torch.cuda.get_device_name has them.
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100 SXM2 32GB"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_card_is_found_by_its_name(name: str, row: str):
    card = find_card(name)
    assert card is not None and card.name == row


@pytest.mark.parametrize(
    "name", ["", "NVIDIA", "4099", "h1000", "NVIDIA GeForce RTX 3080 Ti Laptop GPU"]
)
def test_another_card_is_none_of_them(name: str):
    assert find_card(name) is None


def test_a_name_leads_to_one_row():
    for card in CARDS:
        for name in (card.name, *card.also):
            assert find_card(name) == card, name


def test_a_similar_name_is_advice():
    assert similar_card("h10") == "; perhaps you meant h100"
    assert similar_card("RTX 4099") == "; perhaps you meant 4090"
    assert similar_card("quantum") == ""


def test_ecc_takes_a_sixteenth_of_the_memory_where_it_is_on():
    l40s, h100 = find_card("l40s"), find_card("h100")
    assert l40s is not None and l40s.memory == 45 * GIB
    assert h100 is not None and h100.memory == 80 * GIB


def test_rates_of_geforce_cards_are_512_flops_a_multiprocessor_and_cycle():
    # Multiprocessors and boost clocks of NVIDIA's pages.
    pages = {"3090": (82, 1.695e9), "4090": (128, 2.52e9), "5090": (170, 2.407e9)}
    for name, (count, clock) in pages.items():
        card = find_card(name)
        assert card is not None
        assert card.rate == pytest.approx(512 * count * clock, rel=0.003)
