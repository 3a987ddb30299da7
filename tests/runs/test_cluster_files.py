"""The files of clusters: valid for the programs that read them, and true to this repository."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from support import fake_slurm
from support.clusters import environment, free_port, until
from support.paths import ROOT
from support.running import Holds, Reference, committed, rows, trial_of, write_config

LAUNCHER = [ROOT / "cluster.yaml", ROOT / "docs" / "clusters" / "cluster-gcp.yaml"]
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def prepared(path: Path) -> dict[str, Any]:
    """As `ray up` sees it: completed with the provider's defaults, and held
    against Ray's schema."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_ray_takes_the_file(path: Path) -> None:
    prepared(path)


def test_rays_schema_would_refuse_another_key() -> None:
    config = prepare_config(yaml.safe_load(LAUNCHER[0].read_text()))
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config({**config, "idle_minutes": 5})


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_a_small_head_on_demand_and_gpu_workers_on_spot(path: Path) -> None:
    types = prepared(path)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["head"].get("max_workers", 0) == 0
    worker = types["gpu-spot"]
    assert 1 <= worker["min_workers"] < worker["max_workers"]
    assert worker["resources"]["GPU"] == 1
    for name, on_spot in (("head", False), ("gpu-spot", True)):
        assert ("spot" in str(types[name]["node_config"]).lower()) is on_spot


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_every_command_is_bash(path: Path) -> None:
    config = prepared(path)
    for key in COMMANDS:
        for command in config[key]:
            done = subprocess.run(
                ["bash", "-n", "-c", command], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{key}: {command}\n{done.stderr}"


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_nodes_install_this_source_tree_with_its_constraints(path: Path) -> None:
    config = prepared(path)
    mounted = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert mounted == ["/home/ubuntu/raytrain"]
    installs = [each for each in config["setup_commands"] if "pip install" in each]
    assert [each.split()[-1] for each in installs[:1]] == [_requirement("torch")]
    assert (
        f"-c ~/{Path(mounted[0]).name}/constraints.txt ~/{Path(mounted[0]).name} " in installs[-1]
    )
    assert ".venv" in config["rsync_exclude"]
    # What is installed in ~/raytrain-venv is what runs.
    text = " ".join(command for key in COMMANDS for command in config[key])
    assert 'export PATH="$HOME/raytrain-venv/bin:$PATH"' in text
    assert text.count("RAY_AUTH_MODE=token") == 2  # head and workers


def _requirement(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(rf'"({name}==[^"]+)"', text)
    assert found
    return found[1]


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_a_worker_drains_before_it_is_killed(path: Path) -> None:
    start = " ".join(prepared(path)["worker_start_ray_commands"])
    drain = int(re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", start)[0])
    stop = int(re.findall(r"TimeoutStopSec=(\d+)", start)[0])
    assert 0 < drain < stop
    assert "KillMode=mixed" in start  # SIGTERM to `ray start --block` alone
    assert "--block" in start


@pytest.mark.slow
def test_the_source_tree_installs_whole(tmp_path: Path) -> None:
    """As on a node: not editable, and run from elsewhere."""
    tree = tmp_path / "raytrain"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", "build", "results", "*.egg-info"
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--target", str(target), str(tree)], check=True)
    installed = {each.relative_to(target) for each in (target / "raytrain").rglob("*.py")}
    assert installed == {each.relative_to(ROOT) for each in (ROOT / "raytrain").rglob("*.py")}


# -- Kubernetes ----------------------------------------------------------------------------------

# The fields of KubeRay's types (ray-operator/apis/ray/v1), as far as they may be of use here.
_JOB = {
    *("entrypoint", "runtimeEnvYAML", "backoffLimit", "submissionMode", "suspend", "jobId"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds"),
    *("rayClusterSpec", "clusterSelector", "submitterPodTemplate", "submitterConfig", "metadata"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "deletionStrategy"),
}
_CLUSTER = {
    *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"),
    *("headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "suspend"),
}
_HEAD = {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
_GROUP = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"),
    *("rayStartParams", "template", "scaleStrategy"),
}


@pytest.fixture
def rayjob() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "clusters" / "rayjob.yaml").read_text())
    return found


def test_the_rayjob_has_fields_that_kuberay_knows(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= _JOB
    assert set(cluster) <= _CLUSTER
    assert set(cluster["headGroupSpec"]) <= _HEAD
    groups = cluster["workerGroupSpecs"]
    assert all(set(group) <= _GROUP for group in groups)
    for params in (cluster["headGroupSpec"], *groups):
        assert all(isinstance(value, str) for value in params["rayStartParams"].values())
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert isinstance(spec["backoffLimit"], int)
    assert spec["backoffLimit"] > 0
    # A retry is a new cluster, which KubeRay makes only where it may take the old one down.
    assert spec["shutdownAfterJobFinishes"] is True
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}


def test_the_rayjobs_workers_are_gpus_on_spot_that_have_time_to_drain(
    rayjob: dict[str, Any],
) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert 0 < group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for key, value in pod["nodeSelector"].items():
        assert {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} in pod[
            "tolerations"
        ]
    names = {each["name"]: each["value"] for each in container["env"]}
    drain = int(names["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0 < drain < pod["terminationGracePeriodSeconds"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "nodeSelector" not in head  # not on spot
    for spec in (pod, head):
        mounted = {each["name"] for each in spec["containers"][0]["volumeMounts"]}
        assert mounted == {each["name"] for each in spec["volumes"]}
        assert spec["containers"][0]["image"] == container["image"]
    version = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert version
    assert cluster["rayVersion"] == version[1]


# -- Slurm ---------------------------------------------------------------------------------------


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "docs" / "clusters" / "slurm.sbatch")], check=True)


@pytest.mark.slow
def test_the_slurm_script_trains_saves_at_its_time_limit_and_goes_on(
    tmp_path: Path, undisturbed: Reference
) -> None:
    """Two nodes by a stand-in for Slurm; the signal before the time limit; and the requeued job."""
    holds = Holds(tmp_path, 3)
    config = write_config(tmp_path / "run.yaml", **holds.sections)
    programs = fake_slurm.install(tmp_path, free_port())
    port = next(each for each in iter(free_port, None) if each < 30_000)  # As the script counts it.
    env = environment(
        SLURM_JOB_NODELIST="first,second",
        SLURM_JOB_ID=str(port - 20_000),
        SLURM_CPUS_PER_TASK="2",
        SLURM_SUBMIT_DIR=str(tmp_path),
        USER="test",
        RAYTRAIN_VENV=str(tmp_path / "venv"),
    )
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "bin").symlink_to(programs)
    log = tmp_path / "slurm.log"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", str(ROOT / "docs" / "clusters" / "slurm.sbatch"), str(config)],
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=env,
            start_new_session=True,
        )

    said = log.read_text
    job = start()
    until(lambda: len(rows(trial_of(config))) == 3, 600, said)
    job.send_signal(signal.SIGUSR1)
    until(lambda: "saving 1 running trial(s)" in said(), 600, said)
    holds.release()
    assert job.wait(600) == 143, said()
    assert (tmp_path / "requeued.txt").read_text().split() == [env["SLURM_JOB_ID"]]
    assert len(rows(trial_of(config))) in committed(trial_of(config))
    assert job_is_gone(env["SLURM_JOB_ID"])

    job = start()
    assert job.wait(600) == 0, said()
    assert "run finished" in said()
    assert [row["weights_sha256"] for row in rows(trial_of(config))] == undisturbed.digests()
    started = (tmp_path / "srun.txt").read_text()
    assert "ray start --block --address=127.0.0.1:" in started


def job_is_gone(job: str) -> bool:
    """Whether no process of the job's Ray is left, by the directory that carries its number."""
    import psutil

    def left() -> list[str]:
        lines = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
        return [line for line in lines if f"ray-test-{job}" in line]

    return bool(until(lambda: not left(), 600, lambda: "\n".join(left())))
