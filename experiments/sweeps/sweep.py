"""Sweep any fields of any config: grid, random or TPE, by as many workers as are started.

python experiments/sweeps/sweep.py --config=configs/quickstart.py --workdir=sweeps/lr --trials=20 \
  --sweep.learning_rate=loguniform:1e-3,1e-1 --sweep.model.dropout=0.3,0.5

The same command once more, there or on another machine that sees the directory, is another worker,
and after an interruption it resumes. Each trial is a run of run.py in WORKDIR/trials/NNNN. What is
minimised is the lowest validation top-1 error in its metrics.jsonl. See docs/sweeps.md.

Exit codes: 0 done, or stopped by SIGINT or SIGTERM with everything saved; 2 bad input, or trials
that fail before their first step.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from alexnet_jax import config as config_lib
from alexnet_jax.errors import InputError
from alexnet_jax.fields import CHANGEABLE, expanded, nearest
from alexnet_jax.host import StopRequest, as_interrupts
from experiments import command_line
from experiments.runs import same_images
from experiments.sweeps import sweep_report, sweep_space, sweep_worker

RECORD = "sweep.json"  # what all workers of a sweep have in common
JOURNAL = "journal.log"
TRIES = 5  # to open a database, whose tables another worker may be making just now
_OF_A_MOMENT = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError)
_OF_DATABASES = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


def main(argv: list[str]) -> int:
    """Do what the command line says and return the exit code: 0, or 2 for bad input."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        arguments, fixed, swept = _parse(argv)
        workdir = command_line.path(arguments.workdir)
        if arguments.report:
            print(_report_only(workdir, arguments.storage))
            return 0
        sweep, storage = _begun(arguments, fixed, swept, workdir)
        with StopRequest() as stop:
            return sweep_worker.work(sweep, storage, stop)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except json.JSONDecodeError as error:
        print(
            f"error: the journal of the sweep is damaged ({error}); remove the line that is not"
            " JSON, or take another --workdir",
            file=sys.stderr,
        )
    except OSError as error:  # a full disk, a directory that may not be written
        print(f"error: {InputError(str(error))}", file=sys.stderr)
    except _OF_DATABASES as error:
        said = str(error.__cause__ or error).splitlines()[0]
        print(f"error: the storage does not answer ({InputError(said)})", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str], dict[str, str]]:
    """Return the flags, the overrides and the swept fields, these as texts by field."""
    parser = command_line.Parser(
        __doc__,
        usage="sweep.py --config=FILE --workdir=DIR --sweep.FIELD=SPEC... [--config.FIELD=V]...",
        epilog="SPEC: uniform:a,b  loguniform:a,b  int:a,b  or values, as v1,v2,v3",
    )
    parser.add_argument("--config", help="recipe, such as configs/quickstart.py")
    parser.add_argument("--workdir", help="directory of the sweep")
    parser.add_argument("--trials", type=int, help="of all workers: 20, or the whole grid")
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe")
    parser.add_argument("--pruner", choices=("median", "none"), default="median")
    parser.add_argument(
        "--prune_after", type=int, default=1, metavar="EPOCHS", help="none before (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (default 0)")
    parser.add_argument("--storage", help="journal file, or database URL (WORKDIR/journal.log)")
    parser.add_argument("--report", action="store_true", help="only write the report")
    arguments, rest = parser.parse_known_args(argv[1:])
    fixed: dict[str, str] = {}
    swept: dict[str, str] = {}
    for argument in rest:
        flag, equals, text = argument.partition("=")
        kind, dot, name = flag.partition(".")
        if not dot or kind not in ("--config", "--sweep"):
            flags = [name for each in parser._actions for name in each.option_strings]
            raise InputError(f"there is no flag {flag[:200]!r}{nearest(flag, flags)}")
        if not equals:
            raise InputError(f"{flag} has no value; write {flag}=...")
        group = fixed if kind == "--config" else swept
        if name in fixed or name in swept:
            raise InputError(f"config.{name} is given twice; give it once, swept or not")
        group[name] = text
    if not arguments.workdir:
        raise InputError("--workdir=DIR is missing: the directory of the sweep")
    if not arguments.report and not arguments.config:
        raise InputError("--config is missing; give one such as --config=configs/quickstart.py")
    if not arguments.report and not swept:
        raise InputError("nothing is swept; give --sweep.FIELD=..., such as"
                         " --sweep.learning_rate=loguniform:1e-3,1e-1")  # fmt: skip
    ranges = {"trials": (1, 10**6), "prune_after": (0, 10**6), "seed": (0, 2**31 - 1)}
    for name, (low, high) in ranges.items():
        given = getattr(arguments, name)
        if given is not None and not low <= given <= high:
            raise InputError(f"--{name}={given}: expected an integer from {low} to {high}")
    return arguments, fixed, swept


