"""The command line's entry point: its commands, its version, and how its errors look."""

import errno
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import (
    configs,
    convert_weights,
    dataset,
    demo,
    doctor,
    evaluate,
    export,
    predict,
    profile_loss,
    replay,
    report,
    table,
    train,
)
from .options import INTERRUPTED, ConfigCommand

USER_ERROR = 2
# What the machine refuses: no permission, a read-only or full disk, a file in place of a folder.
_MENDABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


class CommandGroup(TyperGroup):
    """Ends a user's error, and Ctrl-C, in one line and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _print_error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message = _for_the_user(error)
            if message is None:
                raise
            _print_error(message)
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    name="bucketrank",
    cls=CommandGroup,
    help="Train, evaluate and compare object detectors with ranking-based losses.",
    epilog="New here? `bucketrank doctor` says what is installed, `bucketrank demo` shows it all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dataset.app, name="dataset")
app.command("configs")(configs.configs)
app.command("train", cls=ConfigCommand)(train.train)
app.command("eval", cls=ConfigCommand)(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("convert-weights")(convert_weights.convert_weights)
app.command("report")(report.report)
app.command("replay")(replay.replay)
app.command("demo", cls=ConfigCommand)(demo.demo)
app.command("table", cls=ConfigCommand)(table.table)
app.command("profile-loss", cls=ConfigCommand)(profile_loss.profile_loss)
app.command("doctor")(doctor.doctor)


def main() -> None:
    try:
        app(prog_name="bucketrank")
    except Exception as error:
        error.add_note(
            "This is a bug in bucketrank: please report it on the project's issue tracker, with "
            "the command, the lines above and the output of `bucketrank doctor`."
        )
        raise


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    for distribution in ("bucketrank", "torch", "detectron2"):
        try:
            installed = version(distribution)
        except PackageNotFoundError:
            installed = "not installed"
        typer.echo(f"{distribution} {installed}")
    raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of bucketrank, torch and detectron2, and leave.",
        ),
    ] = False,
) -> None:
    """The options that stand before any command."""


def _for_the_user(error: Exception) -> str | None:
    """The sentence for an error that the user can mend; None for a bug."""
    from bucketed_ranking.errors import BucketRankError

    if isinstance(error, BucketRankError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        return f"{error.strerror}: {error.filename or 'while writing'}; free it or choose another."
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package and find_spec(package) is None:
            return (
                f"This command needs {package}, which is not installed; `bucketrank doctor "
                "--install-detectron2` installs everything that training needs."
            )
    return None


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(message, style="bold red"), soft_wrap=True)
