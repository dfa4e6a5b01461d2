#!/usr/bin/env bash
# Sets up .venv: the pinned packages, bucketrank itself (editable), then detectron2.
# What is already there is left alone, so a second run takes no time. Called by the Makefile.
#
# `tools/setup.sh docs` adds what builds the documentation.
#
#   PYTHON=python3.12    the interpreter of a new .venv (default: python3.11 to python3.13, python3)
#   DETECTRON2=SOURCE    "official" (its repository, compiled), a folder, a wheel or a pip url;
#                        left out, its Python files from the package registry
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
log=$venv/setup.log

fail() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null ||
            fail "PYTHON=$PYTHON is not there; give Python 3.11 to 3.13."
        supported "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1);" \
            "bucketrank needs Python 3.11 to 3.13."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "No Python 3.11 to 3.13 found (python3 is $(python3 --version 2>&1 || true));" \
        "install one, or name it: make setup PYTHON=/path/to/python3.12"
}

make_venv() {
    local python
    if supported "$venv/bin/python" && compgen -G "$venv/lib/*/site-packages/pip/" >/dev/null; then
        check_same_python
        return
    fi
    python=$(find_python)
    echo "setup: new virtual environment in $venv ($("$python" --version 2>&1))"
    rm -rf "$venv"
    "$python" -m venv "$venv" >/dev/null 2>&1 || {
        rm -rf "$venv"
        fail "$python cannot make a virtual environment: its venv module is missing (Debian," \
            "Ubuntu: apt install python3-venv)."
    }
}

check_same_python() {
    [[ -n ${PYTHON:-} ]] || return 0
    local ask='import sys; print(*sys.version_info[:2], sep=".")' python wanted present
    python=$(find_python)
    wanted=$("$python" -c "$ask")
    present=$("$venv/bin/python" -c "$ask")
    [[ $wanted == "$present" ]] || fail "$venv holds Python $present, and PYTHON=$PYTHON is" \
        "$wanted; run \`make clean\` first."
}

# step "what is shown" command...: its output goes to the log, and its end is shown if it fails.
step() {
    local shown=$1 from=$SECONDS
    shift
    printf 'setup: %s ... ' "$shown"
    printf '\n== %s: %s\n' "$shown" "$*" >>"$log"
    if "$@" >>"$log" 2>&1 </dev/null; then
        echo "$((SECONDS - from)) s"
        return 0
    fi
    echo "failed after $((SECONDS - from)) s"
    return 1
}

export PIP_CONSTRAINT=$PWD/constraints.txt
# Of 12,000 files only those that are imported are compiled, once: `compile_imports`.
install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
        --no-build-isolation --no-compile "$@"
}

# What the last step in the log complained about.
last_errors() {
    local complaint
    complaint=$(awk '/^== /{text = ""} {text = text $0 "\n"} END{printf "%s", text}' "$log")
    grep -m 3 -iE '^ *(fatal|error)\b|: (fatal )?error:' <<<"$complaint" ||
        tail -n 3 <<<"$complaint"
}

packages_key() { cat pyproject.toml constraints.txt "$venv/pyvenv.cfg" <(pwd -P) | cksum; }

install_packages() {
    local stamp=$venv/.packages
    [[ -f $stamp && $(<"$stamp") == "$(packages_key)" ]] && return
    rm -f "$stamp"
    : >"$log"
    echo "setup: pip's own output goes to $log"
    {
        step "build tools" install pip setuptools hatchling &&
            step "torch, some gigabytes, and all else but detectron2" install --editable '.[test]' &&
            # For Cityscapes. Its own dependencies would put a second OpenCV over ours and a package
            # named typing beside Python's; what it really needs is here.
            step "cityscapesscripts" install --no-deps cityscapesscripts pyquaternion shapely
    } || packages_failed
    packages_key >"$stamp"
}

packages_failed() {
    last_errors >&2
    fail "The packages could not be installed; the whole story is in $log. Once it is mended, the" \
        "same command goes on from here."
}

install_docs() {
    local stamp=$venv/.docs
    [[ -f $stamp && $(<"$stamp") == "$(packages_key)" ]] && return
    step "what builds the documentation" install --editable '.[docs]' || packages_failed
    packages_key >"$stamp"
}

# A detectron2 that is there stays until another is asked for by DETECTRON2=.
detectron2_is_there() {
    local stamp=$venv/.detectron2
    [[ -f $stamp && (-z ${DETECTRON2:-} || $(<"$stamp") == "$DETECTRON2") ]] || return 1
    "$venv/bin/python" -c 'from importlib.metadata import version as v; v("detectron2")' 2>/dev/null
}

install_detectron2() {
    detectron2_is_there && return
    local from=${DETECTRON2:-registry}
    [[ $from == registry || $from == *.whl ]] ||
        echo "setup: detectron2's C++ part is compiled now, which takes some minutes"
    step "detectron2 ($from)" "$venv/bin/bucketrank" doctor --install-detectron2 \
        ${DETECTRON2:+--detectron2-from "$DETECTRON2"} || detectron2_failed "$from"
    compile_imports
    echo "${DETECTRON2:-}" >"$venv/.detectron2"
}

compile_imports() {
    step "the first import, which compiles" \
        "$venv/bin/python" -c 'import bucketed_ranking.engine.runs, timm' || packages_failed
}

detectron2_failed() {
    # The sentence that `bucketrank doctor` ends with.
    tail -n 1 "$log" >&2
    fail "detectron2 could not be installed from $1, and no other source was tried. The losses work" \
        "without it; training needs it. DETECTRON2= chooses another source: a folder (a clone of" \
        "its repository), a wheel, an address for pip, or official; left out, the package registry." \
        "The whole story is in $log."
}

make_venv
install_packages
install_detectron2
if [[ ${1:-} == docs ]]; then install_docs; fi
