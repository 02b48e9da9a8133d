"""Reading ahead: in order, in threads, in bounded memory."""

import subprocess
import sys
import threading
import time

import pytest

from clap_jax.embed.ahead import read_ahead


def test_order_and_errors():
    def double(x):
        time.sleep(0.002 * (x % 3))
        if x == 4:
            raise ValueError("four")
        return 2 * x

    rows = list(read_ahead(double, range(20), threads=5, ahead=8))
    assert [item for item, _, _ in rows] == list(range(20))
    assert [result for item, result, _ in rows if item != 4] == [
        2 * x for x in range(20) if x != 4
    ]
    assert [str(error) for _, _, error in rows if error] == ["four"]


def test_other_errors_end_it():
    def fail(x):
        raise KeyError(x)

    with pytest.raises(KeyError):
        list(read_ahead(fail, range(3), threads=2, ahead=2))


def test_an_error_of_the_items_ends_it():
    def items():
        yield 1
        raise ValueError("no more")

    taken = []
    with pytest.raises(ValueError, match="no more"):
        for row in read_ahead(str, items(), threads=3, ahead=3):
            taken.append(row[1])
    assert taken == ["1"]


def test_nothing_to_read():
    assert list(read_ahead(str, [], threads=2, ahead=2)) == []


def test_threads_work_while_one_waits():
    begun, free = [], threading.Event()

    def hold(x):
        begun.append(x)
        assert free.wait(5)
        return x

    rows = read_ahead(hold, range(9), threads=3, ahead=6)
    first = threading.Thread(target=lambda: next(rows))
    first.start()
    deadline = time.monotonic() + 5
    while len(begun) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(begun) == [0, 1, 2]
    free.set()
    first.join()
    rows.close()


@pytest.mark.parametrize(
    ("size", "budget", "most"), [(1, 100, 6), (10, 25, 4), (1000, 25, 2)]
)
def test_memory_is_bounded(size, budget, most):
    """Never more than `ahead`, nor (much) more than the budget, wait to be taken."""
    alive, peak = 0, 0
    lock = threading.Lock()

    def make(x):
        nonlocal alive, peak
        with lock:
            alive += 1
            peak = max(peak, alive)
        return x

    rows = read_ahead(
        make, range(40), threads=1, ahead=6, size=lambda x: size, budget_bytes=budget
    )
    for _ in rows:
        time.sleep(0.003)  # the thread runs as far ahead as it may
        with lock:
            alive -= 1
    # One more than wait: the one that was just taken.
    assert peak <= most + 1


def test_an_iteration_that_ends_early_stops_its_threads():
    made = []
    rows = read_ahead(made.append, range(1000), threads=2, ahead=4)
    next(rows)
    rows.close()
    count = len(made)
    time.sleep(0.02)
    assert len(made) == count <= 8


def test_a_process_can_end_with_an_iteration_that_has_not():
    code = (
        "from clap_jax.embed.ahead import read_ahead\n"
        "rows = read_ahead(str, range(100), threads=2, ahead=4)\n"
        "print(next(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    assert done.returncode == 0
