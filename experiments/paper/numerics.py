"""The tests of numerics on the device at hand: ops, model, augmentation, update, cache.

    python experiments/paper/numerics.py --out=experiments/results/numerics

Runs the tests marked `numerics` (tests/conftest.py), which compare what a device computes with
float64 NumPy, on the backend that JAX chooses, with products of float32 in full precision
(JAX_DEFAULT_MATMUL_PRECISION=highest): a GPU's default rounds their factors to 10 bits, and the
tests are about the formulas. Tolerances are the tests' own, those of a CPU. The two columns of the
paper are tested grouped, on one device; what needs several devices is left out. Writes OUT.json
(outcome and seconds of each test, errors and what is allowed), OUT.csv and OUT.png; by default OUT
is runs/numerics.
"""

import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import command_line
from experiments.reports.curves import COLOURS
from experiments.runs import trial_records, trials

SEVERAL_DEVICES = "not (each_device_holds_its_share or does_not_fit or split or shard_map)"
# '  3.1e-07 of 1e-05  test_name[case]  what', of tests/agreement.py
LINE = re.compile(r"^ *(\S+) of (\S+)  (\S+) *(.*)$", re.MULTILINE)


def outcomes(report: str) -> list[dict[str, Any]]:
    """Return name, status, seconds and, if it failed, the reason of each test in a JUnit report."""
    found = []
    for case in xml.etree.ElementTree.fromstring(report).iter("testcase"):
        run: dict[str, Any] = {
            "name": f"{case.get('classname', '')}.{case.get('name', '')}",
            "status": "finished",
            "seconds": float(case.get("time", 0)),
        }
        for kind in ("failure", "error"):
            if (element := case.find(kind)) is not None:
                first = (element.get("message") or "").partition("\n")[0]
                run |= {"status": "failed", "failure": first[:300]}
        if case.find("skipped") is None:
            found.append(run)
    return found


def errors(said: str) -> list[dict[str, Any]]:
    """Return test, largest relative error and what is allowed, of each comparison."""
    return [
        {"test": test, "what": what, "error": float(error), "allowed": float(allowed)}
        for error, allowed, test, what in LINE.findall(said)
    ]


def run_tests(arguments: list[str]) -> dict[str, Any]:
    """Run the tests, with `arguments` of pytest, and return what is recorded of them."""
    environment = os.environ | {
        "ALEXNET_JAX_TESTS_ON_DEVICE": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch) / "report.xml"
        chosen = ["-m", "numerics and not slow", "-k", SEVERAL_DEVICES]
        # Tests of experiments check no numerics, and import packages that only experiments need.
        options = ["-n", "0", "-p", "no:cacheprovider", "--ignore=tests/experiments"]
        options.append(f"--junitxml={report}")
        command = [sys.executable, "-m", "pytest", *options, *chosen, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(done.stdout[-3000:], file=sys.stderr)
        tests = outcomes(report.read_text()) if report.exists() else []
    return {
        "device": trials.device(),
        "runs": tests,
        "errors": errors(done.stdout),
        "passed": sum(test["status"] == "finished" for test in tests),
        "failed": sum(test["status"] == "failed" for test in tests),
        "seconds": sum(test["seconds"] for test in tests),
        "pending": [] if tests else ["tests"],
    }


def plot(found: dict[str, Any], out: pathlib.Path) -> None:
    """Draw the error of each comparison over what is allowed, as OUT.png."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    allowed = [each["allowed"] for each in found["errors"]]
    axis.loglog(
        allowed, [max(each["error"], 1e-12) for each in found["errors"]], "o", color=COLOURS[0]
    )
    if allowed:
        ends = [min(allowed) / 2, max(allowed) * 2]
        axis.plot(ends, ends, "--", color="0.4", linewidth=1, label="all that is allowed")
        axis.legend(frameon=False)
    axis.set(xlabel="relative error that is allowed", ylabel="largest relative error seen")
    counts = f"{found['passed']} tests passed, {found['failed']} failed"
    axis.set_title(f"float32 against float64 NumPy on {found['device']}: {counts}", fontsize=8)
    figure.savefig(trial_records.extended(out, ".png"), dpi=110)
    plt.close(figure)


def main() -> int:
    """Do what the command line says and return the exit code, 1 if a test has failed."""
    parser = command_line.Parser(__doc__)
    parser.add_argument("--out", type=command_line.path, default=pathlib.Path("runs/numerics"))
    parser.add_argument("pytest", nargs="*", help="more arguments of pytest, after --")
    given = parser.parse_args()
    found = run_tests(given.pytest)
    with trial_records.replaced(given.out, found["runs"]) as scratch:
        trial_records.write_json(found, scratch)
        with trial_records.extended(scratch, ".csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ["test", "what", "error", "allowed"], lineterminator="\n")
            rows.writeheader()
            rows.writerows(found["errors"])
        plot(found, scratch)
    print(f"{found['passed']} passed, {found['failed']} failed on {found['device']}")
    return 1 if found["failed"] or found["pending"] else 0


if __name__ == "__main__":
    command_line.main(main)
