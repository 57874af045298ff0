"""The command line of rwkv-plan: a few flags of its own, and all those of train.py."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence

from rwkv_train.command_line import OneLineParser, invoked_name, perhaps
from rwkv_train.config.command_line.argv import Argument, read_arguments, write_arguments
from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import FLAGS, translate
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError
from rwkv_train.planning.amounts import bytes_written, count_written
from rwkv_train.planning.cards import Card, find_card, similar_card
from rwkv_train.planning.cluster.cluster_flags import SYNONYMS, add_cluster_flags, cluster_wishes
from rwkv_train.planning.cluster.cluster_plan import ClusterWishes
from rwkv_train.planning.plan import Device, Wishes

_SWITCHES = ("json", "cards")
# What the error of a number shows, by flag.
_EXAMPLES = {
    "tokens": "300e9 or 300B",
    "rate": "165e12",
    "mfu": "0.4",
    "price": "2.5",
    "watts": "400",
    "link_bandwidth": "450",
    "node_bandwidth": "400",
}
# Given without a value it takes the memory of --card or --memory.
_OPTIONAL = ("fit",)
_ABOUT = """Says what a run takes before it is started: parameters, FLOPs, memory by component,
files, time, energy and price. Opens nothing but --config and needs no GPU."""
_ENDING = """All flags of train.py are understood, with the same defaults and RWKV-LM's names. Those
that matter: --rwkv_version, --n_layer, --n_embd, --vocab_size, --ctx_len, --micro_bsz,
--accumulate_grad_batches, --grad_cp, --chunk_len, --head_chunk, --train_type, --lora_r,
--optimizer, --precision, --strategy, --devices, --num_nodes, --context_parallel, --epoch_save,
--keep_last, and --config FILE.yaml.
train.py --plan 1 plans a command line of train.py and reads its data and model.
example: rwkv-plan --model 1.5B --ctx_len 4096 --micro_bsz 8 --card 4090 --fit
example: rwkv-plan --model 14B --nodes 128 --gpus_per_node 8 --card h100 --mttf 1000"""


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """A command line, read.

    given: train.py's flags; notices: lines about those of RWKV-LM.
    model: name of a published one.  fit: whether settings are searched.
    lists_cards: whether the table of cards is all that is asked.  cluster: what was said of
    machines that fail; None: nothing.
    """

    given: RunConfig
    notices: list[str]
    device: Device
    wishes: Wishes
    model: str | None
    tokens: float | None
    fit: bool
    as_json: bool
    lists_cards: bool
    cluster: ClusterWishes | None


def plan_parser() -> OneLineParser:
    """Returns the parser of the flags that train.py does not have."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.planning"),
        description=_ABOUT,
        usage="%(prog)s [flags below] [flags of train.py]",
        epilog=_ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--model", metavar="NAME", help="a published size, such as 0.1B, 1.5B, 7.2B (or --n_layer)")
    add("--card", metavar="NAME", help="what to train on, such as 4090, a100 or h100")
    add("--cards", action="store_true", help="list the cards that are known, and leave")
    add("--memory", metavar="SIZE", help="of one device, such as 24GB (in place of the card's)")
    add("--rate", metavar="FLOPS", help="FLOP/s of one device in 16 bits, such as 165e12")
    add(
        "--fit",
        nargs="?",
        const="",
        metavar="SIZE",
        help="search settings that fit into SIZE, or into the card's memory",
    )
    add("--tokens", metavar="COUNT", help="tokens of the whole run, such as 300e9 or 300B")
    add("--mfu", metavar="SHARE", help="FLOPs used, as a share of the rate (instead of predicted)")
    add("--price", metavar="AMOUNT", help="of a card and hour, in any currency")
    add("--watts", metavar="WATTS", help="of one card (in place of its board power)")
    add("--json", action="store_true", help="print one JSON object, for programs")
    add_cluster_flags(p)
    return p


def read_request(argv: Sequence[str]) -> PlanRequest:
    """Returns what a command line asks for; raises ConfigError for a fault in it.

    Prints the help and leaves the program for -h and --help.
    """
    parser = plan_parser()
    if any(word in ("-h", "--help") for word in argv):
        parser.parse_args(["--help"])
    own_names = [action.dest for action in parser._actions if action.dest != "help"]
    own: list[Argument] = []
    others: list[Argument] = []
    for argument in _one_name_each(read_arguments(argv)):
        if argument.name in own_names:
            own.append(_checked(argument, own))
        else:
            _require_known(argument, own_names)
            others.append(argument)
    flags = parser.parse_args(write_arguments(own))
    words, notices = translate(write_arguments(others))
    given = load_config(words)
    device = _device(flags)
    if flags.fit is not None and device.memory is None:
        raise ConfigError("--fit needs a memory to fit into: --fit 24GB, or --card 4090")
    return PlanRequest(
        given=given,
        notices=notices,
        device=device,
        wishes=_wishes(flags),
        model=flags.model,
        tokens=_count(flags, "tokens"),
        fit=flags.fit is not None,
        as_json=flags.json,
        lists_cards=flags.cards,
        cluster=cluster_wishes(flags),
    )


