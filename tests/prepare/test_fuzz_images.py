"""Generated bad images, folders and prepared sets: one line that names them, or the right answer.

Never another exception, a hang, unbounded memory, or a wrong image that is taken for a right one.
FUZZ=10 tries ten times as many cases. Their outcomes are shown after the tests.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alexnet_jax import InputError
from alexnet_jax import data as data_lib
from alexnet_jax.prepare import load_image, prepare, stored_set
from tests import fuzz_files, fuzz_images, outcomes, runs
from tests.generated import cases, refused


@cases(500)
@given(fuzz_images.damaged())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_a_damaged_image_is_a_square_or_one_line(tmp_path_factory, image):
    """What still decodes is accepted: most formats have few checksums or none."""
    name, content = image
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    began = time.process_time()
    try:
        square = load_image(path, 16)
        assert (square.shape, square.dtype) == ((16, 16, 3), np.uint8)
        outcomes.note("images", "decoded")
    except InputError as error:
        assert str(path) in refused("images", error)
    assert time.process_time() - began < 10


_MEASURE = """
import json, resource, time
from alexnet_jax.errors import InputError
from alexnet_jax.prepare.images import load_image
from alexnet_jax.prepare import prepare
from tests import fuzz_images
files = fuzz_images.expensive()
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
pages = lambda: int(open("/proc/self/statm").read().split()[1])
for name, content in files.items():
    open("/proc/self/clear_refs", "w").write("5")  # reset the peak
    before, began = pages(), time.monotonic()
    try:
        outcome = str(load_image(content, 16, name).shape)
    except InputError as error:
        outcome = f"InputError {error}"
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    used = int(peak.split()[1]) / 1024 - before * resource.getpagesize() / 2**20
    print(json.dumps([name, outcome, used, time.monotonic() - began]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured through /proc")
def test_files_made_to_be_expensive_take_bounded_memory_and_time():
    """Just below Pillow's limit 89 million pixels take 270 MB, and twice that while converted."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, cwd=runs.ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 20
    for name, outcome, megabytes, seconds in found:
        assert outcome == "(16, 16, 3)" or name in outcome, outcome
        outcomes.note("expensive images", "decoded" if outcome[0] == "(" else "refused")
        assert megabytes < 1200, (name, megabytes)
        assert seconds < 15, (name, seconds)


def _dataset(data_dir, path, **fields):
    defaults = {"name": "folder", "path": str(path), "data_dir": str(data_dir), "image_size": 4}
    defaults |= {"val_fraction": 0.2, "encoding": "raw", "jpeg_quality": 95}
    defaults |= {"on_error": "raise", "cache": "none"}
    return ml_collections.ConfigDict(defaults | fields)


def _read(dataset, split):
    """Return all records of a split as (image, label)."""
    records, size = dataset.records[split], dataset.image_size
    found = []
    for index in range(len(records)):
        image = np.empty((size, size, 3), np.uint8)
        label = records.read(index, image)
        found.append((image.tobytes(), label))
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a folder of 101 images, so that one bad image is less than 1 % of them."""
    path = tmp_path_factory.mktemp("many")
    for i in range(101):
        fuzz_files.image(path / f"{i:03d}.png", i)
    return path


@cases(25)
@given(
    classes=st.lists(st.sampled_from(fuzz_files.CLASSES), min_size=1, max_size=3, unique=True),
    names=st.lists(st.sampled_from(fuzz_files.NAMES), max_size=4, unique=True),
    odd=st.lists(st.sampled_from(sorted(fuzz_files.ODDITIES)), max_size=2, unique=True),
    bad_class=st.one_of(st.none(), st.none(), st.sampled_from(fuzz_files.BAD_CLASSES)),
    empty=st.integers(0, 9).map(lambda n: n == 0),
    split=st.sampled_from(("train", "val")),
    on_error=st.sampled_from(("raise", "skip")),
)
@example(["cat", "cat "], [], [], None, False, "val", "raise")
@example(["cat"], ["two\nlines.png"], ["link to itself.png"], None, False, "train", "skip")
@example(["cat"], [], ["device.png", "pipe.png"], None, False, "train", "raise")
def test_a_folder_is_refused_or_read_back_as_it_is(
    tmp_path_factory, many, classes, names, odd, bad_class, empty, split, on_error
):
    root = tmp_path_factory.mktemp("folder")
    wanted = {"train": [], "val": []}
    classes = sorted(classes)
    for part in wanted:
        for label, class_name in enumerate(classes):
            folder = root / part / class_name
            folder.mkdir(parents=True)
            files = {"0.png": 200 + label}
            if part == "train" and label == 0:
                for file in many.iterdir():
                    os.link(file, folder / file.name)
                files = {f"{i:03d}.png": i for i in range(101)}
            if part == split:
                files |= {name: 210 + i for i, name in enumerate(names)}
                for name in names:
                    fuzz_files.image(folder / name, files[name])
            for name in files:
                if not (folder / name).exists():
                    fuzz_files.image(folder / name, files[name])
            wanted[part] += [(bytes([files[name]] * 48), label) for name in sorted(files)]
    at = root / split / classes[-1]
    for name in odd:
        fuzz_files.ODDITIES[name][0](at / name)
    for part in wanted if bad_class else ():
        (root / part / bad_class).mkdir()
        fuzz_files.image(root / part / bad_class / "0.png", 0)
    if empty:
        (root / split / "empty").mkdir()
    bad = [name for name in odd if fuzz_files.ODDITIES[name][1]]
    try:
        directory = prepare(_dataset(root / "data", root, on_error=on_error))
        dataset = data_lib.open_dataset(directory, on_error)
    except InputError as error:
        message = refused("folders", error)
        assert bad or bad_class or empty, message
        kept = list((root / "data").rglob("*.incomplete"))
        assert not kept or "finished shards are kept" in message
        return
    assert not bad_class
    assert not empty
    assert on_error == "skip" or not bad
    assert dataset.class_names == tuple(classes)
    for part in wanted:
        assert _read(dataset, part) == wanted[part]
    outcomes.note("folders", "read back" + (" without the damaged" if bad else ""))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_hundreds_of_empty_files_are_refused(tmp_path, on_error):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        for i in range(400):
            (tmp_path / part / "cat" / f"{i}.jpg").touch()
    with pytest.raises(InputError, match=r"cat/.*jpg") as caught:
        prepare(_dataset(tmp_path / "data", tmp_path, on_error=on_error))
    refused("folders", caught.value)


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def prepared(request, tmp_path_factory):
    """Return the directory of a prepared set of several shards, the set, and its records."""
    root = tmp_path_factory.mktemp(request.param)
    for part, number in (("train", 9), ("val", 4)):
        for label, class_name in enumerate(("cat", "dog")):
            (root / part / class_name).mkdir(parents=True)
            for i in range(number):
                value = (100 if part == "val" else 0) + 50 * label + 4 * i
                fuzz_files.image(root / part / class_name / f"{i}.png", value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_set, "SHARD_BYTES", 300 if request.param == "raw" else 40)
        directory = prepare(_dataset(root / "data", root, encoding=request.param))
    dataset = data_lib.open_dataset(directory)
    return directory, dataset, {part: _read(dataset, part) for part in ("train", "val")}


@cases(120)
@given(seed=st.integers(0, 2**32), on_error=st.sampled_from(("raise", "skip")))
def test_a_damaged_prepared_set_is_refused_or_holds_what_it_held(
    tmp_path_factory, prepared, seed, on_error
):
    directory, dataset, wanted = prepared
    copy = tmp_path_factory.mktemp("copy") / directory.name
    shutil.copytree(directory, copy)
    how = fuzz_files.damage(copy, random.Random(seed))
    try:
        found = data_lib.open_dataset(copy, on_error)
        parts = {part: _read(found, part) for part in wanted}
    except InputError as error:
        refused("prepared sets", error)
        return
    for part in wanted:
        # Shards of equal size that were swapped, even a train one with a val one, are undamaged.
        if how.startswith("swapped"):
            assert set(parts[part]) <= set(wanted["train"] + wanted["val"]), how
        else:
            assert parts[part] == wanted[part], how
    assert found.class_names == dataset.class_names, how
    np.testing.assert_array_equal(found.mean_image, dataset.mean_image)
    np.testing.assert_array_equal(found.eigenvectors, dataset.eigenvectors)
    np.testing.assert_array_equal(found.eigenvalues, dataset.eigenvalues)
    outcomes.note("prepared sets", "as it was")
