"""What cells cost: the parts of one, what a pool adds to each, and from these what a million cost.

python bench/cost_of_cells.py [CELLS]          prints the tables of docs/explanation/scale.md
"""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from skblab.host import process
from skblab.image.recipe import DEFAULT_SERIES
from skblab.image.store import find_image
from skblab.session import Session
from skblab.spec import LabSpec
from skblab.sweep import cluster
from skblab.sweep.cell import CellOutcome, Scenario
from skblab.sweep.pool import Job, Local, Pool, Rules

SERIES = (DEFAULT_SERIES, "7.3")
TICKS = os.sysconf("SC_CLK_TCK")
RUNS = 7
FIRST, TIMED = 8, 60  # cells
MILLION = 1_000_000
MACHINES = (1, 10, 100)
PROCESSORS = 2  # of each
NETWORK_BYTES_S = 125e6  # 1 Gbit/s
BATCHES = (1, 4, 16)
SERVER = "python3 -m http.server 80"
CELLS = (
    ("`ping -c1`", (), ("ping", "-n", "-c1", "guest")),
    ("`http.server` and `curl`", (SERVER,), ("curl", "-sf", "http://guest/etc/services")),
)


def empty(_: Scenario, rules: Rules) -> CellOutcome:
    """Cost nothing."""
    return CellOutcome(stdout=" ".join(rules))


def used_s(pid: int) -> float:
    """Return the processor time of a kernel and of its programs that have not ended, or that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS + sum(used_s(int(child)) for child in children)


def of_a_cell(series: str, commands: tuple[str, ...], client: tuple[str, ...]) -> tuple[float, float, float, float]:
    """Return how long it takes until the servers listen; and of a cell then, until it begins, its run, and its end.

    On the clock, with everything on one processor.
    """
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(processors)])
    cells = []
    began_s = time.perf_counter()
    try:
        with LabSpec(image=find_image(series), time="virtual", commands=commands).start() as stem:
            ready_s = time.perf_counter()
            for _ in range(1 + RUNS):
                moments = [time.perf_counter()]
                with stem.branch() as lab:
                    moments.append(time.perf_counter())
                    with Session(lab, ["ip_rcv = trace"]) as session:
                        session.run(client, capture=True)
                    moments.append(time.perf_counter())
                moments.append(time.perf_counter())
                cells.append([after - before for before, after in itertools.pairwise(moments)])
    finally:
        os.sched_setaffinity(0, processors)
    begin_s, run_s, end_s = (median(part) for part in zip(*cells[1:], strict=True))
    return ready_s - began_s, begin_s, run_s, end_s


@dataclass(frozen=True)
class Added:
    """What a pool adds to an empty cell: seconds on the clock, and processor time of the client and the scheduler."""

    wall_s: float
    client_s: float
    scheduler_s: float = 0.0

    @property
    def most_a_second(self) -> float:
        """At how many cells a second the busiest of them is full."""
        return 1 / max(self.client_s, self.scheduler_s)


def pace_of(series: str, commands: tuple[str, ...], client: tuple[str, ...]) -> float:
    """Return how many cells a second this machine does on the clock, once the pool's processes have their stems."""
    scenario = Scenario(spec=LabSpec(image=find_image(series), time="virtual", commands=commands), client=client)
    running = Local(PROCESSORS)([Job(scenario, (), number) for number in range(FIRST + TIMED)])
    for _ in range(FIRST):
        next(running)
    began_s = time.perf_counter()
    return sum(1 for _ in running) / (time.perf_counter() - began_s)


def of_a_pool(pool: Pool, cells: int, scheduler: int = 0) -> Added:
    """Return what an empty cell takes in a pool, once its processes run."""
    scenario = Scenario(spec=LabSpec(image=find_image(), time="virtual"), client=("client",))
    running = pool([Job(scenario, (), number) for number in range(cells)])
    next(running)
    began_s, client_s, scheduler_s = time.perf_counter(), time.process_time(), used_s(scheduler) if scheduler else 0.0
    done = sum(1 for _ in running)
    return Added(
        (time.perf_counter() - began_s) / done,
        (time.process_time() - client_s) / done,
        (used_s(scheduler) - scheduler_s) / done if scheduler else 0.0,
    )


@contextlib.contextmanager
def cluster_of(workers: int) -> Iterator[tuple[str, int]]:
    """Start a scheduler and workers; yield its address and process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    running: list[process.Process] = []

    def start(what: str, *options: str) -> process.Process:
        words = ["-m", f"distributed.cli.dask_{what}", *options, "--no-dashboard", "--host", "127.0.0.1"]
        running.append(
            process.start(
                [sys.executable, *words], cwd=Path(directory), env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return running[-1]

    with tempfile.TemporaryDirectory() as directory:
        try:
            scheduler = start("scheduler", "--port", "0")
            assert scheduler.stderr
            address = next(line for line in map(bytes.decode, scheduler.stderr) if "Scheduler at:" in line).split()[-1]
            for _ in range(workers):
                worker = start("worker", address, "--nthreads", "1", "--no-nanny")
                assert worker.stderr
                next(line for line in worker.stderr if b"Registered to:" in line)
            yield address, scheduler.pid
        finally:
            for one in reversed(running):
                process.end(one)


def hours(seconds: float) -> str:
    """Return a time in words."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def main(cells: int) -> None:
    """Print the tables."""
    whole: dict[str, float] = {}
    print("| on one processor | Linux | until the server listens, once | a cell's begin | run | end | cells a second |")
    print("|---|---|---|---|---|---|---|")
    for (name, commands, client), series in itertools.product(CELLS, SERIES):
        in_ms = " | ".join(f"{second * 1e3:.0f} ms" for second in of_a_cell(series, commands, client))
        pace = pace_of(series, commands, client)
        whole.setdefault(name, PROCESSORS / pace)
        print(f"| {name} | {series} | {in_ms} | {pace:.3g} |", flush=True)

    print("\n| an empty cell adds | on the clock | the client's processor | the scheduler's | most cells a second |")
    print("|---|---|---|---|---|")
    added = {"two processes": of_a_pool(Local(PROCESSORS, empty), cells)}
    with cluster_of(PROCESSORS) as (address, scheduler):
        for batch in BATCHES:
            pool = cluster.Dask(address, empty, batch)
            added[f"Dask, {batch} in a batch"] = of_a_pool(pool, cells, scheduler)
    for name, one in added.items():
        times = (one.wall_s, one.client_s, one.scheduler_s)
        in_ms = " | ".join(f"{second * 1e3:.2f} ms" for second in times)
        print(f"| {name} | {in_ms} | {one.most_a_second:.0f} |", flush=True)

    began_s = time.process_time()
    size = len(cluster.packed(find_image()))
    pack_s, ship_s = time.process_time() - began_s, size / NETWORK_BYTES_S
    print(
        f"\nAn image is {size / 1e6:.0f} MB; to pack it takes {pack_s:.1f} s, and to ship it {ship_s:.1f} s a machine."
    )

    print(f"\n| a million cells, Linux {SERIES[0]}, on | {' | '.join(f'{count} machines' for count in MACHINES)} |")
    print(f"|---|{'---|' * len(MACHINES)}")
    for name, cost_s in whole.items():
        for batch in (BATCHES[0], BATCHES[-1]):
            one = added[f"Dask, {batch} in a batch"]
            took = [
                pack_s + count * ship_s + MILLION / min(count * PROCESSORS / cost_s, one.most_a_second)
                for count in MACHINES
            ]
            print(f"| {name}, {batch} in a batch | {' | '.join(map(hours, took))} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20_000)
