import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrlm_envs.tasks import Tasks, in_split


@dataclass(frozen=True)
class Named:
    task_id: str


def parse(row, number, source):
    if "name" not in row:
        raise ValueError(f"tasks {source}, row {number}: field 'name' is missing (found: {', '.join(row)})")
    return Named(row["name"])


ROWS = [{"name": f"t{i}"} for i in range(10)]


def test_seeds_0_to_n_are_one_full_pass_in_an_order_that_stays():
    tasks = Tasks(ROWS, "train", parse)
    order = [tasks.at(seed).task_id for seed in range(10)]
    assert sorted(order) == sorted(row["name"] for row in ROWS) and order != [row["name"] for row in ROWS]
    assert order == [Tasks(ROWS, "test", parse).at(seed + 20).task_id for seed in range(10)]


def test_a_task_is_picked_by_name():
    assert Tasks(ROWS, "train", parse).named("t3").task_id == "t3"
    with pytest.raises(ValueError, match="'t11' is not in this source of 10 tasks"):
        Tasks(ROWS, "train", parse).named("t11")
    with pytest.raises(ValueError, match=r"task_id \['t1'\] is not in this source"):
        Tasks(ROWS, "train", parse).named(["t1"])


def test_a_mapping_serves_its_splits():
    source = {"train": ROWS[:7], "test": ROWS[7:]}
    assert [len(Tasks(source, split, parse)) for split in ("train", "test", "all")] == [7, 3, 10]
    with pytest.raises(ValueError, match=r"no split 'test' \(found: train\)"):
        Tasks({"train": ROWS}, "test", parse)


def test_rows_without_an_id_get_one_of_their_own_in_each_split():
    def by_place(row, number, source):
        return Named(f"{source}/{number}")

    tasks = Tasks({"train": ROWS[:7], "test": ROWS[7:]}, "all", by_place)
    assert len({task.task_id for task in tasks.rows}) == 10


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_files_of_each_kind_are_read(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if ending == "json" else "\n".join(map(json.dumps, ROWS)) + "\n\n")
    for source in (str(path), path):
        assert [task.task_id for task in Tasks(source, "train", parse).rows] == [row["name"] for row in ROWS]


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a"}\n')
    assert Tasks(str(path), "train", parse).at(0).task_id == "a"
    path.write_text('{"name": "bc"}\n')
    assert Tasks(str(path), "train", parse).at(0).task_id == "bc"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        (
            "rows.jsonl",
            '{"name": "a"}\n{"nam": 1}\n',
            r"tasks rows.jsonl, row 2: field 'name' is missing \(found: nam\)",
        ),
        ("rows.jsonl", '{"name": "a"}\n{"name": \n', "tasks rows.jsonl, row 2: not JSON"),
        ("rows.jsonl", "[1]\n", "row 1: expected an object, got list"),
        ("rows.jsonl", "", "tasks rows.jsonl: no rows"),
        ("rows.json", "{}", "expected a list of rows, got dict"),
        ("rows.csv", "a,b", "ending '.csv' is not one of"),
    ],
)
def test_a_bad_file_names_the_file_the_row_and_the_fault(tmp_path, name, text, error):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        Tasks(str(path), "train", parse)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"tasks nowhere\.jsonl: no such file"):
        Tasks("nowhere.jsonl", "train", parse)


def test_a_source_of_another_type_is_refused():
    with pytest.raises(ValueError, match="got int"):
        Tasks(3, "train", parse)  # pyright: ignore[reportArgumentType]


def test_the_hub_path_loads_a_local_folder_with_its_own_splits(tmp_path):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"name": split}) + "\n")
    assert [Tasks(f"hf:{tmp_path}", split, parse).at(0).task_id for split in ("train", "test")] == ["train", "test"]
    assert len(Tasks(f"hf:{tmp_path}", "all", parse)) == 2


@given(st.text(alphabet=st.characters(codec=None)))
def test_every_task_is_in_exactly_one_split(task_id):
    assert in_split(task_id, "train") != in_split(task_id, "test")
    assert in_split(task_id, "all")


@given(st.text(), st.text(), st.text())
def test_ids_that_differ_behind_a_hash_sign_only_share_a_split(task_id, question, other):
    assert in_split(f"{task_id}#{question}", "test") == in_split(f"{task_id}#{other}", "test")


def test_one_task_in_five_is_a_test_task():
    share = sum(in_split(f"addition:{a}+{b}", "test") for a in range(100) for b in range(a, 100)) / 5050
    assert 0.18 < share < 0.22
