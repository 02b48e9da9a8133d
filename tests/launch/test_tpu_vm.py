"""launch/tpu_vm.sh: create, install, run through interruptions, delete."""

import shutil
import subprocess

import pytest

from tests.launch.machine import HARD_ARGUMENTS, Machine, main_arguments

WHO = ("--name=clap", "--zone=z-1", "--project=p")
WHERE = ["--zone=z-1", "--project=p"]
RUN = ("--config=a", "--workdir=/mnt/shared/c")
QUICK = ("--poll-seconds=0",)

LIST = "queued-resources list"
SLICE = "tpu-vm list"
READY = [(LIST, "ACTIVE\n"), (SLICE, "READY\n")]


@pytest.fixture
def cloud(machine: Machine):
    """One worker, on which the repository and its .venv are installed."""
    machine.commit()
    worker = machine.folder / "worker" / "clap_jax"
    subprocess.run(["cp", "-r", machine.clone, worker], check=True)
    machine.add_python(0, clone=worker)
    machine.add("gcloud", *READY, ("worker.sh run ", "shell"))
    machine.add("findmnt", ("", "nfs4\n"))
    return machine


def verbs(machine):
    """What gcloud was asked to do, without the questions for states."""
    calls = [call[2:] for call in machine.calls("gcloud")]
    calls = [call for call in calls if call[1] != "list"]
    return [
        f"{c[1]} {'run' if 'worker.sh run ' in c[-1] else ''}".strip() for c in calls
    ]


def test_dry_run_is_exact_and_touches_nothing(cloud):
    before = cloud.files()
    options = ("--spot", "--env=A=b c", "--connect-with=--internal-ip")
    done = cloud.run(
        "tpu_vm.sh", "all", "--dry-run", *WHO, *options, "--", *RUN, "it's"
    )
    assert done.returncode == 0, done.stderr
    archive = f"{cloud.clone}/dist/launch.tar.gz"
    fresh = (
        "if clap_jax/launch/worker.sh running 2>/dev/null; then echo '\\''runs already: "
        "not installed'\\''; else mkdir -p clap_jax && find clap_jax -mindepth 1 -maxdepth 1 ! -name .venv "
        "! -name .run -exec rm -rf {} +"
    )
    to_all = "clap --zone=z-1 --project=p --internal-ip --worker=all"
    asked = (
        "gcloud compute tpus queued-resources create clap --node-id=clap "
        "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--zone=z-1 --project=p"
    )
    copied = (
        f"gcloud compute tpus tpu-vm scp '{archive}' clap:clap_jax.tar.gz --zone=z-1 "
        "--project=p --internal-ip --worker=all"
    )
    installed = (
        f"gcloud compute tpus tpu-vm ssh {to_all} '--command={fresh} && tar -xzf "
        "clap_jax.tar.gz -C clap_jax && cd clap_jax && launch/worker.sh install; fi'"
    )
    again = (
        "# again while this ends with status 75 (saved) or is interrupted, after a "
        "preemption with create and install first, at most 100 times:"
    )
    trained = (
        f"gcloud compute tpus tpu-vm ssh {to_all} '--command=cd clap_jax && "
        "launch/worker.sh run --shared=/mnt/shared/c -- env PYTHONUNBUFFERED=1 '\\''A=b c'\\'' "
        ".venv/bin/python -m clap_jax.main --config=a --workdir=/mnt/shared/c "
        r"'\''it'\''\'\'''\''s'\'''"
    )
    deleted = (
        "gcloud compute tpus queued-resources delete clap --force --quiet --zone=z-1 "
        "--project=p"
    )
    archived = (
        f"git -C '{cloud.clone}' archive --format=tar.gz '--output={archive}' HEAD"
    )
    assert done.stdout.splitlines() == [
        *(asked, "# waits until it is ACTIVE, at most 86400 s"),
        *(f"mkdir -p '{cloud.clone}/dist'", archived, copied, installed),
        *(again, trained, deleted),
    ]
    assert done.stderr == ""
    assert cloud.calls() == []
    assert cloud.files() == before


