"""Shards that are in place: their receipts, held against the objects that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from blake3 import blake3

from paramdelta_dist.errors import (
    InputChanged,
    NotFound,
    OutputOccupied,
)
from paramdelta_dist.output.hold import (
    Hold,
    require_hold,
    write_held,
)
from paramdelta_dist.output.receipts import MAX_RECEIPT, Receipt, parse_receipt, receipt_name
from paramdelta_dist.output.replace import some
from paramdelta_dist.planning.plan import MergePlan
from paramdelta_dist.storage import Identity, Store, stream_object
from paramdelta_dist.threads import Threads


def read_receipts(store: Store, hold: Hold, plan: MergePlan, present: Mapping[str, Identity]) -> tuple[dict[str, Receipt], int]:
    """Receipts that still hold, of this plan and of the object that is there, and the bytes read to find out."""

    def kept(file: str) -> tuple[Receipt | None, int]:
        if receipt_name(file) not in present:
            return None, 0
        receipt = parse_receipt(store.read(receipt_name(file), limit=MAX_RECEIPT))
        if receipt is None or receipt.fingerprint != plan.fingerprint:
            return None, 0
        return _holding(store, hold, receipt, present)

    with Threads(16) as pool:
        found = list(pool.map(kept, [shard.file for shard in plan.shards]))
    return {receipt.file: receipt for receipt, _ in found if receipt is not None}, sum(size for _, size in found)


def _holding(store: Store, hold: Hold, receipt: Receipt, present: Mapping[str, Identity]) -> tuple[Receipt | None, int]:
    """The receipt, if the object that is there is the one it proves, and the bytes read to find out.

    An object of the same size that was written again, by another run of this merge or by a copy, is judged by its bytes.
    """
    there = present.get(receipt.file)
    if there is None or there.size != receipt.size:
        return None, 0
    if receipt.identity == there:
        return receipt, 0
    digest = blake3()
    try:
        for piece in stream_object(store, receipt.file, there):
            digest.update(piece)
    except (InputChanged, NotFound):  # a run that goes on at the same time writes it once more
        return None, there.size
    if digest.hexdigest() != receipt.digest:
        return None, there.size
    receipt = replace(receipt, tag=there.tag)
    write_held(store, hold, receipt_name(receipt.file), receipt.to_json())
    return receipt, there.size


def require_shards(store: Store, hold: Hold, receipts: Mapping[str, Receipt]) -> dict[str, Receipt]:
    """The receipts, once more held against what is there now, before it is called a model. Raises OutputOccupied when a
    shard is no longer what was made."""
    present = store.list() or {}
    with Threads(16) as pool:
        held = {
            file: receipt
            for file, (receipt, _) in zip(receipts, pool.map(lambda r: _holding(store, hold, r, present), receipts.values()), strict=True)
        }
    lost = sorted(file for file, receipt in held.items() if receipt is None)
    require_hold(store, hold)
    if lost:
        raise OutputOccupied(
            f"{store.url}: {some(lost)} changed while the merge ran: another process writes to this folder; run again when it is alone"
        )
    return {file: receipt for file, receipt in held.items() if receipt is not None}
