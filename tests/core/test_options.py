from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from lookback.core.errors import UserError
from lookback.core.options import (
    Command,
    CommandLine,
    Door,
    Program,
    bash_completion,
    check_options,
    continued,
    from_values,
    option,
    options_of,
    parameter_table,
    parse,
    parse_known,
    require_one,
    save_yaml,
    to_yaml,
    words_of,
)


@dataclasses.dataclass(frozen=True)
class Run:
    data: Path = dataclasses.field(metadata={"help": "Where the data is", "scope": "datasets"})
    model_type: str = dataclasses.field(metadata={"help": "Which model"})
    lr: float = dataclasses.field(default=0.01, metadata={"help": "Learning rate"})
    epochs: int = 3
    length: int = 100
    amp: bool = False
    shuffle: bool = True
    seed: int | None = dataclasses.field(default=None, metadata={"none": (-1,)})
    out: Path | None = dataclasses.field(default=None, metadata={"none": ("",)})
    mode: Literal["train", "test"] = "train"
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs: expected 1 or more, received {self.epochs}.")


@dataclasses.dataclass(frozen=True)
class Deep:
    scope: ClassVar[str] = "model"
    dims: tuple[int, ...] = dataclasses.field(default=(200, 80), metadata={"help": "100% dims"})
    rate: float | None = dataclasses.field(default=None, metadata={"none": (-1,)})
    search: Literal["soft", "hard"] = "soft"
    length: int = 7
    width: int = 16


@dataclasses.dataclass(frozen=True)
class Wide:
    scope: ClassVar[str] = "model"
    width: int = 8


LINE = CommandLine(
    (Run,), "model_type", {"deep": (Deep,), "wide": (Wide,)}, removed={"affinity": "use taskset."}
)


def run(*argv: str) -> tuple[Any, Any]:
    return parse(argv, LINE, prog="train.py")


def test_defaults_and_the_first_model():
    config, model = run("--data", "d")
    assert config == Run(data=Path("d"), model_type="deep")
    assert model == Deep(length=100)


def test_every_type_is_read_from_the_command_line():
    config, model = run(
        *("--data=d", "--lr", "1e-3", "--epochs", "5", "--amp", "--no_shuffle", "--seed", "0"),
        *("--out", "o", "--mode", "test", "--tags", "a,b", "--dims", "4", "--rate", "0.5"),
        *("--search", "hard"),
    )
    assert config == Run(
        data=Path("d"),
        model_type="deep",
        lr=1e-3,
        epochs=5,
        amp=True,
        shuffle=False,
        seed=0,
        out=Path("o"),
        mode="test",
        tags=("a", "b"),
    )
    assert model == Deep(dims=(4,), rate=0.5, search="hard", length=100)


def test_sentinels_of_older_command_lines_are_none():
    config, model = run("--data", "d", "--seed", "-1", "--out", "", "--rate", "-1")
    assert (config.seed, config.out, model.rate) == (None, None, None)
    assert run("--data", "d", "--rate=-1.0")[1].rate is None
    assert run("--data", "d", "--seed", "none")[0].seed is None


def test_the_chosen_model_adds_its_options():
    config, model = run("--data", "d", "--model_type", "wide", "--width", "3")
    assert config.model_type == "wide"
    assert model == Wide(width=3)


def test_a_field_of_both_classes_is_one_option():
    config, model = run("--data", "d", "--length", "50")
    assert (config.length, model.length) == (50, 50)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: from_file\nlr: 1e-3\nepochs: 7\namp: true\nseed: 4\ndims: [1, 2]\nrate: null\n"
    )
    config, model = run("--config", str(file), "--epochs", "9", "--no_amp", "--seed", "none")
    assert (config.data, config.lr, config.epochs) == (Path("from_file"), 1e-3, 9)
    assert (config.amp, config.seed) == (False, None)
    assert (model.dims, model.rate) == ((1, 2), None)