def _begun(
    arguments: argparse.Namespace,
    fixed: dict[str, str],
    swept: dict[str, str],
    workdir: pathlib.Path,
) -> tuple[sweep_worker.Sweep, BaseStorage]:
    """Begin the sweep in `workdir`, or join it there; raise InputError if another is there."""
    recipe = arguments.config
    config = command_line.parsed(
        [f"--config={recipe}", *(f"--config.{name}={text}" for name, text in fixed.items())]
    )
    space = sweep_space.read(swept)
    sweep_space.check(config, space)
    trials = arguments.trials or 20
    if arguments.sampler == "grid":
        size = int(np.prod([len(v) for v in sweep_space.grid(space).values()]))
        trials = min(arguments.trials or size, size)
    mine = {
        "recipe": recipe,
        "overrides": fixed,
        "space": swept,
        "sampler": arguments.sampler,
        "pruner": arguments.pruner,
        "prune_after": arguments.prune_after,
        "seed": arguments.seed,
        "storage": _storage_name(arguments.storage, workdir),
        "config": config.to_dict(),
        "pictures": None,
    }
    images = {"dataset.name", "dataset.path", "dataset.val_fraction"}
    if config.dataset.name == "folder" and not swept.keys() & images:
        folder = expanded("config.dataset.path", config.dataset.path)  # may lie elsewhere there
        mine["pictures"] = same_images.fingerprint(folder, config.dataset.val_fraction)
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} is the directory of a run; take another --workdir")
    storage = _storage(arguments.storage) if mine["storage"] else None
    workdir.mkdir(parents=True, exist_ok=True)
    storage = storage or _storage(str(workdir / JOURNAL))
    with sweep_worker.alone(workdir):
        if (workdir / RECORD).exists():
            _refuse_another_sweep(_record(workdir), mine, workdir)
        else:
            if (workdir / "trials").exists():
                raise InputError(f"{workdir} has trials but no {RECORD}; take another --workdir")
            # A database may hold many sweeps.
            study = {"study": f"{workdir.absolute().name}-{uuid.uuid4().hex[:8]}"}
            config_lib.write_json(study | mine, workdir / RECORD)
        study = {"study": _record(workdir)["study"]}
    return sweep_worker.Sweep(workdir, config, space, trials, study | mine), storage


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads((workdir / RECORD).read_text())
        if not isinstance(record["study"], str):
            raise TypeError("study is no text")
        if record["storage"] == JOURNAL:  # as earlier versions wrote the default
            record["storage"] = None
    except FileNotFoundError:
        raise InputError(f"--workdir={workdir} has no sweep: {RECORD} does not exist") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{workdir / RECORD} is damaged ({error}); take another --workdir"
        ) from None
    return record


def _refuse_another_sweep(
    old: Mapping[str, Any], new: Mapping[str, Any], workdir: pathlib.Path
) -> None:
    """Raise InputError naming what `new` has otherwise, unless it only concerns how it is run."""
    may_differ = CHANGEABLE - {"num_epochs", "num_steps"}

    def flat(record: Mapping[str, Any]) -> dict[str, Any]:
        config = config_lib.flatten(config_lib.from_dict(record["config"]))
        fields = {f"config.{n}": v for n, v in config if n not in {**old["space"], **new["space"]}}
        swept = {f"sweep.{name}": spec for name, spec in record["space"].items()}
        names = ["sampler", "pruner", "prune_after", "seed", "storage"]
        names += ["pictures"] if "pictures" in old else []  # earlier versions did not look
        return swept | {name: record[name] for name in names} | fields

    was, now = flat(old), flat(new)
    changed = [
        f"{name}={was.get(name)!r} (now {now.get(name)!r})"
        for name in {**was, **now}
        if was.get(name) != now.get(name) and name.removeprefix("config.") not in may_differ
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a sweep with {', '.join(changed)}; take another --workdir or give"
            " the same values"
        )


def _storage_name(given: str | None, workdir: pathlib.Path) -> str | None:
    """Return what is written down about the storage: None for the default, no password.

    Paths are those from the directory of the sweep, so that one file has one name wherever the
    command is given, and on machines that have both under another path.
    """
    if given is None:
        return None
    if "://" not in given:
        name = _from(workdir, given)
        return None if name == JOURNAL else name
    try:
        url = sqlalchemy.engine.make_url(given)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(
            f"--storage={given}: expected the path of a file, or a URL such as"
            " sqlite:///sweep.db or postgresql://user@host/database"
        ) from None
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InputError(f"--storage={given} keeps nothing; give a file: sqlite:///sweep.db")
        if not url.database.startswith("file:"):
            url = url.set(database=_from(workdir, url.database))
    return url.render_as_string(hide_password=True)


def _from(workdir: pathlib.Path, path: str) -> str:
    return os.path.relpath(expanded("--storage", path).resolve(), workdir.resolve())


def _storage(given: str) -> BaseStorage:
    if "://" in given:
        for attempt in range(TRIES):
            try:
                return RDBStorage(given)
            except (ImportError, ValueError, *_OF_DATABASES) as error:
                if isinstance(error, _OF_A_MOMENT) and attempt < TRIES - 1:
                    time.sleep(0.3)
                    continue
                said = str(error.__cause__ or error).splitlines()[0]
                raise InputError(f"--storage: the database cannot be opened ({said})") from None
    path = expanded("--storage", given)
    if not path.absolute().parent.is_dir():
        raise InputError(f"--storage={path}: the directory {path.parent} does not exist")
    try:
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        return JournalStorage(backend)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not an Optuna journal, or is damaged ({error})") from None


def _report_only(workdir: pathlib.Path, storage_given: str | None) -> str:
    record = _record(workdir)
    if _storage_name(storage_given, workdir) != record["storage"]:
        was = f"--storage={record['storage']} (from there)" if record["storage"] else "no --storage"
        raise InputError(f"{workdir} was started with {was}; give the same")
    storage = _storage(storage_given or str(workdir / JOURNAL))
    try:
        study = optuna.load_study(study_name=record["study"], storage=storage)
    except KeyError:
        raise InputError(f"{workdir}: the storage does not contain the sweep") from None
    with sweep_worker.alone(workdir):
        return sweep_report.write(workdir, record, study)


if __name__ == "__main__":
    as_interrupts()
    try:
        code = main(sys.argv)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        code = 0
    sys.stdout.flush()
    sys.exit(code)