def _one_name_each(arguments: Sequence[Argument]) -> Iterator[Argument]:
    """Yields the arguments with train.py's names for our words of a cluster.

    Raises ConfigError where one is given with the other, or without its value.
    """
    given = [argument.name for argument in arguments]
    for argument in arguments:
        name = SYNONYMS.get(argument.name)
        if name is None:
            yield argument
            continue
        if name in given:
            raise ConfigError(f"--{argument.name} and --{name} say the same; give one")
        if given.count(argument.name) > 1:
            raise ConfigError(f"--{argument.name} is given twice; give it once")
        yield _checked(argument, [])._replace(name=name)


def _checked(argument: Argument, before: list[Argument]) -> Argument:
    """Returns a flag of our own; raises ConfigError for one without, or with a needless, value."""
    name, value = argument
    if any(other.name == name for other in before):
        raise ConfigError(f"--{name} is given twice; give it once")
    if name in _SWITCHES:
        if value is not None:
            raise ConfigError(f"--{name} takes no value, got {value!r}")
    elif not value and name not in _OPTIONAL:
        raise ConfigError(f"--{name} needs a value; --help says which")
    return argument


def _require_known(argument: Argument, own_names: list[str]) -> None:
    name = argument.name
    if name in fields() or name in FLAGS or name == "config":
        return
    advice = perhaps(name, [*own_names, *fields()], "--")
    raise ConfigError(
        f"unknown flag --{name}{advice}; --help lists those of rwkv-plan, train.py --help its own"
    )


def _device(flags: argparse.Namespace) -> Device:
    card = None if flags.card is None else _card(flags.card)
    rate = _count(flags, "rate")
    memory = None if card is None else card.memory
    for name in ("memory", "fit"):
        text = getattr(flags, name)
        if text:
            memory = bytes_written(name, text)
    if flags.memory and flags.fit:
        raise ConfigError(
            f"--memory {flags.memory} with --fit {flags.fit}: one says it; leave one out"
        )
    is_assumed = card is None and rate is not None
    if rate is not None:
        card = _like_a_4090(rate) if card is None else card._replace(rate=rate)
    return Device(_linked(flags, card), memory, is_assumed)


def _linked(flags: argparse.Namespace, card: Card | None) -> Card | None:
    """Returns the card with the bandwidths that were given."""
    link, node = _count(flags, "link_bandwidth"), _count(flags, "node_bandwidth")
    if card is None:
        if link is not None or node is not None:
            name = "node_bandwidth" if link is None else "link_bandwidth"
            raise ConfigError(f"--{name} {getattr(flags, name)}: give --card, or --rate, too")
        return None
    card = card if link is None else card._replace(link=1e9 * link)
    return card if node is None else card._replace(adapters=1e9 * node)


def _like_a_4090(rate: float) -> Card:
    """Returns a card of another rate, whose bandwidth is in the same proportion to it."""
    card = find_card("4090")
    assert card is not None, "a row of the table"
    bandwidth = card.bandwidth * rate / card.rate
    return card._replace(name="your card", rate=rate, bandwidth=bandwidth, source="")


def _card(name: str) -> Card:
    found = find_card(name)
    if found is None:
        raise ConfigError(
            f"--card {name} is not in the table{similar_card(name)}; --cards "
            "lists it, or give --memory 24GB --rate 165e12"
        )
    return found


def _wishes(flags: argparse.Namespace) -> Wishes:
    mfu = _count(flags, "mfu")
    if mfu is not None and mfu > 1:
        raise ConfigError(f"--mfu {flags.mfu}: expected a share such as 0.4, at most 1")
    if mfu is not None and flags.card is None and flags.rate is None:
        raise ConfigError(f"--mfu {flags.mfu} is a share of a rate: give --card, or --rate")
    price, watts = _count(flags, "price"), _count(flags, "watts")
    return Wishes(mfu, price, watts)


def _count(flags: argparse.Namespace, name: str) -> float | None:
    text = getattr(flags, name)
    return None if text is None else count_written(name, text, _EXAMPLES[name])
