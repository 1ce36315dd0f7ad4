"""A device in virtual time, behind `Driver`: it proves order, deferral, backlog and conservation, and nothing about
real events of a real device."""

from __future__ import annotations

from collections import defaultdict


class FakeDevice:
    """Work is queued on its streams at once and is done when `now` (nanoseconds) gets there.

    Attributes:
        hot: set while the user's call is under way; nothing may be asked then.
        capturing_now: a graph is being captured: asking would break it.
        dead: an error that lasts.
        ticks: what `now` becomes before each of the next queries: the device goes on while it is asked.
    """

    source = "cuda_event"

    def __init__(self) -> None:
        self.now = 0
        self.ends: dict[object, int] = defaultdict(int)
        self.current: object = "stream 0"
        self.hot = False
        self.capturing_now = False
        self.dead = False
        self.ticks: list[int] = []
        self.made = 0

    def launch(self, nanoseconds: int, stream: object | None = None) -> None:
        stream = self.current if stream is None else stream
        self.ends[stream] = self.reached(stream) + nanoseconds

    def reached(self, stream: object) -> int:
        """When the device will have done everything that is queued on a stream."""
        return max(self.ends[stream], self.now)

    # -- Driver --

    def event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent(self)

    def stream(self) -> object:
        return self.current

    def key(self, stream: object) -> object:
        return stream

    def capturing(self) -> bool:
        return self.capturing_now


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.at: int | None = None

    def record(self, stream: object) -> None:
        if self.device.dead:
            raise RuntimeError("an illegal memory access was encountered")
        self.at = self.device.reached(stream)

    def query(self) -> bool:
        device = self.device
        if device.ticks:
            device.now = device.ticks.pop(0)
        assert self.at is not None, "an event that was never recorded is complete to the driver"
        assert not device.hot, "the device was asked on the hot path"
        assert not device.capturing_now, "asked during a capture"
        if device.dead:
            raise RuntimeError("an illegal memory access was encountered")
        return self.at <= device.now

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.query()
        assert end.query()
        assert self.at is not None
        assert end.at is not None
        return (end.at - self.at) / 1e6
