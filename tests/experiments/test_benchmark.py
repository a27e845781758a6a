"""The benchmark: how time is taken, what is written, and that all of it runs."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allcls_jax.config import ModelName
from allcls_jax.errors import InputError
from allcls_jax.experiments.benchmark import (
    bench as benches,
)
from allcls_jax.experiments.benchmark import (
    ceilings,
    command,
    memory,
    peer_networks,
    peer_recipes,
    peer_tuning,
    record,
    rows_forward,
    rows_process,
    rows_tuning,
    table,
    timing,
)
from allcls_jax.experiments.benchmark.catalog import CATALOG
from allcls_jax.experiments.benchmark.record import Bar, Figure, Record, Row
from allcls_jax.experiments.benchmark.workers import Unavailable, Worker
from allcls_jax.models import vgg
from allcls_jax.models.preprocessing import CAFFE

ROOT = Path(__file__).resolve().parents[2]

PROVENANCE = {
    "command": "python tools/benchmark.py --out x.json",
    "utc": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3", "jax": "1.2.3", "torch": "4.5", "keras": None},
}


def one_row(**changes: Any) -> Row:
    row = Row(
        key="recipe",
        what=CATALOG["recipe"].what,
        settings="batch 32",
        unit="s",
        ours=Figure(2.0, 1.5, 2.5, 5),
        peers={"Keras": Figure(30.0, 29.0, 31.0, 5, "fit")},
        against="Keras",
        bar=Bar(">=", 12),
    )
    return dataclasses.replace(row, **changes)


def one_record(platform: str = "cpu", *rows: Row) -> Record:
    return Record(
        platform=platform,
        hardware=f"a {platform} of ours",
        notes=["All weights are random."],
        ceilings={"matmul": 1e12, "copy": 1e10},
        rows=list(rows) or [one_row()],
        provenance=PROVENANCE,
    )


def test_rows_that_were_not_measured_again_are_kept():
    earlier = one_record("cpu", one_row(), one_row(key="help", unit="s"))
    again = dataclasses.replace(
        one_record("cpu", one_row(ours=Figure(9.0, 9.0, 9.0, 1))),
        provenance=PROVENANCE | {"command": "python tools/benchmark.py --rows recipe"},
    )
    found = again.beside(earlier)
    assert {row.key: row.ours.value for row in found.rows} == {"recipe": 9.0, "help": 2}
    assert found.provenance["command"] == (
        "python tools/benchmark.py --out x.json and python tools/benchmark.py "
        "--rows recipe"
    )
    assert again.beside(None) == again
    other = dataclasses.replace(earlier, hardware="another machine")
    with pytest.raises(InputError, match="another machine"):
        again.beside(other)


def test_measurements_are_taken_in_turns():
    order = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = timing.in_turns(
        {name: lambda name=name: measure(name) for name in "ab"}, repeats=3, pause=0
    )
    assert order == list("ababab")
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_time_is_that_of_one_and_lasts_until_the_result_is_there():
    assert timing.seconds(lambda: time.sleep(0.02), times=3) == pytest.approx(
        0.02, rel=0.5
    )
    x = jnp.ones((700, 700))
    power = jax.jit(lambda x: jax.lax.fori_loop(0, 30, lambda _, y: y @ x / 700, x))
    power(x).block_until_ready()
    results = []

    def work() -> jax.Array:
        results.append(power(x))
        return results[-1]

    taken = timing.seconds(work)
    begun = time.perf_counter()
    results[0].block_until_ready()
    assert time.perf_counter() - begun < 0.1 * taken, "nothing is left to wait for"
    assert taken > 1e-3


def test_a_figure_is_the_median_with_its_range():
    assert timing.figure([3.0, 1.0, 9.0, 2.0, 4.0], note="x") == Figure(
        3.0, 1.0, 9.0, 5, "x"
    )
    rate = timing.figure([0.5, 0.25, 1.0], count=8, times=2)
    assert rate == Figure(16.0, 8.0, 32.0, 6)


def test_ceilings_count_operations_and_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "seconds", lambda work, times=1: 0.5)
    found = ceilings.measure(side=8, dtype=jnp.float32, copy_bytes=4096, repeats=2)
    assert found.matmul == 2 * 8**3 / 0.5
    assert found.copy == 2 * 4096 / 0.5


def test_operations_of_the_stacks_are_those_of_the_literature():
    # 15.35 and 19.51 billion multiplications, and as many additions.
    assert rows_forward.stack_flops(ModelName.VGG16, 224) == 2 * 15_346_630_656
    assert rows_forward.stack_flops(ModelName.VGG19, 224) == 2 * 19_508_428_800


def test_scores_say_how_many_times_as_fast():
    assert one_row().score == 15
    assert one_row().met is True
    assert one_row(bar=Bar(">=", 16)).met is False
    assert one_row(unit="images/s").score == pytest.approx(2 / 30)
    assert one_row(against="", bar=Bar("<=", 2)).met is True
    missing = one_row(peers={"Keras": Figure(note=record.NOT_INSTALLED)})
    assert missing.score is None
    assert missing.met is None


def test_a_file_keeps_what_was_measured_elsewhere(tmp_path: Path):
    path = tmp_path / "benchmark.json"
    gpu, cpu = one_record("gpu"), one_record("cpu")
    record.write(path, cpu)
    record.write(path, gpu)
    again = one_record("cpu", one_row(settings="batch 8"))
    record.write(path, again)
    assert record.read(path) == {"gpu": gpu, "cpu": again}
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 0, "platforms": {}}', '{"format": 1}']
)
def test_what_is_no_benchmark_is_refused_and_kept(tmp_path: Path, text: str):
    path = tmp_path / "benchmark.json"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read as a benchmark"):
        record.write(path, one_record())
    assert path.read_text() == text


def test_the_table_has_a_column_for_each_platform():
    missing = {"torch": Figure(note="not installed"), "Keras": Figure(5.0)}
    forward = one_row(
        key="forward vgg19",
        unit="images/s",
        ours=Figure(1234.5),
        peers=missing,
        against="torch",
        bar=Bar(">=", 1),
    )
    text = table.markdown({"cpu": one_record("cpu", one_row(), forward)})
    head, _, first, second, *rest = text.splitlines()
    assert head == "|  | must reach | GPU | CPU: a cpu of ours |"
    assert first == (
        "| the whole recipe, from packed images to a trained head | GPU ≥ 30 ×, CPU "
        "≥ 12 × | not measured | **15 × Keras**, 2 s; Keras 30 s, batch 32 |"
    )
    assert second.endswith(
        "| not measured | 1,234 images/s; torch not installed, Keras 5 images/s, "
        "batch 32 |"
    )
    assert "2026-01-02, jax 1.2.3, torch 4.5." in rest[-1]


def test_a_missed_bar_is_told():
    missed = one_row(bar=Bar(">=", 16))
    assert "2 s (missed)" in table.markdown({"cpu": one_record("cpu", missed)})


def test_the_readme_is_rewritten_between_the_marks(tmp_path: Path):
    readme = tmp_path / "README.md"
    records = {"cpu": one_record()}
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.rewrite(readme, records)
        assert readme.read_text() == (
            f"before\n{table.BEGIN}\n{table.markdown(records)}\n{table.END}\nafter\n"
        )


@pytest.mark.parametrize("text", ["", table.BEGIN, f"{table.END} {table.BEGIN}"])
def test_a_readme_without_marks_is_refused(tmp_path: Path, text: str):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match="must have one line"):
        table.rewrite(readme, {"cpu": one_record()})
    assert readme.read_text() == text


def test_the_readme_has_the_table_of_the_committed_figures():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    expected = table.markdown(record.read(ROOT / "docs" / "benchmark.json"))
    between = readme.split(table.BEGIN)[1].split(table.END)[0]
    assert between == f"\n{expected}\n", (
        "run tools/benchmark.py --out docs/benchmark.json --show --readme README.md"
    )


def test_sizes_fit_the_keys_of_the_catalog():
    assert set(benches.GPU.models) == {ModelName.VGG19, ModelName.VGG16}
    for sizes in (benches.GPU, benches.CPU):
        assert sizes.repeats >= 5
        assert len(sizes.forward_batches) <= 2, "keys are for one or two"


def settings_of(
    tmp_path: Path, peer: str, task: str = "forward"
) -> tuple[dict[str, Any], list[float]]:
    """Settings of a peer on a tiny stack, and what it should compute."""
    network = vgg.VGG(vgg.conv_stack(ModelName.TINY))
    params = vgg.init_params(vgg.param_shapes(network, 32), seed=0)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    weights = {k: np.asarray(v) for k, v in vgg.flatten_params(params).items()}
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **weights)
    given = images if task == "recipe" else np.asarray(CAFFE(images))
    np.save(tmp_path / "images.npy", given)
    np.save(tmp_path / "labels.npy", np.array([0, 1, 1]))
    features, _ = network.apply({"params": params}, CAFFE(images))
    return {
        "peer": peer,
        "task": task,
        "gpu": False,
        "layers": rows_forward.stack_as_data(ModelName.TINY),
        "weights": str(tmp_path / "weights.npz"),
        "images": str(tmp_path / "images.npy"),
        "labels": str(tmp_path / "labels.npy"),
        "mean": CAFFE.mean,
        "dtype": "float32",
        "times": 1,
    }, peer_networks.sample(features)


@pytest.mark.parametrize(
    ("peer", "package"),
    [("torch", "torch"), ("ONNX Runtime", "onnxruntime"), ("Keras", "keras")],
)
def test_peers_compute_the_same(tmp_path: Path, peer: str, package: str):
    pytest.importorskip(package)
    settings, expected = settings_of(tmp_path, peer)
    ready, answer = peer_networks.FORWARD[peer](settings)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(ready["sample"], expected, rtol=1e-4, atol=1e-3)
    assert answer({})["seconds"] > 0
    assert rows_forward._compare(expected, 1e-3, ready) == ""
    wrong = {"sample": [2 * value for value in ready["sample"]]}
    assert "something else" in rows_forward._compare(expected, 1e-3, wrong)


@pytest.mark.parametrize("peer", ["torch", "Keras"])
def test_peers_take_steps_of_fine_tuning(tmp_path: Path, peer: str):
    pytest.importorskip(peer.lower())
    settings, _ = settings_of(tmp_path, peer, "recipe" if peer == "Keras" else "tuning")
    _, answer = peer_tuning.TUNING[peer](settings)
    assert answer({})["seconds"] > 0


def test_keras_trains_the_recipe_at_any_batch(tmp_path: Path):
    pytest.importorskip("keras")
    settings, _ = settings_of(tmp_path, "Keras", "recipe")
    _, answer = peer_recipes.RECIPES["Keras"](settings)
    for batch in (2, 3):
        assert answer({"batch": batch, "epochs": 1})["seconds"] > 0


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ModuleNotFoundError('no', name='torch')", "not installed"),
        ("raise RuntimeError('it is broken')", "failed: RuntimeError: it is broken"),
    ],
)
def test_a_peer_that_cannot_run_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, reason: str
):
    (tmp_path / "torch.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings, _ = settings_of(tmp_path, "torch")
    with pytest.raises(Unavailable) as caught:
        Worker(settings)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.txt"], "must end in .json"),
        (["--out", "no/x.json"], "its folder does not exist"),
        (["--out", "x.json", "--show"], "no such file to show"),
        (["--out", "x.json", "--data", "no"], "there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_shown_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    readme, out = tmp_path / "README.md", tmp_path / "found.json"
    readme.write_text(f"{table.BEGIN}\n{table.END}\n")
    record.write(out, one_record("gpu"))
    record.write(out, one_record("cpu"))
    before = out.read_bytes()
    assert command.main(["--out", str(out), "--show", "--readme", str(readme)]) == 0
    assert out.read_bytes() == before
    assert table.markdown(record.read(out)) in readme.read_text()
    assert out.with_suffix(".png").exists()
    shown = capsys.readouterr().out
    assert "a gpu of ours" in shown
    assert "a cpu of ours" in shown


@pytest.fixture
def bench(tmp_path: Path) -> benches.Bench:
    return benches.Bench(
        sizes=benches.QUICK, platform="cpu", folder=tmp_path, data=None
    )


def test_forward_rows_without_peers(
    bench: benches.Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rows_forward, "PEERS", ())
    rate, share = rows_forward.forward(bench)
    assert (rate.key, share.key) == ("forward tiny", "forward tiny share")
    flops = rows_forward.stack_flops(ModelName.TINY, 32)
    assert rate.ours.value is not None
    assert share.ours.value == pytest.approx(
        rate.ours.value * flops / bench.ceilings.matmul
    )
    assert rate.against == "torch"
    assert rate.score is None


def test_fine_tuning_rows_without_peers(
    bench: benches.Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rows_tuning, "PEERS", ())
    found = {row.key: row for row in rows_tuning.fine_tuning(bench)}
    assert set(found) == {key for key in CATALOG if key.startswith("fine-tuning")}
    rate = {key: row.ours.value or np.nan for key, row in found.items()}
    assert rate["fine-tuning ratio"] == pytest.approx(
        rate["fine-tuning forward"] / rate["fine-tuning varied"]
    )
    # On a CPU the forward pass has a path of its own.
    assert found["fine-tuning ratio"].bar is None


def test_growth_is_many_images_against_few(
    bench: benches.Bench, monkeypatch: pytest.MonkeyPatch
):
    peaks = [
        memory.Peak(images=100, peak_bytes=1000, seconds=2),
        memory.Peak(images=400, peak_bytes=1200, seconds=12),
    ]
    monkeypatch.setattr(memory, "measure", lambda numbers, *, whole_run, folder: peaks)
    peak, linear = rows_process.growth(bench)
    assert peak.score == 1.2
    assert peak.met is False
    assert linear.score == pytest.approx(1.5)


def test_the_command_measures_and_rewrites(tmp_path: Path):
    readme, out = tmp_path / "README.md", tmp_path / "found.json"
    readme.write_text(f"{table.BEGIN}\n{table.END}\n")
    rows = ["heads", "packing", "prediction"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", command.__name__, "--quick"),
            *("--out", str(out), "--readme", str(readme), "--folder", str(tmp_path)),
            *("--rows", *rows),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = record.read(out).values()
    assert found.ceilings["matmul"] > 0
    assert "no figure to quote" in found.notes[-1]
    assert str(tmp_path) not in out.read_text(), "a machine's folders are its own"
    keys = {row.key for row in found.rows}
    wanted = {key for key in CATALOG if key.startswith("head")}
    assert keys == wanted | {"decoding", "packing", "prediction"}
    for row in found.rows:
        assert row.ours.value is not None, row.key
        assert np.isfinite(row.ours.value), row.key
    (decoding,) = (row for row in found.rows if row.key == "decoding")
    assert decoding.peers["Pillow"].value is not None
    ratio = {row.key: row.ours.value for row in found.rows}
    assert ratio["heads ratio"] == pytest.approx(
        (ratio["heads epoch"] or 0) / (ratio["head epoch"] or 1)
    )
    assert table.markdown({"cpu": found}) in readme.read_text()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(out.read_text())["platforms"]["cpu"]["hardware"] in done.stdout
    names = {path.name for path in tmp_path.iterdir()} - {"cache", "keras"}
    assert names == {"README.md", "found.json", "found.png"}
