"""YAMLs of public logs, on a few made-up lines as their publishers write them."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

from lookback import cli
from lookback.serving.bundle import Bundle
from lookback.workflows.cluster import open_runner
from lookback.workflows.commands import PROGRAM
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.datasets.movielens import GENRES_100K
from lookback.workflows.log.document import options_of_log, read_description
from lookback.workflows.log.recipes import RECIPES
from lookback.workflows.text import BadLineCounter
from tests.serving.tabular_data import rows_to_test, small_model

Tables = dict[str, dict[str, list[Any]]]


def _read(name: str, directory: Path) -> tuple[Tables, dict[str, int], list[str]]:
    """Events, items and users by a recipe; what is counted of events; what is said."""
    options = options_of_log(read_description(RECIPES / f"{name}.yaml"))
    own = ("events", "items", "users", "labels", "filters", "sessions", "split")
    reader = LogReader(**{key: options[key] for key in own})
    paths = reader.event_files(directory)
    said = reader.passed_over(directory, paths)
    tables: Tables = {"events": {}}
    counts: dict[str, int] = {}
    for path in paths:
        for block in reader.blocks(path):
            parsed = reader.parse_block(block)
            assert not parsed.reasons, parsed.bad
            counts |= parsed.counts
            for column in parsed.table.column_names:
                values = parsed.table[column].to_pylist()
                tables["events"].setdefault(column, []).extend(values)
    with open_runner(0, scheduler=None, progress=False) as runner:
        known, _ = reader.features(directory, runner, BadLineCounter(0))
    for entry in known:
        assert entry.table is not None
        tables[entry.key.removesuffix("_id") + "s"] = entry.table.to_pydict()
    assert set(reader.feature_specs) <= {column for table in tables.values() for column in table}
    return tables, counts, said


def _at(text: str) -> int:
    return pd.Timestamp(text, tz=None if text[-1] == "Z" else "UTC").value


def test_amazon_2018(tmp_path: Path) -> None:
    review = (
        '{"overall": 5.0, "verified": true, "reviewTime": "09 1, 2016", "reviewerID": "A3CI", '
        '"asin": "0060009810", "style": {"Format:": " Kindle"}, "reviewerName": "B.", '
        '"reviewText": "Good \\"one\\"", "summary": "Five", "unixReviewTime": 1472688000}\n'
        '{"overall": 2.0, "vote": "3", "verified": false, "reviewerID": "A3CI", "asin": "B01", '
        '"unixReviewTime": 1472688001}\n'
    )
    (tmp_path / "Books_5.json.gz").write_bytes(gzip.compress(review.encode()))
    meta = (
        '{"category": ["Books", "History", "Books"], "tech1": "", "title": "T", "brand": "X", '
        '"rank": ["1 in Books"], "main_cat": "Books", "price": "$9.99", "asin": "0060009810"}\n'
        '{"category": [], "brand": "", "main_cat": "Books", "rank": "2", "asin": "B01"}\n'
    )
    (tmp_path / "meta_Books.json.gz").write_bytes(gzip.compress(meta.encode()))
    tables, _, said = _read("amazon-2018", tmp_path)
    assert tables["events"] == {
        "user_id": ["A3CI"] * 2,
        "item_id": ["0060009810", "B01"],
        "timestamp": [1472688000 * 10**9, 1472688001 * 10**9],
        "overall": [5, 2],
        "verified": ["true", "false"],
    }
    assert tables["items"] == {
        "item_id": ["0060009810", "B01"],
        "category": ['["Books","History"]', "[]"],
        "brand": ["X", None],
        "main_cat": ["Books", "Books"],
    }
    assert len(said) == 2 and "reviewText" in said[0] and "rank" in said[1]


def test_amazon_2023(tmp_path: Path) -> None:
    (tmp_path / "All_Beauty.jsonl").write_text(
        '{"rating": 5.0, "title": "t", "text": "x", "images": [], "asin": "B00", "parent_asin": '
        '"B01", "user_id": "AGKH", "timestamp": 1588687728923, "helpful_vote": 2, '
        '"verified_purchase": true}\n'
    )
    (tmp_path / "meta_All_Beauty.jsonl").write_text(
        '{"main_category": "All Beauty", "title": "T", "average_rating": 4.8, "rating_number": 10, '
        '"features": [], "description": [], "price": null, "store": "S", "categories": ["Skin", '
        '"Face"], "details": {"Brand": "Y"}, "parent_asin": "B01", "bought_together": null}\n'
    )
    tables, _, _ = _read("amazon-2023", tmp_path)
    assert tables["events"] == {
        "user_id": ["AGKH"],
        "item_id": ["B01"],
        "timestamp": [1588687728923 * 10**6],
        "rating": [5],
        "verified_purchase": ["true"],
        "helpful_vote": [2.0],
    }
    assert tables["items"] == {
        "item_id": ["B01"],
        "main_category": ["All Beauty"],
        "store": ["S"],
        "categories": ['["Face","Skin"]'],
    }


def test_movielens_100k(shared_data: Callable[[str], Path]) -> None:
    directory = shared_data("ml-100k")
    tables, _, said = _read("movielens-100k", directory)
    columns = ["user", "item", "rating", "time"]
    ratings = pd.read_csv(directory / "u.data", sep="\t", names=columns)
    assert tables["events"]["user_id"] == ratings["user"].tolist()
    assert tables["events"]["item_id"] == ratings["item"].tolist()
    assert tables["events"]["timestamp"] == (ratings["time"] * 10**9).tolist()
    assert tables["events"]["rating"] == ratings["rating"].tolist()
    users = pd.read_csv(directory / "u.user", sep="|", names=["id", "age", "gender", "work", "zip"])
    assert tables["users"] == {
        "user_id": users["id"].tolist(),
        "age": users["age"].tolist(),
        "gender": users["gender"].tolist(),
        "occupation": users["work"].tolist(),
    }
    items = pd.read_csv(directory / "u.item", sep="|", header=None, encoding="latin-1")
    genres = [
        "["
        + ",".join(
            f'"{name}"' for name in sorted(g for g, on in zip(GENRES_100K, row, strict=True) if on)
        )
        + "]"
        for row in items.iloc[:, -len(GENRES_100K) :].to_numpy()
    ]
    assert tables["items"] == {"item_id": items[0].tolist(), "genres": genres}
    assert said == [
        "items: columns that are not read: title, release_date, video_release_date, url",
        "users: columns that are not read: zip",
    ]


def test_movielens_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::3408::4::978300275\n")
    (tmp_path / "movies.dat").write_bytes(
        "1193::Cité, La (1995)::Animation|Children's|Comedy\n3408::X (2000)::Drama\n".encode(
            "latin-1"
        )
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    tables, _, _ = _read("movielens-1m", tmp_path)
    assert tables["events"]["item_id"] == [1193, 3408]
    assert tables["events"]["timestamp"] == [978300760 * 10**9, 978300275 * 10**9]
    assert tables["items"]["genres"] == ['["Animation","Children\'s","Comedy"]', '["Drama"]']
    assert tables["users"] == {
        "user_id": [1, 2],
        "gender": ["F", "M"],
        "age": [1, 56],
        "occupation": [10, 16],
    }


def test_movielens_32m(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,17,4.0,944249077\n1,25,0.5,944250228\n"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n17,"American President, The (1995)",Comedy|Drama\n'
        '25,"""Great"" One",(no genres listed)\n'
    )
    tables, _, said = _read("movielens-32m", tmp_path)
    assert tables["events"]["user_id"] == [1, 1] and tables["events"]["rating"] == ["4.0", "0.5"]
    assert tables["items"]["genres"] == ['["Comedy","Drama"]', '["(no genres listed)"]']
    assert said == ["items: columns that are not read: title"]


