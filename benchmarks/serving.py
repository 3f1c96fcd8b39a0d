"""How long clients wait for a server, one to sixteen of them, and for what one would write first.

All score the same requests with the same bundle (that their answers are the same is checked), one
contender after another: in a process (the naive path of `serving_core`, and `Bundle.score`), our
server, ours within Triton, and a bundle behind PyTriton's `bind()`. Clients are one other process
on the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.child import Child, python_child
from lookback.benchmarks.serving_core import WORKER, sim_dataset

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How long does a client wait for a server, and what becomes of three times too many?"

ENGINES = ("local", "triton", "bind")

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = _ROOT / ".venv" / "src"  # where `lookback` is found
_CLIENT = Path(__file__).resolve().parent / "serving_client.py"
_BIND_WORKER = Path(__file__).resolve().parent / "serving_bind_worker.py"
_QUANTILES = (0.5, 0.9, 0.99)
_SAME = 2e-5  # of logits: float32 sums of 1,000 events in other orders
_OVERLOAD = 3.0  # times the capacity
_MANY_CLIENTS = 64  # so that one is free whenever a request is due
_NEWER = 2_000_000_000  # seconds: later than any event of the dataset
_TARGETS = "p99 25 ms at 50 requests/s, 20 x naive; at 3 x the capacity 2 x the unloaded p99"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--clients", type=int, nargs="+", help="(1 2 4 8 16; quick 1 16)")
    parser.add_argument("--candidates", type=int, default=256, help="of a request")
    parser.add_argument("--history", type=int, default=1000, help="its events")
    parser.add_argument("--rate", type=float, default=50.0, help="requests/s at even intervals")
    parser.add_argument("--seconds", type=float, help="of each measurement (10; quick 2)")
    parser.add_argument("--calls", type=int, help="in a process (300; quick 60)")
    parser.add_argument("--turns", type=int, help="of a lone client and too many (5; quick 2)")
    parser.add_argument("--naive_seconds", type=float, default=5.0, help="of it, at most")
    parser.add_argument(
        "--memory_requests", type=int, help="after which memory is compared (20,000; quick 1,000)"
    )
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, help="that serve; those that are installed"
    )
    parser.add_argument("--cache_dir", type=Path, help="for generated data")


@dataclasses.dataclass(frozen=True)
class Server:
    """One that runs.

    Attributes:
      process: its first.
      addresses: by protocol.
    """

    process: int
    addresses: Mapping[str, str]

    @property
    def resident(self) -> int:
        """Bytes of memory of all of its processes."""
        import psutil

        first = psutil.Process(self.process)
        return sum(
            process.memory_info().rss for process in (first, *first.children(recursive=True))
        )

    @property
    def cpu(self) -> float:
        """Seconds of a core that all of its processes have taken."""
        import psutil

        first = psutil.Process(self.process)
        times = [p.cpu_times() for p in (first, *first.children(recursive=True))]
        return sum(time.user + time.system for time in times)


class Measured:
    """What was found, row by row."""

    def __init__(self, client: Child, args: argparse.Namespace, place: Path) -> None:
        self._client, self._args, self._place = client, args, place
        self.rows: list[list[object]] = []
        self.figures: dict[str, dict[str, float]] = {}
        self.notes = [f"Targets (history 1,000, 256 candidates, 2 cores): {_TARGETS}."]
        self._logits: Mapping[str, float] | None = None

    def ask(
        self, name: str, server: Server, via: str, requests: str, clients: int, **how: Any
    ) -> dict[str, float]:
        """Has clients ask a server.

        Args:
          name: of what is measured.
          server: that is asked.
          via: protocol.
          requests: "request" or "store": where histories come from.
          clients: at once.
          **how: `rate` and `seconds`, where they are not as ever.

        Raises:
          RuntimeError: if no request is answered, or with another answer than before.
        """
        asked = {"rate": None, "seconds": self._args.seconds, **how}
        before = server.cpu
        found = self._client.ask(
            via=via,
            address=server.addresses[via],
            requests=str(self._place / f"{requests}.jsonl"),
            clients=clients,
            **asked,
        )
        if found["failed"]:
            first = f"{len(found['failed'])} requests failed: {found['failed'][0]:.300}"
            self.notes.append(f"{name}: {first}")
        if not found["seconds"]:
            raise RuntimeError(f"{name}: none of the requests was answered. {self.notes[-1]}")
        logits = {row["item_id"]: row["logit"] for row in found["first"]["candidates"]}
        self._logits = self._logits or logits
        if any(abs(logits[item] - own) > _SAME for item, own in self._logits.items()):
            raise RuntimeError(f"{name} scores {logits}, where others gave {self._logits}")
        figures = self.add(
            name, found["seconds"], found["elapsed"], found["refused"], found["late"]
        )
        figures["server_cores"] = (server.cpu - before) / found["elapsed"]
        figures["client_cores"] = found["cpu"] / found["elapsed"]
        return figures

    def add(
        self,
        name: str,
        seconds: Sequence[float],
        elapsed: float,
        refused: int = 0,
        late: Sequence[float] = (0.0,),
    ) -> dict[str, float]:
        """Adds a row, of calls' seconds; returns its figures."""
        import numpy as np

        figures = {
            "requests_per_s": len(seconds) / elapsed,
            **{f"p{100 * q:.0f}_ms": 1000 * float(np.quantile(seconds, q)) for q in _QUANTILES},
            "refused": refused / (refused + len(seconds)),
            "client_late_p99_ms": 1000 * float(np.quantile(late, 0.99)),
        }
        self.figures[name] = figures
        rate, *quantiles = list(figures.values())[:4]
        share = f"{100 * figures['refused']:.0f} %" if refused else ""
        self.rows.append([name, rate, *quantiles, share])
        return figures


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Starts servers, one after another, and has clients ask them.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.harness import BenchmarkReport

    args.seconds = args.seconds or (2.0 if args.quick else 10.0)
    args.turns = args.turns or (2 if args.quick else 5)
    args.clients = args.clients or ([1, 16] if args.quick else [1, 2, 4, 8, 16])
    args.memory_requests = args.memory_requests or (1000 if args.quick else 20_000)
    has_triton = all(importlib.util.find_spec(n) for n in ("pytriton", "tritonclient"))
    engines = args.engines or (ENGINES if has_triton else ENGINES[:1])
    dataset = sim_dataset(args)
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lookback-serving-")))
        client = stack.enter_context(python_child(_CLIENT, _ROOT))
        measured = Measured(client, args, place)
        _in_process(args, dataset, place, measured)
        _fill_store(dataset, place)
        for engine in engines:
            if engine == "bind":
                with _bound(place) as server:
                    _closed_loops("PyTriton bind(), {}, {}", server, ["request"], measured, args)
                continue
            with _served(engine, place) as server:
                title = f"{engine}, {{}}, {{}}"
                _closed_loops(title, server, ["request", "store"], measured, args)
                measured.notes.append(_memory(engine, server, measured, args))
                measured.notes.append(_overload(engine, server, measured, args))
    naive = measured.figures["in process, naive"]["requests_per_s"]
    return BenchmarkReport(
        title="SIM, raw ids in and scores out",
        columns=("by", "requests/s", *(f"p{100 * q:.0f} ms" for q in _QUANTILES), "refused"),
        rows=measured.rows,
        config={name: str(value) for name, value in vars(args).items()},
        figures=measured.figures,
        ratios={
            f"{name}_over_naive": found["requests_per_s"] / naive
            for name, found in measured.figures.items()
        },
        notes=measured.notes,
    )


