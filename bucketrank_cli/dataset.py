"""`bucketrank dataset`: add, list, show, check, export and remove data sets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Format, OutputFormat, say

if TYPE_CHECKING:
    from rich.table import Table

    from bucketed_ranking.data.coco import CheckReport
    from bucketed_ranking.data.entries import DatasetEntry

app = typer.Typer(
    name="dataset",
    help="Add, list, show, check, export and remove data sets.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="A data set (both its splits), or one split.")]

SEVERITY_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Its name from now on.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="Folder or file of labels: a YOLO folder or data.yaml, VOC, ..."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Annotations, COCO-format JSON; needs --images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, if it is not found by itself.")
    ] = None,
    label_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="auto, coco, yolo, yolo-seg, voc, labelme, cvat, openimages: that of the labels.",
        ),
    ] = "auto",
    val_json: Annotated[
        Path | None, typer.Option(help="Annotations of the validation split, if it has its own.")
    ] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of its pictures; left out, the same as --images.")
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Without --val-json: hold out this fraction of pictures, such as 0.2."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what has this name.")] = False,
) -> None:
    """Give a data set of yours a name.

    Labels of other formats than COCO are converted once; polygons stay masks. With --val-json or
    --val-fraction, or from a source with folders train and val, it gets two splits, NAME_train and
    NAME_val, and `bucketrank train CONFIG --dataset NAME` uses both. Your files are only read.
    """
    from bucketed_ranking.data.coco import check_dataset
    from bucketed_ranking.data.registry import add_dataset, registry_file
    from bucketed_ranking.errors import BucketRankError

    if (source is None) == (json_file is None):
        raise BucketRankError("Name the labels: a folder or file, or a COCO JSON with --json.")
    if source is not None and (val_json or val_images):
        raise BucketRankError("--val-json and --val-images go with --json.")
    if source is not None:
        entries = _add_labels(name, source, label_format, images, val_fraction, force)
    elif images is None:
        raise BucketRankError("--json needs --images, the folder of the pictures.")
    else:
        entries = add_dataset(
            name,
            json_file,
            images,
            val_json=val_json,
            val_images=val_images,
            val_fraction=val_fraction,
            force=force,
        )
    say(f"Added to {registry_file()}:")
    reports = [check_dataset(entry) for entry in entries]
    for report in reports:
        say(f"  {report.name}: {_counts(report)}, {_verdict(report)}")
    if not all(report.ok for report in reports):
        say(f"See what is wrong: bucketrank dataset check {name}")
    if len(entries) == 2:
        say(f"Train on it: bucketrank train --dataset {name}")
    else:
        say(f"Look at it: bucketrank dataset show {name} --draw 8")


def _add_labels(
    name: str,
    source: Path,
    label_format: str,
    images: Path | None,
    val_fraction: float | None,
    force: bool,
) -> list["DatasetEntry"]:
    from bucketed_ranking.data import formats
    from bucketed_ranking.errors import BucketRankError

    if label_format not in formats.FORMATS:
        raise BucketRankError(
            f"There is no format {label_format!r}; choose one of {', '.join(formats.FORMATS)}."
        )
    if label_format == "auto":
        label_format, reason = formats.recognise(source)
        say(f"Format {label_format}: {reason}.")
    entries, skipped = formats.add_labels(
        name, source, label_format, images, val_fraction=val_fraction, force=force
    )
    for sentence in skipped:
        say(sentence)
    return entries


@app.command("list")
def list_all(output_format: OutputFormat = Format.table) -> None:
    """List every data set that can be named, and whether its files are there.

    A pair NAME_train and NAME_val also goes by NAME.
    """
    from rich.table import Column, Table

    from bucketed_ranking.data.registry import detectron2_root, list_datasets, registry_file

    entries = list_datasets()
    if output_format is Format.json:
        _print_json([_entry_fields(entry) for entry in entries])
        return
    table = Table(Column("name", no_wrap=True), "from", Column("JSON", overflow="fold"))
    shown = [entry for entry in entries if entry.present or entry.origin != "detectron2"]
    for entry in shown:
        held_out = f" ({entry.part} part, {entry.val_fraction:g} held out)" if entry.part else ""
        state = "" if entry.present else " [red](files absent)[/red]"
        table.add_row(entry.name, entry.origin, f"{_escape(entry.json)}{held_out}{state}")
    _print_table(table)
    absent = [entry.name for entry in entries if entry not in shown]
    if absent:
        say(f"Known to Detectron2, but absent under {detectron2_root()}: {', '.join(absent)}")
    say("A pair NAME_train and NAME_val also goes by NAME, as in --dataset NAME.")
    say(f"Yours are kept in {registry_file()}; `bucketrank dataset add` adds one.")


@app.command()
def show(
    name: Name,
    draw: Annotated[
        int, typer.Option(min=0, help="Draw this many pictures of each split with their boxes.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for them; left out, NAME-pictures.")
    ] = None,
    output_format: OutputFormat = Format.table,
) -> None:
    """Show what a data set holds: counts, classes, box sizes, and pictures with --draw."""
    from bucketed_ranking.data.registry import members
    from bucketed_ranking.data.summary import summarise

    entries = members(name)
    summaries = [summarise(entry) for entry in entries]
    folder = out or Path(f"{name}-pictures")
    drawn: list[Path] = []
    if draw:
        from bucketed_ranking.data.draw import draw_pictures

        drawn = [path for entry in entries for path in draw_pictures(entry, draw, folder)]
    if output_format is Format.json:
        _print_json(summaries)
        return
    for summary in summaries:
        _print_summary(summary)
    if drawn:
        say(f"Drew {len(drawn)} pictures into {folder}")


@app.command()
def check(name: Name, output_format: OutputFormat = Format.table) -> None:
    """Check a data set: pictures, boxes, ids. The exit code is 1 if there are problems.

    What is wrong is skipped or mended when training; this says what, where and how often.
    """
    from bucketed_ranking.data.coco import check_dataset
    from bucketed_ranking.data.formats import changed_source
    from bucketed_ranking.data.registry import members

    entries = members(name)
    reports = [check_dataset(entry) for entry in entries]
    for changed in sorted({source for entry in entries if (source := changed_source(entry))}):
        say(
            f"{changed} has changed or gone since it was added; add it again with --force.",
            "yellow",
        )
    if output_format is Format.json:
        _print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            _print_report(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def export(
    name: Name,
    label_format: Annotated[str, typer.Option("--format", help="coco, yolo or voc.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; left out, NAME-FORMAT.")
    ] = None,
) -> None:
    """Write a data set, checked and cleaned, with its pictures in a format of other tools."""
    from bucketed_ranking.data.export import export_dataset
    from bucketed_ranking.data.registry import members

    folder = out or Path(f"{name}-{label_format}")
    for sentence in export_dataset(members(name), label_format, folder):
        say(sentence)
    say(f"Everything is in {folder}.")


@app.command()
def remove(name: Name) -> None:
    """Forget a data set's name. Its files stay."""
    from bucketed_ranking.data.registry import registry_file, remove_dataset

    removed = remove_dataset(name)
    say(f"Removed {' and '.join(removed)} from {registry_file()}; the files are untouched.")


