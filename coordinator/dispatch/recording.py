"""Reports of many agents in one transaction; when it fails, run by run, so that one run fails its own alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import structlog

from coordinator.dispatch.port import Answer, DispatchStore, Report
from coordinator.errors import StoreDown

_log = structlog.get_logger(__name__)

_DEFECT = "the coordinator could not record it, by a mistake of Headrace itself; its log says more"


async def recorded(store: DispatchStore, reports: Sequence[Report]) -> Sequence[Answer | Exception]:
    """An answer for each report, or StoreDown: the agent hands it in again. Raises StoreDown for all of them.

    What can never be recorded is a defect: it is logged, and its agent drops the attempt instead of handing it in
    for ever.
    """
    try:
        return await store.report(reports)
    except StoreDown:
        runs = await store.runs_of(sorted({each.attempt_id for each in reports}))
        if len(set(runs.values())) < 2:
            raise
    except Exception as error:
        _log.exception("reports could not be recorded together", count=len(reports), error=str(error))
        runs = await store.runs_of(sorted({each.attempt_id for each in reports}))
    by_run: dict[int | None, list[int]] = defaultdict(list)
    for place, each in enumerate(reports):
        by_run[runs.get(each.attempt_id)].append(place)
    answers: dict[int, Answer | Exception] = {}
    for run_id, places in by_run.items():
        found = await _of_run(store, run_id, [reports[place] for place in places])
        answers.update(zip(places, found, strict=True))
    return [answers[place] for place in range(len(reports))]


async def _of_run(store: DispatchStore, run_id: int | None, reports: Sequence[Report]) -> Sequence[Answer | Exception]:
    try:
        return await store.report(reports)
    except StoreDown as error:
        return [error] * len(reports)
    except Exception as error:
        if len(reports) > 1:
            return [answer for each in reports for answer in await _of_run(store, run_id, [each])]
        (only,) = reports
        _log.exception("a report could not be recorded", run=run_id, attempt=only.attempt_id, error=str(error))
        return [Answer(only.id, only.attempt_id, abort=True, sentence=_DEFECT)]
