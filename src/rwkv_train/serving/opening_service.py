"""The model and the batching thread that a command line asks for."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rwkv_train.data.chat.template import load_template
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.model_identity import model_identity
from rwkv_train.inference.model_flags import open_given
from rwkv_train.serving.batching.batch_worker import BatchWorker
from rwkv_train.serving.batching.prefix_cache import PrefixCache
from rwkv_train.serving.served_model import (
    TEXT_SAMPLING,
    ServedModel,
    ServingLimits,
    sampling_options,
)


def open_service(a: argparse.Namespace) -> tuple[ServedModel, BatchWorker]:
    """Returns the loaded model and the thread that uses it, not yet started.

    Raises TrainerError for anything that cannot be done.
    """
    sampling = {n: getattr(a, n) for n in TEXT_SAMPLING if getattr(a, n) is not None}
    loaded = open_given(a)
    engine = Engine(loaded.model)
    # Kernels are built now, not while the first client waits.
    _, states = engine.prefill([[1, 1]])
    engine.step([1], states)
    path = Path(a.load_model)
    model = ServedModel(
        name=a.model_name or path.stem or path.resolve().name,
        tokenizer=loaded.tokenizer,
        template=load_template(a.chat_template),
        width=loaded.model.config.n_embd,
        fingerprint=f"rwkv_{model_identity(loaded.model)[:12]}",
        created=int(time.time()),
        limits=ServingLimits(
            places=a.max_concurrent,
            queue=a.max_queue,
            prompt_tokens=a.max_prompt_tokens,
            answer_tokens=a.max_answer_tokens,
            body_bytes=a.max_body_bytes,
            body_seconds=a.body_seconds,
            request_seconds=a.request_seconds,
        ),
        sampling=sampling,
        order=a.sampling_order,
        think=a.think,
        pooling=a.pooling,
    )
    # For the sake of its checks: wrong numbers are told before anybody asks.
    sampling_options(model, "temperature", TEXT_SAMPLING, sampling)
    worker = BatchWorker(
        engine, places=a.max_concurrent, queue=a.max_queue, cache=PrefixCache(a.cache_mb << 20)
    )
    return model, worker
