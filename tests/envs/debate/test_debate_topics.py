import json
import re

import numpy as np
import pytest

from mrlm_envs.debate import verifiable
from mrlm_envs.debate.equations import false_equations
from mrlm_envs.debate.rules import _sentence
from mrlm_envs.debate.state import State
from mrlm_envs.debate.topics import SIDES, Topics, builtin, other, topic_from_row
from mrlm_envs.tasks import in_split

ROW = {
    "id": "tea",
    "motion": "Tea is better than coffee.",
    "pro": [{"claim": "Tea keeps people awake and calm at once"}, {"claim": "Tea can be grown on steep hills"}],
    "con": [{"id": "c1", "claim": "Coffee wakes tired people faster", "source": "a guide", "refutes": ["p1"]}],
}


def test_the_package_ships_forty_topics_with_evidence_and_refutations_on_both_sides():
    topics = builtin()
    assert len(topics) >= 40
    claims = [item.claim for topic in topics.values() for side in SIDES for item in topic.case(side).evidence]
    assert len(set(claims)) == len(claims)
    for topic in topics.values():
        for side in SIDES:
            bank = topic.case(side).evidence
            assert len(bank) >= 4
            assert all(item.source and 8 <= len(item.claim.split()) <= 30 for item in bank)
            theirs = {item.id for item in topic.case(other(side)).evidence}
            refuted = {name for item in bank for name in item.refutes}
            assert len(refuted) >= 2 and refuted <= theirs


def test_every_claim_is_prose_that_the_judge_can_recognise():
    for topic in builtin().values():
        for side in SIDES:
            for item in topic.case(side).evidence:
                sentence = _sentence(f"I say that {item.claim}, as we know from [{item.id}].", {item.id: item})
                assert sentence.is_prose and sentence.quoted == {item.id} and not sentence.denies, item


def test_the_place_of_an_answer_does_not_follow_from_the_ids():
    pairs = {(item.id, item.refutes) for topic in builtin().values() for item in topic.pro.evidence if item.refutes}
    assert len(pairs) > 8


def test_both_splits_have_topics():
    counts = {split: sum(in_split(name, split) for name in builtin()) for split in ("train", "test")}
    assert counts["test"] >= 5 and counts["train"] >= 20


def test_a_row_gets_ids_and_a_clean_motion():
    topic = topic_from_row(ROW, 1, "x")
    assert topic.motion == "Tea is better than coffee"
    assert [item.id for item in topic.pro.evidence] == ["P1", "P2"]
    assert topic.con.evidence[0].refutes == ("P1",)
    assert topic.pro.evidence[0].source == "no source"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": ""}, "field 'motion' is empty"),
        ({"motion": 7}, "field 'motion' must be text"),
        ({"pro": []}, "field 'pro' must be a list"),
        ({"pro": [7]}, "pro evidence 1 must be an object with 'claim'"),
        ({"pro": [{"claim": "x", "id": "1P"}]}, "evidence id '1P' must be letters and a number"),
        ({"pro": [{"claim": "x", "refutes": ["C9"]}]}, "P1 refutes C9, which is not evidence of con"),
        ({"pro": [{"claim": "x", "refutes": "C1"}]}, "'refutes' of P1 must be a list"),
        ({"pro": [{"claim": "x", "id": "C1"}]}, "two pieces of evidence have the id C1"),
        ({"pro": [{"claim": "x", "id": "P1"}, {"claim": "y", "id": "p1"}]}, "two pieces of evidence have the id P1"),
    ],
)
def test_a_row_that_does_not_fit_says_where(change, message):
    with pytest.raises(ValueError, match=f"topics f, row 3: .*{re.escape(message)}"):
        topic_from_row({**ROW, **change}, 3, "f")
    with pytest.raises(ValueError, match="field 'con' is missing"):
        topic_from_row({key: value for key, value in ROW.items() if key != "con"}, 3, "f")


def test_points_of_both_sides_are_claims_without_more():
    topic = topic_from_row(
        {"id": "tea", "topic": "Tea wins.", "pro_points": ["It calms"], "con_points": ["a", "b"]}, 1, "x"
    )
    assert (topic.motion, topic.pro.evidence[0].claim) == ("Tea wins", "It calms")
    assert [item.id for item in topic.con.evidence] == ["C1", "C2"]


def test_topics_come_from_a_file(tmp_path):
    path = tmp_path / "topics.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "milk"}))
    topics = Topics(None, str(path), "open", "train")
    assert topics.num_tasks == 2
    rng = np.random.default_rng(0)
    assert {topics.draw(rng, seed, {}).task_id for seed in range(2)} == {"tea", "milk"}
    assert topics.draw(rng, 0, {"task_id": "milk"}).task_id == "milk"
    assert Topics("milk", str(path), "open", "train").draw(rng, 0, {}).task_id == "milk"


def test_wrong_arguments_say_what_to_do():
    with pytest.raises(ValueError, match="format must be 'open' or 'verifiable', got 'x'"):
        Topics(None, None, "x", "all")
    with pytest.raises(ValueError, match="topic 'x' is not known"):
        Topics("x", None, "open", "all")
    with pytest.raises(ValueError, match="topic and tasks go with format='open'"):
        Topics("cash", None, "verifiable", "all")


@pytest.mark.parametrize("kind", verifiable.KINDS)
def test_a_true_case_adds_up_and_a_false_one_ends_elsewhere(kind):
    ids = set()
    for seed in range(300):
        question = verifiable.generate(np.random.default_rng(seed), kind)
        ids.add(question.task_id)
        assert question.true[0] != question.false[0]
        assert not any(false_equations(claim) for claim, _ in question.true[1])
        assert {len(question.true[1]), len(question.false[1])} <= {3, 4}
        assert not any("= -" in claim for claim, _ in (*question.true[1], *question.false[1]))
    assert len(ids) > 200


def test_the_true_answer_is_right():
    for seed in range(300):
        question = verifiable.generate(np.random.default_rng(seed))
        numbers = [int(n) for n in re.findall(r"\d+", question.text)]
        value = int(re.findall(r"\d+", question.true[0])[0])
        kind = question.task_id.partition(":")[0]
        expected = {
            "product": lambda a, b: a * b,
            "shopping": lambda m, p, n, q: m * p + n * q,
            "remainder": lambda n, m: n % m,
            "equation": lambda a, b, c: (c - b) / a,
            "total": lambda *xs: sum(xs),
            "evens": lambda *xs: sum(x for x in xs if x % 2 == 0),
        }[kind](*numbers)
        assert value == expected, question.text


def test_equal_questions_have_equal_ids_whatever_the_order():
    seen: dict[str, set[str]] = {}
    for seed in range(3000):
        question = verifiable.generate(np.random.default_rng(seed))
        numbers = ",".join(sorted(re.findall(r"\d+", question.text)))
        kind = question.task_id.partition(":")[0]
        if kind in ("product", "total", "evens"):
            seen.setdefault(f"{kind}:{numbers}", set()).add(question.task_id)
    assert all(len(ids) == 1 for ids in seen.values())


def test_the_briefing_shows_the_own_evidence_only():
    topic = builtin()["cash"]
    text = State(topic, 3).briefing("pro")
    assert topic.motion in text and "There are 3 rounds" in text
    assert all(item.claim in text for item in topic.pro.evidence)
    assert not any(item.claim in text for item in topic.con.evidence)
