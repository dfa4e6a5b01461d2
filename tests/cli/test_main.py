"""The command line's entry point: errors, versions, help, completion."""

import errno
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from bucketed_ranking.errors import BucketRankError
from bucketrank_cli import main as entry


def run_raising(error: BaseException):
    app = typer.Typer(cls=entry.CommandGroup, pretty_exceptions_enable=False)

    @app.command("fail")
    def fail() -> None:
        raise error

    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["fail"])


def run_in_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bucketrank_cli", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2():
    sentence = "No data set is named 'cells' [a]; `bucketrank dataset list` shows those there are."
    result = run_raising(BucketRankError(sentence))
    assert result.exit_code == 2
    assert result.stderr == sentence + "\n"
    assert result.stdout == ""


def test_what_the_machine_refuses_is_a_sentence_too():
    result = run_raising(PermissionError(errno.EACCES, "Permission denied", "/elsewhere/runs"))
    assert result.exit_code == 2
    assert result.stderr == "Permission denied: /elsewhere/runs; free it or choose another.\n"
    assert isinstance(run_raising(FileNotFoundError("a bug")).exception, FileNotFoundError)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_is_a_file_or_lies_under_one_is_told(tmp_path, place):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    (tmp_path / "file").touch()
    result = run_in_process("train", "retinanet_tiny", "--dataset", "shapes", "--output",
                            str(tmp_path / place))  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "Not a directory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.MAX_ITER", "-5"], "SOLVER.MAX_ITER is -5; it must be 1 or more"),
        (["SOLVER.BASE_LR", "-.5"], "SOLVER.BASE_LR is -0.5; it must be 1e-12 or more"),
        (["--seed", "-5"], "--seed"),
        (["--seed", str(10**23)], "--seed"),
        (["-5"], "-5"),
        (["SOLVER.MAX_ITER", "--bogus"], "--bogus"),
    ],
)
def test_negative_numbers_are_values_and_no_options(arguments, message):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    result = CliRunner().invoke(entry.app, ["train", "retinanet_tiny", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_package_that_is_not_installed_is_named_with_how_to_get_it():
    result = run_raising(ModuleNotFoundError("No module named 'cv9.x'", name="cv9.x"))
    assert result.exit_code == 2
    assert "needs cv9, which is not installed; `bucketrank doctor" in result.stderr
    bug = ModuleNotFoundError("No module named 'bucketrank_cli.x'", name="bucketrank_cli.x")
    assert run_raising(bug).exception is bug


def test_interrupting_is_one_line_and_exit_code_130():
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


def test_a_bug_keeps_its_traceback_and_says_where_to_report_it(monkeypatch):
    def app(**_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(entry, "app", app)
    with pytest.raises(ZeroDivisionError) as caught:
        entry.main()
    assert "report it" in caught.value.__notes__[0]


def test_version_names_what_matters():
    result = CliRunner().invoke(entry.app, ["--version"])
    assert result.exit_code == 0
    assert f"bucketrank {version('bucketrank')}" in result.stdout
    assert f"torch {version('torch')}" in result.stdout
    assert "detectron2 " in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments):
    result = CliRunner().invoke(entry.app, arguments)
    for command in entry.app.registered_commands:
        assert command.name in result.output


def test_every_command_has_help():
    for command in [*entry.app.registered_commands, *entry.app.registered_groups]:
        result = CliRunner().invoke(entry.app, [command.name, "--help"])
        assert result.exit_code == 0, result.output


def test_an_unknown_command_is_named():
    result = CliRunner().invoke(entry.app, ["trian"])
    assert result.exit_code == 2
    assert "trian" in result.stderr


def test_help_and_version_import_nothing_heavy():
    script = (
        "import sys, bucketrank_cli.main\n"
        "heavy = {'torch', 'detectron2', 'bucketed_ranking', 'numpy', 'cv2', 'matplotlib'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))))"
    )
    result = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert result.stderr.strip() == ""


def test_the_module_runs_like_the_script():
    result = run_in_process("--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: bucketrank" in result.stdout


def test_the_shell_completes_commands():
    result = run_in_process(
        _BUCKETRANK_COMPLETE="complete_bash", COMP_WORDS="bucketrank doc", COMP_CWORD="1"
    )
    assert result.stdout.split() == ["doctor"]
