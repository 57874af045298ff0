"""Chooses the backend that serves an operator call; the only place that compares backends.

Every operator folder lists its backends in order of preference as a tuple of `Backend`. A name
such as "native:chunks" is one kernel of the backend "native", for who wants that one and no other.
The module behind a backend (`ops/<op>/<name>.py`) is imported on first use and exposes:

    refuses(call: Call) -> str | None
        None when the backend can serve this call, else the reason in one sentence without the
        backend's name ("needs a C++ compiler; install g++"). Whatever has to be compiled or
        loaded is compiled or loaded here, so that `run` cannot fail for that reason. It is asked
        before every call, so remember the answer. A plain string is news: `auto` logs it when it
        steps down. Return `Refusal(text, news=False)` for what is no news (a wrong device, a
        shape the backend was not made for). `Refusal(text, kind="compiler")` gives reasons whose
        wording changes from call to call one key, so that they are logged once.

    run(*tensors, state, reset) -> (y, state)         or, of a kernel, run(..., kernel="chunks")
        The arguments of the operator's `reference.run`, the positional ones in its order, prepared
        so: every argument lies on one device; r, k, v, a, b share `call.dtype` (strides are free);
        w, u, base, and the state if there is one, are already fp32 (fp64 where `call.dtype` is
        fp64); state is None for the zero state, reset is None or bool [B, T]. Autocast is off.
        It returns y in `call.dtype` and the final state in fp32 (fp64), both differentiable. (For
        wkv4 a state is the tuple (aa, bb, pp) and the final pp carries no gradient.)

A module that does not exist is "not built in" and no news. `auto` takes, of the backends that
accept, the one that was fastest at the nearest shape measured on such a machine
(`measurements.csv`); where nothing was measured, the first listed without a kernel, which then
picks its kernel by arithmetic. A backend asked for by name serves the call or raises BackendError.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import measurements

AUTO = "auto"
# The backends of an operator with a matrix state per head, in order of preference.
MATRIX_STATE_BACKENDS = (
    "native",
    "chunked",
    "reference",
    "native:scan",
    "native:wide",
    "native:chunks",
    "native:segments",
)

_log = logging.getLogger(__name__)
_announced: set[tuple[str, str, str]] = set()
# The innermost `auto_means` comes last.
_meanings: list[str] = []
# A list of one once it was looked for, None in it where it does not exist. Every name is a key from
# the start: torch.compile reads this at the first operator of a model and would not see a module
# that the second one imports; the lists are read when they are used.
_modules: dict[str, list[ModuleType | None]] = {}


class Call(NamedTuple):
    """Facts by which a backend accepts or refuses a call; no tensor, no data.

    `heads` and `head_size` are H and N; wkv4 has no heads and gives (A, 1). `batch` and `time` are
    rounded up to powers of two: every backend serves all of them, they matter for speed only, and
    torch.compile need not choose again whenever they change. `kernel`: the kernel asked for, or "".
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    batch: int
    time: int
    heads: int
    head_size: int
    needs_grad: bool
    has_state: bool
    has_reset: bool
    kernel: str = ""


class Refusal(str):
    """A reason to refuse, with what `auto` does with it.

    kind: the part of the log key that stands for the reason; the text itself unless given.
    news: whether stepping down for this reason is worth a warning.
    """

    kind: str
    news: bool

    def __new__(cls, text: str, *, kind: str | None = None, news: bool = True) -> Refusal:
        refusal = super().__new__(cls, text)
        refusal.kind = text if kind is None else kind
        refusal.news = news
        return refusal


class Backend(NamedTuple):
    """A name users may ask for and the module that implements it, imported on first use."""

    name: str
    module: str
    kernel: str = ""

    def refuses(self, call: Call) -> Refusal | None:
        """Returns the reason why this backend cannot serve `call`, or None."""
        module = _import_once(self.module)
        if module is None:
            return Refusal("it is not built into this copy of the program", news=False)
        reason = module.refuses(
            call if call.kernel == self.kernel else call._replace(kernel=self.kernel)
        )
        if reason is None or isinstance(reason, Refusal):
            return reason
        return Refusal(reason)

    def run(self, *arguments: Any, **options: Any) -> Any:
        """Calls the backend's `run`; only after `refuses` returned None."""
        (module,) = _modules[self.module]
        assert module is not None, f"{self.module} does not exist, and `refuses` says so"
        kernel = {"kernel": self.kernel} if self.kernel else {}
        return module.run(*arguments, **kernel, **options)


def serves_every_call(call: Call) -> str | None:
    """Returns no reason to refuse: the `refuses` of a backend of torch's own operators."""
    return None


