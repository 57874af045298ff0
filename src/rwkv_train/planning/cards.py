"""Cards that people train on: memory, dense 16-bit tensor rate, bandwidth, link, board power.

Rates are dense, of products that add up in fp32, as training needs; half of what many tables show,
which count sparsity or 16-bit sums.  Sources, as `Card.source` abbreviates them:

    sheet       the vendor's data sheet of the card
    GA102, AD102, GB202   NVIDIA's whitepaper of the architecture; for cards it does not list, its
                rule: 512 FLOPs a multiprocessor and cycle, at the boost clock of the card's page
    CDNA        AMD's data sheet of the accelerator
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rwkv_train.command_line import perhaps

GIB = 2**30


class Card(NamedTuple):
    """A row.

    memory_gb: as on the box, of 2^30 bytes; has_ecc: of which ECC takes a sixteenth by default.
    rate: FLOP/s; bandwidth, link: bytes/s, the link's to the other cards in one direction, by its
    specification.  watts: of the board.  has_bf16: without it train.py takes fp16.
    adapters: bytes/s of a machine's network adapters together, where they are known.
    """

    name: str
    memory_gb: float
    rate: float
    bandwidth: float
    link: float
    watts: float
    source: str
    has_ecc: bool = False
    has_bf16: bool = True
    also: tuple[str, ...] = ()
    adapters: float | None = None

    @property
    def memory(self) -> int:
        """Bytes that the driver shows, to half a percent."""
        return int(self.memory_gb * GIB * (15 / 16 if self.has_ecc else 1))


# Bytes/s of sixteen lanes, or eight, in one direction.
_PCIE3, _PCIE4, _PCIE5 = 16e9, 32e9, 64e9


def _geforce(
    name: str,
    memory_gb: float,
    tera: float,
    giga: float,
    watts: float,
    *also: str,
    link: float = _PCIE4,
) -> Card:
    """Returns the row of a GeForce; its generation is the first digit of its number."""
    source = {"3": "GA102", "4": "AD102", "5": "GB202"}[re.sub(r"\D", "", name)[0]]
    return Card(name, memory_gb, tera * 1e12, giga * 1e9, link, watts, source, also=also)


CARDS = (
    _geforce("RTX 3060", 12, 25.5, 360, 170),
    _geforce("RTX 3060 Ti", 8, 32.4, 448, 200),
    _geforce("RTX 3070", 8, 40.6, 448, 220),
    _geforce("RTX 3080", 10, 59.5, 760, 320),
    _geforce("RTX 3080 Ti", 12, 68.2, 912, 350),
    _geforce("RTX 3090", 24, 71.0, 936, 350),
    _geforce("RTX 3090 Ti", 24, 80.0, 1008, 450),
    _geforce("RTX 4060", 8, 30.2, 272, 115, link=_PCIE4 / 2),
    _geforce("RTX 4060 Ti", 8, 44.1, 288, 160, link=_PCIE4 / 2),
    _geforce("RTX 4060 Ti 16GB", 16, 44.1, 288, 165, link=_PCIE4 / 2),
    _geforce("RTX 4070", 12, 58.3, 504, 200),
    _geforce("RTX 4070 SUPER", 12, 71.0, 504, 220),
    _geforce("RTX 4070 Ti", 12, 80.2, 504, 285),
    _geforce("RTX 4070 Ti SUPER", 16, 88.2, 672, 285),
    _geforce("RTX 4080", 16, 97.5, 717, 320),
    _geforce("RTX 4080 SUPER", 16, 104.4, 736, 320),
    _geforce("RTX 4090", 24, 165.2, 1008, 450),
    _geforce("RTX 4090 D", 24, 147.1, 1008, 425),
    _geforce("RTX 5060", 8, 38.4, 448, 145, link=_PCIE5 / 2),
    _geforce("RTX 5060 Ti", 8, 47.4, 448, 180, link=_PCIE5 / 2),
    _geforce("RTX 5060 Ti 16GB", 16, 47.4, 448, 180, link=_PCIE5 / 2),
    _geforce("RTX 5070", 12, 61.7, 672, 250, link=_PCIE5),
    _geforce("RTX 5070 Ti", 16, 87.9, 896, 300, link=_PCIE5),
    _geforce("RTX 5080", 16, 112.6, 960, 360, link=_PCIE5),
    _geforce("RTX 5090", 32, 209.5, 1792, 575, link=_PCIE5),
    Card("RTX A6000", 48, 154.8e12, 768e9, _PCIE4, 300, "sheet"),
    Card("RTX 6000 Ada", 48, 364.2e12, 960e9, _PCIE4, 300, "sheet"),
    Card("T4", 16, 65e12, 320e9, _PCIE3, 70, "sheet", has_ecc=True, has_bf16=False),
    Card(
        *("V100 SXM2 16GB", 16, 125e12, 900e9, 150e9, 300, "sheet"),
        has_bf16=False,
        also=("V100-SXM2-16GB",),
    ),
    Card(
        *("V100 SXM2 32GB", 32, 125e12, 900e9, 150e9, 300, "sheet"),
        has_bf16=False,
        also=("V100", "V100-SXM2-32GB", "V100 32GB"),
    ),
    Card(
        *("V100 PCIe", 32, 112e12, 900e9, _PCIE3, 250, "sheet"),
        has_bf16=False,
        also=("V100-PCIE-32GB",),
    ),
    Card("A10", 24, 125e12, 600e9, _PCIE4, 150, "sheet", has_ecc=True),
    Card("A10G", 24, 70e12, 600e9, _PCIE4, 300, "sheet", has_ecc=True),
    Card("A30", 24, 165e12, 933e9, _PCIE4, 165, "sheet"),
    Card("A40", 48, 149.7e12, 696e9, _PCIE4, 300, "sheet", has_ecc=True),
    Card("L4", 24, 121e12, 300e9, _PCIE4, 72, "sheet", has_ecc=True),
    Card("L40", 48, 181e12, 864e9, _PCIE4, 300, "sheet", has_ecc=True),
    Card("L40S", 48, 362e12, 864e9, _PCIE4, 350, "sheet", has_ecc=True),
    Card(*("A100 PCIe 40GB", 40, 312e12, 1555e9, _PCIE4, 250, "sheet"), also=("A100-PCIE-40GB",)),
    Card(
        *("A100 SXM 40GB", 40, 312e12, 1555e9, 300e9, 400, "sheet"),
        also=("A100 40GB", "A100-SXM4-40GB"),
    ),
    Card(*("A100 PCIe 80GB", 80, 312e12, 1935e9, _PCIE4, 300, "sheet"), also=("A100 80GB PCIe",)),
    Card(
        *("A100 SXM 80GB", 80, 312e12, 2039e9, 300e9, 400, "sheet"),
        also=("A100", "A100 80GB", "A100-SXM4-80GB"),
    ),
    Card("A800 SXM 80GB", 80, 312e12, 2039e9, 200e9, 400, "sheet", also=("A800", "A800-SXM4-80GB")),
    Card("H20", 96, 148e12, 4000e9, 450e9, 400, "sheet"),
    Card("H100 PCIe", 80, 756e12, 2000e9, _PCIE5, 350, "sheet"),
    Card("H100 NVL", 94, 835e12, 3900e9, 300e9, 400, "sheet"),
    Card(
        *("H100 SXM", 80, 989e12, 3350e9, 450e9, 700, "sheet"),
        also=("H100", "H100 80GB", "H100 80GB HBM3", "H100 SXM5"),
    ),
    Card("H800 SXM", 80, 989e12, 3350e9, 200e9, 700, "sheet", also=("H800",)),
    Card("H200", 141, 989e12, 4800e9, 450e9, 700, "sheet", also=("H200 SXM",)),
    Card("H200 NVL", 141, 836e12, 4800e9, 450e9, 600, "sheet"),
    Card("B200", 180, 2250e12, 7700e9, 900e9, 1000, "sheet", also=("B200 SXM",)),
    Card("MI210", 64, 181e12, 1638e9, 150e9, 300, "CDNA"),
    Card("MI250 (one of two dies)", 64, 181e12, 1638e9, 150e9, 250, "CDNA", also=("MI250",)),
    Card("MI250X (one of two dies)", 64, 191.5e12, 1638e9, 200e9, 250, "CDNA", also=("MI250X",)),
    Card("MI300X", 192, 1307e12, 5300e9, 448e9, 750, "CDNA"),
    Card("MI325X", 256, 1307e12, 6000e9, 448e9, 1000, "CDNA"),
)


def find_card(name: str) -> Card | None:
    """Returns the row of a card by name, of ours or torch's, or None where there is none.

    Case, blanks, dashes and the makers' words do not count: "rtx4090", "NVIDIA GeForce RTX 4090"
    and "4090" are one.  Another memory or build than the name says may be meant, whose rate is the
    same; a laptop's chip is another card.
    """
    return _by_name().get(_plain(name))


def similar_card(name: str) -> str:
    """Returns advice for a name that is in no row: '; perhaps you meant h100', or nothing."""
    return perhaps(_plain(name), _by_name())


_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro|amd|instinct|rtx|gpu|generation)\b")


def _plain(name: str) -> str:
    # "RTX4090" and "4090" in one word, "RTX 4090" in two.
    words = _MAKERS.sub(" ", re.sub(r"\b(rtx)(?=[a\d])", r"\1 ", name.casefold()))
    return re.sub(r"[^a-z\d]", "", words)


def _by_name() -> Mapping[str, Card]:
    return MappingProxyType(
        {_plain(name): card for card in CARDS for name in (card.name, *card.also)}
    )
