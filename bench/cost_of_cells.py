"""What a cell costs: the processor time of its parts, and what a pool adds to each cell.

python bench/cost_of_cells.py [CELLS]
"""

import os
import sys
import time
from pathlib import Path
from statistics import median

from skblab.image.store import find_image
from skblab.session import Session
from skblab.spec import LabSpec
from skblab.sweep import cluster
from skblab.sweep.cell import CellOutcome, Scenario
from skblab.sweep.pool import Job, Local, Pool, Rules

TICKS = os.sysconf("SC_CLK_TCK")
RUNS = 7
SERVER = "python3 -m http.server 80"
CELLS = (
    ("ping", (), ("ping", "-n", "-c1", "guest")),
    ("http", (SERVER,), ("curl", "-sf", "http://guest/etc/services")),
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


def of_a_cell(commands: tuple[str, ...], client: tuple[str, ...]) -> tuple[float, float, float]:
    """Return the processor time of this process, of the guest until it is ready, and of the guest afterwards."""
    began_s = time.process_time()
    with LabSpec(image=find_image(), time="virtual", commands=commands).start() as lab:
        ready_s = used_s(lab.guest.pid)
        with Session(lab, ["ip_rcv = trace"]) as session:
            session.run(client, capture=True)
        ended_s = used_s(lab.guest.pid)
    return time.process_time() - began_s, ready_s, ended_s - ready_s


def of_a_pool(pool: Pool, cells: int) -> float:
    """Return how long an empty cell takes in a pool, once its processes run."""
    scenario = Scenario(spec=LabSpec(image=find_image(), time="virtual"), client=("client",))
    running = pool([Job(scenario, (), number) for number in range(cells)])
    next(running)
    began_s = time.perf_counter()
    done = sum(1 for _ in running)
    return (time.perf_counter() - began_s) / done


def main(cells: int) -> None:
    """Print the table."""
    for name, commands, client in CELLS:
        python, ready, run = (
            median(part) for part in zip(*(of_a_cell(commands, client) for _ in range(RUNS)), strict=True)
        )
        print(f"{name}: Python {python * 1e3:.0f} ms, guest until it is ready {ready * 1e3:.0f} ms")
        print(f"  then {run * 1e3:.0f} ms; on two processors: {2 / (python + ready + run):.1f} cells a second")
    print(f"an empty cell: {of_a_pool(Local(2, empty), cells) * 1e6:.0f} us in two processes of ours")
    from distributed import LocalCluster  # noqa: PLC0415 - an extra

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as there:
        each_s = of_a_pool(cluster.Dask(there.scheduler_address, empty), cells)
    print(f"an empty cell: {each_s * 1e6:.0f} us with a Dask scheduler and two workers")
    print(f"an image: {len(cluster.packed(find_image())) >> 20} MiB, once a worker's store")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
