"""Runs the benchmarks and rewrites their tables in `benchmarks/README.md`: `make bench`.

    python benchmarks/suite.py                      # every row that has no result yet
    python benchmarks/suite.py --only serving demo  # these rows, anew
    python benchmarks/suite.py --list

A row is one command; its peers are installed in a virtual environment of the row's own kind, because their pins
conflict. What a row prints is kept in `runs/bench/ROW.md`, so an interrupted suite goes on where it was. The tables in
it replace what stands between `<!-- bench: ROW -->` and `<!-- end -->` in `benchmarks/README.md`, under a line that
names the command, the machine, its load and the day. A row that fails or runs out of time changes nothing and is
named at the end.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "runs" / "bench"
HUMAN_EVAL, GSM8K = "../shared/data/HumanEval.jsonl", "../shared/data/gsm8k_test.jsonl"


@dataclass(frozen=True)
class Row:
    """One command of the suite.

    Attributes:
        command: A script of this folder and its arguments; `{peer}` is the Python of `peer`'s environment.
        minutes: Wall time after which the row is given up; twice what it takes on two quiet cores.
        venv: The extra whose virtual environment runs the script; "" runs it in this one.
        peer: An extra whose Python the script is handed.
        needs: A file without which the row is left out.
    """

    command: str
    minutes: float
    venv: str = ""
    peer: str = ""
    needs: str = ""


ROWS = {
    "environments": Row("envs.py", 6, venv="bench"),
    "games": Row("envs.py --games", 6, venv="bench"),
    "grading": Row(f"grade.py --rounds 1 --gsm8k {GSM8K}", 10, needs=GSM8K),
    "sandbox": Row(f"sandbox.py --human-eval {HUMAN_EVAL} --rounds 3", 8, venv="bench", needs=HUMAN_EVAL),
    "serving": Row("serving.py --openenv-python {peer}", 8, peer="bench-serving"),
    "frozen": Row("serving.py --frozen", 8),
    "rollouts": Row("train.py --parts rollout time --rounds 2", 25),
    "training-steps": Row("train.py --parts steps --workloads demo --rounds 2", 10),
    "demo": Row("demo.py --seeds 0 --output runs/bench/demo", 50),
    "tools": Row("tools.py --seeds 0 --output runs/bench/tools.json", 16),
    "games-learning": Row("games.py --seeds 0 --steps 400 --folder runs/bench/games", 12),
}


def python_of(extra: str) -> Path:
    """The Python of an extra's virtual environment under `build/peers`, which is made at its first use."""
    if not extra:
        return Path(sys.executable)
    folder = ROOT / "build" / "peers" / extra
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-e", f"{ROOT}[serve,tools,sql,shop,{extra}]"], check=True)
        (folder / "ready").touch()
    return python


def machine() -> str:
    """Processor, cores, load and versions, for the line above a table."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    name = cpu[1] if cpu else platform.machine()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def run(row: Row) -> str:
    """Run a row; the Markdown that stands for it.

    Raises:
        subprocess.SubprocessError: If it fails or takes too long.
    """
    script, *arguments = row.command.format(peer=python_of(row.peer) if row.peer else "").split()
    began, before = time.monotonic(), machine()
    done = subprocess.run(
        [python_of(row.venv), ROOT / "benchmarks" / script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=row.minutes * 60,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    tables = re.findall(r"(?:^\|.*\n?)+", done.stdout, re.MULTILINE)
    shown = row.command.replace("{peer}", "VENV/bin/python")
    took = (time.monotonic() - began) / 60
    note = f"`python benchmarks/{shown}`, {datetime.date.today():%-d %B %Y}, {took:.0f} min; {before}:"
    return "\n\n".join([note, *(table.strip() for table in tables)]) + "\n"


def publish(name: str, text: str) -> None:
    """Put a row's tables into the page, between its marks."""
    page = PAGE.read_text("utf-8")
    marks = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    changed, count = marks.subn(lambda match: match[1] + text + match[2], page)
    if count != 1:
        raise ValueError(f"{PAGE.name}: expected one <!-- bench: {name} --> … <!-- end -->, found {count}")
    PAGE.write_text(changed, "utf-8")


def main() -> int:
    """Run what is missing, write the page; 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=[], help="these rows, even if they have run")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    args = parser.parse_args()
    if args.list:
        for name, row in ROWS.items():
            print(f"{name:16} at most {row.minutes:g} min  {row.command}")
        return 0
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, row in ROWS.items():
        result = RESULTS / f"{name}.md"
        if name not in args.only and (args.only or result.exists()):
            continue
        if row.needs and not (ROOT / row.needs).exists():
            print(f"{name}: left out, {row.needs} is not there", flush=True)
            continue
        print(f"{name}: {row.command}", flush=True)
        try:
            text = run(row)
        except subprocess.SubprocessError as error:
            print(f"{name}: {error}", flush=True)
            failed.append(name)
            continue
        publish(name, text)
        result.write_text(text, "utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}; run them again with --only", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
