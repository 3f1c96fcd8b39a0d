"""Where nodes would run, with made-up kernels and arithmetic.

And, where there is TensorFlow's build for GPUs, that a step of SIM has the host wait for nothing.
"""

from __future__ import annotations

import json
import subprocess
import types

import pytest
import tensorflow as tf

from lookback.benchmarks import gpu_placement_graph
from lookback.benchmarks.gpu_placement import _WORKER, ENVIRONMENT
from lookback.benchmarks.gpu_placement_graph import place
from lookback.benchmarks.peers.client import ENVIRONMENTS, ROOT, SOURCES


def kernel(*dtypes: tf.DType, attribute: str = "T", host: tuple[str, ...] = ()):
    values = types.SimpleNamespace(
        list=types.SimpleNamespace(type=[d.as_datatype_enum for d in dtypes])
    )
    constraint = types.SimpleNamespace(name=attribute, allowed_values=values)
    return types.SimpleNamespace(
        constraint=[constraint] if dtypes else [], host_memory_arg=host, label=""
    )


KERNELS = {
    "AddV2": [kernel(tf.float32, tf.int64), kernel(tf.int32, host=("x", "y", "z"))],
    "Cast": [kernel()],
    "Sum": [kernel(tf.float32, host=("reduction_indices",))],
    "Const": [kernel()],
    "Identity": [kernel()],
}


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(gpu_placement_graph, "_kernels", lambda kind: KERNELS.get(kind, []))


def traced(function, *specs):
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def test_int32_is_added_on_the_host_and_copied_there_and_back(kernels):
    # An argument of int32 is on the host; so are the sum's kernel and its result.
    function = traced(
        lambda a: tf.cast(tf.cast(a, tf.int32) + 1, tf.float32),
        tf.TensorSpec([5, 3], tf.float32),
    )
    found = place(function.graph, batch=7)
    assert [(c.operation, c.to_device, c.bytes) for c in found.crossings] == [
        ("Cast", False, 5 * 3 * 4),
        ("AddV2", True, 5 * 3 * 4),
    ]
    assert found.crossed_bytes == 120
    assert found.waits == 1
    assert found.launches == 2  # the casts
    assert found.on_host == {"AddV2(int32)": 1}


def test_int64_stays_on_the_device(kernels):
    function = traced(
        lambda a: tf.cast(tf.cast(a, tf.int64) + 1, tf.float32),
        tf.TensorSpec([5, 3], tf.float32),
    )
    found = place(function.graph, batch=7)
    assert (found.crossed_bytes, found.waits, found.launches) == (0, 0, 3)


def test_what_has_no_kernel_runs_on_the_host(kernels):
    function = traced(lambda a: tf.sin(a) + 1.0, tf.TensorSpec([None, 3], tf.float32))
    found = place(function.graph, batch=7)  # an unknown dimension is the batch's
    assert found.without == {"Sin(float32)": 1}
    assert [(c.to_device, c.bytes) for c in found.crossings] == [(False, 84), (True, 84)]


def test_what_is_fed_comes_from_the_host_and_constants_do_not(kernels):
    function = traced(lambda a: a + tf.constant([1.0, 2.0]), tf.TensorSpec([2], tf.float32))
    (argument,) = (t.op.name for t in function.graph.inputs)
    assert place(function.graph, 7).crossed_bytes == 0
    found = place(function.graph, 7, fed=[argument])
    assert [(c.operation, c.to_device, c.bytes) for c in found.crossings] == [
        ("Placeholder", True, 8)
    ]


def test_a_node_that_is_put_on_the_host_is_there(kernels):
    def on_host(a):
        with tf.device("CPU:0"):
            b = a + 1.0
        return b + 1.0

    found = place(traced(on_host, tf.TensorSpec([2], tf.float32)).graph, 7)
    assert [(c.to_device, c.bytes) for c in found.crossings] == [(False, 8), (True, 8)]
    assert not found.without  # it was asked for


@pytest.mark.slow
@pytest.mark.skipif(
    not (ENVIRONMENTS / ENVIRONMENT / ".lookback-ready").exists(),
    reason="benchmarks/peers/setup.sh gpu_placement sets up TensorFlow's build for GPUs (1 GB)",
)
def test_a_step_of_sim_on_a_gpu_waits_for_nothing_and_gets_the_samples_numbers_alone(
    make_histories, write_dataset, tmp_path
):
    dataset = write_dataset(make_histories([30] * 60, items=80), tmp_path / "dataset")
    python, output, batch = ENVIRONMENTS / ENVIRONMENT / "bin" / "python", tmp_path / "o.json", 64
    done = subprocess.run(
        [python, "-m", _WORKER, "sim", dataset, str(batch), output],
        cwd=ROOT,
        env={"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    for graph in ("training", "scoring"):
        assert found[graph]["waits"] == 0, found[graph]["crossings"]
        # A number of 8 bytes for each sample, and some scalars.
        assert found[graph]["crossed_bytes"] <= 8 * batch + 64, found[graph]["crossings"]
        assert not found[graph]["without_kernel"]
