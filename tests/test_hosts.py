"""Starting and ending together: what one process can show (tests/train has several)."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from clap_jax import hosts
from clap_jax.engines import HostsError, Job


@pytest.fixture(autouse=True)
def same_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def metadata_server(monkeypatch):
    """A server that has one attribute and one that always fails."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = self.headers["Metadata-Flavor"] == "Google"
            status = {"agent-worker-number": 200, "broken": 500}.get(name, 404)
            self.send_response(status if known else 403)
            self.end_headers()
            self.wfile.write(b"3")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_metadata(metadata_server, monkeypatch):
    assert hosts.metadata("agent-worker-number") == "3"
    assert hosts.metadata("tpu-env") is None
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(HostsError, match=r"no answer from the metadata.*broken.*500"):
        hosts.metadata("broken")


def test_a_process_without_a_tpu_asks_no_metadata_server(monkeypatch):
    """Neither libtpu nor a Google machine makes a TPU machine: only its chips do."""
    monkeypatch.delenv("GCE_METADATA_IP", raising=False)
    monkeypatch.setattr(hosts, "metadata", pytest.fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert hosts.start(20) is None
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "TPU_SKIP_MDS_QUERY" in os.environ  # by JAX, which looks for chips
    assert hosts.start(20) is None


def test_no_word_on_platforms_may_be_a_tpu(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_IP", raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    for platforms, expected in (("", True), ("tpu,cpu", True), ("cpu", False)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert hosts._on_cloud_tpu() is expected
    monkeypatch.delenv("JAX_PLATFORMS")
    assert hosts._on_cloud_tpu()


def test_a_process_alone_starts_nothing():
    assert hosts.start(20) is None
    assert hosts.alone()
    assert jax.process_count() == 1
    hosts.check_equal({"nothing": "said"})
    np.testing.assert_array_equal(hosts.from_first(np.arange(3)), np.arange(3))


def test_sigterm_outside_of_training_ends_with_the_status_for_restart(capfd):
    hosts.start(20)
    with pytest.raises(SystemExit) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == hosts.EXIT_RESTART == 75
    assert "SIGTERM" in capfd.readouterr().err


@pytest.fixture
def taken():
    """A port that somebody else holds."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_a_sentence(taken):
    job = Job("slurm", f"here:{taken}", 2, 0)
    with pytest.raises(
        HostsError, match=f"port {taken} of this host.*COORDINATOR_PORT"
    ):
        hosts._wait_for_coordinator(job, time.monotonic())


def test_a_coordinator_that_does_not_answer_is_a_sentence(taken):
    hosts._wait_for_coordinator(Job("slurm", f"localhost:{taken}", 2, 1), 0)
    for address in ("127.0.0.1:1", "no.such.host.invalid:1"):
        job = Job("slurm", address, 2, 1)
        with pytest.raises(
            hosts.Unreached,
            match=rf"process 1 of 2 \(slurm\) did not reach the coordinator {address}",
        ):
            hosts._wait_for_coordinator(job, time.monotonic())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CLAP_JAX_START_SECONDS", "soon", "CLAP_JAX_START_SECONDS='soon'"),
        ("CLAP_JAX_PROCESS_INDEX", "x", "CLAP_JAX_PROCESS_INDEX='x'"),
    ],
)
def test_a_bad_variable_is_a_sentence(monkeypatch, name, value, words):
    monkeypatch.setenv("CLAP_JAX_COORDINATOR", "localhost:1")
    monkeypatch.setenv("CLAP_JAX_PROCESS_COUNT", "2")
    monkeypatch.setenv("CLAP_JAX_PROCESS_INDEX", "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(HostsError, match=words):
        hosts.start(20)


def test_a_heartbeat_of_nothing_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CLAP_JAX_COORDINATOR", "localhost:1")
    monkeypatch.setenv("CLAP_JAX_PROCESS_COUNT", "2")
    monkeypatch.setenv("CLAP_JAX_PROCESS_INDEX", "1")
    with pytest.raises(HostsError, match=r"mesh.heartbeat_seconds=0, expected"):
        hosts.start(0)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_last_words_of_a_process_that_is_aborted():
    """As JAX does, from C++, when another process is dead."""
    code = (
        "import os\n"
        "from clap_jax import hosts\n"
        "hosts._LastWords.begin(hosts.Job('slurm', 'h:1', 2, 1))\n"
    )
    done = run_python(code + "os.abort()")
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.count("error: process 1 of 2 (slurm) was ended") == 1
    assert "Run the same command again" in done.stderr
    done = run_python(code)
    assert done.returncode == 0
    assert "was ended" not in done.stderr


def test_what_is_the_others_fault(monkeypatch):
    gone = jax.errors.JaxRuntimeError(
        "UNKNOWN: Gloo all-reduce failed: Connection closed"
    )
    own = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert hosts.again(gone) == ""  # there are no others
    assert hosts.again(hosts.Unreached("nobody is there")) == "nobody is there"
    monkeypatch.setattr(hosts._LastWords, "job", Job("slurm", "h:1", 2, 1))
    assert "process 1 of 2 (slurm) lost contact" in hosts.again(gone)
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = gone
    assert "Gloo all-reduce failed" in hosts.again(wrapped)
    assert hosts.again(own) == ""
    assert hosts.again(ValueError("Gloo")) == ""


def test_preemption_of_one_process():
    before = signal.getsignal(signal.SIGTERM)
    with hosts.Preemption() as preemption:
        assert not preemption.reached()
        preemption.check()
        for _ in range(2):  # a second signal changes nothing
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached()
        with pytest.raises(hosts.Preempted):
            preemption.check()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not hosts.Preemption().reached()


@pytest.mark.parametrize("shared", [True, False])
def test_a_workdir_that_is_not_shared_is_a_sentence(tmp_path, monkeypatch, shared):
    """As process 1 of 2 sees it, whose disk may be another one."""
    folder = tmp_path / "run"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "from_first", lambda values: np.zeros_like(values))

    def process_0_writes(name):
        if shared:
            folder.mkdir()
            (folder / (".shared-" + 16 * "0")).touch()

    others = hosts.multihost_utils
    monkeypatch.setattr(others, "sync_global_devices", process_0_writes)
    monkeypatch.setattr(
        others, "process_allgather", lambda seen: np.array([[True], seen])
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if shared:
        hosts.check_shared(folder)
        return
    with pytest.raises(HostsError, match=r"process 1 does not see .*--workdir must be"):
        hosts.check_shared(folder)


def test_processes_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)

    def others_say(own):
        return np.stack([own, own, own + [0, 1]])

    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", others_say)
    with pytest.raises(HostsError, match="process 2 and process 0 differ in the data"):
        hosts.check_equal({"the config": "a", "the data": "b"})


LARGEST = """
import sys, time
import jax
from clap_jax import hosts
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
place = jax.process_index()
found = []
for number in range(20):
    if number % 7 == 3 * place:
        time.sleep(0.05)
    found.append(hosts.largest(100 * number + (number + place) % 2))
assert found == [100 * number + 1 for number in range(20)], found
client = hosts.distributed.global_state.client
client.wait_at_barrier("end", 60_000)
assert len(client.key_value_dir_get("clap_jax/largest/")) == 2  # the last ones
client.wait_at_barrier("seen", 60_000)
"""


def test_processes_find_their_largest_number(request):
    """Equally often called, and never mixed up with the number before."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LARGEST, address, str(number)],
            cwd=request.config.rootpath,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for number in range(2)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    assert hosts.largest(7) == 7
