# Sourced by the other scripts: puts a Python that satisfies the requirements into $PYTHON.
#   . ./set-up-environment.sh requirements.txt
# The active environment is used as it is when it already satisfies them. Otherwise .venv is made
# here, once, and filled; a torch that is already installed (2.11 or newer) is kept, not replaced.
# With LOCKED=1 nothing that is installed is used: .venv-locked is made, which holds the packages
# of requirements.lock, the same bytes on every machine.

set_up_environment() {
    local requirements=$1 python=${PYTHON:-python3} folder=.venv stamp options=() wanted
    [ "${LOCKED:-0}" = 1 ] && folder=.venv-locked requirements=requirements.lock
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: '$python' is missing or older than Python 3.10; install Python 3.10 or newer," \
             "or say which one to use: PYTHON=/path/to/python3 $0" >&2
        return 2
    fi
    if [ $folder = .venv ] && [ ! -d .venv ] && "$python" check_requirements.py "$requirements"; then
        PYTHON=$python
        echo "Using $("$python" --version) at $(command -v "$python"): it has all of $requirements"
        return 0
    fi
    stamp=$folder/installed-$(cat requirements* | cksum | cut -d' ' -f1)-$(basename "$requirements")
    if [ ! -e "$stamp" ]; then
        wanted=$(mktemp)
        if [ ! -x $folder/bin/python ]; then
            # An installed torch came with the GPU driver's blessing: see it from the new environment.
            [ $folder = .venv ] && "$python" check_requirements.py --only torch requirements.txt &&
                options=(--system-site-packages)
            echo "Making the Python environment $folder (once)"
            if ! "$python" -m venv ${options[@]+"${options[@]}"} $folder; then
                rm -rf $folder
                echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
                return 2
            fi
        fi
        echo "Installing $requirements into $folder (once; a few minutes)"
        if [ $folder = .venv ]; then
            .venv/bin/python check_requirements.py --to-install "$requirements" > "$wanted"
        else
            cp requirements.lock "$wanted"
        fi
        # pip would compile every module, on one core, which takes longer than all else.
        if ! $folder/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
            -r "$wanted"; then
            rm -f "$wanted"
            echo "error: pip could not install $requirements; see its message above" >&2
            return 2
        fi
        rm -f "$wanted"
        compile_packages $folder
        touch "$stamp"
    fi
    PYTHON=$folder/bin/python
    # ninja and other tools that packages bring
    export PATH="$PWD/$folder/bin:$PATH"
}

# Compiles the modules of an environment on all cores, but those that hardly anybody imports: their
# first import does it. A module that cannot be compiled, as templates of code, is not told of.
compile_packages() {
    "$1/bin/python" -m compileall -qq -j 0 -x '/(tests|transformers/models)/' "$1/lib" || true
}

# Where a GPU is and no CUDA compiler that fits torch, its kernels cannot be built, and training is
# several times slower: pip's compiler goes into an environment of ours, and is offered for another.
set_up_cuda_compiler() {
    local python=$PYTHON cuda wheels=() part
    # Images bring nvidia-smi along where no card is, and with a broken driver it may hang.
    timeout 15 nvidia-smi -L 2> /dev/null | grep -q '^GPU ' || return 0
    cuda=$("$python" -m rwkv_train.ops.native.cuda_toolkit) || return 0
    case $cuda in
        '') return 0 ;;
        13.0) wheels=(-r requirements-cuda.txt) ;;
        13.*)
            for part in nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl; do
                wheels+=("$part==$cuda.*")
            done ;;
        *)
            echo "note: there is no nvcc for torch's CUDA $cuda, so that the GPU's kernels cannot be" \
                 "built: install the CUDA toolkit $cuda and put its bin folder on the PATH" >&2
            return 0 ;;
    esac
    case $python in
        .venv/* | .venv-locked/*) ;;
        *)
            echo "note: there is no nvcc for torch's CUDA $cuda, so that the GPU's kernels cannot be" \
                 "built; it can be installed with: $python -m pip install ${wheels[*]}" >&2
            return 0 ;;
    esac
    echo "Installing nvcc for CUDA $cuda into ${python%%/*} (once), which compiles the GPU's kernels"
    if ! "$python" -m pip install --quiet --disable-pip-version-check "${wheels[@]}"; then
        echo "note: pip could not install it; training goes on without the GPU's kernels" >&2
    fi
}

set_up_environment "$1" || exit $?
# `python -m rwkv_train...` finds this copy of the package, installed or not.
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
set_up_cuda_compiler
