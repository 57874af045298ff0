"""verification.json: what was verified on which machine, with a checksum over all of it.

It holds no name of a user or a computer and no path, since it is pasted into bug reports. The
checksum shows that a file is complete and unchanged; it is no signature, which only a secret gives.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rwkv_train.errors import ConfigError, DataError
from rwkv_train.files import write_atomically
from rwkv_train.machine_record import machine_record
from rwkv_train.ops.native.build import SOURCES
from rwkv_train.verification.golden_file import golden_digest
from rwkv_train.verification.outcome_table import named_faults, outcome_rows, verdict_line
from rwkv_train.verification.outcomes import Outcome, Part, faults_of
from rwkv_train.verification.verifying import ChosenItems

_FORMAT = 1
_CHECKSUM = "sha256"
_DIGITS = 3
# Of a broken machine everything is wrong: as many as one reads.
_FAULTS_KEPT = 100


def verification_record(
    parts: Sequence[Part], plan: ChosenItems, speed: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the contents of the file, with the checksum."""
    faults = named_faults(faults_of(parts))
    content = {
        "program": "rwkv-verify",
        "format": _FORMAT,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "result": verdict_line(parts).removeprefix("RESULT: "),
        "quick": plan.quick,
        "only": list(plan.only),
        "machine": machine_record(),
        "digests": {"kernels": kernels_digest(), "golden": golden_digest()},
        "speed": dict(speed),
        "verified": [
            {
                "what": row.item,
                "backend": row.backend,
                "types": list(row.dtypes),
                "compared": row.compared,
                "faults": row.faults,
                "worst": _values(row.worst),
            }
            for row in outcome_rows(parts)
        ],
        "faults": [
            {"what": finding.item, "backend": finding.backend, **_values(finding)}
            for finding in faults[:_FAULTS_KEPT]
        ],
        "not_run": [missing._asdict() for part in parts for missing in part.not_run],
        "notes": [note for part in parts for note in part.notes],
    }
    return content | {_CHECKSUM: content_checksum(content)}


def write_verification(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file; raises ConfigError when that fails."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}") from error


def read_verification(path: Path) -> dict[str, Any]:
    """Returns the contents of a file that is complete and unchanged; else raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--check {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"--check {path} is cut off or no JSON; a report is what --output wrote, all of it"
        ) from error
    if not isinstance(content, dict) or content.get("program") != "rwkv-verify":
        raise DataError(f"--check {path} is no report of rwkv-verify; give what --output wrote")
    if content.get("format") != _FORMAT:
        raise DataError(
            f"--check {path} has format {content.get('format')}, expected {_FORMAT}; check it with "
            "the version of the program that wrote it"
        )
    found = content.pop(_CHECKSUM, None)
    if found != content_checksum(content):
        raise DataError(
            f"--check {path} was changed after it was written: its checksum does not match; ask "
            "for the file as rwkv-verify wrote it"
        )
    return content


def content_checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the contents, however they are indented and ordered."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def kernels_digest() -> str:
    """Returns the SHA-256 of all native sources with their names."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*")):
        if file.suffix in (".h", ".cuh", ".cu", ".cpp"):
            digest.update(file.relative_to(SOURCES).as_posix().encode() + b"\n")
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _values(finding: Outcome) -> dict[str, Any]:
    """Returns a finding without numbers that JSON does not have: they become words."""
    numbers = {"error": finding.error, "bound": finding.bound, "used": finding.used}
    written = {
        name: float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)
        for name, value in numbers.items()
    }
    words = {"dtype": finding.dtype, "result": finding.result, "case": finding.case}
    return {**words, **written, **({"fault": finding.fault} if finding.fault else {})}