def _in_process(args: argparse.Namespace, dataset: Path, place: Path, measured: Measured) -> None:
    """Exports the bundle, writes the requests, and scores without a server."""
    options = ("--dataset", dataset, "--bundle", place / "bundle", "--history", args.history)
    with python_child(WORKER, _SOURCES, *options) as worker:
        requests = worker.ask(how="requests", candidates=args.candidates)["requests"]
        stored = [{"user": r["user_id"], "candidates": r["candidates"]} for r in requests]
        for name, some in (("request", requests), ("store", stored)):
            lines = "".join(json.dumps(request) + "\n" for request in some)
            (place / f"{name}.jsonl").write_text(lines)
        for title, how, limit in (
            ("in process, Bundle.score", "score", None),
            ("in process, naive", "naive", args.naive_seconds),
        ):
            found = worker.ask(
                how=how,
                candidates=args.candidates,
                calls=args.calls or (60 if args.quick else 300),
                seconds=limit,
                warmup=3,
            )
            measured.add(title, found["seconds"], sum(found["seconds"]))


def _fill_store(dataset: Path, place: Path) -> None:
    """A store whose newest events of the requests' users are the requests' histories."""
    from lookback.serving.commands import PROGRAM

    events = []
    for line in (place / "request.jsonl").read_text().splitlines():
        request = json.loads(line)
        history = [
            dict(zip(request["history"], values, strict=True))
            for values in zip(*request["history"].values(), strict=True)
        ]
        events += [
            {
                **event,
                "user": request["user_id"],
                "timestamp": _NEWER + number,
                "event_id": f"{request['user_id']} {number}",
            }
            for number, event in enumerate(history)
        ]
    path = place / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    store = ["--store", str(place / "store")]
    with contextlib.redirect_stdout(sys.stderr):
        for words in (
            ["load-histories", str(dataset), *store, "--bundle", str(place / "bundle")],
            ["append", *store, "--events", str(path), "--batch_events", "4096"],
        ):
            if PROGRAM.main(words):
                raise RuntimeError(f"lookback serving {words[0]} failed; see above")


