"""Every loss on two processes of four devices each, which talk through Gloo."""

import socket
import subprocess
import sys


def test_two_processes_of_four_devices(request):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.losses.two_hosts", address, str(host)],
            cwd=request.config.rootpath,
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in (0, 1)
    ]
    told = [host.communicate(timeout=400)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    for text in told:
        assert text.count("is exact") == 6