def test_a_file_may_name_another_models_option_at_its_default(tmp_path):
    """As the files of runs do that were written when every run had the options of all."""
    file = tmp_path / "run.yaml"
    file.write_text("data: d\nmodel_type: wide\nsearch: soft\nrate: null\ndims: [200, 80]\n")
    assert run("--config", str(file))[1] == Wide()
    with pytest.raises(UserError, match=r"--search is an option of deep, not of wide"):
        run("--data", "d", "--model_type", "wide", "--search", "soft")


def test_values_in_code_give_what_the_command_line_would():
    argv = ("--data", "d", "--model_type", "deep", "--length", "9", "--search", "hard")
    given = {"data": Path("d"), "model_type": "deep", "length": 9, "search": "hard"}
    assert from_values(LINE, **given) == run(*argv)
    with pytest.raises(UserError, match=r"--lenght. Did you mean --length"):
        from_values(LINE, **{**given, "lenght": 9})
    with pytest.raises(UserError, match="--data is required"):
        from_values(LINE, model_type="deep")
    words = words_of({"dims": (200, 80), "amp": True, "xla": False, "rate": None, "seed": -1})
    assert words == ["--dims=200,80", "--amp", "--no_xla", "--rate=none", "--seed=-1"]


def test_the_file_may_choose_the_model_and_the_command_line_another(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: d\nmodel_type: wide\nwidth: 5\n")
    assert run("--config", str(file))[1] == Wide(width=5)
    assert run("--config", str(file), "--model_type", "deep")[1].width == 5


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--epoch", "3"), r"unknown option: --epoch\. Did you mean --epochs\?"),
        (("--no_shufle",), r"Did you mean --shuffle\?"),
        (("--Epochs", "3"), r"Did you mean --epochs\?"),
        (("--zzz",), r"unknown option: --zzz\. --help lists"),
        (("--epochs", "three"), r"--epochs: expected an integer, received 'three'"),
        (("--epochs", "3.5"), r"--epochs: expected an integer, received '3\.5'"),
        (("--lr", "nan"), r"--lr: expected a number, received 'nan'"),
        (("--epochs",), r"^--epochs: expected a value, received none\. --help"),
        (("--epochs", "0"), r"epochs: expected 1 or more, received 0"),
        (("--mode", "trian"), r"expected one of train, test, received 'trian'.*mean 'train'"),
        (("--dims", "1,x"), r"--dims: expected an integer, or several .* received '1,x'"),
        (("--model_type", "depe"), r"expected one of deep, wide, received 'depe'.*mean 'deep'"),
        (("stray",), r"unexpected argument 'stray'"),
        (("--affinity", "socket"), r"--affinity is not needed here: use taskset\."),
        (("--affinity=socket",), r"--affinity is not needed here: use taskset\."),
        (
            ("--model_type", "wide", "--search", "hard"),
            r"--search is an option of deep, not of wide\. Remove it, or choose --model_type deep",
        ),
        (
            ("--model_type", "wide", "--serch", "hard"),
            r"Did you mean --search\? It is an option of deep, not of wide",
        ),
        (("--config", "/nowhere.yaml"), r"--config /nowhere\.yaml: expected a YAML file"),
    ],
)
def test_mistakes_on_the_command_line_are_named(argv, text):
    with pytest.raises(UserError, match=text):
        run("--data", "d", *argv)


def test_a_missing_required_option_is_named():
    with pytest.raises(UserError, match="--data is required: Where the data is"):
        run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", r"key 'epoch' in .*run\.yaml\. Did you mean epochs\?"),
        ("config: a", r"key 'config' in .*run\.yaml\. --help lists the options"),
        ("epochs: many", r"epochs in .*run\.yaml: expected an integer, received 'many'"),
        ("epochs: true", r"expected an integer, received True"),
        ("epochs: 2.0", r"expected an integer, received 2\.0"),
        ("epochs: null", r"expected an integer, received None"),
        ("amp: 1", r"expected true or false, received 1"),
        ("amp: maybe", r"expected true or false, received 'maybe'"),
        ("dims: {a: 1}", r"dims in .* expected an integer, or several"),
        ("affinity: socket", r"key 'affinity' in .* is not needed here: use taskset"),
        ("model_type: wide\nsearch: hard", r"key 'search' in .* is an option of deep, not of wide"),
        ("epochs: 1\nepochs: 2", r"not valid YAML: the key 'epochs' is there twice"),
        ("epochs: [", r"is not valid YAML"),
        ("- 1", r"expected lines of the form 'name: value', received a list"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        run("--data", "d", "--config", str(file))


def test_an_empty_file_changes_nothing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("# nothing\n")
    assert run("--data", "d", "--config", str(file)) == run("--data", "d")


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--dims", "", "--tags", "x y,null,3", "--out", "a: b", "--seed", "3", "--lr", "1e-9"),
        ("--model_type", "wide", "--amp", "--no_shuffle"),
    ],
)
def test_yaml_round_trip(tmp_path, argv):
    configs = run("--data", "d", *argv)
    file = tmp_path / "config.yaml"
    save_yaml(file, *configs, comments=("run", "model"))
    assert run("--config", str(file)) == configs
    assert to_yaml(*configs).count("length:") == 1


