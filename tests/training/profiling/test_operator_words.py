"""Operators are named by what they do in the model."""

from __future__ import annotations

import pytest

from rwkv_train.training.profiling.operator_words import OTHER_PRODUCTS, OperatorWords
from tests.config.resolving import resolved

# 4 x 512 tokens, width 64, hidden width 256 (RWKV-6: 224), ranks of 32, head of 65536
LINE = "--n_layer 2 --n_embd 64 --vocab_size 65536 --micro_bsz 4"


def words_of(line: str) -> OperatorWords:
    return OperatorWords(resolved(f"{LINE} {line}")[0])


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        # forward, gradient of the input, gradient of the weight
        ([[2048, 64], [64, 256]], "channel mix"),
        ([[2048, 256], [256, 64]], "channel mix"),
        ([[256, 2048], [2048, 64]], "channel mix"),
        ([[2048, 64], [64, 64]], "time mix"),
        ([[64, 2048], [2048, 64]], "time mix"),
        ([[2048, 64], [64, 32]], "low ranks"),
        ([[32, 2048], [2048, 64]], "low ranks"),
        # a slice of the rows
        ([[100, 64], [64, 65536]], "head"),
        ([[65536, 100], [100, 64], [65536, 64]], "head"),
    ],
)
def test_a_product_is_that_of_the_weight_whose_sizes_it_has(shapes, expected):
    found = words_of("--rwkv_version 7").of("aten::mm", shapes)
    assert found == f"matrix products of the {expected}"


def test_as_many_tokens_as_columns_confuse_no_product():
    # 2 x 128 tokens, as many as the channel mix is wide
    words = words_of("--rwkv_version 7 --micro_bsz 2 --ctx_len 128")
    assert words.of("aten::mm", [[256, 64], [64, 64]]).endswith("of the time mix")
    assert words.of("aten::mm", [[256, 256], [256, 64]]).endswith("of the channel mix")


def test_products_of_one_size_have_all_their_owners():
    words = words_of("--rwkv_version 6 --rank_decay 32")
    found = words.of("aten::addmm", [[64], [2048, 64], [64, 64]])
    assert found == "matrix products of the time mix and the channel mix's receptance"
    stacked = [[5, 2048, 32], [5, 32, 64]]
    assert words.of("aten::bmm", stacked) == "matrix products of the low ranks"


def test_adapters_have_products_of_their_own():
    words = words_of("--rwkv_version 7 --train_type lora --lora_r 8 --train_stage 1")
    assert words.of("aten::mm", [[2048, 64], [64, 8]]) == "matrix products of the adapters"
    assert words.of("aten::mm", [[2048, 64], [64, 7]]) == OTHER_PRODUCTS
    assert words.of("aten::mm", []) == OTHER_PRODUCTS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rwkv::wkv7_backward", "wkv7 backward"),
        ("GeneratedBackwardFor_rwkv_wkv7_forward_default", "wkv7 forward"),
        ("GeneratedBackwardFor_rwkv_wkv7_forward_defaultBackward", "wkv7 backward"),
        ("_ChunkedWkv6Backward", "wkv6 by chunks, backward"),
        ("rwkv::norm_shift_forward", "norm and token shift, forward"),
        ("rwkv::head_loss_rows_", "loss"),
        ("rwkv::value_residual_backward", "value residual, backward"),
        ("rwkv::adamw_norm", "norm of the gradients"),
        ("rwkv::adamw_update", "optimizer update"),
        ("aten::_fused_adamw_", "optimizer update"),
        ("Optimizer.zero_grad#FusedAdamW.zero_grad", "release of the gradients"),
        ("torch::autograd::AccumulateGrad", "gradients kept or added up"),
        ("nccl:all_reduce", "communication"),
        ("aten::copy_", "copies"),
        ("aten::mul_", "element by element: mul"),
        # Their callers say more.
        ("aten::view", ""),
        ("aten::empty_strided", ""),
        ("autograd::engine::evaluate_function: MmBackward0", ""),
        ("Optimizer.step#FusedAdamW.step", ""),
    ],
)
def test_every_other_operator_has_words(name, expected):
    assert words_of("--rwkv_version 7").of(name, []) == expected
