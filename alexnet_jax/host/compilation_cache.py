"""Compiled programs, kept from one run to the next in the user's cache folder."""

import contextlib
import hashlib
import os
import pathlib
import platform
import re
import stat
import sys
import warnings
from typing import Any

import jax

# Bytes. A run's programs take about 1 MB on a CPU, and the largest folder that was seen, after many
# recipes and sweeps, held 445 MB: more than anybody comes back to.
LARGEST = 10**9
_ROOT = 0  # the user who may do everything anyway

# What JAX warns of where an entry cannot be read or written; it then continues without it.
_FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': ")


def keep() -> None:
    """Let JAX keep what it compiles in `folder()`, and take from there what it compiled before.

    To be called before anything is compiled. JAX's own settings come first: programs are kept in
    JAX_COMPILATION_CACHE_DIR where that is set; nowhere if it is '', or if
    JAX_ENABLE_COMPILATION_CACHE is false. Where the folder cannot be made or written to, every run
    compiles. Results are the same to the bit either way.

    What lies in the folder is executed: one that another user owns, or that others can write to, is
    not used, also if the user has named it, and one line warns of it.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        kept = folder() if given is None else pathlib.Path(given)
        if given is None:
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is executed
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return
    if given == "" or not os.access(kept, os.R_OK | os.W_OK | os.X_OK):
        return
    if _others_may_fill(kept):
        jax.config.update("jax_compilation_cache_dir", None)
        print(
            f"warning: compiled programs are not kept, for others can write to {kept}; take it from"
            " them (chown, chmod 700), or set JAX_COMPILATION_CACHE_DIR to a folder of your own",
            file=sys.stderr,
        )
        return
    if given is None:
        _remove_oldest(kept)
    jax.config.update("jax_compilation_cache_dir", str(kept))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX keeps what took it a second; what takes less takes seconds, all together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _replace_damaged_entries(kept)


def folder() -> pathlib.Path:
    """Return $XDG_CACHE_HOME/alexnet_jax/PROCESSOR, under ~/.cache where the variable is not set.

    A home directory may be shared by different machines, and a program made for the instructions
    of one processor may not run on another: PROCESSOR is a hash of its name and its flags.
    """
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "alexnet_jax" / _processor()


def _others_may_fill(kept: pathlib.Path) -> bool:
    status = kept.stat()
    owners = (os.geteuid(), _ROOT)
    return status.st_uid not in owners or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _remove_oldest(kept: pathlib.Path) -> None:
    """Remove the entries that were not used for longest, until the others take LARGEST at most.

    Not by JAX's own bound, which needs another package, keeps the time of use in files of its own,
    and in jax 0.10 never writes again where one of them is missing.
    """
    entries = []
    for path in kept.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process may be at the same
            status = path.stat()
            # File systems may not note each use, and some none.
            entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LARGEST:
            return
        path.unlink(missing_ok=True)
        total -= size


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    words = [platform.machine(), platform.processor(), *names]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def _replace_damaged_entries(kept: pathlib.Path) -> None:
    """Silently remove an entry that cannot be read, so that it is compiled again.

    A process that was killed while it wrote leaves half of one, and JAX would neither use nor
    replace it.
    """
    show: Any = warnings.showwarning

    def show_others(message: Warning | str, *where: Any, **options: Any) -> None:
        failed = _FAILED.match(str(message))
        if failed is None:
            show(message, *where, **options)
        elif failed[1] == "reading":
            for entry in kept.iterdir():  # of the program's name, which several may have
                if entry.name.startswith(f"{failed[2]}-"):
                    entry.unlink(missing_ok=True)

    warnings.showwarning = show_others