def _entry_fields(entry: "DatasetEntry") -> dict[str, Any]:
    source = entry.source and str(entry.source)
    return {**entry.as_dict(), "present": entry.present, "source": source}


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    def share(count: int) -> str:
        return f"{100 * count / max(1, summary['num_boxes']):.1f}"

    say(
        f"{summary['name']}: {summary['num_images']} images, {summary['num_boxes']} boxes",
        style="bold",
    )
    say(f"  JSON     {summary['json']}")
    say(f"  images   {summary['images_folder']}")
    for what, (low, median, high) in (("width", summary["widths"]), ("height", summary["heights"])):
        say(f"  {what:<8} {low} to {high} px, median {median}")
    say(f"  masks    {'yes' if summary['has_masks'] else 'no'}")
    if summary["num_crowds"]:
        say(f"  crowds   {summary['num_crowds']}, left out of the counts")
    if summary["num_empty_images"]:
        say(f"  empty    {summary['num_empty_images']} images without a box")
    if summary["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["skipped"].items())
        say(f"  skipped  {reasons}")
    classes = Table("class", *_right("boxes", "%", "images"))
    for row in summary["classes"]:
        classes.add_row(
            _escape(row["name"]), str(row["boxes"]), share(row["boxes"]), str(row["images"])
        )
    _print_table(classes)
    sizes = Table("box area", *_right("boxes", "%"), "")
    bounds = {"small": "small  < 32²", "medium": "medium", "large": "large  ≥ 96²"}
    for size, count in summary["sizes"].items():
        bar = "█" * round(30 * count / max(1, summary["num_boxes"]))
        sizes.add_row(bounds[size], str(count), share(count), bar)
    _print_table(sizes)


def _print_report(report: "CheckReport") -> None:
    from rich.table import Table
    from rich.text import Text

    say(f"{report.name}: {_counts(report)}, {_verdict(report)}", style="bold")
    if not report.findings:
        return
    table = Table("what", *_right("count"), "then", "for example", show_lines=True)
    for finding in report.findings:
        table.add_row(
            Text(finding.kind, style=SEVERITY_STYLES[finding.severity]),
            str(finding.count),
            finding.remedy,
            Text("\n".join(finding.examples)),
        )
    _print_table(table)


def _counts(report: "CheckReport") -> str:
    return f"{report.num_images} images, {report.num_annotations} annotations"


def _verdict(report: "CheckReport") -> str:
    if report.ok:
        return "no problems"
    return "; ".join(f"{finding.count} x {finding.kind}" for finding in report.problems)


def _right(*titles: str) -> list[Any]:
    from rich.table import Column

    return [Column(title, justify="right") for title in titles]


def _escape(value: object) -> str:
    from rich.markup import escape

    return escape(str(value))


def _print_table(table: "Table") -> None:
    from rich.console import Console

    Console().print(table)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
