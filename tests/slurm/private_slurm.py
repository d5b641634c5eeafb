"""A SLURM of one node for tests: unpacked below a folder, run by the user who tests, on ports of its own, and removed after.

Nothing is installed: the packages of the distribution are unpacked, unless the machine has SLURM. There is no systemd, no
cgroup and no accounting. In the partition `urgent` a job takes the place of those in `main`.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

NUM_CPUS, SECONDS_TO_START, SECONDS_TO_UNPACK = 16, 30.0, 180.0
PROGRAMS = ("sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol", "slurmctld", "slurmd", "slurmstepd", "munged")
OF_SLURM = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits for as long as its credential would last.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
OverTimeLimit=0
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={num_cpus} RealMemory=4000
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=localhost MaxTime=INFINITE PriorityTier=10
"""


class NoSlurm(Exception):
    """Why there can be no SLURM here."""


class PrivateSlurm:
    """The daemons of a SLURM, and the environment in which its commands reach them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = found_programs() or unpacked_programs(folder / "packages")
        self.environment = self._environment()
        self._daemons = ExitStack()

    def __enter__(self) -> "PrivateSlurm":
        """Write the configuration, start the daemons, wait for the node."""
        self._configure()
        munge = [f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in ("socket", "key-file", "pid-file")]
        munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("seed", "log")]
        with ExitStack() as started:
            self._daemons = started
            self._start("munged", "--force", "--foreground", *munge)
            await_that((self.folder / "munge.socket").exists, "munge answers", seconds=SECONDS_TO_START)
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", "localhost", "-d", str(self._programs["slurmstepd"]))
            await_that(lambda: "idle" in self.say("sinfo", "-h", "-o", "%T"), "the node is idle", seconds=SECONDS_TO_START)
            self._daemons = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """End all jobs, then the daemons; what does not end is killed."""
        with self._daemons:
            self.say("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
            self.say("scancel", "--user", getpass.getuser())
            await_that(lambda: not self.say("squeue", "-h"), "the jobs have ended", seconds=SECONDS_TO_START)

    def say(self, program: str, *words: str) -> str:
        """What a command of this SLURM says; nothing if it fails."""
        done = subprocess.run([program, *words], env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def told_of(self, job_id: str, key: str) -> str:
        """What scontrol says of a job, such as its `JobState`."""
        fields = (field.partition("=") for field in self.say("scontrol", "--oneliner", "show", "job", job_id).split())
        return next((value for name, _, value in fields if name == key), "")

    def await_state(self, job_id: str, *states: str, seconds: float = 240.0) -> str:
        """Wait until a job is in one of these states."""
        await_that(lambda: self.told_of(job_id, "JobState") in states, f"job {job_id} is {states}", seconds=seconds)
        return self.told_of(job_id, "JobState")

    def _start(self, program: str, *words: str) -> None:
        with (self.folder / f"{program}.output").open("w") as output:
            command = [str(self._programs[program]), *words]
            daemon = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output, start_new_session=True)
        self._daemons.callback(end, daemon)

    def _environment(self) -> dict[str, str]:
        """The environment of commands, daemons and jobs: this Python first, and nothing of another SLURM."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(OF_SLURM)}
        folders = dict.fromkeys(str(program.parent) for program in self._programs.values())
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *folders, environment["PATH"]])
        environment["OMP_NUM_THREADS"] = "1"
        environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        if libraries := {str(library.parent): None for library in (self.folder / "packages").rglob("*.so*")}:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return environment

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        controller_port, node_port = free_ports(2)
        plugins = next(plugin_folders(self.folder / "packages"))
        text = CONFIGURATION.format(
            folder=self.folder,
            controller_port=controller_port,
            node_port=node_port,
            user=getpass.getuser(),
            plugins=plugins,
            num_cpus=NUM_CPUS,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)


def found_programs() -> dict[str, Path] | None:
    """The programs of a SLURM that the machine has."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    found = {name: Path(place) for name in PROGRAMS if (place := shutil.which(name, path=path))}
    return found if len(found) == len(PROGRAMS) else None


def unpacked_programs(folder: Path) -> dict[str, Path]:
    """The programs out of the packages of the distribution, with the libraries that the machine lacks."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoSlurm("there is no SLURM on this machine, and no apt-get to fetch one")
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User="]
    fetch = ["apt-get", "install", *options, "--yes", "--no-install-recommends", "--download-only", "slurm-wlm", "munge"]
    fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=SECONDS_TO_UNPACK, check=False)
    if fetched.returncode:
        raise NoSlurm(f"apt-get cannot fetch slurm-wlm: {fetched.stderr.strip()}")
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
    shutil.rmtree(archives)
    # Debian's slurmctld is a link from /etc/alternatives to slurmctld-wlm.
    places = {name: [*folder.glob(f"usr/*bin/{name}"), *folder.glob(f"usr/*bin/{name}-wlm")] for name in PROGRAMS}
    return {name: found[0] for name, found in places.items()}


def plugin_folders(packages: Path) -> Iterator[Path]:
    """Where SLURM's plugins are."""
    for root in (packages / "usr" / "lib", Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib")):
        yield from (plugin.parent for plugin in root.rglob("auth_munge.so"))


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def end(daemon: subprocess.Popen[bytes]) -> None:
    """End a daemon, if need be by force."""
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def await_that(holds: Callable[[], object], what: str, *, seconds: float) -> None:
    """Look again and again whether something holds; fail after a time."""
    limit = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > limit:
            raise TimeoutError(f"after {seconds:g} s it is still not so that {what}")
        time.sleep(0.2)
