"""Run graders through the gauntlet and print the table.

    python -m benchmarks.gauntlet                                            # every grader that is installed
    python -m benchmarks.gauntlet my_module:grade                            # yours, on the mathematics
    python -m benchmarks.gauntlet my_module:grade --task code --data my.jsonl

`grade(reply, reference)` returns a truth value or a number; from 0.5 on the reply is paid. The reference is the gold
answer as text, or for code `{"prompt", "entry_point", "tests": [{"args", "expected"}]}`. `--data` adds a file of your
own cases, which stay out of the repository. README.md beside this file describes the data and the columns.
"""

import argparse
from pathlib import Path

from benchmarks.gauntlet import cases, graders, run

TASKS = ("math", "code")


def main(argv: list[str] | None = None) -> int:
    """Print a table for each task; returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gauntlet", description="Run graders through the gauntlet and print the table."
    )
    parser.add_argument("grader", nargs="?", help="module:function, or the name of a grader; all of them by default")
    parser.add_argument("--task", choices=TASKS, help="of your own grader; math by default")
    parser.add_argument("--data", type=Path, help="a JSONL file of further cases")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds for one reply (default: 10)")
    parser.add_argument("--limit", type=int, help="only every n-th case, for a quick look")
    options = parser.parse_args(argv)
    own = options.grader if options.grader and ":" in options.grader else None
    if not own and options.grader not in (None, *(name for task in TASKS for name in graders.GRADERS[task])):
        parser.error(f"{options.grader}: neither module:function nor a grader of the table")
    for task in TASKS:
        if own:
            chosen = {own: own} if task == (options.task or "math") else {}
        else:
            chosen = {name: spec for name, spec in graders.GRADERS[task].items() if options.grader in (None, name)}
        if not chosen or (options.task and task != options.task):
            continue
        try:
            tried = cases.load(task, options.data)[:: options.limit or 1]
        except (OSError, ValueError) as error:
            raise SystemExit(f"gauntlet: {error}") from None
        print(f"{task}: {len(tried)} cases, version {cases.VERSION}\n\n{run.HEADER}", flush=True)
        for name, spec in chosen.items():
            print(run.row(name, run.score(spec, tried, options.deadline)), flush=True)
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
