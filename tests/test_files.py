"""Records that are read one after the other, or by many threads."""

import threading
import time

import numpy as np
import pytest

from ddae.data import files
from ddae.data.files import reading
from ddae.data.images import RecordError

INDICES = np.arange(64)[::-1]


def in_order(index):
    return bytes([index])


def test_what_is_near_is_read_in_the_calling_thread(monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 60.0)
    threads = set()

    def read(index):
        threads.add(threading.current_thread())
        return in_order(index)

    found = reading("/a/file")(read, INDICES)
    assert found == [in_order(i) for i in INDICES]
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("path", ["/a/file", "gs://bucket/file"])
def test_what_is_far_away_is_read_by_many_threads(path):
    """All that wait have to wait together, or none goes on."""
    many = threading.Barrier(31)

    def read(index):
        if index == INDICES[0]:  # of a disk it says how far away that is
            time.sleep(2 * files.PATIENCE)
        elif index:  # 62, in twos of 31
            many.wait(timeout=30)
        return in_order(index)

    assert reading(path)(read, INDICES) == [in_order(i) for i in INDICES]


@pytest.mark.parametrize("path", ["/a/file", "gs://bucket/file"])
@pytest.mark.parametrize("bad", [63, 0])
def test_a_record_that_cannot_be_read_is_an_error_of_its_own(path, bad):
    def read(index):
        time.sleep(files.PATIENCE / 4)
        if index == bad:
            raise RecordError("checksum differs")
        return in_order(index)

    with pytest.raises(RecordError, match="checksum differs"):
        reading(path)(read, INDICES)


def test_nothing_is_read_of_nothing():
    assert reading("/a/file")(in_order, INDICES[:0]) == []
