"""The next token for logits whose probabilities are worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from rwkv_train.errors import ConfigError
from rwkv_train.inference.sampling import Sampler, SamplingOptions, keep_likely, sequence_generator

# probabilities 0.05, 0.5, 0.15, 0.3 of tokens 0, 1, 2, 3
PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])
LOGITS = PROBABILITIES.log() + 7.0


def sampler(seed: int = 0, **options: float) -> Sampler:
    return Sampler(SamplingOptions(**options), torch.Generator().manual_seed(seed))


def kept(**limits: float) -> set[int]:
    logits = keep_likely(LOGITS, **{"top_k": 0, "top_p": 1.0, **limits})
    finite = logits.isfinite()
    assert torch.equal(logits[finite], LOGITS[finite])
    return set(finite.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (0.0, {1}),
        (0.4, {1}),
        (0.6, {1, 3}),
        (0.79, {1, 3}),
        (0.81, {1, 2, 3}),
        (0.94, {1, 2, 3}),
        (0.96, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_likeliest_tokens_that_reach_the_share(top_p: float, tokens: set[int]):
    assert kept(top_p=top_p) == tokens


@pytest.mark.parametrize(
    ("top_k", "tokens"),
    [(0, {0, 1, 2, 3}), (1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (9, {0, 1, 2, 3})],
)
def test_top_k_keeps_that_many(top_k: int, tokens: set[int]):
    assert kept(top_k=top_k) == tokens


def test_top_k_and_top_p_both_limit():
    assert kept(top_k=3, top_p=0.6) == {1, 3}
    assert kept(top_k=1, top_p=0.9) == {1}


def test_temperature_0_takes_the_likeliest_token_and_draws_nothing():
    chosen = sampler(temperature=0.0)
    before = chosen.generator.get_state()
    assert [chosen.draw(LOGITS) for _ in range(3)] == [1, 1, 1]
    assert torch.equal(chosen.generator.get_state(), before)


@pytest.mark.parametrize("order", ["temperature", "top_p"])
@pytest.mark.parametrize("temperature", [1e-6, 1e-7, 1e-40, 1e-320])
def test_no_temperature_is_too_cold_for_the_numbers(temperature: float, order: str):
    chosen = sampler(temperature=temperature, top_p=1.0, order=order)
    assert [chosen.draw(1e6 * LOGITS) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    # p^(1/T) / sum: squares 0.0025, 0.25, 0.0225, 0.09 over 0.365
    [(1.0, [0.05, 0.5, 0.15, 0.3]), (0.5, [0.0068, 0.6849, 0.0616, 0.2466])],
)
def test_tokens_are_drawn_with_their_probabilities(temperature: float, expected: list[float]):
    chosen = sampler(temperature=temperature, top_p=1.0)
    draws = 4000
    counts = Counter(chosen.draw(LOGITS) for _ in range(draws))
    for token, probability in enumerate(expected):
        # five standard deviations
        limit = 5 * (probability * (1 - probability) / draws) ** 0.5
        assert abs(counts[token] / draws - probability) < limit


def test_the_presence_penalty_counts_a_token_once():
    # logits 3, 2, 1, 0; each token falls by 1.5 when it has been used, however often
    chosen = sampler(temperature=0.0, presence_penalty=1.5, penalty_decay=1.0)
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    # 0 (3) -> 1 (2 > 1.5) -> 0 (1.5 > 1) and so on: 1.5, 0.5, 1 -> 0 for ever
    assert [chosen.draw(logits) for _ in range(4)] == [0, 1, 0, 0]
    assert logits.tolist() == [3.0, 2.0, 1.0, 0.0]


def test_the_frequency_penalty_grows_with_every_use():
    chosen = sampler(temperature=0.0, frequency_penalty=0.75, penalty_decay=1.0)
    logits = torch.tensor([3.0, 2.0, 1.2, 0.0])
    # 0: 3, 2.25, then 1.5 < 2; 1: 2, then 1.25 < 1.5; 0: 1.5, then 0.75; 1: 1.25, then 0.5; 2: 1.2
    assert [chosen.draw(logits) for _ in range(6)] == [0, 0, 1, 0, 1, 2]


def test_earlier_uses_fade():
    chosen = sampler(temperature=0.0, frequency_penalty=2.0, penalty_decay=0.5)
    logits = torch.tensor([1.0, 0.4])
    # after using 0 its count is 1, then 1/2: 1 - 2 < 0.4, then 1 - 1 < 0.4, then 1 - 0.5 > 0.4;
    # meanwhile 1 is at 0.4 - 2, then 0.4 - 1 - 2: 0 is taken again as soon as it is ahead
    scores = [1.0, 0.4]
    counts = [0.0, 0.0]
    expected = []
    for _ in range(8):
        penalised = [score - 2.0 * count for score, count in zip(scores, counts)]
        token = penalised.index(max(penalised))
        counts = [count * 0.5 for count in counts]
        counts[token] += 1.0
        expected.append(token)
    assert expected[:3] == [0, 1, 0]
    assert [chosen.draw(logits) for _ in range(8)] == expected


def test_one_seed_repeats_the_draws_and_another_does_not():
    draws = [[sampler(seed, top_p=1.0).draw(LOGITS) for seed in range(40)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 1.5),
        ("top_p", -1.0),
        ("top_k", -1),
        ("penalty_decay", 2.0),
        ("temperature", float("nan")),
        ("presence_penalty", float("nan")),
        ("presence_penalty", 101.0),
        ("frequency_penalty", -101.0),
        ("frequency_penalty", float("inf")),
    ],
)
def test_impossible_options_are_refused_by_name(name: str, value: float):
    with pytest.raises(ConfigError, match=f"--{name} {value} must be between"):
        SamplingOptions(**{name: value})


def test_the_penalties_are_those_of_the_rwkv_package():
    utils = pytest.importorskip("rwkv.utils", reason="needs the package rwkv")
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Tensor] = []

    class Scripted:
        def __init__(self) -> None:
            self._rows = iter(rows)

        def forward(self, tokens: list[int], state: None) -> tuple[torch.Tensor, None]:
            return next(self._rows).clone(), None

    class Pipeline(utils.PIPELINE):
        def __init__(self) -> None:
            self.model = Scripted()

        def encode(self, text: str) -> list[int]:
            return [1]

        def decode(self, tokens: list[int]) -> str:
            # Digits and blanks would be counted otherwise there.
            return "x" * len(tokens)

        def sample_logits(self, logits: torch.Tensor, **_: float) -> int:
            seen.append(logits.clone())
            return int(logits.argmax())

    args = utils.PIPELINE_ARGS(alpha_presence=0.4, alpha_frequency=0.3, alpha_decay=0.9)
    Pipeline().generate("", token_count=len(rows), args=args)

    class Watched(Sampler):
        def _choose(self, logits: torch.Tensor) -> int:
            assert torch.equal(logits, seen.pop(0))
            return super()._choose(logits)

    options = SamplingOptions(
        temperature=0.0, presence_penalty=0.4, frequency_penalty=0.3, penalty_decay=0.9
    )
    ours = Watched(options, torch.Generator())
    for row in rows:
        ours.draw(row)
    assert not seen


def test_the_order_of_temperature_and_choice_can_be_the_familys():
    # Untempered 0.5 and 0.3 reach 0.7; at temperature 2 the shares are 0.37, 0.29, 0.20, 0.12.
    counts = {}
    for order in ("temperature", "top_p"):
        chosen = sampler(temperature=2.0, top_p=0.7, order=order)
        counts[order] = Counter(chosen.draw(LOGITS) for _ in range(400))
    assert set(counts["temperature"]) == {1, 2, 3} and set(counts["top_p"]) == {1, 3}


def test_every_sequence_of_a_seed_has_random_numbers_of_its_own():
    def numbers(seed: int, index: int) -> list[int]:
        return torch.randint(1 << 30, (4,), generator=sequence_generator(seed, index)).tolist()

    found = [numbers(seed, index) for seed in (1, 2) for index in range(3)]
    assert len({tuple(row) for row in found}) == 6 and numbers(2, 1) == found[4]
    own = torch.randint(1 << 30, (4,), generator=torch.Generator().manual_seed(1))
    assert found[0] == own.tolist()


@pytest.mark.parametrize("top_k, top_p", [(0, 0.5), (0, 0.999), (300, 0.97), (5000, 1.0), (0, 1.0)])
def test_of_a_large_vocabulary_the_same_tokens_are_kept_as_by_sorting_all(top_k, top_p):
    logits = torch.randn(6000, generator=torch.Generator().manual_seed(1))
    ordered, order = logits.sort(descending=True)
    before = ordered.double().softmax(-1).cumsum(-1).roll(1)
    before[0] = 0.0
    keep = (before < top_p) & (torch.arange(6000) < (top_k or 6000))
    found = keep_likely(logits, top_k=top_k, top_p=top_p)
    assert set(found.isfinite().nonzero().flatten().tolist()) == set(order[keep].tolist())


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="NaN or infinity"):
        sampler().draw(torch.tensor([0.0, torch.nan, 1.0]))
