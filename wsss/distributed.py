"""Runs of several processes: how they start, who leads, and what they tell each other. With one process all is trivial.

Rank 0, the leader, does all that a single process does: it decides what is to be run, locks, logs and publishes. The
others take part in the stages whose work is shared, and wait in between.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import lightning_fabric.utilities.rank_zero
import numpy as np
import pytorch_lightning.utilities.rank_zero
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from omegaconf import OmegaConf
from torch.distributed.rendezvous import rendezvous

from wsss import signals
from wsss.config import TrainerConfig
from wsss.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

LOST = 3
"""Exit code of a process whose run has lost another one, which has said why it ended."""

SUPERVISOR = "WSSS_SUPERVISOR"
"""Environment variable that holds the process that has started this one and watches over it."""

_WAIT = timedelta(days=30)
"""How long the others wait for the leader, which may refine for days. A process that ends is noticed at once."""

_MEETING = timedelta(minutes=10)
"""How long a process waits for the others of its run to connect; starting from a network disk takes minutes."""

_PATIENCE = 20.0
"""Seconds after which it says that it waits for them."""

_GRACE = 5.0
"""Seconds that processes have for ending after another has failed, before they are killed."""

_FAREWELL = 20.0
"""Seconds that they have after an interrupt, in which runs of trackers are closed. Slurm kills after 30."""

_PER_CORE = 2
"""Processes that a core may be asked for where they compute on the CPU; four are always allowed, for trials."""

_MISSING = object()
_control: Any = None
_apart = False  # whether each process of this machine sees one GPU, its own


# --- who this process is ----------------------------------------------------------------------------------------------


def world() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world() > 1 else 0


def local_world() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


def leader() -> bool:
    """Whether this process decides, logs and publishes."""
    return rank() == 0


# --- what they do together --------------------------------------------------------------------------------------------


def share(items: Sequence[T]) -> Sequence[T]:
    """The part of this process: every item belongs to one of them."""
    return items[rank() :: world()]


def gather(value: T) -> list[T]:
    """What every process has here, by rank. All of them call it."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, group=_control)
    return found


def collect(results: Sequence[T]) -> list[T]:
    """The results of all processes in the order of the items of which each had its ``share``."""
    return interleaved(gather(list(results)))


def interleaved(shares: Sequence[Sequence[T]]) -> list[T]:
    """The whole of which ``shares`` took every n-th item.

    >>> interleaved([[0, 2, 4], [1, 3]])
    [0, 1, 2, 3, 4]
    """
    return [item for item in chain(*zip_longest(*shares, fillvalue=cast(T, _MISSING))) if item is not _MISSING]


def total(counts: np.ndarray) -> np.ndarray:
    """The sum over all processes, in the order of their ranks; exact for integers."""
    parts = gather(counts)
    return counts if len(parts) == 1 else np.sum(parts, axis=0, dtype=counts.dtype)


def lead(work: Callable[[], T]) -> T:
    """Let the leader do something while the others wait; all are given its result."""
    if world() == 1:
        return work()
    value = [work() if leader() else None]
    dist.broadcast_object_list(value, src=0, group=_control)
    return cast(T, value[0])


def tell(message: Any) -> None:
    """Send the others, which wait in ``told``, a message."""
    lead(lambda: message)


def told() -> Any:
    """Wait for the message of the leader."""
    return lead(lambda: None)


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def level_buffers(network: torch.nn.Module) -> None:
    """Give every process the leader's buffers (statistics of batch norm), which drift apart within a step."""
    if world() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


# --- how many there are to be -----------------------------------------------------------------------------------------


def in_parallel(trainer: TrainerConfig) -> bool:
    """Whether the configuration asks for as many processes as there are devices."""
    return str(trainer.strategy).startswith("ddp")


def local_processes(trainer: TrainerConfig) -> int:
    """The processes that the configuration asks for on each machine."""
    if not in_parallel(trainer):
        return 1
    if OmegaConf.is_list(trainer.devices) or isinstance(trainer.devices, (list, tuple)):
        return len(trainer.devices)
    wanted = str(trainer.devices)
    if wanted in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if trainer.accelerator != "cpu" else 1
    return len([part for part in wanted.split(",") if part.strip()]) if "," in wanted else int(wanted)


