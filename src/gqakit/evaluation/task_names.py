"""Tasks of lm-eval, by name or from local files, loaded before any model is."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqakit.errors import DataError, MissingDependencyError, UsageError
from gqakit.evaluation.task_files import choice_task

CHOICES, CONFIGS = (".jsonl",), (".yaml", ".yml")


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """What `lm_eval.evaluate` takes: tasks and groups of tasks, with their data.

    Args:
        names: of tasks, groups or tags of lm-eval, whose data it fetches from the Hugging Face hub; or files: `.jsonl`
            with questions (see `choice_task`), `.yaml` with a config of lm-eval.

    Raises:
        MissingDependencyError: without the `eval` extra. UsageError: lm-eval has no such task, two are called the same, or
            one needs more than a language model.
        DataError: a file is missing or malformed, or data cannot be fetched.
    """
    files = {name: Path(name) for name in map(str, names) if is_file(name)}
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"task file {missing} does not exist")
    wrong = next((path for path in files.values() if path.suffix not in CHOICES + CONFIGS), None)
    if wrong is not None:
        raise DataError(f"task file {wrong} ends in {wrong.suffix!r}, expected .jsonl, .yaml or .yml")
    local = {name: choice_task(path) for name, path in files.items() if path.suffix in CHOICES}
    group = any(_is_group(path) for path in files.values() if path.suffix in CONFIGS)
    # Reading lm-eval's own takes a while.
    manager = _manager(include_defaults=group or len(files) < len(names))
    _check_known([name for name in map(str, names) if name not in files], manager)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in map(str, names):
        found = _loaded(manager, name, local.get(name, name))
        if twice := found["tasks"].keys() & loaded["tasks"].keys():
            raise UsageError(f"`tasks` has {', '.join(sorted(twice))} twice; rename a file, or leave one out")
        for kind, kept in loaded.items():
            kept.update(found[kind])
    _check_text_only(loaded["tasks"])
    return loaded


@contextmanager
def unremarked() -> Iterator[None]:
    """Without lm-eval's remarks on how gqakit calls it, which say nothing to whoever runs gqakit."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def is_file(name: str) -> bool:
    """Whether the name of a task is that of a local file."""
    path = Path(name)
    return path.suffix in CHOICES + CONFIGS or path.name != str(name)


def _is_group(path: Path) -> bool:
    """Whether a config may name tasks of lm-eval's own."""
    return re.search(r"^group:", path.read_text(encoding="utf-8", errors="replace"), re.M) is not None


def _manager(include_defaults: bool) -> Any:
    try:
        import lm_eval.models.huggingface  # noqa: F401  # with what it needs in turn
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError(
            f"`tasks` needs the 'eval' extra: pip install 'gqakit[eval]' ({error})"
        ) from error
    return TaskManager(include_defaults=include_defaults)


def _check_known(names: Sequence[str], manager: Any) -> None:
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UsageError(
                f"lm-eval has no task {name!r}.{hint} `lm-eval ls tasks` lists them; a file of your own ends in .jsonl or "
                ".yaml"
            )


def _loaded(manager: Any, name: str, spec: Any) -> dict[str, Any]:
    """One of the tasks, whatever lm-eval and the library that fetches its data say to it."""
    import yaml
    from jinja2 import TemplateError

    try:
        with unremarked():
            return manager.load([spec])
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise DataError(
            f"{name}{line}: is no YAML: {error.problem}; expected a task config of lm-eval"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"task {name}: its data cannot be fetched ({_line(error)}); give a local file in place of the name, or run "
            "it once with a network"
        ) from error
    except (
        OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError, TemplateError,
        yaml.YAMLError,
    ) as error:  # fmt: skip
        raise DataError(
            f"task {name}: lm-eval does not load it: {type(error).__name__}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _check_text_only(tasks: dict[str, Any]) -> None:
    for name, task in tasks.items():
        if getattr(task, "MULTIMODAL", False):
            raise UsageError(f"task {name} has images or sound; `tasks` are for language models")
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(
                f"task {name} runs code that a model writes, which gqakit does not do; use `lm-eval` itself"
            )
