"""redis with a replica and a sentinel, each on its own node. The leader is cut off; the replica takes its place."""

import subprocess

import pytest

from skblab import Lab
from skblab.testing import LabInTest

LEADER, REPLICA = "192.168.10.2", "192.168.10.3"
REDIS = "exec redis-server --save '' --protected-mode no --hz 1 --repl-diskless-sync-delay 0"
SENTINEL = f"""
    cat >/tmp/sentinel.conf <<-END
	port 26379
	sentinel monitor main {LEADER} 6379 1
	sentinel down-after-milliseconds main 3000
	END
    exec redis-server /tmp/sentinel.conf --sentinel
"""
# Once a second it asks the sentinel who leads, and has that one count; it prints the time, the leader, and the count.
CLIENT = """
    for _ in {1..12}; do
        read -r now _ </proc/uptime
        set -- $(redis-cli -h sentinel -p 26379 sentinel get-master-addr-by-name main)
        echo "$now $1 $(timeout 1 redis-cli -h $1 incr n)"
        sleep 1
    done
"""

pytestmark = pytest.mark.skblab(
    time="virtual",
    memory_mib=128,
    nodes=["leader", "replica", "sentinel"],
    serve=[f"leader:{REDIS}", f"replica:{REDIS} --replicaof {LEADER} 6379", f"sentinel:{SENTINEL}"],
)


def cut_off(lab: Lab) -> list[str]:
    """Cut the leader off 5.5 s after boot; return what the client says, and what the old leader is at last."""
    client = lab.popen(["bash", "-c", CLIENT], stdout=subprocess.PIPE)
    lab.clock.run_until("5.5s")
    with lab.rule(f"ip_rcv = drop if src host {LEADER}"):
        said = client.communicate()[0].decode().splitlines()
    lab.clock.advance("15s")
    role = lab.run(["redis-cli", "-h", "leader", "role"]).stdout.split()
    return [*said, f"{lab.clock.now:.9f} {role[:2]}"]


def test_the_replica_takes_the_leaders_place(lab: LabInTest, shared_lab: LabInTest) -> None:
    """The leader is not heard from 5.5 s on. | Six silent seconds; no count is lost. | `TcpRetransSegs` at the leader.

    Another lab of the same description does the same, to the nanosecond.
    """
    *said, at_last = story = cut_off(lab)
    answers = [line.split()[1:] for line in said if len(line.split()) == 3]
    assert [int(count) for _, count in answers] == [*range(1, len(answers) + 1)]  # no count is lost
    leaders = [leader for leader, _ in answers]
    assert leaders == [LEADER] * 5 + [REPLICA] * (len(answers) - 5)
    assert leaders[-1] == REPLICA
    assert at_last.endswith(f"['slave', '{REPLICA}']")  # once it is heard again
    assert lab.counters_of("leader")["TcpRetransSegs"] > 0
    assert cut_off(shared_lab) == story
