"""Messages between two processes, over one stream socket.

    frame    magic "sgl" | version, 1 byte | length, 4 bytes big endian | msgpack of one message

Promises. ``send`` never waits for the peer: what the socket does not take at once is sent by a thread of the channel,
in order. Both ends know the messages by type, so nothing is read that was not foreseen, and nothing is ever run. A
frame that is none (another magic or version, too long, not a message) ends the channel with a ``WireError`` that says
what came. Memory is bounded: a length is checked before anything is read, and a peer that reads nothing is given up.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

MAGIC = b"sgl"
VERSION = 1
"""Of frame and messages; both ends are started from one installation, so they differ only where something is broken."""
MAX_FRAME = 256 * 2**20
"""Bytes of one message."""
MAX_WAITING = 65_536
"""Frames that may wait for a peer that does not read."""
_HEADER = struct.Struct(">3sBI")
_READ_AHEAD = 2**18
_DRAIN_POLL_SECONDS = 0.002


class WireError(ValueError):
    """A message that cannot be sent, or something received that is none; one line."""


class Channel:
    """One end of a connection. ``send`` may be called from any thread, ``messages`` is for one reader.

    Args:
        connection: a connected stream socket; the channel closes it.
        incoming: the type, mostly a union of tagged structs, of the messages that may come.
    """

    def __init__(self, connection: socket.socket, incoming: Any) -> None:
        connection.setblocking(True)
        self._socket = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._frames: deque[memoryview] = deque()
        self._sending = threading.Lock()
        """Held by whoever sends; never waited for by ``send``, which a finalizer may call inside of itself."""
        self._stuck = threading.Event()
        self._writer: threading.Thread | None = None
        self._closed = False
        self._came = bytearray()
        """What was received and is not yet a message."""
        self._piece = memoryview(bytearray(_READ_AHEAD))
        self._wrong: WireError | None = None

    # --- sending ----------------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Sends ``message`` after those before it; nothing happens once the channel has ended.

        Raises ``WireError`` for what cannot be encoded or is too long.
        """
        frame = self._frame(message)
        if len(self._frames) >= MAX_WAITING:
            self.close()
        if not self._closed:
            self._frames.append(frame)
            self._send_now()

    def _frame(self, message: Any) -> memoryview:
        buffer = bytearray(_HEADER.size)
        try:
            self._encoder.encode_into(message, buffer, _HEADER.size)
        except (TypeError, ValueError, OverflowError) as error:
            raise WireError(f"this {type(message).__name__} cannot be sent to another process: {error}") from None
        length = len(buffer) - _HEADER.size
        if length > MAX_FRAME:
            raise WireError(f"this {type(message).__name__} has {length} bytes, more than the {MAX_FRAME} of a message")
        _HEADER.pack_into(buffer, 0, MAGIC, VERSION, length)
        return memoryview(buffer)

    def _send_now(self) -> None:
        """Send what waits without waiting; who finds somebody else at it leaves it to them."""
        while self._frames and not self._closed and self._sending.acquire(blocking=False):
            try:
                done = self._send_frames(socket.MSG_DONTWAIT)
                if not done and self._writer is None:
                    self._writer = threading.Thread(target=self._write, name="sglite-channel", daemon=True)
                    self._writer.start()
            finally:
                self._sending.release()
            if not done:
                self._stuck.set()
                return

    def _write(self) -> None:
        """The thread that waits for the peer in place of those who send."""
        while not self._closed:
            self._stuck.wait()
            self._stuck.clear()
            while self._frames and not self._closed:
                with self._sending:
                    self._send_frames(0)

    def _send_frames(self, flags: int) -> bool:
        """Whether everything went out, or nothing can any more."""
        while self._frames:
            frame = self._frames[0]
            try:
                sent = self._socket.send(frame, flags)
            except BlockingIOError:
                return False
            except OSError:  # the peer has gone, which the reader hears of
                self._frames.clear()
                return True
            if sent == len(frame):
                self._frames.popleft()
            else:
                self._frames[0] = frame[sent:]
        return True

    # --- receiving --------------------------------------------------------------------------------------------

    def messages(self) -> Iterator[Any]:
        """Messages until the channel ends. Raises ``WireError`` for what is no message; then nothing more comes."""
        while (found := self.receive()) is not None:
            yield from found

    def receive(self, wait: bool = True) -> list[Any] | None:
        """The messages that have come, with ``wait`` at least one; ``None``: the channel has ended. Raises as
        ``messages`` does, after what came before."""
        while not (self._came and (found := self._whole())):
            if self._wrong is not None:
                raise self._wrong
            try:
                size = self._socket.recv_into(self._piece, 0, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return []
            except OSError:
                return None
            if not size:
                return None
            self._came += self._piece[:size]
        return found

    def fileno(self) -> int:
        """Of the socket, to know when ``receive`` has something."""
        return self._socket.fileno()

    def _whole(self) -> list[Any]:
        """Takes the messages that are complete out of what has come."""
        found: list[Any] = []
        at, size, came, decode = 0, _HEADER.size, self._came, self._decoder.decode
        try:
            while len(came) - at >= size:
                magic, version, length = _HEADER.unpack_from(came, at)
                if magic != MAGIC or version != VERSION or length > MAX_FRAME:
                    raise _no_frame(came, at)
                end = at + size + length
                if end > len(came):
                    break
                found.append(decode(came[at + size : end]))
                at = end
        except WireError as error:
            self._wrong = error
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            self._wrong = WireError(f"a frame of {length} bytes holds no message: {error}")
        del came[:at]
        return found

    # --- the end ----------------------------------------------------------------------------------------------

    def drain(self, seconds: float) -> None:
        """Wait, at most so long, until everything has been sent."""
        end = time.monotonic() + seconds
        while self._frames and not self._closed and time.monotonic() < end:
            time.sleep(_DRAIN_POLL_SECONDS)

    def close(self) -> None:
        """End the channel, both ways; safe to call twice and from any thread."""
        self._closed = True
        self._stuck.set()
        with contextlib.suppress(OSError):  # the peer has gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _no_frame(came: bytearray, at: int) -> WireError:
    """What is wrong with the header at ``at``."""
    magic, version, length = _HEADER.unpack_from(came, at)
    if magic != MAGIC:
        return WireError(f"{bytes(came[at : at + _HEADER.size])!r} does not begin a message of sglite's")
    if version != VERSION:
        return WireError(f"the peer speaks version {version} of the protocol, this process version {VERSION}")
    return WireError(f"a message of {length} bytes was announced, {MAX_FRAME} is the most")
