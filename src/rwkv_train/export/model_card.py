"""README.md of an exported model: sizes, the run's facts, what was checked, how to use it."""

from __future__ import annotations

from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.run_facts import run_facts
from rwkv_train.export.target import ExportOptions, ExportTarget
from rwkv_train.export.verification import LogitsReport

_LICENSE = (
    "Not stated. Before you publish this model, write its license here and in the first lines of "
    "this file."
)


def model_card(
    name: str,
    model: SourceModel,
    target: ExportTarget,
    options: ExportOptions,
    report: LogitsReport | None,
) -> str:
    """Returns the card's Markdown.

    name: of the file or folder.  report: of the check of logits; None: there was none.
    """
    version = model.config.rwkv_version
    front = [
        "---",
        "license: unknown",
        "pipeline_tag: text-generation",
        *([f"library_name: {target.library}"] if target.library else []),
        f"tags: [rwkv, rwkv-{version}]",
        "---",
    ]
    parts = [
        "\n".join(front),
        f"# {name}",
        f"An RWKV-{version} language model, for {target.reader}.",
        _table(_sizes(model, options)),
        f"**License.** {_LICENSE}",
        "## Training",
        _table(run_facts(model.path)) or "Nothing is known: no run's files lay next to the model.",
    ]
    if report is not None:
        lines = "\n".join(report.lines())
        parts += [
            "## Check of the export",
            "The largest difference of logits from those of rwkv-train in fp64, by the largest "
            "logit, over fixed prompts of more than 64 tokens:",
            f"```\n{lines}\n```",
        ]
    usage = target.usage(name, model)
    if usage:
        parts += ["## Use", usage]
    return "\n\n".join(parts) + "\n"


def _sizes(model: SourceModel, options: ExportOptions) -> list[tuple[str, str]]:
    config = model.config
    count = sum(weight.numel() for weight in model.weights.values())
    tokenizer = model.tokenizer
    named = "not known" if tokenizer is None else tokenizer.name
    if tokenizer is not None and tokenizer.path is not None:
        named = f"`{tokenizer.path.name}`"
    rows = [
        ("parameters", f"{count:,}, stored as {options.precision}"),
        ("layers, width", f"{config.n_layer}, {config.n_embd}"),
        ("vocabulary", f"{config.vocab_size:,} rows, tokenizer {named}"),
    ]
    if config.head_size:
        rows.insert(2, ("heads", f"{config.dim_att // config.head_size} of {config.head_size}"))
    rows += [("merged", f"`{change}`") for change in model.merged]
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
