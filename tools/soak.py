"""Trains for a long time on the embedded data set while being stopped and killed, and watches.

python tools/soak.py FOLDER [MINUTES] [KEY VALUE]...

FOLDER/soak is trained by two processes and gets three SIGTERM and three SIGKILL, to the whole group
of processes, at even distances, and is resumed each time by the same command. FOLDER/whole is the
same training, never touched. Afterwards FOLDER/soak.json has what happened, every difference
between their rows of metrics, and FOLDER/memory.png the memory of each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure

SIGNALS = [signal.SIGTERM, signal.SIGKILL] * 3
TRAIN = ["bucketrank", "train", "retinanet_tiny", "--dataset", "shapes", "--seed", "1"]
TRAIN += ["--device", "cpu", "--num-processes", "2", "--auto-resume"]
KEYS = ["SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_PERIOD", "100", "TEST.EVAL_PERIOD", "500"]
# Values of a row that are times, and differ from run to run.
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


def start(folder: Path, options: list[str]) -> subprocess.Popen:
    """The training in `folder`, in a group of processes of its own."""
    command = [sys.executable, "-m", *TRAIN, "--output", str(folder), *KEYS, *options]
    command[2] = "bucketrank_cli"
    with folder.with_suffix(".out").open("a") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def memory(group: int) -> tuple[int, int]:
    """Resident bytes of all processes of a group, and how many they are."""
    total, count = 0, 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                count += 1
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return total, count


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """The rows of metrics.json by iteration, without times."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        kept = {key: value for key, value in row.items() if key not in TIMES}
        found.setdefault(row["iteration"], {}).update(kept)
    return found


def main() -> None:
    root, minutes, options = Path(sys.argv[1]), float((sys.argv[2:] or ["90"])[0]), sys.argv[3:]
    root.mkdir(parents=True)
    soak, whole = root / "soak", root / "whole"
    began, events, samples = time.time(), [], []
    processes = {each: start(each, options) for each in (soak, whole)}
    due = [60 * minutes * (k + 1) / (len(SIGNALS) + 1) for k in range(len(SIGNALS))]
    while (now := time.time() - began) < 60 * minutes:
        samples.append([now, *(memory(process.pid)[0] for process in processes.values())])
        if len(events) < len(SIGNALS) and now > due[len(events)]:
            number, process = SIGNALS[len(events)], processes[soak]
            os.killpg(process.pid, number)
            code = process.wait()
            stopped = time.time() - began - now
            time.sleep(6)  # image workers notice within 5 s that their process was killed
            event = {"minute": now / 60, "signal": number.name, "exit_code": code}
            event |= {"seconds": stopped, "left_behind": memory(process.pid)[1]}
            event["rows"] = len(rows(soak))
            events.append(event)
            print(event, flush=True)
            processes[soak] = start(soak, options)
        for folder, process in processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{folder} ended by itself: {process.returncode}")
        time.sleep(5)
    codes = []
    for process in processes.values():
        os.killpg(process.pid, signal.SIGTERM)
        codes.append(process.wait())
    report(root, events, samples, codes)


def report(root: Path, events: list[dict], samples: list[list[float]], codes: list[int]) -> None:
    """Compare the two trainings, and write and draw what was seen."""
    found, expected = rows(root / "soak"), rows(root / "whole")
    common = sorted(found.keys() & expected.keys())
    last = common[-1]
    missing = [i for i in expected if i <= last and i not in found]
    extra = [i for i in found if i <= last and i not in expected]
    # As text, which makes NaN equal to itself.
    different = [i for i in common if json.dumps(found[i]) != json.dumps(expected[i])]
    evaluations = [i for i in common if any(key.endswith("/AP") for key in found[i])]
    summary = {
        "events": events,
        "exit_codes_at_the_end": codes,
        "iterations": {"soak": max(found), "whole": max(expected)},
        "rows_compared": len(common),
        "evaluations_compared": len(evaluations),
        "rows_missing": missing,
        "rows_that_are_too_many": extra,
        "rows_that_differ": different,
    }
    (root / "soak.json").write_text(json.dumps({**summary, "memory": samples}) + "\n")
    print(json.dumps(summary, indent=2))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for column, name in ((1, "stopped and killed"), (2, "never touched")):
        axes.plot([s[0] / 60 for s in samples], [s[column] / 2**30 for s in samples], label=name)
    for event in events:
        axes.axvline(event["minute"], color="0.7", linewidth=0.8)
        place = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "right"}
        axes.text(event["minute"], 0.02, event["signal"], rotation=90, fontsize=7, **place)
    axes.set(xlabel="minutes", ylabel="resident memory, GiB", title="Memory of all processes")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(root / "memory.png", dpi=120)


if __name__ == "__main__":
    main()
