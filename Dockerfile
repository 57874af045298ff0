# The trainer in a container; docs/docker.md says how it is used.
#
#   docker build -t rwkv-train .                                        for CPUs
#   docker build -t rwkv-train:cuda --build-arg VARIANT=cuda .          for NVIDIA's cards
#
# Both start from plain Python. torch's own wheels bring CUDA along, and the compiler for it comes
# from pip in exactly the release that fits: a CUDA image would hold both a second time.
ARG PYTHON_RELEASE=3.12
FROM python:${PYTHON_RELEASE}-slim-bookworm

# A variant: cpu or cuda. CPU_WHEELS: where torch is without CUDA, several GB smaller.
ARG VARIANT=cpu
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
# Groups of packages that only some programs need, by comma: serve,eval,export (pyproject.toml).
ARG EXTRAS=serve

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# The operators are compiled where they run, for the processor and the card that are there.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 rwkv \
    && install --directory --owner=rwkv --group=rwkv /opt/rwkv-train /runs
USER rwkv
WORKDIR /opt/rwkv-train
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# What is slow to fetch, in a layer that only another requirement makes anew. The script keeps a
# torch that it finds, and leaves the mark by which ./demo-training-run.sh knows the environment.
COPY --chown=rwkv:rwkv requirements.txt requirements-dev.txt requirements-cuda.txt requirements.lock ./
COPY --chown=rwkv:rwkv check_requirements.py set-up-environment.sh ./
COPY --chown=rwkv:rwkv src/rwkv_train/requirement_lines.py ./src/rwkv_train/
RUN case "$VARIANT" in cpu | cuda) ;; *) echo "VARIANT is $VARIANT; give cpu or cuda" >&2; exit 2 ;; esac; \
    python -m venv .venv; \
    if [ "$VARIANT" = cpu ]; then \
        .venv/bin/python -m pip install --quiet --index-url "$CPU_WHEELS" "$(grep ^torch== requirements.txt)"; \
    fi; \
    . ./set-up-environment.sh requirements.txt; \
    if [ "$VARIANT" = cuda ]; then \
        .venv/bin/python -m pip install --quiet -r requirements-cuda.txt; \
    fi

COPY --chown=rwkv:rwkv . .
RUN .venv/bin/python -m pip install --quiet --editable ".[$EXTRAS]"

# Compiled operators: a volume here keeps them from one container to the next.
RUN install --directory /home/rwkv/.cache
ENV PATH=/opt/rwkv-train/.venv/bin:$PATH
WORKDIR /runs
CMD ["rwkv-train", "--help"]
