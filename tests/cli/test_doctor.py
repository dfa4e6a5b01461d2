"""`bucketrank doctor`, and what it reports about where it runs."""

import importlib
import json
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from bucketed_ranking import detectron2_setup
from bucketed_ranking import doctor as report
from bucketed_ranking.doctor import Finding
from bucketed_ranking.losses import autograd
from bucketrank_cli.main import app

OK = Finding("software", "torch", "ok", "2.15.0")
NO_CUDA = Finding("devices", "cuda", "absent", "no usable device")
NO_DETECTRON2 = Finding("software", "detectron2", "missing", "not installed", "install it")


def doctor(monkeypatch, *findings: Finding, output_format: str = "table"):
    monkeypatch.setattr(report, "collect_report", lambda: list(findings))
    return CliRunner().invoke(app, ["doctor", "--format", output_format])


def test_what_training_can_do_without_is_no_failure(monkeypatch):
    result = doctor(monkeypatch, OK, NO_CUDA)
    assert result.exit_code == 0
    assert "Training is possible here." in result.stdout


def test_what_training_needs_is_named_with_its_remedy(monkeypatch):
    result = doctor(monkeypatch, OK, NO_DETECTRON2)
    assert result.exit_code == 1
    assert "detectron2: install it" in result.stdout
    assert "Training is not possible yet; mend: detectron2." in result.stdout


@pytest.mark.parametrize(("findings", "ready"), [((OK,), True), ((OK, NO_DETECTRON2), False)])
def test_json_says_the_same(monkeypatch, findings, ready):
    result = doctor(monkeypatch, *findings, output_format="json")
    assert result.exit_code == (0 if ready else 1)
    printed = json.loads(result.stdout)
    assert printed["ready"] is ready
    assert [f["name"] for f in printed["findings"]] == [f.name for f in findings]


def test_brackets_in_a_finding_are_printed_as_they_are(monkeypatch):
    broken = Finding("compiled", "detectron2 modeling", "broken", "[Errno 2] it", "[bold] mend it")
    result = doctor(monkeypatch, broken)
    assert "[Errno 2] it" in result.stdout
    assert "[bold] mend it" in result.stdout


@pytest.mark.skipif(find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_the_environment_of_the_tests_can_train():
    collected = report.collect_report()
    assert not [finding for finding in collected if finding.prevents_training]
    names = {finding.name for finding in collected}
    assert {"python", "torch", "numpy", "detectron2 modeling", "cpu", "configs"} <= names
    assert {"shapes_train", "shapes_val"} <= names


def test_a_torch_that_does_not_import_is_reported(monkeypatch):
    def fails() -> str:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(report, "_try_torch", fails)
    states = {finding.name: finding.state for finding in report.collect_report()}
    assert states["torch arithmetic"] == "broken"
    assert "torchvision operators" not in states


def test_data_sets_of_ones_own_are_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    registry = tmp_path / "datasets.yaml"
    registry.write_text("cells: {json: gone.json, images: gone}")
    states = {finding.name: finding for finding in report._data_sets()}
    assert states["cells"].state == "absent"
    assert str(registry) in states["cells"].remedy


def test_a_malformed_registry_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    (tmp_path / "datasets.yaml").write_text("cells: [")
    states = {finding.name: finding for finding in report._data_sets()}
    assert states["registry"].state == "broken"
    assert "not valid YAML" in states["registry"].remedy


def test_a_compiled_part_that_fails_is_broken_not_fatal():
    def fails() -> str:
        raise OSError("undefined symbol: _ZN3c106detail\nmore lines")

    finding = report._compiled("torchvision", "torchvision operators", fails)
    assert finding.state == "broken"
    assert finding.detail == "OSError: undefined symbol: _ZN3c106detail"
    assert "make clean setup" in finding.remedy


def test_a_missing_distribution_is_missing_with_a_remedy():
    finding = report._software("no-such-distribution")
    assert finding.state == "missing"
    assert "bucketrank doctor --install-detectron2" in finding.remedy


def test_a_source_without_the_install_flag_is_a_users_error():
    result = CliRunner().invoke(app, ["doctor", "--detectron2-from", "official"])
    assert result.exit_code == 2
    assert "--detectron2-from goes with --install-detectron2" in result.stderr


def test_installing_passes_the_source_on_and_says_each_step(monkeypatch):
    asked = []

    def install(source, report):
        asked.append(source)
        report("Taking detectron2 from it ...")

    monkeypatch.setattr(detectron2_setup, "install_detectron2", install)
    for words in ([], ["--detectron2-from", "a.whl"]):
        result = CliRunner().invoke(app, ["doctor", "--install-detectron2", *words])
        assert result.exit_code == 0
        assert "Taking detectron2 from it" in result.stdout
    assert asked == [None, "a.whl"]


def test_a_gpu_that_runs_no_kernels_can_be_trained_on(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    fused = importlib.import_module("bucketed_ranking.losses.fused")
    monkeypatch.setattr(fused, "try_out", lambda device: None)
    assert report._kernels(1).state == "ok"

    def fails(device):
        raise RuntimeError("Failed to find C compiler.\nMore")

    monkeypatch.setattr(fused, "try_out", fails)
    finding = report._kernels(1)
    assert not finding.prevents_training
    assert finding.detail.startswith("RuntimeError: Failed to find C compiler.; so exact losses")
    assert "gcc" in finding.remedy
    monkeypatch.setattr(autograd, "find_spec", lambda name: None)
    assert "triton is not installed" in report._kernels(1).detail
