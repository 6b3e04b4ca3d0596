"""What every `Store` promises, whatever is behind it. A subclass gives the fixture `store`: an empty folder."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

import pytest

from paramdelta_dist.errors import AlreadyExists, InputChanged, InputError, IntegrityError, NotFound
from paramdelta_dist.storage import Identity, Store

SMALLEST_PART = 5 << 20
"""The smallest that S3 takes, and a multiple of what Google does."""
LARGE = 12_500_000
"""Three parts of an upload, the last one short."""
MARK = 0xEE

NAMES = (
    "plain.safetensors",
    "deep/er/and/deeper.bin",
    "with space",
    "a+b=c&d;e,f",
    "percent%20sign",
    "hash#1",
    "question?mark",
    "grüße/模型.bin",
    ".hidden/_delta_log.json",
    "[x]*{y}~!@$'()",
)


class ProducerError(Exception):
    pass


class ProducerOSError(ConnectionResetError):
    pass


PRODUCER_ERRORS = (ProducerError, ProducerOSError, FileNotFoundError, PermissionError, TimeoutError, ValueError, KeyboardInterrupt)


@cache
def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def borrowed(data: bytes, step: int) -> Iterator[memoryview]:
    """`data` in pieces whose memory is overwritten when the next one is asked for, or as soon after as nobody holds them."""
    held: list[tuple[bytearray, memoryview]] = []
    for start in range(0, len(data), step):
        piece = memoryview(bytearray(data[start : start + step]))
        yield piece
        held.append((piece.obj, piece))
        for buffer, view in held[:]:
            with suppress(BufferError):
                view.release()
                held.remove((buffer, view))
                buffer[:] = bytes([MARK]) * len(buffer)


def failing(data: bytes, step: int, error: BaseException) -> Iterator[memoryview]:
    yield from borrowed(data, step)
    raise error


def replace(store: Store, name: str, data: bytes) -> Identity:
    """Written late enough that a disk whose clock ticks every few milliseconds tells the two versions apart."""
    time.sleep(0.03)
    return store.put(name, [data], size=len(data))


def same(left: bytes | memoryview, right: bytes) -> bool:
    """`left == right`, where an assertion on the values themselves would print megabytes."""
    return memoryview(left) == memoryview(right)


class StoreContract:
    """Stores are opened with parts of SMALLEST_PART."""

    def test_identify_tells_the_size(self, store: Store) -> None:
        for size in (0, 1, 1000):
            assert store.put(f"of-{size}", [content(size)], size=size).size == size
            assert store.identify(f"of-{size}").size == size

    def test_identify_of_an_absent_object_is_not_found(self, store: Store) -> None:
        store.write("there/is", b"this")
        for name in ("absent", "there", "there/is/not", "ther"):
            with pytest.raises(NotFound):
                store.identify(name)

    def test_reading_an_absent_object_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound):
            store.read("absent", limit=10)
        with pytest.raises((NotFound, InputChanged)):  # a store that pins versions cannot tell the two apart
            store.read_range("absent", 0, 1, identity=Identity(1, "1"))

    def test_list_of_an_absent_folder_is_empty(self, store: Store) -> None:
        assert store.list() == {}

    def test_list_tells_the_same_identity_as_identify_and_as_the_write_returned(self, store: Store) -> None:
        returned = {name: store.write(name, name.encode()) for name in ("a", "b/a", "b/c/d/e.bin", "z.json")}
        returned["large"] = store.put("large", borrowed(content(1_000_000), 99_999), size=1_000_000)
        assert store.list() == returned
        assert {name: store.identify(name) for name in returned} == returned

    @pytest.mark.parametrize("name", NAMES)
    def test_a_name_comes_back_as_it_was_given(self, store: Store, name: str) -> None:
        data = name.encode()
        identity = store.put(name, [data], size=len(data))
        assert store.list() == {name: identity}
        assert store.identify(name) == identity
        assert store.read(name, limit=1000) == data
        assert bytes(store.read_range(name, 0, len(data), identity=identity)) == data
        store.write(name, b"other")
        assert store.read(name, limit=1000) == b"other"
        store.delete(name)
        assert store.list() == {}

    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 1000), (333, 777), (999, 1000), (0, 0), (500, 500), (1000, 1000)])
    def test_a_range_is_exactly_its_bytes(self, store: Store, start: int, stop: int) -> None:
        data = content(1000)
        identity = store.put("object", [data], size=1000)
        assert bytes(store.read_range("object", start, stop, identity=identity)) == data[start:stop]
        memory = bytearray([MARK]) * 1500
        view = store.read_range("object", start, stop, identity=identity, into=memoryview(memory)[100:1400])
        assert bytes(view) == data[start:stop]
        assert not any(byte != MARK for byte in memory[:100])
        assert not any(byte != MARK for byte in memory[100 + stop - start :])
        if view.obj is memory:
            assert memory[100 : 100 + stop - start] == data[start:stop]
        else:
            assert view.readonly
            assert set(memory) == {MARK}

    def test_a_range_outlives_the_ones_read_after_it(self, store: Store) -> None:
        data = content(100_000)
        identity = store.put("object", [data], size=len(data))
        views = [store.read_range("object", start, start + 1000, identity=identity) for start in range(0, 100_000, 1000)]
        assert b"".join(views) == data

    @pytest.mark.parametrize(("start", "stop"), [(0, 1001), (999, 1001), (1000, 1001), (5000, 6000), (0, 10**9)])
    def test_a_range_past_the_end_is_an_error_and_never_short(self, store: Store, start: int, stop: int) -> None:
        identity = store.put("object", [content(1000)], size=1000)
        with pytest.raises((IntegrityError, InputChanged)):
            store.read_range("object", start, stop, identity=identity, into=memoryview(bytearray(2000)))

    @pytest.mark.parametrize("size", [1000, 999, 1001, 0])
    def test_a_replaced_object_is_not_read_with_the_old_identity(self, store: Store, size: int) -> None:
        before = store.put("object", [content(1000)], size=1000)
        after = replace(store, "object", content(size, seed=1))
        assert after != before
        with pytest.raises(InputChanged):
            store.read_range("object", 0, 10, identity=before)
        assert bytes(store.read_range("object", 0, size, identity=after)) == content(size, seed=1)

    def test_a_small_file_is_read_whole_up_to_the_limit(self, store: Store) -> None:
        store.write("object", content(1000))
        assert store.read("object", limit=1000) == content(1000)
        with pytest.raises(InputError):
            store.read("object", limit=999)
        store.write("empty", b"")
        assert store.read("empty", limit=0) == b""

    @pytest.mark.parametrize("size", [0, 1, 100_000, 6_000_001, 2 * SMALLEST_PART, LARGE])
    def test_put_writes_the_chunks_although_their_memory_is_reused(self, store: Store, size: int) -> None:
        data = content(size)
        identity = store.put("object", borrowed(data, 7919 if size < 1_000_000 else 3_000_001), size=size)
        assert identity == store.identify("object")
        assert identity.size == size
        assert same(store.read_range("object", 0, size, identity=identity), data)

    def test_put_takes_every_kind_of_buffer_and_empty_ones(self, store: Store) -> None:
        chunks = [b"by", b"", bytearray(b"tes"), memoryview(b""), memoryview(b" and more")]
        store.put("object", iter(chunks), size=14)
        assert store.read("object", limit=100) == b"bytes and more"

    def test_put_replaces_what_was_there(self, store: Store) -> None:
        store.put("object", [content(2000)], size=2000)
        replace(store, "object", content(1000, seed=1))
        assert store.read("object", limit=2000) == content(1000, seed=1)

    def test_an_object_does_not_appear_before_it_is_whole(self, store: Store) -> None:
        seen: list[object] = []

        def chunks() -> Iterator[bytes]:
            for start in range(0, LARGE, 3_200_000):
                seen.append(onlooker.submit(store.list).result())  # another thread: a producer itself may not ask the store
                yield data[start : start + 3_200_000]

        data = content(LARGE)
        with ThreadPoolExecutor(1) as onlooker:
            store.put("object", chunks(), size=LARGE)
        assert seen == [{}] * 4

    @pytest.mark.parametrize("kind", PRODUCER_ERRORS)
    def test_an_exception_of_the_producer_comes_out_unchanged(self, store: Store, kind: type[BaseException]) -> None:
        error = kind("of the producer")
        with pytest.raises(kind) as caught:
            store.put("object", failing(content(10_000), 999, error), size=20_000)
        assert caught.value is error
        assert store.list() == {}

    @pytest.mark.parametrize("produced", [0, 1000, LARGE])
    def test_a_failed_put_leaves_nothing_visible(self, store: Store, produced: int) -> None:
        with pytest.raises(ProducerError):
            store.put("object", failing(content(produced), 3_000_001, ProducerError()), size=LARGE + 1)
        with pytest.raises(NotFound):
            store.identify("object")
        assert store.list() == {}

    @pytest.mark.parametrize("produced", [0, 1000, LARGE])
    def test_a_failed_put_keeps_what_was_there(self, store: Store, produced: int) -> None:
        before = store.put("object", [b"before"], size=6)
        with pytest.raises(ProducerError):
            store.put("object", failing(content(produced), 3_000_001, ProducerError()), size=LARGE + 1)
        assert store.list() == {"object": before}
        assert store.read("object", limit=10) == b"before"

    @pytest.mark.parametrize(("announced", "produced"), [(10, 9), (10, 11), (0, 1), (1, 0), (LARGE, LARGE - 1), (LARGE, LARGE + 1)])
    def test_a_wrong_size_is_refused_and_nothing_appears(self, store: Store, announced: int, produced: int) -> None:
        with pytest.raises(IntegrityError):
            store.put("object", borrowed(content(produced), 3_000_001), size=announced)
        assert store.list() == {}

    def test_a_put_can_follow_a_failed_one(self, store: Store) -> None:
        with pytest.raises(ProducerError):
            store.put("object", failing(content(100), 10, ProducerError()), size=200)
        identity = store.put("object", [b"now"], size=3)
        assert store.list() == {"object": identity}
        assert store.read("object", limit=10) == b"now"

    def test_write_replaces_and_exclusive_write_does_not(self, store: Store) -> None:
        store.write("object", b"first")
        assert store.write("object", b"second") == store.identify("object")
        with pytest.raises(AlreadyExists):
            store.write("object", b"third", exclusive=True)
        assert store.read("object", limit=10) == b"second"
        identity = store.write("other", b"fourth", exclusive=True)
        with pytest.raises(AlreadyExists):
            store.write("other", b"fifth", exclusive=True)
        assert store.read("other", limit=10) == b"fourth"
        assert store.identify("other") == identity

    def test_a_write_that_replaces_one_version_replaces_no_other(self, store: Store) -> None:
        first = store.write("object", b"first")
        second = store.write("object", b"second!", replacing=first)
        assert second == store.identify("object")
        with pytest.raises(InputChanged):
            store.write("object", b"third", replacing=first)
        assert store.read("object", limit=10) == b"second!"
        store.delete("object")
        with pytest.raises(InputChanged):
            store.write("object", b"fourth", replacing=second)
        assert store.list() == {}

    @pytest.mark.parametrize("name", ["lock", "deep/er/lock"])
    def test_exactly_one_of_many_exclusive_writers_wins(self, store: Store, name: str) -> None:
        start = threading.Barrier(8)

        def attempt(number: int) -> int | None:
            start.wait()
            try:
                store.write(name, b"%d" % number, exclusive=True)
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(attempt, range(8)) if number is not None]
        assert len(winners) == 1
        assert store.read(name, limit=10) == b"%d" % winners[0]
        assert list(store.list() or {}) == [name]

    def test_delete_removes_and_may_be_repeated(self, store: Store) -> None:
        store.write("a/object", b"data")
        store.write("a/other", b"data")
        store.delete("a/object")
        store.delete("a/object")
        store.delete("never/was")
        assert list(store.list() or {}) == ["a/other"]
        store.write("a/object", b"again", exclusive=True)

    def test_many_threads_read_and_write_at_once(self, store: Store) -> None:
        data = content(1_000_000)
        identity = store.put("object", [data], size=len(data))

        def work(number: int) -> bool:
            part = content(50_000, seed=number)
            own = store.put(f"out/{number}", borrowed(part, 9999), size=len(part))
            start = number * 30_000
            memory = memoryview(bytearray(30_000))
            read = store.read_range("object", start, start + 30_000, identity=identity, into=memory)
            return same(read, data[start : start + 30_000]) and same(store.read_range(f"out/{number}", 0, 50_000, identity=own), part)

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(work, range(32)))
        assert len(store.list() or {}) == 33