def test_taobao(tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_text(
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n"
        "2,2268318,2520377,fav,-2134966400\n"
    )
    tables, counts, _ = _read("taobao", tmp_path)
    assert tables["events"] == {
        "user_id": [1, 1],
        "item_id": [2268318, 2333346],
        "timestamp": [1511544070 * 10**9, 1511561733 * 10**9],
        "behavior": ["pv", "buy"],
    }
    assert counts == {"rows_left_out_by_timestamp": 1}
    assert tables["items"] == {"item_id": [2268318, 2333346], "category": [2520377, 2520771]}


def test_kuairand(tmp_path: Path) -> None:
    log = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
        "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
        "is_profile_enter,is_rand,tab\n"
    )
    row = "0,{},20220408,1500,{},{},0,0,0,0,0,1,{},60000,0,0,0,0,1\n"
    first = log + row.format(7, 1649401200000, 1, 5200) + row.format(8, 1649401201000, 0, 0)
    (tmp_path / "log_standard_4_08_to_4_21_pure.csv").write_text(first)
    second = log + row.format(7, 1651939200000, 1, 10)
    (tmp_path / "log_standard_4_22_to_5_08_pure.csv").write_text(second)
    (tmp_path / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
        "server_width,server_height,music_id,music_type,tag\n"
        '7,101,NORMAL,2022-04-01,ShortImport,1.0,60000.0,720,1280,3,9.0,"12,65"\n'
        "8,102,AD,2022-04-02,Web,1.0,,720,1280,4,9.0,\n"
    )
    (tmp_path / "user_features_pure.csv").write_text(
        "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
        "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
        'friend_user_num_range,register_days,register_days_range\n0,full_active,0,0,1,5,"(0,10]",0,'
        "0,0,0,107,61-90\n"
    )
    tables, _, _ = _read("kuairand", tmp_path)
    assert tables["events"] == {
        "user_id": [0] * 3,
        "item_id": [7, 8, 7],
        "timestamp": [t * 10**6 for t in (1649401200000, 1649401201000, 1651939200000)],
        "label": [1, 0, 1],
        "tab": [1] * 3,
        "long_view": [1] * 3,
        "is_like": [0] * 3,
        "play_time_ms": [5200.0, 0.0, 10.0],
    }
    assert tables["items"]["tag"] == ['["12","65"]', None]
    assert tables["items"]["video_duration"] == [60000.0, None]
    assert tables["users"]["follow_user_num_range"] == ["(0,10]"]


