"""What a store is asked about a place, and that no answer is not the answer no."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError, StoreError
from pipeline.inputs import videos
from pipeline.storage import stores
from tests.support.s3_store import BUCKET, Store, forget


def test_a_bucket_that_cannot_be_reached_is_not_a_missing_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget()
    with pytest.raises(StoreError, match="Check AWS_ENDPOINT_URL"):
        videos.videos(f"s3://{BUCKET}")


@pytest.mark.parametrize("fault", ["503", "403"])
def test_a_manifest_that_cannot_be_asked_for_is_not_taken_for_none(store: Store, fault: str) -> None:
    """Its folder would be listed in its stead, with other captions and ids."""
    raw = store.client()
    raw.put_object(Bucket=BUCKET, Key="videos/a.mp4", Body=b"x")
    raw.put_object(Bucket=BUCKET, Key="videos/metadata.jsonl", Body=b'{"path": "a.mp4", "text": "", "id": "mine"}')
    store.fault = lambda request: fault if "metadata.jsonl" in request.path else None
    with pytest.raises((StoreError, InputError), match=r"metadata\.jsonl"):
        videos.videos(f"s3://{BUCKET}/videos")
    store.fault = lambda request: None
    assert videos.videos(f"s3://{BUCKET}/videos").column("id").to_pylist() == ["mine"]


def test_what_a_place_is(store: Store) -> None:
    fs, _ = stores.place(f"s3://{BUCKET}")
    stores.write_bytes(f"s3://{BUCKET}/a/b", b"x")
    place = [f"{BUCKET}/a/b", f"{BUCKET}/a", BUCKET, f"{BUCKET}/c", "nothing-here"]
    assert [fs.exists(p) for p in place] == [True, True, True, False, False]
    assert [fs.isfile(p) for p in place] == [True, False, False, False, False]
    assert [fs.isdir(p) for p in place] == [False, True, True, False, False]
    store.fault = lambda request: "403"
    assert fs.exists(BUCKET), "one that may not be asked about may hold what can be read"
    with pytest.raises(PermissionError):
        fs.exists(f"{BUCKET}/a/b")