@contextlib.contextmanager
def _served(engine: str, place: Path, *options: str) -> Iterator[Server]:
    """`lookback serving serve`."""
    words = ["serve", f"sim={place / 'bundle'}", "--engine", engine, "--port", "0", *options]
    words += ["--store", str(place / "store"), "--store_read_only"]
    if engine == "triton":
        words += ["--grpc_port", "0", "--control_port", "0"]
    command = [sys.executable, "-m", "lookback.serving", *words]
    with subprocess.Popen(command, cwd=_SOURCES, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listening = next((line for line in process.stdout if line.startswith("serving at")), "")
            addresses = re.findall(r"(http|grpc)://([\w.:]+)", listening)
            if not addresses:
                raise RuntimeError(f"{engine}: the server ended; see above")
            # The first of a protocol is Triton's own.
            yield Server(process.pid, dict(reversed(addresses)))
        finally:
            process.terminate()


@contextlib.contextmanager
def _bound(place: Path) -> Iterator[Server]:
    """PyTriton, in its own process."""
    from lookback.serving.server.listening import free_port
    from lookback.serving.server.triton.installation import Installation

    ports = {via: free_port("127.0.0.1", 0) for via in ("http", "grpc")}
    options = [word for via, port in ports.items() for word in (f"--{via}", str(port))]
    bundle = ("--bundle", str(place / "bundle"))
    variables = Installation.find().environment()
    with python_child(_BIND_WORKER, _SOURCES, *bundle, *options, variables=variables) as worker:
        yield Server(worker.pid, {via: f"127.0.0.1:{port}" for via, port in ports.items()})


def _closed_loops(
    title: str,
    server: Server,
    sources: Sequence[str],
    measured: Measured,
    args: argparse.Namespace,
) -> None:
    """Clients that ask again as soon as they are answered, and the fixed rate."""
    for via in server.addresses:
        for source in sources:
            name = title.format(via, f"history in the {source}")
            for clients in args.clients:
                measured.ask(f"{name}, {clients} clients", server, via, source, clients)
            rate = f"{name}, {args.rate:g}/s"
            measured.ask(rate, server, via, source, _MANY_CLIENTS, rate=args.rate)


def _overload(engine: str, server: Server, measured: Measured, args: argparse.Namespace) -> str:
    """Offers more than can be scored.

    Unloaded is either a lone client that asks again as soon as it is answered, or many clients that
    ask `--rate` times a second together. Both are measured before each turn.
    """
    name = f"{engine}, http, history in the request"
    capacity = max(measured.figures[f"{name}, {n} clients"]["requests_per_s"] for n in args.clients)
    offered = _OVERLOAD * capacity
    turns = []
    for turn in range(1, args.turns + 1):
        alone = measured.ask(f"{name}, alone, turn {turn}", server, "http", "request", 1)
        few, many = (
            measured.ask(
                f"{name}, {rate:.0f}/s, turn {turn}",
                server,
                "http",
                "request",
                _MANY_CLIENTS,
                rate=rate,
            )
            for rate in (args.rate, offered)
        )
        turns.append((many["p99_ms"] / alone["p99_ms"], many["p99_ms"] / few["p99_ms"], many))
    to_alone, to_few = (", ".join(f"{turn[n]:.1f}" for turn in turns) for n in (0, 1))

    def middle(figure: str) -> float:
        return statistics.median(many[figure] for *_, many in turns)

    return (
        f"{engine} at {_OVERLOAD:g} x its capacity, {offered:.0f}/s: {100 * middle('refused'):.0f} "
        f"% refused; p99 of the others, as a multiple of a lone client's just before: {to_alone}; "
        f"of that at {args.rate:g}/s: {to_few}. The server took {middle('server_cores'):.2f} "
        f"cores, the clients {middle('client_cores'):.2f}"
    )


def _memory(engine: str, server: Server, measured: Measured, args: argparse.Namespace) -> str:
    """Compares the memory before and after many requests; those so far have warmed it up."""
    clients, before = 4, server.resident
    name = f"{engine}, http, history in the request"
    rate = max(measured.figures[f"{name}, {n} clients"]["requests_per_s"] for n in args.clients)
    title = f"{engine}, http, memory"
    found = measured.ask(
        title, server, "http", "request", clients, seconds=args.memory_requests / rate
    )
    after = server.resident
    measured.figures[title] |= {"before_bytes": before, "after_bytes": after}
    count = found["requests_per_s"] * args.memory_requests / rate
    return (
        f"{engine}, memory of its processes: {before / 2**20:,.0f} MiB, "
        f"{after / 2**20:,.0f} MiB {count:,.0f} requests later"
    )