def test_yelp(tmp_path: Path) -> None:
    (tmp_path / "yelp_academic_dataset_review.json").write_text(
        '{"review_id":"KU_","user_id":"mh_","business_id":"XQf","stars":3.0,"useful":0,"funny":0,'
        '"cool":0,"text":"If you\\n","date":"2018-07-07 22:09:11"}\n'
    )
    (tmp_path / "yelp_academic_dataset_business.json").write_text(
        '{"business_id":"XQf","name":"N","address":"1 St","city":"Ely","state":"PA","postal_code":'
        '"1","latitude":39.9,"longitude":-75.1,"stars":4.0,"review_count":8,"is_open":1,'
        '"attributes":{"WiFi":"u\'free\'"},"categories":"Food, Bakeries","hours":null}\n'
        '{"business_id":"MTS","city":"Ely","state":"PA","latitude":39.0,"longitude":-75.0,'
        '"categories":null}\n'
    )
    tables, counts, _ = _read("yelp", tmp_path)
    assert tables["events"]["timestamp"] == [_at("2018-07-07 22:09:11")] and counts == {}
    assert tables["events"]["stars"] == [3]
    assert tables["items"] == {
        "item_id": ["XQf", "MTS"],
        "city": ["Ely", "Ely"],
        "state": ["PA", "PA"],
        "categories": ['["Bakeries","Food"]', None],
        "latitude": [39.9, 39.0],
        "longitude": [-75.1, -75.0],
    }


def test_steam(tmp_path: Path) -> None:
    (tmp_path / "recommendations.csv").write_text(
        "app_id,helpful,funny,date,is_recommended,hours,user_id,review_id\n"
        "975370,0,0,2022-12-12,true,36.3,51580,0\n"
    )
    (tmp_path / "games.csv").write_text(
        "app_id,title,date_release,win,mac,linux,rating,positive_ratio,user_reviews,price_final,"
        "price_original,discount,steam_deck\n"
        '975370,"Dwarf, Fortress",2022-12-06,true,false,true,Positive,95,9,29.99,29.99,0.0,true\n'
    )
    tables, counts, _ = _read("steam", tmp_path)
    assert tables["events"] == {
        "user_id": [51580],
        "item_id": [975370],
        "timestamp": [_at("2022-12-12")],
        "is_recommended": ["true"],
        "hours": [36.3],
    }
    assert counts == {}
    assert tables["items"]["price_original"] == [29.99] and tables["items"]["win"] == ["true"]


