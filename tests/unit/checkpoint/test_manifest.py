"""The manifest's format, strict in both directions, and the digest of the weights."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_children import manifest

from raytrain.checkpoint import Code, ExactLost, Manifest, Parent, weights_sha256
from raytrain.checkpoint.manifest import FileEntry, ManifestError

KEYS = [
    "attempt",
    "config_digest",
    "created_at",
    "episodes",
    "exact",
    "exact_lost",
    "experiment",
    "files",
    "format",
    "iteration",
    "kind",
    "metrics",
    "parent",
    "run_id",
    "score",
    "snapshot_strategy",
    "stage",
    "timesteps",
    "trial_id",
    "versions",
    "weights_sha256",
]


def test_keys_and_round_trip() -> None:
    full = manifest(
        3,
        kind="stage",
        stage="easy",
        score=0.1 + 0.2,
        exact=False,
        exact_lost=ExactLost("reset", 2),
        parent=Parent("e", "t", "checkpoint_000001", "f" * 64),
        files=(FileEntry("a/b.pkl", 3, "e" * 64),),
    )
    data = full.to_json()
    names = {f.name for f in fields(Manifest)} - {"replacement", "arithmetic", "code"}
    assert sorted(json.loads(data)) == KEYS == sorted(names)
    assert Manifest.from_json(data, "x") == full
    put_there = replace(full, replacement=(2, 17))
    assert Manifest.from_json(put_there.to_json(), "x") == put_there
    with_code = replace(full, code=Code({"my_env.py": "a" * 64}, {"mujoco": "3.3.0"}))
    assert Manifest.from_json(with_code.to_json(), "x") == with_code


def test_metrics_come_back_as_they_were() -> None:
    metrics = {
        "$float": "mine",
        "$$": {"$float": 1},
        "inf": [math.inf, -math.inf, {"deep": True}],
        "np": np.float32(0.1),
        "array": np.array([1, 2]),
        "none": None,
        "big": 2**70,
        "text": "NaN",
    }
    back = Manifest.from_json(manifest(1, metrics=metrics).to_json(), "x").metrics
    assert back == {**metrics, "np": float(np.float32(0.1)), "array": [1, 2]}
    nan = Manifest.from_json(manifest(1, metrics={"m": math.nan}).to_json(), "x").metrics["m"]
    assert math.isnan(nan)


@pytest.mark.parametrize(
    "metrics",
    [
        {"m": math.nan},
        {"m": [{"n": np.float32("nan")}]},
        {"m": np.array([1.0, math.nan]), "n": (1,)},
    ],
    ids=["nan", "below", "array"],
)
def test_a_manifest_is_equal_to_what_is_read_of_it(metrics: dict[str, Any]) -> None:
    written = manifest(1, metrics=metrics, score=math.nan)
    read = [Manifest.from_json(written.to_json(), "x") for _ in range(2)]
    assert read[0] == read[1] == written
    assert read[0] != replace(written, metrics={"m": 1.0})
    assert read[0] != replace(written, score=1.0)
    assert read[0] != read[0].to_json()


@pytest.mark.parametrize("score", [math.nan, math.inf, None])
def test_score_that_is_no_number_is_null(score: float | None) -> None:
    data = manifest(1, score=score).to_json()
    assert json.loads(data)["score"] is None
    assert b"NaN" not in data and b"Infinity" not in data


BAD: list[tuple[str, Any]] = [
    ("kind", "weekly"),
    ("iteration", -1),
    ("iteration", 1.0),
    ("iteration", True),
    ("exact", 1),
    ("exact", False),
    ("score", "high"),
    ("weights_sha256", "abc"),
    ("created_at", "yesterday"),
    ("created_at", "2026-01-02T03:04:05"),
    ("parent", {"experiment": "e"}),
    ("versions", {"ray": 2}),
    ("metrics", []),
    ("metrics", {"m": {"$float": "1"}}),
    ("format", "1"),
    ("files", [{"path": "a", "size": -1, "sha256": "0" * 64}]),
    ("files", [{"path": "a", "size": 1, "sha256": "0" * 64}] * 2),
]
BAD_PATHS = [
    "/etc/passwd",
    "../a",
    "a/../../b",
    "a/../b",
    "./a",
    "a//b",
    ".",
    "..",
    "a\\b",
    "manifest.json",
    ".incomplete",
]
BAD += [("files", [{"path": p, "size": 1, "sha256": "0" * 64}]) for p in ["", *BAD_PATHS]]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_wrong_value_is_refused_naming_the_key(key: str, value: Any) -> None:
    plain = json.loads(manifest(1).to_json())
    plain[key] = value
    with pytest.raises(ManifestError, match=rf"here.*{key}"):
        Manifest.from_json(json.dumps(plain).encode(), "here")


@pytest.mark.parametrize("key", KEYS)
def test_missing_key_is_named(key: str) -> None:
    plain = json.loads(manifest(1).to_json())
    del plain[key]
    with pytest.raises(ManifestError, match=f"the key '{key}' is missing"):
        Manifest.from_json(json.dumps(plain).encode(), "here")


def test_unknown_key_format_and_broken_json() -> None:
    plain = json.loads(manifest(1).to_json())
    with pytest.raises(ManifestError, match="the key 'colour' is unknown"):
        Manifest.from_json(json.dumps({**plain, "colour": 1}).encode(), "here")
    newer = {**plain, "format": 2, "versions": {"raytrain": "3.4.5"}, "colour": 1}
    with pytest.raises(ManifestError, match=r"format 2, written by raytrain 3\.4\.5"):
        Manifest.from_json(json.dumps(newer).encode(), "here")
    for data in (b"", b"{", b"[]", b"\xff\xfe", b'{"score": NaN}', b"[" * 100_000):
        with pytest.raises(ManifestError, match="here"):
            Manifest.from_json(data, "here")


@pytest.mark.parametrize("metrics", [{"m": object()}, {"m": {1: 2}}])
def test_metrics_that_cannot_be_written_are_named(metrics: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=r"metrics\.m"):
        manifest(1, metrics=metrics).to_json()


def test_weights_digest_is_what_the_format_says() -> None:
    state = {
        "b.weight": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T,  # not contiguous
        "a": torch.tensor(7, dtype=torch.int64),
        "half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
    }
    data = (
        b"a\nint64\n\n" + struct.pack("<q", 7)
        + b"b.weight\nfloat32\n3,2\n" + struct.pack("<6f", 1, 4, 2, 5, 3, 6)
        + b"flag\nbool\n2\n\x01\x00"
        + b"half\nbfloat16\n2\n" + b"\x80\x3f\x00\xc0"
        + b"none\nfloat32\n0,4\n"
    )  # fmt: skip
    assert weights_sha256(state) == hashlib.sha256(data).hexdigest()


def test_weights_digest_does_not_depend_on_library_order_or_byte_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    digest = weights_sha256({"a": array, "b": array})
    assert weights_sha256({"b": torch.from_numpy(array), "a": array.astype(">f4")}) == digest
    others: list[dict[str, Any]] = [
        {"a": array, "c": array},
        {"a": array, "b": array.reshape(3, 2)},
        {"a": array, "b": array.view(np.int32)},
        {"a": array, "b": np.nextafter(array, 9, dtype=np.float32)},
    ]
    assert len({digest, *(weights_sha256(other) for other in others)}) == 5
    with pytest.raises(TypeError, match="'a' is a list"):
        weights_sha256({"a": [1.0]})
