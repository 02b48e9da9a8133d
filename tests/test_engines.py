"""What each engine's variables say about the job."""

import pytest

from clap_jax.engines import DEFAULT_PORT, HostsError, Job, detect, expand_nodes

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
JOBSET = {
    "JOBSET_NAME": "clap",
    "REPLICATED_JOB_NAME": "worker",
    "JOB_INDEX": "0",
    "JOB_COMPLETION_INDEX": "2",
    "CLAP_JAX_PROCESS_COUNT": "4",
}
GKE_TPU = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t-0.clap,t-1.clap"}
OWN = {
    "CLAP_JAX_COORDINATOR": "10.0.0.1:1234",
    "CLAP_JAX_PROCESS_COUNT": "2",
    "CLAP_JAX_PROCESS_INDEX": "1",
}


def test_without_variables_a_process_is_alone():
    assert detect({"PATH": "/bin", "CLAP_JAX_COORDINATOR": ""}) is None
    assert detect({}, metadata=lambda key: None) is None


@pytest.mark.parametrize(
    "names",
    [
        ("CLAP_JAX_COORDINATOR", "CLAP_JAX_PROCESS_COUNT", "CLAP_JAX_PROCESS_INDEX"),
        ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
        ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_COUNT", "CLAP_JAX_PROCESS_INDEX"),
    ],
)
def test_a_job_can_be_told_outright(names):
    told = dict(zip(names, ("10.0.0.1:1234", "2", "1"), strict=True))
    assert detect(told) == Job("variables", "10.0.0.1:1234", 2, 1)
    # Then no engine is asked, whatever else there is.
    assert detect(told | SLURM) == Job("variables", "10.0.0.1:1234", 2, 1)
    assert detect(told, metadata=pytest.fail) is not None


def test_a_port_may_stand_by_itself():
    assert (
        detect(OWN | {"CLAP_JAX_COORDINATOR": "h"}).coordinator == f"h:{DEFAULT_PORT}"
    )
    port = {"JAX_COORDINATOR_PORT": "99"}
    assert detect(OWN | {"CLAP_JAX_COORDINATOR": "h"} | port).coordinator == "h:99"
    assert detect(OWN | port).coordinator == "10.0.0.1:1234"
    assert detect(JOBSET | port).coordinator == "clap-worker-0-0.clap:99"
    assert detect(SLURM | port).coordinator == "gpu07:99"


