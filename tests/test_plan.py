from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import FileError, PlanError, SelectionError
from secateur.plan import Factorize, Plan, Prune, fingerprint

PRINT = fingerprint({"a.weight": (4, 3), "b": (2,)})


def plan() -> Plan:
    edits = (Prune("a", (1, 3), 4), Prune("a.heads", (0,), 2, "blocks"), Factorize("b", "tucker", (2, 3), {"starts": 2}))
    return Plan(edits, PRINT, {"criterion": {"name": "L2", "fold_bn": False}, "seed": 0, "sizes": (1, 2)})


def changed(path: list[Any], value: Any) -> str:
    whole = json.loads(plan().to_json())
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(whole)


def test_a_plan_read_back_is_equal() -> None:
    again = Plan.from_json(plan().to_json())
    assert again == plan()
    assert again.to_json() == plan().to_json()
    assert hash(again) == hash(plan())


def test_one_edit_is_told_in_the_singular() -> None:
    one = Plan((Prune("a", (0,), 4),), PRINT)
    assert "1 group pruned, 0 layers factorized" in " ".join(str(one).split())


def test_the_fingerprint_sees_names_and_shapes_in_any_order() -> None:
    assert fingerprint({"b": [2], "a.weight": [4, 3]}) == PRINT
    assert fingerprint({"a.weight": (4, 3), "c": (2,)}) != PRINT
    assert fingerprint({"a.weight": (4, 2), "b": (2,)}) != PRINT


def test_a_plan_of_another_model_is_refused() -> None:
    plan().check(PRINT)
    with pytest.raises(PlanError, match="another model"):
        plan().check(fingerprint({"a.weight": (4, 2)}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "secateur-plan/99"),
        (["fingerprint"], None),
        (["fingerprint"], 3),
        (["settings"], []),
        (["extra"], 1),
        (["edits"], {}),
        (["edits", 0], "prune"),
        (["edits", 0, "edit"], "drop"),
        (["edits", 0, "edit"], []),
        (["edits", 0, "extra"], 1),
        (["edits", 0, "size"], None),
        (["edits", 0, "size"], 2),
        (["edits", 0, "size"], True),
        (["edits", 0, "kind"], "rows"),
        (["edits", 0, "kind"], ["channels"]),
        (["edits", 0, "group"], 7),
        (["edits", 0, "remove"], "13"),
        (["edits", 0, "remove"], [-1]),
        (["edits", 0, "remove"], [1.0]),
        (["edits", 0, "remove"], [True]),
        (["edits", 0, "remove"], [0, 1, 2, 3]),
        (["edits", 0, "remove"], []),
        (["edits", 1, "group"], "a"),
        (["edits", 2, "rank"], [0]),
        (["edits", 2, "options"], [1]),
        (["edits", 2, "fit"], "outputs"),
        (["edits", 2, "fit"], ["inputs"]),
        (["edits", 2, "correct_bias"], 1),
    ],
)
def test_damaged_plans_are_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(changed(path, value))


def test_channels_written_by_hand_are_put_in_order() -> None:
    assert Plan.from_json(changed(["edits", 0, "remove"], [3, 1, 3])) == plan()
    assert Prune("a", (2, 0, 2), 4).remove == (0, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1, "format": 1}', plan().to_json()[:-20]])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_field_given_twice_is_refused() -> None:
    twice = plan().to_json().replace('"fingerprint":', '"fingerprint": "other", "fingerprint":', 1)
    with pytest.raises(PlanError, match="twice"):
        Plan.from_json(twice)


def test_settings_must_be_json_values() -> None:
    for value in (object(), float("nan"), {1: 2}):
        with pytest.raises(PlanError, match="JSON"):
            Plan((), PRINT, {"x": value})


def test_files_keep_the_plan(tmp_path: Path) -> None:
    path = plan().save(tmp_path / "plan.json")
    assert Plan.load(path) == plan()
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_directory_that_holds_a_result_gives_its_plan(tmp_path: Path) -> None:
    described = {"format": "secateur-directory/2", "plan": json.loads(plan().to_json())}
    (tmp_path / "plan.json").write_text(json.dumps(described))
    assert Plan.load(tmp_path) == plan()
    assert Plan.load(tmp_path / "plan.json") == plan()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileError, match=r"nothing.plan.json"):
        Plan.load(tmp_path / "nothing")


def test_edits_of_one_kind_that_follow_each_other_are_a_stage() -> None:
    first, second, third, fourth = *plan().edits, Factorize("c", "svd", (2,), fit="sequential")
    assert plan().stages == ((first, second), (third,))
    mixed = Plan((third, first, fourth), PRINT)
    assert mixed.stages == ((third,), (first,), (fourth,))
    assert (plan().needs_data, mixed.needs_data) == (False, True)
    assert "fitted to inputs in turn" in str(mixed)


def test_an_existing_file_is_refused_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists"):
        plan().save(path)
    assert path.read_text() == "mine"
    assert Plan.load(plan().save(path, force=True)) == plan()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        plan().save(tmp_path / "plan.json")
    assert os.listdir(tmp_path) == []


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        Plan.load(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="binary"):
        Plan.load(tmp_path / "binary")


def test_a_draft_can_be_edited() -> None:
    draft = plan().replace("a", remove=[2, 0]).replace("b", rank=(1, 1))
    assert draft.prunes[0] == Prune("a", (0, 2), 4)
    assert draft.factorizations[0].rank == (1, 1)
    assert [e.name for e in draft.replace("a", remove=()).edits] == ["a.heads", "b"]
    assert plan().ratios == {"a": 0.5, "a.heads": 0.5}


def test_editing_an_unknown_name_suggests_another() -> None:
    with pytest.raises(SelectionError, match=r"Did you mean 'a\.heads'"):
        plan().replace("a.head", remove=[0])
    with pytest.raises(SelectionError, match="either"):
        plan().replace("a")


def test_a_plan_prints_as_a_table() -> None:
    text = str(plan())
    for part in ("a.heads", "prune blocks", "50.0%", "1, 3", "factorize (tucker)", "rank 2 x 3", "criterion: name=L2", PRINT[:12]):
        assert part in text


def test_long_lists_are_shortened_in_the_table() -> None:
    assert "7, ... (20)" in str(Plan((Prune("a", tuple(range(20)), 40),), PRINT))
