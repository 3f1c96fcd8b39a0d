"""What CPUs without AVX-512 run, on any: the dot interaction in AVX2's registers, against NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from lookback.kernels import build, loader

SOURCES = Path(build.__file__).parent
CHECK = """
import sys
import numpy as np, tensorflow as tf
ours = tf.load_op_library(sys.argv[1])
for batch, features, width in ((3, 2, 16), (5, 4, 32), (2, 5, 48), (2, 27, 128)):
    random = np.random.default_rng(features)
    vectors = random.normal(size=(features, batch, width)).astype(np.float32)
    pairs = [(i, j) for i in range(features) for j in range(i)]
    found = ours.lookback_dot_interaction(inputs=list(vectors))
    products = [(vectors[i] * vectors[j]).sum(1) for i, j in pairs]
    expected = np.concatenate([vectors[0], np.stack(products, 1)], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    upstream = random.normal(size=expected.shape).astype(np.float32)
    gradients = np.zeros_like(vectors)
    gradients[0] = upstream[:, :width]
    for (i, j), of_pair in zip(pairs, upstream[:, width:].T, strict=True):
        gradients[i] += of_pair[:, np.newaxis] * vectors[j]
        gradients[j] += of_pair[:, np.newaxis] * vectors[i]
    found = ours.lookback_dot_interaction_grad(upstream=upstream, inputs=list(vectors))
    np.testing.assert_allclose(np.stack(found), gradients, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.slow  # it compiles
@pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
def test_the_dot_interaction_in_registers_of_avx2(tmp_path):
    library = tmp_path / "narrow.so"
    flags = ["-O3", "-fPIC", "-shared", "-DLOOKBACK_WITHOUT_AVX512", "-I", str(SOURCES)]
    flags += tf.sysconfig.get_compile_flags()
    flags += [str(SOURCES / name) for name in ("dot_interaction.cc", "pair_products.cc")]
    flags += [*tf.sysconfig.get_link_flags(), "-o", str(library)]
    subprocess.run([build.find_compiler(None), *flags], check=True, capture_output=True)
    answer = subprocess.run(
        [sys.executable, "-c", CHECK, str(library)], capture_output=True, text=True, check=False
    )
    assert answer.stdout == "equal\n", answer.stderr
