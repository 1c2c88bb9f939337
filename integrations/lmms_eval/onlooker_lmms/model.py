"""The model plug-in: one session per video, questions in order of time, answers on forks."""

from collections import defaultdict
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

import onlooker


class Onlooker(lmms):
    """Watches each video once and answers every question from its past only.

    `model_args`: `pretrained`, `fps`, `device`, `dtype`, and a method of every kind (`encoder`, `compressor`, ...).
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "pocket-aware",
        fps: float = 1.0,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 1,
        **methods: Any,
    ) -> None:
        super().__init__()
        # The engine refuses what is no kind of method: an argument that is dropped in silence would be a run with other
        # settings than its name says.
        self.fps = float(fps)
        self.engine = onlooker.Engine.from_pretrained(pretrained, dtype=dtype, device=device, **methods)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests."""
        asked = defaultdict(list)
        for place, request in enumerate(requests):
            text, options, to_visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            path = str(to_visual(document)[0])
            # What may be seen before the start is a matter of the question, so it is part of what is shared.
            asked[path].append((_time(document), float(document.get("context_from", 0.0)), place, text, options))
        answers = [""] * len(requests)
        for path, questions in asked.items():
            for place, answer in self._watch(path, sorted(questions, key=lambda question: question[0])):
                answers[place] = answer
        return answers

    def _watch(self, path: str, questions: list[tuple[float, float, int, str, dict[str, Any]]]) -> Any:
        waiting = list(questions)
        with self.engine.open() as session:
            for frame in onlooker.open_video(path, fps=self.fps):
                while waiting and waiting[0][0] < frame.time_s:
                    yield self._ask(session, waiting.pop(0))
                session.push(frame)
                if not waiting:
                    return
            while waiting:
                yield self._ask(session, waiting.pop(0))

    def _ask(self, session: Any, question: tuple[float, float, int, str, dict[str, Any]]) -> tuple[int, str]:
        _, since, place, text, options = question
        limit = int(options.get("max_new_tokens", 16))
        return place, session.ask(text, since=min(since, session.time_s), max_new_tokens=limit, temperature=0.0).text

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Rounds of one document, each asked after the reply to the one before."""
        out = []
        for request in requests:
            text, options, to_visual, to_text, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            visual, said, info, stop = to_visual(document), [], None, False
            while not stop:
                since = float(document.get("context_from", 0.0))
                question = (_time(document), since, 0, text, options)
                said.append(next(iter(self._watch(str(visual[0]), [question])))[1])
                visual, text, stop, said, info = to_text(
                    document, previous_output=said, round_idx=len(said), previous_round_info=info
                )
            out.append(said)
        return out

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: a stream is asked, not scored."""
        raise NotImplementedError("onlooker answers questions; it gives no likelihoods of given texts")


def _time(document: dict[str, Any]) -> float:
    """When a question is asked; documents without a time ask at the end."""
    return float(document.get("query_time", float("inf")))
