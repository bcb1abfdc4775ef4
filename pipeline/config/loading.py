"""A configuration out of a recipe or a YAML file, with overrides.

``load("demo", {"root": "runs/demo"})`` reads a recipe by name, or any YAML file, and applies overrides by dotted key.
Unknown keys, wrong types and values that cannot work are a `ConfigError` whose text names the key, the value and what
is allowed; nothing long has started by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import credentials, files
from pipeline.config import overrides as override_values
from pipeline.config.faults import Faults, FaultsError, explained
from pipeline.config.run import DEMO_VIDEOS, PACKAGE, Run
from pipeline.errors import ConfigError

RECIPES = PACKAGE / "config" / "recipes"


def recipes() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Run:
    """The configuration of a recipe or YAML file, with overrides by dotted key ("motion.camera": "subtract").

    The file may be the config.yaml of a run: the versions that a job recorded there are passed over. The value
    `package:PATH` anywhere stands for a path inside the installed package. Raises ConfigError.
    """
    path = RECIPES / f"{name}.yaml" if name in recipes() else Path(name)
    return _changed(_read(name, path), str(path), overrides or {})


def _changed(read: dict[str, Any], path: str, overrides: Mapping[str, Any]) -> Run:
    """The configuration of the values that a file, `path`, holds, with overrides by dotted key. Raises ConfigError."""
    values = _packaged(read)
    if isinstance(values.get("versions"), dict):
        del values["versions"]
    changes = dict(overrides)
    _refuse_credentials(changes)  # before any message can repeat a value
    faults = Faults()
    for key, value in changes.items():
        with faults.collected():
            _put(values, key, _packaged(value))
    with faults.collected():
        run = parse(values, f"{path}, --set included" if changes else path)
    faults.check()
    return run


def load_line(name: str, pairs: Sequence[str]) -> Run:
    """The configuration of a command line: `--config NAME` and the `key=value` of every `--set`, of which the last
    counts where a key is given twice. Raises ConfigError with everything that is wrong in either."""
    return _of_line(pairs, lambda changes: load(name, changes))


def load_record(path: str, data: bytes, pairs: Sequence[str]) -> Run:
    """The configuration that a run recorded: `data`, the bytes of its config.yaml, which lies at `path`; with the
    `key=value` of every `--set`. Raises ConfigError, also where the file ends before its last section, `versions`."""
    try:
        values = files.mapping(data, path)
    except ValueError as error:
        raise ConfigError(f"{error} Every job of a run writes this file: run curate with the recipe again.") from None
    if not isinstance(values.get("versions"), dict):
        raise ConfigError(
            f"{path} is cut short: it lacks its last section, `versions`. Run curate with the recipe again, which "
            "writes it anew."
        )
    return _of_line(pairs, lambda changes: _changed(values, path, changes))


def _of_line(pairs: Sequence[str], loaded: Callable[[Mapping[str, Any]], Run]) -> Run:
    """What is `loaded` with the overrides of a command line. Raises ConfigError with everything that is wrong."""
    changes: dict[str, Any] = {}
    faults = Faults()
    for pair in pairs:
        with faults.collected():
            key, value = override(pair)
            changes[key] = value
    with faults.collected():
        run = loaded(changes)
        _refuse_demo_videos(run)
    faults.check()
    return run


def _refuse_demo_videos(run: Run) -> None:
    """Raise ConfigError where queries or held-out videos are still the demo's, although the data are not."""
    if run.data.videos == DEMO_VIDEOS["data.videos"]:
        return
    sentences = []
    if run.queries.videos == DEMO_VIDEOS["queries.videos"]:
        sentences.append(
            f"queries.videos={run.queries.videos!r} are the demo's synthetic queries, but data.videos="
            f"{run.data.videos!r} are not the demo's videos. Set queries.videos to videos of the motions that you look "
            "for, or set queries.videos=null and queries.sample=20 to begin with clips of your own."
        )
    if run.evaluate.videos == DEMO_VIDEOS["evaluate.videos"]:
        sentences.append(
            f"evaluate.videos={run.evaluate.videos!r} are the demo's synthetic held-out videos, but data.videos="
            f"{run.data.videos!r} are not the demo's videos. Set evaluate.videos to videos that are neither data nor "
            "queries, or to null; or begin with --config tiny, or with `motion-curation init`, which set both."
        )
    if sentences:
        raise FaultsError(sentences)


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        return files.read(path)
    except FileNotFoundError as error:
        local = " It is read from a local file: copy it here first." if "://" in name else ""
        raise ConfigError(
            f"--config {name}: there is no such file, and no such recipe; recipes: {', '.join(recipes())}.{local}"
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(
            f"--config {name}: this is a folder. Name the YAML file, for example {path / 'config.yaml'}, or one of the "
            f"recipes: {', '.join(recipes())}."
        ) from error
    except OSError as error:
        raise ConfigError(f"--config {name}: the file cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(str(error)) from None


def override(pair: str) -> tuple[str, Any]:
    """What `key=value` on a command line overrides, as `load` takes it. Raises ConfigError."""
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"--set {credentials.scrubbed(pair)!r}: write key=value, for example --set motion.camera=subtract."
        )
    try:
        return key, override_values.read(Run, key, text)
    except ValueError as error:
        raise ConfigError(credentials.scrubbed(f"--set {pair!r}: {error}")) from None


def parse(values: Mapping[str, Any], source: str) -> Run:
    _refuse_credentials(values)
    try:
        return Run.model_validate(values)
    except ValidationError as error:
        raise FaultsError([explained(dict(e), Run) for e in error.errors()], source) from error


def _refuse_credentials(value: Any, key: str = "") -> None:
    """Raise ConfigError for an address that carries credentials: config.yaml, tables and logs repeat addresses."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, one in inner:
        _refuse_credentials(one, f"{key}.{name}" if key else str(name))
    kind = credentials.kind_of(value) if isinstance(value, str) else None
    if kind:
        raise ConfigError(
            f"{key}: this address holds {kind}, and it would be repeated in config.yaml, tables and logs. Write it "
            "plainly (s3://bucket/path) and give credentials by the environment: AWS_ACCESS_KEY_ID and its companions, "
            "a profile (AWS_PROFILE), or better the role of the machine or pod. Then renew what was written here."
        )


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    here = values
    for parent in parents:
        inner = here.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}={value!r}: `{parent}` holds the plain value {inner!r}, nothing can lie below it.")
        here = inner
    here[last] = value


def _packaged(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _packaged(v) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("package:"):
        return str(PACKAGE / value.removeprefix("package:"))
    return value
