"""`python -m benchmarks [PART]`: measure, keep the figures, draw them. Parts: `results.PARTS`; groups: `GROUPS`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import plots, tables
from benchmarks.peer_catalog import PEERS
from benchmarks.results import GROUPS, PARTS, ROOT, Options, circumstances, read, write
from service.errors import FirewallError
from service.settings import shipped_artifact


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for, one part after the other; each part's figures are kept as soon as it is done."""
    given = _parse(arguments)
    try:
        options = Options(
            artifact=given.artifact or shipped_artifact(),
            out=given.out,
            corpus=given.corpus,
            mirror=given.mirror,
            exclude=given.exclude,
            quick=given.quick,
            peers=tuple(given.peer),
        )
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "results.json"
        for part in GROUPS.get(given.part, (given.part,)):
            print(f"{part} …", file=sys.stderr, flush=True)
            measured = circumstances(options, part)
            figures = importlib.import_module(f"benchmarks.{part}").measure(options)
            known = read(path)
            entry = msgspec.structs.replace(measured, figures=figures)
            write(path, msgspec.structs.replace(known, parts=known.parts | {part: entry}))
    except FirewallError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    # Through the file: what is rendered is what was kept.
    results = read(path)
    pictures = plots.draw(results, options.out / "plots")
    (options.out / "RESULTS.md").write_text(tables.render(results, pictures))
    print(options.out / "RESULTS.md")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "part",
        nargs="?",
        default="all",
        choices=[*PARTS, *GROUPS],
        help="`all` but the peers; `eval`: recall and peers; `render` only writes tables and plots",
    )
    parser.add_argument("--artifact", type=Path, help="artifact folder (default: the shipped one)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where the results go")
    parser.add_argument(
        "--corpus", type=Path, help="folder that training.prepare wrote (default: that of `make train`)"
    )
    parser.add_argument("--mirror", type=Path, help="local copies of the public files, to prepare the dev rows from")
    parser.add_argument("--exclude", type=Path, help=".npy list of held-out shingles; rows that match are dropped")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: to see that it works, not to report")
    parser.add_argument(
        "--peer", action="append", default=[], choices=[peer.name for peer in PEERS], help="only this one; repeatable"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
