"""`bucketrank doctor`, and what it reports about where it runs."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from bucketed_ranking import environment
from bucketed_ranking.environment import Finding, Report
from bucketed_ranking.errors import BucketRankError
from bucketrank_cli.main import app

OK = Finding("software", "torch", "ok", "2.15.0")
NO_CUDA = Finding("devices", "cuda", "absent", "no usable device")
NO_DETECTRON2 = Finding("software", "detectron2", "missing", "not installed", "run `make setup`")


def doctor(monkeypatch, *findings: Finding, output_format: str = "table"):
    monkeypatch.setattr(environment, "collect_report", lambda: Report(findings))
    return CliRunner().invoke(app, ["doctor", "--format", output_format])


@pytest.fixture
def without_detectron2(monkeypatch):
    # What the import system itself takes for "not there".
    monkeypatch.setitem(sys.modules, "detectron2", None)


def test_what_training_can_do_without_is_no_failure(monkeypatch):
    result = doctor(monkeypatch, OK, NO_CUDA)
    assert result.exit_code == 0
    assert "Training is possible here." in result.stdout


def test_what_training_needs_is_named_with_its_remedy(monkeypatch):
    result = doctor(monkeypatch, OK, NO_DETECTRON2)
    assert result.exit_code == 1
    assert "detectron2: run `make setup`" in result.stdout
    assert "Training is not possible yet; mend: detectron2." in result.stdout


@pytest.mark.parametrize(("findings", "ready"), [((OK,), True), ((OK, NO_DETECTRON2), False)])
def test_json_says_the_same(monkeypatch, findings, ready):
    result = doctor(monkeypatch, *findings, output_format="json")
    assert result.exit_code == (0 if ready else 1)
    report = json.loads(result.stdout)
    assert report["ready"] is ready
    assert [f["name"] for f in report["findings"]] == [f.name for f in findings]


def test_brackets_in_a_finding_are_printed_as_they_are(monkeypatch):
    broken = Finding("compiled", "detectron2 operators", "broken", "[Errno 2] it", "[bold] mend it")
    result = doctor(monkeypatch, broken)
    assert "[Errno 2] it" in result.stdout
    assert "[bold] mend it" in result.stdout


@pytest.mark.skipif(find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_the_environment_of_the_tests_can_train():
    report = environment.collect_report()
    assert report.ready, report.lacking
    names = {finding.name for finding in report.findings}
    assert {"python", "torch", "numpy", "detectron2 operators", "cpu", "configs"} <= names
    assert {"shapes_train", "shapes_val"} <= names


def test_a_torch_that_does_not_import_is_reported(monkeypatch):
    def fails() -> str:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(environment, "_try_torch", fails)
    states = {finding.name: finding.state for finding in environment.collect_report().findings}
    assert states["torch arithmetic"] == "broken"
    assert "torchvision operators" not in states


def test_data_sets_of_ones_own_are_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    registry = tmp_path / "datasets.yaml"
    registry.write_text("cells: {json: gone.json, images: gone}")
    states = {finding.name: finding for finding in environment._data_sets()}
    assert states["cells"].state == "absent"
    assert str(registry) in states["cells"].remedy


def test_a_malformed_registry_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    (tmp_path / "datasets.yaml").write_text("cells: [")
    states = {finding.name: finding for finding in environment._data_sets()}
    assert states["registry"].state == "broken"
    assert "not valid YAML" in states["registry"].remedy


def test_a_compiled_part_that_fails_is_broken_not_fatal():
    def fails() -> str:
        raise OSError("undefined symbol: _ZN3c106detail\nmore lines")

    finding = environment._compiled("torchvision", "torchvision operators", fails)
    assert finding.state == "broken"
    assert finding.detail == "OSError: undefined symbol: _ZN3c106detail"
    assert "make clean setup" in finding.remedy


def test_a_missing_distribution_is_missing_with_a_remedy():
    finding = environment._software("no-such-distribution")
    assert finding.state == "missing"
    assert "make setup" in finding.remedy


def test_requiring_detectron2_says_what_is_lacking_and_how_to_get_it(without_detectron2):
    with pytest.raises(BucketRankError, match="Training RetinaNet needs detectron2") as caught:
        environment.require_detectron2("Training RetinaNet")
    assert "make setup" in str(caught.value)
    assert environment.DETECTRON2_COMMIT in str(caught.value)


def test_requiring_a_detectron2_that_does_not_import_is_a_sentence_too(monkeypatch):
    monkeypatch.setattr(environment, "import_detectron2", lambda: False)
    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    with pytest.raises(BucketRankError, match="installed but does not import; install it again"):
        environment.require_detectron2("Training")


def test_the_losses_import_without_detectron2():
    script = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import bucketed_ranking.losses, bucketed_ranking.criterion"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_detectron2_that_does_not_import_leaves_the_rest_working(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bucketed_ranking.losses"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "does not import (ImportError: undefined symbol)" in result.stderr
