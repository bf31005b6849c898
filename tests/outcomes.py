"""How the generated cases of test_fuzz_*.py ended, shown at the end of a run."""

import collections

COUNTS: collections.Counter[tuple[str, str]] = collections.Counter()


def note(kind: str, outcome: str) -> None:
    """Count one more case of `kind` that ended with `outcome`."""
    COUNTS[kind, outcome] += 1


def lines() -> list[str]:
    """Return the counts as a table, one line per kind of case."""
    kinds = dict.fromkeys(kind for kind, _ in COUNTS)
    table = []
    for kind in kinds:
        ends = [(outcome, n) for (k, outcome), n in COUNTS.items() if k == kind]
        ends.sort(key=lambda end: -end[1])
        total = sum(n for _, n in ends)
        table.append(f"{total:6}  {kind}: " + ", ".join(f"{n} {outcome}" for outcome, n in ends))
    return [*table, f"{COUNTS.total():6}  in all"]
