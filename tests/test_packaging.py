"""Set-up and packaging: the wheel, `make`, tools/setup.sh, and what may not be committed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from bucketed_ranking import environment
from bucketed_ranking.errors import BucketRankError

# What names one machine or one network: home folders, working folders, package registries.
PRIVATE = re.compile(
    r"(?<![\w.~$}/-])/(?:work|root|tmp/dev|tmp/d2src|opt/pypi)\b"
    r"|\b(?:pypi|pythonhosted|devpi|artifactory|download\.pytorch)\.(?:org|net|com|io)\b"
    r"|--(?:extra-)?index-url|--find-links[ =]"
)


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling builds the wheel and is not installed; `make setup` installs it")
    built = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", built, repository]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as contents:
        contents.extractall(built / "unpacked")
    return built / "unpacked"


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    folders = {path.name for path in wheel.iterdir()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {
        "bucketed_ranking",
        "bucketrank_cli",
    }
    assert (wheel / "bucketed_ranking" / "environment.py").is_file()
    assert (wheel / "bucketrank_cli" / "main.py").is_file()


def test_the_wheel_holds_every_config(wheel, repository):
    def configs(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*.yaml")}

    committed = configs(repository / "configs")
    assert committed
    assert configs(wheel / "bucketed_ranking" / "configs") == committed


def test_an_installed_package_finds_its_own_configs(wheel, tmp_path):
    script = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from bucketed_ranking.environment import configs_root; print(configs_root())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == str(wheel / "bucketed_ranking" / "configs"), result.stderr


def test_a_checkout_uses_its_own_configs(repository):
    assert environment.configs_root() == repository / "configs"


def test_missing_configs_are_a_clear_error(monkeypatch, tmp_path):
    nowhere = tmp_path / "a" / "b" / "bucketed_ranking" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(nowhere))
    with pytest.raises(BucketRankError, match="configs of bucketrank are in neither"):
        environment.configs_root()


def test_one_version_everywhere(project, repository):
    import bucketed_ranking

    version = project["project"]["version"]
    assert bucketed_ranking.__version__ == version
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["version"] == version


def test_every_dependency_is_pinned(project, repository):
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {normalised(pin.split("==")[0]) for pin in pins}
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(name for extra in extras for name in extra)]
    assert {normalised(re.match(r"[\w.-]+", name).group()) for name in wanted} <= {
        *pinned,
        "bucketrank",
    }


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_make_help_lists_every_target(repository):
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE)
    listed = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True).stdout
    assert {"setup", "demo", "test", "lint", "clean"} <= set(targets)
    for target in targets:
        assert re.search(rf"^  make {target} +\w", listed, re.MULTILINE), target


def test_no_committed_file_names_a_machine_or_a_registry(repository):
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.decode().split("\0")):
        path = repository / name
        if path == Path(__file__) or not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines():
            if PRIVATE.search(line):
                found.append(f"{name}: {line.strip()[:120]}")
    assert not found


# tools/setup.sh, with a .venv whose python plays pip: nothing is fetched, and every path is walked.

PLAYED_PIP = """#!/bin/bash
echo "$*" >> {calls}
case "$*" in
    *"-m venv"*) exit {venv_status} ;;
    *"-m pip"*) exit 0 ;;
    *version*detectron2* | *"import bucketed_ranking"*) exit 0 ;;
    *) exec {python} "$@" ;;
esac
"""


PLAYED_BUCKETRANK = """#!/bin/bash
echo "bucketrank $*" >> {calls}
case "$*" in *unreachable*) echo "fatal: unable to access it"; exit 2 ;; esac
"""


class SetUp:
    """A copy of what tools/setup.sh reads, and a python that plays pip."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        for name in ("tools/setup.sh", "pyproject.toml", "constraints.txt"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, self.root / name)

    def script(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755)
        return target

    def player(self, path: str, venv_status: int = 0) -> Path:
        text = PLAYED_PIP.format(calls=self.calls, python=sys.executable, venv_status=venv_status)
        return self.script(path, text)

    def make_venv(self) -> None:
        self.player(".venv/bin/python")
        self.script(".venv/bin/bucketrank", PLAYED_BUCKETRANK.format(calls=self.calls))
        self.script(".venv/lib/python3/site-packages/pip/__init__.py", "")
        (self.root / ".venv" / "pyvenv.cfg").write_text("")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "DETECTRON2", "CXX")}
        return subprocess.run(
            [shutil.which("bash"), self.root / "tools" / "setup.sh", *arguments],
            env=kept | variables,
            capture_output=True,
            text=True,
        )

    def bare_path(self) -> str:
        """A PATH that holds what the script uses; no git, no compiler."""
        folder = self.root / "bin"
        folder.mkdir()
        for tool in [
            "bash",
            "dirname",
            "sed",
            "cat",
            "rm",
            "mv",
            "mkdir",
            "grep",
            "cksum",
            "awk",
            "tail",
        ]:
            if found := shutil.which(tool):
                (folder / tool).symlink_to(found)
        return str(folder)


