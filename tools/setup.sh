#!/usr/bin/env bash
# Sets up .venv: the pinned packages, bucketrank itself (editable), then detectron2.
# What is already there is left alone, so a second run takes no time. Called by the Makefile.
#
#   PYTHON=python3.12    the interpreter of a new .venv (default: python3.11, python3.12 or python3)
#   DETECTRON2=SOURCE    detectron2 from a folder, a wheel or a pip url, not from its own address
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
log=$venv/setup.log
environment=projects/BucketedRanking/bucketed_ranking/environment.py

fail() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null ||
            fail "PYTHON=$PYTHON is not there; give Python 3.11 or 3.12."
        supported "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1);" \
            "bucketrank needs Python 3.11 or 3.12."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3 python; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "No Python 3.11 or 3.12 found (python3 is $(python3 --version 2>&1 || true));" \
        "install one, or name it: make setup PYTHON=/path/to/python3.12"
}

pinned() { sed -n "s/^DETECTRON2_$1 = \"\(.*\)\"\$/\1/p" "$environment"; }

# What detectron2 is installed from, and whether it has to be fetched by git and compiled.
detectron2_source() {
    local source=${DETECTRON2:-$(pinned REPOSITORY)@$(pinned COMMIT)}
    # Without the ./ pip takes the name of a folder for that of a package.
    [[ -e $source && $source != /* ]] && source=./$source
    echo "$source"
}
needs_git() { [[ $(detectron2_source) == git+* ]]; }
needs_compiler() { [[ $(detectron2_source) != *.whl ]]; }

check_tools() {
    if needs_git && ! command -v git >/dev/null; then
        fail "git is missing: install it (Debian, Ubuntu: apt install git; macOS: xcode-select" \
            "--install), or give DETECTRON2=/path/to/a/clone/or/wheel."
    fi
    if needs_compiler && ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then
        fail "A C++ compiler is missing, and detectron2 is compiled here: install one (Debian," \
            "Ubuntu: apt install g++; macOS: xcode-select --install), or give" \
            "DETECTRON2=/path/to/a/wheel.whl."
    fi
}

check_headers() {
    needs_compiler || return 0
    local include
    include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [[ -e $include/Python.h ]] || fail "Python.h is missing, and detectron2 is compiled here:" \
        "install Python's headers (Debian, Ubuntu: apt install python3-dev), or name another PYTHON=."
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

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
install() { pip install --no-build-isolation --constraint constraints.txt "$@"; }

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
        step "build tools" install pip setuptools wheel ninja hatchling &&
            step "torch and torchvision (some gigabytes)" install torch torchvision &&
            step "bucketrank and everything else but detectron2" install --editable '.[test]' &&
            # For LVIS and Cityscapes. Their own dependencies would put a second OpenCV over ours
            # and a package named typing beside Python's; what they really need is here.
            step "lvis and cityscapesscripts" install --no-deps \
                lvis cityscapesscripts pyquaternion shapely
    } || packages_failed
    packages_key >"$stamp"
}

packages_failed() {
    last_errors >&2
    fail "The packages could not be installed; the whole story is in $log. Once it is mended, the" \
        "same command goes on from here."
}

# The first line is what the checkout wants, the second where it came from: a detectron2 from
# elsewhere (DETECTRON2=) stays until the pin or torch changes, or until another is asked for.
detectron2_key() { echo "$(pinned COMMIT) $(grep -E '^torch==' constraints.txt)"; }

detectron2_is_there() {
    local stamp=$venv/.detectron2 key source
    [[ -f $stamp ]] || return 1
    { read -r key && read -r source; } <"$stamp"
    [[ $key == "$(detectron2_key)" ]] || return 1
    [[ -z ${DETECTRON2:-} || $source == "$(detectron2_source)" ]] || return 1
    "$venv/bin/python" -c 'from importlib.metadata import version as v; v("detectron2")' 2>/dev/null
}

install_detectron2() {
    detectron2_is_there && return
    check_headers
    needs_compiler && echo "setup: detectron2's C++ part is compiled now, which takes some minutes"
    GIT_TERMINAL_PROMPT=0 step "detectron2 from $(detectron2_source)" build_detectron2 ||
        detectron2_failed
    printf '%s\n%s\n' "$(detectron2_key)" "$(detectron2_source)" >"$venv/.detectron2"
}

# A wheel first, so that a failed build leaves an installed detectron2 alone. Without pip's cache:
# it would hand out what was built for another torch.
build_detectron2() {
    local built=$venv/detectron2.new kept=$venv/detectron2
    rm -rf "$built" && mkdir "$built" &&
        pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$built" \
            "$(detectron2_source)" &&
        rm -f "$venv/.detectron2" &&
        install --force-reinstall --no-deps "$built"/*.whl &&
        install "$built"/*.whl &&
        rm -rf "$kept" &&
        mv "$built" "$kept"
}

detectron2_failed() {
    last_errors >&2
    cat >&2 <<MESSAGE

setup: detectron2 could not be installed from $(detectron2_source)
Everything else is installed: the losses and the commands that need no detectron2 work
(\`$venv/bin/bucketrank doctor\` says what is missing). Training needs it; three ways to get it:
  make setup DETECTRON2=/path/to/detectron2          a clone of its repository, at commit
                                                     $(pinned COMMIT)
  make setup DETECTRON2=/path/to/detectron2-….whl    a wheel built for this Python and torch
                                                     (a machine that is set up has one in
                                                     $venv/detectron2)
  make setup DETECTRON2=git+https://MIRROR/detectron2.git@COMMIT
                                                     a mirror that this machine reaches
The whole story is in $log.
MESSAGE
    exit 1
}

check_tools
make_venv
install_packages
install_detectron2
