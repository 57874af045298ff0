"""The prompts and tasks of a run, read and checked before it writes anything."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import listed
from rwkv_train.data.samples.sample_source import SampleSource
from rwkv_train.data.tokenize.characters import CharacterTokenizer
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.data.tokenize.tokenizer_files import TokenizerRecord
from rwkv_train.errors import ConfigError
from rwkv_train.evaluation.harness import TaskRuns, loaded_tasks
from rwkv_train.inference.prompt_file import prompts_of_file
from rwkv_train.training.environment import is_rank_zero

_VOCABULARY = "vocab.json"


class LivePlan:
    """The prompts and tasks of a run; rank zero has them, the others know that there are some.

    tokenizer: None where nothing is asked, and on other ranks.
    """

    def __init__(
        self, config: ResolvedConfig, record: TokenizerRecord | None, samples: SampleSource
    ) -> None:
        """Reads what rank zero will need; record: the tokenizer of the data, None: not known.

        Raises ConfigError or DataError for what is missing or cannot be used.
        """
        log = config.log
        self.tokenizer: Tokenizer | None = None
        self.prompts: list[str] = []
        self.runs: TaskRuns | None = None
        self._every = log.sample_every
        self._stack = ExitStack()
        if not is_rank_zero() or (log.eval_tasks is None and log.sample_every is None):
            return
        flag = "--eval_tasks" if log.eval_tasks is not None else "--sample_every"
        self.tokenizer = _tokenizer(flag, config, record, samples)
        if log.sample_every is not None:
            self.prompts = [""]
            if log.sample_prompts is not None:
                self.prompts = prompts_of_file(Path(log.sample_prompts), "--sample_prompts")
            for prompt in self.prompts:
                # A vocabulary of characters does not have all of them.
                self.tokenizer.encode(prompt)
        if log.eval_tasks is None:
            return
        if self.tokenizer.end_of_document is None:
            raise ConfigError(
                "--eval_tasks: tasks begin a text with the end of a document, which a vocabulary "
                "of characters does not have; train on binidx data"
            )
        include = [] if log.eval_include is None else [log.eval_include]
        names = listed(log.eval_tasks)
        tasks = loaded_tasks(names, include, limit=log.eval_limit, asker="--eval_tasks")
        self.runs = self._stack.enter_context(tasks)

    def notes(self) -> list[str]:
        """Returns what will be asked, and when, a line each."""
        found = []
        if self.runs is not None:
            names = ", ".join(self.runs.names)
            found.append(f"tasks at every mini-epoch that is saved, and at the end: {names}")
        if self.prompts:
            every, texts = self._every, len(self.prompts)
            found.append(f"{texts} text{'s' * (texts > 1)} as a sample every {every} steps")
        return found

    def close(self) -> None:
        """Removes what was kept for the tasks."""
        self._stack.close()


def _tokenizer(
    flag: str, config: ResolvedConfig, record: TokenizerRecord | None, samples: SampleSource
) -> Tokenizer:
    if samples.characters is not None:
        return CharacterTokenizer(_VOCABULARY, samples.characters)
    if record is None:
        raise ConfigError(
            f"{flag} needs the tokenizer of the data, which has no manifest; give --tokenizer "
            "world, bytes or the path of a tokenizer.json"
        )
    tokenizer = load_tokenizer(record.name)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{flag}: the tokenizer {record.name} has {tokenizer.vocab_size} tokens, the model "
            f"{config.model.vocab_size} rows"
        )
    return tokenizer
