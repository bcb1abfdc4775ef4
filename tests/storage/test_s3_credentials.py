"""No secret gets from an address or a store's answer into what a run writes; roles' credentials are asked for anew."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import command
from pipeline import config
from pipeline.config import credentials
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs import videos
from pipeline.storage import stores
from tests.support.s3_store import BUCKET, KEY, SECRET, Store, forget, seen_by

SIGNED = "https://host/bucket/a.mp4?X-Amz-Credential=AKIAXYZXYZXYZXYZXYZX&X-Amz-Signature=feedc0ffee"
WITH_SECRETS = [
    f"s3://{KEY}:{SECRET}@bucket/a.mp4",
    f"s3://{KEY}@bucket/a.mp4",
    "s3://user:pass@bucket",
    "simplecache::s3://user:pa/ss@bucket/x",
    SIGNED,
    "s3://bucket/a.mp4?AWSAccessKeyId=abc&Signature=feedc0ffee&Expires=1",
    "http://host:9000/a.mp4?token=1&sig=feedc0ffee",
]
WITHOUT = [
    "s3://bucket/a@b.mp4",
    "s3://bucket/a:b@c.mp4",
    "http://host:9000/a@b.mp4",
    "http://localhost:9000",
    "/data/a@b:c@d.mp4",
    "owner/name@main",
    "signature=no address",
    "s3://bucket/x?versionId=3",
    "a caption with an @ and a : in it",
]
SECRETS = (SECRET, KEY, "feedc0ffee", "user:pa", "XYZXYZ")


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_an_address_with_credentials_is_found_and_scrubbed(address: str) -> None:
    assert credentials.kind_of(address)
    scrubbed = credentials.scrubbed(f"OSError: cannot open '{address}' (tried twice)")
    assert not [secret for secret in SECRETS if secret in scrubbed], scrubbed
    assert scrubbed.startswith("OSError: cannot open '")


@pytest.mark.parametrize("text", WITHOUT)
def test_a_plain_address_is_left_alone(text: str) -> None:
    assert credentials.kind_of(text) is None
    assert credentials.scrubbed(text) == text or "signature" in text


def test_answers_of_stores_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "abcdefghijklmnop")
    message = f"""<AWSAccessKeyId>ABCDEFGH</AWSAccessKeyId> "SecretAccessKey": "{SECRET}", aws_session_token={SECRET}
        X-Amz-Signature=feedc0ffee abcdefghijklmnop {KEY}"""
    scrubbed = credentials.scrubbed(message)
    for secret in ("ABCDEFGH", SECRET, "feedc0ffee", "abcdefghijklmnop", KEY):
        assert secret not in scrubbed, scrubbed


@pytest.mark.parametrize("key", ["root", "data.videos", "queries.videos", "evaluate.videos", "model.id"])
@pytest.mark.parametrize("address", WITH_SECRETS)
def test_the_configuration_refuses_them_without_repeating_them(key: str, address: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load("demo", {key: address})
    assert key in str(error.value)
    assert "AWS_PROFILE" in str(error.value)
    assert not [secret for secret in SECRETS if secret in str(error.value)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", f"root={WITH_SECRETS[0]}"],
        ["--set", f"root.deeper={WITH_SECRETS[0]}"],
        ["--set", f"root=[{WITH_SECRETS[0]}"],
        ["--set", WITH_SECRETS[0]],
        ["--root", WITH_SECRETS[0]],
        ["--set", f"queries.prompts=[{{'prompt': 'x', 'seed': '{SIGNED}'}}]"],
    ],
)
def test_no_wrong_usage_prints_them(arguments: list[str], tmp_path: Path) -> None:
    run = [sys.executable, "-m", "jobs.report", "--config", "demo", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip()
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr, done.stderr


def test_a_configuration_file_that_is_no_yaml_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"root: 's3://{KEY}:{SECRET}@bucket\ndata: [")
    with pytest.raises(ConfigError) as error:
        config.load(str(tmp_path / "run.yaml"))
    assert not [secret for secret in SECRETS if secret in str(error.value)]


def test_manifest_rows_with_credentials_are_refused_and_other_columns_masked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [{"id": "plain", "path": "a.mp4", "caption": "plain", "url": SIGNED}]
    rows += [
        {"id": str(n), "path": address, "caption": "x", "url": f"s3://bucket/{n}"}
        for n, address in enumerate(WITH_SECRETS)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = videos.videos(str(tmp_path / "m.jsonl"))
    assert table.num_rows == len(rows)
    assert table.column("error")[0].as_py() is None
    assert all(str(error).startswith("refused: ") for error in table.column("error").to_pylist()[1:])
    written = json.dumps(table.to_pylist()) + caplog.text
    assert not [secret for secret in SECRETS if secret in written], written
    assert "1 values of `url`" in caplog.text
    assert table.column("url")[1].as_py() == "s3://bucket/0"


def test_log_lines_are_scrubbed_whoever_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = command._Plain("%(levelname)s %(message)s")
    try:
        raise OSError(f"Could not connect to {SIGNED}")
    except OSError as error:
        record = logging.LogRecord("x", 30, "f", 1, "retrying %s", (WITH_SECRETS[0],), (type(error), error, None))
    assert not [secret for secret in SECRETS if secret in shown.format(record)]


# --- credentials that expire -----------------------------------------------------------------------------------------

PROVIDER = """
import json, sys, datetime, pathlib
asked = pathlib.Path(sys.argv[1]); n = len(asked.read_text().splitlines()) + 1
asked.open("a").write("asked\\n")
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={seconds})
print(json.dumps(dict(Version=1, AccessKeyId=f"ASIAROLE{{n:012d}}", SecretAccessKey="secret-of-the-role-" + str(n),
                      SessionToken="token-of-the-role", Expiration=until.isoformat())))
