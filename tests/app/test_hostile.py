"""A little of ``hostile.py`` against a painter of next to nothing."""

import pytest

from sb.app.api import create_app
from sb.app.guard import LOCAL
from sb.app.limits import Limits

from .conftest import serving
from .hostile import KINDS, LEAKS, Sent, crowd, faults, harass


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_requests_get_a_line_and_no_more(small_painter):
    with serving(create_app({"small": small_painter}, hosts=LOCAL)) as address:
        statuses, wrong, _ = harass(address, 6 * len(KINDS))
    assert not wrong
    assert {200, 400, 413, 415, 422} <= set(statuses)


def test_a_crowd_gets_its_own_answers(small_painter):
    limits = Limits(queue=6, batch=4)
    with serving(create_app({"small": small_painter}, limits, hosts=LOCAL)) as address:
        found = crowd(address, 24)
    assert found["answers"] == 24 and found["apart"] <= 1 < found["requests_differ_by"]
    assert found["turned_away"] > 0 and found["most_waiting"] <= limits.queue


def test_what_is_wrong_is_seen():
    assert faults(Sent(), 500, b"", b'{"detail": "x"}') == ["status 500"]
    assert faults(Sent(), 422, b"", b'{"detail": "no /var/a.png"}') == ["it says b'/var/'"]
    assert faults(Sent(), 422, b"", b"oops") == ["not one line"] and faults(Sent(), None, b"", b"") == ["no answer"]
    assert not faults(Sent(), 422, b"", b'{"detail": "x"}') and LEAKS.search(b"sb/inpaint.py")