def processes(trainer: TrainerConfig) -> int:
    """The processes that the configuration asks for, on all machines."""
    return local_processes(trainer) * trainer.num_nodes if in_parallel(trainer) else 1


def training_processes(trainer: TrainerConfig) -> int:
    """The processes that trainings are done by: those of this run, or of the one whose results are meant."""
    return trainer.processes or processes(trainer)


class Place(NamedTuple):
    """Where a process stands in a run that something else has started."""

    rank: int
    world: int
    local: int
    node: int
    address: str
    port: int


def started(variables: Mapping[str, str]) -> Place | None:
    """What torchrun, ``srun`` or this program, having started several processes, have told each; None for a single one.

    Args:
        variables: of the environment.
    """
    read = variables.get
    if int(read("WORLD_SIZE", 1)) > 1 and "RANK" in variables:
        return Place(
            int(variables["RANK"]),
            int(variables["WORLD_SIZE"]),
            int(read("LOCAL_RANK", 0)),
            int(read("NODE_RANK", read("GROUP_RANK", 0))),
            read("MASTER_ADDR", "127.0.0.1"),
            int(read("MASTER_PORT", 12910)),
        )
    by_hand = read("SLURM_JOB_NAME") in ("bash", "interactive")  # an allocation in which commands are typed
    # of a step: SLURM_NTASKS and SLURM_PROCID stand in the one process of a batch script too
    if int(read("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in variables and not by_hand:
        nodes = read("SLURM_STEP_NODELIST", read("SLURM_JOB_NODELIST", "127.0.0.1"))
        return Place(
            int(variables["SLURM_PROCID"]),
            int(variables["SLURM_STEP_NUM_TASKS"]),
            int(read("SLURM_LOCALID", 0)),
            int(read("SLURM_NODEID", 0)),
            read("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes),
            int(read("MASTER_PORT") or 15000 + int(read("SLURM_JOB_ID", "0")[-4:])),  # the same in every process
        )
    return None


def must_start(trainer: TrainerConfig, *, sharded: bool) -> bool:
    """Whether this process has to start those of the run.

    Args:
        trainer: what is asked for.
        sharded: the work is shared by ``shard.index`` and ``shard.count``; processes then know nothing of each other.

    Raises:
        ConfigError: what has been started and what is asked for differ.
    """
    place, wanted = started(os.environ), processes(trainer)
    if place is None:
        return wanted > 1
    if sharded and wanted == 1:
        return False
    if place.world != wanted:
        raise ConfigError(
            f"{place.world} processes have been started, but trainer.strategy={trainer.strategy}, trainer.devices="
            f"{trainer.devices} and trainer.num_nodes={trainer.num_nodes} ask for {wanted}. Use trainer=ddp with "
            f"trainer.devices (processes on a machine) times trainer.num_nodes (machines) equal to {place.world}"
        )
    return False


# --- as one of them ---------------------------------------------------------------------------------------------------


@contextmanager
def joined(trainer: TrainerConfig) -> Iterator[None]:
    """Be one of the processes of a run, connected with the others, until all have reached the end of the block.

    Raises:
        ConfigError: there are fewer GPUs than processes, or the others did not come.
    """
    global _apart, _control
    _apart = False
    place = started(os.environ) if processes(trainer) > 1 else None
    if place is None:
        _set_rank(0)
        yield
        return
    _end_with_supervisor()
    _set_rank(place.local)  # the first of each machine says what is wrong there
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    _apart = on_gpu and _one_gpu_each(trainer)
    if on_gpu and not _apart:
        check_gpus(trainer)
    # a process with a GPU of its own is to Lightning the only one of a machine
    local, node = (0, place.rank) if _apart else (place.local, place.node)
    os.environ.update(
        RANK=str(place.rank), WORLD_SIZE=str(place.world), LOCAL_RANK=str(local), NODE_RANK=str(node),
        LOCAL_WORLD_SIZE=str(local_processes(trainer)), MASTER_ADDR=place.address, MASTER_PORT=str(place.port),
    )  # fmt: skip
    if on_gpu:
        torch.cuda.set_device(device_index(trainer, local))
    store = _meet(place)
    _set_rank(place.rank)
    if place.rank:
        warnings.simplefilter("ignore")  # the leader shows each of them
    elif not on_gpu and trainer.accelerator != "cpu":
        log.info("no GPU: %d processes on the CPU", place.world)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=place.rank, world_size=place.world)
    _control = dist.new_group(backend="gloo", timeout=_WAIT)
    yield
    barrier()
    _control = None
    dist.destroy_process_group()


def _meet(place: Place) -> dist.Store:
    """Connect with the other processes; what they say to each other while they form groups goes through the result.

    Raises:
        ConfigError: they have not all come in time.
    """
    where = f"{place.address}:{place.port}"
    patience = threading.Timer(
        _PATIENCE, log.info, ("waiting for the %d processes of this run to connect at %s", place.world, where)
    )
    patience.daemon = True
    patience.start()
    try:
        store, *_ = next(rendezvous("env://", timeout=_MEETING))
    except dist.DistError as error:
        came = re.search(r"(\d+)/\d+ clients joined", str(error))
        if "EADDRINUSE" in str(error):
            happened = "the port is in use. Set MASTER_PORT to a free one"
        else:
            found = f"{came[1]} of {place.world} came" if came else "nobody listens there: the first has not come"
            happened = (
                f"{found} within {_MEETING.total_seconds():.0f} seconds. Are all of them started, with the same "
                f"MASTER_ADDR and MASTER_PORT, and can their machines reach that address?"
            )
        raise ConfigError(
            f"the {place.world} processes of this run connect at {where} (this is number {place.rank + 1}): {happened}"
        ) from error
    finally:
        patience.cancel()
    return dist.PrefixStore("wsss", store)


def layout(trainer: TrainerConfig) -> tuple[Any, int]:
    """The devices of a machine and the number of machines, as Lightning is to see them."""
    if _apart:
        return 1, world()
    return ("auto" if str(trainer.devices) == "-1" else trainer.devices), trainer.num_nodes


def _one_gpu_each(trainer: TrainerConfig) -> bool:
    """Whether several processes of a machine see one GPU each, as ``srun --gpus-per-task=1`` arranges it."""
    bound = SUPERVISOR not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ  # which show all to each
    return bound and local_processes(trainer) > 1 and torch.cuda.device_count() == 1


def check_gpus(trainer: TrainerConfig) -> None:
    """Refuse what this machine has no GPUs for.

    Raises:
        ConfigError: a process would have none.
    """
    last = max(device_index(trainer, local) for local in range(local_processes(trainer)))
    if last >= torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={trainer.devices} asks for GPU {last} (counted from 0), and torch sees "
            f"{torch.cuda.device_count()} here. Use fewer trainer.devices, or show each process more of them "
            f"(CUDA_VISIBLE_DEVICES, srun --gpus-per-node)"
        )


def check_start(trainer: TrainerConfig, *, cores: int) -> None:
    """Refuse, before processes are started, more of them than this machine can serve.

    Args:
        trainer: what is asked for.
        cores: of this machine.

    Raises:
        ConfigError: there are not as many GPUs, or far fewer cores.
    """
    if trainer.accelerator != "cpu" and torch.cuda.is_available():
        check_gpus(trainer)
        return
    if trainer.accelerator in ("gpu", "cuda"):
        raise ConfigError(
            "trainer asks for GPUs, but torch sees none. On the CPU: trainer.accelerator=cpu trainer.devices=2"
        )
    count, most = local_processes(trainer), max(4, _PER_CORE * cores)
    if count > most:
        raise ConfigError(
            f"trainer.devices={trainer.devices} asks for {count} processes on the CPU (cores here: {cores}). Use at "
            f"most {most}; one process uses all cores by itself"
        )


def device_index(trainer: TrainerConfig, local: int) -> int:
    """The GPU of a process: of the listed ones, or of all. Where it sees one alone, its own, that one."""
    if _apart:
        return 0
    listed = trainer.devices
    if isinstance(listed, str) and "," in listed:
        listed = [int(part) for part in listed.split(",") if part.strip()]
    return local if isinstance(listed, (int, str)) else listed[local]


def environment() -> list[Any]:
    """Lightning's plugins: it takes ranks from the variables that ``joined`` has set, and starts no process itself.

    With a single process, too: Lightning would find Slurm by itself, and refuse several tasks or heed its signals.
    """
    return [LightningEnvironment()]


def _set_rank(value: int) -> None:
    lightning_fabric.utilities.rank_zero.rank_zero_only.rank = value  # type: ignore[attr-defined]
    pytorch_lightning.utilities.rank_zero.rank_zero_only.rank = value  # type: ignore[attr-defined]


def _end_with_supervisor() -> None:
    """No process outlives the one that has started it, however that ended."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(0.5)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


_BROKEN = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|remote process exited|by peer|NCCL"
    r"|failed to (recv|send)|recvValue failed",
    re.IGNORECASE,
)


def lost(error: BaseException) -> bool:
    """Whether an error only says that another process of this run has ended."""
    if isinstance(error, dist.DistError):
        return True
    return world() > 1 and isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))


# --- starting and watching them ---------------------------------------------------------------------------------------


def supervise(command: Sequence[str], trainer: TrainerConfig, *, directory: Path) -> None:
    """Start the processes of this machine and wait for their end. Where one fails or is killed, the others are ended.

    Args:
        command: of each process.
        trainer: says how many.
        directory: where they run.

    Raises:
        ConfigError: there are other machines, and it is not known where the first is.
        SystemExit: one failed, with its exit code; what it said stands above.
        KeyboardInterrupt: this process was interrupted, or told to end. The others have ended by then.
    """
    count, node = local_processes(trainer), int(os.environ.get("NODE_RANK", 0))
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT")
    if trainer.num_nodes > 1 and (port is None or "MASTER_ADDR" not in os.environ or "NODE_RANK" not in os.environ):
        slurm = "this is not a step of srun. Write srun before the command, or " if "SLURM_JOB_ID" in os.environ else ""
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: {slurm}start every machine's part with srun or torchrun, or set "
            f"MASTER_ADDR and MASTER_PORT (the first machine, a free port on it) and NODE_RANK (0, 1, ...) on each"
        )
    shared = {
        "WORLD_SIZE": count * trainer.num_nodes, "LOCAL_WORLD_SIZE": count, "NODE_RANK": node, "MASTER_ADDR": address,
        "MASTER_PORT": port or find_free_network_port(), SUPERVISOR: os.getpid(),
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        for local in range(count):
            own = {"RANK": node * count + local, "LOCAL_RANK": local}
            variables = os.environ | {key: str(value) for key, value in (shared | own).items()}
            # a process group of its own: an interrupt from the keyboard, or its end, reaches it once, from here
            running.append(subprocess.Popen(command, env=variables, cwd=directory, process_group=0))
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                time.sleep(1)  # for those that notice it themselves, or of which this is the consequence
                break
            time.sleep(0.05)
        codes = [process.poll() for process in running]
    except KeyboardInterrupt as stop:
        _end(running, wait=_FAREWELL, number=signals.number_of(stop))
        raise
    finally:
        _end(running, wait=_GRACE)
    _report(codes, running)


def _end(running: Sequence[subprocess.Popen[bytes]], *, wait: float, number: int = signal.SIGINT) -> None:
    """Interrupt processes, so that they leave things in order; kill those that do not heed it."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)
    end = time.monotonic() + wait
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _report(codes: Sequence[int | None], running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Exit as the process did that failed; those that have only missed it do not count.

    Args:
        codes: of the processes that ended by themselves; None for the others.
        running: all of them.
    """
    failed = [(number, code) for number, code in enumerate(codes) if code]
    if not failed:
        return
    number, code = next(((number, code) for number, code in failed if code != LOST), failed[0])
    by = signals.ended_by(code)
    if by is None:
        raise SystemExit(code)
    log.error(
        "process %d of %d (%d) was ended by %s; the others have been ended too. What is finished is kept: the same "
        "command goes on from there",
        number + 1, len(running), running[number].pid, by.name,
    )  # fmt: skip
    raise SystemExit(1)
