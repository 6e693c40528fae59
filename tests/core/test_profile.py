"""Profiles: tables, estimates with their source, epochs, files."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.config import Settings
from genie.device import Device
from genie.errors import CodecError, GenieError, VersionMismatch
from genie.graph import Graph, Input, Node, Ref, Semantics, TensorSpec
from genie.interfaces import Appraising, CostModel
from genie.plugins import registry
from genie.profile import Profile, Record, device_key, store
from genie.profile.signature import questions, signature_of, trait_of
from genie.profile.table import MOST_ROWS, Table, merged
from genie.schedule import Roofline, RooflineCostModel, Scheduler
from genie.schedule.cost import Calibration, Fitted, traits
from genie.schedule.links import Reach
from genie.timing import Operand, Timing

CPU = Device(id="cpu", type="CPU", memory_gb=16, compute_tflops=0.1, hardware="Some CPU, 2 cores, here")
KEY = device_key(CPU)


def mm(m: int, k: int, n: int, seconds: float, *, count: int = 10, phase: str = "", spread: float = 0.0) -> Timing:
    operands = (Operand("float32", (m, k)), Operand("float32", (k, n)))
    results = (Operand("float32", (m, n)),)
    return Timing("aten::mm", phase, operands, results, count, seconds, seconds, (spread * seconds) ** 2, seconds)


def graph(m: int, k: int, n: int, phase: str | None = None, dtype: str = "float32") -> Graph:
    values = (TensorSpec((m, k), dtype), TensorSpec((k, n), dtype), TensorSpec((m, n), dtype))
    semantics = Semantics(phase=phase) if phase else None
    steps = (Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,), semantics=semantics),)
    return Graph(values, (Input(0), Input(1)), steps, (2,))


def ask(profile: Profile, *of: int, phase: str | None = None):
    return profile.model([CPU]).appraise(graph(*of, phase=phase).nodes(), CPU)[0]


# --- estimates -----------------------------------------------------------------------------------------


def test_nothing_measured_is_the_roofline():
    profile = Profile()
    model = profile.model([CPU])
    assert isinstance(model, CostModel)
    assert isinstance(model, Appraising)
    nodes = graph(64, 64, 64).nodes()
    assert model.appraise(nodes, CPU) == RooflineCostModel().appraise(nodes, CPU)
    assert model.estimate_compute(nodes[0], CPU) == RooflineCostModel().estimate_compute(nodes[0], CPU)


def test_a_measured_row_is_its_own_estimate():
    profile = Profile()
    profile.observe(KEY, [mm(64, 64, 64, 3e-5)])
    found = ask(profile, 64, 64, 64)
    assert (found.seconds, found.source) == (3e-5, "profiled")
    assert ask(profile, 64, 64, 32).source == "interpolated"


def test_phases_have_rows_of_their_own():
    profile = Profile()
    profile.observe(KEY, [mm(8, 8, 8, 1e-5, phase="prefill"), mm(8, 8, 8, 3e-5, phase="decode")])
    assert ask(profile, 8, 8, 8, phase="prefill").seconds == 1e-5
    assert ask(profile, 8, 8, 8, phase="decode").seconds == 3e-5
    between = ask(profile, 8, 8, 8)
    assert between.source == "interpolated"
    assert 1e-5 < between.seconds < 3e-5


def test_similar_shapes_are_estimated_from_the_nearest():
    """A device twice as slow as its roofline says: so are shapes nobody measured."""
    profile = Profile()
    profile.calibrate(KEY, _calibration(0.5))
    sizes = [16, 32, 64, 128, 256, 512]
    rows = []
    for size in sizes:
        node = graph(size, size, size).nodes()[0]
        rows.append(mm(size, size, size, 2 * roofline_of(profile, node)))
    profile.observe(KEY, rows)
    node = graph(96, 96, 96).nodes()[0]
    found = ask(profile, 96, 96, 96)
    assert found.source == "interpolated"
    assert found.seconds == pytest.approx(2 * roofline_of(profile, node), rel=0.01)
    assert found.error < 0.05


def roofline_of(profile: Profile, node) -> float:
    return profile.roof(CPU).estimate(traits(node.graph)[node.id]).seconds


def _calibration(share: float, error: float = 0.1) -> Calibration:
    return Calibration(0.1, 20.0, {"other": Fitted(Roofline(share, share, 2e-6, 0.0), error, 9)})


def test_the_error_of_estimates_from_similar_shapes_is_what_the_rows_themselves_show():
    steady, wild = Profile(), Profile()
    rng = random.Random(1)
    for size in (16, 24, 32, 48, 64, 96, 128, 192):
        seconds = 2e-6 + 2 * size**3 / 6e10
        steady.observe(KEY, [mm(size, size, size, seconds)])
        wild.observe(KEY, [mm(size, size, size, seconds * math.exp(rng.gauss(0, 1)))])
    assert ask(wild, 80, 80, 80).error > 3 * ask(steady, 80, 80, 80).error


def test_the_error_of_a_row_shrinks_with_its_count():
    profile = Profile()
    profile.observe(KEY, [mm(8, 8, 8, 1e-5, count=4, spread=0.8), mm(16, 8, 8, 1e-5, count=400, spread=0.8)])
    assert ask(profile, 8, 8, 8).error == pytest.approx(0.4)
    assert ask(profile, 16, 8, 8).error == pytest.approx(0.04)


def test_a_device_nobody_calibrated_gets_rooflines_of_what_was_seen():
    profile = Profile()
    rng = random.Random(0)
    rows = []
    for _ in range(40):
        m, k, n = (rng.choice([64, 128, 256, 384, 512, 768]) for _ in range(3))
        rows.append(mm(m, k, n, 1e-5 + 2 * m * k * n / 5e9))  # 12 times slower than the figures say
    profile.observe(KEY, rows)
    nodes = graph(640, 640, 640, dtype="bfloat16").nodes()
    found = profile.model([CPU]).appraise(nodes, CPU)[0]
    assert found.source == "roofline"
    assert found.seconds == pytest.approx(2 * 640**3 / 5e9, rel=0.1)


def test_products_tell_of_each_other():
    profile = Profile()
    profile.calibrate(KEY, _calibration(0.5))
    profile.observe(KEY, [mm(64, 64, 64, 1e-3)])
    values = (TensorSpec((4, 16, 64), "float32"), TensorSpec((64, 64), "float32"), TensorSpec((4, 16, 64), "float32"))
    steps = (Node(0, "aten::linear", "", (Ref(0), Ref(1), None), (2,)),)
    found = profile.model([CPU]).appraise(Graph(values, (Input(0), Input(1)), steps, (2,)).nodes(), CPU)[0]
    assert found.source == "interpolated"
    assert found.seconds == pytest.approx(1e-3, rel=0.2)


def test_a_few_odd_executions_move_little():
    profile = Profile()
    for _ in range(20):
        profile.observe(KEY, [mm(8, 8, 8, 1e-5, count=1)])
    before = ask(profile, 8, 8, 8).seconds
    profile.observe(KEY, [mm(8, 8, 8, 1e-2, count=1)])
    assert ask(profile, 8, 8, 8).seconds < 1.05 * before


def test_other_devices_rows_do_not_count():
    profile = Profile()
    profile.observe(device_key(msgspec.structs.replace(CPU, hardware="Another CPU")), [mm(8, 8, 8, 1.0)])
    assert ask(profile, 8, 8, 8).source == "roofline"


def test_equal_hardware_is_one_device():
    other = msgspec.structs.replace(CPU, id="10.0.0.1:8888/cpu", address="10.0.0.1:8888")
    assert device_key(other) == KEY
    assert device_key(msgspec.structs.replace(other, hardware="")) != device_key(
        msgspec.structs.replace(CPU, hardware="")
    )


def test_a_schedule_says_where_its_estimates_come_from():
    profile = Profile()
    profile.observe(KEY, [mm(64, 64, 64, 3e-5, phase="decode")])
    scheduler = Scheduler([CPU])
    scheduler.set_cost_model(profile.model([CPU]))
    plan = scheduler.schedule(graph(64, 64, 64, "decode"))
    assert plan.decisions[0].seconds == 3e-5


def test_the_model_by_its_name_reads_what_is_kept(tmp_path: Path):
    profile = Profile(tmp_path)
    profile.observe(KEY, [mm(64, 64, 64, 3e-5)])
    profile.save()
    model = registry.make("cost_model", "profiled", Settings(profile_dir=str(tmp_path)))
    assert model.appraise(graph(64, 64, 64).nodes(), CPU)[0].seconds == 3e-5


def test_equal_nodes_are_asked_once():
    spec = TensorSpec((8, 8), "float32")
    steps = tuple(Node(n, "aten::mm", "", (Ref(n + 1), Ref(0)), (n + 2,)) for n in range(50))
    made = Graph((spec,) * 52, (Input(0), Input(1)), steps, (51,))
    assert len(questions(made).asked) == 1
    profile = Profile()
    profile.observe(KEY, [mm(8, 8, 8, 7e-6)])
    assert {each.seconds for each in profile.model([CPU]).appraise(made.nodes(), CPU)} == {7e-6}


@pytest.mark.parametrize(
    ("target", "args", "shapes"),
    [
        ("aten::mm", (Ref(0), Ref(1)), [(4, 8), (8, 2), (4, 2)]),
        ("aten::addmm", (Ref(0), Ref(1), Ref(2), 1, 1), [(2,), (4, 8), (8, 2), (4, 2)]),
        ("aten::linear", (Ref(0), Ref(1), None), [(3, 4, 8), (2, 8), (3, 4, 2)]),
        ("aten::embedding", (Ref(0), Ref(1), -1, False, False), [(100, 8), (4,), (4, 8)]),
        (
            "aten::scaled_dot_product_attention",
            (Ref(0), Ref(1), Ref(2), None, 0.0, True),
            [(1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), (1, 2, 4, 8)],
        ),
        ("aten::relu", (Ref(0),), [(5, 5), (5, 5)]),
    ],
)
def test_a_rows_work_is_its_nodes_work(target, args, shapes):
    values = tuple(
        TensorSpec(shape, "int64" if target == "aten::embedding" and i == 1 else "float32")
        for i, shape in enumerate(shapes)
    )
    last = len(values) - 1
    made = Graph(values, tuple(map(Input, range(last))), (Node(0, target, "", args, (last,)),), (last,))
    asked = questions(made).asked[0]
    assert trait_of(asked.signature) == asked.trait


# --- epochs --------------------------------------------------------------------------------------------


def test_the_epoch_grows_when_an_estimate_in_use_moves_by_more_than_its_error():
    profile = Profile()
    profile.observe(KEY, [mm(8, 8, 8, 1e-5, count=100, spread=0.5)])  # an error of 5 %
    assert profile.epoch == 0  # nobody asked yet
    ask(profile, 8, 8, 8)
    assert not profile.observe(KEY, [mm(8, 8, 8, 1.05e-5, count=100, spread=0.5)])
    assert profile.epoch == 0
    assert profile.observe(KEY, [mm(8, 8, 8, 2e-5, count=300, spread=0.5)])
    assert profile.epoch == 1


def test_small_moves_add_up():
    """What counts is the estimate plans were made with."""
    profile = Profile()
    profile.observe(KEY, [mm(8, 8, 8, 1e-5, count=100, spread=0.5)])
    ask(profile, 8, 8, 8)
    grown = [profile.observe(KEY, [mm(8, 8, 8, 1.3e-5, count=10)]) for _ in range(40)]
    assert not grown[0]
    assert any(grown)
    assert profile.epoch < 10


def test_rows_of_operators_nobody_asked_about_change_no_epoch():
    profile = Profile()
    ask(profile, 8, 8, 8)
    other = msgspec.structs.replace(mm(8, 8, 8, 5.0), target="aten::foo")
    assert not profile.observe(KEY, [other])
    assert profile.epoch == 0
    assert profile.observe(KEY, [mm(8, 8, 8, 5.0)])


def test_what_similar_shapes_tell_counts_too():
    profile = Profile()
    ask(profile, 64, 64, 64)
    assert profile.observe(KEY, [mm(64, 64, 72, 1.0)])


def test_a_calibration_is_a_change():
    profile = Profile()
    ask(profile, 64, 64, 64)
    assert profile.calibrate(KEY, _calibration(0.01))
    assert profile.epoch == 1


def test_impossible_rows_are_passed_over():
    profile = Profile()
    assert not profile.observe(KEY, [mm(8, 8, 8, float("nan")), mm(-1, 8, 8, 1.0), mm(8, 8, 8, 1.0, phase="lunch")])
    assert profile.records() == ()


def test_many_threads_may_tell_and_ask():
    profile = Profile()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                size = rng.choice([8, 16, 32, 64])
                profile.observe(KEY, [mm(size, size, size, rng.uniform(1e-6, 1e-4))])
                assert ask(profile, size, size, size).source == "profiled"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


# --- tables --------------------------------------------------------------------------------------------


@given(
    a=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=40),
    b=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=40),
)
@settings(deadline=None)
def test_two_rows_are_counted_as_if_they_were_one(a: list[float], b: list[float]):
    def row(times: list[float]) -> Timing:
        mean = sum(times) / len(times)
        variance = sum((time - mean) ** 2 for time in times) / len(times)
        return msgspec.structs.replace(mm(8, 8, 8, mean, count=len(times)), least=min(times), variance=variance)

    both, whole = merged(row(a), row(b)), row(a + b)
    assert both.count == whole.count
    assert both.least == whole.least
    assert both.mean == pytest.approx(whole.mean)
    assert both.variance == pytest.approx(whole.variance, rel=1e-6, abs=1e-15)


def test_the_past_weighs_no_more_than_so_much():
    row = mm(8, 8, 8, 1e-5, count=10**9)
    for _ in range(20):
        row = merged(row, mm(8, 8, 8, 5e-5, count=100))
    assert row.typical > 4.9e-5


def test_tables_are_bounded_and_keep_what_counts_most():
    table = Table(mm(1 + n % 200, 1 + n // 200, 8, 1e-5, count=n + 1) for n in range(600))
    assert len(table) <= 256
    assert min(row.count for row in table.rows()) > 300
    many = Table(
        msgspec.structs.replace(mm(8, 8, 8, 1e-5, count=n + 1), target=f"aten::op{n}") for n in range(MOST_ROWS + 50)
    )
    assert len(many) == MOST_ROWS
    assert min(row.count for row in many.rows()) == 51


# --- files ---------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path):
    profile = Profile(tmp_path)
    profile.observe(KEY, [mm(64, 64, 64, 3e-5)])
    profile.calibrate(KEY, _calibration(0.5))
    profile.connect(KEY, "10.0.0.1:8888", Reach(1e-4, 1e9, 2e9))
    (path,) = profile.save()
    assert profile.save() == ()  # nothing new
    other = Profile(tmp_path)
    assert other.load() == ()
    assert other.records() == profile.records()
    assert ask(other, 64, 64, 64) == ask(profile, 64, 64, 64)
    near, far = (
        Device(id="a", type="CPU", memory_gb=1, compute_tflops=1),
        Device(id="b", type="CPU", memory_gb=1, compute_tflops=1, address="10.0.0.1:8888"),
    )
    assert other.model().estimate_transfer(near, far, 10**9) == pytest.approx(1 + 1e-4)
    assert other.model().estimate_transfer(far, near, 10**9) == pytest.approx(0.5 + 1e-4)
    assert path.parent == tmp_path
    assert [each for each in tmp_path.iterdir() if each.suffix == ".profile"] == [path]


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path):
    one, other = Profile(tmp_path), Profile(tmp_path)
    one.observe(KEY, [mm(8, 8, 8, 1e-5)])
    other.calibrate(KEY, _calibration(0.5))
    other.observe(KEY, [mm(16, 8, 8, 1e-5)])
    one.save()
    other.save()
    one.observe(KEY, [mm(32, 8, 8, 1e-5)])
    one.save()
    whole = Profile(tmp_path)
    whole.load()
    (record,) = whole.records()
    assert len(record.rows) == 3
    assert record.calibration is not None


@pytest.mark.parametrize("cut", [0, 7, 30, 60, -1])
def test_a_file_cut_short_is_named_and_left_out(tmp_path: Path, cut: int):
    profile = Profile(tmp_path)
    profile.observe(KEY, [mm(64, 64, 64, 3e-5)])
    (path,) = profile.save()
    path.write_bytes(path.read_bytes()[:cut])
    other = Profile(tmp_path)
    (error,) = other.load()
    assert isinstance(error, CodecError)
    assert error.where == str(path)
    assert "genie profile clear" in str(error)
    assert ask(other, 64, 64, 64).source == "roofline"


def test_another_major_is_named(tmp_path: Path):
    path = store.write(tmp_path, Record(key=KEY))
    data = bytearray(path.read_bytes())
    data[8] = 9
    path.write_bytes(data)
    with pytest.raises(VersionMismatch, match="version 9"):
        store.read(path)


@pytest.mark.parametrize(
    "record",
    [
        Record(key=""),
        Record(key="x" * 5000),
        Record(key=KEY, rows=(mm(8, 8, 8, -1.0),)),
        Record(key=KEY, calibrated=float("nan")),
        Record(key=KEY, address="\x1b[31m"),
    ],
)
def test_impossible_files_are_refused(record: Record):
    with pytest.raises(CodecError, match="impossible"):
        store.decode(store.encode(record))


def test_a_calibration_of_nonsense_is_refused():
    good = store.encode(Record(key=KEY, calibration=_calibration(0.5)))
    body = msgspec.msgpack.decode(good[40:])
    body["calibration"]["classes"]["other"]["roofline"]["compute"] = -1.0
    bad = msgspec.msgpack.encode(body)
    header = store._HEADER.pack(store.MAGIC, store.MAJOR, store.MINOR, len(bad), store._hash(bad))
    with pytest.raises(CodecError, match="does not decode"):
        store.decode(header + bad)


def test_a_file_under_anothers_name_is_refused(tmp_path: Path):
    path = store.write(tmp_path, Record(key=KEY))
    moved = path.rename(path.with_name("0" * 16 + store.SUFFIX))
    with pytest.raises(CodecError, match="another name"):
        store.read(moved)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_decode_to_sound_records_or_are_refused(data: st.DataObject):
    whole = bytearray(store.encode(Record(key=KEY, rows=(mm(8, 8, 8, 1e-5),), calibration=_calibration(0.5))))
    body = whole[40:]
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    header = store._HEADER.pack(store.MAGIC, store.MAJOR, store.MINOR, len(body), store._hash(bytes(body)))
    try:
        record = store.decode(header + bytes(body))
    except GenieError:
        return
    profile = Profile()
    profile.observe(record.key, record.rows)
    if record.calibration is not None:
        profile.calibrate(record.key, record.calibration)
    found = ask(profile, 8, 8, 8)
    assert math.isfinite(found.seconds)
    assert found.seconds >= 0


def test_the_directory_is_where_the_user_keeps_data(tmp_path: Path):
    assert store.default_directory({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "genie"
    assert store.default_directory({"XDG_DATA_HOME": "relative"}) == Path.home() / ".local/share/genie"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    profile = Profile(tmp_path / "file" / "below")
    profile.observe(KEY, [mm(8, 8, 8, 1e-5)])
    with pytest.raises(CodecError, match="cannot write"):
        profile.save()


def test_signatures_are_rows_names():
    row = mm(8, 8, 8, 1e-5, phase="decode")
    assert questions(graph(8, 8, 8, "decode")).asked[0].signature == signature_of(row)
