"""launch/tpu_gke.sh and the JobSet that it makes of launch/tpu_gke.yaml."""

import pytest
import yaml

from clap_jax import engines
from tests.launch.machine import HARD_ARGUMENTS, REPOSITORY

WHO = ("--name=clap", "--image=registry/clap_jax:tpu", "--claim=files:/mnt/a b")
RUN = ("--config=a", "--workdir=/mnt/a b/c")


def render(machine, *options, arguments=RUN):
    done = machine.run("tpu_gke.sh", "render", *WHO, *options, "--", *arguments)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def job(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(jobset):
    return job(jobset)["template"]["spec"]


def expanded(text):
    """What a container gets of `args` and `env`: Kubernetes takes $$ for $."""
    return text.replace("$$", "$")


def test_arguments_and_variables_arrive_as_they_were(machine):
    values = ["b c", '"$(NAME)" $HOME', "a=b: c # d", "'"]
    options = [f"--env=V{n}={value}" for n, value in enumerate(values)]
    jobset = render(machine, *options, arguments=[*RUN, *HARD_ARGUMENTS])
    [container] = pod(jobset)["containers"]
    got = [expanded(argument) for argument in container["args"]]
    assert got == [*RUN, *HARD_ARGUMENTS]
    # Alone, a $ would be the beginning of a reference.
    assert "$" not in "".join(container["args"]).replace("$$", "")
    variables = {v["name"]: expanded(v["value"]) for v in container["env"]}
    assert [variables[f"V{n}"] for n in range(4)] == values
    assert "command" not in container  # the image's entry point


def test_a_slice_of_256_chips(machine):
    jobset = render(machine, "--max-restarts=7", "--grace-seconds=90")
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert jobset["metadata"]["name"] == "clap"
    spec = job(jobset)
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] == 64
    template = pod(jobset)
    assert template["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert template["terminationGracePeriodSeconds"] == 90
    [container] = template["containers"]
    assert container["image"] == "registry/clap_jax:tpu"
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    variables = {v["name"]: v["value"] for v in container["env"]}
    assert variables["CLAP_JAX_PROCESS_COUNT"] == "64"
    network = jobset["spec"]["network"]
    assert network == {"enableDNSHostnames": True, "subdomain": "clap"}


def test_pods_find_each_other_by_what_gke_tells_them(machine):
    """Read by the code that the processes run, with the variables that GKE adds."""
    jobset = render(machine, "--topology=2x2x2", "--accelerator=tpu-v5p-slice")
    [container] = pod(jobset)["containers"]
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    [replicated] = jobset["spec"]["replicatedJobs"]
    hosts = [f"{name}-{replicated['name']}-0-{n}.{subdomain}" for n in range(2)]
    environ = {v["name"]: v["value"] for v in container["env"]}
    environ["TPU_WORKER_HOSTNAMES"] = ",".join(hosts)
    for number in range(2):
        job_of = engines.detect(environ | {"TPU_WORKER_ID": str(number)})
        assert job_of.coordinator == "clap-slice-0-0.clap:8482"
        assert (job_of.process_count, job_of.process_index) == (2, number)
    ports = [port["containerPort"] for port in container["ports"]]
    assert engines.DEFAULT_PORT in ports


def test_the_readmes_variables_for_other_engines():
    text = (REPOSITORY / "launch" / "README.md").read_text()
    variables = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    environ = {v["name"]: v.get("value", "3") for v in variables}
    found = engines.detect(environ)
    assert found.coordinator == "clap-node-0-0.clap:8482"
    assert (found.process_count, found.process_index) == (4, 3)


def test_75_and_lost_pods_restart_all_but_1_and_2_do_not(machine):
    """By the rules of JobSet and of Kubernetes' jobs, as far as these can be read here."""
    jobset = render(machine, "--max-restarts=7")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert policy["rules"] == [rule]
    spec = job(jobset)
    assert spec["backoffLimit"] == 0  # any other end of a pod fails the job: a restart
    [given_up] = spec["podFailurePolicy"]["rules"]
    codes = given_up["onExitCodes"]
    assert (given_up["action"], codes["operator"]) == ("FailJob", "In")
    assert codes["values"] == [1, 2]
    assert codes["containerName"] == pod(jobset)["containers"][0]["name"]
    assert pod(jobset)["restartPolicy"] == "Never"  # which such a policy needs


@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts", "chips"),
    [
        ("tpu-v5-lite-podslice", "4x4", 4, 4),
        ("tpu-v5-lite-podslice", "2x4", 1, 8),
        ("tpu-v5-lite-podslice", "1x1", 1, 1),
        ("tpu-v6e-slice", "8x8", 16, 4),
        ("tpu-v5p-slice", "2x2x2", 2, 4),
        ("tpu-v5p-slice", "4x4x4", 16, 4),
    ],
)
def test_hosts_follow_from_the_topology(machine, accelerator, topology, hosts, chips):
    options = (f"--accelerator={accelerator}", f"--topology={topology}")
    jobset = render(machine, *options)
    assert job(jobset)["parallelism"] == hosts
    [container] = pod(jobset)["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == chips


def test_options_of_the_cluster(machine):
    template = pod(render(machine, "--spot", "--service-account=trainer"))
    assert template["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert template["serviceAccountName"] == "trainer"
    assert "serviceAccountName" not in pod(render(machine))


def test_the_workdir_is_on_the_claim(machine):
    template = pod(render(machine, arguments=("--workdir", "/mnt/a b/run 1")))
    volumes = {volume["name"]: volume for volume in template["volumes"]}
    assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": "files"}
    [container] = template["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shared-memory": "/dev/shm", "shared": "/mnt/a b"}
    assert set(mounts) == set(volumes)


def test_what_is_shown_is_what_is_run(machine):
    machine.add("kubectl")
    arguments = (*WHO, "--context=c d", "--", *RUN, *HARD_ARGUMENTS)
    before = machine.files()
    shown = machine.run("tpu_gke.sh", "apply", "--dry-run", *arguments)
    assert shown.returncode == 0, shown.stderr
    first = "kubectl '--context=c d' --namespace=default apply --filename=- <<"
    assert shown.stdout.splitlines()[0] == f"{first}'END_OF_YAML'"
    assert machine.calls() == []
    assert machine.files() == before
    machine.start(["bash", "-c", shown.stdout])
    copied = (machine.calls(), machine.piped())
    machine.forget()
    machine.run("tpu_gke.sh", "apply", *arguments)
    question, applied = machine.calls()
    assert question[3:5] == ["get", "jobset"]
    assert copied == ([applied], machine.piped())
    assert yaml.safe_load(machine.piped()[0])["metadata"]["name"] == "clap"


def verbs(machine):
    return [call[1] for call in machine.calls("kubectl")]


def test_apply_goes_on_or_starts_what_has_ended_anew(machine):
    machine.add("kubectl", ("get jobset", ""))
    assert machine.run("tpu_gke.sh", "apply", *WHO, "--", *RUN).returncode == 0
    assert verbs(machine) == ["get", "apply"]
    machine.forget()
    machine.add("kubectl", ("get jobset", "Failed"))
    assert machine.run("tpu_gke.sh", "apply", *WHO, "--", *RUN).returncode == 0
    assert verbs(machine) == ["get", "delete", "apply"]
    machine.forget()
    machine.add("kubectl", ("apply", 1))
    done = machine.run("tpu_gke.sh", "apply", *WHO, "--", *RUN)
    assert (done.returncode, "delete it first" in done.stderr) == (1, True)


def test_status_logs_delete(machine):
    machine.add("kubectl")
    for step in ("status", "logs", "delete"):
        options = ("--name=clap", "--namespace=n", "--worker=2")
        assert machine.run("tpu_gke.sh", step, *options).returncode == 0
    selected = "--selector=jobset.sigs.k8s.io/jobset-name=clap"
    worker = "batch.kubernetes.io/job-completion-index=2"
    assert [call[1:] for call in machine.calls("kubectl")] == [
        ["get", "jobset", "clap", "--ignore-not-found"],
        ["get", "pods", selected, "--output=wide"],
        ["logs", "--follow", "--tail=-1", f"{selected},{worker}"],
        ["delete", "jobset", "clap", "--ignore-not-found", "--cascade=foreground"],
    ]
    assert {call[0] for call in machine.calls("kubectl")} == {"--namespace=n"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("apply", *WHO[1:], "--", *RUN), "NAME is not set: give --name=..."),
        (("apply", "--name=a", "--", *RUN), "IMAGE is not set"),
        (("apply", *WHO[:2], "--", *RUN), "CLAIM is not set"),
        (("apply", *WHO, "--image=a b", "--", *RUN), "found 'a b'"),
        (("apply", *WHO, "--topology=16", "--", *RUN), "found '16'"),
        (("apply", *WHO, "--topology=1x3", "--", *RUN), "3 chips"),
        (("apply", *WHO, "--topology=0x4", "--", *RUN), "found '0x4'"),
        (("apply", *WHO, "--chips-per-host=0", "--", *RUN), "at least 1, found '0'"),
        (("apply", *WHO, "--chips-per-host=x", "--", *RUN), "at least 1, found 'x'"),
        (("apply", *WHO, "--spot=yes", "--", *RUN), "--spot takes no value"),
        (("apply", *WHO, "--", "--config=a"), "--workdir=... is missing"),
        (("apply", *WHO, "--", "--workdir=/data"), "must be below /mnt/a b"),
        (("apply", *WHO, "--", "--workdir=gs://b/c"), "mount the bucket"),
        (("apply", *WHO, "--claim=c", "--", *RUN), "found 'c'"),
        (("apply", *WHO, "--", *RUN, "\a"), "control character"),
        (("start", *WHO), "found 'start'"),
    ],
)
def test_wrong_use_is_a_sentence(machine, arguments, sentence):
    machine.add("kubectl")
    done = machine.run("tpu_gke.sh", *arguments)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert machine.calls() == []


def test_a_missing_kubectl_is_a_sentence(machine):
    done = machine.run("tpu_gke.sh", "status", "--name=clap")
    assert (done.returncode, "kubectl was not found" in done.stderr) == (1, True)