def test_arguments_arrive_through_ssh_as_they_were(cloud):
    """The command that ssh gets is run by a shell, as on a worker."""
    variable = "--env=A=$HOME 'x' \"y\""
    done = cloud.run("tpu_vm.sh", "run", *WHO, variable, "--", *RUN, *HARD_ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert main_arguments(cloud.calls("python")) == [[*RUN, *HARD_ARGUMENTS]]
    [command] = [c[-1] for c in cloud.calls("gcloud") if "ssh" in c]
    assert "--worker=all" in next(c for c in cloud.calls("gcloud") if "ssh" in c)
    assert "A=$HOME" in command


def test_from_nothing_through_two_interruptions_to_the_end(cloud):
    """Created, saved and stopped, preempted, created anew, complete, deleted."""
    cloud.add(
        "gcloud",
        # First nothing, waiting, there; there after status 75; then preempted: gone in
        # the end, there again, and at the end, to be deleted.
        *[
            (
                LIST,
                *("", "PROVISIONING\n", "ACTIVE\n", "ACTIVE\n"),
                *("SUSPENDING\n", "SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n"),
            )
        ],
        (SLICE, "READY\n"),
        ("worker.sh run ", 75, 255, 0),
    )
    done = cloud.run("tpu_vm.sh", "all", *WHO, *QUICK, "--spot", "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == [
        *("create", "scp", "ssh", "ssh run", "ssh", "ssh run"),
        *("delete", "create", "scp", "ssh", "ssh run", "delete"),
    ]
    created = [c for c in cloud.calls("gcloud") if "create" in c]
    assert created[0] == created[1]
    assert created[0][:5] == ["compute", "tpus", "queued-resources", "create", "clap"]
    assert {"--spot", "--accelerator-type=v5litepod-256", *WHERE} <= set(created[0])
    assert "Stopped, status 75" in done.stderr
    assert "clap was preempted (waiting)" in done.stderr


def test_a_slice_that_is_gone_before_its_resource_says_so(cloud):
    cloud.add(
        "gcloud",
        (LIST, "ACTIVE\n", "ACTIVE\n", "ACTIVE\n", "", "ACTIVE\n"),
        (SLICE, "PREEMPTED\n", "PREEMPTED\n", "READY\n"),
        ("worker.sh run ", 134, 0),
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["ssh run", "delete", "create", "scp", "ssh", "ssh run"]


FAILED = (1, "worker-3: the run failed with status 1\n")


def test_a_failed_run_is_not_repeated_and_its_slice_is_kept(cloud):
    cloud.add("gcloud", *READY, ("worker.sh run ", 1), ("worker.sh result", FAILED))
    done = cloud.run("tpu_vm.sh", "all", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 1
    assert verbs(cloud) == ["scp", "ssh", "ssh run", "ssh"]
    assert "failed with status 1" in done.stderr


@pytest.mark.parametrize("answer", [0, 1, 255])
def test_an_error_of_gcloud_is_not_one_of_the_run(cloud, answer):
    """It ends with 1 as well; no worker says that the run failed."""
    cloud.add(
        "gcloud", *READY, ("worker.sh run ", 1, 1, 0), ("worker.sh result", answer)
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["ssh run", "ssh", "ssh run", "ssh", "ssh run"]


def test_a_failure_counts_though_another_worker_was_killed(cloud):
    cloud.add("gcloud", *READY, ("worker.sh run ", 137), ("worker.sh result", FAILED))
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert (done.returncode, "failed with status 1" in done.stderr) == (1, True)
    assert verbs(cloud) == ["ssh run", "ssh"]


@pytest.mark.parametrize(
    ("ended", "answer", "sentence"),
    [(4, 0, "did not start the run"), (1, 127, "install comes before run")],
)
def test_what_would_be_no_better_again_ends(cloud, ended, answer, sentence):
    cloud.add("gcloud", *READY, ("worker.sh run ", ended), ("worker.sh result", answer))
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert (done.returncode, sentence in done.stderr) == (1, True)
    assert verbs(cloud).count("ssh run") == 1


def test_mounts_are_made_again_before_each_run(cloud):
    """A machine may have been started anew; where something runs, it was not."""
    made = cloud.folder / "made"
    prepare = f"--prepare=echo 'a b' >>'{made}' # mount"
    cloud.add(
        *("gcloud", *READY, ("worker.sh run ", 255, 75, 0)),
        *(("worker.sh result", 0), ("made", "shell")),
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, prepare, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert made.read_text() == "a b\n" * 3
    assert verbs(cloud) == ["ssh", "ssh run", "ssh", "ssh run", "ssh", "ssh", "ssh run"]
    made.unlink()
    worker = cloud.folder / "worker" / "clap_jax" / "launch" / "worker.sh"
    worker.write_text("#!/bin/sh\n[ $1 = running ]\n")
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, prepare, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert not made.exists()


def test_all_prepares_once_before_the_first_run(cloud):
    done = cloud.run("tpu_vm.sh", "all", *WHO, *QUICK, "--prepare=p", "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["ssh", "scp", "ssh", "ssh run", "delete"]


def test_workers_that_cannot_be_made_ready_are_given_up(cloud):
    """One error may be the network's, three are not."""
    cloud.add("gcloud", *READY, ("mount", 1))
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--prepare=mount", "--", *RUN)
    assert (done.returncode, "failed 3 times, status 1" in done.stderr) == (1, True)
    assert verbs(cloud) == ["ssh"] * 3


def test_what_could_not_be_installed_is_installed_before_the_run(cloud):
    cloud.add(
        "gcloud",
        (LIST, "SUSPENDED\n", "", "ACTIVE\n"),
        *(READY[1], ("worker.sh run ", 255, 0), (" scp ", 1, 0)),
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["ssh run", "create", "scp", "scp", "ssh", "ssh run"]


def test_a_lost_connection_joins_again(cloud):
    cloud.add(
        "gcloud",
        (LIST, 1, "ACTIVE\n"),  # no network at first
        (SLICE, "READY\n"),
        ("worker.sh run ", 255, 255, 0),
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["ssh run"] * 3


def test_restarts_have_an_end(cloud):
    cloud.add("gcloud", *READY, ("worker.sh run ", 75))
    options = (*WHO, *QUICK, "--max-restarts=2")
    done = cloud.run("tpu_vm.sh", "run", *options, "--", *RUN)
    assert (done.returncode, "--max-restarts is 2" in done.stderr) == (75, True)
    assert verbs(cloud) == ["ssh run", "ssh", "ssh run", "ssh", "ssh run", "ssh"]


def test_one_workers_failure_counts_though_the_others_saved(cloud):
    """gcloud ends with the status of the first worker that did not end with 0."""
    cloud.add("gcloud", *READY, ("worker.sh run ", 75), ("worker.sh result", FAILED))
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert (done.returncode, "failed with status 1" in done.stderr) == (1, True)
    assert verbs(cloud) == ["ssh run", "ssh"]


def test_a_run_that_was_stopped_on_request_is_not_repeated(cloud):
    cloud.add("gcloud", *READY, ("worker.sh run ", 3))
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert (done.returncode, "stopped on request" in done.stderr) == (75, True)
    assert verbs(cloud) == ["ssh run"]


def test_create_goes_on_where_the_resource_exists(cloud):
    assert cloud.run("tpu_vm.sh", "create", *WHO).returncode == 0
    assert verbs(cloud) == []
    cloud.forget()
    cloud.add("gcloud", (LIST, "FAILED\n", "FAILED\n", "", "ACTIVE\n"), READY[1])
    assert cloud.run("tpu_vm.sh", "create", *WHO, *QUICK).returncode == 0
    assert verbs(cloud) == ["delete", "create"]


def test_a_request_that_fails_is_not_made_again_and_again(cloud):
    cloud.add("gcloud", (LIST, "", "FAILED\n"))
    done = cloud.run("tpu_vm.sh", "create", *WHO, *QUICK)
    assert (done.returncode, "says why" in done.stderr) == (1, True)
    assert verbs(cloud) == ["create"]


def test_preempted_again_while_it_is_installed(cloud):
    cloud.add(
        "gcloud",
        *[
            (
                LIST,
                *("SUSPENDED\n", "", "ACTIVE\n"),  # after the run; created
                *("SUSPENDED\n", "SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n"),
            )
        ],
        READY[1],
        ("worker.sh run ", 255, 0),
        (" scp ", 1, 0),
    )
    done = cloud.run("tpu_vm.sh", "run", *WHO, *QUICK, "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == [
        *("ssh run", "create", "scp"),
        *("delete", "create", "scp", "ssh", "ssh run"),
    ]


def test_install_leaves_a_run_that_goes_on_alone(cloud):
    """The line that ssh gets is run; .venv stays, what is no longer there goes."""
    cloud.add("gcloud", ("worker.sh install", "shell"))
    folder = cloud.folder / "worker" / "clap_jax"
    (folder / "old").touch()
    shutil.rmtree(folder / ".venv")
    cloud.add("python", at=folder / ".venv" / "bin")
    subprocess.run(
        ["git", "-C", cloud.clone, "archive", "--format=tar.gz", "HEAD"]
        + [f"--output={cloud.folder}/worker/clap_jax.tar.gz"],
        check=True,
    )
    done = cloud.run("tpu_vm.sh", "install", *WHO)
    assert done.returncode == 0, done.stderr
    assert not (folder / "old").exists()
    assert (folder / "launch" / "worker.sh").exists()
    [pip] = cloud.calls("python")
    assert pip[-1] == f"{folder}[tpu]"
    # Now something runs there.
    (folder / "old").touch()
    (folder / "launch" / "worker.sh").write_text("#!/bin/sh\n[ $1 = running ]\n")
    done = cloud.run("tpu_vm.sh", "install", *WHO)
    assert (done.returncode, "not installed" in done.stdout) == (0, True)
    assert (folder / "old").exists()


def test_create_gives_up_after_its_time(cloud):
    cloud.add("gcloud", (LIST, "WAITING_FOR_RESOURCES\n"))
    options = (*WHO, *QUICK, "--timeout-seconds=0")
    done = cloud.run("tpu_vm.sh", "create", *options)
    assert (done.returncode, "not active after 0 s" in done.stderr) == (1, True)


def test_one_question_without_an_answer_does_not_end_the_waiting(cloud):
    waiting = "WAITING_FOR_RESOURCES\n"
    cloud.add("gcloud", (LIST, waiting, 1, waiting, 1, "ACTIVE\n"), READY[1])
    done = cloud.run("tpu_vm.sh", "create", *WHO, *QUICK)
    assert (done.returncode, "clap is unknown" in done.stderr) == (0, True)
    # Nor that of `delete`; and nothing is created meanwhile.
    cloud.forget()
    lost = ("SUSPENDED\n", 1, "SUSPENDED\n", "SUSPENDED\n", "", "ACTIVE\n")
    cloud.add("gcloud", (LIST, *lost), READY[1])
    assert cloud.run("tpu_vm.sh", "create", *WHO, *QUICK).returncode == 0
    assert verbs(cloud) == ["delete", "create"]
    # Not for ever.
    cloud.forget()
    cloud.add("gcloud", (LIST, waiting, 1))
    options = (*QUICK, "--timeout-seconds=0")
    done = cloud.run("tpu_vm.sh", "create", *WHO, *options)
    assert (done.returncode, "not active after 0 s" in done.stderr) == (1, True)


def test_no_answer_is_not_taken_for_no_resource(cloud):
    """Signed out: nothing may be created or held to be deleted."""
    cloud.add("gcloud", (LIST, 3))
    for step in ("create", "delete"):
        assert cloud.run("tpu_vm.sh", step, *WHO).returncode == 3
    assert verbs(cloud) == []


def test_delete_of_what_is_absent_is_fine(cloud):
    cloud.add("gcloud", (LIST, ""))
    done = cloud.run("tpu_vm.sh", "delete", *WHO)
    assert (done.returncode, "clap is not there" in done.stderr) == (0, True)
    assert verbs(cloud) == []
    assert cloud.run("tpu_vm.sh", "status", *WHO).stdout == "clap: not there\n"


def test_status_and_logs_ask_the_workers(cloud):
    cloud.run("tpu_vm.sh", "status", *WHO)
    cloud.run("tpu_vm.sh", "logs", *WHO, "--worker=3")
    calls = [c[-2:] for c in cloud.calls("gcloud") if "ssh" in c]
    assert calls == [
        ["--worker=all", "--command=clap_jax/launch/worker.sh status"],
        ["--worker=3", "--command=clap_jax/launch/worker.sh logs"],
    ]


def test_install_copies_the_commit_or_clones(cloud):
    (cloud.clone / "setup.cfg").write_text("changed")
    done = cloud.run("tpu_vm.sh", "install", *WHO, "--prepare=mount 'a b'")
    assert done.returncode == 0, done.stderr
    assert "1 changed files are not" in done.stderr
    first, copy, last = [c for c in cloud.calls("gcloud") if "tpu-vm" in c]
    assert first[-1] == "--command=mount 'a b'"
    assert copy[3:6] == [
        "scp",
        f"{cloud.clone}/dist/launch.tar.gz",
        "clap:clap_jax.tar.gz",
    ]
    assert last[-1].endswith("launch/worker.sh install; fi")
    archive = subprocess.run(
        ["tar", "-tzf", cloud.clone / "dist" / "launch.tar.gz"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "launch/worker.sh" in archive.stdout.splitlines()
    cloud.forget()
    options = ("--ref=v1", "--repository=https://example.com/a b.git")
    assert cloud.run("tpu_vm.sh", "install", *WHO, *options).returncode == 0
    [call] = cloud.calls("gcloud")
    assert "git fetch --quiet --depth=1 'https://example.com/a b.git' v1" in call[-1]


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_software_by_accelerator(machine, kind, runtime):
    """Options may also be variables."""
    names = {"NAME": "clap", "ZONE": "z", "PROJECT": "p", "ACCELERATOR_TYPE": kind}
    done = machine.run("tpu_vm.sh", "create", "--dry-run", **names)
    assert f"--accelerator-type={kind} --runtime-version={runtime} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("create", "--name=a", "--project=p"), "ZONE is not set: give --zone=..."),
        (("create", *WHO, "--spto"), "unknown option --spto"),
        (("create", *WHO, "--zone"), "--zone lacks its value"),
        (("create", *WHO, "--spot", "--reserved"), "not both"),
        (("create", *WHO, "--accelerator-type=v9-8"), "give --runtime-version"),
        (("create", *WHO, "--name=My_Name"), "found 'My_Name'"),
        (("create", *WHO, "--poll-seconds=x"), "found 'x'"),
        (("train", *WHO), "found 'train'"),
        (("run", *WHO, "--", "--config=a"), "--workdir=... is missing"),
        (("run", *WHO, "--", "--workdir=runs/a"), "found 'runs/a'"),
        (("run", *WHO, "--", "--workdir", "gs://b/c"), "not 'gs://b/c'"),
        (("run", *WHO, "--env=A", "--", *RUN), "--env is NAME=VALUE, not 'A'"),
    ],
)
def test_wrong_use_is_a_sentence(machine, arguments, sentence):
    machine.add("gcloud")
    done = machine.run("tpu_vm.sh", *arguments)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert machine.calls() == []


def test_a_missing_gcloud_is_a_sentence(machine):
    done = machine.run("tpu_vm.sh", "create", *WHO)
    assert (done.returncode, "gcloud was not found" in done.stderr) == (1, True)