"""


@pytest.fixture
def role(s3_server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Path]]:
    """A profile whose credentials are handed out by a process, and the file that counts how often it was asked."""
    s3_server.clear()
    seen_by(monkeypatch, s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    (tmp_path / "asked").touch()
    process = f"{sys.executable} {tmp_path / 'provider.py'} {tmp_path / 'asked'}"
    (tmp_path / "config").write_text(f"[profile role]\ncredential_process = {process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "role")
    yield s3_server, tmp_path
    forget()


def test_credentials_of_a_role_are_asked_for_again_when_they_expire(role: tuple[Store, Path]) -> None:
    store, folder = role
    # botocore renews what expires within ten minutes, before every request.
    (folder / "provider.py").write_text(PROVIDER.format(seconds=60))
    stores.write_bytes(f"s3://{BUCKET}/a", b"x")
    first = store.requests[-1].key_id
    stores.write_bytes(f"s3://{BUCKET}/b", b"x")
    second = store.requests[-1].key_id
    assert first.startswith("ASIAROLE")
    assert second.startswith("ASIAROLE")
    assert first != second, "a request was signed with credentials that were about to expire"


def test_credentials_that_last_are_asked_for_once_and_kept_nowhere(role: tuple[Store, Path]) -> None:
    _, folder = role
    (folder / "provider.py").write_text(PROVIDER.format(seconds=36000))
    before = dict(os.environ)
    for name in "abc":
        stores.write_bytes(f"s3://{BUCKET}/{name}", b"x")
        assert stores.read_bytes(f"s3://{BUCKET}/{name}") == b"x"
    assert len((folder / "asked").read_text().splitlines()) == 1
    assert dict(os.environ) == before, "credentials went into the environment"
    fs, _ = stores.place(f"s3://{BUCKET}")
    assert (fs.key, fs.secret, fs.token) == (None, None, None)
    assert "secret-of-the-role" not in fs.to_json() + repr(fs.storage_options), "they would travel with the filesystem"


def test_an_expired_answer_is_tried_again(role: tuple[Store, Path]) -> None:
    store, folder = role
    (folder / "provider.py").write_text(PROVIDER.format(seconds=60))
    refused = [2]

    def expired(request: object) -> str | None:
        refused[0] -= 1
        return "expired" if refused[0] >= 0 else None

    store.fault = expired
    stores.write_bytes(f"s3://{BUCKET}/a", b"x")
    keys = [request.key_id for request in store.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 3, "it was tried again with the same credentials"


def test_a_provider_that_fails_for_a_moment_is_asked_again_and_its_words_are_scrubbed(role: tuple[Store, Path]) -> None:
    _, folder = role
    good = PROVIDER.format(seconds=60)
    fail = "import sys, pathlib\nif len(pathlib.Path(sys.argv[1]).read_text()) < 12:\n"
    fail += f"    pathlib.Path(sys.argv[1]).open('a').write('asked\\n'); sys.exit('no role for {KEY}')\n"
    (folder / "provider.py").write_text(fail + good)
    stores.write_bytes(f"s3://{BUCKET}/a", b"x")
    (folder / "provider.py").write_text(f"import sys; sys.exit('no role for {KEY}: aws_secret_access_key={SECRET}')")
    forget()
    with pytest.raises(StoreError) as error:
        stores.write_bytes(f"s3://{BUCKET}/b", b"x")
    assert "no role for" in str(error.value)
    assert not [secret for secret in SECRETS if secret in str(error.value)]
