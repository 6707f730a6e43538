"""The same two apps in one process, with Flower's messages and no network."""

import copy
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from pprml.flower_app.apps import Training, client_app, serve
from pprml.flower_app.training import Phone
from pprml.partition import Weights

Tap = Callable[[Message, Message], None]


class LocalGrid(Grid):
    """A grid whose sites are function calls, in the place of Flower's own simulation.

    That one needs Ray, a large package with processes of its own, which this course does not install. Here the sites
    answer in turn in this process: a run can be repeated bit for bit, and a tap sees each message.

    Parameters
    ----------
    app : ClientApp
    sites : int
    settings : mapping
    tap : callable of a message and its reply, optional
        Sees all that the server sends and receives.
    """

    def __init__(self, app: ClientApp, sites: int, settings: Mapping[str, Any], tap: Tap | None = None):
        self.app, self.tap, self._run = app, tap, None
        # Flower's messages say who sends them, and refuse to be made without it.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
        self.contexts = {
            # Node ids are random 63-bit numbers, as in a deployment.
            secrets.randbits(63): Context(
                1, number, {"partition-id": number, "num-partitions": sites}, RecordDict(), dict(settings)
            )
            for number in range(sites)
        }
        for node_id, context in self.contexts.items():
            context.node_id = node_id
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Keep the run's description."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run's description."""
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        """Make a message, as Flower's other grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the sites."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the sites answer, one after the other."""
        numbers = []
        for message in messages:
            numbers.append(secrets.token_hex(16))
            # A site must not see, or change, what the server and the other sites hold.
            message = Message(
                copy.deepcopy(message.content),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id=message.metadata.group_id,
            )
            message.metadata.__dict__["_message_id"] = numbers[-1]
            self._replies[numbers[-1]] = self._ask(message)
        return numbers

    def _ask(self, message: Message) -> Message:
        try:
            sent = copy.deepcopy(message) if self.tap else message
            reply = self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as a SuperNode does: the error travels, and the other sites go on
            return Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        if self.tap:
            self.tap(sent, reply)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))


def simulate(
    settings: Mapping[str, Any],
    app: ClientApp = client_app,
    tap: Tap | None = None,
    test: Phone | None = None,
) -> Training:
    """Run a federation of `settings["sites"]` sites in this process.

    Parameters
    ----------
    settings : mapping
        From `make_settings`.
    app : ClientApp
        From `build_client_app`.
    tap : callable of a message and its reply, optional
    test : (features, labels), optional
        What accuracy is measured on; by default the test set.
    """
    return serve(LocalGrid(app, settings["sites"], settings, tap), settings, test)


def find_largest_difference(one: Weights, other: Weights) -> float:
    """Return the largest difference between two sets of weights."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
