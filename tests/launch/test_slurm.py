"""launch/slurm.sh: submits itself, runs in the job, goes back into the queue."""

import shutil

import pytest

from clap_jax import engines
from tests.launch.machine import HARD_ARGUMENTS, Machine

BATCH = ["--signal=TERM@120", "--requeue", "--open-mode=append"]


@pytest.fixture
def cluster(machine: Machine):
    for name in ("sbatch", "srun", "scontrol"):
        machine.add(name)
    return machine


def test_submits_itself_with_the_arguments_as_they_were(cluster):
    done = cluster.run(
        "slurm.sh",
        *("--no-install", "--nodes=4", "--partition=gpu", "--time=24:00:00"),
        *("--comment=a b", "--", *HARD_ARGUMENTS),
    )
    assert done.returncode == 0, done.stderr
    assert cluster.calls("sbatch") == [
        ["--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", *BATCH]
        + ["--output=logs/%x-%j.log", "--partition=gpu", "--time=24:00:00"]
        + ["--comment=a b", f"{cluster.clone}/launch/slurm.sh", "--logs=logs"]
        + ["--max-restarts=100", "--", *HARD_ARGUMENTS]
    ]
    assert (cluster.folder / "logs").is_dir()  # or Slurm would write no log
    assert cluster.calls("srun") == []


def test_one_process_a_node(cluster):
    options = ("--no-install", "--per-node", "--gpus-per-node=4")
    cluster.run("slurm.sh", *options, "--", "--config=a")
    [call] = cluster.calls("sbatch")
    assert call[:3] == ["--nodes=1", "--gpus-per-node=4", "--ntasks-per-node=1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gpus-per-node", "4"), "--gpus-per-node lacks its value"),
        (("--nodes", "2"), "--nodes lacks its value"),
        (("--per-node=1",), "--per-node takes no value"),
    ],
)
def test_its_own_options_are_not_passed_on_to_sbatch(cluster, options, sentence):
    """Beside the defaults, Slurm would take the last of two."""
    done = cluster.run("slurm.sh", "--no-install", *options, "--", "--config=a")
    assert (done.returncode, sentence in done.stderr) == (2, True)
    assert cluster.calls() == []


def test_what_is_shown_is_what_is_run(cluster):
    arguments = ("--no-install", "--nodes=2", "--", *HARD_ARGUMENTS)
    before = cluster.files()
    shown = cluster.run("slurm.sh", "--dry-run", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert cluster.calls() == []
    assert cluster.files() == before
    cluster.start(["bash", "-c", shown.stdout])
    copied = cluster.calls()
    cluster.forget()
    cluster.run("slurm.sh", *arguments)
    assert cluster.calls() == copied
    assert len(copied) == 1


def test_dry_run_installs_for_cuda(cluster):
    done = cluster.run("slurm.sh", "--dry-run", "--logs=a b", "--", "--config=a")
    lines = done.stdout.splitlines()
    assert lines[:3] == [*cluster.installation("[cuda]"), "mkdir -p 'a b'"]


def in_job(cluster, status, *options, **variables):
    """Run the copy of the script that Slurm makes, elsewhere."""
    spool = cluster.folder / "spool"
    spool.mkdir(exist_ok=True)
    shutil.copy(cluster.clone / "launch" / "slurm.sh", spool / "slurm_script")
    cluster.add("srun", ("", status))
    variables = {"CLAP_JAX_ROOT": f"{cluster.clone}", "SLURM_JOB_ID": "7"} | variables
    command = [spool / "slurm_script", *options, "--", *HARD_ARGUMENTS]
    return cluster.start(command, **variables)


def test_in_the_job_every_task_gets_the_arguments(cluster):
    done = in_job(cluster, 0, "--logs=l", SLURM_CPUS_PER_TASK="12")
    assert done.returncode == 0, done.stderr
    [call] = cluster.calls("srun")
    assert call == [
        *("--kill-on-bad-exit=0", "--wait=300", "--gpu-bind=none"),
        *("--open-mode=append", "--output=l/%x-%j-%t.log", "--cpus-per-task=12"),
        *(f"{cluster.clone}/.venv/bin/python", "-m", "clap_jax.main"),
        *HARD_ARGUMENTS,
    ]
    assert cluster.calls("scontrol") == []
    assert cluster.calls("sbatch") == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--per-node",), ["--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]),
        (("--nodes=2",), ["--nodes=2", "--ntasks=16", "--ntasks-per-node=8"]),
        (
            ("--nodes=2", "--gpus-per-node=4"),
            ["--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--gpus-per-node=4"],
        ),
    ],
)
def test_in_an_allocation_its_options_choose_a_part(cluster, options, expected):
    allocation = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "8"}
    assert in_job(cluster, 0, *options, **allocation).returncode == 0
    [call] = cluster.calls("srun")
    program = call.index(f"{cluster.clone}/.venv/bin/python")
    assert call[5:program] == expected


def test_in_an_allocation_what_cannot_be_followed_is_a_sentence(cluster):
    done = in_job(cluster, 0, "--nodes=2")
    assert (done.returncode, "--gpus-per-node=... or" in done.stderr) == (2, True)
    done = in_job(cluster, 0, "--partition=gpu")
    assert (done.returncode, "--partition=gpu is for sbatch" in done.stderr) == (
        2,
        True,
    )
    assert cluster.calls() == []


