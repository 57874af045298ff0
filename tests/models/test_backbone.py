"""What all versions share: key order, loss, activation checkpointing, dropout, the copy head."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from rwkv_train.errors import ConfigError
from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)

NORMS = "ln1.weight ln1.bias ln2.weight ln2.bias"
# Order within a block as the specifications list it; the first block has ln0 after ln2.
BLOCK_KEYS = {
    "4": "att.time_decay att.time_first att.time_mix_k att.time_mix_v att.time_mix_r "
    "att.key.weight att.value.weight att.receptance.weight att.output.weight "
    "ffn.time_mix_k ffn.time_mix_r ffn.key.weight ffn.receptance.weight ffn.value.weight",
    "5": "att.time_mix_k att.time_mix_v att.time_mix_r att.time_mix_g att.time_faaaa "
    "att.receptance.weight att.key.weight att.value.weight att.output.weight "
    "att.gate.weight att.ln_x.weight att.ln_x.bias att.time_decay "
    "ffn.time_mix_k ffn.time_mix_r ffn.key.weight ffn.receptance.weight ffn.value.weight",
    "6": "att.time_maa_x att.time_maa_w att.time_maa_k att.time_maa_v att.time_maa_r "
    "att.time_maa_g att.time_maa_w1 att.time_maa_w2 att.time_decay att.time_decay_w1 "
    "att.time_decay_w2 att.time_faaaa att.receptance.weight att.key.weight "
    "att.value.weight att.output.weight att.gate.weight att.ln_x.weight att.ln_x.bias "
    "ffn.time_maa_k ffn.time_maa_r ffn.key.weight ffn.receptance.weight ffn.value.weight",
    "7": "att.x_r att.x_w att.x_k att.x_v att.x_a att.x_g att.w1 att.w2 att.w0 att.a1 att.a2 "
    "att.a0 att.v1 att.v2 att.v0 att.g1 att.g2 att.k_k att.k_a att.r_k "
    "att.receptance.weight att.key.weight att.value.weight att.output.weight "
    "att.ln_x.weight att.ln_x.bias ffn.x_k ffn.key.weight ffn.value.weight",
}


@every_version
def test_the_state_dict_has_the_canonical_key_order(version):
    rest = BLOCK_KEYS[version].split()
    expected = ["emb.weight"]
    for layer, norms in enumerate((f"{NORMS} ln0.weight ln0.bias", NORMS)):
        expected += [f"blocks.{layer}.{key}" for key in (*norms.split(), *rest)]
    expected += ["ln_out.weight", "ln_out.bias", "head.weight"]
    assert list(tiny_model(version).state_dict()) == expected


def test_time_state_stands_after_the_bonus():
    for version, bonus in (("5", "time_faaaa"), ("6", "time_faaaa"), ("7", "r_k")):
        keys = list(tiny_model(version, options={"train_states": True}).state_dict())
        place = keys.index("blocks.1.att.time_state")
        assert keys[place - 1] == f"blocks.1.att.{bonus}"
        assert keys[place + 1] == "blocks.1.att.receptance.weight"


@every_version
def test_the_loss_is_the_cross_entropy_of_the_logits(version):
    model = tiny_model(version)
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=2)
    logits, _ = model(tokens)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 9)
    assert_close("loss", model.loss(tokens, Targets(targets)), each.mean(), 1e-6)
    assert_close("loss", model.loss(tokens, Targets(targets, rows=4)), each.mean(), 1e-6)
    mask = torch.zeros(2, 9)
    mask[0, 3] = mask[1, 8] = 1
    expected = (each[0, 3] + each[1, 8]) / 2
    assert_close("loss", model.loss(tokens, Targets(targets, mask)), expected, 1e-6)


@every_version
def test_the_loss_continues_from_a_state(version):
    model = tiny_model(version)
    tokens, targets = random_tokens(1, 12), random_tokens(1, 6, seed=2)
    logits, _ = model(tokens)
    _, state = model(tokens[:, :6])
    expected = F.cross_entropy(logits[0, 6:], targets[0])
    assert_close("loss", model.loss(tokens[:, 6:], Targets(targets), state=state), expected, 1e-5)


@every_version
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_blocks_changes_no_gradient(version, dropout):
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=2)
    gradients = []
    for grad_cp in (False, True):
        model = tiny_model(version, n_layer=3, dropout=dropout, options={"grad_cp": grad_cp})
        model.train()
        torch.manual_seed(3)
        loss = model.loss(tokens, Targets(targets))
        loss.backward()
        gradients.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@every_version
def test_recomputing_blocks_keeps_less_for_the_backward_pass(version):
    tokens = random_tokens(2, 32)
    kept = {}
    for grad_cp in (False, True):
        model = tiny_model(version, n_layer=3, options={"grad_cp": grad_cp}).train()
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens)
        kept[grad_cp] = sum(sizes)
    assert kept[True] < kept[False] / 3


@every_version
def test_every_trained_parameter_gets_a_gradient(version):
    model = tiny_model(version).train()
    model.loss(random_tokens(2, 9), Targets(random_tokens(2, 9, seed=2))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    unused = [f"blocks.0.att.v{i}" for i in (1, 2, 0)] if version == "7" else []
    assert without == unused
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == unused


@every_version
def test_dropout_acts_in_training_only(version):
    model, tokens = tiny_model(version, dropout=0.5), random_tokens(1, 9)
    plain = tiny_model(version)
    assert torch.equal(model(tokens)[0], plain(tokens)[0])
    model.train()
    assert not torch.allclose(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize(
    ("version", "reaches_blocks"), [("4", True), ("5", True), ("6", True), ("7", False)]
)
def test_dropout_reaches_the_residual_stream_up_to_rwkv6(version, reaches_blocks):
    model, tokens = tiny_model(version, dropout=0.5), random_tokens(1, 9)
    expected = model(tokens)[0]
    model.train()
    model.drop.eval()
    assert torch.equal(model(tokens)[0], expected) is not reaches_blocks


def test_dropout_zeroes_and_rescales_the_residual_stream_after_each_half():
    # The second half of the last block is the last thing before ln_out.
    model = tiny_model("6", n_layer=1, dropout=0.5).train()
    seen = []
    model.ln_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].x))
    model(random_tokens(4, 16))
    share = (seen[0] == 0).double().mean().item()
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("with_reset", [False, True])
def test_the_copy_head_points_at_tokens_seen_before(version, with_reset):
    model = tiny_model(version, head_qk=8).double()
    tokens = random_tokens(2, 7, vocab_size=5)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    if with_reset:
        reset[0, 3] = reset[1, 1] = True
    x, _ = model.features(tokens, reset=reset)
    q, k = x @ model.head_q.weight.T, x @ model.head_k.weight.T
    expected = x @ model.head.weight.T
    for b in range(2):
        for t in range(7):
            for s in range(t + 1):
                if not reset[b, s + 1 : t + 1].any():
                    expected[b, t, tokens[b, s]] += q[b, t] @ k[b, s] / 8
    logits, _ = model(tokens, reset=reset)
    assert_close("logits", logits, expected, 1e-12)
    loss = model.loss(tokens, Targets(tokens, rows=3), reset=reset)
    cross_entropy = F.cross_entropy(expected.flatten(0, 1), tokens.flatten())
    assert_close("loss", loss, cross_entropy, 1e-6)


def test_the_copy_head_learns():
    model = tiny_model("4", head_qk=8).train()
    model.loss(random_tokens(1, 7), Targets(random_tokens(1, 7, seed=2))).backward()
    assert model.head_q.weight.grad.abs().max() > 0
    assert model.head_k.weight.grad.abs().max() > 0


def test_the_copy_head_refuses_a_state():
    model = tiny_model("5", head_qk=8)
    _, state = model(random_tokens(1, 3))
    with pytest.raises(ConfigError, match="no recurrent form"):
        model(random_tokens(1, 1), state)


def test_a_model_can_be_copied():
    model = tiny_model("7")
    tokens = random_tokens(1, 5)
    assert torch.equal(copy.deepcopy(model)(tokens)[0], model(tokens)[0])


@every_version
def test_building_leaves_the_global_random_state_alone(version):
    before = torch.get_rng_state()
    tiny_model(version)
    assert torch.equal(torch.get_rng_state(), before)


@every_version
def test_losses_by_token_are_those_of_the_logits_also_in_parts_with_a_state(version):
    model = tiny_model(version)
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=2)
    with torch.no_grad():
        logits, _ = model(tokens)
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    whole, _ = model.token_losses(tokens, targets)
    assert_close("whole", whole, expected, 1e-5)
    first, state = model.token_losses(tokens[:, :4], targets[:, :4], head_rows=3)
    second, _ = model.token_losses(tokens[:, 4:], targets[:, 4:], state)
    assert_close("parts", torch.cat((first, second), 1), expected, 1e-5)
