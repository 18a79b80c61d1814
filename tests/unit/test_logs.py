import io
import json
import logging

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from service.records.audit import AuditRow
from service.telemetry import logs
from service.telemetry.metrics import BUCKETS_S, Metrics

SECRET = "my card is 4111 1111 1111 1111"


@pytest.fixture
def written():
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    logs.configure("debug", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_a_line_is_json_with_the_keys_that_are_allowed(written):
    structlog.get_logger("gateway").warning("failed", request_id="r1", code="overloaded")
    (line,) = written()
    assert (line["event"], line["request_id"], line["code"], line["level"]) == ("failed", "r1", "overloaded", "warning")
    assert "dropped" not in line


def test_keys_that_are_not_allowed_are_dropped_and_counted(written):
    structlog.get_logger("gateway").error("failed", prompt=SECRET, headers={"authorization": SECRET}, code="x")
    (line,) = written()
    assert line["dropped"] == 2
    assert SECRET not in json.dumps(line)


def test_allowed_keys_carry_plain_values_of_bounded_length_only(written):
    structlog.get_logger("gateway").error("x" * 5_000, error=ValueError(SECRET), at=[{"text": SECRET}], code="\udc80")
    (line,) = written()
    assert len(line["event"]) == logs.MAX_VALUE_CHARS
    assert line["error"] == "ValueError"
    assert line["at"] == ["dict"]


def fail():
    raise ValueError(SECRET)


@pytest.mark.parametrize("name", ["gateway", "uvicorn.error", "asyncio", "aiohttp.server", "some.library"])
def test_an_exception_is_logged_by_type_and_place_without_its_message(written, name):
    try:
        fail()
    except ValueError:
        structlog.get_logger(name).exception("broke")
        logging.getLogger(name).exception("broke on %s", SECRET)
    for line in written():
        assert line["error"] == "ValueError"
        assert line["at"][-1].startswith("test_logs.py:")
    assert len(written()) == 2
    assert SECRET not in json.dumps(written())


def test_other_libraries_arguments_and_later_lines_are_not_written(written):
    logging.getLogger("litestar").error("request %s", SECRET)
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task result=%r>" % SECRET)  # noqa: UP031
    assert [line["event"] for line in written()] == ["request %s", "Task exception was never retrieved"]


def test_access_logs_are_off(written):
    logging.getLogger("uvicorn.access").info('"GET /v1?key=%s"', SECRET)
    assert written() == []


# -- metrics ---------------------------------------------------------------------------------------------------------


def samples(metrics):
    text = metrics.exposition()[1].decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, *sorted(s.labels.items())): s.value for s in found}


def test_a_request_is_counted_by_protocol_action_category_and_status():
    metrics = Metrics()
    row = AuditRow(time=1, request_id="r", protocol="chat", action="block", category="jailbreak", status=400)
    metrics.observe(row)
    metrics.observe(row)
    labels = (("action", "block"), ("category", "jailbreak"), ("protocol", "chat"), ("status", "400"))
    assert samples(metrics)[("firewall_requests_total", *labels)] == 2


def test_stages_have_buckets_from_a_hundred_microseconds():
    metrics = Metrics()
    metrics.observe(AuditRow(time=1, request_id="r", judge_ms=0.05, total_ms=3.0, upstream_ms=2.0, reply_judge_ms=0.5))
    found = samples(metrics)
    assert BUCKETS_S[0] == 0.0001
    assert found[("firewall_stage_seconds_bucket", ("le", "0.0001"), ("stage", "judge"))] == 1
    assert found[("firewall_stage_seconds_sum", ("stage", "upstream"))] == pytest.approx(0.0015)
    assert found[("firewall_stage_seconds_sum", ("stage", "own"))] == pytest.approx(0.0015)


def test_what_was_not_judged_and_what_failed_is_counted():
    metrics = Metrics()
    metrics.observe(AuditRow(time=1, request_id="r", unjudged=("injection",), error="upstream_timeout"))
    found = samples(metrics)
    assert found[("firewall_unjudged_total", ("guard", "injection"))] == 1
    assert found[("firewall_errors_total", ("code", "upstream_timeout"))] == 1


def test_no_label_takes_a_callers_words():
    metrics = Metrics()
    metrics.observe(AuditRow(time=1, request_id="r", model=SECRET, tenant=SECRET, unknown_fields=(SECRET,)))
    assert SECRET not in metrics.exposition()[1].decode()


def test_a_watched_value_is_read_at_every_scrape():
    metrics, depth = Metrics(), [0]
    metrics.watch("queue_windows", "Windows that wait to be scored", lambda: depth[0])
    depth[0] = 7
    assert samples(metrics)[("firewall_queue_windows",)] == 7
