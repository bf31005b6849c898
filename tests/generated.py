"""Cases that hypothesis generates, and how they may end."""

import os

from hypothesis import HealthCheck, Phase, settings

from tests import outcomes

TIMES = int(os.environ.get("FUZZ", "1"))
share = 1.0  # of the cases; pytest_configure in conftest.py sets it


def cases(number):
    """Return the settings of a test of `number` generated cases, the same ones every time.

    The default tier generates a tenth of them, and two at least.
    """
    return settings(
        max_examples=max(2, round(number * TIMES * share)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # a case takes too long to be made smaller
        suppress_health_check=list(HealthCheck),
    )


def refused(kind, error):
    """Count a refusal and return its message, which is one line."""
    message = str(error)
    assert message.isprintable(), message
    assert 10 < len(message) < 3000, message
    assert "Traceback" not in message
    outcomes.note(kind, "refused")
    return message


def one_line(code, out, err, kind):
    """Assert that a command succeeded or printed one line, and count it."""
    assert code in (0, 2)
    if code == 2:
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert out == ""
        return refused(kind, err[:-1])
    outcomes.note(kind, "accepted")
    return ""
