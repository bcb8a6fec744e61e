"""Measures one node of the release profile with h2load; see tests/bench-node."""

import pathlib
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

SECONDS, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
NODE = pathlib.Path("target/dist/tollgate")
CONNECTIONS, STREAMS, MANY = 8, (8, 32), 100
FLOORS = {"memory": 0.65, "redis": 0.4}
POLICY = """
version: 1
domain: bench
units: [tokens]
classes:
  text:
    quotas:
      - { unit: requests, per: minute, limit: 1000000000 }
      - { unit: tokens, per: minute, limit: 1000000000000 }
      - { unit: requests, per: day, limit: 1000000000000 }
resources:
  model: { class: text }
tiers:
  paid: { is_charged: true }
default_tier: paid
"""


def field(number, payload):
    """A length-delimited protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def framed(message):
    """A message with its gRPC prefix."""
    return b"\0" + struct.pack(">I", len(message)) + message


def call(account):
    """A Call of one request and 1,500 tokens."""
    usage = field(1, b"tokens") + bytes([2 << 3]) + b"\xdc\x0b"
    return field(1, b"bench") + field(2, field(3, account.encode())) + field(3, b"model") + field(4, usage)


def consume(account):
    """A ConsumeRequest."""
    return framed(field(1, call(account)))


def batch(account):
    """A ConsumeBatchRequest of MANY calls."""
    return framed(field(1, call(account)) * MANY)


def stream(account):
    """A whole ConsumeStream of MANY calls, all with the id 7."""
    return framed(bytes([1 << 3, 7]) + field(2, call(account))) * MANY


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def load(address, path, bodies, streams, folder):
    """Runs h2load once for each body, all at once, sharing the connections: calls a second, p50 and p99 in ms."""
    runs = []
    for number, body in enumerate(bodies):
        data, log = folder / f"body{number}", folder / f"log{number}"
        data.write_bytes(body)
        log.unlink(missing_ok=True)
        command = ["h2load", "--duration", str(SECONDS), "--warm-up-time", "1", "-t", "1"]
        command += ["-c", str(CONNECTIONS // len(bodies)), "-m", str(streams), "-d", str(data), "--log-file", str(log)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{path}"]
        runs.append((subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), log))
    rate, times = 0.0, []
    for run, log in runs:
        said = run.communicate()[0]
        counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", said)
        if run.returncode or not counts or int(counts[1]) == 0 or int(counts[2]) + int(counts[3]):
            sys.exit(f"calls failed:\n{said}")
        rate += float(re.search(r"finished in [^,]+, ([\d.]+) req/s", said)[1])
        times += [int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines()]
    times.sort()
    return rate, times[len(times) // 2], times[len(times) * 99 // 100]


def start_node(folder, arguments):
    # In a folder of its own: the node would be woken by every line that h2load writes beside it, which is not to be measured.
    policy = folder / "policies" / "bench.yaml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text(POLICY)
    # Whole batches at 32 streams are more than a node takes by default, and wait longer; a refusal is no decision.
    command = [NODE, "--policy", policy, "--open-loopback", "--store-max-in-flight", "65536", "--store-deadline-ms", "10000"]
    command += ["--call-timeout-ms", "20000"]
    command += ["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    node = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return node, *re.search(r"REST on (\S+), gRPC on ([\d.:]+)", node.stdout.readline()).groups()


def not_decided(rest):
    """How many calls the store did not decide."""
    metrics = urllib.request.urlopen(f"{rest}/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith("tollgate_store_errors_total"))


def main():
    print(f"calls a second over gRPC, {CONNECTIONS} connections; medians of {ROUNDS} runs of {SECONDS} s,")
    print("interleaved; Consume: three quotas (requests and tokens a minute, requests a day); the times of batches and")
    print("streams are of the whole")
    print()
    print(f"{'store':>7} {'streams':>7} {'call':>21} | {'calls/s':>8} {'p50 ms':>7} {'p99 ms':>7} | {'/Check':>7} {'floor':>6}")
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for store in ("memory", "redis"):
            processes, arguments = [], []
            try:
                if store == "redis":
                    port = free_port()
                    server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", name]
                    processes.append(subprocess.Popen(server, stdout=subprocess.DEVNULL))
                    arguments = ["--redis", f"redis://127.0.0.1:{port}"]
                node, rest, address = start_node(folder, arguments)
                processes.append(node)
                time.sleep(1)
                for streams in STREAMS:
                    missed += measure(store, address, streams, folder)
                if not_decided(rest):
                    sys.exit(f"{not_decided(rest):.0f} calls were answered without a decision")
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
    if missed:
        sys.exit("\nbelow the floor: " + "; ".join(missed))


def measure(store, address, streams, folder):
    """h2load sends one body a run, so many keys take one h2load each, and have a health check of their own."""
    health, service = "/grpc.health.v1.Health/Check", "/tollgate.v1.RateLimitService/"
    nothing = b"\0" * 5
    many = [consume(f"account-{number}") for number in range(CONNECTIONS)]
    calls = {
        "Health/Check": (health, [nothing]),
        "Consume, 1 key": (service + "Consume", [consume("hot")]),
        f"Batches of {MANY}": (service + "ConsumeBatch", [batch("hot")]),
        f"Streams of {MANY}": (service + "ConsumeStream", [stream("hot")]),
        "Health/Check, 8 loads": (health, [nothing] * CONNECTIONS),
        "Consume, 8 keys": (service + "Consume", many),
    }
    runs = {call: [] for call in calls}
    for _ in range(ROUNDS):
        for call, (path, bodies) in calls.items():
            runs[call].append(load(address, path, bodies, streams, folder))
    middle = {call: [statistics.median(column) for column in zip(*results)] for call, results in runs.items()}
    missed, yardstick = [], 0
    for call, (rate, p50, p99) in middle.items():
        if " of " in call:
            rate *= MANY
        if call.startswith("Health"):
            yardstick, floor = rate, ""
        elif " of " in call:
            floor = ""
        else:
            floor = f"{FLOORS[store]:.2f}"
        ratio = rate / yardstick
        print(f"{store:>7} {streams:>7} {call:>21} | {rate:8.0f} {p50:7.2f} {p99:7.2f} | {ratio:7.2f} {floor:>6}", flush=True)
        if floor and ratio < FLOORS[store]:
            missed.append(f"{store}, {streams} streams, {call}: {ratio:.2f} < {floor}")
    return missed


main()