def test_devices_of_this_process_can_be_named():
    assert detect(OWN | {"JAX_LOCAL_DEVICE_IDS": "0,3"}).local_device_ids == (0, 3)
    assert detect(OWN).local_device_ids is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("node001,host2", ["node001", "host2"]),
        ("node[001-003],host2", ["node001", "node002", "node003", "host2"]),
        ("n[1,07-09]", ["n1", "n07", "n08", "n09"]),
        ("n[9-11]-ib", ["n9-ib", "n10-ib", "n11-ib"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
    ],
)
def test_slurm_lists_of_nodes(text, hosts):
    assert expand_nodes(text) == hosts


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[a-b]", "a,,b", "n[1-2]["])
def test_a_broken_list_of_nodes_is_told(text):
    with pytest.raises(HostsError, match="SLURM_STEP_NODELIST="):
        expand_nodes(text)


def test_slurm_with_a_process_for_each_gpu():
    job = detect(SLURM)
    assert job == Job("slurm", f"gpu07:{2**16 - 2**12 + 1}", 4, 3, (1,))
    # The same two tasks a node, known from the numbers of tasks and nodes alone.
    fewer = {
        k: v for k, v in SLURM.items() if "PER_NODE" not in k and "STEP_NUM" not in k
    }
    assert detect(fewer) == job


def test_slurm_with_a_process_for_each_node():
    one = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    job = detect(SLURM | one | {"SLURM_PROCID": "1", "SLURM_NTASKS_PER_NODE": "1"})
    assert job[2:] == (2, 1, None)


@pytest.mark.parametrize(
    ("visible", "per_task", "devices"),
    [
        ("0,1", "", (1,)),  # all of the node's, one each
        ("0,1,2,3", "", (2, 3)),  # shared out
        ("0,1,2,3", "2", (2, 3)),  # --gpu-bind=none
        ("1", "1", None),  # bound: each sees its own
        ("0,1", "a100:2", None),
    ],
)
def test_slurm_shares_out_gpus(visible, per_task, devices):
    given = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_GPUS_PER_TASK": per_task}
    assert detect(SLURM | given).local_device_ids == devices


def test_slurm_without_srun_is_no_job():
    batch = {k: v for k, v in SLURM.items() if "STEP" not in k}
    assert detect(batch | {"SLURM_PROCID": "0"}) is None
    assert detect(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_another_slurm_job_takes_another_port():
    ports = {
        detect(SLURM | {"SLURM_JOB_ID": str(job)}).coordinator for job in range(4096)
    }
    assert len(ports) == 4096
    assert all(2**16 - 2**12 <= int(p.split(":")[1]) < 2**16 for p in ports)


def test_a_jobset():
    address = f"clap-worker-0-0.clap:{DEFAULT_PORT}"
    assert detect(JOBSET) == Job("jobset", address, 4, 2)
    second = {"JOB_INDEX": "1", "JOB_COMPLETION_INDEX": "1", "PROCESSES_IN_JOB": "2"}
    assert detect(JOBSET | second) == Job("jobset", address, 4, 3)


def test_a_tpu_slice_of_gke():
    address = f"t-0.clap:{DEFAULT_PORT}"
    assert detect(GKE_TPU) == Job("gke tpu", address, 2, 1)
    # TPU pods of a JobSet have both; the slice knows how many they are.
    assert detect({"JOBSET_NAME": "clap"} | GKE_TPU).engine == "gke tpu"
    assert detect({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_several_tpu_slices_of_gke():
    slices = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "first:8080",
    }
    job = detect(GKE_TPU | slices)
    assert job == Job("gke tpu", f"first:{DEFAULT_PORT}", 4, 3)


@pytest.mark.parametrize("style", ["{0}", "worker:{0}:{0}"])
def test_a_cloud_tpu_machine(style):
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": ",".join(
            style.format(address) for address in ("10.0.0.4", "10.0.0.5")
        ),
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nZONE: 'us-west4-a'\n",
    }
    job = detect({}, attributes.get)
    assert job == Job("cloud tpu", f"10.0.0.4:{DEFAULT_PORT}", 2, 1)
    attributes["tpu-env"] += (
        "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.9:8080'\n"
    )
    job = detect({}, attributes.get)
    assert job == Job("cloud tpu", f"10.0.0.9:{DEFAULT_PORT}", 6, 5)


def test_a_cloud_tpu_machine_alone():
    attributes = {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.4"}
    assert detect({}, attributes.get) is None


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CLAP_JAX_PROCESS_COUNT": "2"}, "PROCESS_INDEX and CLAP_JAX_COORDINATOR not"),
        (without(OWN, "CLAP_JAX_COORDINATOR"), "CLAP_JAX_COORDINATOR not set"),
        (OWN | {"CLAP_JAX_PROCESS_COUNT": "two"}, "CLAP_JAX_PROCESS_COUNT='two'"),
        (
            OWN | {"CLAP_JAX_PROCESS_COUNT": "0"},
            "CLAP_JAX_PROCESS_COUNT='0'.*1 or more",
        ),
        (OWN | {"CLAP_JAX_PROCESS_INDEX": "2"}, "process 2 of a job of 2.*0 to 1"),
        (OWN | {"CLAP_JAX_PROCESS_INDEX": "-1"}, "CLAP_JAX_PROCESS_INDEX='-1'"),
        (OWN | {"JAX_NUM_PROCESSES": "3"}, "COUNT says 2 but JAX_NUM_PROCESSES says 3"),
        (OWN | {"JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS='a'"),
        (
            OWN | {"CLAP_JAX_COORDINATOR": "h", "JAX_COORDINATOR_PORT": "http"},
            "JAX_COORDINATOR_PORT='http'",
        ),
        (SLURM | {"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID is not set"),
        (SLURM | {"SLURM_PROCID": "9"}, "process 9 of a job of 4.*SLURM_PROCID"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[1"}, r"SLURM_STEP_NODELIST='n\[1'"),
        (SLURM | {"CLAP_JAX_PROCESS_COUNT": "8"}, "COUNT says 8 but SLURM_.* says 4"),
        (
            SLURM | {"SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": "0,1"},
            "SLURM_LOCALID=2 with CUDA_VISIBLE_DEVICES=0,1",
        ),
        (
            without(JOBSET, "CLAP_JAX_PROCESS_COUNT"),
            "CLAP_JAX_PROCESS_COUNT is not set",
        ),
        (without(JOBSET, "JOB_COMPLETION_INDEX"), "JOB_COMPLETION_INDEX is not set"),
        (without(JOBSET, "REPLICATED_JOB_NAME"), "REPLICATED_JOB_NAME is not set"),
        (JOBSET | {"JOB_INDEX": "1"}, "PROCESSES_IN_JOB is not set"),
        (without(GKE_TPU, "TPU_WORKER_ID"), "TPU_WORKER_ID is not set"),
        (GKE_TPU | {"TPU_WORKER_ID": "2"}, "worker 2 of a slice whose hosts are"),
        (GKE_TPU | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID is not set"),
        (
            GKE_TPU | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"},
            "MEGASCALE_COORDINATOR_ADDRESS=''",
        ),
    ],
)
def test_what_makes_no_sense_is_a_sentence(variables, words):
    with pytest.raises(HostsError, match=words):
        detect(variables)


def test_metadata_without_endpoints_is_a_sentence():
    with pytest.raises(HostsError, match="worker-network-endpoints"):
        detect({}, {"agent-worker-number": "1"}.get)
