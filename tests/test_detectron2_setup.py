"""Importing without Detectron2, saying that it is missing, and installing it."""

import hashlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bucketed_ranking import detectron2_setup
from bucketed_ranking.errors import BucketRankError

FILES = {
    "detectron2/__init__.py": '__version__ = "0.7.2"\n',
    "detectron2/model_zoo/__init__.py": "",
    "detectron2/model_zoo/configs/v0.5-Detection/base.yaml": "VERSION: 2\n",
    "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
    "tools/__init__.py": "",
    "sal_detectron2-0.7.2.dist-info/LICENSE": "Apache License",
    "sal_detectron2-0.7.2.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
    ),
    "sal_detectron2-0.7.2.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-none-any\n"
    ),
    "sal_detectron2-0.7.2.dist-info/RECORD": "",
}


def modules_imported_by(statement: str) -> set[str]:
    """The packages that a new process imports, the standard library left out."""
    script = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("bucketed_ranking", "torch"),
        ("bucketed_ranking.losses", "torch"),
        ("bucketed_ranking.criterion", "torchvision.ops"),
    ],
)
def test_the_losses_import_torch_and_nothing_else(module, needed):
    added = modules_imported_by(f"import {module}") - modules_imported_by(f"import {needed}")
    assert added == {"bucketed_ranking"}


@pytest.mark.detectron2
@pytest.mark.skipif(find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_importing_modeling_registers_the_detectors():
    script = (
        "import bucketed_ranking.modeling\n"
        "from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY\n"
        "META_ARCH_REGISTRY.get('RankingRetinaNet'), ROI_HEADS_REGISTRY.get('RankingROIHeads')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_requiring_detectron2_says_what_is_lacking_and_how_to_get_it(monkeypatch):
    # What the import system itself takes for "not there".
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(BucketRankError, match="Training RetinaNet needs detectron2") as caught:
        detectron2_setup.require_detectron2("Training RetinaNet")
    assert "`bucketrank doctor --install-detectron2`" in str(caught.value)


def test_requiring_a_detectron2_that_does_not_import_is_a_sentence_too(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from bucketrank_cli.main import main; sys.argv = ['bucketrank', 'eval', 'run']; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "does not import (ImportError: undefined symbol)" in done.stderr
    assert "installed but does not import; `bucketrank doctor --install-detectron2`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the package registry, with a small wheel of the right name."""
    pytest.importorskip("pip", reason="pip installs detectron2, and is not installed")
    wheel = tmp_path / "registry" / "sal_detectron2-0.7.2-cp310-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(detectron2_setup, "REGISTRY_SHA256", digest)
    return wheel


def test_the_registrys_python_files_become_an_ordinary_wheel(registry, tmp_path):
    packed = detectron2_setup._wheel_from_registry(tmp_path)
    assert packed.name == "detectron2-0.6+a59f0563.python-py3-none-any.whl"
    with zipfile.ZipFile(packed) as archive:
        kept = {n: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" not in n}
        (licence,) = (n for n in archive.namelist() if n.endswith("/LICENSE"))
        assert archive.read(licence) == b"Apache License"
    assert kept == {
        name: content
        for name, content in FILES.items()
        if name.startswith("detectron2/") and not name.endswith(".so")
    }


def test_a_wheel_with_another_hash_is_refused(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(detectron2_setup, "REGISTRY_SHA256", "0" * 64)
    with pytest.raises(BucketRankError, match=r"could not be installed.*(?i:hash)"):
        detectron2_setup._wheel_from_registry(tmp_path)


@pytest.mark.skipif(find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_a_detectron2_that_imports_is_kept_and_gets_what_training_needs_beside_it(monkeypatch):
    called = []
    monkeypatch.setattr(detectron2_setup, "_pip", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(detectron2_setup, "installed_version", lambda name: "0.1.0")
    said = []
    detectron2_setup.install_detectron2(None, said.append)
    assert called == [("install", "bucketrank[detectors]==0.1.0")]
    assert said[-1].endswith("is installed and imports; kept.")


def test_a_source_that_fails_is_one_error_and_no_other_source(registry, tmp_path, monkeypatch):
    called = []
    real = detectron2_setup._pip
    monkeypatch.setattr(
        detectron2_setup, "_pip", lambda *arguments: (called.append(arguments), real(*arguments))
    )
    monkeypatch.setattr(detectron2_setup, "installed_version", lambda name: None)
    missing = str(tmp_path / "detectron2-0.6-py3-none-any.whl")
    with pytest.raises(BucketRankError, match="could not be installed") as caught:
        detectron2_setup.install_detectron2(missing, lambda sentence: None)
    assert missing in str(caught.value)
    assert len(called) == 1


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [(("git",), "git is missing"), (("c++", "g++", "clang++"), r"A C\+\+ compiler is missing")],
)
def test_a_missing_tool_of_the_official_build_is_one_sentence(monkeypatch, missing, sentence):
    which = detectron2_setup.shutil.which
    present = {"git": "/git", "g++": "/g++"}
    monkeypatch.setattr(
        detectron2_setup.shutil,
        "which",
        lambda name: None if name in missing else present.get(name) or which(name),
    )
    monkeypatch.setattr(detectron2_setup, "_pip", lambda *arguments: pytest.fail("pip was called"))
    with pytest.raises(BucketRankError, match=sentence):
        detectron2_setup.install_detectron2("official", lambda sentence: None)


def test_a_missing_pip_is_one_sentence(monkeypatch):
    monkeypatch.setattr(detectron2_setup, "find_spec", lambda name: None)
    with pytest.raises(BucketRankError, match="pip is missing in the environment of"):
        detectron2_setup.install_detectron2("registry", lambda sentence: None)
