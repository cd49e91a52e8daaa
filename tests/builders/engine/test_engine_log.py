"""A build's messages are its own, and what fails while they are written ends nothing."""

from __future__ import annotations

import threading

from fake_tensorrt import fake_module

from twins_trt.bindings import process_logger
from twins_trt.builders.engine.log import capture


def test_one_build_at_a_time_has_the_log() -> None:
    module = fake_module("10.3.0")
    order: list[str] = []

    def second() -> None:
        with capture(module) as (logger, log):
            logger.log(module.ILogger.Severity.ERROR, "second")
            order.append(f"second saw {log.errors}")

    with capture(module) as (logger, first):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        logger.log(module.ILogger.Severity.ERROR, "first")
        order.append(f"first saw {first.errors}")
    thread.join()
    assert order == ["first saw ['first']", "second saw ['second']"]
    # Messages after a build, of runtimes for instance, belong to none.
    with capture(module) as (_, third):
        pass
    process_logger(module).log(module.ILogger.Severity.ERROR, "late")
    assert third.errors == [] and first.errors == ["first"] and process_logger(module) is logger


def test_a_logger_that_fails_inside_the_compiler_does_not_raise() -> None:
    module = fake_module("10.3.0")
    with capture(module) as (logger, log):
        logger.log(module.ILogger.Severity.ERROR, None)  # `record` fails on what is no text
    assert log.errors == []