@pytest.fixture
def set_up(tmp_path: Path, repository: Path) -> SetUp:
    return SetUp(tmp_path, repository)


def test_set_up_installs_detectron2_last_and_does_nothing_the_second_time(set_up):
    set_up.make_venv()
    # Neither git nor a compiler is needed.
    first = set_up.run(PATH=set_up.bare_path())
    assert first.returncode == 0, first.stderr
    calls = set_up.calls.read_text()
    detectron2 = calls.index("bucketrank doctor --install-detectron2\n")
    assert calls.index("--editable") < detectron2 < calls.index("import bucketed_ranking")

    set_up.calls.unlink()
    second = set_up.run()
    assert second.returncode == 0
    assert second.stdout == ""
    assert "pip" not in set_up.calls.read_text()
    # What is kept may be anyone's; a source that is asked for is installed.
    assert "detectron2 (registry)" in set_up.run(DETECTRON2="registry").stdout


def test_what_builds_the_documentation_is_installed_where_it_is_asked_for(set_up):
    set_up.make_venv()
    assert set_up.run().returncode == 0
    assert "[docs]" not in set_up.calls.read_text()
    assert set_up.run("docs").returncode == 0
    assert "--editable .[docs]" in set_up.calls.read_text()
    assert set_up.run("docs").stdout == ""


def test_an_unreachable_detectron2_comes_after_everything_else_and_names_the_ways_out(set_up):
    set_up.make_venv()
    result = set_up.run(DETECTRON2="git+https://unreachable.invalid/detectron2.git")
    assert result.returncode != 0
    assert (set_up.root / ".venv" / ".packages").is_file()
    assert "fatal: unable to access it" in result.stderr
    assert "could not be installed from git+https://unreachable.invalid" in result.stderr
    assert "no other source was tried" in result.stderr
    assert set_up.calls.read_text().count("--install-detectron2") == 1


def test_a_detectron2_of_ones_own_stays_until_another_is_asked_for(set_up):
    set_up.make_venv()
    assert set_up.run(DETECTRON2="some/clone").returncode == 0
    assert set_up.run().stdout == ""
    assert set_up.run(DETECTRON2="some/clone").stdout == ""
    assert "detectron2 (another/clone)" in set_up.run(DETECTRON2="another/clone").stdout


def test_no_python_at_all_is_one_sentence(set_up):
    result = set_up.run(PATH=set_up.bare_path())
    assert result.returncode != 0
    assert "No Python 3.11 to 3.13 found" in result.stderr


def test_an_interpreter_that_is_not_there_is_one_sentence(set_up):
    result = set_up.run(PYTHON="python9.9")
    assert result.returncode != 0
    assert "PYTHON=python9.9 is not there" in result.stderr


def test_an_interpreter_that_is_too_old_is_one_sentence(set_up):
    old = set_up.script(
        "old/python",
        '#!/bin/bash\n[[ $1 == --version ]] && echo "Python 3.8.18" || exit 1\n',
    )
    result = set_up.run(PYTHON=str(old))
    assert result.returncode != 0
    assert "is Python 3.8.18; bucketrank needs Python 3.11 to 3.13" in result.stderr


def test_a_missing_venv_module_is_one_sentence(set_up):
    result = set_up.run(PYTHON=str(set_up.player("bare/python", venv_status=1)))
    assert result.returncode != 0
    assert "its venv module is missing" in result.stderr
    assert not (set_up.root / ".venv").exists()