def test_lastfm_1k(tmp_path: Path) -> None:
    (tmp_path / "userid-timestamp-artid-artname-traid-traname.tsv").write_text(
        "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFuck Me I'm Famous\n"
        'user_000001\t2009-05-04T13:54:10Z\t\tThe "Q"\t\tComposition 0919 (Live)\n'
    )
    (tmp_path / "userid-profile.tsv").write_text(
        "#id\tgender\tage\tcountry\tregistered\nuser_000001\tm\t\tJapan\tAug 13, 2006\n"
    )
    tables, _, _ = _read("lastfm-1k", tmp_path)
    assert tables["events"] == {
        "user_id": ["user_000001"] * 2,
        "item_id": ["Deep Dish", 'The "Q"'],
        "timestamp": [_at("2009-05-04T23:08:57Z"), _at("2009-05-04T13:54:10Z")],
    }
    assert tables["users"] == {
        "user_id": ["user_000001"],
        "gender": ["m"],
        "age": [None],
        "country": ["Japan"],
    }


@pytest.mark.parametrize("dressed", ["mark", "carriage returns", "no last line end"])
@pytest.mark.parametrize(
    "recipe",
    [
        *(test_amazon_2018, test_amazon_2023, test_movielens_1m, test_movielens_32m, test_taobao),
        *(test_kuairand, test_yelp, test_steam, test_lastfm_1k),
    ],
)
def test_files_that_other_programs_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Callable[[Path], None], dressed: str
) -> None:
    """The tests above, of the same lines as editors and copies leave them."""
    plain, written = Path.write_bytes, []

    def write_bytes(path: Path, content: bytes) -> int:
        packed = path.suffix == ".gz"
        text = gzip.decompress(content) if packed else content
        if dressed == "mark":
            text = codecs.BOM_UTF8 + text
        elif dressed == "carriage returns":
            text = text.replace(b"\n", b"\r\n")
        else:
            text = text.removesuffix(b"\n")
        written.append(path)
        return plain(path, gzip.compress(text) if packed else text)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(Path, "write_text", lambda path, text: write_bytes(path, text.encode()))
    recipe(tmp_path)
    assert written


def _rows_of(recipe: str, directory: Path) -> tuple[Path, pd.DataFrame]:
    """Makes a dataset by a recipe, of all values; gives its test rows, too."""
    out = directory / "out"
    words = ["--config", str(RECIPES / f"{recipe}.yaml"), "--input", str(directory)]
    words += ["--frequency_threshold", "0", "--workers", "0", "--output", str(out)]
    assert PROGRAM.main(["run", *words]) == 0
    return out, pq.read_table(out / "test").to_pandas()


