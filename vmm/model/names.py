"""Names for workloads that were given none: an adjective and a pioneer of operating systems."""

from __future__ import annotations

import os

LEFT = (
    "amber", "bold", "brave", "bright", "calm", "civil", "clear", "clever", "cosy", "crisp",
    "daring", "eager", "fair", "fleet", "fond", "frank", "gentle", "glad", "happy", "hardy",
    "honest", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "modest",
    "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet",
    "rapid", "ready", "robust", "serene", "sharp", "sincere", "smart", "snug", "sober", "solid",
    "spry", "stable", "steady", "sturdy", "sunny", "swift", "tidy", "upbeat", "vivid", "warm",
)  # fmt: skip
RIGHT = (
    "allen", "allman", "babbage", "backus", "bartik", "berners", "boole", "bourne", "brinch",
    "brooks", "cerf", "cocke", "codd", "corbato", "creasy", "dahl", "daley", "denning", "dennis",
    "diffie", "dijkstra", "engelbart", "fano", "feinler", "floyd", "goldberg", "gosling", "graham",
    "hamilton", "hamming", "hoare", "hopper", "ichbiah", "iverson", "joy", "kahan", "kay",
    "kernighan", "kilburn", "knuth", "lamport", "lampson", "liskov", "lovelace", "mccarthy",
    "mcilroy", "mckusick", "metcalfe", "milner", "naur", "nygaard", "organick", "ossanna",
    "perlis", "perlman", "pike", "postel", "rabin", "reed", "ritchie", "saltzer", "shannon",
    "stallman", "thompson", "torvalds", "turing", "ullman", "wilkes", "wirth", "zuse",
)  # fmt: skip


def generate() -> str:
    """A random ``adjective_name``; uniqueness is the claimant's business."""
    number = int.from_bytes(os.urandom(4), "little")
    return f"{LEFT[number % len(LEFT)]}_{RIGHT[number // len(LEFT) % len(RIGHT)]}"
