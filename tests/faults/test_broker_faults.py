"""Faults of a broker, and of the line to it, against a daemon with a store; each fault has a stated outcome."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.daemons import pump_records
from tests.support.network import SlowLink
from tests.support.plant import count, end, hold, of_sink, of_source, open_plant, pause, resume, subscriber, turns_on
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

_ACCESS = sorted(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))


def test_a_restarted_broker_costs_nothing(tmp_path: Path) -> None:
    """A restart with messages in flight: nothing is lost, redeliveries are recognised, no sample is applied twice."""
    with open_plant(tmp_path) as here, subscriber(here.broker.port) as heard, here.daemon() as daemon:
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        hold(daemon)
        here.publish(here.part(20, 40))
        here.broker.stop()
        here.broker.start()
        resume(daemon)
        here.publish(here.part(40, 60))
        here.wait_for_rows(count(here.records))
        wait_for(lambda: of_source(daemon, "source_reconnects_total") == 1)
        wait_for(lambda: of_source(daemon, "source_redelivered_total") >= count(here.part(20, 40)))
        here.check(here.records, heard)
        end(daemon, reconnected=True)


def test_redeliveries_of_a_killed_broker_are_not_applied_again(tmp_path: Path) -> None:
    """Messages acknowledged after the broker's last write are redelivered: they are recognised, counted as redelivered
    and not applied again.  New messages under reused packet identifiers are applied.
    """
    with open_plant(tmp_path) as here, subscriber(here.broker.port) as heard, here.daemon() as daemon:
        daemon.wait_for_sources("mqtt")
        hold(daemon)
        here.publish(here.part(0, 20))
        here.broker.save()
        resume(daemon)
        here.publish(here.part(20, 40))  # the broker forgets these and reuses their packet identifiers
        here.wait_for_rows(count(here.part(0, 40)))
        wait_for(lambda: len(heard.rows) >= count(here.part(0, 40)))
        here.broker.kill()
        here.broker.start()
        wait_for(lambda: of_source(daemon, "source_redelivered_total") == count(here.part(0, 20)))
        here.publish(here.part(40, 60))
        here.wait_for_rows(count(here.records))
        here.check(here.records, heard)
        end(daemon, reconnected=True)


def test_a_killed_broker_loses_only_what_it_had_not_written(tmp_path: Path) -> None:
    """Messages written while the daemon was down are applied; later ones are counted as missing by the sequence
    counter.
    """
    with open_plant(tmp_path) as here:
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(0, 20))
            here.wait_for_rows(count(here.part(0, 20)))
            end(daemon)
        here.publish(here.part(20, 40))
        here.broker.save()
        here.publish(here.part(40, 50))
        here.broker.kill()
        here.broker.start()
        with here.daemon() as daemon:
            here.wait_for_rows(count(here.part(0, 40)))
            here.publish(here.part(50, 60))
            here.wait_for_last()
            here.check(here.without(40, 50))
            end(daemon, missing=count(here.part(40, 50)))


def test_a_lost_session_is_counted_and_what_comes_later_is_applied(tmp_path: Path) -> None:
    """The broker loses its state, with the daemon running and with it down: each loss is counted and logged, messages
    the broker held are missing by the devices' counters, later ones are applied once although packet identifiers
    restart.
    """
    with open_plant(tmp_path) as here:
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(0, 20))
            here.wait_for_rows(count(here.part(0, 20)))
            here.wipe()
            wait_for(lambda: of_source(daemon, "source_sessions_lost_total") == 1)
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(20, 40))
            here.wait_for_rows(count(here.part(0, 40)))
            end(daemon, reconnected=True, sessions_lost=1)
        here.publish(here.part(40, 50))
        here.wipe()
        with here.daemon() as daemon:
            wait_for(lambda: of_source(daemon, "source_sessions_lost_total") == 1)
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(50, 60))
            here.wait_for_last()
            here.check(here.without(40, 50))
            end(daemon, missing=count(here.part(40, 50)), sessions_lost=1)


def test_a_frozen_broker_is_left_and_found_again(tmp_path: Path) -> None:
    """Frozen longer than keepalive_s: the source is disconnected meanwhile; then nothing is lost or applied twice."""
    with open_plant(tmp_path) as here, subscriber(here.broker.port) as heard, here.daemon(keepalive_s=1) as daemon:
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        here.broker.freeze()
        wait_for(lambda: of_source(daemon, "source_connected") == 0, what="the daemon to notice")
        pause(4.0)  # some connection attempts are in progress and wait for the broker
        here.broker.thaw()
        here.publish(here.part(20, 40))
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(40, 60))
        here.wait_for_rows(count(here.records))
        here.check(here.records, heard)
        end(daemon, reconnected=True)


def test_a_slow_line_makes_late_and_nothing_else(tmp_path: Path) -> None:
    """At 60 KB/s outputs queue while the loop keeps running; all arrive in order, and none twice."""
    with (
        open_plant(tmp_path) as here,
        subscriber(here.broker.port) as heard,
        SlowLink(here.broker.port, 60_000) as link,
        here.daemon(link.url) as daemon,
    ):
        daemon.wait_for_sources("mqtt")
        here.publish(here.records)
        here.wait_for_rows(count(here.records))
        turns_on(daemon)
        assert of_sink(daemon, "sink_queue") > 0, "the line is not slow"
        here.check(here.records, heard)
        assert set(heard.rows.values()) == {1}
        end(daemon)


@pytest.mark.parametrize("keepalive_s", [30, 1])
def test_a_line_that_stalls_within_a_packet(keepalive_s: int, tmp_path: Path) -> None:
    """The rest of a packet is delayed: the loop keeps running, and the message is applied once when the line is back,
    whether the connection timed out meanwhile (keepalive_s = 1) or not.
    """
    with (
        open_plant(tmp_path) as here,
        subscriber(here.broker.port) as heard,
        SlowLink(here.broker.port, 200_000) as link,
        here.daemon(link.url, keepalive_s) as daemon,
    ):
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        here.wait_for_rows(count(here.part(0, 20)))
        wait_for(lambda: of_sink(daemon, "sink_queue") == 0)
        link.stall_after(20)
        here.publish(here.part(20, 40))
        wait_for(lambda: link.stalled)
        turns_on(daemon)
        if keepalive_s == 1:
            wait_for(lambda: of_source(daemon, "source_connected") == 0)
            pause(4.0)
        assert len(here.rows()) == count(here.part(0, 20))
        link.go_on()
        here.publish(here.part(40, 60))
        here.wait_for_rows(count(here.records))
        here.check(here.records, heard)
        end(daemon, reconnected=keepalive_s == 1)


def test_what_a_full_queue_of_the_broker_drops_is_missing_by_the_counter(tmp_path: Path) -> None:
    """Without a connected client the broker queues a bounded number of messages and drops the newest: queued ones are
    applied, dropped ones are counted as missing at each device's next sample.
    """
    limits = ["max_queued_messages 50", "max_inflight_messages 20", "sys_interval 1"]
    with open_plant(tmp_path, 51, lines=limits) as here, here.broker.client() as peer:
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            end(daemon)
        here.publish(here.part(0, 50))
        peer.subscribe("$SYS/broker/publish/messages/dropped")
        output = wait_for(lambda: [text for text in peer.payloads() if text != b"0"], what="how many were dropped")
        lost = int(output[-1])
        kept = 200 - lost
        assert 50 <= kept <= 70
        with here.daemon() as daemon:
            here.wait_for_rows(kept)
            here.publish(here.part(50, 51))
            here.wait_for_rows(kept + 4)
            assert len(here.rows()) == kept + 4
            each, more = divmod(kept, 4)
            of_streams = enumerate(here.records.items())
            here.check({stream: [*rows[: each + (at < more)], rows[50]] for at, (stream, rows) in of_streams})
            end(daemon, missing=lost)


def test_outputs_that_the_broker_does_not_allow_are_counted(tmp_path: Path) -> None:
    """An access list without our output topics: each output is counted as failed and logged once per topic; inputs are
    applied and acknowledged.
    """
    acl = ["topic readwrite #", "topic deny stream_gru/dev-0/prediction"]
    with open_plant(tmp_path, acl=acl) as here, subscriber(here.broker.port) as heard:
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            here.publish(here.records)
            here.wait_for_rows(count(here.records))
            wait_for(lambda: of_sink(daemon, "sink_failed_total") == 60)
            wait_for(lambda: of_sink(daemon, "sink_queue") == 0)
            here.check(here.records)
            wait_for(lambda: len(heard.rows) == 180)
            output = end(daemon)
        assert output.count("the broker refused an output to stream_gru/dev-0/prediction") == 1
        with here.daemon() as daemon:  # nothing is queued in the store or at the broker
            daemon.wait_for_sources("mqtt")
            turns_on(daemon)
            assert of_source(daemon, "messages_received_total") == 0
            assert of_sink(daemon, "sink_failed_total") == 0
            end(daemon)


@pytest.mark.skipif(not _ACCESS, reason="mosquitto's dynamic security is not installed")
def test_a_refused_subscription_is_an_error_in_the_log(tmp_path: Path) -> None:
    """A refused subscription is logged, the source does not count as connected, and the daemon continues."""
    refused = {"acltype": "subscribePattern", "topic": "sensors/#", "allow": False}
    allowed = dict.fromkeys(("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True)
    access = tmp_path / "access.json"
    access.write_text(json.dumps({
        "defaultACLAccess": allowed,
        "roles": [{"rolename": "all", "acls": [refused]}],
        "groups": [{"groupname": "all", "roles": [{"rolename": "all"}]}],
        "anonymousGroup": "all",
    }))  # fmt: skip
    plugin = [f"plugin {_ACCESS[0]}", f"plugin_opt_config_file {access}"]
    with open_plant(tmp_path, lines=plugin) as here, here.daemon() as daemon:
        text = "the broker refused the subscription to sensors/+/data: Not authorized"
        wait_for(lambda: text in daemon.text())
        wait_for(lambda: of_sink(daemon, "sink_connected") == 1)
        turns_on(daemon)
        assert of_source(daemon, "source_connected") == 0
        output = end(daemon)
        assert [line for line in output.splitlines() if text in line and "ERROR" in line], output


def test_inputs_that_the_broker_holds_back_are_not_seen(tmp_path: Path) -> None:
    """An access list in a file grants every subscription and withholds the messages: the source counts as connected,
    and only the lack of received messages shows it; outputs and the loop continue.
    """
    acl = ["topic write sensors/#", "topic readwrite stream_gru/#"]
    with open_plant(tmp_path, acl=acl) as here, here.daemon() as daemon:
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        turns_on(daemon)
        assert of_source(daemon, "messages_received_total") == 0
        assert of_source(daemon, "source_connected") == of_sink(daemon, "sink_connected") == 1
        end(daemon)


def test_what_is_too_large_holds_nothing_up(tmp_path: Path) -> None:
    """A message beyond max_payload_bytes is dropped as too large; an output beyond the broker's max_packet_size, here
    one with a long name in it, is counted as failed and logged; all later ones go through.
    """
    long = {"dev-" + "x" * 100: [{**row, "seq": number} for number, row in enumerate(pump_records(1, 20)["dev-0"])]}
    with (
        open_plant(tmp_path, max_packet_bytes=1250) as here,
        subscriber(here.broker.port) as heard,
        here.daemon() as daemon,
    ):
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        with here.broker.client() as device:
            device.publish("sensors/dev-0/data", "x" * 1001)
        here.publish(long)
        here.publish(here.part(20, 60))
        here.wait_for_rows(count(here.records) + 20)
        here.check({**here.records, **long})
        wait_for(lambda: len(heard.rows) == count(here.records))
        wait_for(lambda: of_sink(daemon, "sink_failed_total") == 20)
        wait_for(lambda: of_sink(daemon, "sink_queue") == 0)
        assert of_sink(daemon, "sink_reconnects_total") == 0
        output = end(daemon, lost={"too_large": 1})
        assert output.count("the broker accepts 1250 bytes at most") == 1


def test_what_the_connection_does_not_take_is_missing_by_the_counter(tmp_path: Path) -> None:
    """The broker does not send a message far beyond max_payload_bytes; later ones arrive."""
    with open_plant(tmp_path) as here, here.daemon() as daemon:
        daemon.wait_for_sources("mqtt")
        here.publish(here.part(0, 20))
        padded = {**here.records["dev-0"][20], "text": "x" * 100_000}
        here.publish({**here.part(20, 60), "dev-0": [padded, *here.records["dev-0"][21:]]})
        here.wait_for_last()
        here.check({**here.records, "dev-0": here.without(20, 21)["dev-0"]})
        end(daemon, missing=1)


def test_what_expires_at_the_broker_is_missing_by_the_counter(tmp_path: Path) -> None:
    """Messages that expire before they are fetched are never delivered; the counter says how many, all others are
    applied.
    """
    with open_plant(tmp_path) as here:
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(0, 20))
            here.wait_for_rows(count(here.part(0, 20)))
            end(daemon)
        here.publish(here.part(20, 30), message_expiry_s=600)
        here.publish(here.part(30, 40), message_expiry_s=1)
        pause(2.5)
        with here.daemon() as daemon:
            daemon.wait_for_sources("mqtt")
            here.publish(here.part(40, 60), message_expiry_s=600)
            here.wait_for_last()
            here.check(here.without(30, 40))
            end(daemon, missing=count(here.part(30, 40)))
