"""A model of ours behind lm-eval's interface, registered there as `rwkv`.

Imported by `harness` alone, since lm-eval is an optional package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.evaluation.continuations import encode_pair, is_cut_plainly, score_continuations
from rwkv_train.evaluation.decoding import Request, write_continuations
from rwkv_train.evaluation.documents import document_of
from rwkv_train.evaluation.evaluated import PREFIXES, open_evaluated
from rwkv_train.evaluation.perplexity import Policy, evaluate_text
from rwkv_train.evaluation.questions import in_front
from rwkv_train.evaluation.scoring import BATCH_SIZE, Scorer
from rwkv_train.inference.sampling import SamplingOptions

_MAX_NEW_TOKENS = 256


class HarnessModel(TemplateLM):  # type: ignore[misc]  # a class without types
    """Answers lm-eval's requests.

    prefix: whether 0, the end of a document, stands in front of every context, as RWKV models are
    trained. Where a context is empty, and in front of a text whose perplexity is measured, it
    always does, as in lm-eval's other models.
    pairs, moved_cuts: contexts with continuations that were encoded, and those of them that
    lm-eval's own way would cut within a token.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, prefix: bool = True) -> None:
        super().__init__()
        if tokenizer.end_of_document is None:
            raise ConfigError(
                f"the vocabulary of {tokenizer.name} has no end of a document, with which lm-eval "
                "begins a text; evaluate by --text with --prefix none"
            )
        self._scorer, self._tokenizer, self._prefix = scorer, tokenizer, prefix
        self.pairs = self.moved_cuts = 0

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Returns the model that lm-eval's `model_args` name.

        arg_dict: load_model, and if wanted load_states, lora, tokenizer, prefix (0 or none),
        precision, wkv_backend, batch_size, device.
        """
        given = {**(additional_config or {}), **arg_dict}
        known = {"load_model", "load_states", "lora", "tokenizer", "precision", "wkv_backend"}
        rest = given.keys() - known - {"prefix", "batch_size", "max_batch_size", "device"}
        if rest or "load_model" not in given:
            raise ConfigError(
                f"model_args of rwkv: {', '.join(sorted(rest)) or 'load_model is missing'}; "
                f"expected load_model=PATH and some of {', '.join(sorted(known))}, prefix"
            )
        prefix, size = str(given.get("prefix", "0")), str(given.get("batch_size") or "")
        if prefix not in PREFIXES:
            raise ConfigError(f"prefix={prefix}: expected one of {', '.join(PREFIXES)}")
        options = {name: given[name] for name in known & given.keys() if name != "load_model"}
        # lm-eval names a card by its number too, such as cuda:0.
        device = str(given.get("device") or "auto").partition(":")[0]
        opened = open_evaluated(given["load_model"], device=device, **options)
        scorer = Scorer(opened.model, batch_size=int(size) if size.isdigit() else BATCH_SIZE)
        return cls(scorer, opened.tokenizer, prefix=PREFIXES[prefix])

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> HarnessModel:
        """Returns the model that lm-eval's `model_args` name, written NAME=VALUE,NAME=VALUE."""
        pairs = (part.partition("=") for part in arg_string.split(",") if part)
        arguments = {name.strip(): value for name, _, value in pairs}
        return cls.create_from_arg_obj(arguments, additional_config)

    @property
    def eot_token_id(self) -> int:
        """0, which ends a document."""
        return END_OF_DOCUMENT

    @property
    def max_length(self) -> int:
        """More tokens than any text has: the state is carried, and nothing is cut off."""
        return 1 << 20

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval keeps requests."""
        return self._tokenizer.name

    def get_model_info(self) -> dict[str, Any]:
        """Returns what a result of lm-eval's says of this model."""
        return {"prefix": "0" if self._prefix else "none", "tokenizer": self._tokenizer.name}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the tokens of a text, without any special one."""
        return self._tokenizer.encode(string)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns log-probability of each continuation, and whether it is the likeliest."""
        # Without a bar for the encoding, which takes moments.
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        self.pairs += 1
        self.moved_cuts += not is_cut_plainly(self._tokenizer, context, continuation)
        before, after = encode_pair(self._tokenizer, context, continuation)
        return in_front(before, self._prefix), after

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = score_continuations(self._scorer, pairs)
        return [(score.log_probability, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probability of each whole text, behind a 0."""
        documents = [document_of(request.args[0], self._tokenizer) for request in requests]
        figures = evaluate_text(self._scorer, self._tokenizer, documents, Policy())
        # One for each document that is not empty, in order.
        nats = iter(figures.nats)
        return [-next(nats) if document.ids else 0.0 for document in documents]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes behind each context, up to the first stop text."""
        asked = [self._request(*request.args) for request in requests]
        return [w.text for w in write_continuations(self._scorer, self._tokenizer, asked)]

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        until = settings.get("until") or []
        temperature = float(settings.get("temperature") or 0)
        options = SamplingOptions(
            temperature=(temperature or 1.0) if settings.get("do_sample") else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
            top_k=int(settings.get("top_k") or 0),
        )
        most = settings.get("max_gen_toks", settings.get("max_new_tokens", _MAX_NEW_TOKENS))
        return Request(
            in_front(self._tokenizer.encode(context), self._prefix),
            (until,) if isinstance(until, str) else tuple(until),
            int(most),
            options,
        )