def backends_of(op: str, *names: str) -> tuple[Backend, ...]:
    """Returns the backends of ops/<op> in order of preference; kernels are "backend:kernel"."""
    parts = [(name, *name.partition(":")[::2]) for name in names]
    room = f"rwkv_train.ops.{op}"
    found = tuple(Backend(name, f"{room}.{module}", kernel) for name, module, kernel in parts)
    for backend in found:
        _modules.setdefault(backend.module, [])
    return found


def dispatch(
    backends: Sequence[Backend],
    name: str,
    call: Call,
    arguments: Sequence[object],
    **options: object,
) -> Any:
    """Returns the result of the chosen backend's `run(*arguments, **options)`, autocast off.

    name: "auto" or the name of one of `backends`; see `choose` for the errors.
    """
    backend = backends[_choose_once(backends, name, *call)]
    with without_autocast(call.device):
        return backend.run(*arguments, **options)


@contextmanager
def auto_means(name: str) -> Iterator[None]:
    """Lets "auto" mean the backend `name` of every operator, for programs that compare backends."""
    _meanings.append(name)
    try:
        yield
    finally:
        _meanings.pop()


def choose(backends: Sequence[Backend], name: str, call: Call) -> int:
    """Returns the position in `backends` of the one that serves `call`.

    Raises BackendError when `name` is unknown, or names a backend that refuses the call, or when
    "auto" finds none.
    """
    if name == AUTO and _meanings:
        name = _meanings[-1]
    if name != AUTO:
        return _named(backends, name, call)
    refusals: list[tuple[Backend, Refusal]] = []
    for position in _order(backends, call):
        backend = backends[position]
        refusal = backend.refuses(call)
        if refusal is None:
            _announce(refusals, backend, call)
            return position
        refusals.append((backend, refusal))
    reasons = "; ".join(f"{backend.name}: {refusal}" for backend, refusal in refusals)
    raise BackendError(f"{call.op}: no backend can serve this call ({reasons})")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context in which torch.autocast does not touch operators on `device`."""
    kind = device.type
    # Most calls are outside of it already, and entering one costs as much as a small operator.
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Returns the dtype to which torch.autocast rounds `x` for a matrix product; None: it does not.

    It leaves fp64 alone.
    """
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind):
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _choose_once(backends: Sequence[Backend], name: str, *discovered: Any) -> int:
    # torch.compile hands over plain values only, hence the facts of the call one by one.
    return choose(backends, name, Call(*discovered))


# torch.compile must not trace the search, which compiles, reads the disk and logs. This mark is
# all that torch.compiler.assume_constant_result sets, but that one loads the whole compiler (a
# second) on import, also for those who never compile. mypy knows no attributes of functions.
_choose_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _named(backends: Sequence[Backend], name: str, call: Call) -> int:
    for position, backend in enumerate(backends):
        if backend.name != name:
            continue
        refusal = backend.refuses(call)
        if refusal is None:
            return position
        raise BackendError(
            f"{call.op}: backend '{name}' was asked for and cannot serve the call: {refusal}. "
            f"Remove the cause, or use backend 'auto'"
        )
    known = ", ".join(f"'{backend.name}'" for backend in backends)
    raise BackendError(f"{call.op}: unknown backend '{name}'; expected 'auto' or one of {known}")


def _order(backends: Sequence[Backend], call: Call) -> list[int]:
    """Returns the positions `auto` tries: as measured, then those without a kernel as listed."""
    direction = measurements.BOTH if call.needs_grad else measurements.FORWARD
    wanted = measurements.Workload(
        call.op,
        direction,
        measurements.card_of(call.device),
        str(call.dtype).removeprefix("torch."),
        call.batch * call.heads,
        call.time,
        call.head_size,
    )
    places = {backend.name: position for position, backend in enumerate(backends)}
    # A table may name backends that this copy of the program lacks.
    measured = [places[name] for name in measurements.ranking(wanted) if name in places]
    listed = [position for position, backend in enumerate(backends) if not backend.kernel]
    return measured + [position for position in listed if position not in measured]


def _announce(refusals: Sequence[tuple[Backend, Refusal]], taken: Backend, call: Call) -> None:
    """Logs each reason for stepping down that is news, once a process."""
    for backend, refusal in refusals:
        # the kernels of a backend that cannot be built share the reason
        key = (call.op, backend.module, refusal.kind)
        if refusal.news and key not in _announced:
            _announced.add(key)
            _log.warning(
                "%s: backend '%s' is not used: %s; '%s' serves instead",
                call.op,
                backend.name,
                refusal,
                taken.name,
            )


def _import_once(module: str) -> ModuleType | None:
    # Remembered because it is asked for every call and looks at the disk.
    found = _modules.setdefault(module, [])
    if not found:
        exists = importlib.util.find_spec(module) is not None
        # In place of whatever is there: a second thread may have come as far meanwhile.
        found[:] = [importlib.import_module(module) if exists else None]
    return found[0]