@pytest.mark.slow
def test_avazu(tmp_path: Path) -> None:
    columns = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
        "app_category,device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,"
        "C17,C18,C19,C20,C21"
    )
    line = (
        "1000009418151094273,{click},{hour},1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,"
        "07d7df22,a99f214a,{ip},44956a24,1,2,15706,320,50,1722,0,35,-1,79"
    )
    hours = ["14102100", "14102823", "14102123", "14102900", "14102923", "14103000", "14103023"]
    ips = ["ddd2926e", "96809ac8", "ddd2926e", "ddd2926e", "00000001", "96809ac8", "b3cf8def"]
    rows = [
        line.format(click=n % 2, hour=hour, ip=ip)
        for n, (hour, ip) in enumerate(zip(hours, ips, strict=True))
    ]
    (tmp_path / "train.csv").write_text("\n".join([columns, *rows]) + "\n")
    out, test = _rows_of("avazu", tmp_path)
    assert list(test.columns) == ["label", *columns.split(",")[3:]]
    assert test["label"].tolist() == [1, 0]
    # Of the three rows to train on ddd2926e is the first, 96809ac8 the next; b3cf8def is unknown.
    assert test["device_ip"].tolist() == [4, 2] and test["C20"].tolist() == [3, 3]
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert info["counts"]["train"] == 3 and info["counts"]["validation"] == 2
    assert yaml.safe_load((RECIPES / "avazu.yaml").read_text())["frequency_threshold"] == 5

    # No column is a number: a model of them learns and is served all the same.
    words = ["--model_type", "dlrm", "--dataset_dir", str(out), "--global_batch_size", "3"]
    words += ["--results_dir", str(tmp_path / "results"), "--epochs", "1", "--embedding_dim", "4"]
    words += ["--bottom_mlp_sizes", "6,4", "--top_mlp_sizes", "8,1", "--warmup_steps", "0"]
    words += ["--decay_start_step", "none", "--decay_steps", "0"]
    cli.train([*words, "--export_dir", str(tmp_path / "export")])
    request = dict(zip(columns.split(",")[3:], rows[-1].split(",")[3:], strict=True))
    numbers = {n for n, v in request.items() if v.lstrip("-").isdecimal() and v != "00000001"}
    request |= {name: int(request[name]) for name in numbers}
    bundle = Bundle.load(tmp_path / "export")
    encoded = bundle.encoder.encode([request]).inputs["categorical"][0]
    assert encoded.tolist() == test.iloc[1, 1:].tolist()
    assert 0 < bundle.score([request])[0].probability[0] < 1


def test_criteo_kaggle(tmp_path: Path) -> None:
    categories = "68fd1e64\t80e26c9b\tfb936136\t7b4723c4\t25c83c98\t7e0ccccf\tde7995b8\t1f89b562"
    categories += "\ta73ee510\ta8cd5504\tb2cb9c98\t37c9c164\t2824a5f6\t1adce6ef\t8ba8b39a"
    categories += "\t891b62e7\te5ba7672\tf54016b9\t21ddcdc9\tb1252a9d\t07b5194c\t\t3a171ecb"
    categories += "\tc5c50484\te8b83407\t9727dd16"
    numbers = "\t-1\t5\t0\t1382\t4\t15\t2\t181\t1\t2\t\t2"
    rows = [f"{n % 2}\t{n or ''}{numbers}\t{categories}" for n in range(28)]
    rows[-1] = rows[-1].replace("68fd1e64", "05db9164")
    (tmp_path / "train.txt").write_text("\n".join(rows) + "\n")
    out, test = _rows_of("criteo-kaggle", tmp_path)
    names = [f"I{n}" for n in range(1, 14)], [f"C{n}" for n in range(1, 27)]
    assert list(test.columns) == ["label", *names[0], *names[1]]
    assert test["label"].tolist() == [0, 1]  # the last of 4 rows of the last seventh
    logs = np.log1p(np.arange(24))  # a missing one counts as 0
    expected = (np.log1p([26, 27]) - logs.mean()) / logs.std()
    np.testing.assert_allclose(test["I1"], expected, rtol=1e-5)
    assert test["I12"].tolist() == [0, 0]  # always missing
    assert test["C1"].tolist() == [3, 2] and test["C22"].tolist() == [1, 1]
    assert yaml.safe_load((RECIPES / "criteo-kaggle.yaml").read_text())["frequency_threshold"] == 10

    model = small_model(out)
    inputs = {name: tf.constant(values) for name, values in rows_to_test(out).items()}
    labels = tf.constant(test["label"].to_numpy()[:, np.newaxis])
    losses = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses.append(tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)))
        variables = model.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(losses[-1], variables), strict=True):
            variable.assign_sub(1e-3 * tf.convert_to_tensor(gradient))
    assert losses[1] < losses[0]


def test_every_recipe_is_tested_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert {f"test_{name.replace('-', '_')}" for name in names} <= set(globals())
    assert PROGRAM.main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    assert PROGRAM.main(["recipes", "yelp"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["version"] == 1
    copy = tmp_path / "my.yaml"
    assert PROGRAM.main(["recipes", "yelp", "--output", str(copy)]) == 0
    assert copy.read_text() == (RECIPES / "yelp.yaml").read_text()
    assert PROGRAM.main(["recipes", "yelpp"]) == 2
    assert "Did you mean 'yelp'?" in capsys.readouterr().err