@pytest.mark.parametrize(("options", "devices"), [((), (5,)), (["--per-node"], None)])
def test_a_process_takes_its_gpus(cluster, options, devices):
    """Read by the code that the processes run, with the variables that srun sets."""
    cluster.run("slurm.sh", "--no-install", "--nodes=2", *options, "--", "--config=a")
    [call] = cluster.calls("sbatch")
    given = dict(word[2:].split("=", 1) for word in call if word.startswith("--n"))
    per_node = int(given["ntasks-per-node"])
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_NODES": given["nodes"],
        "SLURM_NTASKS": str(2 * per_node),
        "SLURM_NTASKS_PER_NODE": str(per_node),
        "SLURM_PROCID": str(2 * per_node - 3 if per_node > 1 else 1),
        "SLURM_LOCALID": str(per_node - 3 if per_node > 1 else 0),
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",  # all, as --gpu-bind=none has it
    }
    found = engines.detect(environ)
    assert found.process_count == 2 * per_node
    assert found.local_device_ids == devices


def test_saved_goes_back_into_the_queue(cluster):
    assert in_job(cluster, 75).returncode == 0
    assert cluster.calls("scontrol") == [["requeue", "7"]]


def test_a_failure_stays_one(cluster):
    assert in_job(cluster, 1).returncode == 1
    assert cluster.calls("scontrol") == []


def test_one_tasks_failure_counts_though_the_others_saved(cluster):
    """srun ends with the highest status of all tasks."""
    told = "srun: error: n{}: task{}: Exited with exit code {}\n"
    both = told.format(1, "s 0-6", 75) + told.format(2, " 7", 1)
    done = in_job(cluster, (75, both))
    assert (done.returncode, "a task failed" in done.stderr) == (1, True)
    assert "n2: task 7" in done.stderr
    assert cluster.calls("scontrol") == []
    assert in_job(cluster, (75, told.format(1, "s 0-7", 75))).returncode == 0
    assert cluster.calls("scontrol") == [["requeue", "7"]]


ABORTED = "srun: error: n{}: task{}: Aborted (core dumped)\n"
KILLED = "srun: error: n{}: task{}: Killed\n"
EXITED = "srun: error: n{}: task{}: Exited with exit code {}\n"


@pytest.mark.parametrize(
    ("status", "messages"),
    [
        (137, KILLED.format(2, " 8") + ABORTED.format(1, "s 0-7")),
        (134, ABORTED.format(1, "s 0-6") + EXITED.format(2, " 7", 75)),
        (137, EXITED.format(1, "s 0-6", 75) + EXITED.format(2, " 7", 137)),
    ],
)
def test_a_lost_host_goes_back_into_the_queue(cluster, status, messages):
    """Killed, and the others aborted by JAX or saved: nobody is at fault."""
    done = in_job(cluster, (status, messages))
    assert done.returncode == 0, done.stderr
    assert cluster.calls("scontrol") == [["requeue", "7"]]


@pytest.mark.parametrize("code", [1, 2])
def test_one_tasks_failure_counts_though_the_others_were_killed(cluster, code):
    """Those that waited for it are ended by JAX, or after --wait by srun."""
    others = EXITED.format(1, " 0", 75) + ABORTED.format(1, "s 1-6")
    messages = others + EXITED.format(2, " 7", code) + KILLED.format(2, " 8")
    done = in_job(cluster, (137, messages))
    assert done.returncode == code
    assert f"a task failed with exit code {code}" in done.stderr
    assert cluster.calls("scontrol") == []


def test_in_the_job_a_dry_run_shows_the_step(cluster):
    done = in_job(cluster, 0, "--dry-run")
    lines = done.stdout.splitlines()
    assert lines[0] == "mkdir -p logs"
    assert lines[1].startswith("srun --kill-on-bad-exit=0 --wait=300 ")
    assert lines[-2].startswith("# if this ends with status 75")
    assert lines[-1] == "scontrol requeue 7"
    assert cluster.calls() == []


def test_restarts_have_an_end(cluster):
    for status in (75, 134):
        done = in_job(cluster, status, "--max-restarts=3", SLURM_RESTART_COUNT="3")
        assert done.returncode == status
        assert "--max-restarts is 3" in done.stderr
    assert cluster.calls("scontrol") == []


def test_a_job_that_cannot_be_queued_again_says_so(cluster):
    cluster.add("scontrol", ("requeue", 1))
    done = in_job(cluster, 75)
    assert (done.returncode, "start it anew" in done.stderr) == (75, True)


def test_found_by_the_folder_of_submission(cluster):
    variables = {"CLAP_JAX_ROOT": "", "SLURM_SUBMIT_DIR": f"{cluster.clone}"}
    assert in_job(cluster, 0, **variables).returncode == 0
    lost = in_job(cluster, 0, CLAP_JAX_ROOT=f"{cluster.folder}")
    assert (lost.returncode, "set CLAP_JAX_ROOT" in lost.stderr) == (2, True)


def test_the_head_says_the_same_as_the_options(cluster):
    """`sbatch launch/slurm.sh` without options is the submission with defaults."""
    text = (cluster.clone / "launch" / "slurm.sh").read_text()
    head = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]
    cluster.run("slurm.sh", "--no-install", "--", "--config=a")
    [call] = cluster.calls("sbatch")
    assert head[0] == "--job-name=clap_jax"
    assert head[1:] == call[:6]


def test_wrong_use_is_a_sentence(cluster):
    done = cluster.run("slurm.sh", "--nodes=2")
    assert (done.returncode, "after --" in done.stderr) == (2, True)
    done = cluster.run("slurm.sh", "--nodes=two", "--", "--config=a")
    assert (done.returncode, "found 'two'" in done.stderr) == (2, True)
    (cluster.bin / "sbatch").unlink()
    done = cluster.run("slurm.sh", "--no-install", "--", "--config=a")
    assert (done.returncode, "sbatch was not found" in done.stderr) == (1, True)
