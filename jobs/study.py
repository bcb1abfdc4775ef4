"""A blind study: builds the page on which people judge the arms' videos, two at a time (`study.arms`), serves it on
loopback (`study.serve`), and scores the answers (`study.answers`)."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.study:study", __doc__, of_roots=True, afterwards="jobs.study:serve")

import contextlib
import os

from pipeline.config import Run
from pipeline.errors import ConfigError, MissingTableError
from pipeline.stages.progress import Progress
from pipeline.study import answers, handout, results
from pipeline.study.answer_log import AnswerLog
from pipeline.study.pairs import Key
from pipeline.video.decoders import decoder_for


def study(run: Run) -> None:
    if run.study.answers is not None:
        score(run, run.study.answers)
        return
    if run.study.serve and "://" in run.root:
        raise ConfigError(
            f"root={run.root!r}: answers go to a database under the root, which an object store cannot hold. Copy "
            "the folder study/ to a local root and serve it from there, or hand out study/handout as it is."
        )
    built(run)


def built(run: Run) -> Key:
    """The study of this root, built now unless it is there."""
    key = handout.present_key(run)
    if key is None:
        with decoder_for(run) as decoder:
            checking, writing = Progress("videos checked"), Progress("videos written")
            key = handout.build(
                run, decoder, lambda done, of: checking(done, of, {}), lambda done, of: writing(done, of, {})
            )
    elif missing := handout.missing(run.root, key):
        raise MissingTableError(
            f"{handout.place(run.root, 'handout')} lacks {len(missing)} of its files, such as {missing[0]}, but its "
            f"key is still there. Bring it back, or delete the folder {handout.place(run.root)}, answers and all, to "
            "build another study."
        )
    catch = sum(pair.kind != "arms" for pair in key.pairs)
    print(f"study {key.study} of {', '.join(key.arms)}: {len(key.pairs)} pairs to judge, {catch} of them catch trials")
    print(f"give away the folder {handout.place(run.root, 'handout')}; keep {handout.place(run.root, 'key.json')}")
    return key


def score(run: Run, place: str) -> None:
    key = handout.key(run.root)
    if key is None:
        raise MissingTableError(
            f"study.answers={place!r}: {handout.place(run.root)} holds no study; give the root that it was built in."
        )
    handout.present_key(run)
    outcome = results.write(run, key, answers.read(place, key))
    print("\n".join(results.lines(outcome)))
    print(f"page: {handout.place(run.root, 'results.html')}")


def serve(run: Run) -> None:
    """Serve the study until Ctrl-C. The run's lease has been given back by then: this writes none of its tables."""
    key = handout.key(run.root)
    if not run.study.serve or key is None:
        return
    # Here, because `--help` and a study that is built or scored need no server.
    from pipeline.pages.loopback import LOOPBACK
    from pipeline.study.answer_server import AnswerServer

    path = handout.place(run.root, "answers.sqlite")
    with contextlib.closing(AnswerLog(path, key)) as log:
        log.import_lines(handout.place(run.root, "answers.jsonl"))
        page, videos = handout.page(key, served=True), handout.place(run.root, "handout", "videos")
        try:
            server = AnswerServer(run.study.port, page, videos, log)
        except OSError as error:
            raise ConfigError(
                f"study.port={run.study.port}: nothing can be served there ({os.strerror(error.errno or 0)}); name "
                "another port, or 0 for any that is free."
            ) from error
        print(f"judge at http://{LOOPBACK}:{server.port}/", flush=True)
        print(f"answers go to {path}; Ctrl-C ends it, and the same command goes on", flush=True)
        try:
            server.serve()
        except KeyboardInterrupt:
            judged, people = log.counts()
            print(f"\n{judged} judgements of {people} people; to score them: --set study.answers={path}")
