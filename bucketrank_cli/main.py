"""The frame of the command line: its commands, its version, and how its errors look."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import dataset, demo, doctor, evaluate, predict, train

USER_ERROR = 2
INTERRUPTED = 130


class Frame(TyperGroup):
    """Turns what a user can mend, and Ctrl-C, into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _print_error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _is_user_error(error):
                raise
            _print_error(str(error))
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    name="bucketrank",
    cls=Frame,
    help="Train, evaluate and compare object detectors with ranking-based losses.",
    epilog="New here? `bucketrank doctor` says what is installed, `bucketrank demo` shows it all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dataset.app, name="dataset")
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("demo")(demo.demo)
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
def _frame(
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


def _is_user_error(error: Exception) -> bool:
    # Imported here: importing the package brings detectron2 in, too slow for `--help`.
    from bucketed_ranking.errors import BucketRankError

    return isinstance(error, BucketRankError)


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(message, style="bold red"), soft_wrap=True)