def test_help_lists_every_option_by_scope_and_ends_with_status_0(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help-all")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in {**options_of(Run), **options_of(Deep)}:
        assert f"--{name}" in text
    plain = " ".join(text.split())
    assert "--data PATH Where the data is (required)" in plain
    assert "100% dims (default: 200,80; only deep)" in plain
    assert "default: 16 for deep, 8 for wide" in plain
    assert text.index("datasets:") < text.index("Run:") < text.index("model:")


def test_parameter_table_has_a_row_for_each_option():
    table = parameter_table(LINE)
    assert "| datasets | `data` | Where the data is | required |" in table
    assert "| model | `search` |  (soft, hard) (only deep) | soft |" in table
    assert table.count("\n") == 2 + len({**options_of(Run), **options_of(Deep)})


def test_help_lists_the_options_of_the_chosen_model_alone(capsys):
    with pytest.raises(SystemExit):
        run("--model_type", "wide", "--help", "--nonsense")
    text = capsys.readouterr().out
    assert "--width" in text
    assert "--search" not in text
    assert "--help-all lists all" in text
    assert "These are the options with --model_type wide" in text


def test_parse_reads_one_or_several_classes():
    (wide,) = parse(["--width", "2"], CommandLine((Wide,)))
    assert wide == Wide(2)
    deep, wide = parse(["--width", "2"], CommandLine((Deep, Wide)))
    assert (deep.width, wide.width) == (2, 2)
    with pytest.raises(UserError, match=r"Did you mean --width\?"):
        parse(["--widht", "2"], CommandLine((Wide,)))


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Every bound, unit and way of writing."""

    path: Path = option(help="what to read", positional=True)
    share: float = option(0.5, help="a share", above=0, at_most=1)
    count: int | None = option(None, help="a count", at_least=1, continued=True)
    sizes: tuple[int, ...] = option((1, 64), help="sizes", at_least=1, below=1000)
    memory: int = option(1 << 30, help="memory", unit="bytes", at_least=1)
    entries: tuple[str, ...] = option((), help="entries", repeatable=True)
    wait: float = option(1.0, help="a wait", unit="seconds")

    def __post_init__(self) -> None:
        check_options(self)


def bounded(*argv: str) -> Bounded:
    (config,) = parse(argv, CommandLine((Bounded,)), prog="bounded")
    return config


def test_positional_repeatable_and_sizes():
    config = bounded("in.txt", "--memory", "2GB", "--entries", "a=1", "--entries", "b=2,3")
    assert config.path == Path("in.txt")
    assert config.memory == 2_000_000_000
    assert config.entries == ("a=1", "b=2,3")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--share", "0"), r"--share: expected a number, above 0 and 1 or less, received 0"),
        (("--share", "1.01"), r"--share: .* received 1\.01"),
        (("--count", "0"), r"--count: expected an integer, 1 or more, or none, received 0"),
        (("--count", "1_0"), r"--count: expected an integer"),
        (("--count", "9" * 400), r"--count: .* received '9{79}\.\.\. \(402 characters\)"),
        (("--sizes", "1,1000"), r"--sizes: .* 1 or more and below 1000, received 1000"),
        (("--memory", "much"), r"^--memory: expected a size above 0 like 80GB"),
        (("--share", "1e999"), r"--share: expected a number"),
    ],
)
def test_bounds_are_held_and_said(argv, text):
    with pytest.raises(UserError, match=text):
        bounded("in.txt", *argv)


def test_two_files_of_options_are_refused_and_two_dashes_end_options(tmp_path):
    (tmp_path / "one.yaml").write_text("share: 0.1\n")
    (tmp_path / "two.yaml").write_text("share: 0.2\n")
    with pytest.raises(UserError, match="expected one file, received 2"):
        bounded(
            "in", "--config", str(tmp_path / "one.yaml"), "--config", str(tmp_path / "two.yaml")
        )
    assert bounded("--share", "0.5", "--", "-in").path == Path("-in")
    with pytest.raises(UserError, match=r"unexpected argument 'more'\.$"):
        bounded("in", "more")


@pytest.mark.parametrize("path", ["x" * 256, "a/" * 2500 + "b", "a\0b", ""])
def test_what_can_be_no_path_is_refused(path):
    with pytest.raises(UserError, match="PATH: expected a path"):
        bounded(path)


def test_a_missing_positional_is_named():
    with pytest.raises(UserError, match=r"^PATH is required: what to read"):
        bounded()


@pytest.mark.parametrize("flag", ["--path", "--pth"])
def test_a_positional_with_a_flag_is_explained(flag):
    with pytest.raises(UserError, match=f"{flag}. Give PATH without --path before it"):
        bounded(flag, "in.txt")


def test_bounds_hold_for_configs_made_in_code():
    with pytest.raises(UserError, match=r"share: expected a number, above 0"):
        Bounded(Path("x"), share=-1.0)
    assert continued(Bounded(Path("x"), count=3)) == {"count": 3}


def test_help_says_bounds_units_and_positionals(capsys):
    with pytest.raises(SystemExit):
        bounded("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: bounded PATH [--config FILE.yaml] [options]" in text
    assert "--memory SIZE memory (default: 1GiB)" in text
    assert "a wait (default: 1.0; in seconds)" in text


def test_yaml_reads_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: d\nepochs: 010\n")
    assert run("--config", str(file))[0].epochs == 10
    file.write_text("data: d\nepochs: 1:30\n")
    with pytest.raises(UserError, match=r"expected an integer, received '1:30'"):
        run("--config", str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: &x d\nout: *x", r"aliases \(\*x\) are not read"),
        ("data: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("data: 2026-99-99", "not valid YAML|expected"),
        ("? [a, b]\n: 1", "a key must be one word"),
        ("data: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_in_a_short_sentence(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        run("--config", str(file))
    assert len(str(refused.value)) < 2000


def test_a_large_file_is_no_yaml_of_people(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="at most 1,048,576 bytes"):
        run("--config", str(file))


def program(**runs) -> Program:
    commands = {
        name: Command(f"do {name}", CommandLine((Wide,)), function)
        for name, function in runs.items()
    }
    return Program("prog", "Does things.", commands)


def test_a_program_runs_its_commands(capsys):
    ran = []
    assert program(one=ran.append, two=ran.append).main(["two", "--width", "5"]) == 0
    assert ran == [Wide(5)]
    assert program(one=ran.append).main(["--help"]) == 0
    assert "do one" in capsys.readouterr().out
    assert program(one=ran.append).main(["one", "--help"]) == 0
    assert "usage: prog one" in capsys.readouterr().out


def test_a_program_says_what_is_wrong_in_a_line(capsys):
    def refuse(_):
        raise UserError("not so.")

    def interrupted(_):
        raise KeyboardInterrupt

    three = program(refuse=refuse, interrupted=interrupted)
    assert three.main(["refuse"]) == 2
    assert capsys.readouterr().err == "error: not so.\n"
    assert three.main(["refuze"]) == 2
    assert "Did you mean refuse?" in capsys.readouterr().err
    assert three.main(["interrupted"]) == 130
    assert three.main([]) == 2
    assert "expected a command" in capsys.readouterr().err


def test_a_door_gets_its_words_and_gives_its_status(capsys):
    def inner(words, prog):
        print(prog, *words)
        return 143

    outer = Program("outer", "Opens doors.", {"inner": Door("go in", inner)}, version="1.2")
    assert outer.main(["inner", "--help", "-x"]) == 143
    assert capsys.readouterr().out == "outer inner --help -x\n"
    assert outer.main(["--version"]) == 0
    assert outer.main(["--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "outer 1.2"
    assert program(one=print).main(["--version"]) == 2


@dataclasses.dataclass(frozen=True)
class Shells:
    shell: Literal["bash", "zsh"] = option(help="which", positional=True)
    file: Path = option(help="what", positional=True)
    depth: int = option(1, help="how deep")


@pytest.mark.parametrize(
    ("written", "completed"),
    [
        ("", ["one", "inner", "train", "strange", "shells", "--help"]),
        ("in", ["inner"]),
        ("one --w", ["--width"]),
        ("inner two --c", ["--config"]),
        ("train --model_type wide --se", ["--seed", "--search"]),
        ("train --amp ", ["--help", "--help-all", "--config"]),
        ("train --no", ["--no_shuffle"]),
        ("train --out ", []),  # a file
        ("train --out = ", []),  # how bash cuts --out=
        ("train --out d ", ["--help"]),
        ("train --model_type ", ["deep", "wide"]),
        ("train --model_type = w", ["wide"]),
        ("train --model_type =", ["deep", "wide"]),
        ("train --data d --search h", ["hard"]),
        ("shells ", ["bash", "zsh"]),
        ("shells b", ["bash"]),
        ("shells bash ", []),  # a file
        ("shells bash fi", []),
        ("shells bash file ", ["--help", "--config", "--depth"]),
        ("shells bash --depth 3 --d", ["--depth"]),
        ("shells --depth 3 z", ["zsh"]),
        ("shells --depth = 3 z", ["zsh"]),
        ("strange x", []),
        ("unknown ", []),
    ],
)
def test_bash_completes_commands_options_and_values(written, completed):
    outer = Program(
        "outer",
        "Opens doors.",
        {
            **program(one=print).commands,
            "inner": Door("go in", print, lambda: program(two=print)),
            "train": Door("train", print, lambda: LINE),
            "strange": Door("of unknown words", print),
            "shells": Door("choose", print, lambda: CommandLine((Shells,))),
        },
    )
    words = ["outer", *written.split(" ")]
    asking = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}"
    script = f'{bash_completion(outer)}{asking}; _outer; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-uc", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[: len(completed)] == completed
    assert bool(done.stdout.split()) == bool(completed)


@dataclasses.dataclass(frozen=True)
class Launch:
    ranks: int | None = option(None, help="processes", at_least=1)
    hosts: str | None = option(None, help="where")
    shuffle: bool = True

    def __post_init__(self) -> None:
        require_one(self, "ranks", "hosts")


def test_words_of_another_command_line_are_given_back():
    words = ["--lr=-1", "--ranks", "2", "--config", "f.yaml", "--no-shuffle", "-v", "x y"]
    launch, rest = parse_known(words, Launch)
    assert launch == Launch(2, shuffle=False)
    assert rest == ["--lr=-1", "--config", "f.yaml", "-v", "x y"]
    with pytest.raises(UserError, match=r"^--ranks: expected an integer, 1 or more, or none"):
        parse_known(["--ranks", "0"], Launch)


@pytest.mark.parametrize(("given", "received"), [({}, "none"), ({"ranks": 1, "hosts": "h"}, "--")])
def test_one_of_several_must_be_given(given, received):
    text = rf"expected one of --ranks and --hosts, received {received}"
    with pytest.raises(UserError, match=text):
        Launch(**given)


def test_classes_that_cannot_be_options_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Nested:
        inner: dict

    @dataclasses.dataclass(frozen=True)
    class Other:
        width: str = ""

    with pytest.raises(TypeError, match=r"Nested\.inner: an option cannot have the type"):
        options_of(Nested)
    with pytest.raises(TypeError, match="'width' with different types"):
        parse([], CommandLine((Wide, Other)))
