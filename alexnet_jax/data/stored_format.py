"""The format of a prepared data set: what its writer and its reader must agree on."""

import hashlib
import json
from typing import Any

FORMAT = 2  # of the prepared directory; raised when a reader of the old one would be wrong
# JPEG does not compress further and raw images are for speed; groups of 1 give random access.
RECORD_OPTIONS = "group_size:1,uncompressed"


def statistics_sha256(statistics: dict[str, Any]) -> str:
    """Return the SHA-256 of all that `statistics.json` holds beside this checksum."""
    others = {name: value for name, value in statistics.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
